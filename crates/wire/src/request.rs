//! Client to server: every command, decoded and checked.

use zerocopy::FromBytes;

use crate::header::Command;
use crate::payload::{
    DeviceInfo, DmaBitmap, DmaMap, DmaUnmap, Feature, IrqInfo, IrqSet, MigData, MultiWrite,
    RegionAccess, RegionInfo, RegionIoFds, dma_flag, feature_flag, irq_flag,
};
use crate::version::Version;
use crate::{DecodeError, E2BIG, EINVAL};

/// Which windows a DMA_UNMAP means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmapScope {
    /// Those inside a range.
    Range {
        /// First IO virtual address.
        address: u64,
        /// Size in bytes; the end may be 2^64.
        size: u64,
    },
    /// Those inside a range, and the pages of it that devices have written are reported.
    Reporting {
        /// First IO virtual address.
        address: u64,
        /// Size in bytes; the end may be 2^64.
        size: u64,
        /// Bytes for each bit.
        page_size: u64,
        /// Size of the bitmap in the reply, bytes.
        bitmap: u64,
    },
    /// All.
    All,
}

/// What SET_IRQS does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqAction {
    /// Hold back.
    Mask,
    /// Let through.
    Unmask,
    /// Signal.
    Trigger,
}

/// What comes with a SET_IRQS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqData<'a> {
    /// Nothing.
    None,
    /// A byte for each vector.
    Bool(&'a [u8]),
    /// Descriptors that came with the message.
    EventFd,
}

/// What a DEVICE_FEATURE asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureOp {
    /// Would it work?
    Probe {
        /// Getting it, that is.
        get: bool,
        /// Setting it, that is.
        set: bool,
    },
    /// Get the data.
    Get,
    /// Set the data.
    Set,
}

/// A command from the client.
#[derive(Clone, Debug, PartialEq)]
pub enum Request<'a> {
    /// VERSION.
    Version(Version),
    /// DMA_MAP; the descriptor, if any, comes with the message.
    DmaMap(DmaMap),
    /// DMA_UNMAP, and the payload to echo.
    DmaUnmap(UnmapScope, DmaUnmap),
    /// DEVICE_GET_INFO with its `argsz`.
    DeviceGetInfo(u32),
    /// DEVICE_GET_REGION_INFO.
    DeviceGetRegionInfo {
        /// Maximum size of the reply payload.
        argsz: u32,
        /// The region.
        index: u32,
    },
    /// DEVICE_GET_REGION_IO_FDS.
    DeviceGetRegionIoFds {
        /// Maximum size of the reply payload.
        argsz: u32,
        /// The region.
        index: u32,
    },
    /// DEVICE_GET_IRQ_INFO with its index.
    DeviceGetIrqInfo(u32),
    /// DEVICE_SET_IRQS.
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
        data: IrqData<'a>,
    },
    /// REGION_READ.
    RegionRead(RegionAccess),
    /// REGION_WRITE.
    RegionWrite(RegionAccess, &'a [u8]),
    /// REGION_WRITE_MULTI.
    RegionWriteMulti(MultiWrites<'a>),
    /// DEVICE_RESET.
    DeviceReset,
    /// DEVICE_FEATURE.
    DeviceFeature {
        /// Maximum size of the reply payload.
        argsz: u32,
        /// The flags as sent, to be echoed.
        flags: u32,
        /// The feature.
        index: u16,
        /// What to do.
        op: FeatureOp,
        /// The feature's own data.
        data: &'a [u8],
    },
    /// MIG_DATA_READ.
    MigDataRead(MigData),
    /// MIG_DATA_WRITE.
    MigDataWrite(&'a [u8]),
}

/// The writes of a REGION_WRITE_MULTI: checked for number, one by one for length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MultiWrites<'a>(&'a [u8]);

impl<'a> MultiWrites<'a> {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len() / MultiWrite::LEN
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each write: region, offset, bytes; `EINVAL` for a length of 0 or over 8.
    pub fn iter(&self) -> impl Iterator<Item = Result<MultiWrite, DecodeError>> + use<'a> {
        self.0.chunks_exact(MultiWrite::LEN).map(|chunk| {
            let write = fixed::<MultiWrite>(chunk, "REGION_WRITE_MULTI entry too short")?.0;
            if write.count == 0 || write.count > 8 {
                return Err(DecodeError::new(
                    EINVAL,
                    "REGION_WRITE_MULTI entry of 0 or over 8 bytes",
                ));
            }
            Ok(write)
        })
    }
}

impl MultiWrite {
    /// The bytes to write.
    pub fn bytes(&self) -> &[u8] {
        &self.data[..(self.count as usize).min(8)]
    }
}

fn fixed<'a, T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable>(
    payload: &'a [u8],
    what: &'static str,
) -> Result<(T, &'a [u8]), DecodeError> {
    T::read_from_prefix(payload).map_err(|_| DecodeError::new(EINVAL, what))
}

