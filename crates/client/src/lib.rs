#![doc = include_str!("../README.md")]
//!
//! Calls are synchronous. While a call waits, the server's DMA messages are served from the
//! [`GuestMemory`] of its [`Options`]; [`Client::serve_dma`] serves them when there is nothing else to
//! wait for. [`Client::submit`] sends a command ahead; any number of them can be completed later.

mod client;
mod error;
mod memory;
mod socket;

pub use client::{Client, IrqAction, IrqData, Options, Region, Reply};
pub use error::{Error, Result};
pub use memory::GuestMemory;
pub use socket::{RawMessage, Socket};
pub use vfiod_wire as wire;
