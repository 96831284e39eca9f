//! A vfio-user server for the devices of `vfiod-core`.
//!
//! ```no_run
//! # fn device() -> vfiod_core::DeviceRef { unimplemented!() }
//! use vfiod_server::{Listener, Server, ServerOptions, SocketAccess};
//!
//! let server = Server::new(ServerOptions::default())?;
//! let listener = Listener::bind("/run/edu.sock", SocketAccess::default())?;
//! let served = server.serve(listener, device())?;
//! # Ok::<(), vfiod_core::Error>(())
//! ```
//!
//! A client's connection becomes a [`vfiod_core::File`] when it negotiates, and is released
//! when it ends, whichever way. A client's mistake gets an errno in the reply and the connection
//! lives; only what makes the byte stream meaningless ends it.
//!
//! [`Target`] carries out requests for a driver of the protocol that has no socket.
//!
//! [`Server::embedded`] makes a server without threads, for a program that has a loop of its own:
//! `tests/embedded.rs` shows one thread that polls a device, its tasks and its server.
//!
//! # What it does not implement
//! Sockets other than UNIX stream sockets; migration data (refused with `EOPNOTSUPP`);
//! ioregionfd.

mod acceptor;
mod clients;
mod clock;
mod connection;
mod dispatch;
mod dma_channel;
mod eventfds;
mod gate;
mod hot_reset;
mod limits;
mod listener;
mod opened;
mod outgoing;
mod pool;
mod server;
mod serving;
mod transport;

pub use clients::ConnectionInfo;
pub use clock::now;
pub use dispatch::{ClientLink, Refused, Target};
pub use listener::{Listener, SocketAccess};
pub use server::{Served, Server, ServerOptions};
pub use vfiod_protocol::Dialect;
