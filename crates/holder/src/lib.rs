#![doc = include_str!("../README.md")]

mod closer;
mod event;
mod handover;
mod held;
mod listeners;
mod replace;
mod run;
mod state;
mod worker;

pub use event::Event;
pub use held::{Beginning, FromHolder, Link};
pub use run::{End, Options, Request, run, take_over};
pub use state::Initial;
pub use vfiod_journal::memory::create_file;
pub use vfiod_journal::message::{Class, Death, Deaths, Key, Settings, ToHolder};
