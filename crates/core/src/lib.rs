#![doc = include_str!("../README.md")]
//!
//! # Lifecycle
//!
//! ```text
//!            register                       first open                open
//!  (nothing) ────────► registered, idle ─────────────────► in use ◄────────┐
//!            init       ▲     │         [reset,] open_device, │ │ open     │
//!                       │     │         open                  │ └──────────┘
//!                       └─────┼───────────────────────────────┘ ▲ release
//!                             │         last release:         └─┘
//!                  unregister │         release, close_device
//!                             ▼
//!                           gone
//! ```
//!
//! | event | set | what happens, in order | when a step fails |
//! | --- | --- | --- | --- |
//! | [`Registry::register`] | idle, to join | [`describe`](Device::describe), [`init`](Device::init), join the set, become visible | undone in reverse, never visible |
//! | first [`open`](DeviceRef::open) | opening | counted; [`reset`](Device::reset) unless the state is retained; [`open_device`](Device::open_device); mark dropped; [`open`](Device::open) | undone in reverse: [`release`](Device::release) and [`close_device`](Device::close_device) only for what had succeeded |
//! | further open | opening | counted; mark dropped; `open` | not counted |
//! | drop of a [`File`] | closing, for the last part | the file's mappings and eventfds go, so that nothing can wait for the peer; `release`; not counted any more; after the last: `close_device`, and the reset of those members of the set that are in the error state if none is open | cannot fail |
//! | [`Registration::unregister`] | idle, to leave | invisible, no new opens; [`request`](device::Request::request) again and again; at the deadline the files are revoked; leave the set; the device is dropped | cannot fail |
//! | [`File::reset_set`], [`DeviceRef::reset_set`] | resetting | refused if somebody else has a member open; every member stopped (accesses wait a second, then `EBUSY`; no DMA begins); each reset, those with mappable pages last and again; doorbells and unmasking eventfds that were signalled are forgotten; resumed | a member that is busy: nothing has happened (`EBUSY`); one whose reset fails: it and those reset before it are in the error state, the others as they were |
//!
//! A *set* is idle, or marked by one thread that opens, closes or resets a member. The set's lock
//! is held to read and change the mark and the count of files, never during a callback or a wait.
//! Others wait for the mark: an open or a reset for two seconds, then it fails with `EBUSY`.
//!
//! A panic in any callback is caught. The device is in the error state then: accesses fail with
//! `EIO` until a reset succeeds (a client's, that of its next first open, or that of its set).
//!
//! A file's state, and who owes the device its `release`:
//!
//! | from | `open` succeeded | its holder drops it | it is revoked |
//! | --- | --- | --- | --- |
//! | opening | open | – | gone: the opener releases it |
//! | open | – | gone: the holder releases it | gone: the revoker releases it |
//! | gone | gone: the opener releases it | nothing to do | nothing to do |
//!
//! # Locks
//!
//! In this order, and never another: a shard of the registry → a set → a device. No callback
//! and no observer runs under a shard's lock, and nobody waits for a set lock under one: the
//! table of sets counts the members itself. Nobody waits for a peer with a set lock held. What
//! the set lock protects is inside it; functions that need it held take its guard.
//!
//! An access takes the device's lock and nothing else; one that lies in a shared area takes none.
//!
//! # What it does not implement
//!
//! - Migration, dirty logging and quiescing are not here yet.
//! - Accesses to one device are serialised: a callback that takes long delays the others of its
//!   device (not of its set), and an unregister waits for it even past its deadline.
//! - IOMMU groups, containers and iommufd objects: a device has one address space of its own,
//!   which its files share.
//! - A driver to pin: a registered device is kept by its registration.
//! - Mapped pages are not taken away from clients, neither during a hot reset nor by a revoke: a
//!   client that mapped a shared area can go on writing to it. What it writes means nothing to
//!   the device beyond what any client's writes there mean; what it wrote until the very end of a
//!   hot reset is gone after it.
//! - A hot reset waits for DMA that a device has begun on a thread of its own only if the
//!   device's `reset` does.

mod backoff;
mod context;
pub mod device;
pub mod event;
pub mod file;
mod hot_reset;
pub mod ids;
pub mod irq;
mod lifecycle;
#[cfg(all(test, any(shuttle, loom)))]
mod model;
mod opening;
pub mod region;
mod registered;
pub mod registry;
pub mod set;
pub mod work;

pub mod state;
mod stop;
mod task;
mod timeout;

pub use vfiod_dma as dma;
pub use vfiod_dma::{error, memory};
pub use vfiod_tasks::contain;

pub use context::{Context, DataPath};
pub use device::{
    Admission, Description, Device, DeviceFlags, Features, Quiesce, Request, ResetCause, Token,
    Why, Worker,
};
pub use error::{Errno, Error, Result};
pub use event::{Event, Observer};
pub use file::{File, FileStatus};
pub use hot_reset::{InUse, SetMember};
pub use ids::{
    ConnectionId, Credentials, DeviceId, FileId, IdSequence, Owner, OwnerContext, OwnerIdentity,
    SetId, SetObject,
};
pub use irq::{IrqFlags, IrqIndex, IrqInfo};
pub use region::{Region, RegionFlags, RegionIndex};
pub use registry::{
    DeviceRef, DeviceSpec, OpenPolicy, Registration, Registry, SetKey, StatePolicy, Status,
};
pub use task::DeviceTask;

pub use state::{Format, Persistence, ReadEffect, ReadTraits, SaveState, Saved};
pub(crate) use vfiod_sync as sync;
