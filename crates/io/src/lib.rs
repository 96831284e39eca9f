#![doc = include_str!("../README.md")]
//!
//! # Who owns what
//!
//! A [`Ring`] comes from outside: one for each worker thread, never one for each device. Requests
//! are started from any thread. The owner of the ring calls [`Ring::reap`] when [`Ring::fd`] is
//! readable, which wakes the tasks of completed requests by their plain
//! [`Waker`](std::task::Waker)s; so any executor will do.
//!
//! A request owns what the kernel reads and writes: the descriptor, the buffer or the
//! [`Hold`](vfiod_dma::Hold). Dropping its future abandons the wait. The request goes on, and
//! what it owns is dropped when it has completed, never before.

mod pool;
mod raw;
mod readiness;
mod request;
mod ring;
mod runtime_ring;

pub use request::Allocation;
pub use ring::{Plug, Ring};
pub use runtime_ring::RuntimeRing;
