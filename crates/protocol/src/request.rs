//! Requests as they are handed to the driver: decoded, checked, with their descriptors.

use vfiod_wire::payload::{DmaMap, RegionAccess};
use vfiod_wire::{
    Capabilities, Command, DecodeError, EINVAL, FeatureOp, IrqAction, MultiWrites, UnmapScope,
    Version,
};
use zerocopy::FromBytes;

use crate::input::Descriptors;
use crate::limits::{MAX_DATA, MAX_MESSAGE};

/// `EOPNOTSUPP`.
const EOPNOTSUPP: u32 = 95;

/// What a client asks for. Descriptors that a command does not ask for have been dropped.
///
/// Each says which method of [`crate::Reply`] answers it; [`crate::Reply::refuse`] answers any.
#[derive(Clone, Debug)]
pub enum Request<'a, D> {
    /// VERSION: open the device. [`crate::Reply::negotiated`].
    Version {
        /// What the client proposes.
        proposed: Box<Capabilities>,
        /// The VF token that it presents.
        token: Option<[u8; 16]>,
    },
    /// REGION_READ of at most [`MAX_DATA`] bytes. [`crate::Reply::read`].
    RegionRead(RegionAccess),
    /// REGION_WRITE of at most [`MAX_DATA`] bytes. [`crate::Reply::done`].
    RegionWrite(RegionAccess, &'a [u8]),
    /// REGION_WRITE whose data the driver has put in place already; see
    /// [`crate::Connection::large_write`]. [`crate::Reply::done`].
    RegionWritten(RegionAccess),
    /// REGION_WRITE_MULTI. [`crate::Reply::done`].
    RegionWriteMulti(MultiWrites<'a>),
    /// DMA_MAP; without a descriptor, the memory is reached by DMA_READ and DMA_WRITE.
    /// [`crate::Reply::done`].
    DmaMap(DmaMap, Option<D>),
    /// DMA_UNMAP. [`crate::Reply::done`].
    DmaUnmap(UnmapScope),
    /// DEVICE_GET_INFO. [`crate::Reply::device_info`].
    DeviceGetInfo,
    /// DEVICE_GET_REGION_INFO of a region. [`crate::Reply::region_info`].
    DeviceGetRegionInfo(u32),
    /// DEVICE_GET_REGION_IO_FDS of a region. [`crate::Reply::region_io_fds`].
    DeviceGetRegionIoFds(u32),
    /// DEVICE_GET_IRQ_INFO of an index. [`crate::Reply::irq_info`].
    DeviceGetIrqInfo(u32),
    /// DEVICE_SET_IRQS. [`crate::Reply::done`].
    DeviceSetIrqs {
        /// The interrupt index.
        index: u32,
        /// First vector.
        start: u32,
        /// Number of vectors.
        count: u32,
        /// What to do.
        action: IrqAction,
        /// With what.
        data: IrqData<'a, D>,
    },
    /// DEVICE_RESET. [`crate::Reply::done`].
    DeviceReset,
    /// DEVICE_FEATURE. [`crate::Reply::feature`] for [`FeatureOp::Get`], otherwise
    /// [`crate::Reply::done`].
    DeviceFeature {
        /// The feature.
        index: u16,
        /// What to do.
        op: FeatureOp,
        /// The feature's own data.
        data: &'a [u8],
    },
}

/// What comes with a DEVICE_SET_IRQS.
#[derive(Clone, Debug)]
pub enum IrqData<'a, D> {
    /// Nothing.
    None,
    /// A byte for each vector.
    Bool(&'a [u8]),
    /// A descriptor for each vector, or none at all to take them away.
    EventFds(Vec<D>),
}

fn require(condition: bool, what: &'static str) -> Result<(), DecodeError> {
    if condition { Ok(()) } else { Err(DecodeError::new(EINVAL, what)) }
}

impl<'a, D> Request<'a, D> {
    /// The same request with other names for its descriptors; `None` if one has none.
    pub fn try_map_descriptors<E>(
        self,
        mut name: impl FnMut(D) -> Option<E>,
    ) -> Option<Request<'a, E>> {
        Some(match self {
            Self::DmaMap(map, Some(fd)) => Request::DmaMap(map, Some(name(fd)?)),
            Self::DmaMap(map, None) => Request::DmaMap(map, None),
            Self::DeviceSetIrqs { index, start, count, action, data } => {
                let data = match data {
                    IrqData::None => IrqData::None,
                    IrqData::Bool(bytes) => IrqData::Bool(bytes),
                    IrqData::EventFds(fds) => {
                        IrqData::EventFds(fds.into_iter().map(name).collect::<Option<_>>()?)
                    }
                };
                Request::DeviceSetIrqs { index, start, count, action, data }
            }
            Self::Version { proposed, token } => Request::Version { proposed, token },
            Self::RegionRead(access) => Request::RegionRead(access),
            Self::RegionWrite(access, data) => Request::RegionWrite(access, data),
            Self::RegionWritten(access) => Request::RegionWritten(access),
            Self::RegionWriteMulti(writes) => Request::RegionWriteMulti(writes),
            Self::DmaUnmap(scope) => Request::DmaUnmap(scope),
            Self::DeviceGetInfo => Request::DeviceGetInfo,
            Self::DeviceGetRegionInfo(index) => Request::DeviceGetRegionInfo(index),
            Self::DeviceGetRegionIoFds(index) => Request::DeviceGetRegionIoFds(index),
            Self::DeviceGetIrqInfo(index) => Request::DeviceGetIrqInfo(index),
            Self::DeviceReset => Request::DeviceReset,
            Self::DeviceFeature { index, op, data } => Request::DeviceFeature { index, op, data },
        })
    }

    /// The most bytes that the reply may have, beyond what every reply may. `payload` is the request's.
    pub(crate) fn largest_reply(&self, payload: &[u8]) -> usize {
        // What comes first in the requests whose client says how much it takes.
        let argsz = || u32::read_from_prefix(payload).map_or(0, |(argsz, _)| argsz as usize);
        let wanted = match self {
            Self::RegionRead(access) => access.count as usize,
            Self::DmaUnmap(UnmapScope::Reporting { bitmap, .. }) => {
                usize::try_from(*bitmap).unwrap_or(MAX_MESSAGE)
            }
            Self::DeviceFeature { op: FeatureOp::Get, .. }
            | Self::DeviceGetRegionInfo(_)
            | Self::DeviceGetRegionIoFds(_) => argsz(),
            Self::DeviceFeature { .. } => payload.len(),
            _ => 0,
        };
        wanted.min(MAX_MESSAGE)
    }

    /// Decodes a command after negotiation.
    #[inline]
    pub(crate) fn decode(
        command: Command,
        payload: &'a [u8],
        descriptors: Descriptors<D>,
    ) -> Result<Self, DecodeError> {
        use vfiod_wire::Request as Wire;
        Ok(match vfiod_wire::Request::decode(command, payload)? {
            Wire::RegionRead(access) => {
                let fits = access.count as usize <= MAX_DATA;
                require(fits, "REGION_READ of more than max_data_xfer_size")?;
                Self::RegionRead(access)
            }
            Wire::RegionWrite(access, data) => {
                let fits = data.len() <= MAX_DATA;
                require(fits, "REGION_WRITE of more than max_data_xfer_size")?;
                Self::RegionWrite(access, data)
            }
            Wire::RegionWriteMulti(writes) => Self::RegionWriteMulti(writes),
            Wire::Version(_) => {
                return Err(DecodeError::new(EINVAL, "VERSION was negotiated before"));
            }
            Wire::DmaMap(map) => {
                let Descriptors { mut fds, truncated } = descriptors;
                let one = fds.len() <= 1 && !truncated;
                require(
                    one,
                    "DMA_MAP with more than one descriptor, or with one that was not taken",
                )?;
                Self::DmaMap(map, fds.pop())
            }
            Wire::DmaUnmap(scope, _) => Self::DmaUnmap(scope),
            Wire::DeviceGetInfo(_) => Self::DeviceGetInfo,
            Wire::DeviceGetRegionInfo { index, .. } => Self::DeviceGetRegionInfo(index),
            Wire::DeviceGetRegionIoFds { index, .. } => Self::DeviceGetRegionIoFds(index),
            Wire::DeviceGetIrqInfo(index) => Self::DeviceGetIrqInfo(index),
            Wire::DeviceSetIrqs { index, start, count, action, data } => {
                let data = match data {
                    vfiod_wire::IrqData::None => IrqData::None,
                    vfiod_wire::IrqData::Bool(bytes) => IrqData::Bool(bytes),
                    vfiod_wire::IrqData::EventFd => {
                        let Descriptors { fds, truncated } = descriptors;
                        let right = fds.is_empty() || fds.len() == count as usize;
                        let what =
                            "DEVICE_SET_IRQS whose count is not that of the descriptors taken";
                        require(right && !truncated, what)?;
                        IrqData::EventFds(fds)
                    }
                };
                Self::DeviceSetIrqs { index, start, count, action, data }
            }
            Wire::DeviceReset => Self::DeviceReset,
            Wire::DeviceFeature { index, op, data, .. } => Self::DeviceFeature { index, op, data },
            Wire::MigDataRead(_) | Wire::MigDataWrite(_) => {
                return Err(DecodeError::new(EOPNOTSUPP, "the device cannot migrate"));
            }
        })
    }

    /// Decodes the first message.
    pub(crate) fn decode_version(payload: &[u8]) -> Result<Self, DecodeError> {
        let Version { major, capabilities, .. } = Version::decode(payload)?;
        require(major == 0, "VERSION whose major number is not 0")?;
        let token = capabilities.token()?;
        Ok(Self::Version { proposed: Box::new(capabilities), token })
    }
}
