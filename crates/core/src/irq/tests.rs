use rustix::event::{EventfdFlags, eventfd};

use super::*;

const INTX: IrqIndex = IrqIndex(0);
const MSIX: IrqIndex = IrqIndex(1);
const ERR: IrqIndex = IrqIndex(2);
const A: FileId = FileId(1);
const B: FileId = FileId(2);

fn set() -> IrqSet {
    let info = |flags, count| IrqInfo { flags, count };
    IrqSet::new(&[
        info(IrqFlags::EVENTFD | IrqFlags::MASKABLE | IrqFlags::AUTOMASKED, 1),
        info(IrqFlags::EVENTFD | IrqFlags::NORESIZE, 16),
        info(IrqFlags::EVENTFD, 1),
        info(IrqFlags::empty(), 0),
    ])
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
    assert_eq!(counters, VectorCounters { signalled: 2, held: 2, lost: 0 });
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
