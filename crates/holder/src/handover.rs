//! All that is kept, a message at a time: to a worker, or to the holder that takes over.

use std::collections::VecDeque;
use std::ops::Bound;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use vfiod_journal::link::{self, Wait};
use vfiod_journal::message::{Death, Key, PROTOCOL, ToWorker};

use crate::state::State;

/// Answers that may wait. While there are more, nothing is read from the worker.
pub(crate) const MAX_ANSWERS: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Begin,
    Settings,
    /// Those behind this key.
    Kept(Option<Key>),
    Connections,
    Complete,
    /// New connections and answers.
    Live,
}

/// What one receiver has been told.
#[derive(Debug)]
pub(crate) struct Handover {
    begin: ToWorker,
    stage: Stage,
    /// The last connection that it knows.
    told: u64,
    answers: VecDeque<ToWorker>,
}

impl Handover {
    pub(crate) fn new(death: Death, state: &State) -> Self {
        let begin = ToWorker::Begin {
            protocol: PROTOCOL,
            starts: state.starts,
            next_connection: state.next_connection,
            death,
            died: state.died,
            deaths: state.deaths,
        };
        Self { begin, stage: Stage::Begin, told: 0, answers: VecDeque::new() }
    }

    /// Whether everything was handed over that was there.
    pub(crate) fn is_complete(&self) -> bool {
        self.stage == Stage::Live
    }

    /// Whether another answer may be added.
    pub(crate) fn has_room(&self) -> bool {
        self.answers.len() < MAX_ANSWERS
    }

    pub(crate) fn answer(&mut self, answer: ToWorker) {
        // One that has no room repeats what it says: `Crowded`.
        if self.answers.len() < 2 * MAX_ANSWERS {
            self.answers.push_back(answer);
        }
    }

    /// Sends what there is, without waiting. Returns whether everything was sent.
    ///
    /// # Errors
    /// Those of the link.
    pub(crate) fn send(&mut self, link: impl AsFd, state: &State) -> Result<bool, Errno> {
        while let Some((message, fds)) = self.next(state) {
            match link::send(&link, &message.encode(), &fds, Wait::No) {
                Ok(()) => self.advance(message),
                // Descriptors that nobody has received yet are limited, too.
                Err(Errno::AGAIN | Errno::TOOMANYREFS) => return Ok(false),
                Err(errno) => return Err(errno),
            }
        }
        Ok(true)
    }

    fn next<'a>(&mut self, state: &'a State) -> Option<(ToWorker, Vec<BorrowedFd<'a>>)> {
        loop {
            match self.stage {
                Stage::Begin => return Some((self.begin, Vec::new())),
                Stage::Settings => return Some((ToWorker::Settings(state.settings), Vec::new())),
                Stage::Kept(last) => {
                    let from = last.map_or(Bound::Unbounded, Bound::Excluded);
                    if let Some((key, kept)) = state.kept.range((from, Bound::Unbounded)).next() {
                        let listening = state.listeners.is_on(*key);
                        let message = ToWorker::Kept { key: *key, class: kept.class, listening };
                        return Some((message, vec![kept.fd.as_fd()]));
                    }
                    self.stage = Stage::Connections;
                }
                Stage::Connections => match self.next_connection(state) {
                    None => self.stage = Stage::Complete,
                    found => return found,
                },
                Stage::Complete => return Some((ToWorker::Complete, Vec::new())),
                Stage::Live => {
                    let answer = self.answers.front().map(|answer| (*answer, Vec::new()));
                    return answer.or_else(|| self.next_connection(state));
                }
            }
        }
    }

    fn next_connection<'a>(&self, state: &'a State) -> Option<(ToWorker, Vec<BorrowedFd<'a>>)> {
        let mut newer = state.connections.range(self.told + 1..);
        let (number, connection) = newer.next()?;
        let (origin, sent) = (connection.origin, connection.sent);
        let message = ToWorker::Connection { number: *number, origin, sent };
        let files = [&connection.socket, &connection.files.journal, &connection.files.outbox];
        Some((message, files.map(AsFd::as_fd).to_vec()))
    }

    fn advance(&mut self, sent: ToWorker) {
        match sent {
            ToWorker::Begin { .. } => self.stage = Stage::Settings,
            ToWorker::Settings(_) => self.stage = Stage::Kept(None),
            ToWorker::Kept { key, .. } => self.stage = Stage::Kept(Some(key)),
            ToWorker::Connection { number, .. } => self.told = number,
            ToWorker::Complete => self.stage = Stage::Live,
            ToWorker::Crowded { .. } | ToWorker::Sent { .. } | ToWorker::Refused { .. } => {
                self.answers.pop_front();
            }
        }
    }
}
