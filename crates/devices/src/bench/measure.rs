//! Operations that are measured inside the server, each in a task.

use std::hint::black_box;
use std::time::{Duration, Instant};

use vfiod_buffer::zeroed;
use vfiod_core::dma::{Attachment, Perm};
use vfiod_pci::prelude::*;
use vfiod_pci::{Interrupts, Task};
use vfiod_tasks::yield_now;

use super::Bench;
use super::registers::Op;

/// The longest access.
const MAX_LEN: u64 = 1 << 20;
/// An operation ends then, whatever was asked for.
const MAX_TIME: Duration = Duration::from_secs(3);
/// A task that runs for ten milliseconds without waiting is taken for stuck.
const SLICE: Duration = Duration::from_millis(2);
/// Translations under one acquisition of the table lock: what a device does for one batch of
/// descriptors from a ring.
const BATCH: u64 = 64;

registers! {
    /// The registers of the operations. A time differs from run to run, and so does what was reached
    /// within a limit of time.
    #[derive(Debug)]
    pub struct Measurement, enum Write {
        // A write starts an operation; see [`Op`]. Ignored while one is running.
        0x00 op: u64 => Op;
        // How often.
        0x08 iters: u64 => Iters;
        // Address of the first mapping.
        0x10 base: u64 => Base;
        // Distance from one mapping to the next, bytes.
        0x18 stride: u64 => Stride;
        // Number of mappings.
        0x20 count: u64 => Count;
        // Bytes of one access.
        0x28 len: u64 => Len;
        // How long the last operation took, ns.
        0x30 result_ns: u64, volatile u64::MAX;
        // How many of its iterations failed, or were not reached in time.
        0x38 errors: u64, volatile u64::MAX;
        // A sum over what it read or translated.
        0x40 check: u64, volatile u64::MAX;
        // 1 while an operation is running, else 0.
        0x48 running: u64, in 0..=1, volatile 1;
    }
}

impl Measurement {
    /// Restores the registers. `EINVAL`: the operation under way is none.
    pub(super) fn restored(image: <Self as Registers>::Image) -> Result<Self> {
        let mut measurement = Self::power_on();
        measurement.restore_registers(image)?;
        if measurement.is_running() && Op::from_value(measurement.op).is_none() {
            let what = format!("operation {} cannot be under way", measurement.op);
            return Err(Error::new(Errno::INVAL, what));
        }
        Ok(measurement)
    }

    /// Whether an operation is under way.
    pub(super) fn is_running(&self) -> bool {
        self.running != 0
    }

    /// Writes a register. Returns whether that starts an operation.
    pub(super) fn write(&mut self, write: Write) -> bool {
        match write {
            Write::Op(_) if self.is_running() => return false,
            Write::Op(op) => {
                (self.op, self.running) = (op, Op::from_value(op).is_some().into());
                return self.is_running();
            }
            Write::Iters(iters) => self.iters = iters,
            Write::Base(base) => self.base = base,
            Write::Stride(stride) => self.stride = stride,
            Write::Count(count) => self.count = count,
            Write::Len(len) => self.len = len,
        }
        false
    }

    /// The operation that is under way, from its beginning.
    pub(super) fn operation(&self, interrupts: &Interrupts) -> Option<Operation> {
        let op = Op::from_value(self.op).filter(|_| self.is_running())?;
        Some(Operation {
            op,
            iters: self.iters,
            mappings: Mappings {
                base: self.base,
                stride: self.stride,
                count: self.count.min(u32::MAX.into()),
                random: 12345,
            },
            len: self.len.min(MAX_LEN) as usize,
            buffer: Vec::new(),
            interrupts: interrupts.clone(),
            errors: 0,
            check: 0,
        })
    }

    /// The operation has ended.
    pub(super) fn end(&mut self, figures: &Figures) {
        let Figures { elapsed, errors, check } = *figures;
        self.result_ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        (self.errors, self.check, self.running) = (errors, check, 0);
    }
}

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
    len: usize,
    buffer: Vec<u8>,
    interrupts: Interrupts,
    errors: u64,
    check: u64,
}

/// What came out of an operation.
pub(super) struct Figures {
    elapsed: Duration,
    errors: u64,
    check: u64,
}

impl Operation {
    /// Runs it to its end, or until the device stops: then it is started anew.
    pub(super) async fn run(mut self, task: &Task<Bench>) -> Figures {
        let start = Instant::now();
        let Ok(buffer) = zeroed(self.len) else {
            return Figures { elapsed: start.elapsed(), errors: self.iters, check: 0 };
        };
        self.buffer = buffer;
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
