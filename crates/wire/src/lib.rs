#![doc = include_str!("../README.md")]
//!
//! The source is the *vfio-user Protocol Specification* (version 0.0 as spoken by QEMU). All
//! numbers are in the host's byte order. The crate does no I/O and has no `unsafe`: the server
//! and the client crates move the bytes.
//!
//! * [`Header`]: the 16 bytes in front of everything; [`Command`], [`Kind`].
//! * [`Request::decode`]: every command a client sends, checked; a mistake is a [`DecodeError`]
//!   with the errno for the reply.
//! * [`payload`]: the fixed structures, for replies and for the client's side.
//! * [`Version`]: the negotiation.
//! * [`dirty`]: the log of pages that devices have written.
//! * [`set`]: device sets and their hot reset; [`input`]: what a capture needs of a device's input;
//!   [`space`]: devices that share an address space. Features of our own beyond the specification.
//!
//! # Extensions
//! Beyond the specification, for whoever looks for them; a peer that does not know them is not
//! disturbed. In DEVICE_FEATURE: indices 0x7f00 and 0x7f01 ([`set`]), 0x7f02 ([`input`]), 0x7f03
//! ([`space`]). In VERSION: the capability `vf_token`, which presents the token of an SR-IOV function ([`Capabilities::vf_token`]); the
//! kernel's index 0 sets it.

pub mod dirty;
mod header;
pub mod input;
pub mod payload;
mod region_info;
mod request;
pub mod set;
pub mod space;
mod version;

pub use header::{Command, HEADER_LEN, Header, Kind};
pub use region_info::{RegionReply, decode_region_info, encode_region_info};
pub use request::{FeatureOp, IrqAction, IrqData, MultiWrites, Request, UnmapScope};
pub use version::{Capabilities, MAX_JSON, Migration, TwinSocket, Version, parse_uuid};

/// `EINVAL`.
pub const EINVAL: u32 = 22;
/// `E2BIG`.
pub const E2BIG: u32 = 7;

/// A payload that does not hold together: the errno for the reply, and what is wrong.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct DecodeError {
    /// The errno to report.
    pub errno: u32,
    /// What is wrong.
    pub what: &'static str,
    #[source]
    source: Option<serde_json::Error>,
}

impl DecodeError {
    /// A refusal with an errno.
    pub const fn new(errno: u32, what: &'static str) -> Self {
        Self { errno, what, source: None }
    }

    pub(crate) fn because(mut self, source: serde_json::Error) -> Self {
        self.source = Some(source);
        self
    }
}
