//! What happens, for whoever watches.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use serde::Serialize;
use tokio::sync::broadcast;
use utoipa::ToSchema;
use vfiod_core::ResetCause;
use vfiod_core::event::{Event, Observer, Subject};

use super::view::Owner;

/// How many events a watcher may be behind before it loses the oldest.
const BACKLOG: usize = 8192;

/// Something that happened.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Record {
    /// Counts up by one with each event of the daemon.
    pub(crate) number: u64,
    /// When (RFC 3339).
    pub(crate) time: String,
    /// What.
    pub(crate) event: Kind,
    /// The device's name, or that of the parent or the definition.
    pub(crate) name: String,
    /// The device's set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) set: Option<String>,
    /// The file that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) file: Option<u64>,
    /// Who holds the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) owner: Option<Owner>,
    /// How many files are open now; how often the users were asked; how many events were lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) count: Option<u64>,
    /// Why it was reset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cause: Option<&'static str>,
}

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    SetCreated,
    SetGone,
    Registered,
    Unregistered,
    DeviceOpened,
    DeviceClosed,
    FileOpened,
    FileReleased,
    FileRevoked,
    Reset,
    Failed,
    /// The users were asked to let go.
    Requested,
    ParentRegistered,
    ParentUnregistered,
    Defined,
    Modified,
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
    /// Everything from now on.
    pub(crate) fn watch(&self) -> broadcast::Receiver<Record> {
        self.watchers.subscribe()
    }

    /// Something happened that the core knows nothing of.
    pub(crate) fn tell(&self, event: Kind, name: impl Into<String>) {
        self.send(|| Record::new(event, name));
    }

    fn send(&self, record: impl FnOnce() -> Record) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if self.watchers.receiver_count() == 0 {
            return;
        }
        // Fails only if the last watcher has gone just now.
        let _ = self.watchers.send(Record { number, ..record() });
    }
}

impl Record {
    fn new(event: Kind, name: impl Into<String>) -> Self {
        Self {
            number: 0,
            time: super::moment(SystemTime::now()),
            event,
            name: name.into(),
            set: None,
            file: None,
            owner: None,
            count: None,
            cause: None,
        }
    }

    /// Tells a watcher what it has missed.
    pub(crate) fn lost(count: u64) -> Self {
        Self { count: Some(count), ..Self::new(Kind::Lost, "events") }
    }

    fn about(event: Kind, subject: Subject<'_>) -> Self {
        Self { set: Some(subject.set.to_owned()), ..Self::new(event, subject.name) }
    }
}

impl Observer for Events {
    fn event(&self, event: &Event<'_>) {
        let plain = |kind, subject| self.send(|| Record::about(kind, subject));
        match *event {
            Event::SetCreated(subject) => plain(Kind::SetCreated, subject),
            Event::SetGone(subject) => plain(Kind::SetGone, subject),
            Event::Registered(subject) => plain(Kind::Registered, subject),
            Event::Unregistered(subject) => plain(Kind::Unregistered, subject),
            Event::DeviceOpened(subject) => plain(Kind::DeviceOpened, subject),
            Event::DeviceClosed(subject) => plain(Kind::DeviceClosed, subject),
            Event::Failed(subject) => plain(Kind::Failed, subject),
            Event::FileOpened { subject, file, owner, count } => self.send(|| Record {
                file: Some(file.0),
                owner: Some(owner.into()),
                count: Some(count.into()),
                ..Record::about(Kind::FileOpened, subject)
            }),
            Event::FileReleased { subject, file, count } => self.send(|| Record {
                file: Some(file.0),
                count: Some(count.into()),
                ..Record::about(Kind::FileReleased, subject)
            }),
            Event::Revoked { subject, file } => self.send(|| Record {
                file: Some(file.0),
                ..Record::about(Kind::FileRevoked, subject)
            }),
            Event::Requested { subject, n } => self.send(|| Record {
                count: Some(u64::from(n) + 1),
                ..Record::about(Kind::Requested, subject)
            }),
            Event::Reset { subject, cause } => self.send(|| Record {
                cause: Some(cause_name(cause)),
                ..Record::about(Kind::Reset, subject)
            }),
        }
    }
}

fn cause_name(cause: ResetCause) -> &'static str {
    match cause {
        ResetCause::Open => "open",
        ResetCause::Client => "client",
        ResetCause::Function => "function",
        ResetCause::Set => "set",
    }
}
