use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_setfl};

use super::*;
use crate::error::Errno;
use crate::ids::FileId;

const INTX: IrqIndex = IrqIndex(0);
const MSIX: IrqIndex = IrqIndex(1);
const ERR: IrqIndex = IrqIndex(2);
const A: FileId = FileId(1);
const B: FileId = FileId(2);

fn set() -> IrqSet {
    let info = |flags, count| IrqInfo { flags, count };
    IrqSet::new(
        "test",
        &[
            info(IrqFlags::EVENTFD | IrqFlags::MASKABLE | IrqFlags::AUTOMASKED, 1),
            info(IrqFlags::EVENTFD | IrqFlags::NORESIZE, 16),
            info(IrqFlags::EVENTFD, 1),
            info(IrqFlags::empty(), 0),
        ],
    )
}

/// A client's end, and a copy to send.
struct Line(OwnedFd);

impl Line {
    fn new() -> Self {
        Self(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap())
    }

    fn send(&self) -> Option<OwnedFd> {
        Some(self.0.try_clone().unwrap())
    }

    /// Signals since the last call.
    fn seen(&self) -> u64 {
        let mut counter = [0; 8];
        match rustix::io::read(&self.0, &mut counter) {
            Ok(_) => u64::from_ne_bytes(counter),
            Err(Errno::AGAIN) => 0,
            Err(e) => panic!("{e}"),
        }
    }
}

fn arm(irqs: &IrqSet, file: FileId, index: IrqIndex, start: u32, lines: &[&Line]) {
    let fds = lines.iter().map(|l| l.send()).collect();
    let count = lines.len() as u32;
    irqs.set(file, index, start, count, IrqAction::Trigger, IrqData::EventFds(fds)).unwrap();
}

fn unmask(irqs: &IrqSet) {
    irqs.set(A, INTX, 0, 1, IrqAction::Unmask, IrqData::None).unwrap();
}

#[test]
fn a_level_masks_itself_and_comes_back_at_unmask() {
    let (irqs, line) = (set(), Line::new());
    arm(&irqs, A, INTX, 0, &[&line]);
    irqs.set_level(INTX, 0, true).unwrap();
    assert_eq!(line.seen(), 1);
    irqs.set_level(INTX, 0, true).unwrap();
    assert_eq!(line.seen(), 0, "no second signal without unmask");
    assert!(irqs.is_pending(INTX, 0));
    unmask(&irqs);
    assert_eq!(line.seen(), 1, "still asserted");
    unmask(&irqs);
    assert_eq!(line.seen(), 1, "and again");
    irqs.set_level(INTX, 0, false).unwrap();
    unmask(&irqs);
    unmask(&irqs);
    assert_eq!(line.seen(), 0, "lowered");
    irqs.set_level(INTX, 0, true).unwrap();
    assert_eq!(line.seen(), 1, "unmasked, so it signals at once");
}

#[test]
fn a_level_that_was_up_before_the_eventfd_signals_it() {
    let (irqs, line) = (set(), Line::new());
    irqs.set_level(INTX, 0, true).unwrap();
    arm(&irqs, A, INTX, 0, &[&line]);
    assert_eq!(line.seen(), 1);
    // Disabled and set up again, as QEMU does at a reset of the machine.
    irqs.set(A, INTX, 0, 0, IrqAction::Trigger, IrqData::None).unwrap();
    assert!(!irqs.is_enabled(INTX));
    arm(&irqs, A, INTX, 0, &[&line]);
    assert_eq!(line.seen(), 1, "masks do not outlive disabling");
}

#[test]
fn client_and_device_masks_are_apart() {
    let (irqs, line) = (set(), Line::new());
    arm(&irqs, A, INTX, 0, &[&line]);
    irqs.set_device_mask(INTX, 0, true).unwrap();
    irqs.set(A, INTX, 0, 1, IrqAction::Mask, IrqData::None).unwrap();
    irqs.set_level(INTX, 0, true).unwrap();
    unmask(&irqs);
    assert_eq!(line.seen(), 0, "the device holds it");
    irqs.set_device_mask(INTX, 0, false).unwrap();
    assert_eq!(line.seen(), 1);
}

