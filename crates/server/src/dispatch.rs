//! Every request after negotiation, carried out on a file.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use vfiod_buffer::{NoMemory, copy_of};
use vfiod_core::dma::{Backing, DmaPeer, MapRequest, Perm};
use vfiod_core::{Error, File, IrqIndex, RegionIndex, irq};
use vfiod_protocol::{Access, IrqData, Reply, Request, Time};
use vfiod_wire::payload::{DmaMap, IoFd, SparseArea, region_flag};
use vfiod_wire::set::HOT_RESET;
use vfiod_wire::{Command, FeatureOp, IrqAction, MultiWrites, UnmapScope};

use crate::clock::now;
use crate::message_log::Message;
use crate::{dirty_log, hot_reset, input_log, space};

/// How long an unmap waits for accesses in flight: long enough for any device, short enough for
/// a client that gives up after five seconds.
const UNMAP_WAIT: Duration = Duration::from_secs(2);

/// What carrying out a request needs of the connection beside the file.
pub trait ClientLink {
    /// How the connection names a descriptor.
    type Fd;

    /// Names the descriptors of one reply.
    ///
    /// # Errors
    /// `EBUSY`: the client has not read those of earlier replies; `EMFILE`: more than its user may have.
    fn name(&self, fds: Vec<OwnedFd>) -> Result<Vec<Self::Fd>, Error>;

    /// The way to the client's memory by messages.
    ///
    /// # Errors
    /// What getting ready for it says.
    fn dma_peer(&self) -> Result<Arc<dyn DmaPeer>, Error>;

    /// The eventfds of a region's doorbells, for the client, in the order of its description.
    /// From now on the file must be told when one is signalled ([`File::ring`]).
    ///
    /// # Errors
    /// As [`File::doorbells`]; what watching them says.
    fn doorbells(&self, region: RegionIndex) -> Result<Vec<OwnedFd>, Error>;

    /// The unmasking eventfds ([`File::unmask_fds`]) may be others now.
    ///
    /// # Errors
    /// What watching them says.
    fn follow_unmask(&self) -> Result<(), Error>;
}

/// What a request is carried out on: an open file, for a client.
#[derive(Debug)]
pub struct Target<'a, L> {
    /// The file.
    pub file: &'a File,
    /// The client's connection.
    pub link: &'a L,
}

/// A request that was refused, and why.
#[derive(Debug)]
pub struct Refused {
    /// The request's command.
    pub command: Option<Command>,
    /// What is wrong; its errno is in the reply.
    pub error: Error,
}

pub(crate) type Outcome = Result<(), Refused>;

/// A request that may wait until the client has answered DMA messages: for the quiesce of a
/// reset, or until an access to what is unmapped has ended.
pub(crate) enum Waiting {
    Reset,
    Unmap(UnmapScope),
    /// The index, its data, and how much data the client takes.
    FeatureGet(u16, Vec<u8>, usize),
    FeatureSet(u16, Vec<u8>),
}

impl Waiting {
    /// Makes one of a request, if it is such a one.
    ///
    /// # Errors
    /// There is no memory for its data.
    pub(crate) fn of<D>(
        request: &Request<'_, D>,
        reply: &Reply<'_, D>,
    ) -> Result<Option<Self>, NoMemory> {
        Ok(match request {
            Request::DeviceReset => Some(Self::Reset),
            Request::DmaUnmap(scope) => Some(Self::Unmap(*scope)),
            Request::DeviceFeature { index, op: FeatureOp::Get, data } => {
                Some(Self::FeatureGet(*index, copy_of(data)?, reply.feature_room()))
            }
            Request::DeviceFeature { index, op: FeatureOp::Set, data } => {
                Some(Self::FeatureSet(*index, copy_of(data)?))
            }
            _ => None,
        })
    }

