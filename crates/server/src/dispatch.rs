//! Every request after negotiation, carried out on the file.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use vfiod_core::dma::{Backing, MapRequest, Perm};
use vfiod_core::{Error, File, IrqIndex, RegionIndex, irq};
use vfiod_protocol::{IrqData, Reply, Request, Time};
use vfiod_wire::payload::{DmaMap, IoFd, RegionAccess, SparseArea, region_flag};
use vfiod_wire::{Command, FeatureOp, IrqAction, MultiWrites, UnmapScope};

use crate::clock::now;
use crate::dma_channel::DmaChannel;
use crate::eventfds::EventFds;
use crate::hot_reset;
use crate::opened::Opened;
use crate::pool::Pool;

/// How long an unmap waits for accesses in flight: long enough for any device, short enough for
/// a client that gives up after five seconds.
const UNMAP_WAIT: Duration = Duration::from_secs(2);

/// What a request is carried out on.
pub(crate) struct Target<'a> {
    pub(crate) opened: &'a Arc<Opened>,
    pub(crate) dma: &'a Arc<DmaChannel>,
    pub(crate) eventfds: &'a EventFds,
    pub(crate) pool: &'a Pool,
}

/// A request that was refused, for the log.
pub(crate) struct Refused {
    pub(crate) command: Option<Command>,
    pub(crate) error: Error,
}

pub(crate) type Outcome = Result<(), Refused>;

/// A request that may wait until the client has answered DMA messages: for the quiesce of a
/// reset, or until an access to what is unmapped has ended.
pub(crate) enum Waiting {
    Reset,
    Unmap(UnmapScope),
    FeatureGet(u16, Vec<u8>),
    FeatureSet(u16, Vec<u8>),
}

impl Waiting {
    /// Makes one of a request, if it is such a one.
    pub(crate) fn of(request: &Request<'_, OwnedFd>) -> Option<Self> {
        match request {
            Request::DeviceReset => Some(Self::Reset),
            Request::DmaUnmap(scope) => Some(Self::Unmap(*scope)),
            Request::DeviceFeature { index, op: FeatureOp::Get, data } => {
                Some(Self::FeatureGet(*index, data.to_vec()))
            }
            Request::DeviceFeature { index, op: FeatureOp::Set, data } => {
                Some(Self::FeatureSet(*index, data.to_vec()))
            }
            _ => None,
        }
    }

    /// Carries it out. Returns the data of [`Waiting::FeatureGet`].
    pub(crate) fn run(&self, file: &File, deadline: Time) -> Result<Vec<u8>, Error> {
        match self {
            Self::Reset => file.reset().map(|()| Vec::new()),
            Self::Unmap(scope) => unmap(file, *scope, deadline).map(|()| Vec::new()),
            Self::FeatureGet(index, data) => feature_get(file, *index, data),
            Self::FeatureSet(index, data) => feature_set(file, *index, data).map(|()| Vec::new()),
        }
    }

    /// Answers it.
    pub(crate) fn reply(
        self,
        reply: Reply<'_, OwnedFd>,
        outcome: Result<Vec<u8>, Error>,
    ) -> Outcome {
        match outcome {
            Ok(data) if matches!(self, Self::FeatureGet(..)) => {
                reply.feature(&data);
                Ok(())
            }
            outcome => finish(reply, outcome.map(drop)),
        }
    }
}

fn invalid(what: &'static str) -> Error {
    Error::new(Errno::INVAL, what)
}

/// Refuses a request.
pub(crate) fn refuse(reply: Reply<'_, OwnedFd>, error: Error) -> Outcome {
    let command = reply.command();
    reply.refuse(error.errno().raw_os_error().unsigned_abs());
    Err(Refused { command, error })
}

fn finish(reply: Reply<'_, OwnedFd>, outcome: Result<(), Error>) -> Outcome {
    match outcome {
        Ok(()) => {
            reply.done();
            Ok(())
        }
        Err(error) => refuse(reply, error),
    }
}

