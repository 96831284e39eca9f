//! Commands of the Management Complex: 64 bytes, a header and seven parameters (Linux,
//! `include/linux/fsl/mc.h`, `struct mc_cmd_header`; `drivers/bus/fsl-mc/fsl-mc-private.h` for the
//! commands). All words are little-endian.

use crate::object::Kind;

/// Words of a command: the header and its parameters.
pub(crate) const WORDS: usize = 8;
/// Bytes of a command.
pub(crate) const LENGTH: usize = WORDS * 8;

/// How a command ended (`enum mc_cmd_status`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok = 0x0,
    /// Not begun: what a user writes, and reads until it is done.
    Ready = 0x1,
    /// The token is none.
    AuthenticationError = 0x3,
    /// Not for this container.
    NoPrivilege = 0x4,
    /// A parameter is wrong.
    ConfigurationError = 0x6,
    /// No token is left.
    NoResource = 0x8,
    /// There is no such command.
    UnsupportedOperation = 0xb,
    /// Not for what the token stands for.
    InvalidState = 0xc,
}

/// A session that a user opened, as it is named in a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Token(pub(crate) u16);

/// A header: source, hardware flags, status, software flags, token, command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header(pub(crate) u64);

impl Header {
    pub(crate) fn is_ready(self) -> bool {
        (self.0 >> 16) as u8 == Status::Ready as u8
    }

    pub(crate) fn token(self) -> Token {
        Token((self.0 >> 32) as u16)
    }

    /// The command's number and version: 12 and 4 bits.
    fn command(self) -> (u16, u16) {
        let id = (self.0 >> 48) as u16;
        (id >> 4, id & 0xf)
    }

    /// The header of the response.
    pub(crate) fn ended(self, status: Status) -> Self {
        Self(self.0 & !(0xff << 16) | (status as u64) << 16)
    }

    pub(crate) fn with_token(self, token: Token) -> Self {
        Self(self.0 & !(0xffff << 32) | u64::from(token.0) << 32)
    }
}

/// What a command asks for. `0x004` and the like mean different things for different tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Opens a container.
    OpenContainer {
        id: u32,
    },
    /// Opens an object of the portal's container.
    OpenObject {
        kind: Kind,
        id: u32,
    },
    Close,
    /// The version of the commands of a kind.
    KindVersion {
        kind: Kind,
    },
    /// The container that the portal belongs to.
    ContainerId,
    /// The Management Complex's own version.
    Version,
    Enable,
    Disable,
    IsEnabled,
    Attributes,
    /// Resets what the token stands for, or a child container of it, and `recursive`ly those in it
    /// (not so with `DPRC_RESET_OPTION_NON_RECURSIVE`, which the command's second version has).
    Reset {
        container: u32,
        recursive: bool,
    },
    /// Where its message goes: here an eventfd takes it, so that only the index matters.
    SetIrq {
        index: u8,
    },
    SetIrqEnable {
        index: u8,
        enable: bool,
    },
    GetIrqEnable {
        index: u8,
    },
    SetIrqMask {
        index: u8,
        mask: u32,
    },
    GetIrqMask {
        index: u8,
    },
    IrqStatus {
        index: u8,
    },
    ClearIrqStatus {
        index: u8,
        status: u32,
    },
    ObjectCount,
    Object {
        index: u32,
    },
    ObjectRegion {
        name: [u8; 16],
        id: u32,
        region: u8,
    },
    /// Where an object's message goes, as [`Request::SetIrq`].
    SetObjectIrq {
        name: [u8; 16],
        id: u32,
        index: u8,
    },
}

fn low(word: u64) -> u32 {
    word as u32
}

fn high(word: u64) -> u32 {
    low(word >> 32)
}

fn byte(word: u64, at: u32) -> u8 {
    (word >> (8 * at)) as u8
}

fn name(words: [u64; 2]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&words[0].to_le_bytes());
    bytes[8..].copy_from_slice(&words[1].to_le_bytes());
    bytes
}

