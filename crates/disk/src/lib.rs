#![doc = include_str!("../README.md")]

mod backend;
mod memory;

pub use backend::{Backend, Buffer, Channel, Done, Failure, FailureKind, Limits, Pending, Request};
pub use memory::Memory;
