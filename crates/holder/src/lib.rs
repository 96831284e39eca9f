#![doc = include_str!("../README.md")]

mod closer;
mod handover;
mod listeners;
mod replace;
mod run;
mod state;
mod worker;

pub use run::{End, Options, Request, run, take_over};
