//! The commands of an I/O queue, as the queue's task has them performed.

use std::sync::Arc;
use std::task::{Context, Poll};

use vfiod_disk::Channel;
use vfiod_nvme_spec::opcode::{self, Io};
use vfiod_nvme_spec::submission::{ALL_NAMESPACES, Fused};
use vfiod_nvme_spec::{Outcome, Status, Submission};

use super::IoQueue;
use super::quick::Quick;
use crate::counters::{Counters, QueueCounters};
use crate::denied::Denied;
use crate::limits::MAX_TRANSFER;
use crate::queues::execute::{Command, Execute, Running};
use crate::rate::RateLimit;

impl Execute for IoQueue {
    type Quick = Quick;

    fn begin(&self, commands: &[Submission], begun: &mut dyn FnMut(Running<Quick>)) -> usize {
        match commands {
            [first, second, ..]
                if (first.fused(), second.fused()) == (Fused::First, Fused::Second) =>
            {
                self.begin_pair([*first, *second], begun);
                return 2;
            }
            [half, ..] if matches!(half.fused(), Fused::First | Fused::Second) => {
                self.begin_half(half, begun);
            }
            [command, ..] => {
                let general = || Running::new(self.clone().begin_general(*command));
                begun(self.begin_quick(command).unwrap_or_else(general));
            }
            [] => return 0,
        }
        1
    }

    fn at_once(&self, commands: &[Submission], most: u64, ended: &mut dyn FnMut(Command)) -> usize {
        self.perform_at_once(commands, most, ended)
    }

    fn poll(&self, quick: &mut Quick, cx: &mut Context<'_>) -> Poll<Command> {
        self.poll_quick(quick, cx)
    }

    /// All disks of a daemon start their requests at the ring of the worker that runs this.
    fn gather(&self, begin: &mut dyn FnMut()) {
        let mut namespaces = self.common.namespaces.all();
        let namespace = namespaces.find(|namespace| namespace.channel().is_ok());
        match namespace.as_ref().map(|namespace| namespace.channel()) {
            Some(Ok(channel)) => channel.gather(begin),
            _ => begin(),
        }
    }

    fn syncing(&self) -> usize {
        self.syncing.count()
    }

    fn sync(&self, command: &Submission) -> Running<Quick> {
        let (queue, command) = (self.clone(), *command);
        Running::new(async move {
            let flushed = queue.flush_by_id(command.namespace()).await;
            let outcome = flushed.map_err(Denied::for_good);
            queue.log(&command, outcome);
            Command::with(&command, outcome)
        })
    }

    fn is_ready(&self) -> bool {
        self.common.bounce.is_enough()
    }

    async fn ready(&self) {
        self.common.bounce.enough().await;
    }

    fn counters(&self) -> (&Counters, &QueueCounters) {
        (&self.common.counters, &self.counters)
    }

    fn rate(&self) -> Option<&Arc<RateLimit>> {
        Some(&self.common.rate).filter(|rate| rate.is_limited())
    }

    /// Those that the disk reads or writes; of a Copy they are known later.
    fn bytes(&self, command: &Submission) -> u64 {
        let Ok(io) = opcode::IO.find(command.opcode(), |needs| self.common.has(needs)) else {
            return 0;
        };
        let Some(namespace) = self.common.namespaces.get(command.namespace()) else { return 0 };
        let bytes = command.blocks() << namespace.block_shift();
        match io.command {
            // Larger ones are refused.
            Io::Read | Io::Write | Io::Compare => bytes.min(MAX_TRANSFER),
            Io::Verify => bytes,
            Io::WriteZeroes if !namespace.deallocates(command) => bytes,
            Io::WriteZeroes | Io::Flush | Io::Copy | Io::DatasetManagement => 0,
        }
    }
}

impl IoQueue {
    /// A command by the way that all can go.
    pub(super) async fn begin_general(self, command: Submission) -> Command {
        let outcome = self.perform(&command).await;
        self.log(&command, outcome);
        Command::with(&command, outcome)
    }

    async fn perform(&self, command: &Submission) -> Outcome {
        let mut turn = None;
        loop {
            let (done, ends) = (self.attempt(command).await, self.queues.ends(self.id));
            let settled = self.common.bounce.settled(&self.task, ends, done, &mut turn);
            if let Some(result) = settled.await? {
                return Ok(result);
            }
        }
    }

    /// Performs a command, unless there is too little memory. It has nothing any more when this returns.
    async fn attempt(&self, command: &Submission) -> Result<u32, Denied> {
        let io = opcode::IO.find(command.opcode(), |needs| self.common.has(needs))?.command;
        command.check_io()?;
        if io == Io::Flush {
            return self.flush_by_id(command.namespace()).await;
        }
        let namespace = &*self.namespace(command.namespace())?;
        let _in_use = namespace.enter()?;
        match io {
            // Done above.
            Io::Flush => Err(Status::INTERNAL.into()),
            Io::Read => self.read(namespace, command).await,
            Io::Write => self.write(namespace, command).await,
            Io::Compare => self.compare(namespace, command).await,
            Io::Verify => self.verify(namespace, command).await,
            Io::WriteZeroes => self.write_zeroes(namespace, command).await,
            Io::Copy => self.copy(namespace, command).await,
            Io::DatasetManagement => self.manage_dataset(namespace, command).await,
        }
    }

    /// Flush, of one namespace or of all.
    async fn flush_by_id(&self, id: u32) -> Result<u32, Denied> {
        if id != ALL_NAMESPACES {
            let namespace = &*self.namespace(id)?;
            let _in_use = namespace.enter()?;
            return self.flush(namespace).await;
        }
        for namespace in self.common.namespaces.all() {
            let _in_use = namespace.enter()?;
            self.flush(&namespace).await?;
        }
        Ok(0)
    }
}
