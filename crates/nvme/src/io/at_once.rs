//! Reads and writes of disks that wait for nothing, such as memory: each is judged and done in one go, is never under
//! way, and holds nothing. The namespace and the map of guest memory are entered once for several.
//!
//! What is not so simple is left to the other ways, as in `quick.rs`.

use vfiod_core::dma::{Batch, Perm, Reach};
use vfiod_core::{Errno, Error, Result as CoreResult};
use vfiod_disk::{Bytes, DiskChannel};
use vfiod_nvme_spec::Submission;

use super::IoQueue;
use super::quick::Plain;
use crate::namespace::Namespace;
use crate::piece::Piece;
use crate::queues::execute::Command;
use crate::transfer::Direction;

impl IoQueue {
    /// Performs commands of one namespace, the first ones of these, until they have moved `most` bytes. Returns how
    /// many it was.
    pub(super) fn perform_at_once(
        &self,
        commands: &[Submission],
        most: u64,
        ended: &mut dyn FnMut(Command),
    ) -> usize {
        let Some(first) = commands.first() else { return 0 };
        let Some(namespace) = self.common.namespaces.get(first.namespace()) else { return 0 };
        let Ok(channel) = namespace.channel() else { return 0 };
        if !channel.is_at_once() {
            return 0;
        }
        // What a block is stays so until the last of them has ended.
        let (Ok(_in_use), Ok(mut memory)) = (namespace.enter(), self.task.dma().batch()) else {
            return 0;
        };
        let (mut count, mut moved) = (0, 0);
        for command in commands {
            if moved >= most || command.namespace() != namespace.id {
                break;
            }
            let performed = self.perform_one(&namespace, channel, &mut memory, command);
            let Some((command, len)) = performed else { break };
            ended(command);
            count += 1;
            moved += len;
        }
        count
    }

    /// Performs a command, and says how many bytes it moves. `None`: nothing was done.
    fn perform_one(
        &self,
        namespace: &Namespace,
        channel: &DiskChannel,
        memory: &mut Batch<'_>,
        command: &Submission,
    ) -> Option<(Command, u64)> {
        let Plain { direction, offset, len } = self.plain(namespace, command)?;
        let pieces = self.plain_pieces(command, len, |at, bytes| memory.read(at, bytes))?;
        let mut data = InPlace { memory, pieces: &pieces, len: len as usize };
        if !data.is_mapped(direction) {
            return None;
        }
        let result = match direction {
            Direction::ToHost => channel.read_at_once(offset, &mut data),
            // What is to be durable has a sync behind it.
            Direction::FromHost if command.durable() || self.common.write_through() => None,
            Direction::FromHost => channel.write_at_once(offset, &mut data),
        };
        Some((self.concluded(namespace, command, (direction, len), result?), len))
    }
}

/// Guest memory, in the order of the data.
struct InPlace<'a, 'b> {
    memory: &'a mut Batch<'b>,
    pieces: &'a [Piece],
    len: usize,
}

impl InPlace<'_, '_> {
    /// Whether all of it is mapped, for data that goes this way.
    fn is_mapped(&mut self, direction: Direction) -> bool {
        let perm = if direction == Direction::ToHost { Perm::WRITE } else { Perm::READ };
        self.pieces.iter().all(|piece| {
            let &Piece::Memory(mut at, mut left) = piece else { return false };
            while left > 0 {
                match self.memory.translate(at, left, perm) {
                    Ok(span) if span.is_mapped() => {
                        (at, left) = (at.wrapping_add(span.len() as u64), left - span.len());
                    }
                    Ok(_) | Err(_) => return false,
                }
            }
            true
        })
    }

    /// Calls `access` for each part of a range, with where it is in guest memory and in the range.
    fn each(
        &mut self,
        at: usize,
        len: usize,
        mut access: impl FnMut(&mut Batch<'_>, u64, std::ops::Range<usize>) -> CoreResult<Reach>,
    ) -> CoreResult<()> {
        if at.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(Error::new(Errno::INVAL, "past the end of the data"));
        }
        let (mut skip, mut done) = (at, 0);
        for piece in self.pieces {
            let before = skip.min(piece.len());
            skip -= before;
            let part = (piece.len() - before).min(len - done);
            if let (Piece::Memory(address, _), 1..) = (*piece, part) {
                let range = done..done + part;
                // Whatever is wrong with memory is wrong about the transfer, and not about the disk, as `EPERM` would be.
                match access(self.memory, address + before as u64, range) {
                    Ok(Reach::Mapped) => {}
                    Ok(Reach::Message) => {
                        return Err(Error::new(Errno::FAULT, "memory that was mapped is no more"));
                    }
                    Err(error) => return Err(Error::new(Errno::FAULT, error.to_string())),
                }
            }
            done += part;
        }
        Ok(())
    }
}

impl Bytes for InPlace<'_, '_> {
    fn len(&self) -> usize {
        self.len
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> CoreResult<()> {
        self.each(at, bytes.len(), |memory, at, part| memory.write(at, &bytes[part]))
    }

    fn take(&mut self, at: usize, bytes: &mut [u8]) -> CoreResult<()> {
        self.each(at, bytes.len(), |memory, at, part| memory.read(at, &mut bytes[part]))
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use vfiod_core::dma::{Attachment, Backing, MapRequest, Space};

    use super::*;

    /// Bus mastering is switched off amid a copy: no further part of it begins, the transfer has failed, and the disk is
    /// not write protected.
    #[test]
    fn memory_that_is_forbidden_amid_a_copy_is_a_failed_transfer() {
        let space = Space::default();
        let fd = memfd_create("memory", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 4096).unwrap();
        let (perm, backing) = (Perm::READ | Perm::WRITE, Backing::File { fd, offset: 0 });
        space.map(None, MapRequest { iova: 0, size: 4096, perm, backing }).unwrap();
        let dma = Attachment::new(&space);
        let mut memory = dma.batch().unwrap();
        let pieces = [Piece::Memory(0, 512), Piece::Memory(512, 512)];
        let mut data = InPlace { memory: &mut memory, pieces: &pieces, len: 1024 };
        assert!(data.is_mapped(Direction::ToHost));
        data.put(0, &[1; 512]).unwrap();
        dma.set_bus_master(false);
        let error = data.put(512, &[1; 512]).unwrap_err();
        assert_eq!(error.errno(), Errno::FAULT, "{error}");
        assert!(!data.is_mapped(Direction::ToHost), "nor does the next command begin");
    }
}
