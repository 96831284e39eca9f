//! Tasks that a thread runs itself, as it has made them ready and has nothing else to do: no worker has to wake
//! up for them.
//!
//! A thread that has a [`Keeper`] says so. What it rings within [`Group::keep`] then makes ready is kept for it:
//! one task, of that group, and only if no other task waits for its turn. The thread runs it when it has come to
//! the end of what it does. What it makes ready when it looks for completions ([`Keeper::look`]) is kept in the same way, some
//! tasks at a time. Everything else goes to the workers.
//!
//! A task that is kept waits for that one thread. So the thread hands it over to the workers
//! ([`hand_over`]) before it does anything that may wait, and when it has no keeper any more.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::marker::PhantomData;

use async_task::Runnable;

use crate::runtime::Runtime;
use crate::scheduler::{Scheduler, run_task};
use crate::turns::Group;

// loom's and shuttle's macros take no `const`.
vfiod_sync::thread_local! {
    /// The scheduler whose tasks the calling thread runs, by its address. 0: it has no keeper.
    #[allow(clippy::missing_const_for_thread_local)]
    static RUNS: Cell<usize> = Cell::new(0);
}
vfiod_sync::thread_local! {
    /// The group of which a task may be kept now, by its address. 0: none.
    #[allow(clippy::missing_const_for_thread_local)]
    static GROUP: Cell<usize> = Cell::new(0);
}
vfiod_sync::thread_local! {
    /// How many tasks may be kept now.
    #[allow(clippy::missing_const_for_thread_local)]
    static ROOM: Cell<usize> = Cell::new(0);
}
vfiod_sync::thread_local! {
    /// The tasks that are kept. Only a thread that has a keeper looks.
    #[allow(clippy::missing_const_for_thread_local)]
    static TASKS: RefCell<VecDeque<Runnable>> = RefCell::new(VecDeque::new());
}

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
        if RUNS.with(Cell::get) != 0 || !scheduler.has_workers() {
            return None;
        }
        RUNS.with(|runs| runs.set(address(scheduler)));
        Some(Keeper { runtime: self, _thread: PhantomData })
    }
}

impl Keeper<'_> {
    /// Whether a task is kept.
    pub fn holds(&self) -> bool {
        holds()
    }

    /// Runs a task that is kept, until it waits. Returns whether there was one. The thread must hold no lock
    /// that the task may take.
    pub fn run(&self) -> bool {
        let task = take();
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
        hand_over();
        RUNS.with(|runs| runs.set(0));
    }
}

/// Hands what the calling thread keeps over to the workers. To be called by a thread that has a [`Keeper`] before
/// it does what may wait for another thread, or takes long.
#[inline]
pub fn hand_over() {
    if RUNS.with(Cell::get) != 0 {
        while let Some(task) = take() {
            task.schedule();
        }
    }
}

impl Group {
    /// Calls `ring`. The first task of the group that it makes ready is kept for the calling thread, if that has
    /// a [`Keeper`], keeps none yet, and no other task waits for its turn.
    #[inline]
    pub fn keep<R>(&self, ring: impl FnOnce() -> R) -> R {
        self.keep_up_to(1, ring)
    }

    #[inline]
    fn keep_up_to<R>(&self, room: usize, ring: impl FnOnce() -> R) -> R {
        if RUNS.with(Cell::get) == 0 {
            return ring();
        }
        GROUP.with(|group| group.set(self.address()));
        ROOM.with(|most| most.set(room));
        let _keeping = Keeping;
        ring()
    }
}

/// Tasks may be kept until this is dropped, also by a panic.
struct Keeping;

impl Drop for Keeping {
    fn drop(&mut self) {
        GROUP.with(|group| group.set(0));
    }
}

/// Whether the calling thread is to keep a task of this group, which is ready.
pub(crate) fn wants(scheduler: &Scheduler, group: &Group) -> bool {
    GROUP.with(Cell::get) == group.address()
        && RUNS.with(Cell::get) == address(scheduler)
        && has_room()
}

fn has_room() -> bool {
    TASKS.with(|tasks| tasks.borrow().len()) < ROOM.with(Cell::get)
}

fn holds() -> bool {
    TASKS.with(|tasks| !tasks.borrow().is_empty())
}

fn take() -> Option<Runnable> {
    TASKS.with(|tasks| tasks.borrow_mut().pop_front())
}

/// Keeps a task for the calling thread, which [`wants`] it.
pub(crate) fn keep(task: Runnable) {
    TASKS.with(|tasks| tasks.borrow_mut().push_back(task));
}

fn address(scheduler: &Scheduler) -> usize {
    std::ptr::from_ref(scheduler).addr()
}
