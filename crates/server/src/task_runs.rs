//! Whether the thread of a connection runs the tasks that the client's doorbells make ready.
//!
//! It does so where they are short: to wake a worker takes longer then. While it runs one, it receives nothing.
//! So tasks that take long, as those of a queue with many commands do, are left to the workers, and tried
//! again now and then.

use std::time::Duration;

use vfiod_sync::atomic::{AtomicU32, Ordering};

/// A task that runs for longer is long: several times what it takes to wake a worker, and more than it takes to hand
/// the 32 reads to a disk that a queue begins at once.
pub(crate) const LONG: Duration = Duration::from_micros(250);
/// Turns that are left out after a long task, and the most after several in a row.
const LEAST_LEFT_OUT: u32 = 8;
const MOST_LEFT_OUT: u32 = 1024;

/// How long the tasks of a connection have run on its thread. One thread at a time uses it.
#[derive(Debug, Default)]
pub(crate) struct TaskRuns {
    /// Turns in which the workers run the tasks.
    left_out: AtomicU32,
    /// How many are left out after the next long task; 0: the last one was short.
    next: AtomicU32,
}

impl TaskRuns {
    /// Whether the thread runs the task of this turn.
    pub(crate) fn are_short(&self) -> bool {
        let left = self.left_out.load(Ordering::Relaxed);
        if left > 0 {
            self.left_out.store(left - 1, Ordering::Relaxed);
        }
        left == 0
    }

    /// Whether the thread runs tasks between two turns.
    pub(crate) fn were_short(&self) -> bool {
        self.left_out.load(Ordering::Relaxed) == 0
    }

    /// Tasks have run on the connection's thread, one after the other.
    pub(crate) fn ran_for(&self, time: Duration) {
        if time <= LONG {
            self.next.store(0, Ordering::Relaxed);
            return;
        }
        let left_out = self.next.load(Ordering::Relaxed).max(LEAST_LEFT_OUT);
        self.left_out.store(left_out, Ordering::Relaxed);
        self.next.store((left_out * 2).min(MOST_LEFT_OUT), Ordering::Relaxed);
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    /// How many turns are left out after a task.
    fn left_out(runs: &TaskRuns, time: Duration) -> u32 {
        runs.ran_for(time);
        (0..).find(|_| runs.are_short()).unwrap()
    }

    #[test]
    fn long_tasks_are_tried_less_and_less_often() {
        let runs = TaskRuns::default();
        assert!(runs.are_short());
        let long = Duration::from_millis(10);
        let turns: Vec<u32> = (0..10).map(|_| left_out(&runs, long)).collect();
        assert_eq!(turns, [8, 16, 32, 64, 128, 256, 512, 1024, 1024, 1024]);
        assert_eq!(left_out(&runs, Duration::from_micros(20)), 0);
        assert_eq!(left_out(&runs, long), 8, "from the beginning");
    }
}