fn exact<T: FromBytes + zerocopy::KnownLayout + zerocopy::Immutable>(
    payload: &[u8],
    what: &'static str,
) -> Result<T, DecodeError> {
    T::read_from_bytes(payload).map_err(|_| DecodeError::new(EINVAL, what))
}

fn require(condition: bool, what: &'static str) -> Result<(), DecodeError> {
    if condition { Ok(()) } else { Err(DecodeError::new(EINVAL, what)) }
}

impl<'a> Request<'a> {
    /// Reads a command's payload.
    ///
    /// # Errors
    /// `EINVAL` where sizes, counts or flags contradict each other or the specification;
    /// `E2BIG` for an `argsz` that lies about the data behind it.
    pub fn decode(command: Command, payload: &'a [u8]) -> Result<Self, DecodeError> {
        match command {
            // The two that matter for speed come first.
            Command::RegionRead => {
                exact(payload, "REGION_READ is not 16 bytes long").map(Self::RegionRead)
            }
            Command::RegionWrite => {
                let (access, data) =
                    fixed::<RegionAccess>(payload, "REGION_WRITE shorter than 16 bytes")?;
                require(
                    data.len() == access.count as usize,
                    "REGION_WRITE whose count is not the length of its data",
                )?;
                Ok(Self::RegionWrite(access, data))
            }
            Command::RegionWriteMulti => {
                let (count, writes) =
                    fixed::<u64>(payload, "REGION_WRITE_MULTI shorter than 8 bytes")?;
                require(
                    writes.len().is_multiple_of(MultiWrite::LEN)
                        && (writes.len() / MultiWrite::LEN) as u64 == count,
                    "REGION_WRITE_MULTI whose count is not the number of its writes",
                )?;
                Ok(Self::RegionWriteMulti(MultiWrites(writes)))
            }
            Command::Version => Version::decode(payload).map(Self::Version),
            Command::DmaMap => {
                let map: DmaMap = exact(payload, "DMA_MAP is not 32 bytes long")?;
                require(map.argsz as usize >= DmaMap::LEN, "DMA_MAP with argsz under 32")?;
                require(
                    map.flags & !(dma_flag::READ | dma_flag::WRITE) == 0,
                    "DMA_MAP with unknown flags",
                )?;
                require(map.flags != 0, "DMA_MAP neither readable nor writeable")?;
                Ok(Self::DmaMap(map))
            }
            Command::DmaUnmap => {
                let (unmap, rest) = fixed::<DmaUnmap>(payload, "DMA_UNMAP shorter than 24 bytes")?;
                require(unmap.argsz as usize >= DmaUnmap::LEN, "DMA_UNMAP with argsz under 24")?;
                let scope = match unmap.flags {
                    0 => UnmapScope::Range { address: unmap.address, size: unmap.size },
                    dma_flag::UNMAP_DIRTY => {
                        let (wanted, _) = fixed::<DmaBitmap>(
                            rest,
                            "DMA_UNMAP with a bitmap, shorter than 40 bytes",
                        )?;
                        let needed =
                            wanted.size.checked_add((DmaUnmap::LEN + DmaBitmap::LEN) as u64);
                        require(
                            needed.is_some_and(|needed| u64::from(unmap.argsz) >= needed),
                            "DMA_UNMAP with argsz under the size of its reply",
                        )?;
                        UnmapScope::Reporting {
                            address: unmap.address,
                            size: unmap.size,
                            page_size: wanted.page_size,
                            bitmap: wanted.size,
                        }
                    }
                    dma_flag::UNMAP_ALL => {
                        require(
                            unmap.address == 0 && unmap.size == 0,
                            "DMA_UNMAP of everything with an address or a size",
                        )?;
                        UnmapScope::All
                    }
                    _ => return Err(DecodeError::new(EINVAL, "DMA_UNMAP with unknown flags")),
                };
                Ok(Self::DmaUnmap(scope, unmap))
            }
            Command::DeviceGetInfo => {
                let info: DeviceInfo = exact(payload, "DEVICE_GET_INFO is not 16 bytes long")?;
                require(
                    info.argsz as usize >= DeviceInfo::LEN,
                    "DEVICE_GET_INFO with argsz under 16",
                )?;
                Ok(Self::DeviceGetInfo(info.argsz))
            }
            Command::DeviceGetRegionInfo => {
                // Clients with a large argsz may send a payload of that size.
                let (info, _) =
                    fixed::<RegionInfo>(payload, "DEVICE_GET_REGION_INFO shorter than 32 bytes")?;
                require(
                    info.argsz as usize >= RegionInfo::LEN,
                    "DEVICE_GET_REGION_INFO with argsz under 32",
                )?;
                Ok(Self::DeviceGetRegionInfo { argsz: info.argsz, index: info.index })
            }
            Command::DeviceGetRegionIoFds => {
                let (info, _) = fixed::<RegionIoFds>(
                    payload,
                    "DEVICE_GET_REGION_IO_FDS shorter than 16 bytes",
                )?;
                require(
                    info.argsz as usize >= RegionIoFds::LEN,
                    "DEVICE_GET_REGION_IO_FDS with argsz under 16",
                )?;
                require(
                    info.flags == 0 && info.count == 0,
                    "DEVICE_GET_REGION_IO_FDS with flags or count",
                )?;
                Ok(Self::DeviceGetRegionIoFds { argsz: info.argsz, index: info.index })
            }
            Command::DeviceGetIrqInfo => {
                let info: IrqInfo = exact(payload, "DEVICE_GET_IRQ_INFO is not 16 bytes long")?;
                require(
                    info.argsz as usize >= IrqInfo::LEN,
                    "DEVICE_GET_IRQ_INFO with argsz under 16",
                )?;
                Ok(Self::DeviceGetIrqInfo(info.index))
            }
            Command::DeviceSetIrqs => decode_set_irqs(payload),
            Command::DeviceReset => {
                require(payload.is_empty(), "DEVICE_RESET with a payload")?;
                Ok(Self::DeviceReset)
            }
            Command::DeviceFeature => decode_feature(payload),
            Command::MigDataRead => {
                exact(payload, "MIG_DATA_READ is not 8 bytes long").map(Self::MigDataRead)
            }
            Command::MigDataWrite => {
                let (mig, data) = fixed::<MigData>(payload, "MIG_DATA_WRITE shorter than 8 bytes")?;
                require(
                    data.len() == mig.size as usize,
                    "MIG_DATA_WRITE whose size is not the length of its data",
                )?;
                Ok(Self::MigDataWrite(data))
            }
            Command::DmaRead | Command::DmaWrite => {
                Err(DecodeError::new(EINVAL, "DMA_READ and DMA_WRITE are sent by the server only"))
            }
        }
    }
}

