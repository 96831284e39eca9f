//! A vfio-user client: what tests, `vfiod probe`, the demonstration and the benchmarks speak to a
//! server with, this one or a foreign one.
//!
//! ```no_run
//! use vfiod_client::Client;
//!
//! let mut client = Client::connect("/run/edu.sock")?;
//! let mut id = [0; 4];
//! client.region_read(0, 0, &mut id)?;
//! # Ok::<(), vfiod_client::Error>(())
//! ```
//!
//! Calls are synchronous and never hang: each has the timeout of [`Options`]. Commands can also be
//! sent ahead with [`Client::submit`] and completed later, in any number. While a call waits, the
//! server's DMA messages are served from the [`GuestMemory`] given in the options;
//! [`Client::serve_dma`] serves them when there is nothing else to wait for.
//!
//! # What it does not implement
//! Mapping regions (the descriptor is handed over), migration, ioregionfd.

mod client;
mod error;
mod memory;
mod socket;

pub use client::{Client, IrqAction, IrqData, Options, Region, Reply};
pub use error::{Error, Result};
pub use memory::GuestMemory;
pub use socket::{RawMessage, Socket};
pub use vfiod_wire as wire;
