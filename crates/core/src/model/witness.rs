//! A device that watches how the core treats it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use crate::contain::DeviceBug;
use crate::context::Context;
use crate::device::{Description, Device, DeviceFlags, Request, ResetCause};
use crate::error::{Errno, Error, Result};
use crate::ids::SetObject;
use crate::ids::{FileId, Owner};
use crate::irq::{IrqFlags, IrqInfo};
use crate::region::{Doorbell, Region, RegionIndex};
use crate::sync::atomic::{AtomicUsize, Ordering};

/// Who opens devices in the models; others are foreign.
pub(crate) fn owner() -> Owner {
    Owner::in_process("model")
}

/// What the devices of one set have seen. Its own lock is std's, which the checker does not
/// see; it is never held over a point at which the checker may switch.
#[derive(Default)]
pub(crate) struct Ledger {
    state: Mutex<State>,
    point: AtomicUsize,
}

#[derive(Default)]
struct State {
    violations: Vec<String>,
    /// Inside `open_device` or `close_device`.
    busy: Option<&'static str>,
    devices: HashMap<&'static str, Seen>,
    opened: usize,
    released: usize,
    asked: bool,
    /// A hot reset is expected; how many of its steps, one for each reset of a member, have begun,
    /// and how many it has.
    hot: Option<(usize, usize)>,
    /// The steps that had begun when a client had rung a doorbell.
    rung: Option<usize>,
}

#[derive(Default)]
struct Seen {
    open: bool,
    files: HashSet<FileId>,
    /// Those that are not the model's own.
    foreign: HashSet<FileId>,
}

impl SetObject for Ledger {
    fn set_name(&self) -> String {
        "set".to_owned()
    }
}

impl Ledger {
    /// Lets the checker switch to another task.
    pub(crate) fn pause(&self) {
        self.point.load(Ordering::SeqCst);
    }

