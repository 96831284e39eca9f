//! Events of the daemon, for watchers: in the order of their numbers, after what there is already.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::{self, error::RecvError};
use vfiod_core::event::{Event, Observer, Subject};
use vfiod_core::{DeviceId, Owner, ResetCause};

/// How many events a watcher may be behind before it loses the oldest.
const BACKLOG: usize = 8192;

/// An event.
#[derive(Clone, Debug)]
pub struct Record {
    /// Counts up by one with each event of the daemon. Records of what was there when the watch began
    /// have the number of the last event before.
    pub number: u64,
    /// When it happened.
    pub time: SystemTime,
    /// What happened.
    pub kind: EventKind,
    /// The name of the device, the parent or the definition.
    pub name: String,
    /// The device's number.
    pub device: Option<DeviceId>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum EventKind {
    /// A device was there when the watch began; `count` files were open.
    DevicePresent,
    /// A device was in the error state when the watch began.
    DeviceFailed,
    /// A parent was there when the watch began.
    ParentPresent,
    /// All that was there has been listed; what follows happens now.
    WatchBegins,
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
    /// A saved state was restored to a device, for whoever opens it next.
    Restored,
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

/// Hands every event to every watcher, in the order of their numbers. Never waits for one.
pub(crate) struct Events(Mutex<State>);

struct State {
    /// The number of the event that is sent next.
    next: u64,
    /// Events that came before one with a lower number.
    early: BTreeMap<u64, Record>,
    /// What the events so far have left.
    present: Present,
    watchers: broadcast::Sender<Record>,
}

/// What there is, as the events have it.
#[derive(Default)]
struct Present {
    devices: BTreeMap<DeviceId, PresentDevice>,
    parents: BTreeSet<String>,
}

struct PresentDevice {
    name: String,
    set: Option<String>,
    files: u64,
    failed: bool,
}

/// A watcher: what there was when it began, then every event.
pub struct Watch {
    present: std::vec::IntoIter<Record>,
    events: broadcast::Receiver<Record>,
    last: u64,
}

impl Watch {
    /// Waits for the next record; `None`: the daemon ends. May be dropped while it waits.
    pub async fn next(&mut self) -> Option<Record> {
        if let Some(record) = self.present.next() {
            return Some(record);
        }
        let record = match self.events.recv().await {
            Ok(record) => record,
            Err(RecvError::Lagged(lost)) => Record {
                number: self.last + lost,
                count: Some(lost),
                ..Record::new(EventKind::Lost, "events")
            },
            Err(RecvError::Closed) => return None,
        };
        self.last = record.number;
        Some(record)
    }
}

impl Default for Events {
    fn default() -> Self {
        Self(Mutex::new(State {
            next: 0,
            early: BTreeMap::new(),
            present: Present::default(),
            watchers: broadcast::Sender::new(BACKLOG),
        }))
    }
}

impl Events {
    /// A watcher of what there is, and of all events from now on.
    pub(crate) fn watch(&self) -> Watch {
        let state = vfiod_sync::lock(&self.0);
        let last = state.next.saturating_sub(1);
        let mut present = state.present.records();
        present.push(Record::new(EventKind::WatchBegins, "events"));
        present.iter_mut().for_each(|record| record.number = last);
        Watch { present: present.into_iter(), events: state.watchers.subscribe(), last }
    }

    /// Emits an event that the core does not know of. `number` was taken from the registry just now.
    pub(crate) fn emit(&self, number: u64, kind: EventKind, name: impl Into<String>) {
        self.send(Record { number, ..Record::new(kind, name) });
    }

    /// Sends a record when those with lower numbers have been sent. Their emitters have taken the
    /// numbers already and are about to send them.
    fn send(&self, record: Record) {
        let mut state = vfiod_sync::lock(&self.0);
        if record.number != state.next {
            state.early.insert(record.number, record);
            return;
        }
        state.pass_on(record);
        let mut next = state.next;
        while let Some(record) = state.early.remove(&next) {
            state.pass_on(record);
            next = state.next;
        }
    }
}

impl State {
    fn pass_on(&mut self, record: Record) {
        self.next = record.number + 1;
        self.present.apply(&record);
        if self.watchers.receiver_count() > 0 {
            // Fails only if the last watcher has just been dropped.
            let _ = self.watchers.send(record);
        }
    }
}

impl Present {
    fn apply(&mut self, record: &Record) {
        match (record.kind, record.device) {
            (EventKind::Registered, Some(id)) => {
                let (name, set) = (record.name.clone(), record.set.clone());
                let device = PresentDevice { name, set, files: 0, failed: false };
                self.devices.insert(id, device);
            }
            (EventKind::Unregistered, Some(id)) => _ = self.devices.remove(&id),
            (EventKind::ParentRegistered, _) => _ = self.parents.insert(record.name.clone()),
            (EventKind::ParentUnregistered, _) => _ = self.parents.remove(&record.name),
            (kind, Some(id)) => {
                let Some(device) = self.devices.get_mut(&id) else { return };
                match kind {
                    EventKind::FileOpened | EventKind::FileReleased => {
                        device.files = record.count.unwrap_or_default();
                    }
                    EventKind::Failed => device.failed = true,
                    EventKind::Reset => device.failed = false,
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        for (id, device) in &self.devices {
            let about = |kind| Record {
                device: Some(*id),
                set: device.set.clone(),
                ..Record::new(kind, &*device.name)
            };
            let count = Some(device.files);
            records.push(Record { count, ..about(EventKind::DevicePresent) });
            if device.failed {
                records.push(about(EventKind::DeviceFailed));
            }
        }
        let parent = |name: &String| Record::new(EventKind::ParentPresent, &**name);
        records.extend(self.parents.iter().map(parent));
        records
    }
}

impl Record {
    fn new(kind: EventKind, name: impl Into<String>) -> Self {
        Self {
            number: 0,
            time: SystemTime::now(),
            kind,
            name: name.into(),
            device: None,
            set: None,
            file: None,
            owner: None,
            count: None,
            cause: None,
        }
    }

    fn about(kind: EventKind, subject: Subject<'_>) -> Self {
        Self {
            number: subject.number,
            device: Some(subject.device),
            set: Some(subject.set.to_owned()),
            ..Self::new(kind, subject.name)
        }
    }

    fn of(event: &Event<'_>) -> Self {
        let about = Self::about;
        match *event {
            Event::SetCreated(subject) => about(EventKind::SetCreated, subject),
            Event::SetGone(subject) => about(EventKind::SetGone, subject),
            Event::Registered(subject) => about(EventKind::Registered, subject),
            Event::Unregistered(subject) => about(EventKind::Unregistered, subject),
            Event::DeviceOpened(subject) => about(EventKind::DeviceOpened, subject),
            Event::DeviceClosed(subject) => about(EventKind::DeviceClosed, subject),
            Event::Failed(subject) => about(EventKind::Failed, subject),
            Event::FileOpened { subject, file, owner, count } => Self {
                file: Some(file.0),
                owner: Some(owner.clone()),
                count: Some(count.into()),
                ..about(EventKind::FileOpened, subject)
            },
            Event::FileReleased { subject, file, count } => Self {
                file: Some(file.0),
                count: Some(count.into()),
                ..about(EventKind::FileReleased, subject)
            },
            Event::Revoked { subject, file } => {
                Self { file: Some(file.0), ..about(EventKind::FileRevoked, subject) }
            }
            Event::Requested { subject, n } => {
                Self { count: Some(u64::from(n) + 1), ..about(EventKind::Requested, subject) }
            }
            Event::Reset { subject, cause } => {
                Self { cause: Some(cause), ..about(EventKind::Reset, subject) }
            }
        }
    }
}

impl Observer for Events {
    fn event(&self, event: &Event<'_>) {
        self.send(Record::of(event));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(watch: &mut Watch) -> Vec<u64> {
        let sent = std::iter::from_fn(|| watch.events.try_recv().ok());
        sent.map(|record| record.number).collect()
    }

    #[test]
    fn events_that_come_out_of_order_are_sent_in_the_order_of_their_numbers() {
        let events = Events::default();
        let mut watch = events.watch();
        events.emit(1, EventKind::Defined, "b");
        events.emit(2, EventKind::Defined, "c");
        assert_eq!(numbers(&mut watch), [0; 0]);
        events.emit(0, EventKind::Defined, "a");
        assert_eq!(numbers(&mut watch), [0, 1, 2]);
    }

    #[test]
    fn watch_begins_with_what_the_events_before_have_left() {
        let events = Events::default();
        let subject = |number| Subject { number, device: DeviceId(7), name: "d", set: "s" };
        events.event(&Event::Registered(subject(0)));
        events.emit(1, EventKind::ParentRegistered, "p");
        events.event(&Event::Failed(subject(2)));
        let kinds = || {
            let present = events.watch().present;
            present.map(|record| (record.number, record.kind)).collect::<Vec<_>>()
        };
        let expected = [
            (2, EventKind::DevicePresent),
            (2, EventKind::DeviceFailed),
            (2, EventKind::ParentPresent),
            (2, EventKind::WatchBegins),
        ];
        assert_eq!(kinds(), expected);
        events.event(&Event::Unregistered(subject(3)));
        events.emit(4, EventKind::ParentUnregistered, "p");
        assert_eq!(kinds(), [(4, EventKind::WatchBegins)]);
    }
}
