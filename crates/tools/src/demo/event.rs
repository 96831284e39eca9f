//! The events of the demonstration: from the core, the client and the guest.

use serde::{Deserialize, Serialize};
use vfiod_core::ResetCause;
use vfiod_core::event::{Event, Subject};

use vfiod_manager::owner_name;

/// An event of the demonstration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub(super) enum DemoEvent {
    /// The first member of a set joined.
    SetCreated { set: String },
    /// A device became visible.
    Registered { device: String, set: String },
    /// First open.
    FirstOpen { device: String },
    /// A file was opened.
    Opened { device: String, file: u64, owner: String, count: u32 },
    /// A file was released.
    Released { device: String, file: u64, count: u32 },
    /// Last close.
    LastClose { device: String },
    /// The device was reset.
    Reset { device: String, cause: String },
    /// A device is in the error state, its users were asked to close it, or a file was revoked.
    Trouble { device: String, text: String },
    /// A device was unregistered.
    Unregistered { device: String },
    /// The last member of a set left.
    SetGone { set: String },
    /// The client did something and saw what it should.
    Client(Step),
    /// The guest did something and saw what it should.
    Guest(Step),
    /// A new scene.
    Scene { text: String },
}

/// A step of a client or a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Step {
    /// The expectation that the step fulfils: a word of `expected.rs`.
    pub(super) shown: String,
    /// A description for people.
    pub(super) text: String,
}

impl DemoEvent {
    /// Makes one of an event of the core.
    pub(super) fn of(event: &Event<'_>) -> Self {
        let device = |subject: &Subject<'_>| subject.name.to_owned();
        let trouble = |subject: &Subject<'_>, text: String| Self::Trouble {
            device: subject.name.to_owned(),
            text,
        };
        match event {
            Event::SetCreated(subject) => Self::SetCreated { set: subject.set.to_owned() },
            Event::Registered(subject) => {
                Self::Registered { device: device(subject), set: subject.set.to_owned() }
            }
            Event::DeviceOpened(subject) => Self::FirstOpen { device: device(subject) },
            Event::FileOpened { subject, file, owner, count } => Self::Opened {
                device: device(subject),
                file: file.0,
                owner: owner_name(owner),
                count: *count,
            },
            Event::FileReleased { subject, file, count } => {
                Self::Released { device: device(subject), file: file.0, count: *count }
            }
            Event::DeviceClosed(subject) => Self::LastClose { device: device(subject) },
            Event::Reset { subject, cause } => {
                Self::Reset { device: device(subject), cause: cause_name(*cause).to_owned() }
            }
            Event::Failed(subject) => trouble(subject, "is in the error state".into()),
            Event::Requested { subject, n } => trouble(subject, format!("is requested back ({n})")),
            Event::Revoked { subject, file } => trouble(subject, format!("{file} was revoked")),
            Event::Unregistered(subject) => Self::Unregistered { device: device(subject) },
            Event::SetGone(subject) => Self::SetGone { set: subject.set.to_owned() },
        }
    }

    /// Returns what it is about: `set`, a device's name, `client` or `guest`.
    pub(super) fn subject(&self) -> &str {
        match self {
            Self::SetCreated { .. } | Self::SetGone { .. } => "set",
            Self::Registered { device, .. }
            | Self::FirstOpen { device }
            | Self::Opened { device, .. }
            | Self::Released { device, .. }
            | Self::LastClose { device }
            | Self::Reset { device, .. }
            | Self::Trouble { device, .. }
            | Self::Unregistered { device } => device,
            Self::Client(_) => "client",
            Self::Guest(_) => "guest",
            Self::Scene { .. } => "",
        }
    }

    /// Describes it in words.
    pub(super) fn text(&self) -> String {
        match self {
            Self::SetCreated { set } => format!("set created: {set}, the functions of one slot"),
            Self::Registered { set, .. } => format!("registered, a member of {set}"),
            Self::FirstOpen { .. } => {
                "first open: open_device, with the set marked as opening".into()
            }
            Self::Opened { file, owner, count: 1, .. } => {
                format!("file {file} opened by {owner}: the only one")
            }
            Self::Opened { file, owner, count, .. } => {
                format!("further open: file {file} by {owner}, {count} are open now")
            }
            Self::Released { file, count: 0, .. } => format!("file {file} released: none is left"),
            Self::Released { file, count, .. } => format!("file {file} released: {count} left"),
            Self::LastClose { .. } => "last close: close_device, DMA and interrupts are off".into(),
            Self::Reset { cause, .. } => format!("reset ({cause})"),
            Self::Trouble { text, .. } => text.clone(),
            Self::Unregistered { .. } => "unregistered".into(),
            Self::SetGone { set } => format!("set removed: {set}, with its last member"),
            Self::Client(step) | Self::Guest(step) => step.text.clone(),
            Self::Scene { text } => text.clone(),
        }
    }
}

fn cause_name(cause: ResetCause) -> &'static str {
    match cause {
        ResetCause::Open => "before the first open",
        ResetCause::Client => "by the client",
        ResetCause::Function => "by the guest, function level",
        ResetCause::Set => "of the whole set",
    }
}
