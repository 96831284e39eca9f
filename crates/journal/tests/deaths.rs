//! A server on a model of the kernel's sockets and files dies before every store and every system call, and
//! its successor at every one of its recovery. A client, which reads as late as it can, must see every reply
//! once, and no interrupt or descriptor may be lost. Each deliberate fault must be found.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use vfiod_journal::commit::{Commit, Slots};
use vfiod_journal::intake::{self, Intake, PeekedStream};
use vfiod_journal::memory::Words;
use vfiod_journal::outbox::{Outbox, Output, SentFile};

/// Positions of input and output, a sum, interrupts raised, and the descriptor of the last MAP.
const STATE: usize = 6;
const SLOTS: Slots = Slots::new(0, STATE);
const INTAKE: usize = SLOTS.words();
const SIGNALLED: usize = INTAKE + intake::WORDS;
const WORDS: usize = SIGNALLED + 1;
/// A lap ends with the message that reaches this.
const LAP: u64 = 6;

/// Requests of two bytes: what is asked for, and a number.
const ADD: u8 = 1;
const POSTED_ADD: u8 = 2;
const RAISE: u8 = 3;
/// Comes with a descriptor.
const MAP: u8 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    TakeBeforeCommit,
    TakeNotNoted,
    SendWithoutPosition,
    SignalledBeforeSignal,
    BankedAfterCommit,
    OneSlot,
    LapWithoutCommit,
    LapBeforeRead,
}

#[derive(Clone, Default)]
struct Kernel {
    words: RefCell<Vec<u64>>,
    /// What the client has yet to send.
    script: RefCell<VecDeque<Vec<[u8; 2]>>>,
    queue: RefCell<VecDeque<u8>>,
    peeked: Cell<usize>,
    file: RefCell<Vec<u8>>,
    position: Cell<u64>,
    /// Parts of the file that were sent and not read.
    unread: RefCell<Vec<(u64, u64)>>,
    read: RefCell<Vec<u8>>,
    signals: Cell<u64>,
    kept: RefCell<BTreeSet<u64>>,
    /// Descriptors in the queue, by the position behind their message.
    passed: RefCell<BTreeSet<u64>>,
    delivered: Cell<u64>,
    left: Cell<usize>,
    steps: Cell<usize>,
    fault: Cell<Option<Fault>>,
}

struct Died;

impl Kernel {
    fn new(script: &[&[[u8; 2]]], fault: Fault) -> Self {
        let this = Self::default();
        *this.words.borrow_mut() = vec![0; WORDS];
        *this.file.borrow_mut() = vec![0; 256];
        *this.script.borrow_mut() = script.iter().map(|batch| batch.to_vec()).collect();
        this.fault.set(Some(fault));
        this
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault.get() == Some(fault)
    }

    /// The server dies here if its time has come.
    fn step(&self) {
        match self.left.get().checked_sub(1) {
            Some(left) => self.left.set(left),
            None => resume_unwind(Box::new(Died)),
        }
        self.steps.set(self.steps.get() + 1);
    }

    fn read_all(&self) {
        for (at, len) in self.unread.borrow_mut().drain(..) {
            let range = at as usize..(at + len) as usize;
            self.read.borrow_mut().extend(&self.file.borrow()[range]);
        }
    }

    /// The client sends what it has next; before that it reads its replies.
    fn deliver(&self) -> bool {
        let Some(batch) = self.script.borrow_mut().pop_front() else { return false };
        self.read_all();
        for message in batch {
            self.queue.borrow_mut().extend(message);
            self.delivered.set(self.delivered.get() + 2);
            if message[0] == MAP {
                self.passed.borrow_mut().insert(self.delivered.get());
            }
        }
        true
    }

