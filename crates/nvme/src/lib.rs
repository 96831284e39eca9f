#![doc = include_str!("../README.md")]

mod admin;
mod bounce;
mod changes;
mod common;
mod controller;
mod counters;
mod denied;
mod disks;
mod error_recovery;
mod examine;
mod failures;
mod features;
mod identity;
mod io;
mod keeping;
mod kept;
mod limits;
mod namespace;
mod namespaces;
mod open;
mod operations;
mod options;
mod piece;
mod prp;
mod queues;
mod rate;
mod report;
mod sgl;
mod subsystem;
#[cfg(test)]
mod tests;
mod timestamp;
mod transfer;
mod vectors;

pub use controller::Nvme;
pub use disks::Disks;
pub use operations::NvmeOperation;
pub use options::{DoorbellsOption, IdentityOption, NvmeOptions};
pub use report::{
    CompletionQueueStatus, ControllerState, CounterStatus, LifeStatus, LimitStatus,
    NamespaceStatus, NvmeStatus, SubmissionQueueStatus, TimeStatus,
};
