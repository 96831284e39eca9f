//! Asks a server for the input that its device gets from outside, among the client's messages.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use vfiod_wire::input::INPUT_LOG;
use vfiod_wire::payload::{Feature, feature_flag};
use vfiod_wire::{Command, Header, Kind};
use zerocopy::{FromBytes, IntoBytes};

/// How often to ask. The server keeps the input of a longer time than this.
const INTERVAL: Duration = Duration::from_millis(20);
/// The longest reply that is taken.
const REPLY_SIZE: u32 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The session has not been negotiated.
    Waiting,
    /// The server was asked to record, or for what it has recorded, in a message of this id.
    Asked(u16),
    /// The server records. When it is to be asked next.
    Recording(Instant),
    /// The device has no input, or the server does not know the feature.
    None,
}

/// The device's input, as far as it was asked for.
#[derive(Debug)]
pub(super) struct Inputs {
    state: State,
    /// Ids of the client's messages of the same command that have no reply.
    others: HashSet<u16>,
}

impl Inputs {
    pub(super) fn new() -> Self {
        Self { state: State::Waiting, others: HashSet::new() }
    }

    /// The client sends a message.
    pub(super) fn request(&mut self, header: &Header) {
        if header.command == Command::DeviceFeature as u16 && header.kind() == Kind::Command {
            self.others.insert(header.id);
        }
    }

    /// The server was negotiated with: asks it to record.
    pub(super) fn begin(&mut self) -> Vec<u8> {
        self.message(feature_flag::SET)
    }

    /// When to ask next.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.state {
            State::Recording(due) => Some(due),
            State::Waiting | State::Asked(_) | State::None => None,
        }
    }

    /// Whether a reply to one of these messages is to come.
    pub(super) fn is_asked(&self) -> bool {
        matches!(self.state, State::Asked(_))
    }

    /// Asks for what was recorded.
    pub(super) fn ask(&mut self) -> Vec<u8> {
        self.message(feature_flag::GET)
    }

    fn message(&mut self, flag: u32) -> Vec<u8> {
        // Replies come in the order of their requests: the first of this id is the reply to this.
        let id = (0..=u16::MAX).rev().find(|id| !self.others.contains(id)).unwrap_or(0);
        self.state = State::Asked(id);
        let feature = Feature { argsz: REPLY_SIZE, flags: u32::from(INPUT_LOG) | flag };
        let header = Header::command(id, Command::DeviceFeature, Feature::LEN, false);
        [header.as_bytes(), feature.as_bytes()].concat()
    }

    /// Takes a reply, if it is one to these messages: the input that is in it, or nothing. Returns
    /// `None` if the reply is for the client.
    pub(super) fn reply(&mut self, header: &Header, payload: &[u8]) -> Option<Option<Vec<u8>>> {
        if header.command != Command::DeviceFeature as u16 {
            return None;
        }
        if self.state != State::Asked(header.id) {
            self.others.remove(&header.id);
            return None;
        }
        let Kind::Reply(Ok(())) = header.kind() else {
            self.state = State::None;
            return Some(None);
        };
        self.state = State::Recording(Instant::now() + INTERVAL);
        let data = Feature::read_from_prefix(payload).ok().map(|(_, data)| data.to_vec());
        Some(data.filter(|data| !data.is_empty()))
    }
}

#[cfg(test)]
mod tests {
    use vfiod_wire::HEADER_LEN;

    use super::*;

    #[test]
    fn replies_are_told_apart_from_the_clients() {
        let mut inputs = Inputs::new();
        let theirs = Header::command(u16::MAX, Command::DeviceFeature, 8, false);
        inputs.request(&theirs);
        let ours = Header::parse(&inputs.begin()).unwrap();
        assert_eq!(ours.id, u16::MAX - 1);
        assert_eq!(ours.size as usize, HEADER_LEN + Feature::LEN);
        assert!(inputs.reply(&theirs.reply(8), &[0; 8]).is_none());
        assert_eq!(inputs.reply(&ours.reply(8), &[0; 8]), Some(None));
        let again = Header::parse(&inputs.ask()).unwrap();
        assert_eq!(again.id, u16::MAX);
        let reply = [&[0; Feature::LEN][..], b"inputs"].concat();
        assert_eq!(inputs.reply(&again.reply(reply.len()), &reply), Some(Some(b"inputs".to_vec())));
        assert!(inputs.due().is_some());
    }

    #[test]
    fn server_without_the_feature_is_not_asked_again() {
        let mut inputs = Inputs::new();
        let ours = Header::parse(&inputs.begin()).unwrap();
        assert_eq!(inputs.reply(&ours.error(25, 0), &[]), Some(None));
        assert!(inputs.due().is_none() && !inputs.is_asked());
    }
}
