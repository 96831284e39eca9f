//! Fused operations (base 6.2, NVM command set 2.1.5): Compare and Write, one step for whatever else uses the
//! disk. Both are in one queue, one behind the other; the queue reads them together.

use std::sync::Arc;

use vfiod_core::dma::Completion;
use vfiod_disk::FailureKind;
use vfiod_sync::atomic::{AtomicBool, Ordering};

use super::quick::Quick;
use super::{IoQueue, judge};
use crate::denied::Denied;
use crate::namespace::Namespace;
use crate::queues::execute::{Command, Running};
use crate::transfer::{self, Direction};
use vfiod_nvme_spec::opcode::{self, Io};
use vfiod_nvme_spec::{Outcome, Status, Submission};

impl IoQueue {
    /// Begins both commands.
    pub(super) fn begin_pair(&self, pair: [Submission; 2], begun: &mut dyn FnMut(Running<Quick>)) {
        let [first, second] = pair;
        let (queue, second_command) = (self.clone(), second);
        let (completion, reply) = Completion::new();
        begun(Running::new(async move {
            let (outcome, of_second) = queue.perform_pair(&first, &second).await;
            for (command, outcome) in [(&first, outcome), (&second, of_second)] {
                queue.log(command, outcome);
            }
            completion.complete(Ok(of_second));
            Command::with(&first, outcome)
        }));
        begun(Running::new(async move {
            // What ends the first one without a result ends this one.
            let outcome = reply.await.unwrap_or(Err(Status::ABORT_REQUESTED));
            Command::with(&second_command, outcome)
        }));
    }

    /// Begins a command whose other half is not there.
    pub(super) fn begin_half(&self, command: &Submission, begun: &mut dyn FnMut(Running<Quick>)) {
        let (command, outcome) = (*command, Err(Status::MISSING_FUSED));
        begun(Running::new(async move { Command::with(&command, outcome) }));
    }

    async fn perform_pair(&self, first: &Submission, second: &Submission) -> (Outcome, Outcome) {
        let find = |command: &Submission| {
            let io = opcode::IO.find(command.opcode(), |needs| self.common.has(needs));
            io.map(|io| io.command)
        };
        let is_pair = find(first) == Ok(Io::Compare) && find(second) == Ok(Io::Write);
        let place = |of: &Submission| (of.namespace(), of.first_block(), of.blocks());
        if !is_pair || place(first) != place(second) {
            return (Err(Status::INVALID_FIELD), Err(Status::INVALID_FIELD));
        }
        let mut turn = None;
        loop {
            return match self.compare_and_write(first, second).await {
                Ok(()) => (Ok(0), Ok(0)),
                Err(Failed::First(status)) => (Err(status), Err(Status::FAILED_FUSED)),
                // Nothing was compared.
                Err(Failed::SecondUnbegun(status)) => (Err(Status::FAILED_FUSED), Err(status)),
                Err(Failed::Second(status)) => (Ok(0), Err(status)),
                Err(Failed::Short) => match self.again(&mut turn).await {
                    Ok(()) => continue,
                    Err(status) => (Err(status), Err(Status::FAILED_FUSED)),
                },
            };
        }
    }

    async fn compare_and_write(
        &self,
        first: &Submission,
        second: &Submission,
    ) -> Result<(), Failed> {
        let namespace = &*self.namespace(first.namespace()).map_err(Failed::First)?;
        let _in_use = namespace.enter().map_err(Failed::First)?;
        let (direction, mut turn) = (Direction::FromHost, None);
        let located = self.locate(namespace, first, direction, &mut turn).await;
        let (offset, of_first) = located.map_err(Failed::first)?;
        self.writable(namespace).map_err(Failed::SecondUnbegun)?;
        let located = self.locate(namespace, second, direction, &mut turn).await;
        let (_, of_second) = located.map_err(Failed::second_unbegun)?;
        // What both need is taken at once: of pairs that each had a half, all would wait for the other.
        let (task, memory, ends) = (&self.task, &self.common.bounce, self.queues.ends(self.id));
        let data = transfer::begin(task, memory, ends, [&of_first, &of_second], direction);
        let data = self.reach(namespace, async { Ok(data.await) }).await;
        let data = data.map_err(Failed::First)?.map_err(|(which, denied)| match which {
            0 => Failed::first(denied),
            _ => Failed::second_unbegun(denied),
        });
        let ([with, buffer], _charged) = data?;
        drop(turn);
        let durable = first.durable() || second.durable();
        self.perform_both(namespace, offset, (with, buffer), durable).await
    }

    async fn perform_both(
        &self,
        namespace: &Namespace,
        offset: u64,
        (with, buffer): (vfiod_disk::Buffer, vfiod_disk::Buffer),
        durable: bool,
    ) -> Result<(), Failed> {
        let len = buffer.len() as u64;
        let durable = durable || self.common.write_through();
        let equal = Arc::new(AtomicBool::new(false));
        let found = equal.clone();
        let was_equal = move || found.store(true, Ordering::SeqCst);
        let channel = namespace.channel().map_err(Failed::First)?;
        let interest = &self.interest_of_pairs;
        let done =
            channel.compare_and_write(interest, offset, (with, buffer), durable, was_equal).await;
        let was_equal = equal.load(Ordering::SeqCst);
        let counters = &self.counters;
        let Err(failure) = done.result else {
            counters.reads.add(1);
            counters.read.add(len);
            counters.writes.add(1);
            counters.written.add(len);
            return Ok(());
        };
        // What it writes the disk has insisted on.
        if !was_equal && failure.kind == FailureKind::Short {
            return Err(Failed::Short);
        }
        // Before a disk that takes no writes any more is asked, nothing is compared.
        let writes = was_equal || failure.kind == FailureKind::SyncFailed;
        let media = if writes { Status::WRITE_FAULT } else { Status::READ_ERROR };
        let status = judge(&self.common, &self.queues, namespace, &failure, media);
        Err(match (was_equal, writes) {
            (true, _) => Failed::Second(status),
            (false, true) => Failed::SecondUnbegun(status),
            (false, false) => Failed::First(status),
        })
    }
}

/// Which of two commands has failed.
#[derive(Clone, Copy, Debug)]
enum Failed {
    First(Status),
    /// The second one, after the first one has succeeded.
    Second(Status),
    /// The second one, before the first one was begun.
    SecondUnbegun(Status),
    /// Neither: there is too little memory, and nothing was written.
    Short,
}

impl Failed {
    fn first(denied: Denied) -> Self {
        Self::of(denied, Self::First)
    }

    fn second_unbegun(denied: Denied) -> Self {
        Self::of(denied, Self::SecondUnbegun)
    }

    fn of(denied: Denied, failed: impl FnOnce(Status) -> Self) -> Self {
        match denied {
            Denied::With(status) => failed(status),
            Denied::Short => Self::Short,
        }
    }
}
