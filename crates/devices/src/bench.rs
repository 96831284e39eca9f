//! The bench device: memory to read and write, and operations that run inside the server while
//! the client waits, so that their cost can be read without the socket's.
//!
//! BAR 0 is 2 MiB of memory. BAR 2 has 64-bit registers: a write to OP runs an operation ITERS
//! times, RESULT_NS then says how long that took and ERRORS how many failed.

use std::time::Instant;

use serde::Deserialize;
use vfiod_core::Result;
use vfiod_core::memory::SharedMemory;
use vfiod_core::region::{SharedAreas, SparseArea};
use vfiod_pci::{
    Bar, BarKind, Capability, FunctionSpec, Handle, Model, Register, RegisterMap, Widths,
};

const MEMORY: usize = 2 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reg {
    Op,
    Iters,
    Base,
    Stride,
    Count,
    Len,
    ResultNs,
    Errors,
    Check,
}

const REGISTERS: RegisterMap<Reg> = RegisterMap::new(&[
    Register::new(0x00, Widths::W8, Reg::Op),
    Register::new(0x08, Widths::W8, Reg::Iters),
    Register::new(0x10, Widths::W8, Reg::Base),
    Register::new(0x18, Widths::W8, Reg::Stride),
    Register::new(0x20, Widths::W8, Reg::Count),
    Register::new(0x28, Widths::W8, Reg::Len),
    Register::new(0x30, Widths::W8, Reg::ResultNs),
    Register::new(0x38, Widths::W8, Reg::Errors),
    Register::new(0x40, Widths::W8, Reg::Check),
]);

/// Options of the model.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BenchOptions {
    /// Whether BAR 0 is memory that clients may map (and the core serves), or the model's own.
    pub shared: bool,
}

/// The device.
#[derive(Debug)]
pub struct Bench {
    memory: Vec<u8>,
    shared: Option<SharedAreas>,
    registers: [u64; 9],
    handle: Option<Handle>,
}

impl Bench {
    /// The device with its options.
    ///
    /// # Errors
    /// What the kernel says to a memfd of 2 MiB.
    pub fn new(options: BenchOptions) -> Result<Self> {
        let shared = if options.shared {
            let memory = SharedMemory::new("vfiod-bench", MEMORY as u64)?;
            let areas = vec![SparseArea { offset: 0, size: MEMORY as u64 }];
            Some(SharedAreas { memory, areas })
        } else {
            None
        };
        let memory = if options.shared { Vec::new() } else { vec![0; MEMORY] };
        Ok(Self { memory, shared, registers: [0; 9], handle: None })
    }

    fn run(&mut self, handle: &Handle, op: u64) {
        let [_, iters, base, stride, count, len, ..] = self.registers;
        // The operation runs inside one register write: bounded, or the client gives up.
        let iters = iters.min(10_000_000);
        let len = (len.min(1 << 20)) as usize;
        let mut buffer = vec![0; len];
        let mut random = 12345u64;
        let mut errors = 0u64;
        let start = Instant::now();
        for _ in 0..iters {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let window = ((random >> 32) * count.min(u64::from(u32::MAX))) >> 32;
            let iova = base.wrapping_add(stride.wrapping_mul(window));
            let done = match op {
                3 | 4 => handle.dma().read(iova, &mut buffer).is_ok(),
                5 => {
                    handle.interrupts().trigger(0);
                    true
                }
                _ => false,
            };
            errors += u64::from(!done);
        }
        let elapsed = start.elapsed().as_nanos() as u64;
        self.registers[Reg::ResultNs as usize] = elapsed;
        self.registers[Reg::Errors as usize] = errors;
        self.registers[Reg::Check as usize] = buffer.iter().map(|&byte| u64::from(byte)).sum();
    }
}

impl Model for Bench {
    fn spec(&self) -> FunctionSpec {
        let memory = Bar::new(BarKind::Memory64 { prefetchable: true }, MEMORY as u64);
        let memory = match &self.shared {
            Some(shared) => memory.shared(shared.clone()),
            None => memory,
        };
        FunctionSpec::new(0x1234, 0x7e32)
            .bar(0, memory)
            .bar(2, Bar::memory32(4096))
            .bar(4, Bar::memory32(4096))
            .capability(Capability::Msix { vectors: 4, table: (4, 0), pba: (4, 0x800) })
    }

    fn init(&mut self, handle: &Handle) -> Result<()> {
        self.handle = Some(handle.clone());
        Ok(())
    }

    fn read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        if bar == 0 {
            let at = offset as usize;
            match self.memory.get(at..at + data.len()) {
                Some(bytes) => data.copy_from_slice(bytes),
                None => data.fill(0xff),
            }
        } else {
            REGISTERS.read(offset, data, |register| self.registers[register as usize]);
        }
    }

    fn write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        if bar == 0 {
            let at = offset as usize;
            if let Some(bytes) = self.memory.get_mut(at..at + data.len()) {
                bytes.copy_from_slice(data);
            }
        } else if let Some((register, value)) = REGISTERS.write(offset, data) {
            self.registers[register as usize] = value;
            if register == Reg::Op
                && let Some(handle) = self.handle.clone()
            {
                self.run(&handle, value);
            }
        }
    }

    fn reset(&mut self) {
        let Self { memory, shared: _, registers, handle: _ } = self;
        memory.fill(0);
        *registers = [0; 9];
    }
}
