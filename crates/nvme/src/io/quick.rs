//! Reads and writes of data in guest memory that is mapped: begun without a wait and without memory of their own.
//!
//! What is not so simple is left to the general way, which judges the command anew: whatever has an error,
//! reaches memory by message, or does more than one request.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use vfiod_disk::{Buffer, Request, Started};
use vfiod_nvme_spec::opcode::{self, Io};
use vfiod_nvme_spec::{Status, Submission};

use super::{IoQueue, judge};
use crate::limits::MAX_TRANSFER;
use crate::namespace::UsedNamespace;
use crate::queues::serve::Command;
use crate::queues::slots::Running;
use crate::transfer::{Direction, SHORT, hold_all};
use crate::{prp, sgl};

/// A read or write that the disk has.
pub(crate) struct Quick {
    command: Submission,
    direction: Direction,
    len: u64,
    started: Started,
    namespace: UsedNamespace,
}

impl IoQueue {
    /// Begins a command, if it is one of these.
    pub(super) fn begin_quick(&self, command: &Submission) -> Option<Running<Quick>> {
        let io = opcode::IO.find(command.opcode(), |needs| self.common.has(needs)).ok()?.command;
        let direction = match io {
            Io::Read if !command.durable() => Direction::ToHost,
            Io::Write => Direction::FromHost,
            _ => return None,
        };
        command.check_io().ok()?;
        let namespace = self.common.namespaces.get(command.namespace())?.enter_owned().ok()?;
        if direction == Direction::FromHost {
            self.writable(&namespace).ok()?;
        }
        let blocks = command.blocks();
        if blocks << namespace.block_shift() > MAX_TRANSFER {
            return None;
        }
        let (offset, len) = namespace.range(command.first_block(), blocks).ok()?;
        let dma = self.task.dma();
        let pieces = if command.has_sgl() {
            sgl::pieces_at_once(command.sgl(), len as usize)
        } else {
            prp::pieces_at_once(dma, self.queues.page, command.prps(), len as usize)
        };
        // A longer list is charged to the user, which may have to wait.
        let pieces = pieces.filter(|pieces| pieces.len() <= SHORT)?;
        let buffer = Buffer::Guest(hold_all(dma, &pieces, direction).ok()??);
        let request = match direction {
            Direction::ToHost => Request::Read { offset, buffer },
            Direction::FromHost => self.write_request(command, offset, buffer),
        };
        let started = namespace.channel().ok()?.start_within(&self.queues.interest, request);
        let quick = Quick { command: *command, direction, len, started, namespace };
        Some(Running::Quick(quick, len))
    }

    pub(super) fn poll_quick(&self, quick: &mut Quick, cx: &mut Context<'_>) -> Poll<Command> {
        let done = ready!(Pin::new(&mut quick.started).poll(cx));
        let media = match quick.direction {
            Direction::ToHost => Status::READ_ERROR,
            Direction::FromHost => Status::WRITE_FAULT,
        };
        let outcome = match done.result {
            Ok(()) => {
                self.count(quick.direction, quick.len);
                Ok(0)
            }
            Err(failure) => {
                Err(judge(&self.common, &self.queues, &quick.namespace, &failure, media))
            }
        };
        self.log(&quick.command, outcome);
        Poll::Ready(Command::with(&quick.command, outcome))
    }
}
