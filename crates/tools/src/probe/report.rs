//! What a probe found: the data that both ways of printing share.

use serde::{Serialize, Serializer};

use super::space::Function;

/// A server and its device.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// The socket.
    pub(super) socket: String,
    /// The negotiated protocol.
    pub(super) protocol: Protocol,
    /// What DEVICE_GET_INFO says.
    pub(super) device: DeviceReport,
    /// Regions that are there.
    pub(super) regions: Vec<RegionReport>,
    /// Interrupt indices that are there.
    pub(super) irqs: Vec<IrqReport>,
    /// The PCI function, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pci: Option<Function>,
    /// The configuration space.
    #[serde(serialize_with = "as_hex", skip_serializing_if = "Vec::is_empty")]
    pub(super) config: Vec<u8>,
    /// Who is reset together with the device, where the server tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) set: Option<SetReport>,
    /// What the server refused, in words.
    pub(super) refusals: Vec<String>,
}

/// The negotiated protocol.
#[derive(Debug, Serialize)]
pub(super) struct Protocol {
    pub(super) major: u16,
    pub(super) minor: u16,
    /// What the server says it can do.
    pub(super) capabilities: vfiod_wire::Capabilities,
}

/// What DEVICE_GET_INFO says.
#[derive(Debug, Serialize)]
pub(super) struct DeviceReport {
    pub(super) flags: u32,
    pub(super) kind: &'static str,
    pub(super) resettable: bool,
    pub(super) num_regions: u32,
    pub(super) num_irqs: u32,
}

/// A region.
#[derive(Debug, Serialize)]
pub(super) struct RegionReport {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) mappable: bool,
    /// The parts that can be mapped, if not all of it.
    pub(super) areas: Vec<Area>,
    /// Type and subtype of a device-specific region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<(u32, u32)>,
}

/// A mappable part of a region.
#[derive(Debug, Serialize)]
pub(super) struct Area {
    pub(super) offset: u64,
    pub(super) size: u64,
}

/// An interrupt index.
#[derive(Debug, Serialize)]
pub(super) struct IrqReport {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) vectors: u32,
    pub(super) eventfd: bool,
    pub(super) maskable: bool,
    pub(super) automasked: bool,
    pub(super) noresize: bool,
}

/// A device set.
#[derive(Debug, Serialize)]
pub(super) struct SetReport {
    /// Nobody else has a member open.
    pub(super) reset_allowed: bool,
    pub(super) members: Vec<SetMemberReport>,
}

/// A member of a device set.
#[derive(Debug, Serialize)]
pub(super) struct SetMemberReport {
    pub(super) device: u64,
    pub(super) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) location: Option<String>,
    pub(super) open: bool,
    /// By this probe, or another connection of its process.
    pub(super) owned: bool,
    /// The device that is being probed.
    #[serde(rename = "self")]
    pub(super) itself: bool,
}

fn as_hex<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    serializer.serialize_str(&text)
}
