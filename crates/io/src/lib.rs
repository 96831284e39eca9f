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

mod bounce;
mod data;
mod pool;
mod raw;
mod readiness;
mod reply;
mod request;
mod ring;
mod runtime_ring;

/// The system calls of io_uring, by number: a model that does I/O with a [`Ring`] names them among its
/// needs, so that a daemon's sandbox allows them. Where they are forbidden, threads do the same.
pub const SYSTEM_CALLS: &[i64] =
    &[libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];

pub use data::{Buffer, Holds};
pub use reply::Transfer;
pub use request::Allocation;
pub use ring::{Plug, Ring};
pub use runtime_ring::RuntimeRing;
