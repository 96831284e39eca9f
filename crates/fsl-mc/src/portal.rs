//! A command portal: 64 bytes of registers. A user writes the parameters and then the header; the
//! command is carried out at once, and its response can be read afterwards.

use vfiod_core::{Errno, Error, Result};

use crate::command::{Header, LENGTH, Request, Response, Status, WORDS};

/// Size of the region that a portal has in bytes; all but the first 64 read as zeros.
pub const PORTAL_SIZE: u64 = 0x1_0000;

/// A portal's registers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Portal {
    words: [u64; WORDS],
}

/// Whole words of 64 bits, as the kernel's driver moves them: `EINVAL` for anything else.
fn whole(offset: u64, length: usize) -> Result<()> {
    if offset.is_multiple_of(8) && length.is_multiple_of(8) {
        return Ok(());
    }
    let what = format!("{length} bytes at {offset:#x} of a portal, which has words of 8");
    Err(Error::new(Errno::INVAL, what))
}

impl Portal {
    /// Reads words.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) -> Result<()> {
        whole(offset, data.len())?;
        let first = usize::try_from(offset / 8).unwrap_or(usize::MAX);
        for (at, bytes) in data.chunks_exact_mut(8).enumerate() {
            let word = first.checked_add(at).and_then(|at| self.words.get(at)).copied();
            bytes.copy_from_slice(&word.unwrap_or(0).to_le_bytes());
        }
        Ok(())
    }

    /// Writes words. The header counts as written last, as in the kernel's own write of 64 bytes;
    /// one that says it is ready has the command carried out by `execute`.
    pub(crate) fn write(
        &mut self,
        offset: u64,
        data: &[u8],
        execute: impl FnOnce(Header, Request) -> std::result::Result<Response, Status>,
    ) -> Result<()> {
        whole(offset, data.len())?;
        let first = usize::try_from(offset / 8).unwrap_or(usize::MAX);
        for (at, bytes) in data.chunks_exact(8).enumerate() {
            if let Some(word) = first.checked_add(at).and_then(|at| self.words.get_mut(at)) {
                *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
            }
        }
        let header = Header(self.words[0]);
        if offset != 0 || !header.is_ready() {
            return Ok(());
        }
        let outcome = match Request::decode(&self.words) {
            Some(request) => execute(header, request),
            None => Err(Status::UnsupportedOperation),
        };
        match outcome {
            Ok(Response { params, token }) => {
                let header = token.map_or(header, |token| header.with_token(token));
                self.words[0] = header.ended(Status::Ok).0;
                self.words[1..].copy_from_slice(&params);
            }
            Err(status) => self.words[0] = header.ended(status).0,
        }
        Ok(())
    }

    /// The words, as they are saved.
    pub(crate) fn words(&self) -> [u64; WORDS] {
        let Self { words } = self;
        *words
    }

    /// Restores the words. Carries nothing out.
    pub(crate) fn restore(&mut self, words: [u64; WORDS]) {
        *self = Self { words };
    }

    /// Forgets the last command.
    pub(crate) fn reset(&mut self) {
        let Self { words } = self;
        *words = [0; WORDS];
    }
}

const _: () = assert!(LENGTH as u64 <= PORTAL_SIZE);
