//! The saved form of a device's interrupts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::FileId;

/// Stands for a descriptor in a saved state. Whoever saves gives it out, and finds the descriptor
/// by it at the restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FdToken(pub u64);

/// The state of a device's interrupts: an entry for each index, in order, with those vectors that
/// are not as after power-on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IrqState {
    /// The vectors of each index, by number.
    pub indices: Vec<BTreeMap<u32, VectorState>>,
}

/// The state of a vector.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VectorState {
    /// The level of the line.
    #[serde(skip_serializing_if = "is_false")]
    pub level: bool,
    /// A trigger that was not signalled yet.
    #[serde(skip_serializing_if = "is_false")]
    pub pending: bool,
    /// Masked by the client, or by itself (AUTOMASKED).
    #[serde(skip_serializing_if = "is_false")]
    pub client_masked: bool,
    /// Masked by the device.
    #[serde(skip_serializing_if = "is_false")]
    pub device_masked: bool,
    /// The eventfd that is signalled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trigger: Option<SavedEventFd>,
    /// The eventfd by which the client unmasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unmask: Option<SavedEventFd>,
}

/// An eventfd that a client set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedEventFd {
    /// The file that set it up.
    pub file: FileId,
    /// Stands for the descriptor.
    pub fd: FdToken,
}

fn is_false(value: &bool) -> bool {
    !value
}
