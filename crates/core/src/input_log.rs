//! Where a device's input from outside (characters of a serial port, lines that another program
//! sets) arrives between the calls of a session. It is recorded for a capture, and given to the
//! device at the same places again when the capture is replayed.
//!
//! A place is a number of calls. The device counts its own calls, with the lock held under which it
//! also takes input. So the order of calls and input is exact, and costs one load of a flag while
//! nobody records.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::{Mutex, lock};

/// Bytes of input that are kept for a client that does not collect them.
const LIMIT: usize = 64 << 10;
/// What an entry takes beside its bytes.
const OVERHEAD: usize = 32;

const OFF: u8 = 0;
const RECORDING: u8 = 1;
const REPLAYING: u8 = 2;

/// A device's way to get input of a captured session again.
pub trait InputSource: Send + Sync {
    /// The input that a session begins with, to be replayed before the device is opened; `None` if
    /// there is no such thing.
    fn current(&self) -> Option<Vec<u8>>;

    /// Input arrives that was recorded by [`InputLog::arrived`]. Within a call the device must take it
    /// in that call and not before; it holds the lock under which it counts its calls.
    fn replay(&self, input: &[u8], place: InputPlace);
}

/// When input arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputPlace {
    /// Before the device was opened.
    Before,
    /// After so many calls.
    After(u64),
    /// The device took it in the call of this number, counted from 1.
    Within(u64),
}

/// Input that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputEntry {
    /// When.
    pub place: InputPlace,
    /// What; only the device understands it.
    pub bytes: Vec<u8>,
}

/// What was recorded since the last time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Calls since the recording began.
    pub calls: u64,
    /// Input was dropped because nobody collected it.
    pub lost: bool,
    /// What arrived, in order.
    pub entries: Vec<InputEntry>,
}

/// Records or replays the input of one device. Cheap to clone.
#[derive(Clone, Default)]
pub struct InputLog {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    mode: AtomicU8,
    source: OnceLock<Weak<dyn InputSource>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    calls: u64,
    within: bool,
    recorded: Vec<InputEntry>,
    size: usize,
    lost: bool,
    schedule: VecDeque<InputEntry>,
}

/// A call of the device, until this is dropped.
#[derive(Debug)]
pub struct InputCall<'a>(&'a InputLog);

impl Drop for InputCall<'_> {
    fn drop(&mut self) {
        lock(&self.0.shared.state).within = false;
    }
}

impl InputLog {
    /// Sets where the device gets replayed input. To be called once, when the device is made. The device
    /// keeps the source: it may have this log itself, and the two would never be dropped.
    pub fn set_source(&self, source: Arc<dyn InputSource>) {
        let set = self.shared.source.set(Arc::downgrade(&source));
        debug_assert!(set.is_ok(), "once");
    }

    fn source(&self) -> Option<Arc<dyn InputSource>> {
        self.shared.source.get().and_then(Weak::upgrade)
    }

    /// Whether the device has input from outside.
    pub fn has_source(&self) -> bool {
        self.shared.source.get().is_some()
    }

    fn mode(&self) -> u8 {
        self.shared.mode.load(Ordering::Relaxed)
    }

    /// Whether input comes from a capture: the device leaves the world outside alone.
    pub fn is_replaying(&self) -> bool {
        self.mode() == REPLAYING
    }

