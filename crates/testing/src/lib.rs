#![doc = include_str!("../README.md")]
//!
//! # What it does not implement
//! A driver for devices of other buses than PCI.

pub mod conformance;
pub mod driver;
pub mod fuzz;
mod operations;
mod saved;
mod snapshot;

pub use conformance::Subject;
pub use driver::{Driver, eventually};
