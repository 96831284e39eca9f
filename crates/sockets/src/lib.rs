#![doc = include_str!("../README.md")]

mod leftovers;
mod named;

pub use leftovers::{remove_if_stale, remove_leftovers};
pub use named::{NamedSocket, Site, SocketAccess};
