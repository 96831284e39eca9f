#![doc = include_str!("../README.md")]
//!
//! # Where it comes from
//!
//! The commands, their layout and the errors are those that Linux sends and understands
//! (`include/linux/fsl/mc.h`, `drivers/bus/fsl-mc/`), and a few that DPDK (`drivers/bus/fslmc/mc/`)
//! and earlier Linux send: 0x006, 0xa04, 0xa08, 0xa0b. The devices are what `vfio-fsl-mc` shows its
//! users (`drivers/vfio/fsl-mc/`): a container and its objects, one device set, region 0 a portal
//! where there is one, one vector for each interrupt.
//!
//! | command | for | |
//! | --- | --- | --- |
//! | 0x805, 0x80b, 0x804, 0x808 | – | open a container, dpmcp, dpbp, dpcon: the response has a token |
//! | 0x800 | a token | close |
//! | 0x831, 0x830 | – | the version of the Management Complex; the container's id |
//! | 0xa05, 0xa0b, 0xa04, 0xa08 | – | versions of the commands of each kind, in the order above |
//! | 0x004, 0x005 | a token | attributes; reset (a container: itself or one in it, and what is inside) |
//! | 0x002, 0x003, 0x006 | dpbp, dpcon | enable, disable, is it enabled |
//! | 0x159, 0x15a, 0x15e | a container | count of objects, one of them, one of its regions |
//! | 0x010, 0x012 – 0x017 | a container | its interrupt: where to, enable, mask, status, clear |
//! | 0x15f | a container | where an object's interrupt goes |
//!
//! Anything else ends with [`Status::UnsupportedOperation`], a wrong parameter with
//! [`Status::ConfigurationError`], a token that is none with [`Status::AuthenticationError`].
//!
//! # Locks
//!
//! A container has one lock, which commands, plugging and unplugging hold; never two containers'
//! at once. It is taken under a device's lock, and interrupts are signalled under it.
//!
//! # What is different
//!
//! The kernel resets the whole container at the last close of *any* of its devices. Here that is so
//! for the container's own; an object's resets that object alone, so that one user's end does not
//! close another's sessions.

mod command;
mod container;
mod device;
mod object;
mod portal;
mod saved;

pub use command::Status;
pub use container::{Container, Event, Plugged};
pub use device::{ContainerDevice, ObjectDevice};
pub use object::{Kind, ObjectId};
pub use portal::PORTAL_SIZE;
