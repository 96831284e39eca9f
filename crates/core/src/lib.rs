#![doc = include_str!("../README.md")]
//!
//! # Lifecycle
//!
//! ```text
//!            register                       first open                open
//!  (nothing) ────────► registered, idle ─────────────────► in use ◄────────┐
//!            init       ▲     │         [reset,] open_device, │ │ open     │
//!                       │     │         resume, open          │ └──────────┘
//!                       └─────┼───────────────────────────────┘ ▲ release
//!                             │         last release: release,└─┘
//!                  unregister │         quiesce, close_device
//!                             ▼
//!                        unregistered
//! ```
//!
//! | event | set | what happens, in order | when a step fails |
//! | --- | --- | --- | --- |
//! | [`Registry::register`] | idle, to join | [`describe`](Device::describe), [`init`](Device::init), join the set, become visible | undone in reverse, never visible |
//! | first [`open`](DeviceRef::open) | opening | counted; [`reset`](Device::reset) unless the state is retained for this user, or was restored for the next one; [`open_device`](Device::open_device); [`resume`](Worker::resume); mark dropped; [`open`](Device::open) | undone in reverse: [`release`](Device::release) and [`close_device`](Device::close_device) only for what had succeeded |
//! | further open | opening | counted; mark dropped; `open` | not counted |
//! | drop of a [`File`] | closing, for the last part | the file's mappings and eventfds are removed, so that nothing can wait for the peer; `release`; uncounted; after the last file: the device quiesces, `close_device`, and the reset of those members of the set that are in the error state if none is open | cannot fail; a device that does not quiesce in two seconds is closed all the same, and *stuck* |
//! | [`Registration::unregister`] | idle, to leave | invisible, no new opens; [`request`](device::Request::request) at growing intervals; at the deadline the files are revoked; leave the set; the device is dropped | cannot fail |
//! | [`File::reset_set`], [`DeviceRef::reset_set`] | resetting | refused if another user has a member open; every member is stopped and quiesces (accesses wait a second, then `EBUSY`); each is reset, those with mappable pages last and all but the last of them again; doorbells and unmasking eventfds that were signalled are forgotten; [`resume`](Worker::resume) | a member that is busy for two seconds: all resume, nothing was reset (`EBUSY`); one whose reset fails: it and those reset before it are in the error state, the others as they were |
//! | [`File::reset`] | any | the device is stopped and quiesces; `reset`; `resume` | stuck: `EIO`, if it does not quiesce in two seconds |
//! | [`Context::request_reset`] | any | after the call, step or data-path call that asked: as [`File::reset`], in a task of the runtime if anything of the device works | stuck |
//! | [`DeviceRef::save`] | saving | the device is stopped and quiesces; its state is read; `resume` | does not quiesce in two seconds: `EBUSY`, it resumes |
//! | [`DeviceRef::save_portable`] | saving | as [`DeviceRef::save`], of what is not a client's | as there |
//! | [`DeviceRef::restore_portable`] | opening | of a device without files: interrupts, shared memory and the device's state are restored, for its next first open | as it was |
//! | [`DeviceRef::restore`] | opening | `open_device`, `open` for each saved file, interrupts and mappings are set up, the device's state is restored, `resume`; no reset | undone in reverse, as an open and a close would leave it |
//!
//! A *set* is idle, or marked by one thread that opens, closes, resets or saves a member. The set's
//! lock is held to read and change the mark and the count of files, never during a callback or a
//! wait. Others wait for the mark: an open, a reset or a save for two seconds, then it fails with
//! `EBUSY`.
//!
//! A *stopped* device gets no call. Accesses and features wait for a second (`EBUSY`); during a
//! reset that the device itself asked for, configuration space waits 100 ms and other regions not at
//! all: then reads give all ones and writes are dropped. *Quiesced*, it also has no task, no
//! data-path call and no access to guest memory in flight. A *stuck* device is in the error state and
//! still has one of these; it cannot be opened before that has ended.
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
//! An access takes the device's lock and nothing else; one that lies in a shared area takes none,
//! and neither does a doorbell of a device that works. Tasks are polled without any of these locks.

mod backoff;
mod common;
mod context;
mod description;
pub mod device;
mod device_ref;
mod doorbell;
mod environment;
pub mod event;
pub mod file;
mod file_state;
mod held;
mod hot_reset;
pub mod ids;
mod input_log;
pub mod irq;
mod join;
mod lifecycle;
#[cfg(all(test, any(shuttle, loom)))]
mod model;
mod open_pause;
mod opening;
mod policy;
mod polled_doorbells;
pub mod region;
mod registered;
pub mod registry;
mod report;
pub mod set;
pub mod work;

pub mod state;
mod stop;
mod task;
mod timeout;
mod turns;

pub use vfiod_dma as dma;
pub use vfiod_dma::{error, memory};
pub use vfiod_quota::CurrentPayer;
pub use vfiod_tasks::contain;

pub use context::{Context, DataPath, MemoryCharge, QuiesceTimes};
pub use description::{Description, DeviceFlags};
pub use device::{Admission, Device, Features, Quiesce, Request, ResetCause, Token, Why, Worker};
pub use device_ref::{DeviceRef, Status};
pub use error::{Errno, Error, Result};
pub use event::{Event, Observer};
pub use file::File;
pub use file_state::{FileStatus, Link};
pub use hot_reset::{InUse, SetMember};
pub use ids::{
    ConnectionId, Credentials, DeviceId, FileId, IdSequence, Numbers, Owner, OwnerContext,
    OwnerIdentity, SetId, SetKey, SetNumber, SetObject,
};
pub use input_log::{InputCall, InputEntry, InputLog, InputPlace, InputSource, Recorded};
pub use irq::{IrqFlags, IrqIndex, IrqInfo};
pub use open_pause::OpenPause;
pub use policy::{OpenPolicy, StatePolicy};
pub use polled_doorbells::PolledDoorbells;
pub use region::{Region, RegionFlags, RegionIndex};
pub use registry::{DeviceSpec, Registration, Registry, check_device_name};
pub use report::{Labels, Metric, MetricValue, Metrics, Report};
pub use task::DeviceTask;

pub use state::{
    DescriptorTable, FindDescriptors, Format, Identity, Images, KeepDescriptors, KeptSpace,
    Persistence, ReadEffect, ReadTraits, SaveState, Saved, SavedAndStopped, SpaceToken,
};
pub(crate) use vfiod_sync as sync;