    /// Counts a call of the device, which lasts until the result is dropped. The device calls this at
    /// the beginning of each access and reset that can depend on input, with the lock held under which
    /// it takes input.
    #[inline]
    pub fn call(&self) -> Option<InputCall<'_>> {
        if self.mode() == OFF { None } else { Some(self.count_call()) }
    }

    #[cold]
    fn count_call(&self) -> InputCall<'_> {
        let number = {
            let mut state = lock(&self.shared.state);
            state.calls += 1;
            state.within = true;
            state.calls
        };
        if self.is_replaying() {
            self.replay_next(|place| place == InputPlace::Within(number));
        }
        InputCall(self)
    }

    /// Records input, with the lock held under which the device takes it.
    #[inline]
    pub fn arrived(&self, bytes: &[u8]) {
        if self.mode() == RECORDING {
            self.record(bytes);
        }
    }

    #[cold]
    fn record(&self, bytes: &[u8]) {
        let mut state = lock(&self.shared.state);
        let size = state.size + bytes.len() + OVERHEAD;
        if size > LIMIT {
            state.lost = true;
            return;
        }
        state.size = size;
        let calls = state.calls;
        let place = if state.within { InputPlace::Within(calls) } else { InputPlace::After(calls) };
        state.recorded.push(InputEntry { place, bytes: bytes.to_vec() });
    }

    /// Begins to record, after no call. What was recorded before is dropped.
    pub fn start_recording(&self) {
        let current = self.source().and_then(|source| source.current());
        let mut state = lock(&self.shared.state);
        let entry = |bytes| InputEntry { place: InputPlace::Before, bytes };
        *state = State { recorded: current.map(entry).into_iter().collect(), ..State::default() };
        self.shared.mode.store(RECORDING, Ordering::Relaxed);
    }

    /// Takes what was recorded since the last time.
    pub fn take_recorded(&self) -> Recorded {
        let mut state = lock(&self.shared.state);
        state.size = 0;
        let (calls, lost) = (state.calls, std::mem::take(&mut state.lost));
        Recorded { calls, lost, entries: std::mem::take(&mut state.recorded) }
    }

    /// Ends a recording: the device has no user any more.
    pub(crate) fn stop_recording(&self) {
        if self.mode() == RECORDING {
            self.shared.mode.store(OFF, Ordering::Relaxed);
            *lock(&self.shared.state) = State::default();
        }
    }

    /// Begins to replay what was recorded, for a device that is not open yet and has had `calls` calls
    /// in another process. Input of [`InputPlace::Before`] arrives now.
    pub fn start_replay(&self, calls: u64, schedule: impl IntoIterator<Item = InputEntry>) {
        {
            let mut state = lock(&self.shared.state);
            *state = State { calls, schedule: schedule.into_iter().collect(), ..State::default() };
            self.shared.mode.store(REPLAYING, Ordering::Relaxed);
        }
        self.replay_next(|place| place == InputPlace::Before);
    }

    /// Replays what arrived between the last call and the next one. Called without the device's locks.
    pub fn replay_due(&self) {
        let calls = lock(&self.shared.state).calls;
        self.replay_next(|place| matches!(place, InputPlace::After(call) if call <= calls));
    }

    /// Ends a replay: the number of calls, and what has not arrived yet.
    pub fn take_replay(&self) -> (u64, Vec<InputEntry>) {
        let mut state = lock(&self.shared.state);
        (state.calls, std::mem::take(&mut state.schedule).into())
    }

    /// The number of calls since the recording or replay began.
    pub fn calls(&self) -> u64 {
        lock(&self.shared.state).calls
    }

    fn replay_next(&self, is_due: impl Fn(InputPlace) -> bool) {
        let Some(source) = self.source() else { return };
        loop {
            let due = {
                let mut state = lock(&self.shared.state);
                let due = state.schedule.front().is_some_and(|entry| is_due(entry.place));
                due.then(|| state.schedule.pop_front()).flatten()
            };
            let Some(InputEntry { place, bytes }) = due else { return };
            // Without the lock: the device takes its own, under which it calls this.
            source.replay(&bytes, place);
        }
    }
}

impl fmt::Debug for InputLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.mode() {
            OFF => "off",
            RECORDING => "recording",
            _ => "replaying",
        };
        f.debug_struct("InputLog").field("mode", &mode).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(any(shuttle, loom))))]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Source(Mutex<Vec<(Vec<u8>, InputPlace)>>);

    impl InputSource for Source {
        fn current(&self) -> Option<Vec<u8>> {
            Some(vec![9])
        }

        fn replay(&self, input: &[u8], place: InputPlace) {
            lock(&self.0).push((input.to_vec(), place));
        }
    }

    fn recorded() -> Recorded {
        let log = InputLog::default();
        let source = Arc::new(Source::default());
        log.set_source(source.clone());
        assert!(log.call().is_none());
        log.arrived(b"before the recording");
        log.start_recording();
        log.arrived(b"a");
        {
            let _call = log.call();
            log.arrived(b"b");
        }
        log.arrived(b"c");
        log.take_recorded()
    }

    #[test]
    fn input_is_recorded_with_its_place_among_the_calls() {
        let entry = |place, bytes: &[u8]| InputEntry { place, bytes: bytes.to_vec() };
        let entries = vec![
            entry(InputPlace::Before, &[9]),
            entry(InputPlace::After(0), b"a"),
            entry(InputPlace::Within(1), b"b"),
            entry(InputPlace::After(1), b"c"),
        ];
        assert_eq!(recorded(), Recorded { calls: 1, lost: false, entries });
    }

    #[test]
    fn recorded_input_arrives_at_the_same_places_also_in_rebuilt_devices() {
        for rebuild in [false, true] {
            let source = Arc::new(Source::default());
            let replaying = |calls, schedule| {
                let log = InputLog::default();
                log.set_source(source.clone());
                log.start_replay(calls, schedule);
                log
            };
            let expected = recorded().entries;
            let mut log = replaying(0, expected.clone());
            for step in 0..3 {
                if step == 1 {
                    drop(log.call())
                } else {
                    log.replay_due()
                }
                if rebuild {
                    let (calls, schedule) = log.take_replay();
                    log = replaying(calls, schedule);
                }
            }
            let seen = std::mem::take(&mut *lock(&source.0)).into_iter();
            let seen: Vec<_> = seen.map(|(bytes, place)| InputEntry { place, bytes }).collect();
            assert_eq!(seen, expected, "rebuild: {rebuild}");
            assert_eq!(log.take_replay(), (1, Vec::new()));
        }
    }

    #[test]
    fn log_that_nobody_collects_is_bounded_and_says_so() {
        let log = InputLog::default();
        log.start_recording();
        for _ in 0..LIMIT {
            log.arrived(&[0; 100]);
        }
        let recorded = log.take_recorded();
        assert!(recorded.lost && recorded.entries.len() <= LIMIT / 100);
        assert!(!log.take_recorded().lost);
        log.arrived(&[1]);
        log.stop_recording();
        log.arrived(&[2]);
        assert_eq!(log.take_recorded(), Recorded::default());
    }
}
