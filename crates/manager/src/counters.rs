//! Counts of events, by device, for metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use vfiod_core::event::{Event, Observer, Subject};
use vfiod_core::{DeviceId, ResetCause};

/// Counts of a device's events, from its registration on.
#[derive(Debug, Default)]
pub struct Counters {
    /// Files opened.
    pub opens: AtomicU64,
    /// First opens.
    pub first_opens: AtomicU64,
    /// Files revoked.
    pub revoked: AtomicU64,
    /// How often its users were asked to close it.
    pub requests: AtomicU64,
    /// How often it came into the error state.
    pub failures: AtomicU64,
    /// Resets before a first open.
    pub resets_open: AtomicU64,
    /// Resets that a client asked for.
    pub resets_client: AtomicU64,
    /// Function-level resets.
    pub resets_function: AtomicU64,
    /// Resets of its whole set.
    pub resets_set: AtomicU64,
}

/// The counters of all devices that are registered.
#[derive(Debug, Default)]
pub(crate) struct AllCounters(RwLock<BTreeMap<DeviceId, (String, Arc<Counters>)>>);

impl AllCounters {
    /// Every device's counters, by name.
    pub(crate) fn all(&self) -> Vec<(String, Arc<Counters>)> {
        let all = vfiod_sync::read(&self.0);
        // Of two devices of one name the first is about to be forgotten.
        let by_name: BTreeMap<_, _> = all.values().cloned().collect();
        by_name.into_iter().collect()
    }

    fn count(&self, subject: Subject<'_>, counter: fn(&Counters) -> &AtomicU64) {
        if let Some((_, counters)) = vfiod_sync::read(&self.0).get(&subject.device) {
            counter(counters).fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Observer for AllCounters {
    fn event(&self, event: &Event<'_>) {
        match *event {
            Event::Registered(subject) => {
                let counters = (subject.name.to_owned(), Arc::default());
                vfiod_sync::write(&self.0).insert(subject.device, counters);
            }
            Event::Unregistered(subject) => {
                vfiod_sync::write(&self.0).remove(&subject.device);
            }
            Event::DeviceOpened(subject) => self.count(subject, |c| &c.first_opens),
            Event::FileOpened { subject, .. } => self.count(subject, |c| &c.opens),
            Event::Revoked { subject, .. } => self.count(subject, |c| &c.revoked),
            Event::Requested { subject, .. } => self.count(subject, |c| &c.requests),
            Event::Failed(subject) => self.count(subject, |c| &c.failures),
            Event::Reset { subject, cause } => self.count(
                subject,
                match cause {
                    ResetCause::Open => |c| &c.resets_open,
                    ResetCause::Client => |c| &c.resets_client,
                    ResetCause::Function => |c| &c.resets_function,
                    ResetCause::Set => |c| &c.resets_set,
                },
            ),
            _ => {}
        }
    }
}
