#![doc = include_str!("../README.md")]

mod at_once;
mod backend;
mod bytes;
mod continued;
mod disk;
mod file;
mod identity;
mod image;
mod interest;
mod lock;
mod memory;
mod metadata;
mod null;
mod pending;
mod pieces;
mod pool;
mod ranges;
mod started;
mod syncs;
pub mod test;

/// The system calls that requests to an [`Image`] need beyond those of every daemon, by number.
pub use vfiod_io::SYSTEM_CALLS;

pub use backend::{About, Backend, Buffer, Channel, Done, Failure, FailureKind, Limits, Request};
pub use bytes::{AtOnce, Bytes};
pub use disk::{Disk, DiskChannel};
pub use identity::Identity;
pub use image::{DirectIo, Image, ImageOptions, ImageUse};
pub use interest::Interest;
pub use memory::Memory;
pub use metadata::{Identify, Metadata, MetadataOptions, Stored};
pub use null::Null;
pub use pending::Pending;
pub use started::Started;
pub use vfiod_io::Holds;
