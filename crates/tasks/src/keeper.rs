//! Tasks that a thread runs itself, as it has made them ready and has nothing else to do: no worker has to wake
//! up for them.
//!
//! A thread that has a [`Keeper`] says so. What it rings within [`Group::keep`] then makes ready is kept for it:
//! one task, of that group, and only if no other task waits for its turn. The thread runs it when it has come to
//! the end of what it does. What it makes ready when it looks for completions ([`Keeper::look`]) is kept in the same way, some
//! tasks at a time. Everything else goes to the workers.
//!
//! A task that is kept waits for that one thread. So the thread hands it over to the workers
//! ([`hand_over`](crate::hand_over)) before it does anything that may wait, and when it has no keeper any more.

use std::marker::PhantomData;

use crate::kept;
use crate::runtime::Runtime;
use crate::scheduler::run_task;
use crate::turns::Group;

/// Tasks that are kept at most when completions are taken: as many queues as a guest has on some processors.
const MOST: usize = 32;

/// Lets the calling thread run tasks of a runtime that it has made ready ([`Group::keep`]), one at a time. A
/// thread has one keeper at most. Dropping it hands over what is kept.
#[derive(Debug)]
pub struct Keeper<'a> {
    /// Not closed before this is dropped.
    runtime: &'a Runtime,
    /// It is of this thread.
    _thread: PhantomData<*const ()>,
}

impl Runtime {
    /// Lets the calling thread run tasks that it makes ready, if there are workers to which it can hand them
    /// over. `None`, too, if the thread has a keeper.
    pub fn keeper(&self) -> Option<Keeper<'_>> {
        let scheduler = self.scheduler();
        let keeps = scheduler.has_workers() && kept::begin(scheduler.address());
        keeps.then(|| Keeper { runtime: self, _thread: PhantomData })
    }
}

impl Keeper<'_> {
    /// Whether a task is kept.
    pub fn holds(&self) -> bool {
        kept::holds()
    }

    /// Runs a task that is kept, until it waits. Returns whether there was one. The thread must hold no lock
    /// that the task may take.
    pub fn run(&self) -> bool {
        let task = kept::take();
        let runs = task.is_some();
        task.into_iter().for_each(run_task);
        runs
    }

    /// Takes what has completed ([`Runtime::completions`]). The tasks of the group that this makes ready are
    /// kept, some at a time, as long as no other task waits for its turn. Does not wait.
    pub fn look(&self, group: &Group) {
        group.keep_up_to(MOST, || self.runtime.scheduler().completions.poll());
    }
}

impl Drop for Keeper<'_> {
    fn drop(&mut self) {
        kept::end();
    }
}
