//! What a device reports of itself to its operator.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

/// What a device reports of itself. The core asks without the device lock, also while a call of the device
/// runs or the device is stuck, and from any thread: an implementation reads atomics and short locks only,
/// waits for nobody, and reaches no guest memory. What it cannot read at once it leaves out.
pub trait Report: Send + Sync + 'static {
    /// How the device is. Shown as a tree, in the order of the fields.
    type Status: Serialize;

    /// How the device is now.
    fn status(&self) -> Self::Status;
}

/// A [`Report`] whatever its type.
pub(crate) trait AnyReport: Send + Sync {
    fn status(&self) -> serde_json::Result<Value>;
}

impl<R: Report> AnyReport for R {
    fn status(&self) -> serde_json::Result<Value> {
        serde_json::to_value(Report::status(self))
    }
}

/// What a device reports, until it is registered or for ever.
pub(crate) type SharedReport = Arc<dyn AnyReport>;
