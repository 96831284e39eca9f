//! Events of the registry as log lines.

use vfiod_core::event::{Event, Observer, Subject};
use vfiod_core::{Owner, OwnerIdentity};

/// Logs opens, closes, failures and revocations.
pub struct EventLog;

impl Observer for EventLog {
    fn event(&self, event: &Event<'_>) {
        match *event {
            Event::DeviceOpened(Subject { name, .. }) => {
                tracing::info!(device = name, "first open")
            }
            Event::FileOpened { subject, file, owner, count } => {
                let owner = owner_name(owner);
                tracing::info!(device = subject.name, file = file.0, owner, count, "opened");
            }
            Event::FileReleased { subject, file, count } => {
                tracing::info!(device = subject.name, file = file.0, count, "released");
            }
            Event::DeviceClosed(Subject { name, .. }) => {
                tracing::info!(device = name, "last close")
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
            | Event::Reset { .. }
            | Event::Unregistered(_)
            | Event::SetGone(_) => {}
        }
    }
}

/// An owner for people.
pub fn owner_name(owner: &Owner) -> String {
    match (owner.identity(), owner.credentials()) {
        (_, Some(peer)) => format!("pid {}, uid {}", peer.pid, peer.uid),
        (OwnerIdentity::InProcess(name), None) => name.clone(),
        (_, None) => owner.to_string(),
    }
}
