#![doc = include_str!("../README.md")]
//!
//! A *driver* moves the bytes, names descriptors as it likes, says what time it is, and carries out
//! the requests. `vfiod-server` is one driver; replaying a captured session is another.
//!
//! * [`Connection`]: the client's socket. Requests take effect in the order of their arrival; one
//!   is out at a time. Only replies to DMA messages overtake.
//! * [`DmaRequests`]: DMA_READ and DMA_WRITE that wait for their replies.
//! * [`Twin`]: the second socket, where the client offers one.
//!
//! All three can be serialised and deserialised between any two calls; what is read is checked.
//! Payloads are borrowed from the receive buffer, replies are written in place. Every request and
//! every reply says its positions in the streams of bytes.

mod access;
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

pub use access::Access;
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
