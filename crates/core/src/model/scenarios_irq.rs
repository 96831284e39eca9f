//! Model checks of interrupts: triggers against their setting up.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

use crate::irq::{IrqAction, IrqBatch, IrqData, IrqFlags, IrqIndex, IrqInfo, IrqSet};
use crate::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use crate::sync::thread;
use crate::{
    Context, Description, Device, DeviceFlags, DeviceSpec, FileId, OpenPolicy, Owner, Persistence,
    Region, RegionIndex, Registry, ResetCause, Result,
};

const FILE: FileId = FileId(1);
const LINE: IrqIndex = IrqIndex(0);

fn armed() -> (Arc<IrqSet>, Arc<OwnedFd>) {
    let flags = IrqFlags::EVENTFD | IrqFlags::MASKABLE | IrqFlags::AUTOMASKED;
    let irqs = IrqSet::new("test", &[IrqInfo { flags, count: 1 }]);
    let fd = eventfd(0, EventfdFlags::NONBLOCK).expect("eventfd");
    let data = IrqData::EventFds(vec![fd.try_clone().ok()]);
    irqs.set(FILE, LINE, 0, 1, IrqAction::Trigger, data).expect("sets up");
    (Arc::new(irqs), Arc::new(fd))
}

/// Signals since the last call.
fn seen(fd: &OwnedFd) -> u64 {
    let mut counter = [0; 8];
    rustix::io::read(fd, &mut counter).map_or(0, |_| u64::from_ne_bytes(counter))
}

/// A trigger, and a client that disables.
pub(crate) fn trigger_against_disable() {
    let (irqs, fd) = armed();
    let device = thread::spawn({
        let irqs = irqs.clone();
        move || drop(irqs.trigger(LINE, 0))
    });
    irqs.set(FILE, LINE, 0, 0, IrqAction::Trigger, IrqData::None).expect("disables");
    seen(&fd);
    device.join().expect("the device panicked");
    assert_eq!(seen(&fd), 0, "a signal after the eventfd was taken away");
}

/// Two edges of a line that masks itself: one signal, and one more after each unmask that finds
/// one pending.
pub(crate) fn edges_of_an_automasked_line() {
    let (irqs, fd) = armed();
    let devices = [0; 2].map(|_| {
        let irqs = irqs.clone();
        thread::spawn(move || drop(irqs.trigger(LINE, 0)))
    });
    devices.into_iter().for_each(|device| device.join().expect("a device panicked"));
    assert_eq!(seen(&fd), 1, "not one signal before the unmask");
    irqs.set(FILE, LINE, 0, 1, IrqAction::Unmask, IrqData::None).expect("unmasks");
    assert_eq!(seen(&fd), 1, "not one signal after it");
}

/// A line raised while the client unmasks: the signal comes, in whatever order.
pub(crate) fn level_against_unmask() {
    let (irqs, fd) = armed();
    irqs.set(FILE, LINE, 0, 1, IrqAction::Mask, IrqData::None).expect("masks");
    let device = thread::spawn({
        let irqs = irqs.clone();
        move || irqs.set_level(LINE, 0, true).expect("raises")
    });
    irqs.set(FILE, LINE, 0, 1, IrqAction::Unmask, IrqData::None).expect("unmasks");
    device.join().expect("the device panicked");
    assert_eq!(seen(&fd), 1, "not one signal");
}

/// Vectors that are raised in a batch, and a client that disables: each is signalled once before,
/// or never.
pub(crate) fn batch_against_disable() {
    let (irqs, fd) = armed();
    let device = thread::spawn({
        let irqs = irqs.clone();
        move || {
            let vector = irqs.vector(LINE, 0).expect("is there");
            let mut batch = IrqBatch::new();
            batch.trigger(&vector);
            thread::yield_now();
            batch.send();
        }
    });
    irqs.set(FILE, LINE, 0, 0, IrqAction::Trigger, IrqData::None).expect("disables");
    assert!(seen(&fd) <= 1);
    device.join().expect("the device panicked");
    assert_eq!(seen(&fd), 0, "a signal after the eventfd was taken away");
    assert!(!irqs.is_pending(LINE, 0), "pending for a client that has gone");
}

