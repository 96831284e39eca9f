//! VERSION: what each side can do, in JSON (specification, "VFIO_USER_VERSION").

use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, IntoBytes};

use crate::payload::VersionNumbers;
use crate::{DecodeError, EINVAL};

/// Longest JSON that is looked at, bytes. Known clients send about 200.
pub const MAX_JSON: usize = 4096;

/// What one side can do. Absent members have the defaults of the specification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Descriptors that the sender takes in one message; absent: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_msg_fds: Option<u32>,
    /// Most bytes of one data transfer; absent: 1 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_data_xfer_size: Option<u64>,
    /// Most DMA windows at once; absent: 65535.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_dma_maps: Option<u64>,
    /// Page sizes of DMA windows, or'ed; absent: 4 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pgsizes: Option<u64>,
    /// A second socket for commands from server to client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub twin_socket: Option<TwinSocket>,
    /// REGION_WRITE_MULTI is understood.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write_multiple: Option<bool>,
    /// Dirty page tracking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migration: Option<Migration>,
    /// An extension of ours: the VF token that the client presents, a UUID
    /// ([`Capabilities::token`]). For a server that does not know it, a key to be ignored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vf_token: Option<String>,
    /// An extension of ours: the client knows features of ours, and so does a server whose reply has
    /// this, too. Other servers need not survive a DEVICE_FEATURE that they do not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vfiod_features: Option<bool>,
}

/// Parameters of the second socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TwinSocket {
    /// The sender can do it.
    #[serde(default)]
    pub supported: bool,
    /// Which descriptor of the reply it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd_index: Option<u32>,
}

/// Parameters of dirty page tracking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migration {
    /// Page size in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pgsize: Option<u64>,
    /// Largest bitmap in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bitmap_size: Option<u64>,
}

impl Capabilities {
    /// Most bytes of one data transfer that the sender takes.
    pub fn data_limit(&self) -> u64 {
        self.max_data_xfer_size.unwrap_or(1 << 20)
    }

    /// Most descriptors in one message that the sender takes.
    pub fn fd_limit(&self) -> u32 {
        self.max_msg_fds.unwrap_or(1)
    }

    /// The token that the sender presents.
    ///
    /// # Errors
    /// `EINVAL`: it is no UUID.
    pub fn token(&self) -> Result<Option<[u8; 16]>, DecodeError> {
        let Some(text) = &self.vf_token else { return Ok(None) };
        let token = parse_uuid(text);
        token.map(Some).ok_or(DecodeError::new(EINVAL, "VERSION with a vf_token that is no UUID"))
    }

    /// Whether the sender offers the second socket.
    pub fn wants_twin_socket(&self) -> bool {
        self.twin_socket.is_some_and(|twin| twin.supported)
    }
}

/// The bytes of a UUID in its usual form, as the kernel's `uuid_parse` reads it.
pub fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let bytes = text.as_bytes();
    let dash = |at: usize| matches!(at, 8 | 13 | 18 | 23);
    let well_formed = bytes.len() == 36
        && bytes.iter().enumerate().all(|(at, byte)| match dash(at) {
            true => *byte == b'-',
            false => byte.is_ascii_hexdigit(),
        });
    if !well_formed {
        return None;
    }
    let digits: String = text.chars().filter(|digit| *digit != '-').collect();
    Some(u128::from_str_radix(&digits, 16).ok()?.to_be_bytes())
}

#[derive(Serialize)]
struct Document<'a> {
    capabilities: &'a Capabilities,
}

/// Objects only: serde by itself would take an array for a struct.
fn read_capabilities(json: &[u8]) -> Result<Capabilities, serde_json::Error> {
    type Object = serde_json::Map<String, serde_json::Value>;
    let mut document: Object = serde_json::from_slice(json)?;
    let Some(capabilities) = document.remove("capabilities") else {
        return Ok(Capabilities::default());
    };
    let capabilities: Object = serde_json::from_value(capabilities)?;
    serde_json::from_value(capabilities.into())
}

/// A VERSION message or its reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// Incompatible changes.
    pub major: u16,
    /// Compatible changes.
    pub minor: u16,
    /// What the sender can do.
    pub capabilities: Capabilities,
}

impl Version {
    /// Reads a payload: JSON with or without a NUL at its end, or none at all; unknown members
    /// are ignored.
    ///
    /// # Errors
    /// `EINVAL`: shorter than the numbers, JSON over [`MAX_JSON`], not UTF-8, malformed, or a
    /// member of the wrong type.
    pub fn decode(payload: &[u8]) -> Result<Self, DecodeError> {
        let Ok((numbers, json)) = VersionNumbers::read_from_prefix(payload) else {
            return Err(DecodeError::new(EINVAL, "VERSION shorter than its version numbers"));
        };
        if json.len() > MAX_JSON {
            return Err(DecodeError::new(EINVAL, "VERSION with over 4096 bytes of JSON"));
        }
        let json = json.split(|&byte| byte == 0).next().unwrap_or_default();
        let capabilities = if json.is_empty() {
            Capabilities::default()
        } else {
            read_capabilities(json).map_err(|error| {
                DecodeError::new(EINVAL, "VERSION with JSON that cannot be read").because(error)
            })?
        };
        Ok(Self { major: numbers.major, minor: numbers.minor, capabilities })
    }

    /// The payload, NUL-terminated.
    pub fn encode(&self) -> Vec<u8> {
        let numbers = VersionNumbers { major: self.major, minor: self.minor };
        let document = Document { capabilities: &self.capabilities };
        let mut payload = numbers.as_bytes().to_vec();
        // Numbers, booleans and structures of them always have a JSON form.
        payload.extend(serde_json::to_vec(&document).unwrap_or_else(|_| b"{}".to_vec()));
        payload.push(0);
        payload
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids() {
        let bytes = parse_uuid("bd8d9d2b-5a5f-4F5A-a211-f591514ba1f3").unwrap();
        assert_eq!(bytes[..6], [0xbd, 0x8d, 0x9d, 0x2b, 0x5a, 0x5f]);
        assert_eq!(bytes[15], 0xf3);
        for wrong in [
            "",
            "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f",
            "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f30",
            "bd8d9d2b05a5f-4f5a-a211-f591514ba1f3",
            "+d8d9d2b-5a5f-4f5a-a211-f591514ba1f3",
            "bd8d9d2b-5a5f-4f5a-a211-f591514ba1\u{e9}",
        ] {
            assert_eq!(parse_uuid(wrong), None, "{wrong}");
        }
    }
}
