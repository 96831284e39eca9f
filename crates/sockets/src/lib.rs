#![doc = include_str!("../README.md")]

mod descriptors;
mod leftovers;
mod named;

pub use descriptors::refuse_descriptors;
pub use leftovers::{remove_if_stale, remove_leftovers};
pub use named::{NamedSocket, Publisher, Site, SocketAccess};
