//! The 16-byte header of every message (specification, "Header").

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Size of a header in bytes.
pub const HEADER_LEN: usize = 16;

const TYPE_MASK: u32 = 0xf;
const TYPE_COMMAND: u32 = 0;
const TYPE_REPLY: u32 = 1;
const NO_REPLY: u32 = 1 << 4;
const ERROR: u32 = 1 << 5;

/// A message header as it stands on the wire (host byte order).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Belongs to the sender; echoed in the reply.
    pub id: u16,
    /// The command's number, also in its reply.
    pub command: u16,
    /// Size of the whole message in bytes, header included.
    pub size: u32,
    /// Type, No_reply, Error.
    pub flags: u32,
    /// An errno, valid in a reply with the Error flag.
    pub error: u32,
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A command that wants a reply.
    Command,
    /// A command that must get no reply.
    Posted,
    /// The reply to a command; `Err` carries the errno (0 if the peer named none).
    Reply(Result<(), u32>),
    /// A type that the specification does not know.
    Unknown,
}

impl Header {
    /// The header of a command with `payload` bytes behind it.
    pub fn command(id: u16, command: Command, payload: usize, posted: bool) -> Self {
        Self {
            id,
            command: command as u16,
            size: (HEADER_LEN + payload) as u32,
            flags: TYPE_COMMAND | if posted { NO_REPLY } else { 0 },
            error: 0,
        }
    }

    /// The header of a reply with `payload` bytes behind it.
    pub fn reply(&self, payload: usize) -> Self {
        Self { size: (HEADER_LEN + payload) as u32, flags: TYPE_REPLY, error: 0, ..*self }
    }

    /// The header of a reply that reports an errno, with `payload` bytes behind it.
    ///
    /// The specification wants none; some clients wait for the full size all the same.
    pub fn error(&self, errno: u32, payload: usize) -> Self {
        Self {
            size: (HEADER_LEN + payload) as u32,
            flags: TYPE_REPLY | ERROR,
            error: errno,
            ..*self
        }
    }

    /// Reads a header from the first 16 bytes; `None` while there are fewer.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Self::read_from_prefix(bytes).ok().map(|(header, _)| header)
    }

    /// What the message is.
    pub fn kind(&self) -> Kind {
        match self.flags & TYPE_MASK {
            TYPE_COMMAND if self.flags & NO_REPLY != 0 => Kind::Posted,
            TYPE_COMMAND => Kind::Command,
            TYPE_REPLY if self.flags & ERROR != 0 => Kind::Reply(Err(self.error)),
            TYPE_REPLY => Kind::Reply(Ok(())),
            _ => Kind::Unknown,
        }
    }
}

macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $spec:literal;)*) => {
        /// The commands of the specification.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum Command { $($(#[$doc])* $name = $number,)* }

        impl Command {
            /// Every command.
            pub const ALL: &'static [Command] = &[$(Command::$name,)*];

            /// The command with a number, if there is one.
            pub fn from_number(number: u16) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }

            /// The name in the specification, without `VFIO_USER_`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $spec,)* }
            }
        }
    };
}

commands! {
    /// Negotiation; the first message.
    Version = 1, "VERSION";
    /// A range of the client's memory is mapped.
    DmaMap = 2, "DMA_MAP";
    /// Windows go away.
    DmaUnmap = 3, "DMA_UNMAP";
    /// What the device is.
    DeviceGetInfo = 4, "DEVICE_GET_INFO";
    /// What a region is.
    DeviceGetRegionInfo = 5, "DEVICE_GET_REGION_INFO";
    /// Descriptors that stand for writes to a region.
    DeviceGetRegionIoFds = 6, "DEVICE_GET_REGION_IO_FDS";
    /// What an interrupt index is.
    DeviceGetIrqInfo = 7, "DEVICE_GET_IRQ_INFO";
    /// Set up, mask, unmask or trigger interrupts.
    DeviceSetIrqs = 8, "DEVICE_SET_IRQS";
    /// Read a region.
    RegionRead = 9, "REGION_READ";
    /// Write a region.
    RegionWrite = 10, "REGION_WRITE";
    /// Server to client: read the client's memory.
    DmaRead = 11, "DMA_READ";
    /// Server to client: write the client's memory.
    DmaWrite = 12, "DMA_WRITE";
    /// Reset the device.
    DeviceReset = 13, "DEVICE_RESET";
    /// Many small writes in one message.
    RegionWriteMulti = 15, "REGION_WRITE_MULTI";
    /// Probe, get or set a feature.
    DeviceFeature = 16, "DEVICE_FEATURE";
    /// Read migration data.
    MigDataRead = 17, "MIG_DATA_READ";
    /// Write migration data.
    MigDataWrite = 18, "MIG_DATA_WRITE";
}
