//! Replies: one method for each kind.

use std::ops::Range;

use vfiod_wire::payload::{
    DeviceInfo, DmaBitmap, DmaUnmap, Feature, IoFd, IrqInfo, RegionAccess, RegionInfo, RegionIoFds,
    SparseArea,
};
use vfiod_wire::{
    Capabilities, Command, HEADER_LEN, Header, Kind, TwinSocket, Version, encode_region_info,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::dialect::Dialect;
use crate::limits::{MAX_DATA, MAX_FDS, MAX_VERSION_REPLY};
use crate::output::Output;
use crate::session::{End, Phase, Session};

/// `E2BIG`.
const E2BIG: u32 = 7;

/// The right to answer one request. Each method returns the positions of the reply in the output:
/// an empty range for a posted request, which gets no reply, not even an error.
///
/// Dropping it leaves the request without a reply for now; see
/// [`crate::Connection::pending_reply`].
#[derive(Debug)]
pub struct Reply<'a, D> {
    pub(crate) output: &'a mut Output<D>,
    pub(crate) session: &'a mut Session,
    /// The request's header.
    pub(crate) header: Header,
    /// The request's payload. Empty for a REGION_WRITE received outside the buffer, except for
    /// its fixed part.
    pub(crate) payload: &'a [u8],
}

