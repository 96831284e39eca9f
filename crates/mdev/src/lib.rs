#![doc = include_str!("../README.md")]
//!
//! # Life of an instance
//!
//! ```text
//!             create                                  remove
//!  (nothing) ───────► reserved ─────────► live ─────────────────► removing ────► (nothing)
//!                        │     registered,      refuse: unused      │   last file released
//!                        ▼     endpoint open    wait, deadline      │   or revoked
//!                    (nothing)                  parent unregistered ▼
//!                    what failed is undone              endpoint closed, users asked
//! ```
//!
//! | call | errors |
//! | --- | --- |
//! | [`Bus::register`] | `EEXIST`: a parent of that name; `EINVAL`: the spec contradicts itself |
//! | [`Bus::create`] | `ENODEV`: no such parent, or it is being unregistered; `EINVAL`: no such type, the nil UUID, a bad value; `EEXIST`: the UUID is known; `EUSERS`: none left; `ENOENT`, `EACCES`: no such attribute, or read-only; errors of the parent and the endpoint |
//! | [`Bus::remove`] | `ENOENT`: no such instance; `EBUSY`: it is in use and [`Removal::Refuse`] was asked for, or it is being created, or being removed already |
//! | [`ParentRegistration::unregister`] | none |
//!
//! # Locks
//!
//! The lock of the bus is held for look-ups and counting only; no parent, device, attribute or
//! endpoint is called under it. An instance's stage has a lock of its own, under which the core's set
//! lock may be taken. Removing waits with neither held.

mod bus;
mod instance;
#[cfg(all(test, shuttle))]
mod model;
mod parent;
mod pending;

pub use bus::{Bus, Create, CreationPause, ParentRegistration, ParentStatus, TypeStatus};
pub use instance::{Endpoint, Instance, NoEndpoint, Removal, Stage};
pub use parent::{
    AttributeInfo, Attributes, Capacity, End, NewInstance, Parent, ParentSpec, TypeInfo,
};
pub use pending::PendingRemoval;
pub use uuid::Uuid;