fn decode_set_irqs(payload: &[u8]) -> Result<Request<'_>, DecodeError> {
    let (set, rest) = fixed::<IrqSet>(payload, "DEVICE_SET_IRQS shorter than 20 bytes")?;
    if (set.argsz as usize) < IrqSet::LEN {
        return Err(DecodeError::new(EINVAL, "DEVICE_SET_IRQS with argsz under 20"));
    }
    if set.argsz as usize > payload.len() {
        return Err(DecodeError::new(E2BIG, "DEVICE_SET_IRQS with argsz over its payload"));
    }
    let actions = irq_flag::ACTION_MASK | irq_flag::ACTION_UNMASK | irq_flag::ACTION_TRIGGER;
    let kinds = irq_flag::DATA_NONE | irq_flag::DATA_BOOL | irq_flag::DATA_EVENTFD;
    require(set.flags & !(actions | kinds) == 0, "DEVICE_SET_IRQS with unknown flags")?;
    let action = match set.flags & actions {
        irq_flag::ACTION_MASK => IrqAction::Mask,
        irq_flag::ACTION_UNMASK => IrqAction::Unmask,
        irq_flag::ACTION_TRIGGER => IrqAction::Trigger,
        _ => return Err(DecodeError::new(EINVAL, "DEVICE_SET_IRQS without exactly one action")),
    };
    let data = match set.flags & kinds {
        irq_flag::DATA_NONE => IrqData::None,
        irq_flag::DATA_BOOL => {
            let bytes = rest.get(..set.count as usize).ok_or(DecodeError::new(
                EINVAL,
                "DEVICE_SET_IRQS with fewer booleans than its count",
            ))?;
            IrqData::Bool(bytes)
        }
        irq_flag::DATA_EVENTFD => IrqData::EventFd,
        _ => return Err(DecodeError::new(EINVAL, "DEVICE_SET_IRQS without exactly one data kind")),
    };
    Ok(Request::DeviceSetIrqs {
        index: set.index,
        start: set.start,
        count: set.count,
        action,
        data,
    })
}

fn decode_feature(payload: &[u8]) -> Result<Request<'_>, DecodeError> {
    let (feature, data) = fixed::<Feature>(payload, "DEVICE_FEATURE shorter than 8 bytes")?;
    if (feature.argsz as usize) < Feature::LEN {
        return Err(DecodeError::new(EINVAL, "DEVICE_FEATURE with argsz under 8"));
    }
    let Feature { argsz, flags } = feature;
    let known =
        feature_flag::INDEX_MASK | feature_flag::GET | feature_flag::SET | feature_flag::PROBE;
    require(flags & !known == 0, "DEVICE_FEATURE with unknown flags")?;
    let (get, set) = (flags & feature_flag::GET != 0, flags & feature_flag::SET != 0);
    let op = match (flags & feature_flag::PROBE != 0, get, set) {
        (true, get, set) => FeatureOp::Probe { get, set },
        (false, true, false) => FeatureOp::Get,
        (false, false, true) => FeatureOp::Set,
        _ => {
            return Err(DecodeError::new(
                EINVAL,
                "DEVICE_FEATURE with not one of GET, SET and PROBE",
            ));
        }
    };
    let index = (flags & feature_flag::INDEX_MASK) as u16;
    Ok(Request::DeviceFeature { argsz, flags, index, op, data })
}
