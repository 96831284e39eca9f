//! Messages of a client: well-formed ones, nearly so, and any bytes.

use arbitrary::Arbitrary;
use vfiod_wire::payload::{
    DeviceInfo, DmaBitmap, DmaLoggingControl, DmaLoggingRange, DmaLoggingReport, DmaMap, DmaUnmap,
    Feature, IrqInfo, IrqSet, MigData, MultiWrite, RegionAccess, RegionInfo, RegionIoFds, SpaceOf,
};
use vfiod_wire::{Capabilities, Command, Header, Migration, TwinSocket, Version};
use zerocopy::IntoBytes;

use crate::world::TOKEN;

/// A number: small ones, multiples of a page and the ends of the range come more often.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Number {
    Small(u8),
    Words(u8),
    Pages(u8),
    Bit(u8),
    NearTheEnd(u8),
    Any(u64),
}

impl Number {
    pub(crate) fn get(self) -> u64 {
        match self {
            Self::Small(number) => number.into(),
            Self::Words(number) => u64::from(number) * 4,
            Self::Pages(number) => u64::from(number) << 12,
            Self::Bit(number) => 1 << (number % 64),
            Self::NearTheEnd(number) => u64::MAX - u64::from(number),
            Self::Any(number) => number,
        }
    }

    pub(crate) fn short(self) -> u32 {
        self.get() as u32
    }
}

/// What `argsz` says.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Argsz {
    Right,
    Large(u16),
    Any(u32),
}

impl Argsz {
    fn get(self, right: usize) -> u32 {
        match self {
            Self::Right => right as u32,
            Self::Large(more) => (right as u32).saturating_add(more.into()),
            Self::Any(size) => size,
        }
    }
}

/// The VF token that a client presents.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum VfToken {
    None,
    Right,
    Wrong,
    Malformed,
}

impl VfToken {
    pub(crate) fn text(self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Right => Some(TOKEN.to_owned()),
            Self::Wrong => Some("00000000-0000-0000-0000-000000000000".to_owned()),
            Self::Malformed => Some("token".to_owned()),
        }
    }
}

/// The data of a DEVICE_FEATURE.
#[derive(Arbitrary, Clone, Debug)]
pub(crate) enum FeatureData {
    Bytes(Vec<u8>),
    StartLog { page_size: Number, ranges: Vec<(Number, Number)> },
    ReportLog { iova: Number, length: Number, page_size: Number },
    Space { device: u8, file: Number },
    Token([u8; 16]),
}

impl FeatureData {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.clone(),
            Self::StartLog { page_size, ranges } => {
                let num_ranges = ranges.len() as u32;
                let page_size = page_size.get();
                let control = DmaLoggingControl { page_size, num_ranges, reserved: 0 };
                let mut data = control.as_bytes().to_vec();
                for (iova, length) in ranges {
                    let range = DmaLoggingRange { iova: iova.get(), length: length.get() };
                    data.extend_from_slice(range.as_bytes());
                }
                data
            }
            Self::ReportLog { iova, length, page_size } => {
                let (iova, length, page_size) = (iova.get(), length.get(), page_size.get());
                DmaLoggingReport { iova, length, page_size }.as_bytes().to_vec()
            }
            Self::Space { device, file } => {
                let space = SpaceOf { device: (*device).into(), file: file.get() };
                space.as_bytes().to_vec()
            }
            Self::Token(bytes) => bytes.to_vec(),
        }
    }
}

/// Which feature: those of the kernel that are there, and those of this project.
const FEATURES: [u16; 11] = [0, 1, 2, 6, 7, 8, 9, 0x7f00, 0x7f01, 0x7f02, 0x7f03];

/// A command with its payload.
#[derive(Arbitrary, Clone, Debug)]
pub(crate) enum Request {
    Version {
        major: u8,
        minor: u8,
        fds: Option<u8>,
        transfer: Option<Number>,
        migration: Option<Number>,
        twin_socket: bool,
        token: VfToken,
    },
    DmaMap {
        flags: u8,
        offset: Number,
        address: Number,
        size: Number,
    },
    DmaUnmap {
        argsz: Argsz,
        flags: u8,
        address: Number,
        size: Number,
        bitmap: Option<(Number, Number)>,
    },
    UnmapAll,
    GetInfo(Argsz),
    GetRegionInfo {
        argsz: Argsz,
        index: u8,
    },
    GetIoFds {
        argsz: Argsz,
        index: u8,
    },
    GetIrqInfo {
        argsz: Argsz,
        index: u8,
    },
    SetIrqs {
        argsz: Argsz,
        data_kind: u8,
        action: u8,
        index: u8,
        start: Number,
        count: Number,
        data: Vec<u8>,
    },
    Read {
        region: u8,
        offset: Number,
        count: Number,
    },
    Write {
        region: u8,
        offset: Number,
        value: Number,
        width: u8,
    },
    WriteBytes {
        region: u8,
        offset: Number,
        data: Vec<u8>,
        more: u16,
    },
    WriteMulti(Vec<(u8, Number, Number, u8)>),
    Reset,
    Feature {
        argsz: Argsz,
        index: u8,
        operation: u8,
        data: FeatureData,
    },
    MigRead {
        size: Number,
    },
    MigWrite {
        data: Vec<u8>,
    },
    /// Memory, I/O and bus mastering of a PCI function are turned on.
    Enable,
    /// A command of an fsl-mc portal.
    Portal {
        command: u16,
        token: u8,
        parameters: [Number; 3],
    },
    /// Any command with any payload.
    Any {
        command: u8,
        payload: Vec<u8>,
    },
}

