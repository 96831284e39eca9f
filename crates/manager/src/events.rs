//! Events of the daemon, for watchers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use tokio::sync::broadcast;
use vfiod_core::event::{Event, Observer, Subject};
use vfiod_core::{Owner, ResetCause};

/// How many events a watcher may be behind before it loses the oldest.
const BACKLOG: usize = 8192;

/// An event.
#[derive(Clone, Debug)]
pub struct Record {
    /// Counts up by one with each event of the daemon.
    pub number: u64,
    /// When it happened.
    pub time: SystemTime,
    /// What happened.
    pub kind: EventKind,
    /// The name of the device, the parent or the definition.
    pub name: String,
    /// The device's set.
    pub set: Option<String>,
    /// The file that it is about.
    pub file: Option<u64>,
    /// Who holds the file.
    pub owner: Option<Owner>,
    /// How many files are open now; how often the users were asked; how many events were lost.
    pub count: Option<u64>,
    /// Why the device was reset.
    pub cause: Option<ResetCause>,
}

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A device set has its first member.
    SetCreated,
    /// A device set has lost its last member.
    SetGone,
    /// A device is visible.
    Registered,
    /// A device was removed.
    Unregistered,
    /// First open of a device.
    DeviceOpened,
    /// Last close of a device.
    DeviceClosed,
    /// A file was opened.
    FileOpened,
    /// A file was released.
    FileReleased,
    /// A file was revoked.
    FileRevoked,
    /// A device was reset.
    Reset,
    /// A device is in the error state.
    Failed,
    /// The users of a device were asked to close it.
    Requested,
    /// A parent is visible.
    ParentRegistered,
    /// A parent was removed.
    ParentUnregistered,
    /// A definition was added.
    Defined,
    /// A definition was changed.
    Modified,
    /// A definition was removed.
    Undefined,
    /// The watcher was too slow: so many events before this one were lost.
    Lost,
}

/// Hands every event to every watcher. Never waits for one.
pub(crate) struct Events {
    next: AtomicU64,
    watchers: broadcast::Sender<Record>,
}

impl Default for Events {
    fn default() -> Self {
        Self { next: AtomicU64::new(0), watchers: broadcast::Sender::new(BACKLOG) }
    }
}

impl Events {
    /// A watcher of all events from now on.
    pub(crate) fn watch(&self) -> broadcast::Receiver<Record> {
        self.watchers.subscribe()
    }

    /// Emits an event that the core does not know of.
    pub(crate) fn emit(&self, kind: EventKind, name: impl Into<String>) {
        self.send(|| Record::new(kind, name));
    }

    fn send(&self, record: impl FnOnce() -> Record) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if self.watchers.receiver_count() == 0 {
            return;
        }
        // Fails only if the last watcher has just been dropped.
        let _ = self.watchers.send(Record { number, ..record() });
    }
}

impl Record {
    fn new(kind: EventKind, name: impl Into<String>) -> Self {
        Self {
            number: 0,
            time: SystemTime::now(),
            kind,
            name: name.into(),
            set: None,
            file: None,
            owner: None,
            count: None,
            cause: None,
        }
    }

    /// The event that reports how many events a watcher has lost.
    pub fn lost(count: u64) -> Self {
        Self { count: Some(count), ..Self::new(EventKind::Lost, "events") }
    }

    fn about(kind: EventKind, subject: Subject<'_>) -> Self {
        Self { set: Some(subject.set.to_owned()), ..Self::new(kind, subject.name) }
    }
}

impl Observer for Events {
    fn event(&self, event: &Event<'_>) {
        let plain = |kind, subject| self.send(|| Record::about(kind, subject));
        match *event {
            Event::SetCreated(subject) => plain(EventKind::SetCreated, subject),
            Event::SetGone(subject) => plain(EventKind::SetGone, subject),
            Event::Registered(subject) => plain(EventKind::Registered, subject),
            Event::Unregistered(subject) => plain(EventKind::Unregistered, subject),
            Event::DeviceOpened(subject) => plain(EventKind::DeviceOpened, subject),
            Event::DeviceClosed(subject) => plain(EventKind::DeviceClosed, subject),
            Event::Failed(subject) => plain(EventKind::Failed, subject),
            Event::FileOpened { subject, file, owner, count } => self.send(|| Record {
                file: Some(file.0),
                owner: Some(owner.clone()),
                count: Some(count.into()),
                ..Record::about(EventKind::FileOpened, subject)
            }),
            Event::FileReleased { subject, file, count } => self.send(|| Record {
                file: Some(file.0),
                count: Some(count.into()),
                ..Record::about(EventKind::FileReleased, subject)
            }),
            Event::Revoked { subject, file } => self.send(|| Record {
                file: Some(file.0),
                ..Record::about(EventKind::FileRevoked, subject)
            }),
            Event::Requested { subject, n } => self.send(|| Record {
                count: Some(u64::from(n) + 1),
                ..Record::about(EventKind::Requested, subject)
            }),
            Event::Reset { subject, cause } => self
                .send(|| Record { cause: Some(cause), ..Record::about(EventKind::Reset, subject) }),
        }
    }
}