    /// Some bytes that were not peeked yet, and the descriptors among them.
    fn peek(&self, from: u64) -> (Vec<u8>, Vec<u64>) {
        self.step();
        if self.peeked.get() == self.queue.borrow().len() && !self.deliver() {
            return Default::default();
        }
        let bytes: Vec<u8> =
            self.queue.borrow().iter().skip(self.peeked.get()).take(5).copied().collect();
        self.peeked.set(self.peeked.get() + bytes.len());
        let to = from + bytes.len() as u64;
        let fds = self.passed.borrow().range(from + 1..=to).copied().collect();
        (bytes, fds)
    }

    fn keep(&self, keys: &[u64]) {
        for key in keys {
            self.step();
            self.kept.borrow_mut().insert(*key);
        }
    }
}

impl Words for Kernel {
    fn load(&self, at: usize) -> u64 {
        self.words.borrow()[at]
    }

    fn store(&self, at: usize, value: u64) {
        self.step();
        self.words.borrow_mut()[at] = value;
    }

    fn publish(&self, at: usize, value: u64) {
        self.store(at, value);
    }

    fn count(&self) -> usize {
        WORDS
    }
}

impl PeekedStream for Kernel {
    type Error = Infallible;

    fn peeked(&self) -> Result<u64, Infallible> {
        Ok(self.peeked.get() as u64)
    }

    fn set_peeked(&self, bytes: u64) -> Result<(), Infallible> {
        self.step();
        self.peeked.set(bytes as usize);
        Ok(())
    }

    fn receive(&self, most: u64) -> Result<u64, Infallible> {
        self.step();
        let mut queue = self.queue.borrow_mut();
        let taken = (most.min(3) as usize).min(queue.len());
        let start = self.delivered.get() - queue.len() as u64;
        queue.drain(..taken);
        self.peeked.set(self.peeked.get().saturating_sub(taken));
        // Descriptors go with any byte of their message.
        self.passed.borrow_mut().retain(|key| *key > start + taken as u64 + 1);
        Ok(taken as u64)
    }
}

impl SentFile for Kernel {
    type Error = Infallible;

    fn position(&self) -> Result<u64, Infallible> {
        Ok(self.position.get())
    }

    fn rewind(&self) -> Result<(), Infallible> {
        self.step();
        self.position.set(0);
        Ok(())
    }

    fn send(&self, most: u64) -> Result<u64, Infallible> {
        self.step();
        let sent = most.min(2);
        self.unread.borrow_mut().push((self.position.get(), sent));
        if self.has(Fault::SendWithoutPosition) {
            self.step();
        }
        self.position.set(self.position.get() + sent);
        Ok(sent)
    }
}

/// What a request changes; and its reply, if it wants one.
fn carry_out(state: &mut [u64; STATE], message: [u8; 2], key: u64) -> Option<[u8; 3]> {
    let [_, _, _, sum, raised, mapped] = state;
    match message[0] {
        RAISE => *raised += 1,
        MAP => *mapped = key,
        _ => *sum = *sum * 3 + u64::from(message[1]),
    }
    (message[0] != POSTED_ADD).then_some([message[0], message[1], *sum as u8])
}

struct Server<'a> {
    kernel: &'a Kernel,
    commit: Commit<'a, Kernel>,
    intake: Intake<'a, Kernel>,
    outbox: Outbox,
    state: [u64; STATE],
    input: VecDeque<u8>,
    fds: Vec<u64>,
}

fn output(state: &[u64; STATE]) -> Output {
    Output { lap: state[1], end: state[2] }
}

impl<'a> Server<'a> {
    fn recover(kernel: &'a Kernel) -> Result<Self, String> {
        let commit = Commit::open(kernel, SLOTS).map_err(|error| error.to_string())?;
        let mut state = [0; STATE];
        commit.read(&mut state);
        let intake =
            Intake::recover(kernel, INTAKE, kernel, state[0]).map_err(|e| e.to_string())?;
        let outbox = Outbox::recover(kernel, output(&state)).map_err(|error| error.to_string())?;
        let (input, fds) = (VecDeque::new(), Vec::new());
        let mut this = Self { kernel, commit, intake, outbox, state, input, fds };
        this.signal();
        this.send();
        Ok(this)
    }

