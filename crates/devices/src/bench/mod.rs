//! The bench device: memory to read and write, and operations that run inside the server while
//! the client waits, so that their cost can be read without the socket's.
//!
//! BAR 0 is 2 MiB of memory. BAR 2 has 64-bit registers: a write to OP runs an operation ITERS
//! times, RESULT_NS then says how long that took and ERRORS how many failed.

mod registers;
#[cfg(test)]
mod tests;

use std::hint::black_box;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vfiod_core::Result;
use vfiod_core::dma::Perm;
use vfiod_core::region::SparseArea;
use vfiod_pci::{Bar, BarKind, CannotSave, Capability, Cx, FunctionSpec, Handle, Model, Unsaved};

use self::registers::{COUNT, Op, REGISTERS, Reg};

const MEMORY: usize = 2 << 20;
/// The longest access.
const MAX_LEN: u64 = 1 << 20;
/// An operation runs inside one register write, and a client gives up after five seconds.
const MAX_TIME: Duration = Duration::from_secs(3);
/// Translations under one acquisition of the table lock: what a device does for one batch of
/// descriptors from a ring.
const BATCH: u64 = 64;

/// Options of the model.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BenchOptions {
    /// Whether BAR 0 is memory that clients may map and the core serves, or the model's own.
    pub shared: bool,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self { shared: true }
    }
}

/// BAR 0.
#[derive(Debug)]
enum Memory {
    /// The core serves it.
    Shared,
    /// The model does.
    Own { bytes: Vec<u8>, written: bool },
}

/// The device.
#[derive(Debug)]
pub struct Bench {
    memory: Memory,
    registers: [u64; COUNT],
    /// What an operation reads into; there when it was needed once.
    buffer: Vec<u8>,
    handle: Option<Handle>,
}

impl Bench {
    /// The device with its options.
    ///
    /// # Errors
    /// What the kernel says to a memfd of 2 MiB.
    pub fn new(options: BenchOptions) -> Result<Self> {
        let memory = if options.shared {
            Memory::Shared
        } else {
            Memory::Own { bytes: vec![0; MEMORY], written: false }
        };
        Ok(Self { memory, registers: [0; COUNT], buffer: Vec::new(), handle: None })
    }

    /// Masters the bus at once: clients that only measure write no command register.
    fn master(&self) {
        if let Some(handle) = &self.handle {
            handle.dma().set_bus_master(true);
        }
    }

    fn run(&mut self, handle: &Handle, op: Op) {
        let register = |register: Reg| self.registers[register as usize];
        let iters = register(Reg::Iters);
        let len = register(Reg::Len).min(MAX_LEN) as usize;
        let mut work = Work {
            handle,
            windows: Windows {
                base: register(Reg::Base),
                stride: register(Reg::Stride),
                count: register(Reg::Count).min(u32::MAX.into()),
                random: 12345,
            },
            len,
            buffer: &mut self.buffer,
            errors: 0,
            check: 0,
        };
        work.buffer.resize(len, 0);
        let start = Instant::now();
        let mut left = iters;
        while left > 0 && start.elapsed() < MAX_TIME {
            // By message each may take as long as the client likes.
            let batch = if op == Op::Read { 1 } else { left.min(BATCH) };
            work.batch(op, batch);
            left -= batch;
        }
        let elapsed = start.elapsed().as_nanos() as u64;
        let (errors, check) = (work.errors + left, work.check);
        self.registers[Reg::ResultNs as usize] = elapsed;
        self.registers[Reg::Errors as usize] = errors;
        self.registers[Reg::Check as usize] = check;
    }
}

/// The windows that the client has mapped, as it tells.
struct Windows {
    base: u64,
    stride: u64,
    count: u64,
    random: u64,
}

impl Windows {
    /// The address of a random one.
    fn next(&mut self) -> u64 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let window = ((self.random >> 32) * self.count) >> 32;
        self.base.wrapping_add(self.stride.wrapping_mul(window))
    }
}

/// An operation that runs.
struct Work<'a> {
    handle: &'a Handle,
    windows: Windows,
    len: usize,
    buffer: &'a mut Vec<u8>,
    errors: u64,
    check: u64,
}

