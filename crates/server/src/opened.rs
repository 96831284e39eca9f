//! The device that a connection has open.

use std::sync::Arc;

use vfiod_core::File;
use vfiod_quota::Payer;

use crate::clients::Counted;
use crate::gate::Gate;
use crate::limits::Quiet;
use crate::outgoing::Outgoing;

/// A file, and what everybody needs who calls it.
pub(crate) struct Opened {
    pub(crate) file: File,
    /// How many threads may be with the device.
    pub(crate) gate: Arc<Gate>,
    pub(crate) payer: Payer,
    pub(crate) quiet: Quiet,
    /// For as long as the file is there, its owner can be asked for ([`crate::peer`]).
    pub(crate) _outgoing: Arc<Outgoing>,
    /// Last, so that the connection counts until its file is released: a thread that serves one of its
    /// eventfds may be the last to let go of it.
    pub(crate) _counted: Arc<Counted>,
}
