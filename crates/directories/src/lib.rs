#![doc = include_str!("../README.md")]

mod calls;
mod made;

pub use calls::{in_directory, in_directory_to_disk, remove_in, settle, syncing};
pub use made::{
    directory_of, is_listable_by_others, is_passable_by_others, make_directory,
    make_private_directory,
};