impl Target<'_> {
    fn file(&self) -> &File {
        &self.opened.file
    }

    /// Carries a request out, and answers it.
    #[inline]
    pub(crate) fn carry_out(
        &self,
        request: Request<'_, OwnedFd>,
        reply: Reply<'_, OwnedFd>,
        deadline: Time,
    ) -> Outcome {
        match request {
            Request::RegionRead(access) => self.region_read(access, reply),
            Request::RegionWrite(access, data) => {
                let region = RegionIndex(access.region);
                finish(reply, self.file().write(region, access.offset, data))
            }
            Request::RegionWritten(access) => {
                // Bounds and rights were checked before; the device may be gone since.
                finish(reply, self.file().region(RegionIndex(access.region)).map(drop))
            }
            Request::RegionWriteMulti(writes) => finish(reply, self.write_multi(writes)),
            Request::Version { .. } => refuse(reply, invalid("VERSION was negotiated before")),
            Request::DmaMap(map, fd) => finish(reply, self.dma_map(map, fd)),
            Request::DmaUnmap(scope) => finish(reply, unmap(self.file(), scope, deadline)),
            Request::DeviceGetInfo => {
                let description = self.file().description();
                let (regions, irqs) = (description.regions.len(), description.irqs.len());
                reply.device_info(description.flags.bits(), regions as u32, irqs as u32);
                Ok(())
            }
            Request::DeviceGetRegionInfo(index) => self.region_info(index, reply),
            Request::DeviceGetRegionIoFds(index) => self.region_io_fds(index, reply),
            Request::DeviceGetIrqInfo(index) => match self.file().irq(IrqIndex(index)) {
                Ok(irq) => {
                    reply.irq_info(irq.flags.bits(), irq.count);
                    Ok(())
                }
                Err(error) => refuse(reply, error),
            },
            Request::DeviceSetIrqs { index, start, count, action, data } => {
                finish(reply, self.set_irqs(index, start, count, action, data))
            }
            Request::DeviceReset => finish(reply, self.file().reset()),
            Request::DeviceFeature { index, op, data } => match op {
                FeatureOp::Probe { get, set } => finish(reply, self.probe(index, get, set)),
                FeatureOp::Get => match feature_get(self.file(), index, data) {
                    Ok(data) => {
                        reply.feature(&data);
                        Ok(())
                    }
                    Err(error) => refuse(reply, error),
                },
                FeatureOp::Set => finish(reply, feature_set(self.file(), index, data)),
            },
        }
    }

    #[inline]
    fn region_read(&self, access: RegionAccess, reply: Reply<'_, OwnedFd>) -> Outcome {
        let region = RegionIndex(access.region);
        match reply.read(|data| self.file().read(region, access.offset, data)) {
            Ok(_) => Ok(()),
            Err((error, reply)) => refuse(reply, error),
        }
    }

    fn write_multi(&self, writes: MultiWrites<'_>) -> Result<(), Error> {
        for write in writes.iter() {
            let write = write.map_err(|error| invalid(error.what))?;
            self.file().write(RegionIndex(write.region), write.offset, write.bytes())?;
        }
        Ok(())
    }

    fn dma_map(&self, map: DmaMap, fd: Option<OwnedFd>) -> Result<(), Error> {
        let backing = match fd {
            Some(fd) => Backing::File { fd, offset: map.offset },
            None => {
                self.dma.set_used()?;
                Backing::Peer(self.dma.clone())
            }
        };
        self.file().dma_map(MapRequest {
            iova: map.address,
            size: map.size,
            perm: Perm::from_bits_truncate(map.flags),
            backing,
        })
    }

    fn region_info(&self, index: u32, reply: Reply<'_, OwnedFd>) -> Outcome {
        let region = match self.file().region(RegionIndex(index)) {
            Ok(region) => region,
            Err(error) => return refuse(reply, error),
        };
        let mut flags = region.flags.bits();
        let mut areas = Vec::new();
        let mut memory = None;
        let shared = match self.file().shared_memory(RegionIndex(index)) {
            Ok(shared) => shared,
            Err(error) => return refuse(reply, error),
        };
        if let Some(shared) = shared {
            flags |= region_flag::MMAP;
            memory = match shared.fd().try_clone_to_owned() {
                Ok(fd) => Some((fd, shared.offset())),
                Err(error) => {
                    let what = "cannot duplicate the region's descriptor";
                    return refuse(reply, Error::new(Errno::MFILE, what).because(error));
                }
            };
            let sparse =
                |a: &vfiod_core::region::SparseArea| SparseArea { offset: a.offset, size: a.size };
            areas.extend(region.shared.iter().map(sparse));
            if areas == [SparseArea { offset: 0, size: region.size }] {
                areas.clear();
            }
        }
        reply.region_info(flags, region.size, &areas, memory);
        Ok(())
    }

    fn region_io_fds(&self, index: u32, reply: Reply<'_, OwnedFd>) -> Outcome {
        let region = match self.file().region(RegionIndex(index)) {
            Ok(region) => region,
            Err(error) => return refuse(reply, error),
        };
        let mut entries = Vec::new();
        for (fd_index, bell) in region.eventfds().map(|(_, bell)| bell).enumerate() {
            entries.push(IoFd {
                offset: bell.offset,
                size: u64::from(bell.size),
                fd_index: fd_index as u32,
                kind: 0,
                flags: u32::from(bell.datamatch.is_some()),
                padding: 0,
                datamatch: bell.datamatch.unwrap_or(0),
            });
        }
        let fds = match reply.wants_io_fds(entries.len()) {
            Ok(false) => Vec::new(),
            Ok(true) => match self.eventfds.doorbells(self.opened, self.pool, index) {
                Ok(fds) => fds,
                Err(error) => return refuse(reply, error),
            },
            Err(_) => {
                let what = "more descriptors than the client's max_msg_fds in one region";
                return refuse(reply, Error::new(Errno::TOOBIG, what));
            }
        };
        reply.region_io_fds(&entries, fds);
        Ok(())
    }

    fn set_irqs(
        &self,
        index: u32,
        start: u32,
        count: u32,
        action: IrqAction,
        data: IrqData<'_, OwnedFd>,
    ) -> Result<(), Error> {
        let action = match action {
            IrqAction::Mask => irq::IrqAction::Mask,
            IrqAction::Unmask => irq::IrqAction::Unmask,
            IrqAction::Trigger => irq::IrqAction::Trigger,
        };
        let data = match data {
            IrqData::None => irq::IrqData::None,
            IrqData::Bool(bytes) => irq::IrqData::Bool(bytes),
            IrqData::EventFds(fds) => irq::IrqData::EventFds(fds.into_iter().map(Some).collect()),
        };
        let unmasks = action == irq::IrqAction::Unmask;
        let eventfds = matches!(data, irq::IrqData::EventFds(_));
        self.file().set_irqs(IrqIndex(index), start, count, action, data)?;
        if (unmasks && eventfds) || count == 0 {
            self.eventfds.follow_unmask(self.opened, self.pool)?;
        }
        Ok(())
    }

    fn probe(&self, index: u16, get: bool, set: bool) -> Result<(), Error> {
        let (can_get, can_set) = match hot_reset::probe(index) {
            Some(own) => own,
            None => self.file().feature_probe(index)?,
        };
        let known = can_get || can_set;
        if !known || (get && !can_get) || (set && !can_set) {
            return Err(Error::new(Errno::NOTTY, format!("the device has no feature {index}")));
        }
        Ok(())
    }
}

fn unmap(file: &File, scope: UnmapScope, deadline: Time) -> Result<(), Error> {
    let wait = deadline.left(now()).min(UNMAP_WAIT);
    match scope {
        UnmapScope::All => file.dma_unmap_all(wait),
        UnmapScope::Range { address, size } => file.dma_unmap(address, size, wait),
    }
    .map(drop)
}

fn feature_get(file: &File, index: u16, data: &[u8]) -> Result<Vec<u8>, Error> {
    match hot_reset::get(file, index) {
        Some(own) => own,
        None => file.feature_get(index, data),
    }
}

fn feature_set(file: &File, index: u16, data: &[u8]) -> Result<(), Error> {
    match hot_reset::set(file, index, data) {
        Some(own) => own,
        None => file.feature_set(index, data),
    }
}