#[test]
fn an_edge_while_masked_is_pending_once() {
    let (irqs, line) = (set(), Line::new());
    arm(&irqs, A, MSIX, 3, &[&line]);
    assert!(irqs.trigger(MSIX, 3).unwrap());
    assert_eq!(line.seen(), 1);
    irqs.set_device_mask(MSIX, 3, true).unwrap();
    assert!(!irqs.trigger(MSIX, 3).unwrap());
    assert!(!irqs.trigger(MSIX, 3).unwrap());
    assert!(irqs.is_pending(MSIX, 3));
    assert!(!irqs.is_pending(MSIX, 2));
    irqs.set_device_mask(MSIX, 3, false).unwrap();
    assert_eq!(line.seen(), 1);
    assert!(!irqs.is_pending(MSIX, 3));
    let counters = irqs.counters(MSIX, 3).unwrap();
    assert_eq!(counters, VectorCounters { signalled: 2, held: 2, ..VectorCounters::default() });
}

#[test]
fn vectors_come_in_pieces_and_leave_without_descriptors() {
    let (irqs, lines) = (set(), [(); 16].map(|()| Line::new()));
    let all: Vec<&Line> = lines.iter().collect();
    // QEMU starts MSI-X with one vector and no descriptor.
    irqs.set(A, MSIX, 0, 1, IrqAction::Trigger, IrqData::EventFds(vec![])).unwrap();
    assert!(!irqs.is_enabled(MSIX));
    arm(&irqs, A, MSIX, 0, &all[..8]);
    assert!(!irqs.trigger(MSIX, 8).unwrap(), "held until its eventfd comes");
    arm(&irqs, A, MSIX, 8, &all[8..]);
    for (vector, line) in (0..).zip(&lines) {
        assert_eq!(line.seen(), u64::from(vector == 8));
        irqs.trigger(MSIX, vector).unwrap();
        assert_eq!(line.seen(), 1);
    }
    irqs.set(A, MSIX, 4, 2, IrqAction::Trigger, IrqData::EventFds(vec![None, lines[0].send()]))
        .unwrap();
    assert!(!irqs.trigger(MSIX, 4).unwrap());
    assert!(irqs.trigger(MSIX, 5).unwrap());
    assert_eq!((lines[4].seen(), lines[5].seen(), lines[0].seen()), (0, 0, 1));
    irqs.set(A, MSIX, 0, 16, IrqAction::Trigger, IrqData::EventFds(vec![])).unwrap();
    assert!(!irqs.is_enabled(MSIX));
}

#[test]
fn without_a_client_an_edge_is_lost() {
    let (irqs, line) = (set(), Line::new());
    assert!(!irqs.trigger(MSIX, 0).unwrap());
    arm(&irqs, A, MSIX, 0, &[&line]);
    assert_eq!(line.seen(), 0);
    assert_eq!(irqs.counters(MSIX, 0).unwrap().lost, 1);
}

#[test]
fn the_client_can_trigger_itself() {
    let (irqs, lines) = (set(), [(); 3].map(|()| Line::new()));
    let none = irqs.set(A, MSIX, 0, 1, IrqAction::Trigger, IrqData::None);
    assert_eq!(none.unwrap_err().errno(), Errno::INVAL);
    arm(&irqs, A, MSIX, 0, &lines.each_ref());
    irqs.set(A, MSIX, 0, 3, IrqAction::Trigger, IrqData::None).unwrap();
    irqs.set(A, MSIX, 0, 3, IrqAction::Trigger, IrqData::Bool(&[0, 1, 0])).unwrap();
    assert_eq!(lines.each_ref().map(|l| l.seen()), [1, 2, 1]);
}

#[test]
fn an_unmask_eventfd_unmasks() {
    let (irqs, line, resample) = (set(), Line::new(), Line::new());
    arm(&irqs, A, INTX, 0, &[&line]);
    let data = IrqData::EventFds(vec![resample.send()]);
    irqs.set(A, INTX, 0, 1, IrqAction::Unmask, data).unwrap();
    assert!(irqs.unmask_fds(B).is_empty());
    let fds = irqs.unmask_fds(A);
    assert_eq!(fds.len(), 1);
    irqs.set_level(INTX, 0, true).unwrap();
    assert_eq!(line.seen(), 1);
    assert!(!irqs.unmask_signalled(&fds[0]), "not signalled");
    rustix::io::write(&resample.0, &1u64.to_ne_bytes()).unwrap();
    assert!(irqs.unmask_signalled(&fds[0]));
    assert_eq!(resample.seen(), 0, "the counter was taken");
    assert_eq!(line.seen(), 1, "still asserted");
    irqs.set(A, INTX, 0, 1, IrqAction::Unmask, IrqData::EventFds(vec![])).unwrap();
    rustix::io::write(&resample.0, &1u64.to_ne_bytes()).unwrap();
    assert!(!irqs.unmask_signalled(&fds[0]), "no longer the one set up");
    assert_eq!(line.seen(), 0);
}

