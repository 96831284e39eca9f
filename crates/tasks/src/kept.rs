//! The tasks that the calling thread keeps for itself, and which ones it is to keep. [`Keeper`](crate::Keeper) says
//! why, and lets it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use async_task::Runnable;

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

/// Lets the calling thread keep tasks of the scheduler with this address, until [`end`]. Does nothing and returns
/// `false` if the thread does so already, for whichever scheduler.
pub(crate) fn begin(scheduler: usize) -> bool {
    RUNS.with(|runs| {
        let is_first = runs.get() == 0;
        if is_first {
            runs.set(scheduler);
        }
        is_first
    })
}

/// Hands over what the calling thread keeps, which keeps nothing any more.
pub(crate) fn end() {
    hand_over();
    RUNS.with(|runs| runs.set(0));
}

/// Hands what the calling thread keeps over to the workers. To be called by a thread that has a
/// [`Keeper`](crate::Keeper) before it does what may wait for another thread, or takes long.
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
    /// a [`Keeper`](crate::Keeper), keeps none yet, and no other task waits for its turn.
    #[inline]
    pub fn keep<R>(&self, ring: impl FnOnce() -> R) -> R {
        self.keep_up_to(1, ring)
    }

    #[inline]
    pub(crate) fn keep_up_to<R>(&self, room: usize, ring: impl FnOnce() -> R) -> R {
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

/// Whether the calling thread is to keep a task of this group, which is ready, and of the scheduler with this address.
pub(crate) fn wants(scheduler: usize, group: &Group) -> bool {
    GROUP.with(Cell::get) == group.address() && RUNS.with(Cell::get) == scheduler && has_room()
}

fn has_room() -> bool {
    TASKS.with(|tasks| tasks.borrow().len()) < ROOM.with(Cell::get)
}

/// Whether a task is kept.
pub(crate) fn holds() -> bool {
    TASKS.with(|tasks| !tasks.borrow().is_empty())
}

/// Takes the task that has been kept for longest.
pub(crate) fn take() -> Option<Runnable> {
    TASKS.with(|tasks| tasks.borrow_mut().pop_front())
}

/// Keeps a task for the calling thread, which [`wants`] it.
pub(crate) fn keep(task: Runnable) {
    TASKS.with(|tasks| tasks.borrow_mut().push_back(task));
}
