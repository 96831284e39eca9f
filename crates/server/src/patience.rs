//! How long a connection waits for another client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::pool::{Alarm, Source, Watch};

/// How long a client waits for another one to have opened the device, and for the file of one that
/// has hung up to be released.
const LIMIT: Duration = Duration::from_secs(2);

/// The time that a request waits for other clients, without a thread.
pub(crate) struct Patience {
    deadline: Instant,
    /// Goes off at the deadline.
    alarm: Option<Alarm>,
}

impl Patience {
    /// From now on.
    pub(crate) fn new() -> Self {
        Self { deadline: Instant::now() + LIMIT, alarm: None }
    }

    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Wakes a source at the deadline.
    pub(crate) fn wake_at_deadline(&mut self, watch: &Watch, source: &Arc<dyn Source>) {
        if self.alarm.is_none() {
            let left = self.deadline.saturating_duration_since(Instant::now());
            self.alarm = Some(watch.pool().wake_after(left, watch, source));
        }
    }
}