#[test]
fn eventfds_leave_with_their_file() {
    let (irqs, a, b, intx) = (set(), Line::new(), Line::new(), Line::new());
    arm(&irqs, A, MSIX, 0, &[&a]);
    arm(&irqs, B, MSIX, 1, &[&b]);
    arm(&irqs, A, INTX, 0, &[&intx]);
    irqs.set_level(INTX, 0, true).unwrap();
    irqs.drop_file(A);
    irqs.trigger(MSIX, 0).unwrap();
    irqs.trigger(MSIX, 1).unwrap();
    assert_eq!((a.seen(), b.seen()), (0, 1));
    assert!(!irqs.is_enabled(INTX) && irqs.is_enabled(MSIX));
    // The next client finds the line as the device holds it, and unmasked.
    assert_eq!(intx.seen(), 1);
    arm(&irqs, B, INTX, 0, &[&intx]);
    assert_eq!(intx.seen(), 1);
    drop(irqs);
}

/// How many descriptors of this process stand for the same eventfd.
fn copies(line: &Line) -> usize {
    use std::os::fd::AsRawFd;
    let id = |path: &std::path::Path| {
        let info = std::fs::read_to_string(path).ok()?;
        info.lines().find(|l| l.starts_with("eventfd-id")).map(str::to_owned)
    };
    let ours = id(format!("/proc/self/fdinfo/{}", line.0.as_raw_fd()).as_ref()).unwrap();
    let all = std::fs::read_dir("/proc/self/fdinfo").unwrap();
    all.flatten().filter(|entry| id(&entry.path()).is_some_and(|id| id == ours)).count()
}

#[test]
fn descriptors_are_closed() {
    let (irqs, line) = (set(), Line::new());
    arm(&irqs, A, MSIX, 0, &[&line; 16]);
    assert_eq!(copies(&line), 17);
    arm(&irqs, B, MSIX, 0, &[&line; 8]);
    assert_eq!(copies(&line), 17, "replaced ones are closed");
    irqs.drop_file(A);
    assert_eq!(copies(&line), 9);
    irqs.set(A, INTX, 0, 1, IrqAction::Unmask, IrqData::EventFds(vec![line.send()])).unwrap();
    assert_eq!(copies(&line), 10);
    irqs.set(A, INTX, 0, 0, IrqAction::Trigger, IrqData::None).unwrap();
    irqs.set(B, MSIX, 0, 0, IrqAction::Trigger, IrqData::None).unwrap();
    assert_eq!(copies(&line), 1);
}

#[test]
fn reset_forgets_levels_masks_and_pending() {
    let (irqs, intx, line) = (set(), Line::new(), Line::new());
    arm(&irqs, A, INTX, 0, &[&intx]);
    arm(&irqs, A, MSIX, 0, &[&line]);
    irqs.set_level(INTX, 0, true).unwrap();
    irqs.set_device_mask(MSIX, 0, true).unwrap();
    irqs.trigger(MSIX, 0).unwrap();
    irqs.reset();
    unmask(&irqs);
    assert_eq!((intx.seen(), line.seen()), (1, 0));
    assert!(irqs.trigger(MSIX, 0).unwrap(), "eventfds stay");
    assert!(!irqs.is_pending(INTX, 0));
}

