//! What a controller and its subsystem are called.

/// FR: the version of this crate.
pub(crate) const FIRMWARE: &str = env!("CARGO_PKG_VERSION");
/// MN.
pub(crate) const MODEL: &str = "vfiod NVMe disk";

/// What a controller and its subsystem are called (5.17.2.1). It does not change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) serial: String,
    pub(crate) model: String,
    /// SUBNQN.
    pub(crate) subsystem_name: String,
    /// CNTLID.
    pub(crate) controller: u16,
}
