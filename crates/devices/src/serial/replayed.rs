//! What the terminals of a card had when a session was captured, in place of terminals.

use std::collections::VecDeque;
use std::sync::Arc;

use vfiod_core::{InputPlace, InputSource};
use vfiod_sync::{Mutex, lock};
use vfiod_tasks::Bell;

/// The ports' input.
#[derive(Debug, Default)]
pub(super) struct ReplayedInput {
    ports: [Arc<ReplayedPort>; 2],
}

/// One port's.
#[derive(Debug, Default)]
pub(super) struct ReplayedPort {
    waiting: Mutex<VecDeque<u8>>,
    changed: Bell,
}

impl ReplayedInput {
    pub(super) fn port(&self, port: usize) -> Arc<ReplayedPort> {
        self.ports[port % self.ports.len()].clone()
    }
}

impl ReplayedPort {
    /// What is recorded when a port takes characters: its number and these.
    pub(super) fn entry(port: u32, characters: &[u8]) -> Vec<u8> {
        [&[port as u8][..], characters].concat()
    }

    /// Takes characters, `room` at most.
    pub(super) fn take(&self, room: usize) -> Vec<u8> {
        let mut waiting = lock(&self.waiting);
        let count = room.min(waiting.len());
        waiting.drain(..count).collect()
    }

    /// Waits until there is something to take.
    pub(super) async fn changed(&self) {
        self.changed.wait().await;
    }
}

impl InputSource for ReplayedInput {
    /// A terminal is new when the card is opened.
    fn current(&self) -> Option<Vec<u8>> {
        None
    }

    fn replay(&self, input: &[u8], place: InputPlace) {
        let Some((&number, characters)) = input.split_first() else { return };
        let Some(port) = self.ports.get(usize::from(number)) else { return };
        lock(&port.waiting).extend(characters);
        // Within a call, that call takes it.
        if let InputPlace::After(_) = place {
            port.changed.ring(None);
        }
    }
}