impl Request {
    /// Its command, and its payload.
    fn encode(&self) -> (u16, Vec<u8>) {
        let (command, payload) = match self {
            Self::Version { major, minor, fds, transfer, migration, twin_socket, token } => {
                let migration = migration
                    .map(|size| Migration { pgsize: Some(size.get()), max_bitmap_size: None });
                let twin_socket =
                    twin_socket.then_some(TwinSocket { supported: true, fd_index: None });
                let capabilities = Capabilities {
                    max_msg_fds: fds.map(u32::from),
                    max_data_xfer_size: transfer.map(Number::get),
                    migration,
                    twin_socket,
                    vf_token: token.text(),
                    ..Capabilities::default()
                };
                let (major, minor) = (u16::from(*major), u16::from(*minor));
                (Command::Version, Version { major, minor, capabilities }.encode())
            }
            Self::DmaMap { flags, offset, address, size } => {
                let map = DmaMap {
                    argsz: DmaMap::LEN as u32,
                    flags: (*flags).into(),
                    offset: offset.get(),
                    address: address.get(),
                    size: size.get(),
                };
                (Command::DmaMap, map.as_bytes().to_vec())
            }
            Self::DmaUnmap { argsz, flags, address, size, bitmap } => {
                let unmap = DmaUnmap {
                    argsz: argsz.get(DmaUnmap::LEN),
                    flags: (*flags).into(),
                    address: address.get(),
                    size: size.get(),
                };
                let mut payload = unmap.as_bytes().to_vec();
                if let Some((page_size, size)) = bitmap {
                    let bitmap = DmaBitmap { page_size: page_size.get(), size: size.get() };
                    payload.extend_from_slice(bitmap.as_bytes());
                }
                (Command::DmaUnmap, payload)
            }
            Self::UnmapAll => {
                let unmap =
                    DmaUnmap { argsz: DmaUnmap::LEN as u32, flags: 2, ..DmaUnmap::default() };
                (Command::DmaUnmap, unmap.as_bytes().to_vec())
            }
            Self::GetInfo(argsz) => {
                let info =
                    DeviceInfo { argsz: argsz.get(DeviceInfo::LEN), ..DeviceInfo::default() };
                (Command::DeviceGetInfo, info.as_bytes().to_vec())
            }
            Self::GetRegionInfo { argsz, index } => {
                let (argsz, index) = (argsz.get(RegionInfo::LEN), (*index).into());
                let info = RegionInfo { argsz, index, ..RegionInfo::default() };
                (Command::DeviceGetRegionInfo, info.as_bytes().to_vec())
            }
            Self::GetIoFds { argsz, index } => {
                let (argsz, index) = (argsz.get(RegionIoFds::LEN), (*index).into());
                let info = RegionIoFds { argsz, index, ..RegionIoFds::default() };
                (Command::DeviceGetRegionIoFds, info.as_bytes().to_vec())
            }
            Self::GetIrqInfo { argsz, index } => {
                let (argsz, index) = (argsz.get(IrqInfo::LEN), (*index).into());
                let info = IrqInfo { argsz, index, ..IrqInfo::default() };
                (Command::DeviceGetIrqInfo, info.as_bytes().to_vec())
            }
            Self::SetIrqs { argsz, data_kind, action, index, start, count, data } => {
                let set = IrqSet {
                    argsz: argsz.get(IrqSet::LEN + data.len()),
                    flags: 1 << (data_kind % 3) | 8 << (action % 3),
                    index: (index % 8).into(),
                    start: start.short(),
                    count: count.short(),
                };
                (Command::DeviceSetIrqs, [set.as_bytes(), data].concat())
            }
            Self::Read { region, offset, count } => {
                let (region, count) = ((*region).into(), count.short());
                let access = RegionAccess { offset: offset.get(), region, count };
                (Command::RegionRead, access.as_bytes().to_vec())
            }
            Self::Write { region, offset, value, width } => {
                let count = 1 << (width % 4);
                let access = RegionAccess { offset: offset.get(), region: (*region).into(), count };
                let value = value.get().to_le_bytes();
                let data = &value[..count as usize];
                (Command::RegionWrite, [access.as_bytes(), data].concat())
            }
            Self::WriteBytes { region, offset, data, more } => {
                let mut data = data.clone();
                data.resize(data.len() + usize::from(*more), 0xa5);
                let count = data.len() as u32;
                let access = RegionAccess { offset: offset.get(), region: (*region).into(), count };
                (Command::RegionWrite, [access.as_bytes(), &data].concat())
            }
            Self::WriteMulti(writes) => {
                let mut payload = (writes.len() as u64).to_ne_bytes().to_vec();
                for (region, offset, data, count) in writes {
                    let write = MultiWrite {
                        offset: offset.get(),
                        region: (*region).into(),
                        count: (count % 10).into(),
                        data: data.get().to_le_bytes(),
                    };
                    payload.extend_from_slice(write.as_bytes());
                }
                (Command::RegionWriteMulti, payload)
            }
            Self::Reset => (Command::DeviceReset, Vec::new()),
            Self::Feature { argsz, index, operation, data } => {
                let data = data.encode();
                let index = u32::from(FEATURES[usize::from(*index) % FEATURES.len()]);
                let flags = index | u32::from(operation % 8) << 16;
                let feature = Feature { argsz: argsz.get(Feature::LEN + data.len()), flags };
                (Command::DeviceFeature, [feature.as_bytes(), &data].concat())
            }
            Self::MigRead { size } => {
                let mig = MigData { argsz: MigData::LEN as u32, size: size.short() };
                (Command::MigDataRead, mig.as_bytes().to_vec())
            }
            Self::MigWrite { data } => {
                let argsz = (MigData::LEN + data.len()) as u32;
                let mig = MigData { argsz, size: data.len() as u32 };
                (Command::MigDataWrite, [mig.as_bytes(), data].concat())
            }
            Self::Enable => {
                let access = RegionAccess { offset: 4, region: 7, count: 2 };
                (Command::RegionWrite, [access.as_bytes(), &[7, 0]].concat())
            }
            Self::Portal { command, token, parameters } => {
                const READY: u64 = 1 << 16;
                let header = u64::from(*command) << 48 | u64::from(*token) << 32 | READY;
                let mut words = [header, 0, 0, 0, 0, 0, 0, 0];
                for (word, parameter) in words[1..].iter_mut().zip(parameters) {
                    *word = parameter.get();
                }
                let access = RegionAccess { offset: 0, region: 0, count: 64 };
                let bytes = words.map(u64::to_le_bytes).concat();
                (Command::RegionWrite, [access.as_bytes(), &bytes].concat())
            }
            Self::Any { command, payload } => return ((*command).into(), payload.clone()),
        };
        (command as u16, payload)
    }
}

