#![doc = include_str!("../README.md")]

pub mod conformance;
pub mod driver;
pub mod fuzz;
mod operations;
mod saved;
mod snapshot;

pub use conformance::Subject;
pub use driver::{Driver, eventually};
