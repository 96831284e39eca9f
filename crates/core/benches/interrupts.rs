//! What an interrupt costs: `cargo bench -p vfiod-core --bench interrupts`. Prints Markdown.
//!
//! Each figure is the median of several rounds, in nanoseconds.

use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};
use vfiod_core::irq::{IrqAction, IrqData};
use vfiod_core::{Context, FileId, IrqFlags, IrqIndex, IrqInfo};

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

fn main() {
    println!("# Triggering an interrupt, ns\n");
    let context = Context::detached("bench", &[IrqInfo { flags: IrqFlags::EVENTFD, count: 4 }]);
    let irqs = context.irqs();
    let mut figures = Vec::new();
    for flags in [EventfdFlags::NONBLOCK, EventfdFlags::empty()] {
        let fd = eventfd(0, flags).expect("eventfd");
        let data = IrqData::EventFds(vec![Some(fd)]);
        irqs.set(FILE, IrqIndex(0), 0, 1, IrqAction::Trigger, data).expect("set");
        figures.push(time(500_000, |ops| {
            (0..ops).for_each(|_| _ = irqs.trigger(IrqIndex(0), 0).expect("trigger"));
        }));
    }
    irqs.set_device_mask(IrqIndex(0), 0, true).expect("mask");
    let masked = time(500_000, |ops| {
        (0..ops).for_each(|_| _ = irqs.trigger(IrqIndex(0), 0).expect("trigger"));
    });
    let fd = eventfd(0, EventfdFlags::NONBLOCK).expect("eventfd");
    let plain = time(500_000, |ops| {
        (0..ops).for_each(|_| _ = rustix::io::write(&fd, &1u64.to_ne_bytes()).expect("write"));
    });
    println!("| eventfd | blocking eventfd | masked | the write alone |");
    println!("| ---: | ---: | ---: | ---: |");
    println!("| {:.0} | {:.0} | {masked:.1} | {plain:.0} |", figures[0], figures[1]);
}
