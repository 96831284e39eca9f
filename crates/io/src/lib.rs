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
//!
//! # What it does not implement
//! - Flags of io_uring that tie a ring to a thread (SINGLE_ISSUER, DEFER_TASKRUN) or cost a
//!   processor (SQPOLL).
//! - Registered buffers and files: holds last one request.
//! - Cancellation: what is under way ends by itself.

mod pool;
mod raw;
mod request;
mod ring;

pub use request::Allocation;
pub use ring::{Plug, Ring};
