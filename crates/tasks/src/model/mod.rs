//! Model checks of waiting and stopping. `ci/model-checks.sh` runs them.
//!
//! | invariant | watched by |
//! | --- | --- |
//! | no ring of a bell is lost, nor is its newest value | [`scenarios`] |
//! | no store to shared memory is missed by a task that falls asleep | [`scenarios`] |
//! | a task that is ready is run: by a worker that was about to sleep, by another worker, by a thread that waits | [`scenarios`], the checker (deadlock) |
//! | a task that a thread keeps is run: by that thread, or by a worker once it waits; no other task waits for that | [`scenarios`], the checker (deadlock) |
//! | a thread that waits goes on when its condition holds, whoever runs tasks | [`scenarios`] |
//! | the end of a task is reported once, after its future has been dropped | [`scenarios`] |

mod scenarios;
