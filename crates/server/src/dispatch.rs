//! Every command after negotiation: one small function each.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use vfiod_core::dma::{Backing, MapRequest, Perm};
use vfiod_core::{Error, File, IrqIndex, RegionIndex, irq};
use vfiod_wire::payload::{
    DeviceInfo, DmaMap, Feature, IoFd, IrqInfo, RegionAccess, RegionInfo, RegionIoFds, SparseArea,
    region_flag,
};
use vfiod_wire::{
    Command, FeatureOp, Header, IrqAction, IrqData, Kind, MultiWrites, Request, UnmapScope,
    encode_region_info,
};
use zerocopy::IntoBytes;

use crate::connection::{Connection, Session};
use crate::eventfds;
use crate::hot_reset;
use crate::limits::MAX_DATA;
use crate::outbox::Replies;
use crate::pool::Pool;
use crate::transport::Descriptors;

/// How long an unmap waits for accesses in flight: long enough for any device, short enough for
/// a client that gives up after five seconds.
const UNMAP_WAIT: Duration = Duration::from_secs(2);

type Outcome = Result<(), Error>;

fn invalid(what: &'static str) -> Error {
    Error::new(Errno::INVAL, what)
}

/// Handles one command and adds its reply. A mistake becomes an errno in the reply.
#[allow(clippy::too_many_arguments)]
pub(crate) fn command(
    connection: &Arc<Connection>,
    session: &Session,
    pool: &Pool,
    command: Command,
    header: &Header,
    payload: &[u8],
    descriptors: Descriptors,
    replies: &mut Replies,
) {
    let call = Call { connection, session, pool, header };
    let outcome = match Request::decode(command, payload) {
        Ok(request) => call.handle(request, descriptors, replies),
        Err(error) => {
            let errno = Errno::from_raw_os_error(error.errno as i32);
            Err(Error::new(errno, error.what).because(error))
        }
    };
    if let Err(error) = outcome {
        connection.refuse(header, Some(command), error.errno(), &error, replies);
    }
}

struct Call<'a> {
    connection: &'a Arc<Connection>,
    session: &'a Session,
    pool: &'a Pool,
    header: &'a Header,
}