    /// Carries it out. Returns the data of [`Waiting::FeatureGet`].
    pub(crate) fn run(&self, file: &File, deadline: Time) -> Result<Vec<u8>, Error> {
        match self {
            Self::Reset => file.reset().map(|()| Vec::new()),
            Self::Unmap(scope) => unmap(file, *scope, deadline),
            Self::FeatureGet(index, data, room) => feature_get(file, *index, data, *room),
            Self::FeatureSet(index, data) => {
                feature_set(file, *index, data, deadline).map(|()| Vec::new())
            }
        }
    }

    /// Whether it resets the set.
    pub(crate) fn is_hot_reset(&self) -> bool {
        matches!(self, Self::FeatureSet(HOT_RESET, _))
    }

    /// Answers it.
    pub(crate) fn reply<D>(self, reply: Reply<'_, D>, outcome: Result<Vec<u8>, Error>) -> Outcome {
        match outcome {
            Ok(data) if matches!(self, Self::FeatureGet(..)) => {
                reply.feature(&data);
                Ok(())
            }
            Ok(bitmap) if matches!(self, Self::Unmap(UnmapScope::Reporting { .. })) => {
                reply.unmapped(&bitmap);
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
pub(crate) fn refuse<D>(reply: Reply<'_, D>, error: Error) -> Outcome {
    let command = reply.command();
    reply.refuse(error.errno().raw_os_error().unsigned_abs());
    Err(Refused { command, error })
}

fn finish<D>(reply: Reply<'_, D>, outcome: Result<(), Error>) -> Outcome {
    match outcome {
        Ok(()) => {
            reply.done();
            Ok(())
        }
        Err(error) => refuse(reply, error),
    }
}

/// Carries out a region access, and answers it. Waits for the device's callback.
#[inline]
pub(crate) fn access<D>(file: &File, access: Access<'_, D>, message: &mut Message) -> Outcome {
    let Access { access, data, reply } = access;
    let region = RegionIndex(access.region);
    match data {
        Some(data) => finish(reply, file.write(region, access.offset, data)),
        None => {
            let read = reply.read(|data| {
                file.read(region, access.offset, data)?;
                message.read(data);
                Ok(())
            });
            match read {
                Ok(_) => Ok(()),
                Err((error, reply)) => refuse(reply, error),
            }
        }
    }
}

impl<L: ClientLink> Target<'_, L> {
    fn file(&self) -> &File {
        self.file
    }

    /// Carries out a request other than VERSION, and answers it. Waits for callbacks of the
    /// device, and for an unmap at most until `deadline` (a time of `CLOCK_MONOTONIC`).
    ///
    /// # Errors
    /// The request was refused, and its reply says so.
    #[inline]
    pub fn carry_out(
        &self,
        request: Request<'_, OwnedFd>,
        reply: Reply<'_, L::Fd>,
        deadline: Time,
    ) -> Result<(), Refused> {
        self.carry_out_logged(request, reply, deadline, &mut Message::default())
    }

    /// As [`Target::carry_out`]. What was read is noted for the log.
    #[inline]
    pub(crate) fn carry_out_logged(
        &self,
        request: Request<'_, OwnedFd>,
        reply: Reply<'_, L::Fd>,
        deadline: Time,
        message: &mut Message,
    ) -> Outcome {
        match request {
            Request::RegionRead(read) => {
                access(self.file(), Access { access: read, data: None, reply }, message)
            }
            Request::RegionWrite(write, data) => {
                access(self.file(), Access { access: write, data: Some(data), reply }, message)
            }
            Request::RegionWritten(access) => {
                // Bounds and rights were checked before; the device may be gone since.
                finish(reply, self.file().region(RegionIndex(access.region)).map(drop))
            }
            Request::RegionWriteMulti(writes) => finish(reply, self.write_multi(writes)),
            Request::Version { .. } => refuse(reply, invalid("VERSION was negotiated before")),
            Request::DmaMap(map, fd) => finish(reply, self.dma_map(map, fd)),
            Request::DmaUnmap(scope) => {
                Waiting::Unmap(scope).reply(reply, unmap(self.file(), scope, deadline))
            }
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
                FeatureOp::Get => match feature_get(self.file(), index, data, reply.feature_room())
                {
                    Ok(data) => {
                        reply.feature(&data);
                        Ok(())
                    }
                    Err(error) => refuse(reply, error),
                },
                FeatureOp::Set => finish(reply, feature_set(self.file(), index, data, deadline)),
            },
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
            None => Backing::Peer(self.link.dma_peer()?),
        };
        self.file().dma_map(MapRequest {
            iova: map.address,
            size: map.size,
            perm: Perm::from_bits_truncate(map.flags),
            backing,
        })
    }

    fn region_info(&self, index: u32, reply: Reply<'_, L::Fd>) -> Outcome {
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
            let named = shared.fd().try_clone_to_owned().map_err(|error| {
                let what = "cannot duplicate the region's descriptor";
                Error::new(Errno::MFILE, what).because(error)
            });
            memory = match named.and_then(|fd| self.link.name(vec![fd])) {
                Ok(named) => named.into_iter().next().map(|fd| (fd, shared.offset())),
                Err(error) => return refuse(reply, error),
            };
            let sparse =
                |a: &vfiod_core::region::SparseArea| SparseArea { offset: a.offset, size: a.size };
            // Also where it is the whole region: libvfio-user's sample client takes no other reply.
            areas.extend(region.shared.iter().map(sparse));
        }
        reply.region_info(flags, region.size, &areas, memory);
        Ok(())
    }

    fn region_io_fds(&self, index: u32, reply: Reply<'_, L::Fd>) -> Outcome {
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
            Ok(true) => {
                let fds = self.link.doorbells(RegionIndex(index));
                match fds.and_then(|fds| self.link.name(fds)) {
                    Ok(fds) => fds,
                    Err(error) => return refuse(reply, error),
                }
            }
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
            self.link.follow_unmask()?;
        }
        Ok(())
    }

