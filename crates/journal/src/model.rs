//! Two threads, each with a connection of its own, commit what they do with one device, and the process
//! dies: their successor must find device and connections in agreement. loom tries every order.
//!
//! The device's state names the last call: its connection, and that connection's position. A thread brings the
//! connection's record up to date before it drops the device's lock; the successor does it for the last
//! call. The state of the device is the sum of both positions.

use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::sync::{Arc, Mutex};

use crate::commit::{Commit, Slots};
use crate::memory::Words;

const DEVICE: Slots = Slots::new(0, 3);
const CONNECTIONS: [Slots; 2] =
    [Slots::new(DEVICE.words(), 1), Slots::new(DEVICE.words() + Slots::new(0, 1).words(), 1)];
const WORDS: usize = DEVICE.words() + 2 * CONNECTIONS[0].words();

/// Only the words that are used, as loom has few atomics.
struct Shared {
    words: Vec<AtomicU64>,
    dead: AtomicBool,
}

impl Shared {
    fn new() -> Self {
        let words = (0..WORDS).map(|_| AtomicU64::new(0)).collect();
        Self { words, dead: AtomicBool::new(false) }
    }
}

/// A thread's view: nothing is stored once the process is dead.
struct View<'a>(&'a Shared);

impl Words for View<'_> {
    fn load(&self, at: usize) -> u64 {
        self.0.words[at].load(Ordering::Acquire)
    }

    fn store(&self, at: usize, value: u64) {
        if !self.0.dead.load(Ordering::Acquire) {
            self.0.words[at].store(value, Ordering::Relaxed);
        }
    }

    fn publish(&self, at: usize, value: u64) {
        // Death comes between two stores that matter: those of the sequences.
        if !self.0.dead.load(Ordering::Acquire) {
            self.0.words[at].store(value, Ordering::Release);
        }
    }

    fn count(&self) -> usize {
        WORDS
    }
}

fn serve(shared: &Shared, device: &Mutex<()>, connection: usize, early: bool) {
    let view = View(shared);
    let lock = device.lock().unwrap();
    let mut state = [0; 3];
    let mut commit = Commit::open(&view, DEVICE).unwrap();
    commit.read(&mut state);
    let mut record = Commit::open(&view, CONNECTIONS[connection]).unwrap();
    let mut position = [0];
    record.read(&mut position);
    let position = position[0] + 1;
    commit.commit(&[state[0] + 1, connection as u64 + 1, position]);
    let held = if early { None } else { Some(&lock) };
    if held.is_none() {
        drop(lock);
        record.commit(&[position]);
        return;
    }
    record.commit(&[position]);
}

/// Whether device and connections agree after recovery.
fn agree(shared: &Shared) -> bool {
    shared.dead.store(false, Ordering::Release);
    let view = View(shared);
    let mut state = [0; 3];
    Commit::open(&view, DEVICE).unwrap().read(&mut state);
    let [sum, last, done] = state;
    let mut positions = 0;
    for (at, slots) in CONNECTIONS.into_iter().enumerate() {
        let mut position = [0];
        let mut record = Commit::open(&view, slots).unwrap();
        record.read(&mut position);
        if last == at as u64 + 1 && position[0] < done {
            position = [done];
            record.commit(&position);
        }
        positions += position[0];
    }
    sum == positions
}

fn scenario(early: bool) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(move || {
        let shared = Arc::new(Shared::new());
        let device = Arc::new(Mutex::new(()));
        let threads = [0, 1].map(|connection| {
            let (shared, device) = (shared.clone(), device.clone());
            loom::thread::spawn(move || serve(&shared, &device, connection, early))
        });
        shared.dead.store(true, Ordering::Release);
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(agree(&shared), "device and connections disagree");
    });
}

#[test]
fn successor_finds_device_and_connections_in_agreement() {
    scenario(false);
}

#[test]
#[should_panic(expected = "device and connections disagree")]
fn record_that_is_committed_after_the_lock_is_found() {
    scenario(true);
}
