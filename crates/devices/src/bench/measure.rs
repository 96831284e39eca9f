//! Operations that are measured inside the server, each in a task.

use std::hint::black_box;
use std::time::{Duration, Instant};

use vfiod_core::dma::{Attachment, Perm};
use vfiod_pci::{Interrupts, Task};
use vfiod_tasks::yield_now;

use super::Bench;
use super::registers::{COUNT, Op, Reg};

/// The longest access.
const MAX_LEN: u64 = 1 << 20;
/// An operation ends then, whatever was asked for.
const MAX_TIME: Duration = Duration::from_secs(3);
/// A task that runs for ten milliseconds without waiting is taken for stuck.
const SLICE: Duration = Duration::from_millis(2);
/// Translations under one acquisition of the table lock: what a device does for one batch of
/// descriptors from a ring.
const BATCH: u64 = 64;

/// The mappings that the client has made, as it tells.
struct Mappings {
    base: u64,
    stride: u64,
    count: u64,
    random: u64,
}

impl Mappings {
    /// The address of a random one.
    fn next(&mut self) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let mapping = ((self.random >> 32) * self.count) >> 32;
        self.base.wrapping_add(self.stride.wrapping_mul(mapping))
    }
}

/// An operation that runs.
pub(super) struct Operation {
    op: Op,
    iters: u64,
    mappings: Mappings,
    buffer: Vec<u8>,
    interrupts: Interrupts,
    errors: u64,
    check: u64,
}

/// What came out of an operation.
pub(super) struct Figures {
    pub(super) elapsed: Duration,
    pub(super) errors: u64,
    pub(super) check: u64,
}

impl Operation {
    pub(super) fn new(op: Op, registers: &[u64; COUNT], interrupts: &Interrupts) -> Self {
        let register = |register: Reg| registers[register as usize];
        Self {
            op,
            iters: register(Reg::Iters),
            mappings: Mappings {
                base: register(Reg::Base),
                stride: register(Reg::Stride),
                count: register(Reg::Count).min(u32::MAX.into()),
                random: 12345,
            },
            buffer: vec![0; register(Reg::Len).min(MAX_LEN) as usize],
            interrupts: interrupts.clone(),
            errors: 0,
            check: 0,
        }
    }

    /// Runs it to its end, or until the device stops: then it is started anew.
    pub(super) async fn run(mut self, task: &Task<Bench>) -> Figures {
        let start = Instant::now();
        let (mut left, mut slice) = (self.iters, SLICE);
        loop {
            let elapsed = start.elapsed();
            if left == 0 || elapsed >= MAX_TIME {
                break;
            }
            if elapsed > slice {
                task.task().pause_point().await;
                yield_now().await;
                slice = start.elapsed() + SLICE;
            }
            // By message each may take as long as the client likes.
            let batch = if self.op == Op::Read { 1 } else { left.min(BATCH) };
            self.batch(task.dma(), batch).await;
            left -= batch;
        }
        Figures { elapsed: start.elapsed(), errors: self.errors + left, check: self.check }
    }

    async fn batch(&mut self, dma: &Attachment, iters: u64) {
        match self.op {
            Op::TranslateRandom => self.translate(dma, iters, Mappings::next),
            Op::TranslateSame => self.translate(dma, iters, |mappings| mappings.base),
            Op::Read => {
                for _ in 0..iters {
                    let iova = self.mappings.next();
                    let done = dma.read(iova, &mut self.buffer).await;
                    self.errors += u64::from(done.is_err());
                    self.check += u64::from(self.buffer.first().copied().unwrap_or(0));
                }
            }
            Op::Interrupt => (0..iters).for_each(|_| self.interrupts.trigger(0)),
        }
    }

    fn translate(&mut self, dma: &Attachment, iters: u64, iova: impl Fn(&mut Mappings) -> u64) {
        let Ok(mut batch) = dma.batch() else {
            self.errors += iters;
            return;
        };
        for _ in 0..iters {
            match batch.translate(iova(&mut self.mappings), self.buffer.len(), Perm::READ) {
                Ok(span) => self.check += black_box(&span).len() as u64,
                Err(_) => self.errors += 1,
            }
        }
    }
}
