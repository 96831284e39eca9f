//! The client's memory, whose descriptors the server does not get: DMA messages to it are answered
//! here.

use std::os::fd::OwnedFd;

use vfiod_core::dma::{Attachment, Backing, MapRequest, Perm, Reach, Space, UNMAP_WAIT};
use vfiod_core::{Errno, Error};
use vfiod_wire::payload::{DmaAccess, DmaMap, DmaUnmap, dma_flag};
use vfiod_wire::{Command, Header};
use zerocopy::{FromBytes, IntoBytes};

/// Mappings with a descriptor. An access is that of a device: it neither fails the process where the client
/// has truncated its file, nor waits for a lock of the kernel that the client holds.
pub(crate) struct Memory {
    space: Space,
    device: Attachment,
}

impl Memory {
    pub(crate) fn new() -> Self {
        let space = Space::new();
        let device = Attachment::new(&space);
        device.set_bus_master(true);
        Self { space, device }
    }

    /// The client sends DMA_MAP with a descriptor of memory that cannot block.
    ///
    /// # Errors
    /// It cannot be mapped here. What the server refuses, too, is not among that.
    pub(crate) fn map(&self, payload: &[u8], fd: OwnedFd) -> Result<(), Error> {
        let Ok((map, _)) = DmaMap::read_from_prefix(payload) else { return Ok(()) };
        let mapped = self.space.map(
            None,
            MapRequest {
                iova: map.address,
                size: map.size,
                perm: Perm::from_bits_truncate(map.flags),
                backing: Backing::File { fd, offset: map.offset },
            },
        );
        match mapped {
            Err(error) if !matches!(error.errno(), Errno::EXIST | Errno::INVAL) => Err(error),
            _ => Ok(()),
        }
    }

    /// The client sends DMA_UNMAP.
    pub(crate) fn unmap(&self, payload: &[u8]) {
        let Ok((unmap, _)) = DmaUnmap::read_from_prefix(payload) else { return };
        // What is malformed is refused by the server.
        let _ = match unmap.flags & dma_flag::UNMAP_ALL {
            0 => self.space.unmap(unmap.address, unmap.size, UNMAP_WAIT),
            _ => self.space.unmap_all(UNMAP_WAIT),
        };
    }

    /// The reply to a DMA message of the server; `None` if the client must answer it.
    pub(crate) fn answer(&self, header: &Header, payload: &[u8]) -> Option<Vec<u8>> {
        let (access, data) = DmaAccess::read_from_prefix(payload).ok()?;
        let mut batch = self.device.batch().ok()?;
        let is_ours = match batch.translate(access.address, 1, Perm::empty()) {
            Ok(_) => true,
            Err(error) => error.errno() != Errno::FAULT,
        };
        if !is_ours {
            return None;
        }
        let done = if header.command == Command::DmaRead as u16 {
            // The server asks for no more than the client's max_data_xfer_size.
            let mut data = vec![0; usize::try_from(access.count).ok()?.min(1 << 26)];
            batch.read(access.address, &mut data).map(|reach| (reach, data))
        } else {
            batch.write(access.address, data).map(|reach| (reach, Vec::new()))
        };
        Some(match done {
            Ok((Reach::Mapped, data)) => {
                let payload = [access.as_bytes(), &data].concat();
                [header.reply(payload.len()).as_bytes(), &payload].concat()
            }
            // Nothing here is reached by message.
            Ok((Reach::Message, _)) => error(header, Errno::FAULT),
            Err(failed) => error(header, failed.errno()),
        })
    }
}

/// The reply that refuses a message.
pub(crate) fn error(header: &Header, errno: Errno) -> Vec<u8> {
    header.error(errno.raw_os_error().unsigned_abs(), 0).as_bytes().to_vec()
}