    fn send(&mut self) {
        assert_eq!(self.outbox.send(self.kernel, output(&self.state)), Ok(true));
    }

    fn signal(&mut self) {
        let raised = self.state[4];
        if self.kernel.load(SIGNALLED) == raised {
            return;
        }
        let early = self.kernel.has(Fault::SignalledBeforeSignal);
        if early {
            self.kernel.publish(SIGNALLED, raised);
        }
        self.kernel.step();
        self.kernel.signals.set(self.kernel.signals.get() + 1);
        if !early {
            self.kernel.publish(SIGNALLED, raised);
        }
    }

    fn take(&mut self, done: u64) -> Result<(), String> {
        if self.kernel.has(Fault::TakeNotNoted) {
            let mut left = done - self.intake.base();
            while left > 0 {
                let got = self.kernel.receive(left).unwrap();
                if got == 0 {
                    return Err("replies to input that is gone".to_owned());
                }
                left -= got;
            }
            self.kernel.publish(INTAKE + 1, done);
            self.kernel.publish(INTAKE, done);
            let peeked = self.state[0] + self.input.len() as u64;
            self.intake = Intake::recover(self.kernel, INTAKE, self.kernel, peeked).unwrap();
            return Ok(());
        }
        self.intake.take(self.kernel, done).map_err(|error| error.to_string())
    }

    fn commit(&mut self, state: [u64; STATE]) {
        let sequence = self.commit.sequence();
        if self.kernel.has(Fault::OneSlot) && sequence > 0 {
            // Into the slot that is the truth.
            let slot = 8 + (sequence & 1) as usize * (SLOTS.words() - 8) / 2;
            for (at, word) in state.into_iter().enumerate() {
                self.kernel.store(slot + 1 + at, word);
            }
        }
        self.commit.commit(&state);
        self.state = state;
    }

    /// Serves until there is nothing left.
    fn run(&mut self) -> Result<(), String> {
        loop {
            if self.input.len() < 2 {
                self.send();
                if self.state[0] - self.intake.base() >= 4 {
                    self.take(self.state[0])?;
                }
                let from = self.state[0] + self.input.len() as u64;
                let (bytes, fds) = self.kernel.peek(from);
                if bytes.is_empty() {
                    return self.take(self.state[0]);
                }
                if !self.kernel.has(Fault::BankedAfterCommit) {
                    self.kernel.keep(&fds);
                }
                self.fds.extend(fds);
                self.input.extend(bytes);
                continue;
            }
            let message = [self.input.pop_front().unwrap(), self.input.pop_front().unwrap()];
            let done = self.state[0] + 2;
            if self.kernel.has(Fault::TakeBeforeCommit) {
                self.take(done)?;
            }
            if output(&self.state).offset() >= LAP {
                self.next_lap()?;
            }
            let mut state = self.state;
            state[0] = done;
            if let Some(reply) = carry_out(&mut state, message, done) {
                for byte in reply {
                    self.kernel.step();
                    let at = output(&state).offset() as usize;
                    self.kernel.file.borrow_mut()[at] = byte;
                    state[2] += 1;
                }
            }
            self.commit(state);
            if self.kernel.has(Fault::BankedAfterCommit) {
                self.kernel.keep(&self.fds.clone());
            }
            self.signal();
        }
    }

    fn next_lap(&mut self) -> Result<(), String> {
        self.send();
        if !self.kernel.unread.borrow().is_empty() && !self.kernel.has(Fault::LapBeforeRead) {
            return Ok(());
        }
        let mut state = self.state;
        let next = output(&state).next_lap();
        (state[1], state[2]) = (next.lap, next.end);
        if self.kernel.has(Fault::LapWithoutCommit) {
            self.state = state;
        } else {
            self.commit(state);
        }
        self.outbox.restart(self.kernel, next).map_err(|error| error.to_string())
    }
}