impl Request {
    /// What the words say; nothing that is known, if there is none.
    pub(crate) fn decode(words: &[u64; WORDS]) -> Option<Self> {
        let [header, first, _, third, fourth, fifth, ..] = *words;
        Some(match Header(header).command() {
            (0x800, 1) => Self::Close,
            (0x805, 1) => Self::OpenContainer { id: low(first) },
            (0x80b, 1) => Self::OpenObject { kind: Kind::Dpmcp, id: low(first) },
            (0x804, 1) => Self::OpenObject { kind: Kind::Dpbp, id: low(first) },
            (0x808, 1) => Self::OpenObject { kind: Kind::Dpcon, id: low(first) },
            (0x831, 1) => Self::Version,
            (0x830, 1) => Self::ContainerId,
            (0xa05, 1) => Self::KindVersion { kind: Kind::Dprc },
            (0xa0b, 1) => Self::KindVersion { kind: Kind::Dpmcp },
            (0xa04, 1) => Self::KindVersion { kind: Kind::Dpbp },
            (0xa08, 1) => Self::KindVersion { kind: Kind::Dpcon },
            (0x002, 1) => Self::Enable,
            (0x003, 1) => Self::Disable,
            (0x004, 1) => Self::Attributes,
            (0x005, 1) => Self::Reset { container: low(first), recursive: true },
            (0x005, 2) => Self::Reset { container: low(first), recursive: high(first) & 1 == 0 },
            (0x006, 1) => Self::IsEnabled,
            (0x010, 1) => Self::SetIrq { index: byte(first, 4) },
            (0x012, 1) => {
                Self::SetIrqEnable { enable: byte(first, 0) & 1 != 0, index: byte(first, 4) }
            }
            (0x013, 1) => Self::GetIrqEnable { index: byte(first, 4) },
            (0x014, 1) => Self::SetIrqMask { mask: low(first), index: byte(first, 4) },
            (0x015, 1) => Self::GetIrqMask { index: byte(first, 4) },
            (0x016, 1) => Self::IrqStatus { index: byte(first, 4) },
            (0x017, 1) => Self::ClearIrqStatus { status: low(first), index: byte(first, 4) },
            (0x159, 1) => Self::ObjectCount,
            (0x15a, 1) => Self::Object { index: low(first) },
            (0x15e, 1 | 2) => Self::ObjectRegion {
                id: low(first),
                region: byte(first, 6),
                name: name([fourth, fifth]),
            },
            (0x15f, 1) => Self::SetObjectIrq {
                index: byte(first, 4),
                id: high(third),
                name: name([fourth, fifth]),
            },
            _ => return None,
        })
    }
}

/// The parameters of a response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) params: [u64; WORDS - 1],
    /// The token that was opened.
    pub(crate) token: Option<Token>,
}

impl Response {
    /// Nothing but that it worked.
    pub(crate) fn done() -> Self {
        Self::default()
    }

    pub(crate) fn token(token: Token) -> Self {
        Self { token: Some(token), ..Self::default() }
    }

    /// One 64-bit parameter, made of two halves.
    pub(crate) fn halves(mut self, at: usize, low: u32, high: u32) -> Self {
        self.params[at] = u64::from(low) | u64::from(high) << 32;
        self
    }

    pub(crate) fn word(mut self, at: usize, word: u64) -> Self {
        self.params[at] = word;
        self
    }

    /// 16 bytes of text, padded with zeros.
    pub(crate) fn text(mut self, at: usize, text: &str) -> Self {
        let mut bytes = [0; 16];
        let length = text.len().min(15);
        bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        let (first, second) = bytes.split_at(8);
        for (word, bytes) in self.params[at..at + 2].iter_mut().zip([first, second]) {
            *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_keeps_what_it_has() {
        // DPRC_CMDID_OPEN, ready, high priority.
        let header = Header(0x8051_0000_0001_8000);
        assert!(header.is_ready());
        assert_eq!(header.command(), (0x805, 1));
        let ended = header.ended(Status::UnsupportedOperation).with_token(Token(0x1234));
        assert_eq!(ended, Header(0x8051_1234_000b_8000));
        assert!(!ended.is_ready());
        assert_eq!(ended.token(), Token(0x1234));
    }

    #[test]
    fn text_is_in_the_order_of_its_bytes() {
        let response = Response::done().text(3, "dpmcp");
        assert_eq!(response.params[3].to_le_bytes(), *b"dpmcp\0\0\0");
        let long = Response::done().text(3, "abcdefghijklmnopqrst");
        assert_eq!(name([long.params[3], long.params[4]]), *b"abcdefghijklmno\0");
    }

    #[test]
    fn other_versions_are_other_commands() {
        let words = |header| [header, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Request::decode(&words(0x1591 << 48)), Some(Request::ObjectCount));
        assert_eq!(Request::decode(&words(0x1592 << 48)), None);
        assert_eq!(Request::decode(&words(0)), None);
    }
}
