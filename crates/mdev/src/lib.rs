#![doc = include_str!("../README.md")]
//!
//! # Life of an instance
//!
//! ```text
//!             create                                  remove
//!  (nothing) ───────► reserved ─────────► live ─────────────────► leaving ─────► (nothing)
//!                        │     registered,      refuse: unused      │   last file gone,
//!                        ▼     door open        wait, deadline      │   or taken away
//!                    (nothing)                  parent leaves       ▼
//!                    what failed is undone                 door shut, users asked
//! ```
//!
//! | call | errors |
//! | --- | --- |
//! | [`Bus::register`] | `EEXIST`: a parent of that name; `EINVAL`: the spec contradicts itself |
//! | [`Bus::create`] | `ENODEV`: no such parent, or it is leaving; `EINVAL`: no such type, the nil UUID, a bad value; `EEXIST`: the UUID is known; `EUSERS`: none left; `ENOENT`, `EACCES`: no such attribute, or read-only; what the parent and the door say |
//! | [`Bus::remove`] | `ENOENT`: no such instance; `EBUSY`: it is in use and [`Removal::Refuse`] was asked for, or it is on its way in, or already on its way out |
//! | [`ParentRegistration::unregister`] | none |
//!
//! # Locks
//!
//! The lock of the bus is held for look-ups and counting only; no parent, device, attribute or
//! door is called under it. An instance's stage has a lock of its own, under which the core's set
//! lock may be taken. Removing waits with neither held.

mod bus;
mod instance;
#[cfg(all(test, shuttle))]
mod model;
mod parent;

pub use bus::{Bus, Create, ParentRegistration, ParentStatus, TypeStatus};
pub use instance::{Door, Instance, NoDoor, Removal, Stage};
pub use parent::{AttributeInfo, Attributes, Capacity, NewInstance, Parent, ParentSpec, TypeInfo};
pub use uuid::Uuid;