/// A line that is raised in a call that is collected, while the client masks and unmasks: a
/// signal comes after the unmask, however late the batch is sent.
pub(crate) fn collected_level_against_unmask() {
    let (irqs, fd) = armed();
    let device = thread::spawn({
        let irqs = irqs.clone();
        move || {
            let (raised, batch) = IrqBatch::collect(|| irqs.set_level(LINE, 0, true));
            raised.expect("raises");
            thread::yield_now();
            drop(batch);
        }
    });
    irqs.set(FILE, LINE, 0, 1, IrqAction::Mask, IrqData::None).expect("masks");
    let early = seen(&fd);
    irqs.set(FILE, LINE, 0, 1, IrqAction::Unmask, IrqData::None).expect("unmasks");
    device.join().expect("the device panicked");
    let late = seen(&fd);
    assert!(late >= 1 && early + late <= 2, "{early} signals before the unmask, {late} after");
}

const TRIGGER: RegionIndex = RegionIndex(0);

/// A device whose register triggers its interrupt.
struct Triggered {
    irqs: Option<Context>,
    resets: Arc<AtomicUsize>,
    /// How many resets there had been when the interrupt was triggered.
    after: Arc<AtomicUsize>,
}

impl Device for Triggered {
    fn describe(&self) -> Description {
        let irqs = vec![IrqInfo { flags: IrqFlags::EVENTFD, count: 1 }];
        Description { flags: DeviceFlags::RESET, regions: vec![Region::registers(4)], irqs }
    }

    fn init(&mut self, context: &Context) -> Result<()> {
        self.irqs = Some(context.clone());
        Ok(())
    }

    fn persistence(&mut self) -> Persistence<'_> {
        Persistence::Stateless
    }

    fn open_device(&mut self) -> Result<()> {
        Ok(())
    }

    fn close_device(&mut self) {}

    fn read(&mut self, _: RegionIndex, _: u64, _: &mut [u8]) -> Result<()> {
        Ok(())
    }

    fn write(&mut self, _: RegionIndex, _: u64, _: &[u8]) -> Result<()> {
        self.after.store(self.resets.load(SeqCst), SeqCst);
        self.irqs.as_ref().map_or(Ok(()), |own| own.irqs().trigger(LINE, 0).map(drop))
    }

    fn reset(&mut self, _: ResetCause) -> Result<()> {
        self.resets.fetch_add(1, SeqCst);
        Ok(())
    }
}

/// A call that raises an interrupt, and a reset of the device or of its set: what was raised before
/// the reset is signalled before the reset ends, or never.
pub(crate) fn interrupts_of_calls_against_resets() {
    for of_the_set in [false, true] {
        let registry = Registry::new();
        let (resets, after) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let device = Triggered { irqs: None, resets: resets.clone(), after: after.clone() };
        let (name, open) = ("triggered".to_owned(), OpenPolicy::Multi);
        let spec = DeviceSpec { name, open, ..DeviceSpec::default() };
        let registration = registry.register(spec, Box::new(device)).expect("registers");
        let [file, other] =
            [0; 2].map(|_| registration.device().open(Owner::in_process("model")).expect("opens"));
        let fd = eventfd(0, EventfdFlags::NONBLOCK).expect("eventfd");
        let data = IrqData::EventFds(vec![fd.try_clone().ok()]);
        file.set_irqs(LINE, 0, 1, IrqAction::Trigger, data).expect("sets up");
        let writer = thread::spawn(move || other.write(TRIGGER, 0, &[0]).is_ok());
        let result = if of_the_set { file.reset_set() } else { file.reset() };
        let last = resets.load(SeqCst);
        seen(&fd);
        writer.join().expect("the writer panicked");
        if result.is_ok() && after.load(SeqCst) < last {
            assert_eq!(seen(&fd), 0, "an interrupt from before the reset");
        }
        drop(file);
        registration.unregister(None);
    }
}

vfiod_sync::checks! {
    interrupts_of_calls_against_resets: 500,
    batch_against_disable: 1000,
    collected_level_against_unmask: 1000,
    trigger_against_disable: 1000,
    edges_of_an_automasked_line: 1000,
    level_against_unmask: 1000,
}
