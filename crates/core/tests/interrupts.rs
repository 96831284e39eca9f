//! Interrupts that a device raises in a call of the core: they are sent when the call has ended.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vfiod_core::irq::{IrqAction, IrqData, IrqFlags, IrqIndex, IrqInfo};
use vfiod_core::{
    Context, Description, Device, DeviceFlags, DeviceSpec, DeviceTask, File, Owner, Persistence,
    Quiesce, Region, RegionIndex, Registration, Registry, ResetCause, Result, Why, Worker,
};
use vfiod_tasks::Runtime;

const REGISTERS: RegionIndex = RegionIndex(0);
const LINE: IrqIndex = IrqIndex(0);

/// What a call of the device does with its interrupt.
#[derive(Clone, Copy, Default, PartialEq)]
enum Act {
    #[default]
    Nothing,
    Trigger,
    RaiseAndLower,
    TriggerAndPanic,
    TriggerInATask,
}

#[derive(Default)]
struct Script {
    act: Mutex<Act>,
    /// The client's eventfd.
    fd: Mutex<Option<OwnedFd>>,
    /// The eventfd was signalled while a call ran.
    amid_the_call: AtomicBool,
    /// `resume` raises the line.
    raises_at_resume: AtomicBool,
}

struct Raiser {
    script: Arc<Script>,
    context: Option<Context>,
}

impl Raiser {
    fn act(&mut self, act: Act) {
        let context = self.context.as_ref().expect("registered");
        let irqs = context.irqs();
        match act {
            Act::Nothing => {}
            Act::Trigger | Act::TriggerAndPanic => {
                assert!(irqs.trigger(LINE, 0).expect("is there"), "it can be signalled");
                self.script.look();
                assert!(act == Act::Trigger, "the script says so");
            }
            Act::RaiseAndLower => {
                irqs.set_level(LINE, 0, true).expect("is there");
                irqs.set_level(LINE, 0, false).expect("is there");
            }
            Act::TriggerInATask => {
                let trigger = |task: DeviceTask<Self>| async move {
                    task.step(|raiser| raiser.act(Act::Trigger)).await;
                };
                DeviceTask::<Self>::spawn(context, "trigger", trigger).expect("starts");
            }
        }
    }
}

impl Script {
    /// Looks whether the client has been signalled, from within a call.
    fn look(&self) {
        let fd = self.fd.lock().unwrap();
        if fd.as_ref().is_some_and(is_readable) {
            self.amid_the_call.store(true, Ordering::SeqCst);
        }
    }
}

impl Device for Raiser {
    fn describe(&self) -> Description {
        let flags = IrqFlags::EVENTFD | IrqFlags::MASKABLE;
        let irqs = vec![IrqInfo { flags, count: 1 }];
        Description { flags: DeviceFlags::RESET, regions: vec![Region::registers(4)], irqs }
    }

    fn init(&mut self, context: &Context) -> Result<()> {
        self.context = Some(context.clone());
        Ok(())
    }

    fn persistence(&mut self) -> Persistence<'_> {
        Persistence::Stateless
    }

    fn as_worker(&mut self) -> Option<&mut dyn Worker> {
        Some(self)
    }

    fn open_device(&mut self) -> Result<()> {
        Ok(())
    }

    fn close_device(&mut self) {}

    fn read(&mut self, _: RegionIndex, _: u64, _: &mut [u8]) -> Result<()> {
        Ok(())
    }

    fn write(&mut self, _: RegionIndex, _: u64, _: &[u8]) -> Result<()> {
        let act = *self.script.act.lock().unwrap();
        self.act(act);
        Ok(())
    }

    fn reset(&mut self, _: ResetCause) -> Result<()> {
        Ok(())
    }
}

impl Worker for Raiser {
    fn quiesce(&mut self, _: Why) -> Quiesce {
        Quiesce::Cancel
    }

    fn resume(&mut self) {
        if self.script.raises_at_resume.load(Ordering::SeqCst) {
            let context = self.context.as_ref().expect("registered");
            context.irqs().set_level(LINE, 0, true).expect("is there");
            self.script.look();
        }
    }
}

struct Rig {
    runtime: Runtime,
    script: Arc<Script>,
    file: File,
    fd: OwnedFd,
    _registration: Registration,
}

impl Rig {
    fn new() -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let registry = Registry::with_runtime(runtime.clone(), None);
        let script = Arc::<Script>::default();
        let device = Raiser { script: script.clone(), context: None };
        let spec = DeviceSpec { name: "raiser".to_owned(), ..DeviceSpec::default() };
        let registration = registry.register(spec, Box::new(device)).expect("registers");
        let file = registration.device().open(Owner::in_process("test")).expect("opens");
        let fd = eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd");
        let data = IrqData::EventFds(vec![fd.try_clone().ok()]);
        file.set_irqs(LINE, 0, 1, IrqAction::Trigger, data).expect("sets up");
        *script.fd.lock().unwrap() = fd.try_clone().ok();
        Self { runtime, script, file, fd, _registration: registration }
    }

    /// Writes the register, whose write does `act`.
    fn write(&self, act: Act) -> Result<()> {
        *self.script.act.lock().unwrap() = act;
        self.file.write(REGISTERS, 0, &[0; 4])
    }

    /// Signals since the last look.
    fn signals(&self) -> u64 {
        let mut counter = [0; 8];
        rustix::io::read(&self.fd, &mut counter).map_or(0, |_| u64::from_ne_bytes(counter))
    }

    #[track_caller]
    fn assert_nothing_amid_the_call(&self) {
        assert!(!self.script.amid_the_call.load(Ordering::SeqCst), "signalled amid the call");
    }
}

fn is_readable(fd: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready == 1)
}

#[test]
fn interrupt_is_signalled_after_the_call_that_raised_it() {
    let rig = Rig::new();
    rig.write(Act::Trigger).expect("can be written");
    rig.assert_nothing_amid_the_call();
    assert_eq!(rig.signals(), 1);
    rig.write(Act::Nothing).expect("can be written");
    assert_eq!(rig.signals(), 0);
}

#[test]
fn interrupt_is_signalled_after_the_step_that_raised_it() {
    let rig = Rig::new();
    rig.write(Act::TriggerInATask).expect("can be written");
    assert_eq!(rig.signals(), 0);
    rig.runtime.run_until_idle();
    rig.assert_nothing_amid_the_call();
    assert_eq!(rig.signals(), 1);
}

#[test]
fn line_that_is_raised_and_lowered_in_one_call_is_not_signalled() {
    let rig = Rig::new();
    rig.write(Act::RaiseAndLower).expect("can be written");
    assert_eq!(rig.signals(), 0);
}

#[test]
fn interrupt_of_a_call_that_panics_is_not_signalled_and_a_reset_forgets_it() {
    let rig = Rig::new();
    rig.write(Act::TriggerAndPanic).expect_err("panics");
    assert_eq!(rig.signals(), 0);
    rig.file.reset().expect("resets");
    rig.write(Act::Nothing).expect("works again");
    assert_eq!(rig.signals(), 0);
    rig.write(Act::Trigger).expect("can be written");
    assert_eq!(rig.signals(), 1);
}

#[test]
fn line_that_resume_raises_is_signalled_after_the_reset() {
    let rig = Rig::new();
    rig.script.raises_at_resume.store(true, Ordering::SeqCst);
    rig.file.reset().expect("resets");
    rig.assert_nothing_amid_the_call();
    assert_eq!(rig.signals(), 1);
}