impl Work<'_> {
    fn batch(&mut self, op: Op, iters: u64) {
        match op {
            Op::TranslateRandom => self.translate(iters, Windows::next),
            Op::TranslateSame => self.translate(iters, |windows| windows.base),
            Op::Read => {
                for _ in 0..iters {
                    let iova = self.windows.next();
                    let done = self.handle.dma().read(iova, self.buffer);
                    self.errors += u64::from(done.is_err());
                    self.check += u64::from(self.buffer.first().copied().unwrap_or(0));
                }
            }
            Op::Interrupt => (0..iters).for_each(|_| self.handle.interrupts().trigger(0)),
        }
    }

    fn translate(&mut self, iters: u64, iova: impl Fn(&mut Windows) -> u64) {
        let Ok(mut access) = self.handle.dma().access() else {
            self.errors += iters;
            return;
        };
        for _ in 0..iters {
            match access.translate(iova(&mut self.windows), self.len, Perm::READ) {
                Ok(span) => self.check += black_box(&span).len() as u64,
                Err(_) => self.errors += 1,
            }
        }
    }
}

impl Model for Bench {
    type State = CannotSave;

    /// Vendor 1234 belongs to nobody; virtual devices use it.
    fn spec(&self) -> FunctionSpec {
        let bar = Bar::new(BarKind::Memory64 { prefetchable: true }, MEMORY as u64);
        let bar = match &self.memory {
            Memory::Shared => bar.shared(vec![SparseArea { offset: 0, size: MEMORY as u64 }]),
            Memory::Own { .. } => bar,
        };
        FunctionSpec::new(0x1234, 0x7e32)
            .bar(0, bar)
            .bar(2, Bar::memory32(4096))
            .bar(4, Bar::memory32(4096))
            .capability(Capability::Msix { vectors: 4, table: (4, 0), pba: (4, 0x800) })
    }

    fn init(&mut self, cx: &Cx<Self>) -> Result<()> {
        self.handle = Some(cx.handle().clone());
        self.master();
        Ok(())
    }

    fn read(&mut self, _cx: &Cx<Self>, bar: u8, offset: u64, data: &mut [u8]) {
        match (bar, &self.memory) {
            (0, Memory::Own { bytes, .. }) => {
                let at = offset as usize;
                data.copy_from_slice(&bytes[at..at + data.len()]);
            }
            (2, _) => REGISTERS.read(offset, data, |register| self.registers[register as usize]),
            _ => data.fill(0xff),
        }
    }

    fn write(&mut self, _cx: &Cx<Self>, bar: u8, offset: u64, data: &[u8]) {
        match (bar, &mut self.memory) {
            (0, Memory::Own { bytes, written }) => {
                let at = offset as usize;
                bytes[at..at + data.len()].copy_from_slice(data);
                *written = true;
            }
            (2, _) => {
                let Some((register, value)) = REGISTERS.write(offset, data) else { return };
                self.registers[register as usize] = value;
                if register == Reg::Op
                    && let Some(op) = Op::from_value(value)
                    && let Some(handle) = self.handle.clone()
                {
                    self.run(&handle, op);
                }
            }
            _ => {}
        }
    }

    fn reset(&mut self, _cx: &Cx<Self>) {
        let Self { memory, registers, buffer: _, handle: _ } = self;
        match memory {
            Memory::Own { bytes, written: written @ true } => {
                bytes.fill(0);
                *written = false;
            }
            Memory::Own { .. } | Memory::Shared => {}
        }
        *registers = [0; COUNT];
        self.master();
    }
}

impl Unsaved for Bench {
    const WHY: &'static str = "it measures one process; a restart ends the measurement";
}

#[cfg(test)]
vfiod_testing::conformance!(
    shared_memory,
    Bench::new(BenchOptions { shared: true }).expect("a memfd")
);
#[cfg(test)]
vfiod_testing::conformance!(
    own_memory,
    Bench::new(BenchOptions { shared: false }).expect("memory")
);
