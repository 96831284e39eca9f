//! Limits on what a peer can make a server spend, and what the server advertises.

use std::time::Duration;

/// Most bytes of data in one transfer; advertised.
pub const MAX_DATA: usize = 1 << 20;
/// Descriptors in one message; advertised. Up to [`MAX_HELD_FDS`] are taken.
pub const MAX_FDS: u32 = 8;
/// Longest message before negotiation: VERSION with its JSON, with some room.
pub const MAX_FIRST_MESSAGE: usize = vfiod_wire::MAX_JSON + 64;
/// Longest message: a full transfer, with room for its fixed parts.
pub const MAX_MESSAGE: usize = MAX_DATA + 4096;
/// Descriptors that wait for the rest of their message: as many as Linux passes with one `sendmsg`.
/// Clients that ignore the advertised number send all vectors at once.
pub const MAX_HELD_FDS: usize = 253;
/// Descriptors that may wait behind a request that has no reply yet.
pub const MAX_WAITING_FDS: usize = 256;
/// Bytes that may wait behind a request that has no reply yet.
pub const MAX_WAITING: usize = 4 << 20;
/// Replies to commands that were never sent, before the connection ends. Late replies to DMA
/// messages count.
pub const MAX_STRAY_REPLIES: u64 = 10_000;
/// DMA messages without a reply at a time.
pub const MAX_DMA_MESSAGES: usize = 1024;
/// DMA transfers that have not ended, on one connection.
pub const MAX_DMA_TRANSFERS: usize = 1024;
/// Payloads of REGION_WRITE from this size on may be received outside the buffer; see
/// [`crate::Connection::large_write`].
pub const LARGE_WRITE: usize = 64 << 10;
/// How long a request may take, from the arrival of its first byte to its reply. QEMU gives up
/// after five seconds, and takes a later reply for the end of the stream.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest VERSION reply that QEMU takes, in bytes, header included.
pub const MAX_VERSION_REPLY: usize = 214;