#[test]
fn mistakes_are_refused_and_change_nothing() {
    let (irqs, line) = (set(), Line::new());
    arm(&irqs, A, MSIX, 0, &[&line]);
    let fd = || line.send();
    let cases: Vec<(u32, u32, u32, IrqAction, IrqData<'_>)> = vec![
        (9, 0, 1, IrqAction::Trigger, IrqData::None),
        (3, 0, 0, IrqAction::Trigger, IrqData::None),
        (3, 0, 1, IrqAction::Trigger, IrqData::None),
        (1, 16, 1, IrqAction::Trigger, IrqData::None),
        (1, 16, 0, IrqAction::Trigger, IrqData::None),
        (1, 0, 17, IrqAction::Trigger, IrqData::EventFds(vec![])),
        (1, 1, u32::MAX, IrqAction::Trigger, IrqData::None),
        (1, 0, 0, IrqAction::Trigger, IrqData::EventFds(vec![])),
        (1, 0, 0, IrqAction::Trigger, IrqData::Bool(&[])),
        (0, 0, 0, IrqAction::Unmask, IrqData::None),
        (1, 0, 2, IrqAction::Trigger, IrqData::Bool(&[1])),
        (1, 0, 2, IrqAction::Trigger, IrqData::EventFds(vec![fd()])),
        (1, 0, 1, IrqAction::Trigger, IrqData::EventFds(vec![fd(), fd()])),
        (1, 0, 1, IrqAction::Mask, IrqData::None),
        (2, 0, 1, IrqAction::Unmask, IrqData::Bool(&[1])),
        (0, 0, 1, IrqAction::Mask, IrqData::EventFds(vec![fd()])),
        (
            1,
            0,
            2,
            IrqAction::Trigger,
            IrqData::EventFds(vec![None, Some(rustix::pipe::pipe().unwrap().1)]),
        ),
    ];
    for (index, start, count, action, data) in cases {
        let what = format!("{index} {start} {count} {action:?} {data:?}");
        let error = irqs.set(A, IrqIndex(index), start, count, action, data).expect_err(&what);
        assert_eq!(error.errno(), Errno::INVAL, "{what}");
    }
    assert!(irqs.trigger(MSIX, 0).unwrap(), "the eventfd is still there");
    for (index, vector) in [(MSIX, 16), (IrqIndex(3), 0), (IrqIndex(4), 0)] {
        assert_eq!(irqs.trigger(index, vector).unwrap_err().errno(), Errno::INVAL);
        assert_eq!(irqs.set_level(index, vector, true).unwrap_err().errno(), Errno::INVAL);
        assert_eq!(irqs.set_device_mask(index, vector, true).unwrap_err().errno(), Errno::INVAL);
        assert!(!irqs.is_pending(index, vector));
    }
    arm(&irqs, A, ERR, 0, &[&line]);
}

