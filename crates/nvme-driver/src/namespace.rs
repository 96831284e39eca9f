//! A namespace, as its controller describes it.

use crate::command::Command;
use crate::error::{Error, Result};
use crate::memory::Data;

/// A namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Namespace {
    /// Its number.
    pub id: u32,
    /// How many blocks it has.
    pub blocks: u64,
    /// Bytes of a block.
    pub block_size: u32,
}

impl Namespace {
    /// A command that moves data from or to blocks.
    ///
    /// # Errors
    /// [`Error::Unsupported`]: no whole number of blocks, from 1 to 65,536.
    pub fn transfer(&self, opcode: u8, first: u64, data: &Data) -> Result<Command> {
        let (len, block) = (data.range.len(), self.block_size as usize);
        let count = len / block;
        if !len.is_multiple_of(block) || !(1..=65_536).contains(&count) {
            let what = format!("{len} bytes are no 1 to 65,536 blocks of {block} bytes");
            return Err(Error::Unsupported(what));
        }
        Ok(Command::new(opcode).namespace(self.id).blocks(first, count as u32))
    }
}
