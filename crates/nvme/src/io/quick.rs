//! Reads and writes of data in guest memory that is mapped: begun without a wait and without memory of their own.
//!
//! What is not so simple is left to the general way, which judges the command anew: whatever has an error,
//! reaches memory by message, or does more than one request.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use vfiod_core::Result as CoreResult;
use vfiod_core::dma::Reach;
use vfiod_disk::{Buffer, Failure, FailureKind, Request, Started};
use vfiod_nvme_spec::opcode::{self, Io};
use vfiod_nvme_spec::{Outcome, Status, Submission};

use super::{IoQueue, judge};
use crate::limits::MAX_TRANSFER;
use crate::namespace::{Namespace, UsedNamespace};
use crate::piece::Pieces;
use crate::queues::execute::{Command, Running};
use crate::transfer::{Direction, SHORT, hold_all};
use crate::{prp, sgl};

/// A read or write that was begun.
#[expect(clippy::large_enum_variant, reason = "the usual one takes no memory of its own")]
pub(crate) enum Quick {
    Started(InDisk),
    /// The disk had too little memory: it begins anew, by the general way.
    Anew(Pin<Box<dyn Future<Output = Command> + Send>>),
}

/// A read or write that the disk has.
pub(crate) struct InDisk {
    command: Submission,
    direction: Direction,
    len: u64,
    started: Started,
    namespace: UsedNamespace,
}

/// What a read or write does.
pub(super) struct Plain {
    pub(super) direction: Direction,
    /// In bytes of the disk.
    pub(super) offset: u64,
    pub(super) len: u64,
}

impl IoQueue {
    /// What a command does, if it is a read or write that may be done in one step.
    pub(super) fn plain(&self, namespace: &Namespace, command: &Submission) -> Option<Plain> {
        let io = opcode::IO.find(command.opcode(), |needs| self.common.has(needs)).ok()?.command;
        let direction = match io {
            Io::Read if !command.durable() => Direction::ToHost,
            Io::Write => Direction::FromHost,
            _ => return None,
        };
        command.check_io().ok()?;
        if direction == Direction::FromHost {
            self.writable(namespace).ok()?;
        }
        let blocks = command.blocks();
        if blocks << namespace.block_shift() > MAX_TRANSFER {
            return None;
        }
        let (offset, len) = namespace.range(command.first_block(), blocks).ok()?;
        Some(Plain { direction, offset, len })
    }

    /// Where the data of a command is, as far as that is found without a wait. `read` reads mapped memory.
    pub(super) fn plain_pieces(
        &self,
        command: &Submission,
        len: u64,
        read: impl FnOnce(u64, &mut [u8]) -> CoreResult<Reach>,
    ) -> Option<Pieces> {
        let pieces = if command.has_sgl() {
            sgl::pieces_at_once(command.sgl(), len as usize)
        } else {
            prp::pieces_at_once(self.queues.page, command.prps(), len as usize, read)
        };
        // A longer list is charged to the user, which may have to wait.
        pieces.filter(|pieces| pieces.len() <= SHORT)
    }

    /// What a read or write comes to with what the disk has done.
    pub(super) fn concluded(
        &self,
        namespace: &Namespace,
        command: &Submission,
        (direction, len): (Direction, u64),
        result: Result<(), Failure>,
    ) -> Command {
        let outcome: Outcome = match result {
            Ok(()) => {
                self.count(direction, len);
                Ok(0)
            }
            Err(failure) => {
                let media = match direction {
                    Direction::ToHost => Status::READ_ERROR,
                    Direction::FromHost => Status::WRITE_FAULT,
                };
                Err(judge(&self.common, &self.queues, namespace, &failure, media))
            }
        };
        self.log(command, outcome);
        Command::with(command, outcome)
    }

    /// Begins a command, if it is one of these.
    pub(super) fn begin_quick(&self, command: &Submission) -> Option<Running<Quick>> {
        let namespace = self.common.namespaces.get(command.namespace())?.enter_owned().ok()?;
        let Plain { direction, offset, len } = self.plain(&namespace, command)?;
        let dma = self.task.dma();
        let pieces = self.plain_pieces(command, len, |at, bytes| dma.batch()?.read(at, bytes))?;
        let buffer = Buffer::Guest(hold_all(dma, &pieces, direction).ok()??);
        let request = match direction {
            Direction::ToHost => Request::Read { offset, buffer },
            Direction::FromHost => self.write_request(command, offset, buffer),
        };
        let started = namespace.channel().ok()?.start_within(&self.interest, request);
        let in_disk = InDisk { command: *command, direction, len, started, namespace };
        Some(Running::Quick(Quick::Started(in_disk), len))
    }

    pub(super) fn poll_quick(&self, quick: &mut Quick, cx: &mut Context<'_>) -> Poll<Command> {
        let in_disk = match quick {
            Quick::Started(in_disk) => in_disk,
            Quick::Anew(anew) => return anew.as_mut().poll(cx),
        };
        let done = ready!(Pin::new(&mut in_disk.started).poll(cx));
        if matches!(&done.result, Err(failure) if failure.kind == FailureKind::Short) {
            // What it has had is given back with this.
            drop(done);
            *quick = Quick::Anew(Box::pin(self.clone().begin_general(in_disk.command)));
            return self.poll_quick(quick, cx);
        }
        let moved = (in_disk.direction, in_disk.len);
        Poll::Ready(self.concluded(&in_disk.namespace, &in_disk.command, moved, done.result))
    }
}
