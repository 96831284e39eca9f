//! QEMU's educational device (QEMU documentation, `docs/specs/edu`): identification, liveness,
//! factorial, DMA in both directions, INTx and MSI.
//!
//! Differs from QEMU's: it is a PCI Express function, so that it has a function-level reset and
//! extended configuration space; a transfer takes no longer than it takes; one outside the
//! buffer is refused.

mod image;
mod registers;
#[cfg(test)]
mod tests;
mod transfer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vfiod_core::ReadTraits;
use vfiod_pci::prelude::*;

pub use self::image::EduImage;
use self::registers::{
    CAUSE_DMA, CAUSE_FACTORIAL, COMMAND_MASK, DMA_INTERRUPT, DMA_RUN, ID, REGISTERS, Reg,
    STATUS_COMPUTING, STATUS_INTERRUPT,
};
use self::transfer::Transfer;
use crate::RateLimiter;

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
    state: EduImage,
    warnings: RateLimiter,
}

impl Edu {
    /// The device with its options.
    pub fn new(options: EduOptions) -> Self {
        let dma_mask = Arc::new(AtomicU64::new(options.dma_mask));
        Self { dma_mask, state: EduImage::default(), warnings: RateLimiter::default() }
    }

    /// The address bits of the DMA engine, to be changed from outside. Transfers that are running
    /// keep what they were started with.
    pub fn dma_mask(&self) -> Arc<AtomicU64> {
        self.dma_mask.clone()
    }

    fn raise(&mut self, cx: &Cx<Self>, causes: u32) {
        self.state.causes |= causes;
        if self.state.causes != 0 {
            cx.interrupts().set(0, true);
        }
    }

    fn acknowledge(&mut self, cx: &Cx<Self>, causes: u32) {
        self.state.causes &= !causes;
        if self.state.causes == 0 {
            cx.interrupts().set(0, false);
        }
    }

    /// Computes the factorial that the state says is under way.
    fn compute(&mut self, cx: &Cx<Self>) {
        let n = self.state.factorial;
        let started = cx.spawn("factorial", move |task| async move {
            let result = factorial(n);
            task.step(|edu, cx| {
                edu.state.computing = 0;
                edu.state.factorial = result;
                if edu.state.status & STATUS_INTERRUPT != 0 {
                    edu.raise(cx, CAUSE_FACTORIAL);
                }
            })
            .await;
        });
        self.must_start(cx, started.err());
    }

    /// Carries out the transfer that the state says is under way.
    fn transfer(&mut self, cx: &Cx<Self>) {
        let started = cx.spawn("transfer", |task| async move {
            let transfer = task.step(|edu, _| Transfer::of(&edu.state)).await;
            let outcome = match transfer {
                Ok(transfer) => transfer.run(task.dma()).await,
                Err(error) => Err(error),
            };
            task.step(|edu, cx| edu.end_transfer(cx, outcome)).await;
        });
        self.must_start(cx, started.err());
    }

    fn end_transfer(&mut self, cx: &Cx<Self>, outcome: Result<Transfer>) {
        self.state.transfer = 0;
        match outcome {
            Ok(transfer) => transfer.finish(&mut self.state),
            Err(error) => {
                if let Some(suppressed) = self.warnings.allow() {
                    let EduImage { source, destination, count, .. } = self.state;
                    tracing::warn!(
                        device = cx.name(), %error, count, suppressed,
                        "DMA from {source:#x} to {destination:#x} failed"
                    );
                }
            }
        }
        if self.state.command & DMA_INTERRUPT != 0 {
            self.raise(cx, CAUSE_DMA);
        }
    }

    /// A task of an open device can always be started: it has at most two.
    fn must_start(&mut self, cx: &Cx<Self>, error: Option<Error>) {
        if let Some(error) = error {
            tracing::error!(device = cx.name(), %error, "work was not started");
        }
    }
}

