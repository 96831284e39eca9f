#![doc = include_str!("../README.md")]
//!
//! In model checks (`--cfg shuttle`) the queue, its workers and all waits are what is checked;
//! the system's descriptors and time are replaced.

mod bell;
mod blocked;
mod blocking;
mod completions;
pub mod contain;
mod coop;
#[cfg(not(shuttle))]
mod descriptor;
pub mod event_index;
mod keeper;
mod kept;
#[cfg(all(test, shuttle))]
mod model;
mod parker;
mod poll_seat;
mod pollers;
mod race;
#[cfg(not(shuttle))]
mod reactor;
#[cfg(shuttle)]
#[path = "reactor_model.rs"]
mod reactor;
mod runtime;
mod scheduler;
mod sleep;
#[cfg(not(shuttle))]
mod source;
mod task;
mod timers;
mod turns;
mod waiters;
#[cfg(not(shuttle))]
mod watchdog;
mod worker;
mod workers;

pub use bell::{Bell, Ring};
pub use completions::Completions;
#[cfg(not(shuttle))]
pub use descriptor::Descriptor;
pub use keeper::Keeper;
pub use kept::hand_over;
pub use poll_seat::{PollSeat, TooManyPolled};
pub use pollers::Poll;
pub use race::{race, yield_now};
pub use runtime::{Runtime, WeakRuntime};
pub use sleep::{Elapsed, Sleep, Timeout};
pub use task::{Ended, Job, Task};
pub use timers::ManualClock;
pub use turns::Group;
pub use waiters::{WaitFor, Waiters};
pub use workers::{Workers, worker_seat};