    fn probe(&self, index: u16, get: bool, set: bool) -> Result<(), Error> {
        let own = hot_reset::probe(index)
            .or_else(|| dirty_log::probe(index))
            .or_else(|| input_log::probe(self.file(), index))
            .or_else(|| space::probe(index));
        let (can_get, can_set) = match own {
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

/// Unmaps. Returns the bitmap of written pages, if it was asked for.
fn unmap(file: &File, scope: UnmapScope, deadline: Time) -> Result<Vec<u8>, Error> {
    let wait = deadline.left(now()).min(UNMAP_WAIT);
    match scope {
        UnmapScope::All => file.dma_unmap_all(wait).map(|_| Vec::new()),
        UnmapScope::Range { address, size } => {
            file.dma_unmap(address, size, wait).map(|_| Vec::new())
        }
        UnmapScope::Reporting { address, size, page_size, bitmap } => {
            let mut bitmap = dirty_log::unmap_bitmap(size, page_size, bitmap)?;
            file.dma_unmap_reporting(address, size, wait, page_size, &mut bitmap)?;
            Ok(bitmap)
        }
    }
}

fn feature_get(file: &File, index: u16, data: &[u8], room: usize) -> Result<Vec<u8>, Error> {
    let own = hot_reset::get(file, index)
        .or_else(|| dirty_log::get(file, index, data, room))
        .or_else(|| input_log::get(file, index))
        .or_else(|| space::get(file, index));
    match own {
        Some(own) => own,
        None => file.feature_get(index, data),
    }
}

fn feature_set(file: &File, index: u16, data: &[u8], deadline: Time) -> Result<(), Error> {
    let own = hot_reset::set(file, index, data, deadline)
        .or_else(|| dirty_log::set(file, index, data))
        .or_else(|| input_log::set(file, index, data))
        .or_else(|| space::set(file, index, data));
    match own {
        Some(own) => own,
        None => file.feature_set(index, data),
    }
}
