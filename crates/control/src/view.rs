//! The replies of the API: one set of structures for the daemon, its OpenAPI document, clients and
//! the command line, so that a thing has the same name everywhere.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

pub use vfiod_manager::{Changes, EventKind, Origin, Start};

/// A device in a list.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeviceSummary {
    /// Its name; a mediated device's is its UUID.
    pub name: String,
    /// The model that it was made of; for a mediated device, parent and type.
    pub model: String,
    /// The name of its device set.
    pub set: String,
    /// How it is.
    pub state: DeviceState,
    /// How many files it has.
    pub open: usize,
    /// Where clients connect, if that is a path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// Where it comes from.
    pub origin: Origin,
}

/// How a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeviceState {
    /// Nobody has it open.
    Idle,
    /// It is in use.
    Open,
    /// It is in the error state until it is reset.
    Failed,
    /// It is in the error state, and some of its work does not end: it cannot be reset before that.
    Stuck,
    /// It is being unregistered.
    Leaving,
}

/// A device with all that there is to know of it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Device {
    /// What a list says of it.
    #[serde(flatten)]
    pub summary: DeviceSummary,
    /// Its number, never used twice by one daemon.
    pub number: u64,
    /// Where it is on its bus, e.g. `0000:01:02.0`, if it has a place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// Why it is in the error state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// A state was restored to it, which whoever opens it next finds.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restored: bool,
    /// What kind of device it is: `pci`, `fsl-mc`, `platform`.
    pub flags: Vec<String>,
    /// Who has it open.
    pub files: Vec<File>,
    /// Its regions, without those of size 0.
    pub regions: Vec<Region>,
    /// Its interrupt indices, without those that have no vectors.
    pub interrupts: Vec<Interrupt>,
    /// Its tasks.
    pub tasks: Vec<Task>,
    /// Its clients' memory.
    pub dma: Dma,
    /// Its clients' connections.
    pub connections: Vec<Connection>,
    /// What its clients have of what all devices share.
    #[serde(default)]
    pub limits: Vec<Limit>,
    /// What its model reports of itself, if it reports anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Object)]
    pub model_status: Option<serde_json::Value>,
}

/// How much is in use of something that all devices share.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Limit {
    /// What it is: `connections`, `threads`, `descriptors`, `mappings`, `address_space` (in bytes),
    /// `page_tables` (in bytes), `memory` (in bytes).
    pub name: String,
    /// What the device has for its own clients.
    pub reserved: u64,
    /// How much of that is in use.
    pub reserved_used: u64,
    /// What all devices have beyond their own; one user has half of it at most.
    pub common: u64,
    /// How much of that is in use, by clients of all devices.
    pub common_used: u64,
}

/// One open of a device.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct File {
    /// Its number, never used twice by one daemon.
    pub number: u64,
    /// The device's name.
    pub device: String,
    /// Who holds it.
    pub owner: Owner,
    /// When it was opened (RFC 3339).
    pub since: String,
}

/// Who holds a file.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Owner {
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
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Region {
    /// Its number.
    pub index: u32,
    /// What a PCI function has there, e.g. `BAR 0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Size in bytes.
    pub size: u64,
    /// Allowed accesses: `r`, `w`, `rw`.
    pub access: String,
    /// Bytes that clients may map.
    pub mappable: u64,
}

/// An interrupt index of a device.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Interrupt {
    /// Its number.
    pub index: u32,
    /// What a PCI function has there, e.g. `MSI-X`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How many vectors it has.
    pub vectors: u32,
    /// Whether a client has set it up.
    pub enabled: bool,
    /// Signals sent, of all its vectors.
    pub signalled: u64,
    /// Triggers that became pending because of a mask.
    pub held: u64,
    /// Triggers that were lost, because no client had set up the index.
    pub lost: u64,
}

/// A task of a device.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Task {
    /// The name that the model gave it.
    pub name: String,
    /// What it does at the moment.
    pub state: String,
    /// Milliseconds since it was started.
    pub age_ms: u64,
    /// How often it was run.
    pub runs: u64,
    /// Microseconds that it ran in all.
    pub run_us: u64,
}

/// The memory of a device's clients.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Dma {
    /// How many mappings there are.
    pub mappings: usize,
    /// Their bytes in all.
    pub bytes: u64,
    /// The first of them.
    pub first: Vec<Mapping>,
}

/// A DMA mapping.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Mapping {
    /// The first and the last IO virtual address, hexadecimal.
    pub iova: String,
    /// Allowed accesses: `r`, `w`, `rw`.
    pub access: String,
    /// The file that mapped it.
    pub file: u64,
    /// How it is reached: `memory`, or `messages`.
    pub by: String,
}

/// A client's connection.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Connection {
    /// Who is at the other end.
    pub owner: Owner,
    /// Messages received.
    pub messages: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// Bytes of replies.
    pub bytes_sent: u64,
    /// Commands refused.
    pub errors: u64,
}

/// A device set: the devices that share one lock around opening, and are reset together.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Set {
    /// Its name; that of a device's own set is the device's.
    pub name: String,
    /// How many of its members are open.
    pub open: usize,
    /// Its members.
    pub members: Vec<Member>,
}

