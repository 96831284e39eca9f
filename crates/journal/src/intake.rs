//! Input that is received only after its commit.
//!
//! Requests are peeked (`MSG_PEEK` with `SO_PEEK_OFF`), carried out and committed; only then are their bytes
//! *taken* off the socket. A receive without peeking lowers `SO_PEEK_OFF` by what it received, in the same
//! call. So after a death `SO_PEEK_OFF` says how far a take has come, if it was written down where it began:
//!
//! | word | what |
//! | --- | --- |
//! | 0 | base: input before this position is known to be off the socket |
//! | 1 | target: a take up to here is under way; equal to base if none is |
//! | 2 | `SO_PEEK_OFF` before that take |

use std::fmt::Debug;

use crate::memory::Words;

/// Words that an [`Intake`] needs.
pub const WORDS: usize = 3;

/// A socket whose input is peeked.
pub trait PeekedStream {
    /// Why a call failed.
    type Error: Debug;

    /// `SO_PEEK_OFF`: how many of the bytes in the socket were peeked.
    ///
    /// # Errors
    /// Those of `getsockopt`.
    fn peeked(&self) -> Result<u64, Self::Error>;

    /// Sets `SO_PEEK_OFF`.
    ///
    /// # Errors
    /// Those of `setsockopt`.
    fn set_peeked(&self, bytes: u64) -> Result<(), Self::Error>;

    /// Receives at most so many bytes and drops them, without waiting. Returns how many; 0 where there
    /// are none.
    ///
    /// # Errors
    /// Those of `recvmsg`.
    fn receive(&self, most: u64) -> Result<u64, Self::Error>;
}

/// Why input cannot be taken. The connection must end; nothing else is affected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenIntake<E: Debug> {
    /// The socket does not have the bytes that were peeked: somebody else has received them.
    #[error("{0}: input is missing from the socket")]
    Missing(&'static str),
    /// A call failed.
    #[error("the socket failed: {0:?}")]
    Socket(E),
}

impl<E: Debug> From<E> for BrokenIntake<E> {
    fn from(error: E) -> Self {
        Self::Socket(error)
    }
}

/// The positions of a connection's input.
#[derive(Debug)]
pub struct Intake<'a, W: Words> {
    words: &'a W,
    at: usize,
    base: u64,
}

impl<'a, W: Words> Intake<'a, W> {
    /// Finds out how far the input is taken, and finishes a take that was under way. `done` is the position
    /// up to which input is committed. The next peek begins there.
    ///
    /// May be repeated after a death in it.
    ///
    /// # Errors
    /// The socket does not have what it must have, or failed.
    pub fn recover<S: PeekedStream>(
        words: &'a W,
        at: usize,
        stream: &S,
        done: u64,
    ) -> Result<Self, BrokenIntake<S::Error>> {
        let (base, target) = (words.load(at), words.load(at + 1));
        let mut this = Self { words, at, base };
        if base != target {
            let wanted = target.checked_sub(base).ok_or(BrokenIntake::Missing("target"))?;
            let taken = words.load(at + 2).checked_sub(stream.peeked()?);
            let left = taken.and_then(|taken| wanted.checked_sub(taken));
            this.finish(stream, target, left.ok_or(BrokenIntake::Missing("SO_PEEK_OFF"))?)?;
        }
        let ahead = done.checked_sub(this.base).ok_or(BrokenIntake::Missing("base"))?;
        stream.set_peeked(ahead)?;
        Ok(this)
    }

    /// Input before this position is off the socket.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Takes all input before `done` off the socket. It must have been peeked, and committed.
    ///
    /// # Errors
    /// The socket does not have what was peeked, or failed.
    pub fn take<S: PeekedStream>(
        &mut self,
        stream: &S,
        done: u64,
    ) -> Result<(), BrokenIntake<S::Error>> {
        let wanted = done.checked_sub(self.base).ok_or(BrokenIntake::Missing("base"))?;
        if wanted == 0 {
            return Ok(());
        }
        let before = stream.peeked()?;
        if before < wanted {
            return Err(BrokenIntake::Missing("SO_PEEK_OFF"));
        }
        self.words.store(self.at + 2, before);
        self.words.publish(self.at + 1, done);
        self.finish(stream, done, wanted)
    }

    fn finish<S: PeekedStream>(
        &mut self,
        stream: &S,
        target: u64,
        mut left: u64,
    ) -> Result<(), BrokenIntake<S::Error>> {
        while left > 0 {
            let got = stream.receive(left)?;
            match left.checked_sub(got) {
                Some(rest) if got > 0 => left = rest,
                _ => return Err(BrokenIntake::Missing("the queue")),
            }
        }
        self.words.publish(self.at, target);
        self.base = target;
        Ok(())
    }
}
