//! What an interrupt costs: `cargo bench -p vfiod-core --bench interrupts`. Prints Markdown.
//!
//! Each figure is the median of several rounds, in nanoseconds.

use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};
use vfiod_core::irq::{IrqAction, IrqBatch, IrqData, IrqVector};
use vfiod_core::{
    Context, Description, Device, DeviceFlags, DeviceSpec, File, FileId, IrqFlags, IrqIndex,
    IrqInfo, Owner, Persistence, Region, RegionIndex, Registration, Registry, ResetCause, Result,
};

const FILE: FileId = FileId(1);
const ROUNDS: usize = 7;

/// Median time of one of `ops` operations that `run` does.
fn time(ops: u64, mut run: impl FnMut(u64)) -> f64 {
    run(ops.div_ceil(10));
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            run(ops);
            start.elapsed().as_nanos() as f64 / ops as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

/// Rounds of two loops that take turns: the median of each, and of the difference of one pair.
fn side_by_side(ops: u64, mut ours: impl FnMut(), mut alone: impl FnMut()) -> [f64; 3] {
    let mut rounds: [Vec<f64>; 3] = Default::default();
    for _ in 0..ROUNDS * 10 {
        let ours = time_once(ops / 10, &mut ours);
        let alone = time_once(ops / 10, &mut alone);
        for (round, value) in rounds.iter_mut().zip([ours, alone, ours - alone]) {
            round.push(value);
        }
    }
    rounds.map(|mut round| {
        round.sort_by(f64::total_cmp);
        round[round.len() / 2]
    })
}

fn time_once(ops: u64, run: &mut impl FnMut()) -> f64 {
    let start = Instant::now();
    (0..ops).for_each(|_| run());
    start.elapsed().as_nanos() as f64 / ops as f64
}

const REGISTERS: RegionIndex = RegionIndex(0);
/// Values of the register.
const QUIET: u8 = 0;
const TRIGGER: u8 = 1;

/// A device whose register triggers its interrupt.
struct Triggered(Option<IrqVector>);

impl Device for Triggered {
    fn describe(&self) -> Description {
        let irqs = vec![IrqInfo { flags: IrqFlags::EVENTFD, count: 1 }];
        Description { flags: DeviceFlags::RESET, regions: vec![Region::registers(1)], irqs }
    }

    fn init(&mut self, context: &Context) -> Result<()> {
        self.0 = Some(context.irqs().vector(IrqIndex(0), 0)?);
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

    fn write(&mut self, _: RegionIndex, _: u64, data: &[u8]) -> Result<()> {
        if data[0] == TRIGGER
            && let Some(vector) = &self.0
        {
            vector.trigger();
        }
        Ok(())
    }

    fn reset(&mut self, _: ResetCause) -> Result<()> {
        Ok(())
    }
}

fn device_that_triggers() -> (File, Registration) {
    let registry = Registry::new();
    let spec = DeviceSpec { name: "triggered".to_owned(), ..DeviceSpec::default() };
    let registration = registry.register(spec, Box::new(Triggered(None))).expect("registers");
    let file = registration.device().open(Owner::in_process("bench")).expect("opens");
    (file, registration)
}

fn main() {
    const INDEX: IrqIndex = IrqIndex(0);
    const BATCH: u32 = 8;
    let info = IrqInfo { flags: IrqFlags::EVENTFD, count: BATCH };
    let context = Context::detached("bench", &[info]);
    let irqs = context.irqs();
    let vector = irqs.vector(INDEX, 0).expect("is there");
    let alone = eventfd(0, EventfdFlags::NONBLOCK).expect("eventfd");
    let write = || _ = rustix::io::write(&alone, &1u64.to_ne_bytes()).expect("write");

    println!("# An interrupt beside a write to an eventfd, in turns, ns\n");
    println!("| | interrupt | the write alone | above it |\n| --- | ---: | ---: | ---: |");
    for (what, flags) in
        [("eventfd", EventfdFlags::NONBLOCK), ("blocking eventfd", EventfdFlags::empty())]
    {
        let fds = (0..BATCH).map(|_| eventfd(0, flags).ok()).collect();
        irqs.set(FILE, INDEX, 0, BATCH, IrqAction::Trigger, IrqData::EventFds(fds)).expect("set");
        let [ours, alone, above] = side_by_side(200_000, || _ = vector.trigger(), write);
        println!("| {what} | {ours:.0} | {alone:.0} | {above:.0} |");
    }
    let vectors: Vec<_> = (0..BATCH).map(|at| irqs.vector(INDEX, at).expect("is there")).collect();
    let mut batch = IrqBatch::new();
    let [ours, alone, above] = side_by_side(
        50_000,
        || {
            vectors.iter().for_each(|vector| batch.trigger(vector));
            batch.send();
        },
        || (0..BATCH).for_each(|_| write()),
    );
    let [ours, alone, above] = [ours, alone, above].map(|batch| batch / f64::from(BATCH));
    println!("| each of a batch of {BATCH} | {ours:.0} | {alone:.0} | {above:.0} |");

    let (file, _registration) = device_that_triggers();
    let fds = vec![eventfd(0, EventfdFlags::NONBLOCK).ok()];
    file.set_irqs(INDEX, 0, 1, IrqAction::Trigger, IrqData::EventFds(fds)).expect("set");
    let call = |value: u8| file.write(REGISTERS, 0, &[value]).expect("is written");
    let [ours, alone, above] = side_by_side(
        200_000,
        || call(TRIGGER),
        || {
            call(QUIET);
            write();
        },
    );
    println!("| raised in a call, with the call | {ours:.0} | {alone:.0} | {above:.0} |");

    vector.set_device_mask(true);
    let masked = time(500_000, |ops| (0..ops).for_each(|_| _ = vector.trigger()));
    println!("\nMasked: {masked:.1} ns.");
}
