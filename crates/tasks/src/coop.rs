//! A task whose waits always end at once must not occupy its thread for ever: after a number of
//! waits in one poll the next one lets other tasks run.

use std::task::Context;

#[cfg(not(shuttle))]
mod budget {
    use std::cell::Cell;

    /// Waits that may end at once in one poll of a task.
    const WAITS: u32 = 128;

    thread_local! {
        static LEFT: Cell<u32> = const { Cell::new(WAITS) };
    }

    pub(super) fn renew() {
        LEFT.set(WAITS);
    }

    pub(super) fn spend() -> bool {
        LEFT.with(|left| {
            let spent = left.get() == 0;
            left.set(if spent { WAITS } else { left.get() - 1 });
            spent
        })
    }
}

/// In a model all threads share one thread of the system, so there is no budget for each.
#[cfg(shuttle)]
mod budget {
    pub(super) fn renew() {}

    pub(super) fn spend() -> bool {
        false
    }
}

/// A task is about to be polled.
pub(crate) fn renew() {
    budget::renew();
}

/// Counts a wait. Returns whether the budget is spent: the task has been woken already, and the
/// caller returns `Pending`.
pub(crate) fn is_spent(cx: &Context<'_>) -> bool {
    let spent = budget::spend();
    if spent {
        cx.waker().wake_by_ref();
    }
    spent
}