/// Runs a server until it is done (`true`), or dies.
fn run(kernel: &Kernel, dies: usize) -> Result<bool, String> {
    kernel.left.set(dies);
    let outcome = catch_unwind(AssertUnwindSafe(|| Server::recover(kernel)?.run()));
    match outcome {
        Ok(outcome) => outcome.map(|()| true),
        Err(panic) if panic.is::<Died>() => Ok(false),
        Err(panic) => resume_unwind(panic),
    }
}

/// What the client finds wrong when everything is over.
fn judge(kernel: &Kernel, script: &[&[[u8; 2]]]) -> Result<(), String> {
    kernel.read_all();
    let mut state = [0; STATE];
    let mut expected = Vec::new();
    let mut maps = BTreeSet::new();
    for (message, at) in script.concat().into_iter().zip(1..) {
        expected.extend(carry_out(&mut state, message, 2 * at).into_iter().flatten());
        if message[0] == MAP {
            maps.insert(2 * at);
        }
    }
    if *kernel.read.borrow() != expected {
        return Err(format!("replies {:?}, expected {expected:?}", kernel.read.borrow()));
    }
    let mut found = [0; STATE];
    Commit::open(kernel, SLOTS).map_err(|error| error.to_string())?.read(&mut found);
    if found[3..] != state[3..] {
        return Err(format!("state {found:?}, expected {state:?}"));
    }
    if kernel.signals.get() < state[4] {
        return Err(format!("{} signals for {} interrupts", kernel.signals.get(), state[4]));
    }
    if *kernel.kept.borrow() != maps {
        return Err(format!("descriptors {:?}, expected {maps:?}", kernel.kept.borrow()));
    }
    if !kernel.queue.borrow().is_empty() {
        return Err("input is left".to_owned());
    }
    Ok(())
}

/// Dies everywhere once, and each successor everywhere once more. Returns how many deaths there were.
fn explore(script: &[&[[u8; 2]]], fault: Fault) -> Result<usize, String> {
    let start = Kernel::new(script, fault);
    let mut deaths = 0;
    for first in 0.. {
        let once = start.clone();
        let done = run(&once, first)?;
        deaths += 1;
        for second in 0.. {
            let twice = once.clone();
            let done =
                run(&twice, second).map_err(|wrong| format!("{first}, {second}: {wrong}"))?;
            deaths += 1;
            let end = run(&twice, usize::MAX).and_then(|_| judge(&twice, script));
            end.map_err(|wrong| format!("death at {first}, {second}: {wrong}"))?;
            if done {
                break;
            }
        }
        if done {
            return Ok(deaths);
        }
    }
    unreachable!("a run ends")
}

const SCRIPT: &[&[[u8; 2]]] = &[
    &[[ADD, 1], [RAISE, 0], [ADD, 2]],
    &[[POSTED_ADD, 3], [MAP, 0], [ADD, 4], [RAISE, 0]],
    &[[ADD, 5], [ADD, 6], [MAP, 1], [POSTED_ADD, 7], [ADD, 8]],
];

#[test]
fn client_notices_no_death() {
    let deaths = explore(SCRIPT, Fault::None).unwrap();
    // Fewer would mean that the script got shorter.
    assert!(deaths > 10_000, "only {deaths}");
}

#[test]
fn each_fault_is_found() {
    for (fault, found) in [
        (Fault::TakeBeforeCommit, "base"),
        (Fault::TakeNotNoted, "replies"),
        (Fault::SendWithoutPosition, "replies"),
        (Fault::SignalledBeforeSignal, "signals"),
        (Fault::BankedAfterCommit, "descriptors"),
        (Fault::OneSlot, "damaged"),
        (Fault::LapWithoutCommit, "replies"),
        (Fault::LapBeforeRead, "replies"),
    ] {
        let wrong = explore(SCRIPT, fault).expect_err(&format!("{fault:?} is not found"));
        println!("{fault:?}: {wrong}");
        assert!(wrong.contains(found), "{fault:?}: {wrong}");
    }
}
