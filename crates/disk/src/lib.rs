#![doc = include_str!("../README.md")]

mod backend;
mod continued;
mod disk;
mod memory;
mod null;
mod pieces;
mod pool;
mod ranges;
mod syncs;
pub mod test;

pub use backend::{Backend, Buffer, Channel, Done, Failure, FailureKind, Limits, Pending, Request};
pub use disk::{Disk, DiskChannel};
pub use memory::Memory;
pub use null::Null;
