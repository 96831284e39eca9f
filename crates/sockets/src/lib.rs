#![doc = include_str!("../README.md")]

mod descriptors;
mod kept;
mod leftovers;
mod named;

pub use descriptors::refuse_descriptors;
pub use kept::{Keeper, LeftSocket, close_left, keep_by};
pub use leftovers::{remove_if_stale, remove_leftovers};
pub use named::{NamedSocket, Publisher, Site, SocketAccess};