/// A member of a device set.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Member {
    /// What a list says of it.
    #[serde(flatten)]
    pub device: DeviceSummary,
    /// Who has it open.
    pub files: Vec<File>,
}

/// A parent of mediated devices.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Parent {
    /// Its name.
    pub name: String,
    /// The model that it was made of.
    pub model: String,
    /// It is being unregistered.
    pub leaving: bool,
    /// What it offers.
    pub types: Vec<Type>,
    /// Its instances.
    pub instances: Vec<Uuid>,
}

/// A type of mediated device.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Type {
    /// The parent that offers it.
    pub parent: String,
    /// Its name among the parent's types.
    #[serde(rename = "type")]
    pub id: String,
    /// Its name for people.
    pub name: String,
    /// What it is.
    pub description: String,
    /// The device's kind: `vfio-pci`.
    pub device_api: String,
    /// How many more instances there can be.
    pub available: u32,
    /// What can be set of its instances.
    pub attributes: Vec<Attribute>,
}

/// An attribute of a type's instances.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Attribute {
    /// Its name.
    pub name: String,
    /// What may be written.
    pub values: String,
    /// What it does.
    pub summary: String,
    /// It can be set; otherwise only read.
    pub writable: bool,
}

/// A mediated device in a list.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct InstanceSummary {
    /// Its UUID, which is its device's name.
    pub uuid: Uuid,
    /// Its parent.
    pub parent: String,
    /// Its type.
    #[serde(rename = "type")]
    pub type_id: String,
    /// How its device is.
    pub state: DeviceState,
    /// How many files it has.
    pub open: usize,
    /// Where clients connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
}

/// A mediated device with all that there is to know of it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// What a list says of it.
    #[serde(flatten)]
    pub summary: InstanceSummary,
    /// Its attributes now.
    pub attributes: BTreeMap<String, String>,
    /// When its definition starts it; `null`: it has none, and does not outlast its removal.
    pub defined: Option<Start>,
    /// The device.
    pub device: Device,
}

/// A lasting definition of a mediated device.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Definition {
    /// Its UUID.
    pub uuid: Uuid,
    /// The parent that makes it.
    pub parent: String,
    /// Its type.
    #[serde(rename = "type")]
    pub type_id: String,
    /// When it starts.
    pub start: Start,
    /// There is an instance of it now.
    pub running: bool,
    /// Why it did not start when that was tried last, if it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// What is set when it starts, in this order.
    pub attributes: Vec<Setting>,
}

/// An attribute and its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// The attribute.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// Definitions, and the files that are none.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Definitions {
    /// The definitions, by parent and UUID.
    pub definitions: Vec<Definition>,
    /// Files that could not be read.
    pub damaged: Vec<Damaged>,
}

/// A file that is no definition.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Damaged {
    /// Where it was found.
    pub path: String,
    /// What is wrong with it.
    pub why: String,
    /// Where it is now; `null`: where it was.
    pub set_aside_as: Option<String>,
}

/// The daemon itself.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Daemon {
    /// The program's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// When it was ready (RFC 3339).
    pub since: String,
    /// How many devices it has.
    pub devices: usize,
    /// How many of them are mediated.
    pub instances: usize,
    /// How many threads serve them.
    pub threads: usize,
    /// Connections to the control API.
    pub control: Control,
    /// Where it has a holder: how the processes before it have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarts: Option<Restarts>,
}

/// How the processes that a holder has started before this one have ended: how many, by cause.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Restarts {
    /// The holder's process id.
    pub holder: u32,
    /// By a signal, such as SIGSEGV, or SIGKILL where memory ran out.
    pub signal: u64,
    /// By `exit`.
    pub exit: u64,
    /// Killed by the holder, as they had closed their link with it.
    pub link: u64,
    /// In a way that the kernel did not say.
    pub unknown: u64,
    /// How the last one ended; null if this process is the first.
    pub last: Option<String>,
    /// Milliseconds from that end to the moment when this process served.
    pub blackout_ms: Option<u64>,
}

/// Connections to the control API: how many there are, and may be.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct Control {
    /// There are now.
    pub connections: usize,
    /// There may be.
    pub max: usize,
    /// Of these, for operators only: root and the daemon's own user.
    pub operators_max: usize,
    /// One user can have of the others.
    pub user_max: usize,
}

/// What was revoked.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, ToSchema)]
pub struct Revoked {
    /// How many files.
    pub files: usize,
}

/// An event of the daemon.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Record {
    /// Counts up by one with each event of the daemon; the core's events and the daemon's own are one
    /// sequence. What was there when the watch began has the number of the last event before.
    pub number: u64,
    /// When it happened (RFC 3339).
    pub time: String,
    /// What happened.
    pub event: EventKind,
    /// The name of the device, the parent or the definition.
    pub name: String,
    /// The device's number, never used twice by one daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<u64>,
    /// The device's set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
    /// The file that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<u64>,
    /// Who holds the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// How many files are open now; how often the users were asked; how many events were lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Why the device was reset: `open`, `client`, `function` or `set`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}
