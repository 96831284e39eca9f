#![doc = include_str!("../README.md")]

mod at_once;
mod backend;
mod bytes;
mod channel;
mod compare;
mod continued;
mod disk;
mod failure;
mod file;
mod identity;
mod image;
mod in_flight;
mod interest;
mod kernel;
mod limits;
mod lock;
mod memory;
mod metadata;
mod null;
mod pending;
mod pieces;
mod pool;
mod ranges;
mod request;
mod shared;
mod started;
mod syncs;
pub mod test;

/// The system calls that requests to an [`Image`] need beyond those of every daemon, by number.
pub use vfiod_io::SYSTEM_CALLS;

pub use backend::{About, Backend, Channel};
pub use bytes::{AtOnce, Bytes};
pub use channel::DiskChannel;
pub use disk::Disk;
pub use failure::{Failure, FailureKind};
pub use identity::Identity;
pub use image::{DirectIo, Image, ImageOptions, ImageUse};
pub use interest::{Interest, OnlySyncs, Syncing};
pub use limits::Limits;
pub use memory::Memory;
pub use metadata::{Identify, Metadata, MetadataOptions, Stored};
pub use null::Null;
pub use pending::Pending;
pub use request::{Buffer, Done, Request};
pub use started::Started;
pub use vfiod_io::Holds;
