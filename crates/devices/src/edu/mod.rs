//! QEMU's educational device (QEMU documentation, `docs/specs/edu`): identification, liveness,
//! factorial, DMA in both directions, INTx and MSI.
//!
//! Differs from QEMU's: it is a PCI Express function, so that it has a function-level reset and
//! extended configuration space; a transfer takes no longer than it takes; one outside the
//! buffer is refused.

mod engine;
mod registers;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vfiod_core::ReadTraits;
use vfiod_pci::{Bar, CannotSave, Capability, Cx, FunctionSpec, Model, Pin, Unsaved};

use self::engine::{CLOSE_PATIENCE, Engine, RESET_PATIENCE};
use self::registers::{DMA_RUN, ID, REGISTERS, Reg, STATUS_COMPUTING, STATUS_INTERRUPT};

/// Options of the model.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EduOptions {
    /// Address bits of the DMA engine. By default a mask of 28 bits, as QEMU has it: a driver
    /// that forgets to set its own mask shows.
    pub dma_mask: u64,
}

impl Default for EduOptions {
    fn default() -> Self {
        Self { dma_mask: (1 << 28) - 1 }
    }
}

/// The device.
#[derive(Debug)]
pub struct Edu {
    dma_mask: Arc<AtomicU64>,
    engine: Engine,
}

impl Edu {
    /// The device with its options.
    pub fn new(options: EduOptions) -> Self {
        let dma_mask = Arc::new(AtomicU64::new(options.dma_mask));
        Self { dma_mask, engine: Engine::new() }
    }

    /// The address bits of the DMA engine, to be changed from outside. Transfers that are running
    /// keep what they were started with.
    pub fn dma_mask(&self) -> Arc<AtomicU64> {
        self.dma_mask.clone()
    }
}

impl Model for Edu {
    type State = CannotSave;

    fn spec(&self) -> FunctionSpec {
        FunctionSpec::new(0x1234, 0x11e8)
            .revision(0x10)
            .class(0x00_ff_00)
            .pin(Pin::A)
            .bar(0, Bar::memory32(1 << 20))
            .capability(Capability::PowerManagement)
            .capability(Capability::Express)
            .capability(Capability::Msi { vectors: 1 })
            .capability(Capability::SerialNumber(0x0011_e8ff_fe12_3400))
    }

    fn read(&mut self, _cx: &Cx<Self>, _bar: u8, offset: u64, data: &mut [u8]) {
        let state = self.engine.lock();
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        REGISTERS.read(offset, data, |register| match register {
            Reg::Id => ID.into(),
            Reg::Liveness => state.liveness.into(),
            Reg::Factorial => state.factorial.into(),
            Reg::Status => {
                u64::from(state.status) | bit(state.computing.is_some(), STATUS_COMPUTING.into())
            }
            Reg::InterruptStatus => state.causes.into(),
            Reg::DmaSource => state.source,
            Reg::DmaDestination => state.destination,
            Reg::DmaCount => state.count,
            Reg::DmaCommand => state.command | bit(state.transfer.is_some(), DMA_RUN),
            Reg::InterruptRaise | Reg::InterruptAcknowledge => u64::MAX, // write-only
        });
    }

    fn read_traits(&self, _bar: u8, offset: u64, len: usize) -> ReadTraits {
        REGISTERS.read_traits(offset, len)
    }

    fn write(&mut self, cx: &Cx<Self>, _bar: u8, offset: u64, data: &[u8]) {
        let Some((register, value)) = REGISTERS.write(offset, data) else { return };
        let handle = cx.handle();
        let word = value as u32;
        // Dropped first by what starts work: that takes the lock itself.
        let mut state = self.engine.lock();
        let idle = state.transfer.is_none();
        match register {
            Reg::Liveness => state.liveness = !word,
            Reg::Factorial => {
                drop(state);
                self.engine.start_factorial(handle, word);
            }
            Reg::Status => state.status = word & STATUS_INTERRUPT,
            Reg::InterruptRaise => state.raise(handle, word),
            Reg::InterruptAcknowledge => state.acknowledge(handle, word),
            Reg::DmaSource if idle => state.source = value,
            Reg::DmaDestination if idle => state.destination = value,
            Reg::DmaCount if idle => state.count = value,
            Reg::DmaCommand if value & DMA_RUN != 0 => {
                drop(state);
                let mask = self.dma_mask.load(Ordering::Relaxed);
                self.engine.start_transfer(handle, value & !DMA_RUN, mask);
            }
            Reg::DmaSource | Reg::DmaDestination | Reg::DmaCount | Reg::DmaCommand => {} // busy
            Reg::Id | Reg::InterruptStatus => {} // read-only
        }
    }

    fn reset(&mut self, cx: &Cx<Self>) {
        let Self { dma_mask: _, engine } = self;
        let mut state = engine.cancel_transfer(RESET_PATIENCE);
        state.reset();
        // Work that ended while the reset began may have raised it once more.
        cx.interrupts().set(0, false);
    }

    /// No access to the memory of a client that has gone, and above all not to its successor's.
    /// A factorial may go on: it touches nobody.
    fn close(&mut self, _cx: &Cx<Self>) {
        drop(self.engine.cancel_transfer(CLOSE_PATIENCE));
    }
}

impl Unsaved for Edu {
    const WHY: &'static str = "its work is not yet saved";
}

#[cfg(test)]
vfiod_testing::conformance!(Edu::new(EduOptions::default()));
