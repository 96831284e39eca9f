//! The conformance suite refuses models that do not stop, or do not go on, as they must.

use std::panic::{AssertUnwindSafe, catch_unwind};

use vfiod_pci::prelude::*;
use vfiod_testing::{Driver, Subject};

/// What a model does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// `quiesce` answers `Done` while a task of it runs.
    SaysDone,
    /// `resume` does not start the work that was under way.
    ForgetsWork,
    /// The work that was under way is not forgotten by a reset.
    SurvivesReset,
}

registers! {
    /// Reads guest memory at 0 when START is written.
    #[derive(Debug)]
    struct Engine, enum Write {
        0x0 _: u32 => Start;
        0x4 working: u32, in 0..=1, volatile 1;
        kept begun: bool;
        kept fault: Fault;
    }
}

impl RegisterModel for Engine {
    type State = Works<HasState>;
    const KIND: &'static str = "engine";
    const VERSION: u32 = 1;

    fn spec(&self) -> FunctionSpec {
        FunctionSpec::new(0x1234, 0x0001)
            .bar(0, Bar::memory32(4096))
            .capability(Capability::Msi { vectors: 1 })
    }

    fn write(&mut self, cx: &Cx<Self>, Write::Start(_): Write) {
        (self.working, self.begun) = (1, true);
        self.start(cx);
    }
}

impl Engine {
    fn start(&self, cx: &Cx<Self>) {
        cx.ensure_task("read", |task| async move {
            _ = task.dma().read(0, &mut [0; 16]).await;
            task.last_step(|engine, cx| {
                (engine.working, engine.begun) = (0, false);
                cx.interrupts().trigger(0);
            })
            .await;
        });
    }
}

impl Worker for Engine {
    fn quiesce(&mut self, _cx: &Cx<Self>, _why: Why) -> Quiesce {
        if self.fault == Fault::SaysDone { Quiesce::Done } else { Quiesce::Cancel }
    }

    fn resume(&mut self, cx: &Cx<Self>) {
        let begun = match self.fault {
            Fault::ForgetsWork => false,
            Fault::SurvivesReset => self.begun,
            Fault::None | Fault::SaysDone => self.working != 0,
        };
        if begun {
            self.start(cx);
        }
    }
}

fn start(device: &Driver) {
    device.write32(0, 0, 1);
}

type Make = Box<dyn Fn() -> Engine>;

/// What a check says of an engine with a fault; `None`: it passes.
fn verdict(fault: Fault, check: fn(&Subject<Make>)) -> Option<String> {
    let make: Make = Box::new(move || Engine::power_on(false, fault));
    let subject = Subject::new(make).dma(start);
    let panic = catch_unwind(AssertUnwindSafe(|| check(&subject))).err()?;
    let text = panic.downcast_ref::<String>().cloned();
    Some(text.or_else(|| panic.downcast_ref::<&str>().map(|&s| s.to_owned())).expect("a text"))
}

#[test]
fn engine_without_a_fault_passes() {
    assert_eq!(verdict(Fault::None, Subject::quiesces_while_it_works), None);
    assert_eq!(verdict(Fault::None, Subject::quiesces_while_dma_waits), None);
}

#[test]
fn engine_that_says_done_while_it_works_is_refused() {
    for check in [Subject::quiesces_while_it_works, Subject::quiesces_while_dma_waits] {
        let verdict = verdict(Fault::SaysDone, check).expect("it is refused");
        assert!(
            verdict.contains("said that it had quiesced while task read was running"),
            "{verdict}"
        );
    }
}

#[test]
fn engine_that_forgets_its_work_over_a_save_is_refused() {
    let verdict = verdict(Fault::ForgetsWork, Subject::quiesces_while_dma_waits);
    let verdict = verdict.expect("it is refused");
    assert!(verdict.contains("not resumed after a save"), "{verdict}");
}

#[test]
fn engine_whose_work_survives_a_reset_is_refused() {
    let verdict = verdict(Fault::SurvivesReset, Subject::quiesces_while_dma_waits);
    let verdict = verdict.expect("it is refused");
    assert!(verdict.contains("after a reset"), "{verdict}");
}
