//! The vfio-user server's state machine, without I/O, threads or clock.
//!
//! Bytes and descriptors go in, requests come out; replies go in, bytes and descriptors come out.
//! A *driver* moves the bytes, names descriptors as it likes, says what time it is, and carries
//! out the requests. `vfiod-server` is one driver; replaying a captured session is another.
//!
//! ```
//! use vfiod_protocol::{Connection, Descriptors, Event, Request, Time};
//!
//! let version = [0, 0, 1, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
//! let mut connection = Connection::<u32>::default();
//! connection.receive(&version, Descriptors::default(), Time(0));
//! while let Some(event) = connection.next().unwrap() {
//!     let Event::Call(call) = event else { continue };
//!     match call.request {
//!         Request::Version { .. } => call.reply.negotiated(None),
//!         _ => call.reply.refuse(95),
//!     };
//! }
//! assert!(!connection.output().is_empty());
//! ```
//!
//! * [`Connection`]: the client's socket. Requests take effect in the order of their arrival; one
//!   is out at a time. Only replies to DMA messages overtake.
//! * [`DmaRequests`]: DMA_READ and DMA_WRITE that wait for their replies.
//! * [`Twin`]: the second socket, where the client offers one.
//!
//! All three can be serialised and deserialised between any two calls; what is read is checked.
//! Payloads are borrowed from the receive buffer, replies are written in place. Every request and
//! every reply says its positions in the streams of bytes.
//!
//! # What it does not implement
//! Migration data (refused with `EOPNOTSUPP`); ioregionfd.

mod connection;
mod dialect;
mod dma;
mod input;
pub mod limits;
mod output;
mod reply;
mod request;
mod session;
mod time;
mod twin;

pub use connection::{Call, Connection, DmaReply, Event, LargeWrite, Refusal};
pub use dialect::Dialect;
pub use dma::{Completed, DmaFailure, DmaRequests, Ended, TransferId};
pub use input::{BadSize, Descriptors};
pub use output::{Chunk, Output, ReplyBuffer};
pub use reply::Reply;
pub use request::{IrqData, Request};
pub use session::End;
pub use time::Time;
pub use twin::Twin;
pub use vfiod_wire as wire;
