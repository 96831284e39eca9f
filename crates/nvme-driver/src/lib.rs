#![doc = include_str!("../README.md")]
//!
//! # How it works
//! | module | its job |
//! | --- | --- |
//! | `link` | the connection: registers, doorbells, waiting; shared by all queues |
//! | `memory` | memory that the controller reaches, and pieces of it ([`Buffer`]) |
//! | `command` | submission and completion queue entries |
//! | `pair` | the rings of a queue pair, and what is in flight |
//! | `controller` | enable, disable, resets, Identify, making queues |
//! | `queue` | an I/O queue, which a thread of its own can use |
//!
//! The structures of the specification are written down here once more, from the host's side, rather than
//! shared with the controller of `vfiod-nvme`: a test of one with the other finds what only one of them has
//! wrong.

mod command;
mod controller;
mod error;
mod link;
mod memory;
mod namespace;
mod pair;
mod queue;

pub use command::{Command, Completion, Status, opcode};
pub use controller::{Controller, Doorbells, Info, Options, Reset};
pub use error::{Error, Result};
pub use memory::{Buffer, Data, Memory};
pub use namespace::Namespace;
pub use queue::{Queue, Waiting};
