//! The second socket: DMA messages out, their replies in.

use serde::{Deserialize, Serialize};
use vfiod_buffer::NoMemory;
use vfiod_wire::Kind;

use crate::connection::DmaReply;
use crate::input::{Descriptors, Input};
use crate::limits::MAX_MESSAGE;
use crate::output::Output;
use crate::session::End;
use crate::time::Time;

/// The server's side of the second socket of a connection.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound(serialize = "D: Serialize", deserialize = "D: Deserialize<'de>"))]
pub struct Twin<D> {
    input: Input<D>,
    output: Output<D>,
}

impl<D> Default for Twin<D> {
    fn default() -> Self {
        Self { input: Input::default(), output: Output::default() }
    }
}

impl<D> Twin<D> {
    /// What is to be sent: the DMA messages.
    pub fn output(&mut self) -> &mut Output<D> {
        &mut self.output
    }

    /// Room to receive into; see [`crate::Connection::room`].
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn room(&mut self, least: usize, chunk: usize) -> Result<&mut [u8], NoMemory> {
        self.input.make_room(least, chunk)?;
        Ok(self.input.room())
    }

    /// How much memory what has arrived takes, in bytes. [`Twin::trim`] gives back what is not needed.
    pub fn memory(&self) -> usize {
        self.input.memory()
    }

    /// Gives back memory beyond what was left over, if it is much.
    pub fn trim(&mut self) {
        self.input.trim();
    }

    /// The first `bytes` bytes of [`Twin::room`] were received. Descriptors have no meaning here.
    pub fn received(&mut self, bytes: usize, now: Time) {
        self.input.received(bytes, Descriptors::default(), now);
    }

    /// The next reply; `None` while there is no whole one.
    ///
    /// # Errors
    /// [`End::Stream`], [`End::NotAReply`]: the socket must be closed.
    pub fn next_reply(&mut self) -> Result<Option<DmaReply<'_>>, End> {
        let Some(frame) = self.input.front(MAX_MESSAGE)? else { return Ok(None) };
        if !matches!(frame.header.kind(), Kind::Reply(_)) {
            return Err(End::NotAReply);
        }
        self.input.consume(&frame);
        Ok(Some(DmaReply {
            header: frame.header,
            payload: self.input.consumed_payload(&frame),
            position: frame.position,
        }))
    }
}
