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

    /// Whether the sender offers the second socket.
    pub fn wants_twin_socket(&self) -> bool {
        self.twin_socket.is_some_and(|twin| twin.supported)
    }
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