impl<D> Reply<'_, D> {
    /// Whether the request wants no reply.
    pub fn is_posted(&self) -> bool {
        self.header.kind() == Kind::Posted
    }

    /// The request's command.
    pub fn command(&self) -> Option<Command> {
        Session::command(&self.header)
    }

    #[inline]
    fn finish(self, write: impl FnOnce(&mut Output<D>, &Header)) -> Range<u64> {
        let from = self.output.end_position();
        if !self.is_posted() {
            write(self.output, &self.header);
        }
        if let Some(pending) = &mut self.session.pending {
            pending.replied = true;
        }
        from..self.output.end_position()
    }

    /// The request was carried out: for REGION_WRITE, REGION_WRITE_MULTI, DMA_MAP, DMA_UNMAP,
    /// DEVICE_SET_IRQS, DEVICE_RESET and DEVICE_FEATURE that probes or sets.
    #[inline]
    pub fn done(self) -> Range<u64> {
        let payload = self.payload;
        let echoed = match self.command() {
            Some(Command::RegionWrite) => RegionAccess::LEN,
            Some(Command::RegionWriteMulti) => size_of::<u64>(),
            Some(Command::DmaUnmap) => DmaUnmap::LEN,
            Some(Command::DeviceFeature) => payload.len(),
            _ => 0,
        };
        let echo = payload.get(..echoed).unwrap_or(payload);
        self.finish(|output, header| output.reply(header, echo, &[]))
    }

    /// The data of a REGION_READ, written in place by `fill`: all of it, as nothing clears it
    /// before. Where `fill` fails, the reply is taken back; [`Reply`] is returned to be refused.
    ///
    /// # Errors
    /// That of `fill`.
    #[inline]
    pub fn read<E>(
        self,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Range<u64>, (E, Self)> {
        let Ok(access) = RegionAccess::read_from_bytes(self.payload) else {
            debug_assert!(false, "a reply to REGION_READ for {:?}", self.command());
            return Ok(self.refuse(vfiod_wire::EINVAL));
        };
        let len = (access.count as usize).min(MAX_DATA);
        let from = self.output.end_position();
        match self.output.reply_with(&self.header, &access, len, fill) {
            Ok(()) => {
                if self.is_posted() {
                    self.output.truncate(from);
                }
                Ok(self.finish_at(from))
            }
            Err(error) => Err((error, self)),
        }
    }

    /// The data of a REGION_READ, sent from where it is as far as possible. `send` is given what is
    /// to be sent before the data, and returns how many bytes of that and then of the data it has
    /// sent; `fill` writes the data from a position on in place, for what was not.
    ///
    /// `send` is not called where it must not send: for a posted request, and where descriptors are
    /// to be sent before. Then `fill` gets everything.
    ///
    /// # Errors
    /// That of `fill`. Where part of the reply was sent already, what is missing is zeros instead.
    pub fn read_in_place<E>(
        self,
        send: impl FnOnce(&[u8]) -> usize,
        fill: impl FnOnce(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<Range<u64>, (E, Self)> {
        let access = RegionAccess::read_from_bytes(self.payload);
        let Some(access) = access.ok().filter(|_| !self.is_posted() && !self.output.has_fds())
        else {
            return self.read(|data| fill(0, data));
        };
        let len = (access.count as usize).min(MAX_DATA);
        let from = self.output.end_position();
        self.output.put(self.header.reply(RegionAccess::LEN + len).as_bytes());
        self.output.put(access.as_bytes());
        let before = self.output.len();
        let sent = send(self.output.bytes()).min(before + len);
        let data = sent.saturating_sub(before);
        self.output.sent(sent.min(before));
        self.output.skip(data);
        if data < len
            && let Err(error) = fill(data, self.output.extend(len - data))
        {
            let rest = self.output.end_position() - (len - data) as u64;
            self.output.truncate(rest);
            if self.output.position() <= from {
                self.output.truncate(from);
                return Err((error, self));
            }
            self.output.extend(len - data).fill(0);
        }
        self.output.begun_at(from);
        Ok(self.finish_at(from))
    }

    fn finish_at(self, from: u64) -> Range<u64> {
        if let Some(pending) = &mut self.session.pending {
            pending.replied = true;
        }
        from..self.output.end_position()
    }

    /// DEVICE_GET_INFO: `VFIO_DEVICE_FLAGS_*`, and how many regions and interrupt indices.
    pub fn device_info(self, flags: u32, num_regions: u32, num_irqs: u32) -> Range<u64> {
        let info = DeviceInfo { argsz: DeviceInfo::LEN as u32, flags, num_regions, num_irqs };
        self.finish(|output, header| output.reply(header, info.as_bytes(), &[]))
    }

    /// DEVICE_GET_IRQ_INFO: `VFIO_IRQ_INFO_*`, and how many vectors.
    pub fn irq_info(self, flags: u32, count: u32) -> Range<u64> {
        let index = IrqInfo::read_from_prefix(self.payload).map_or(0, |(info, _)| info.index);
        let info = IrqInfo { argsz: IrqInfo::LEN as u32, flags, index, count };
        self.finish(|output, header| output.reply(header, info.as_bytes(), &[]))
    }

    /// DEVICE_GET_REGION_INFO: `VFIO_REGION_INFO_FLAG_*` without CAPS, size in bytes, mappable
    /// parts (one if it is all of it), and the descriptor to map with the offset in bytes at which the
    /// region begins in it. The descriptor is sent only with a
    /// reply that is whole: where the client's `argsz` is too small, it asks again.
    pub fn region_info(
        self,
        flags: u32,
        size: u64,
        areas: &[SparseArea],
        memory: Option<(D, u64)>,
    ) -> Range<u64> {
        let info = RegionInfo::read_from_prefix(self.payload)
            .map_or_else(|_| RegionInfo::default(), |(info, _)| info);
        let (memory, offset) = memory.unzip();
        let offset = offset.unwrap_or(0);
        let (payload, whole) =
            encode_region_info(info.argsz, info.index, flags, size, offset, areas);
        let fds: Vec<D> = memory.filter(|_| whole).into_iter().collect();
        self.finish(|output, header| output.reply_with_fds(header, &payload, fds))
    }

    /// Whether a reply to DEVICE_GET_REGION_IO_FDS with `count` sub-regions would have their
    /// descriptors: not if the client's `argsz` is too small, or there is none.
    ///
    /// # Errors
    /// `E2BIG`: more descriptors than the client takes in one message.
    pub fn wants_io_fds(&self, count: usize) -> Result<bool, u32> {
        let argsz = RegionIoFds::read_from_prefix(self.payload).map_or(0, |(fds, _)| fds.argsz);
        if (argsz as usize) < RegionIoFds::LEN + count * IoFd::LEN || count == 0 {
            return Ok(false);
        }
        if count > self.session.client_fds as usize { Err(E2BIG) } else { Ok(true) }
    }

    /// DEVICE_GET_REGION_IO_FDS: the sub-regions, and their descriptors if
    /// [`Reply::wants_io_fds`].
    pub fn region_io_fds(self, entries: &[IoFd], fds: Vec<D>) -> Range<u64> {
        let asked = RegionIoFds::read_from_prefix(self.payload);
        let index = asked.map_or(0, |(asked, _)| asked.index);
        let argsz = (RegionIoFds::LEN + size_of_val(entries)) as u32;
        let fixed = RegionIoFds { argsz, flags: 0, index, count: entries.len() as u32 };
        let mut payload = fixed.as_bytes().to_vec();
        if !fds.is_empty() {
            payload.extend_from_slice(entries.as_bytes());
        }
        self.finish(|output, header| output.reply_with_fds(header, &payload, fds))
    }

    /// How many bytes of data the client takes in the reply to a DEVICE_FEATURE that gets.
    pub fn feature_room(&self) -> usize {
        let argsz = Feature::read_from_prefix(self.payload).map_or(0, |(asked, _)| asked.argsz);
        (argsz as usize).saturating_sub(Feature::LEN)
    }

    /// DMA_UNMAP that reports written pages: their bitmap, of the size that was asked for.
    pub fn unmapped(self, bitmap: &[u8]) -> Range<u64> {
        let payload = self.payload;
        let echo = payload.get(..DmaUnmap::LEN + DmaBitmap::LEN).unwrap_or(payload);
        self.finish(|output, header| output.reply(header, echo, bitmap))
    }

    /// DEVICE_FEATURE that gets: its data. It is left out where the client's `argsz` is too small.
    pub fn feature(self, data: &[u8]) -> Range<u64> {
        let asked = Feature::read_from_prefix(self.payload);
        let Feature { argsz, flags } = asked.map_or_else(|_| Feature::default(), |(f, _)| f);
        let needed = Feature::LEN + data.len();
        let fixed = Feature { argsz: needed as u32, flags };
        let data = if argsz as usize >= needed { data } else { &[] };
        self.finish(|output, header| output.reply(header, fixed.as_bytes(), data))
    }

    /// VERSION: the device is open. `twin` is the descriptor of the second socket's other end,
    /// for a client that offered to use one ([`Capabilities::wants_twin_socket`]).
    pub fn negotiated(self, twin: Option<D>) -> Range<u64> {
        let proposed = Version::decode(self.payload).unwrap_or_default().capabilities;
        self.session.phase = Phase::Ready;
        self.session.dialect = Dialect::of(&proposed);
        self.session.client_fds = proposed.fd_limit();
        self.session.client_data = proposed.data_limit();
        let reply = Version {
            // QEMU knows 0.0 only, and the specification nothing above it.
            major: 0,
            minor: 0,
            capabilities: Capabilities {
                max_msg_fds: Some(MAX_FDS),
                max_data_xfer_size: Some(MAX_DATA as u64),
                // Quotas limit these, and no number of ours: one that is announced would be a promise.
                max_dma_maps: None,
                pgsizes: proposed.pgsizes.map(|_| 4096),
                twin_socket: twin
                    .as_ref()
                    .map(|_| TwinSocket { supported: true, fd_index: Some(0) }),
                write_multiple: proposed.write_multiple.filter(|&wanted| wanted),
                migration: None,
                vf_token: None,
                vfiod_features: proposed.vfiod_features.filter(|&known| known),
            },
        };
        let payload = reply.encode();
        debug_assert!(HEADER_LEN + payload.len() <= MAX_VERSION_REPLY);
        let fds = twin.into_iter().collect();
        self.finish(|output, header| output.reply_with_fds(header, &payload, fds))
    }

    /// Refuses with an errno. A refused VERSION ends the connection.
    ///
    /// rust-vmm's client waits for the data of a read in any case: it gets all ones.
    pub fn refuse(self, errno: u32) -> Range<u64> {
        if self.session.phase == Phase::AwaitsVersion {
            let why = format!("VERSION refused with errno {errno}");
            self.session.phase = Phase::Ended(End::Refused(why));
        }
        let command = self.command();
        if command == Some(Command::RegionRead)
            && self.session.dialect.failed_read_is_ones()
            && let Ok(access) = RegionAccess::read_from_bytes(self.payload)
            && access.count as usize <= MAX_DATA
            && self.output.reserve(access.count as usize).is_ok()
        {
            return self.finish(|output, header| {
                let ones = output.reply_with(header, &access, access.count as usize, |data| {
                    data.fill(0xff);
                    Ok::<_, std::convert::Infallible>(())
                });
                let Ok(()) = ones;
            });
        }
        let padding = self.session.error_padding(command);
        self.finish(|output, header| output.error(header, errno, padding))
    }
}
