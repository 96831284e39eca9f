//! What people and programs are shown: one set of structures for the API, its OpenAPI document
//! and the command line, so that a thing has the same name everywhere.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// A device in a list.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct DeviceSummary {
    /// Its name; a mediated device's is its UUID.
    pub(crate) name: String,
    /// The model that it was made of; for a mediated device, parent and type.
    pub(crate) model: String,
    /// The name of its device set.
    pub(crate) set: String,
    /// How it is.
    pub(crate) state: DeviceState,
    /// How many files it has.
    pub(crate) open: usize,
    /// Where clients connect, if that is a path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) socket: Option<String>,
}

/// How a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DeviceState {
    /// Nobody has it open.
    Idle,
    /// It is in use.
    Open,
    /// It is in the error state until it is reset.
    Failed,
    /// It is being unregistered.
    Leaving,
}

/// A device with all that there is to know of it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Device {
    #[serde(flatten)]
    pub(crate) summary: DeviceSummary,
    /// Its number, never used twice by one daemon.
    pub(crate) number: u64,
    /// Where it is on its bus, e.g. `0000:01:02.0`, if it has a place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) location: Option<String>,
    /// What kind of device it is: `pci`, `fsl-mc`, `platform`.
    pub(crate) flags: Vec<&'static str>,
    /// Who has it open.
    pub(crate) files: Vec<File>,
    /// Its regions, but those that are not there.
    pub(crate) regions: Vec<Region>,
    /// Its interrupts, likewise.
    pub(crate) interrupts: Vec<Interrupt>,
    /// Its clients' memory.
    pub(crate) dma: Dma,
    /// Its clients' connections.
    pub(crate) connections: Vec<Connection>,
}

/// One open of a device.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct File {
    /// Its number, never used twice by one daemon.
    pub(crate) number: u64,
    /// The device's name.
    pub(crate) device: String,
    /// Who holds it.
    pub(crate) owner: Owner,
    /// When it was opened (RFC 3339).
    pub(crate) since: String,
}

/// Who holds a file.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Owner {
    /// Another process, as the kernel vouches for it.
    Peer {
        /// Process id; 0: of another pid namespace.
        pid: i32,
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    },
    /// The daemon itself.
    Daemon {
        /// What for.
        purpose: String,
    },
}

/// A region of a device.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Region {
    /// Its number.
    pub(crate) index: u32,
    /// What a PCI function has there, e.g. `BAR 0`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// Size in bytes.
    pub(crate) size: u64,
    /// Allowed accesses: `r`, `w`, `rw`.
    pub(crate) access: &'static str,
    /// Bytes that clients may map.
    pub(crate) mappable: u64,
}

/// An interrupt index of a device.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Interrupt {
    /// Its number.
    pub(crate) index: u32,
    /// What a PCI function has there, e.g. `MSI-X`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<&'static str>,
    /// How many vectors it has.
    pub(crate) vectors: u32,
    /// Whether a client has set it up.
    pub(crate) enabled: bool,
    /// Signals sent, of all its vectors.
    pub(crate) signalled: u64,
    /// Triggers held back by a mask.
    pub(crate) held: u64,
    /// Triggers that went nowhere, as the index was not set up.
    pub(crate) lost: u64,
}

/// The memory of a device's clients.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Dma {
    /// How many windows are mapped.
    pub(crate) windows: usize,
    /// Their bytes in all.
    pub(crate) bytes: u64,
    /// The first of them.
    pub(crate) first: Vec<Window>,
}

/// A DMA window.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Window {
    /// The first and the last IO virtual address, hexadecimal.
    pub(crate) iova: String,
    /// Allowed accesses: `r`, `w`, `rw`.
    pub(crate) access: &'static str,
    /// The file that mapped it.
    pub(crate) file: u64,
    /// How it is reached: `memory`, or `messages`.
    pub(crate) by: &'static str,
}

/// A client's connection.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Connection {
    /// Who is at the other end.
    pub(crate) owner: Owner,
    /// Messages received.
    pub(crate) messages: u64,
    /// Bytes received.
    pub(crate) bytes_received: u64,
    /// Bytes of replies.
    pub(crate) bytes_sent: u64,
    /// Commands refused.
    pub(crate) errors: u64,
}

