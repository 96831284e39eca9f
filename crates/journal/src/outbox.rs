//! Output of which it is known how much was sent.
//!
//! Replies are written into a file in memory and sent by `sendfile` from the file's position, which the
//! kernel moves in the same call. The open file, and so its position, outlives its user.
//!
//! The file is used from its beginning again and again, each time a *lap*. A message is never split between
//! two laps, as there are clients that take a header sent in part for the end of the stream. A lap begins
//! with a commit of its own, in which it is empty: from then on a position other than 0 is that of the lap
//! before. Only when the position is 0 may the lap get its first bytes.
//!
//! The file gives its pages to the socket, not copies. A new lap must not begin before the peer has read
//! what it would overwrite.

use std::fmt::Debug;

/// The output as it is committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Position at which the lap began: that of the file's first byte.
    pub lap: u64,
    /// Position at which the output ends.
    pub end: u64,
}

impl Output {
    /// Where in the file the next byte goes.
    pub fn offset(&self) -> u64 {
        self.end.saturating_sub(self.lap)
    }

    /// The beginning of the next lap: to be committed, and then given to [`Outbox::restart`].
    pub fn next_lap(&self) -> Self {
        Self { lap: self.end, end: self.end }
    }
}

/// A file and the socket to which it is sent.
pub trait SentFile {
    /// Why a call failed.
    type Error: Debug;

    /// The file's position.
    ///
    /// # Errors
    /// Those of `lseek`.
    fn position(&self) -> Result<u64, Self::Error>;

    /// Sets the file's position to 0.
    ///
    /// # Errors
    /// Those of `lseek`.
    fn rewind(&self) -> Result<(), Self::Error>;

    /// Sends at most so many bytes from the file's position on, which is moved by what was sent. Returns how
    /// many; 0 where the peer takes none for now.
    ///
    /// # Errors
    /// Those of `sendfile`.
    fn send(&self, most: u64) -> Result<u64, Self::Error>;
}

/// Why output cannot be sent. The connection must end; nothing else is affected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenOutbox<E: Debug> {
    /// What is committed cannot be, or more was sent than that.
    #[error("the outbox is at {at} of {len} bytes")]
    Position {
        /// The file's position.
        at: u64,
        /// How much is committed.
        len: u64,
    },
    /// A call failed.
    #[error("the socket failed: {0:?}")]
    Socket(E),
}

impl<E: Debug> From<E> for BrokenOutbox<E> {
    fn from(error: E) -> Self {
        Self::Socket(error)
    }
}

/// How far the output is sent.
#[derive(Debug)]
pub struct Outbox {
    sent: u64,
}

impl Outbox {
    /// Finds out how much of the committed output was sent. May be repeated after a death in it.
    ///
    /// # Errors
    /// More was sent than was committed; those of the file.
    pub fn recover<F: SentFile>(file: &F, output: Output) -> Result<Self, BrokenOutbox<F::Error>> {
        let at = file.position()?;
        let Some(len) = output.end.checked_sub(output.lap) else {
            return Err(BrokenOutbox::Position { at, len: 0 });
        };
        if len == 0 {
            let mut this = Self { sent: output.end };
            this.restart(file, output)?;
            return Ok(this);
        }
        if at > len {
            return Err(BrokenOutbox::Position { at, len });
        }
        Ok(Self { sent: output.lap + at })
    }

    /// Position up to which the output was sent.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Sends what is committed. Returns whether all of it was sent.
    ///
    /// # Errors
    /// Those of the socket.
    pub fn send<F: SentFile>(&mut self, file: &F, output: Output) -> Result<bool, F::Error> {
        while self.sent < output.end {
            match file.send(output.end - self.sent)? {
                0 => return Ok(false),
                sent => self.sent += sent,
            }
        }
        Ok(true)
    }

    /// Prepares the file for a lap that was committed while it is empty. Nothing may be written into it before.
    ///
    /// # Errors
    /// The lap is not empty, or the one before not sent; those of the file.
    pub fn restart<F: SentFile>(
        &mut self,
        file: &F,
        output: Output,
    ) -> Result<(), BrokenOutbox<F::Error>> {
        if output.offset() != 0 || self.sent != output.end {
            return Err(BrokenOutbox::Position { at: self.sent, len: output.end });
        }
        if file.position()? != 0 {
            file.rewind()?;
        }
        Ok(())
    }
}
