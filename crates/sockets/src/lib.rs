#![doc = include_str!("../README.md")]

mod descriptors;
mod directory;
mod leftovers;
mod named;

pub use descriptors::refuse_descriptors;
pub use directory::{in_directory, is_listable_by_others, make_directory};
pub use leftovers::{remove_if_stale, remove_leftovers};
pub use named::{NamedSocket, Publisher, Site, SocketAccess};
