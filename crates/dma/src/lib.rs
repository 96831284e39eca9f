#![doc = include_str!("../README.md")]
//!
//! | module | its job | from the bottom up |
//! | --- | --- | --- |
//! | `fault` | access that survives what a client does to its file | |
//! | `watched` | the memory whose faults are recovered from | |
//! | `userfault`, `sparse` | holes of a client's file stay holes until they are written | |
//! | `mapped_file` | a file mapped into this process | |
//! | [`memory`], `device_memory` | memory that a device shares with its clients | |
//! | `table` | mappings sorted by address | |
//! | `ranges`, `in_flight` | accesses that hold no lock, and waiting for their end | |
//! | `dirty` | which pages have been written | |
//! | `peer` | memory reached by message: requests and completions | |
//! | `shared` | a value read by many under locks of their own | |
//! | `map` | what the data path reads | |
//! | `transfer` | copies under the lock, without it, by message | |
//! | `hold` | [`Hold`]: memory kept for one request to the kernel | |
//! | `files`, `control` | which file is behind a mapping ([`MemoryKind`]), how much of it to map; owners | |
//! | `space` | [`Space`]: mappings made, listed, copied | |
//! | `unmap`, `listener` | [`Unmapping`]: removing mappings, and who may delay it | |
//! | `attachment`, `batch` | [`Attachment`], [`Batch`]: a device's side | |
//!
//! # Who waits for whom
//!
//! | | begins | ends | an unmap waits for it | a quiesce waits for it |
//! | --- | --- | --- | --- | --- |
//! | copy of up to [`DIRECT`] bytes, translation | under the attachment's lock | under it | for the lock | for the lock |
//! | larger copy | under the lock | without | as a range in use | as in flight |
//! | [`Hold`] | under the lock | when dropped, from any thread | as a range in use, bounded | as in flight |
//! | request by message | under the lock | with its [`Completion`] | no: the client sees to it itself | while a task awaits it |
//! | [`Delay`] of a listener | when the unmap begins | when dropped | as a range in use, bounded | no |

mod attachment;
mod batch;
mod control;
mod device_memory;
mod dirty;
pub mod error;
mod fault;
mod files;
mod hold;
mod in_flight;
mod listener;
mod map;
mod mapped_file;
pub mod memory;
mod page_tables;
mod peer;
mod ranges;
mod request;
mod shared;
mod space;
mod sparse;
mod table;
mod transfer;
mod unmap;
mod userfault;
mod watched;

pub use self::attachment::{Attachment, Idle};
pub use self::batch::{Batch, Reach, Span};
#[expect(deprecated, reason = "users of an earlier version name it")]
pub use self::device_memory::region_offset;
pub use self::device_memory::{DeviceMemory, SharedRegion};
pub use self::dirty::{Marks, dirty_bitmap_len};
pub use self::error::{Errno, Error, Result};
pub use self::fault::Scalar;
pub use self::files::{AcceptedFiles, MemoryKind};
pub use self::hold::{Hold, HoldSegment};
pub use self::in_flight::{Flight, Flights};
pub use self::listener::{Delay, Listener, Listening};
pub use self::peer::{Completion, DmaPeer, Reply};
pub use self::request::{Backing, MapOwner, MapRequest, Perm};
pub use self::space::{MappingInfo, MappingSummary, Snapshot, Space, Summary, Usage};
pub use self::transfer::DIRECT;
pub use self::unmap::{UNMAP_WAIT, Unmapping};

#[cfg(test)]
mod block_on;
#[cfg(all(test, shuttle))]
mod model;
#[cfg(test)]
// Model checks use a part of it.
#[cfg_attr(shuttle, allow(dead_code))]
mod test_device;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