impl Call<'_> {
    fn handle(
        &self,
        request: Request<'_>,
        descriptors: Descriptors,
        replies: &mut Replies,
    ) -> Outcome {
        // Descriptors that a command does not ask for are closed by being dropped.
        match request {
            Request::RegionRead(access) => self.region_read(access, replies),
            Request::RegionWrite(access, data) => self.region_write(access, data, replies),
            Request::RegionWriteMulti(writes) => self.region_write_multi(writes, replies),
            Request::Version(_) => Err(invalid("VERSION was negotiated before")),
            Request::DmaMap(map) => self.dma_map(map, descriptors, replies),
            Request::DmaUnmap(scope, echo) => {
                match scope {
                    UnmapScope::All => self.file().dma_unmap_all(UNMAP_WAIT)?,
                    UnmapScope::Range { address, size } => {
                        self.file().dma_unmap(address, size, UNMAP_WAIT)?
                    }
                };
                replies.reply(self.header, &echo);
                Ok(())
            }
            Request::DeviceGetInfo(_argsz) => {
                let description = self.file().description();
                let info = DeviceInfo {
                    argsz: DeviceInfo::LEN as u32,
                    flags: description.flags.bits(),
                    num_regions: description.regions.len() as u32,
                    num_irqs: description.irqs.len() as u32,
                };
                replies.reply(self.header, &info);
                Ok(())
            }
            Request::DeviceGetRegionInfo { argsz, index } => {
                self.get_region_info(argsz, index, replies)
            }
            Request::DeviceGetRegionIoFds { argsz, index } => {
                self.get_region_io_fds(argsz, index, replies)
            }
            Request::DeviceGetIrqInfo(index) => {
                let irq = self.file().irq(IrqIndex(index))?;
                let flags = irq.flags.bits();
                let info = IrqInfo { argsz: IrqInfo::LEN as u32, flags, index, count: irq.count };
                replies.reply(self.header, &info);
                Ok(())
            }
            Request::DeviceSetIrqs { index, start, count, action, data } => {
                self.set_irqs(index, start, count, action, data, descriptors)?;
                replies.reply(self.header, &());
                Ok(())
            }
            Request::DeviceReset => {
                self.file().reset()?;
                replies.reply(self.header, &());
                Ok(())
            }
            Request::DeviceFeature { argsz, flags, index, op, data } => {
                self.feature(argsz, flags, index, op, data, replies)
            }
            Request::MigDataRead(_) | Request::MigDataWrite(_) => {
                Err(Error::new(Errno::NOTSUP, "the device cannot migrate"))
            }
        }
    }

    fn file(&self) -> &File {
        &self.session.file
    }

    fn region_read(&self, access: RegionAccess, replies: &mut Replies) -> Outcome {
        let len = access.count as usize;
        let read = if len > MAX_DATA {
            Err(invalid("REGION_READ of more than max_data_xfer_size"))
        } else {
            replies.reply_with(self.header, &access, len, |data| {
                self.file().read(RegionIndex(access.region), access.offset, data)
            })
        };
        match read {
            Err(_) if self.session.dialect.failed_read_is_ones() && len <= MAX_DATA => replies
                .reply_with(self.header, &access, len, |data| {
                    data.fill(0xff);
                    Ok(())
                }),
            read => read,
        }
    }

    fn region_write(&self, access: RegionAccess, data: &[u8], replies: &mut Replies) -> Outcome {
        if data.len() > MAX_DATA {
            return Err(invalid("REGION_WRITE of more than max_data_xfer_size"));
        }
        self.file().write(RegionIndex(access.region), access.offset, data)?;
        replies.reply(self.header, &access);
        Ok(())
    }

    fn region_write_multi(&self, writes: MultiWrites<'_>, replies: &mut Replies) -> Outcome {
        for write in writes.iter() {
            let write = write.map_err(|error| invalid(error.what))?;
            self.file().write(RegionIndex(write.region), write.offset, write.bytes())?;
        }
        replies.reply(self.header, &(writes.len() as u64));
        Ok(())
    }

    fn dma_map(&self, map: DmaMap, mut descriptors: Descriptors, replies: &mut Replies) -> Outcome {
        if descriptors.fds.len() > 1 || descriptors.truncated {
            return Err(invalid("DMA_MAP with more than one descriptor"));
        }
        let backing = match descriptors.fds.pop() {
            Some(fd) => Backing::File { fd, offset: map.offset },
            None => {
                self.session.dma.set_used();
                Backing::Peer(self.session.dma.clone())
            }
        };
        self.file().dma_map(MapRequest {
            iova: map.address,
            size: map.size,
            perm: Perm::from_bits_truncate(map.flags),
            backing,
        })?;
        replies.reply(self.header, &());
        Ok(())
    }

    fn get_region_info(&self, argsz: u32, index: u32, replies: &mut Replies) -> Outcome {
        let region = self.file().region(RegionIndex(index))?;
        let mut flags = region.flags.bits();
        let mut areas = Vec::new();
        let mut memory = None;
        if let Some(shared) = &region.shared {
            flags |= region_flag::MMAP;
            memory = Some(shared.memory.fd().try_clone_to_owned().map_err(|error| {
                Error::new(Errno::MFILE, "cannot duplicate the region's descriptor").because(error)
            })?);
            areas
                .extend(shared.areas.iter().map(|a| SparseArea { offset: a.offset, size: a.size }));
            if areas == [SparseArea { offset: 0, size: region.size }] {
                areas.clear();
            }
        }
        let (payload, whole) = encode_region_info(argsz, index, flags, region.size, &areas);
        let fds: Vec<OwnedFd> = memory.filter(|_| whole).into_iter().collect();
        self.reply_with_fds(&payload, &fds, replies)
    }

    fn get_region_io_fds(&self, argsz: u32, index: u32, replies: &mut Replies) -> Outcome {
        let region = self.file().region(RegionIndex(index))?;
        let count = region.doorbells.len();
        let needed = RegionIoFds::LEN + count * IoFd::LEN;
        let fixed = RegionIoFds { argsz: needed as u32, flags: 0, index, count: count as u32 };
        let mut payload = fixed.as_bytes().to_vec();
        if (argsz as usize) < needed || count == 0 {
            return self.reply_with_fds(&payload, &[], replies);
        }
        if count > self.session.client_fds {
            return Err(Error::new(
                Errno::TOOBIG,
                "more descriptors than the client's max_msg_fds in one region",
            ));
        }
        for (fd_index, bell) in region.doorbells.iter().enumerate() {
            let io_fd = IoFd {
                offset: bell.offset,
                size: u64::from(bell.size),
                fd_index: fd_index as u32,
                kind: 0,
                flags: u32::from(bell.datamatch.is_some()),
                padding: 0,
                datamatch: bell.datamatch.unwrap_or(0),
            };
            payload.extend_from_slice(io_fd.as_bytes());
        }
        let fds = eventfds::doorbells(self.connection, self.session, self.pool, index)?;
        self.reply_with_fds(&payload, &fds, replies)
    }

    /// A reply with descriptors is a message of its own; what was collected goes first.
    fn reply_with_fds(&self, payload: &[u8], fds: &[OwnedFd], replies: &mut Replies) -> Outcome {
        if self.header.kind() == Kind::Posted {
            return Ok(());
        }
        if fds.is_empty() {
            replies.reply_bytes(self.header, payload, &[]);
            return Ok(());
        }
        let failed = |errno| Error::new(errno, "cannot send the reply with its descriptors");
        self.connection.send(replies, crate::transport::Wait::Linger).map_err(failed)?;
        let mut message = self.header.reply(payload.len()).as_bytes().to_vec();
        message.extend_from_slice(payload);
        self.connection.send_with_fds(&message, fds).map_err(failed)
    }

    fn set_irqs(
        &self,
        index: u32,
        start: u32,
        count: u32,
        action: IrqAction,
        data: IrqData<'_>,
        descriptors: Descriptors,
    ) -> Outcome {
        let action = match action {
            IrqAction::Mask => irq::IrqAction::Mask,
            IrqAction::Unmask => irq::IrqAction::Unmask,
            IrqAction::Trigger => irq::IrqAction::Trigger,
        };
        let data = match data {
            IrqData::None => irq::IrqData::None,
            IrqData::Bool(bytes) => irq::IrqData::Bool(bytes),
            IrqData::EventFd => {
                let fds = descriptors.fds;
                if descriptors.truncated || (!fds.is_empty() && fds.len() != count as usize) {
                    return Err(invalid("DEVICE_SET_IRQS whose count is not its descriptors'"));
                }
                irq::IrqData::EventFds(fds.into_iter().map(Some).collect())
            }
        };
        let unmasks = action == irq::IrqAction::Unmask;
        let eventfds = matches!(data, irq::IrqData::EventFds(_));
        self.file().set_irqs(IrqIndex(index), start, count, action, data)?;
        if (unmasks && eventfds) || count == 0 {
            eventfds::follow_unmask(self.connection, self.session, self.pool)?;
        }
        Ok(())
    }

    fn feature(
        &self,
        argsz: u32,
        flags: u32,
        index: u16,
        op: FeatureOp,
        data: &[u8],
        replies: &mut Replies,
    ) -> Outcome {
        let unknown = || Error::new(Errno::NOTTY, format!("the device has no feature {index}"));
        match op {
            FeatureOp::Probe { get, set } => {
                let (can_get, can_set) = match hot_reset::probe(index) {
                    Some(own) => own,
                    None => self.file().feature_probe(index)?,
                };
                let known = can_get || can_set;
                if !known || (get && !can_get) || (set && !can_set) {
                    return Err(unknown());
                }
                replies.reply_bytes(self.header, Feature { argsz, flags }.as_bytes(), data);
            }
            FeatureOp::Get => {
                let got = match hot_reset::get(self.file(), index) {
                    Some(own) => own?,
                    None => self.file().feature_get(index, data)?,
                };
                let needed = Feature::LEN + got.len();
                let fixed = Feature { argsz: needed as u32, flags };
                let whole = argsz as usize >= needed;
                let got = if whole { got.as_slice() } else { &[] };
                replies.reply_bytes(self.header, fixed.as_bytes(), got);
            }
            FeatureOp::Set => {
                match hot_reset::set(self.file(), index, data) {
                    Some(own) => own?,
                    None => self.file().feature_set(index, data)?,
                }
                replies.reply_bytes(self.header, Feature { argsz, flags }.as_bytes(), data);
            }
        }
        Ok(())
    }
}

const _: () = assert!(RegionInfo::LEN == 32);