#[test]
fn no_signal_comes_after_an_eventfd_was_taken_away() {
    let irqs = set();
    let stop = &std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        for _ in 0..2 {
            let irqs = &irqs;
            s.spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    irqs.trigger(MSIX, 0).unwrap();
                }
            });
        }
        for _ in 0..500 {
            let line = Line::new();
            arm(&irqs, A, MSIX, 0, &[&line]);
            std::thread::yield_now();
            irqs.set(A, MSIX, 0, 0, IrqAction::Trigger, IrqData::None).unwrap();
            line.seen();
            std::thread::yield_now();
            assert_eq!(line.seen(), 0);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn client_that_blocks_a_signal_loses_the_vectors_eventfd() {
    let (irqs, line, other) = (set(), Line::new(), Line::new());
    arm(&irqs, A, MSIX, 0, &[&line, &other]);
    rustix::io::write(&line.0, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    fcntl_setfl(&line.0, OFlags::empty()).unwrap();
    let vector = irqs.vector(MSIX, 0).unwrap();
    assert!(vector.trigger());
    assert!(!vector.has_eventfd());
    assert_eq!(vector.counters().blocked, 1);
    assert!(!vector.trigger(), "held until the client sets up another");
    assert!(irqs.trigger(MSIX, 1).unwrap(), "other vectors are as before");
    let fresh = Line::new();
    arm(&irqs, A, MSIX, 0, &[&fresh]);
    assert_eq!(fresh.seen(), 1);
}

/// Has an eventfd watched 60,000 times, through few descriptors.
fn watch_very_often(fd: &OwnedFd) -> (Vec<OwnedFd>, Vec<OwnedFd>) {
    use rustix::event::epoll;
    let copies: Vec<_> = (0..300).map(|_| fd.try_clone().unwrap()).collect();
    let polls: Vec<_> =
        (0..200).map(|_| epoll::create(epoll::CreateFlags::CLOEXEC).unwrap()).collect();
    for poll in &polls {
        for copy in &copies {
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(poll, copy, epoll::EventData::new_u64(0), flags).unwrap();
        }
    }
    (copies, polls)
}

#[test]
fn eventfd_that_is_watched_very_often_is_dropped_and_its_time_owed() {
    use vfiod_quota::{Ledger, Limits, Payer, User};
    let account = Ledger::new(Limits::of_process(1)).open("x").unwrap().account;
    let payer = Payer::new(account, User::Account(1));
    let ours = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    let fd = super::eventfd::EventFd::new(ours.try_clone().unwrap(), Some(&payer)).unwrap();
    let _watches = watch_very_often(&ours);
    let slow = (0..1_000).any(|_| fd.signal() == super::eventfd::Signalled::Slow);
    assert!(slow, "in vain: the eventfd is signalled on");
    assert!(payer.debt().pause().is_some());
}

#[test]
fn vector_handle_follows_what_clients_set_up() {
    let irqs = set();
    let vector = irqs.vector(MSIX, 3).unwrap();
    assert_eq!(irqs.vector(MSIX, 16).unwrap_err().errno(), Errno::INVAL);
    assert_eq!(irqs.vector(IrqIndex(9), 0).unwrap_err().errno(), Errno::INVAL);
    assert!(!vector.trigger());
    for line in [Line::new(), Line::new()] {
        arm(&irqs, A, MSIX, 3, &[&line]);
        assert!(vector.has_eventfd() && vector.trigger());
        assert_eq!(line.seen(), 1);
    }
    vector.set_device_mask(true);
    assert!(!vector.trigger());
    assert!(vector.is_pending());
    irqs.drop_file(A);
    assert!(!vector.has_eventfd());
}

#[test]
fn batch_decides_about_all_vectors_before_it_signals() {
    let (irqs, intx, lines) = (set(), Line::new(), [(); 3].map(|()| Line::new()));
    arm(&irqs, A, INTX, 0, &[&intx]);
    arm(&irqs, A, MSIX, 0, &lines.each_ref());
    let vectors = [0, 1, 2].map(|vector| irqs.vector(MSIX, vector).unwrap());
    let line = irqs.vector(INTX, 0).unwrap();
    let mut batch = IrqBatch::new();
    vectors.iter().for_each(|vector| batch.trigger(vector));
    batch.trigger(&vectors[0]);
    batch.set_level(&line, true);
    assert_eq!(lines.each_ref().map(|line| line.seen()), [0; 3]);
    assert!(vectors[0].is_pending());
    vectors[1].set_device_mask(true);
    batch.send();
    assert!(batch.is_empty());
    assert_eq!(lines.each_ref().map(|line| line.seen()), [1, 0, 1]);
    assert_eq!(intx.seen(), 1);
    batch.set_level(&line, false);
    batch.trigger(&vectors[2]);
    drop(batch);
    assert_eq!((lines[2].seen(), intx.seen()), (1, 0), "dropping a batch sends it");
}

#[test]
fn interrupts_raised_in_a_collected_call_are_sent_after_it() {
    let (irqs, intx, line) = (set(), Line::new(), Line::new());
    arm(&irqs, A, INTX, 0, &[&intx]);
    arm(&irqs, A, MSIX, 0, &[&line]);
    let ((), mut batch) = IrqBatch::collect(|| {
        assert!(irqs.trigger(MSIX, 0).unwrap(), "will be signalled");
        irqs.set_level(INTX, 0, true).unwrap();
        irqs.set_level(INTX, 0, false).unwrap();
        let ((), inner) = IrqBatch::collect(|| irqs.set_level(INTX, 0, true).unwrap());
        assert_eq!(intx.seen(), 0);
        drop(inner);
        assert_eq!((intx.seen(), line.seen()), (1, 0), "the inner call is over");
    });
    assert!(irqs.is_pending(MSIX, 0), "a state that is saved now has it");
    batch.send();
    assert_eq!((intx.seen(), line.seen()), (0, 1));
    let panicked = std::panic::catch_unwind(|| {
        IrqBatch::collect(|| {
            irqs.trigger(MSIX, 0).unwrap();
            panic!("in a callback");
        })
    });
    assert!(panicked.is_err() && irqs.is_pending(MSIX, 0));
    assert!(irqs.trigger(MSIX, 0).unwrap(), "nothing is collected any more");
    assert_eq!(line.seen(), 1);
}

#[test]
fn restored_interrupts_go_on_as_the_saved_ones() {
    let (irqs, intx, resample, line) = (set(), Line::new(), Line::new(), Line::new());
    arm(&irqs, A, INTX, 0, &[&intx]);
    let data = IrqData::EventFds(vec![resample.send()]);
    irqs.set(A, INTX, 0, 1, IrqAction::Unmask, data).unwrap();
    irqs.set_level(INTX, 0, true).unwrap();
    arm(&irqs, B, MSIX, 2, &[&line]);
    irqs.set_device_mask(MSIX, 2, true).unwrap();
    irqs.trigger(MSIX, 2).unwrap();
    irqs.set_device_mask(MSIX, 5, true).unwrap();
    assert_eq!((intx.seen(), line.seen()), (1, 0));

    let mut descriptors = Vec::new();
    let saved = irqs.save(|_, fd| {
        descriptors.push(fd.try_clone_to_owned().unwrap());
        FdToken(descriptors.len() as u64 - 1)
    });
    drop(irqs);
    let text = serde_json::to_string(&saved).unwrap();
    assert_eq!(
        text,
        r#"[{"0":{"level":true,"client_masked":true,"trigger":{"file":1,"fd":0},"#.to_owned()
            + r#""unmask":{"file":1,"fd":1}}},"#
            + r#"{"2":{"pending":true,"device_masked":true,"trigger":{"file":2,"fd":2}},"#
            + r#""5":{"device_masked":true}},{},{}]"#
    );
    let saved: IrqState = serde_json::from_str(&text).unwrap();

    let irqs = set();
    let find = |token: FdToken| Ok(descriptors[token.0 as usize].try_clone().unwrap());
    irqs.restore(&saved, find).unwrap();
    assert_eq!((intx.seen(), line.seen()), (0, 0));
    irqs.set_device_mask(MSIX, 2, false).unwrap();
    assert_eq!(line.seen(), 1, "it was pending");
    rustix::io::write(&resample.0, &1u64.to_ne_bytes()).unwrap();
    assert!(irqs.unmask_signalled(&irqs.unmask_fds(A)[0]));
    assert_eq!(intx.seen(), 1, "the line is still asserted");
    assert!(!irqs.trigger(MSIX, 5).unwrap(), "masked");
    irqs.drop_file(B);
    assert!(irqs.is_enabled(INTX) && !irqs.is_enabled(MSIX));
}

#[test]
fn restore_sends_what_was_pending_and_not_masked() {
    let (irqs, line) = (set(), Line::new());
    let mut saved = irqs.save(|_, _| unreachable!("nothing is set up"));
    let trigger = Some(SavedEventFd { file: A, fd: FdToken(7) });
    let state = VectorState { pending: true, trigger, ..VectorState::default() };
    saved.indices[1].insert(0, state);
    irqs.restore(&saved, |_| Ok(line.send().unwrap())).unwrap();
    assert_eq!(line.seen(), 1);
}

#[test]
fn malformed_states_are_refused_and_change_nothing() {
    let (irqs, line) = (set(), Line::new());
    arm(&irqs, A, MSIX, 0, &[&line]);
    let good = irqs.save(|_, _| FdToken(0));
    let eventfd = |_| Ok(line.send().unwrap());
    let mut few = good.clone();
    few.indices.pop();
    let mut beyond = good.clone();
    beyond.indices[1].insert(16, VectorState::default());
    for state in [&few, &beyond] {
        assert_eq!(irqs.restore(state, eventfd).unwrap_err().errno(), Errno::INVAL);
    }
    let pipe = |_| Ok(rustix::pipe::pipe().unwrap().1);
    assert_eq!(irqs.restore(&good, pipe).unwrap_err().errno(), Errno::INVAL);
    let missing = |_| Err(crate::Error::new(Errno::BADF, "no such descriptor"));
    assert_eq!(irqs.restore(&good, missing).unwrap_err().errno(), Errno::BADF);
    assert!(irqs.trigger(MSIX, 0).unwrap());
    assert_eq!(line.seen(), 1);
    irqs.restore(&good, eventfd).unwrap();
    assert!(irqs.trigger(MSIX, 0).unwrap());
}
