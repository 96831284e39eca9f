#![doc = include_str!("../README.md")]
//!
//! A client's connection becomes a [`vfiod_core::File`] when it negotiates. The file is released when
//! the connection ends, whichever way.
//!
//! [`Target`] carries out requests for a driver of the protocol that has no socket.
//! `tests/embedded.rs` shows one thread that polls a device, its tasks and its server.

mod abandoned;
mod acceptor;
mod alarms;
mod clients;
mod clock;
mod closer;
mod connection;
mod connection_log;
mod descriptor;
mod direct;
mod dirty_log;
mod dispatch;
mod dma_channel;
mod embedded;
mod end;
mod eventfds;
mod gate;
mod held_memory;
mod holders;
mod hot_reset;
mod input_log;
mod interest;
mod limits;
mod listener;
mod message_log;
#[cfg(all(test, shuttle))]
mod model;
mod opened;
mod opening_queue;
mod outgoing;
mod pace;
mod patience;
mod peer;
mod pending_open;
#[cfg(not(shuttle))]
mod poller;
#[cfg(shuttle)]
#[path = "model/poller.rs"]
mod poller;
mod pool;
mod progress;
mod send_buffer;
mod served_devices;
mod server;
mod serving;
mod session;
mod space;
mod task_runs;
#[cfg(all(test, not(any(loom, shuttle))))]
mod testing;
mod transport;
mod unread;
mod unread_bytes;

pub use clients::{ConnectionInfo, ConnectionTotals};
pub use clock::now;
pub use closer::{Closer, is_safe};
pub use dispatch::{ClientLink, Refused, Target};
pub use listener::Listener;
pub use server::{Departures, Listening, Served, Server, ServerOptions};
pub use vfiod_protocol::Dialect;
pub use vfiod_quota as quota;
pub use vfiod_sockets::{Publisher, Site, SocketAccess};