impl Model for Edu {
    type State = Works<HasState>;

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
        let state = &self.state;
        let bit = |flag: u32, bit: u64| if flag != 0 { bit } else { 0 };
        REGISTERS.read(offset, data, |register| match register {
            Reg::Id => ID.into(),
            Reg::Liveness => state.liveness.into(),
            Reg::Factorial => state.factorial.into(),
            Reg::Status => u64::from(state.status) | bit(state.computing, STATUS_COMPUTING.into()),
            Reg::InterruptStatus => state.causes.into(),
            Reg::DmaSource => state.source,
            Reg::DmaDestination => state.destination,
            Reg::DmaCount => state.count,
            Reg::DmaCommand => state.command | bit(state.transfer, DMA_RUN),
            Reg::InterruptRaise | Reg::InterruptAcknowledge => u64::MAX, // write-only
        });
    }

    fn read_traits(&self, _bar: u8, offset: u64, len: usize) -> ReadTraits {
        REGISTERS.read_traits(offset, len)
    }

    fn write(&mut self, cx: &Cx<Self>, _bar: u8, offset: u64, data: &[u8]) {
        let Some((register, value)) = REGISTERS.write(offset, data) else { return };
        let word = value as u32;
        let (busy, computing) = (self.state.transfer != 0, self.state.computing != 0);
        match register {
            Reg::Liveness => self.state.liveness = !word,
            Reg::Factorial if computing => {}
            Reg::Factorial => {
                (self.state.computing, self.state.factorial) = (1, word);
                self.compute(cx);
            }
            Reg::Status => self.state.status = word & STATUS_INTERRUPT,
            Reg::InterruptRaise => self.raise(cx, word),
            Reg::InterruptAcknowledge => self.acknowledge(cx, word),
            Reg::DmaSource | Reg::DmaDestination | Reg::DmaCount | Reg::DmaCommand if busy => {}
            Reg::DmaSource => self.state.source = value,
            Reg::DmaDestination => self.state.destination = value,
            Reg::DmaCount => self.state.count = value,
            Reg::DmaCommand if value & DMA_RUN != 0 => {
                self.state.command = value & COMMAND_MASK;
                self.state.mask = self.dma_mask.load(Ordering::Relaxed);
                self.state.transfer = 1;
                self.transfer(cx);
            }
            Reg::DmaCommand => {}
            Reg::Id | Reg::InterruptStatus => {} // read-only
        }
    }

    fn reset(&mut self, _cx: &Cx<Self>) {
        let Self { dma_mask: _, state, warnings: _ } = self;
        *state = EduImage::default();
    }
}

impl Worker for Edu {
    type Saves = HasState;

    /// A transfer moves the same bytes when it is repeated, and a factorial is computed anew: so
    /// both can be dropped at any await, and are started again by `resume`.
    fn quiesce(&mut self, _cx: &Cx<Self>, why: Why) -> Quiesce {
        if why.ends() {
            // Even where the state is retained: a transfer could reach the next client's memory.
            self.state.transfer = 0;
        }
        Quiesce::Cancel
    }

    fn resume(&mut self, cx: &Cx<Self>) {
        if self.state.computing != 0 && cx.find_task("factorial").is_none() {
            self.compute(cx);
        }
        if self.state.transfer != 0 && cx.find_task("transfer").is_none() {
            self.transfer(cx);
        }
    }
}

impl Save for Edu {
    const KIND: &'static str = "edu";
    const VERSION: u32 = 1;
    type Image = EduImage;

    fn save(&self) -> EduImage {
        let Self { dma_mask: _, state, warnings: _ } = self;
        state.clone()
    }

    fn restore(&mut self, _cx: &Cx<Self>, image: EduImage) -> Result<()> {
        if !image.is_valid() {
            return Err(Error::new(Errno::INVAL, "edu: a flag that the device does not have"));
        }
        self.state = image;
        Ok(())
    }
}

/// `n!` modulo 2^32. It is 0 from 34! on, so the loop is short.
fn factorial(n: u32) -> u32 {
    let step = |product: u32, factor| match product.wrapping_mul(factor) {
        0 => None,
        product => Some(product),
    };
    (2..=n).try_fold(1, step).unwrap_or(0)
}
