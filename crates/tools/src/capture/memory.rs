//! The client's memory, whose descriptors the server does not get: DMA messages to it are answered
//! here.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use vfiod_wire::payload::{DmaAccess, DmaMap, DmaUnmap, dma_flag};
use vfiod_wire::{Command, Header};
use zerocopy::{FromBytes, IntoBytes};

/// `EFAULT`.
const EFAULT: u32 = 14;

struct Mapping {
    address: u64,
    size: u64,
    offset: u64,
    file: File,
}

/// Mappings with a descriptor.
#[derive(Default)]
pub(crate) struct Memory {
    mappings: Vec<Mapping>,
}

impl Memory {
    /// The client sends DMA_MAP with a descriptor.
    pub(crate) fn map(&mut self, payload: &[u8], fd: OwnedFd) {
        if let Ok((map, _)) = DmaMap::read_from_prefix(payload) {
            let DmaMap { address, size, offset, .. } = map;
            self.mappings.push(Mapping { address, size, offset, file: fd.into() });
        }
    }

    /// The client sends DMA_UNMAP.
    pub(crate) fn unmap(&mut self, payload: &[u8]) {
        let Ok((unmap, _)) = DmaUnmap::read_from_prefix(payload) else { return };
        let (from, to) =
            (u128::from(unmap.address), u128::from(unmap.address) + u128::from(unmap.size));
        self.mappings.retain(|mapping| {
            let end = u128::from(mapping.address) + u128::from(mapping.size);
            unmap.flags & dma_flag::UNMAP_ALL == 0
                && !(from <= u128::from(mapping.address) && end <= to)
        });
    }

    /// The reply to a DMA message of the server; `None` if the client must answer it.
    pub(crate) fn answer(&self, header: &Header, payload: &[u8]) -> Option<Vec<u8>> {
        let (access, data) = DmaAccess::read_from_prefix(payload).ok()?;
        let within = |mapping: &&Mapping| {
            access.address.checked_sub(mapping.address).is_some_and(|into| {
                into.checked_add(access.count).is_some_and(|end| end <= mapping.size)
            })
        };
        let mapping = self.mappings.iter().find(within)?;
        let offset = mapping.offset + (access.address - mapping.address);
        let done = if header.command == Command::DmaRead as u16 {
            // The server asks for no more than the client's max_data_xfer_size.
            let mut data = vec![0; usize::try_from(access.count).ok()?.min(1 << 26)];
            mapping.file.read_exact_at(&mut data, offset).map(|()| data)
        } else {
            mapping.file.write_all_at(data, offset).map(|()| Vec::new())
        };
        Some(match done {
            Ok(data) => {
                let payload = [access.as_bytes(), &data].concat();
                [header.reply(payload.len()).as_bytes(), &payload].concat()
            }
            Err(error) => {
                let errno = error.raw_os_error().map_or(EFAULT, i32::unsigned_abs);
                header.error(errno, 0).as_bytes().to_vec()
            }
        })
    }
}