/// A device set: the devices that share one lock around opening, and are reset together.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Set {
    /// Its name; that of a device's own set is the device's.
    pub(crate) name: String,
    /// How many of its members are open.
    pub(crate) open: usize,
    /// Its members.
    pub(crate) members: Vec<Member>,
}

/// A member of a device set.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Member {
    #[serde(flatten)]
    pub(crate) device: DeviceSummary,
    /// Who has it open.
    pub(crate) files: Vec<File>,
}

/// A parent of mediated devices.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Parent {
    /// Its name.
    pub(crate) name: String,
    /// The model that it was made of.
    pub(crate) model: String,
    /// It is being unregistered.
    pub(crate) leaving: bool,
    /// What it offers.
    pub(crate) types: Vec<Type>,
    /// Its instances.
    pub(crate) instances: Vec<Uuid>,
}

/// A type of mediated device.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Type {
    /// The parent that offers it.
    pub(crate) parent: String,
    /// Its name among the parent's types.
    #[serde(rename = "type")]
    pub(crate) id: String,
    /// Its name for people.
    pub(crate) name: String,
    /// What it is.
    pub(crate) description: String,
    /// The device's kind: `vfio-pci`.
    pub(crate) device_api: String,
    /// How many more instances there can be.
    pub(crate) available: u32,
    /// What can be set of its instances.
    pub(crate) attributes: Vec<Attribute>,
}

/// An attribute of a type's instances.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Attribute {
    /// Its name.
    pub(crate) name: String,
    /// What may be written.
    pub(crate) values: String,
    /// What it does.
    pub(crate) summary: String,
    /// It can be set; otherwise only read.
    pub(crate) writable: bool,
}

/// A mediated device in a list.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct InstanceSummary {
    /// Its UUID, which is its device's name.
    pub(crate) uuid: Uuid,
    /// Its parent.
    pub(crate) parent: String,
    /// Its type.
    #[serde(rename = "type")]
    pub(crate) type_id: String,
    /// How its device is.
    pub(crate) state: DeviceState,
    /// How many files it has.
    pub(crate) open: usize,
    /// Where clients connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) socket: Option<String>,
}

/// A mediated device with all that there is to know of it.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Instance {
    #[serde(flatten)]
    pub(crate) summary: InstanceSummary,
    /// Its attributes now.
    pub(crate) attributes: BTreeMap<String, String>,
    /// When its definition starts it; `null`: it has none, and is gone once it is removed.
    pub(crate) defined: Option<Start>,
    /// The device.
    pub(crate) device: Device,
}

/// When a definition's instance starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Start {
    /// With the daemon.
    Auto,
    /// When asked for.
    Manual,
}

/// A lasting definition of a mediated device.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Definition {
    /// Its UUID.
    pub(crate) uuid: Uuid,
    /// The parent that makes it.
    pub(crate) parent: String,
    /// Its type.
    #[serde(rename = "type")]
    pub(crate) type_id: String,
    /// When it starts.
    pub(crate) start: Start,
    /// There is an instance of it now.
    pub(crate) running: bool,
    /// What is set when it starts, in this order.
    pub(crate) attributes: Vec<Setting>,
}

/// An attribute and its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Setting {
    /// The attribute.
    pub(crate) name: String,
    /// Its value.
    pub(crate) value: String,
}

/// Definitions, and the files that are none.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Definitions {
    /// The definitions, by parent and UUID.
    pub(crate) definitions: Vec<Definition>,
    /// Files that could not be read.
    pub(crate) damaged: Vec<Damaged>,
}

/// A file that is no definition.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Damaged {
    /// Where it was found.
    pub(crate) path: String,
    /// What is wrong with it.
    pub(crate) why: String,
    /// Where it is now; `null`: where it was.
    pub(crate) set_aside_as: Option<String>,
}

/// The daemon itself.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Daemon {
    /// The program's version.
    pub(crate) version: &'static str,
    /// Its process id.
    pub(crate) pid: u32,
    /// When it was ready (RFC 3339).
    pub(crate) since: String,
    /// How many devices it has.
    pub(crate) devices: usize,
    /// How many of them are mediated.
    pub(crate) instances: usize,
    /// How many threads serve them.
    pub(crate) threads: usize,
}
