//! Asynchronous events (5.2): requests that are outstanding, and what the host is to be told.

use crate::limits::MAX_EVENT_REQUESTS;
use vfiod_nvme_spec::feature::{EVENT_NAMESPACE, EVENT_SMART};
use vfiod_nvme_spec::log::{WARNING_READ_ONLY, WARNING_TEMPERATURE};
use vfiod_nvme_spec::{Outcome, Status};

/// Events that there can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Write to Invalid Doorbell Register.
    InvalidDoorbell,
    /// Invalid Doorbell Write Value.
    InvalidDoorbellValue,
    /// NVM Subsystem Reliability: the media are read-only, after a sync that has failed.
    Reliability,
    /// A temperature threshold is passed.
    Temperature,
    /// Namespace Attribute Changed.
    NamespaceChanged,
}

const ALL: [Event; 5] = [
    Event::InvalidDoorbell,
    Event::InvalidDoorbellValue,
    Event::Reliability,
    Event::Temperature,
    Event::NamespaceChanged,
];

/// Bits of [`Events::pending`].
pub(crate) const PENDING: u32 = (1 << ALL.len()) - 1;
/// Bits of [`Events::masked`].
pub(crate) const TYPES: u32 = 0b111;

impl Event {
    fn bit(self) -> u32 {
        1 << self as u32
    }

    /// Event type, information and the log page that has more (figures 147 to 151).
    fn fields(self) -> (u32, u32, u32) {
        match self {
            Self::InvalidDoorbell => (0, 0, 1),
            Self::InvalidDoorbellValue => (0, 1, 1),
            Self::Reliability => (1, 0, 2),
            Self::Temperature => (1, 1, 2),
            Self::NamespaceChanged => (2, 0, 4),
        }
    }

    /// Whether the host has asked for such events (feature 0Bh).
    fn is_configured(self, configuration: u32) -> bool {
        match self {
            Self::InvalidDoorbell | Self::InvalidDoorbellValue => true,
            Self::Reliability => configuration & EVENT_SMART & u32::from(WARNING_READ_ONLY) != 0,
            Self::Temperature => configuration & EVENT_SMART & u32::from(WARNING_TEMPERATURE) != 0,
            Self::NamespaceChanged => configuration & EVENT_NAMESPACE != 0,
        }
    }
}

/// Requests for events, and events.
#[derive(Debug, Default)]
pub(crate) struct Events {
    /// Identifiers of requests, the oldest first.
    pub(crate) requests: Vec<u16>,
    /// Identifiers of requests that were aborted and have not completed.
    pub(crate) aborted: Vec<u16>,
    /// Events that the host has not been told of.
    pub(crate) pending: u32,
    /// Types of events of which the host was told, until it reads the log page.
    pub(crate) masked: u32,
}

impl Events {
    /// A request arrives.
    ///
    /// # Errors
    /// Asynchronous Event Request Limit Exceeded.
    pub(super) fn request(&mut self, id: u16) -> Result<(), Status> {
        if self.requests.len() + self.aborted.len() >= MAX_EVENT_REQUESTS {
            return Err(Status::EVENT_LIMIT);
        }
        self.requests.push(id);
        Ok(())
    }

    /// Aborts a request; returns whether it was there.
    pub(super) fn abort(&mut self, id: u16) -> bool {
        let place = self.requests.iter().position(|request| *request == id);
        self.aborted.extend(place.map(|place| self.requests.remove(place)));
        place.is_some()
    }

    /// Something has happened, if the host has asked for it.
    pub(crate) fn raise(&mut self, event: Event, configuration: u32) {
        if event.is_configured(configuration) {
            self.pending |= event.bit();
        }
    }

    /// The host has seen by itself what an event would tell.
    /// Returns whether one was to come.
    pub(super) fn forget(&mut self, event: Event) -> bool {
        let was_pending = self.pending & event.bit() != 0;
        self.pending &= !event.bit();
        was_pending
    }

    /// Something was wrong about a doorbell.
    pub(super) fn doorbell_errors(&mut self, register: bool, value: bool) {
        let pending = [(register, Event::InvalidDoorbell), (value, Event::InvalidDoorbellValue)];
        for (_, event) in pending.iter().filter(|(happened, _)| *happened) {
            self.raise(*event, 0);
        }
    }

    /// The host has read a log page: events of that type are told again.
    pub(super) fn log_was_read(&mut self, log: u32) {
        for (kind, _, of) in ALL.map(Event::fields) {
            if of == log {
                self.masked &= !(1 << kind);
            }
        }
    }

    /// The next request that completes, and with what.
    pub(super) fn next(&mut self) -> Option<(u16, Outcome)> {
        if !self.aborted.is_empty() {
            return Some((self.aborted.remove(0), Err(Status::ABORT_REQUESTED)));
        }
        let is_due = |event: &Event| {
            self.pending & event.bit() != 0 && self.masked & 1 << event.fields().0 == 0
        };
        let event = ALL.into_iter().find(is_due).filter(|_| !self.requests.is_empty())?;
        let (kind, information, log) = event.fields();
        self.pending &= !event.bit();
        self.masked |= 1 << kind;
        Some((self.requests.remove(0), Ok(kind | information << 8 | log << 16)))
    }
}
