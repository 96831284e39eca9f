//! Whose turn it is. Tasks that belong together take their turns as one: a device with many queues has no more
//! turns than one with a single queue.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use async_task::Runnable;
use vfiod_sync::{Mutex, lock};

/// Tasks that belong together, such as those of one device. When one of them has run, all others that are ready
/// have their turn before the next one of the group. A clone is the same group.
#[derive(Clone, Default)]
pub struct Group {
    /// Those that are ready. Locked with the lock of the [`Turns`] held.
    ready: Arc<Mutex<VecDeque<Runnable>>>,
}

impl Group {
    /// A group without tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// What tells it from other groups, as long as it is there.
    pub(crate) fn address(&self) -> usize {
        Arc::as_ptr(&self.ready).addr()
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").finish_non_exhaustive()
    }
}

/// The tasks that are ready, in the order of their turns.
#[derive(Default)]
pub(crate) struct Turns {
    turns: VecDeque<Turn>,
    len: usize,
}

enum Turn {
    /// Of a task that is in no group.
    Task(Runnable),
    /// Of a group that has tasks that are ready: each such group has one.
    Group(Group),
}

impl Turns {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A task is ready.
    pub(crate) fn push(&mut self, runnable: Runnable, group: Option<&Group>) {
        self.len += 1;
        let Some(group) = group else { return self.turns.push_back(Turn::Task(runnable)) };
        let mut ready = lock(&group.ready);
        ready.push_back(runnable);
        if ready.len() == 1 {
            self.turns.push_back(Turn::Group(group.clone()));
        }
    }

    /// Takes the task whose turn it is.
    pub(crate) fn pop(&mut self) -> Option<Runnable> {
        let runnable = match self.turns.pop_front()? {
            Turn::Task(runnable) => Some(runnable),
            Turn::Group(group) => {
                let mut ready = lock(&group.ready);
                let runnable = ready.pop_front();
                let is_left = !ready.is_empty();
                drop(ready);
                if is_left {
                    self.turns.push_back(Turn::Group(group));
                }
                runnable
            }
        };
        self.len -= usize::from(runnable.is_some());
        runnable
    }
}