/// A message: a request, and what is wrong with its header.
#[derive(Arbitrary, Clone, Debug)]
pub(crate) struct Message {
    request: Request,
    posted: bool,
    flaw: Flaw,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Flaw {
    None,
    NoneEither,
    NorHere,
    /// Its size is another one.
    Size(i8),
    HugeSize(u32),
    Flags(u32),
}

impl Message {
    /// A request in a header without a flaw, with a reply.
    pub(crate) fn of(request: Request) -> Self {
        Self { request, posted: false, flaw: Flaw::None }
    }

    /// The message as VERSION that opens a device.
    pub(crate) fn opening(twin_socket: bool, token: VfToken) -> Self {
        let request = Request::Version {
            major: 0,
            minor: 1,
            fds: Some(8),
            transfer: None,
            migration: None,
            twin_socket,
            token,
        };
        Self::of(request)
    }

    /// Its bytes, and whether it gets a reply for certain, if the connection lives.
    pub(crate) fn encode(&self, id: u16) -> (Vec<u8>, bool) {
        let (command, payload) = self.request.encode();
        let mut header = Header::command(id, Command::Version, payload.len(), self.posted);
        header.command = command;
        let mut is_sound = true;
        match self.flaw {
            Flaw::None | Flaw::NoneEither | Flaw::NorHere => {}
            Flaw::Size(by) => {
                header.size = header.size.wrapping_add_signed(by.into());
                is_sound = by == 0;
            }
            Flaw::HugeSize(size) => (header.size, is_sound) = (size, false),
            Flaw::Flags(flags) => (header.flags, is_sound) = (flags, false),
        }
        ([header.as_bytes(), &payload].concat(), is_sound && !self.posted)
    }
}
