//! A device's input from outside, for a capture: a feature of this project's, beside those of
//! [`set`](crate::set).
//!
//! | index | operation | data |
//! | --- | --- | --- |
//! | [`INPUT_LOG`] 0x7f02 | SET | none: the server records from now on, until the device's last close |
//! | | GET | none; the reply has what was recorded since the last GET ([`InputLog::encode`]) |
//!
//! A device without input from outside does not have the feature (`ENOTTY`).
//!
//! The data of GET is a structure of 16 bytes: how many calls of the device there were since SET, 8
//! bytes; flags, 4 bytes, of which bit 0 says that input was lost; the number of entries, 4 bytes. An
//! entry is the number of a call, 8 bytes; when it arrived, 4 bytes (0 before the device was opened, 1
//! after this call, 2 within it); the length of what follows, 4 bytes; the input; zeros up to a
//! multiple of 8 bytes.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{DecodeError, EINVAL};

/// The feature that records a device's input. SET and GET.
pub const INPUT_LOG: u16 = 0x7f02;

const LOST: u32 = 1 << 0;
const ALIGN: usize = 8;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Head {
    calls: u64,
    flags: u32,
    count: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct EntryHead {
    call: u64,
    when: u32,
    len: u32,
}

/// When input arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputWhen {
    /// Before the device was opened.
    Before,
    /// After the call of this number, counted from 1; 0 for before the first.
    After(u64),
    /// Within the call of this number.
    Within(u64),
}

/// Input that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// When.
    pub when: InputWhen,
    /// What; only the device understands it.
    pub bytes: Vec<u8>,
}

/// What was recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InputLog {
    /// Calls of the device since the beginning.
    pub calls: u64,
    /// Some input was dropped, because it was not asked for in time.
    pub lost: bool,
    /// What arrived since the last time, in order.
    pub inputs: Vec<Input>,
}

impl InputLog {
    /// The data of the feature.
    pub fn encode(&self) -> Vec<u8> {
        let flags = if self.lost { LOST } else { 0 };
        let head = Head { calls: self.calls, flags, count: self.inputs.len() as u32 };
        let mut data = head.as_bytes().to_vec();
        for input in &self.inputs {
            let (when, call) = match input.when {
                InputWhen::Before => (0, 0),
                InputWhen::After(call) => (1, call),
                InputWhen::Within(call) => (2, call),
            };
            let head = EntryHead { call, when, len: input.bytes.len() as u32 };
            data.extend_from_slice(head.as_bytes());
            data.extend_from_slice(&input.bytes);
            data.resize(data.len().next_multiple_of(ALIGN), 0);
        }
        data
    }

    /// Reads the data of the feature.
    ///
    /// # Errors
    /// `EINVAL`: it ends early, or is malformed.
    pub fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        const SHORT: DecodeError = DecodeError::new(EINVAL, "an input log that is truncated");
        const WHEN: DecodeError = DecodeError::new(EINVAL, "input of an unknown time");
        let (head, mut rest) = Head::read_from_prefix(data).map_err(|_| SHORT)?;
        let mut inputs = Vec::new();
        for _ in 0..head.count {
            let (entry, behind) = EntryHead::read_from_prefix(rest).map_err(|_| SHORT)?;
            let when = match entry.when {
                0 => InputWhen::Before,
                1 => InputWhen::After(entry.call),
                2 => InputWhen::Within(entry.call),
                _ => return Err(WHEN),
            };
            let len = entry.len as usize;
            let bytes = behind.get(..len).ok_or(SHORT)?.to_vec();
            rest = behind.get(len.next_multiple_of(ALIGN)..).ok_or(SHORT)?;
            inputs.push(Input { when, bytes });
        }
        Ok(Self { calls: head.calls, lost: head.flags & LOST != 0, inputs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> InputLog {
        let input = |when, bytes: &[u8]| Input { when, bytes: bytes.to_vec() };
        let inputs = vec![
            input(InputWhen::Before, &[]),
            input(InputWhen::After(0), b"12345678"),
            input(InputWhen::Within(7), b"x"),
        ];
        InputLog { calls: 9, lost: true, inputs }
    }

    #[test]
    fn decoded_log_is_what_was_encoded() {
        for log in [example(), InputLog::default()] {
            assert_eq!(InputLog::decode(&log.encode()).unwrap(), log);
        }
    }

    #[test]
    fn truncated_or_changed_log_is_refused_or_decoded() {
        let whole = example().encode();
        for end in 0..whole.len() {
            assert_eq!(InputLog::decode(&whole[..end]).unwrap_err().errno, EINVAL, "{end}");
        }
        for at in 0..whole.len() {
            for byte in [0, 1, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = byte;
                let _ = InputLog::decode(&bytes);
            }
        }
    }
}
