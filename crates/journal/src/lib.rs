#![doc = include_str!("../README.md")]

pub mod commit;
pub mod intake;
pub mod layout;
pub mod link;
pub mod memory;
pub mod message;
#[cfg(all(test, loom))]
mod model;
pub mod outbox;