    fn with<R>(&self, look: impl FnOnce(&mut State) -> R) -> R {
        look(&mut self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    pub(crate) fn violation(&self, what: impl Into<String>) {
        self.with(|state| state.violations.push(what.into()));
    }

    /// Whether `request` has been called: unregister began before.
    pub(crate) fn asked(&self) -> bool {
        self.with(|state| state.asked)
    }

    /// Hot resets of so many steps may come from now on, and no other reset of the set.
    pub(crate) fn expect_hot_reset(&self, steps: usize) {
        self.with(|state| state.hot = Some((0, steps)));
    }

    /// How many steps of hot resets have begun.
    pub(crate) fn hot_steps(&self) -> usize {
        self.with(|state| state.hot.map_or(0, |(begun, _)| begun))
    }

    /// A client has rung a doorbell by now.
    pub(crate) fn rung(&self) {
        self.with(|state| state.rung = state.hot.map(|(begun, _)| begun));
    }

    /// Whether that was before so many steps had begun.
    pub(crate) fn rung_before(&self, steps: usize) -> bool {
        self.with(|state| state.rung.is_some_and(|begun| begun < steps))
    }

    /// The end of a scenario in which every file was dropped: nothing wrong, nothing left.
    pub(crate) fn finish(&self) {
        self.with(|state| {
            assert!(state.violations.is_empty(), "{}", state.violations.join("; "));
            assert_eq!(state.opened, state.released, "opens and releases");
            assert!(state.devices.values().all(|seen| !seen.open), "a device was left open");
        });
    }
}

/// The device.
pub(crate) struct Witness {
    name: &'static str,
    ledger: Arc<Ledger>,
    /// Callbacks that go wrong, once each.
    fails: Vec<&'static str>,
    /// Callbacks that panic, once each.
    panics: Vec<&'static str>,
    /// Done in `init`.
    on_init: Option<Box<dyn FnOnce() + Send>>,
    /// Whether it has region 1, all of it mappable.
    shares: bool,
}

impl Witness {
    pub(crate) fn new(name: &'static str, ledger: &Arc<Ledger>) -> Self {
        let (fails, panics) = (Vec::new(), Vec::new());
        Self { name, ledger: ledger.clone(), fails, panics, on_init: None, shares: false }
    }

    /// With callbacks that fail, once each.
    pub(crate) fn failing(mut self, fails: Vec<&'static str>) -> Self {
        self.fails = fails;
        self
    }

    /// With callbacks that panic, once each.
    pub(crate) fn panicking(mut self, panics: Vec<&'static str>) -> Self {
        self.panics = panics;
        self
    }

    /// With a page that clients map.
    pub(crate) fn sharing(mut self) -> Self {
        self.shares = true;
        self
    }

    pub(crate) fn at_init(mut self, action: Box<dyn FnOnce() + Send>) -> Self {
        self.on_init = Some(action);
        self
    }

    fn seen<R>(&self, look: impl FnOnce(&mut Seen) -> R) -> R {
        self.ledger.with(|state| look(state.devices.entry(self.name).or_default()))
    }

    fn demand(&self, holds: bool, what: &str) {
        if !holds {
            self.ledger.violation(format!("{}: {what}", self.name));
        }
    }

    /// Fails or panics where it was told to.
    fn falter(&mut self, step: &'static str) -> Result<()> {
        let strike = |from: &mut Vec<&str>| {
            let at = from.iter().position(|name| *name == step);
            at.map(|at| from.swap_remove(at)).is_some()
        };
        if strike(&mut self.panics) {
            std::panic::resume_unwind(Box::new(DeviceBug));
        }
        if strike(&mut self.fails) {
            return Err(Error::new(Errno::NOSPC, step));
        }
        Ok(())
    }

    fn enter(&self, step: &str) {
        let busy = self.ledger.with(|state| state.busy.replace(self.name));
        self.demand(busy.is_none(), &format!("{step} overlaps another in the set"));
        self.ledger.pause();
    }

    fn leave(&self) {
        self.ledger.with(|state| state.busy = None);
    }
}

impl Device for Witness {
    fn persistence(&mut self) -> crate::state::Persistence<'_> {
        crate::state::Persistence::Stateless
    }

    fn describe(&self) -> Description {
        let flags = DeviceFlags::RESET;
        let bell = Doorbell::eventfd(0, 4).matching(0);
        let mut regions = vec![Region { doorbells: vec![bell], ..Region::registers(16) }];
        regions.extend(self.shares.then(|| Region::memory(4096)));
        let irq = IrqFlags::EVENTFD | IrqFlags::MASKABLE | IrqFlags::AUTOMASKED;
        Description { flags, regions, irqs: vec![IrqInfo { flags: irq, count: 1 }] }
    }

    fn init(&mut self, _ctx: &Context) -> Result<()> {
        if let Some(action) = self.on_init.take() {
            action();
        }
        Ok(())
    }

    fn open_device(&mut self) -> Result<()> {
        self.enter("open_device");
        let was_open = self.seen(|seen| seen.open);
        self.demand(!was_open, "open_device while open");
        let result = self.falter("open_device");
        self.seen(|seen| seen.open |= result.is_ok());
        self.leave();
        result
    }

    fn close_device(&mut self) {
        self.enter("close_device");
        let (was_open, files) =
            self.seen(|seen| (std::mem::take(&mut seen.open), seen.files.len()));
        self.demand(was_open, "close_device while closed");
        self.demand(files == 0, "close_device with files");
        self.leave();
        let _ = self.falter("close_device");
    }

    fn open(&mut self, file: FileId, owner: &Owner) -> Result<()> {
        let is_open = self.seen(|seen| seen.open);
        self.demand(is_open, "open while closed");
        self.ledger.pause();
        self.falter("open")?;
        let new = self.seen(|seen| seen.files.insert(file));
        self.demand(new, "open twice");
        if *owner != self::owner() {
            self.seen(|seen| seen.foreign.insert(file));
        }
        self.ledger.with(|state| state.opened += 1);
        Ok(())
    }

    fn release(&mut self, file: FileId) {
        let (known, is_open) = self.seen(|seen| (seen.files.remove(&file), seen.open));
        self.seen(|seen| seen.foreign.remove(&file));
        self.demand(known, "release without open");
        self.demand(is_open, "release while closed");
        self.ledger.with(|state| state.released += 1);
        self.ledger.pause();
        let _ = self.falter("release");
    }

    fn read(&mut self, _region: RegionIndex, _offset: u64, _data: &mut [u8]) -> Result<()> {
        let in_use = self.seen(|seen| seen.open && !seen.files.is_empty());
        self.demand(in_use, "an access after the release");
        let hot = self.ledger.with(|state| state.hot);
        let whole = hot.is_none_or(|(begun, steps)| begun % steps == 0);
        self.demand(whole, "an access amid a hot reset");
        self.ledger.pause();
        self.falter("read")
    }

    fn write(&mut self, _region: RegionIndex, _offset: u64, _data: &[u8]) -> Result<()> {
        let (hot, rung) = self.ledger.with(|state| (state.hot, state.rung));
        let stale = hot
            .is_some_and(|(begun, steps)| begun >= steps && rung.is_some_and(|rung| rung < steps));
        self.demand(!stale, "a doorbell from before the hot reset");
        Ok(())
    }

    fn reset(&mut self, cause: ResetCause) -> Result<()> {
        if cause == ResetCause::Set {
            let (idle, own) = self.ledger.with(|state| {
                let own = state.devices.values().all(|seen| seen.foreign.is_empty());
                match &mut state.hot {
                    Some((begun, _)) => {
                        *begun += 1;
                        (true, own)
                    }
                    None => (state.devices.values().all(|seen| !seen.open), true),
                }
            });
            self.demand(idle, "the set is reset while a member is open");
            self.demand(own, "a hot reset under another owner");
        }
        self.ledger.pause();
        self.falter("reset")
    }

    fn as_request(&mut self) -> Option<&mut dyn Request> {
        Some(self)
    }
}

impl Request for Witness {
    fn request(&mut self, _n: u32) -> bool {
        self.ledger.with(|state| state.asked = true);
        true
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let idle = self.seen(|seen| !seen.open && seen.files.is_empty());
        self.demand(idle, "dropped while open");
    }
}
