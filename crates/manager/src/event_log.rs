//! Events of the registry as log lines.

use vfiod_core::event::{Event, Observer, Subject};
use vfiod_core::{Owner, OwnerIdentity};

/// Logs failures, requests and revocations; opens and releases for those who look closer, as the
/// server logs each connection when it ends.
pub struct EventLog;

impl Observer for EventLog {
    fn event(&self, event: &Event<'_>) {
        match *event {
            Event::FileOpened { subject, file, owner, count } => {
                if !tracing::enabled!(tracing::Level::DEBUG) {
                    return;
                }
                let owner = owner_name(owner);
                tracing::debug!(device = subject.name, file = file.0, owner, count, "opened");
            }
            Event::FileReleased { subject, file, count } => {
                tracing::debug!(device = subject.name, file = file.0, count, "released");
            }
            Event::Failed(Subject { name, .. }) => {
                tracing::error!(device = name, "failed: in the error state until it is reset");
            }
            Event::Requested { subject, n } => {
                tracing::info!(device = subject.name, n, "asking users to close the device");
            }
            Event::Revoked { subject, file } => {
                tracing::warn!(device = subject.name, file = file.0, "file revoked");
            }
            // The core logs these itself, for those who look closer.
            Event::SetCreated(_)
            | Event::Registered(_)
            | Event::DeviceOpened(_)
            | Event::DeviceClosed(_)
            | Event::Reset { .. }
            | Event::Unregistered(_)
            | Event::SetGone(_) => {}
        }
    }
}

/// An owner for people.
pub fn owner_name(owner: &Owner) -> String {
    if let Some(peer) = owner.credentials() {
        return format!("pid {}, uid {}", peer.pid, peer.uid);
    }
    match owner.identity() {
        OwnerIdentity::InProcess(name) => name.clone(),
        _ => owner.to_string(),
    }
}
