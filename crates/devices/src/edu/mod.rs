//! QEMU's educational device (QEMU documentation, `docs/specs/edu`): identification, liveness,
//! factorial, DMA in both directions, INTx and MSI.
//!
//! Differs from QEMU's: it is a PCI Express function, so that it has a function-level reset and
//! extended configuration space; a transfer takes no longer than it takes; one outside the
//! buffer is refused.

mod registers;
#[cfg(test)]
mod tests;
mod transfer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vfiod_pci::prelude::*;

use self::registers::{
    BUFFER_LEN, CAUSE_DMA, CAUSE_FACTORIAL, COMMAND_MASK, DMA_INTERRUPT, DMA_RUN, DMA_TO_RAM, ID,
    STATUS_COMPUTING, STATUS_INTERRUPT,
};
use self::transfer::{Transfer, Way};
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

registers! {
    /// The device. Registers are 4 bytes wide below 0x80, 4 or 8 from there on. Whether work is done
    /// by the time of a read differs from run to run. Flags are 0 or 1.
    #[derive(Debug)]
    pub struct Edu, enum Write {
        0x00 _: u32 = |_| ID;
        // Reads as the complement of what was written.
        0x04 liveness: u32 => Liveness;
        // The number while its factorial is being computed, the factorial afterwards.
        0x08 factorial: u32 => Factorial, volatile u32::MAX;
        0x20 _: u32 = |edu| edu.status | (edu.computing * STATUS_COMPUTING) => Status,
            volatile STATUS_COMPUTING;
        // Causes that were raised and not acknowledged.
        0x24 causes: u32, volatile CAUSE_FACTORIAL | CAUSE_DMA;
        0x60 _: u32 => InterruptRaise;
        0x64 _: u32 => InterruptAcknowledge;
        0x80 source: u64 => DmaSource, width W4_OR_8;
        0x88 destination: u64 => DmaDestination, width W4_OR_8;
        0x90 count: u64 => DmaCount, width W4_OR_8;
        0x98 _: u64 = |edu| edu.command | (u64::from(edu.transfer) * DMA_RUN) => DmaCommand,
            width W4_OR_8, volatile DMA_RUN;

        // STATUS_INTERRUPT or nothing.
        state status: u32, bits STATUS_INTERRUPT;
        // DMA COMMAND without DMA_RUN.
        state command: u64, bits COMMAND_MASK;
        #[serde(with = "hex::serde")]
        state buffer: [u8; BUFFER_LEN];
        // A factorial is being computed.
        state computing: u32, in 0..=1;
        // A transfer is under way; its registers do not change meanwhile.
        state transfer: u32, in 0..=1;
        // The address bits that the transfer under way was started with.
        state mask: u64;

        kept dma_mask: Arc<AtomicU64>;
        kept warnings: RateLimiter;
    }
}

impl Edu {
    /// The device with its options.
    pub fn new(options: EduOptions) -> Self {
        Self::power_on(Arc::new(AtomicU64::new(options.dma_mask)), RateLimiter::default())
    }

    /// The address bits of the DMA engine, to be changed from outside. Transfers that are running
    /// keep what they were started with.
    pub fn dma_mask(&self) -> Arc<AtomicU64> {
        self.dma_mask.clone()
    }

    fn raise(&mut self, cx: &Cx<Self>, causes: u32) {
        self.causes |= causes;
        if self.causes != 0 {
            cx.interrupts().set(0, true);
        }
    }

    fn acknowledge(&mut self, cx: &Cx<Self>, causes: u32) {
        self.causes &= !causes;
        if self.causes == 0 {
            cx.interrupts().set(0, false);
        }
    }

    fn end_factorial(&mut self, cx: &Cx<Self>, result: u32) {
        (self.computing, self.factorial) = (0, result);
        if self.status & STATUS_INTERRUPT != 0 {
            self.raise(cx, CAUSE_FACTORIAL);
        }
    }

    /// The transfer that the registers describe. `EINVAL`: it is not within the buffer.
    fn described_transfer(&self) -> Result<Transfer> {
        let (way, local, guest) = if self.command & DMA_TO_RAM != 0 {
            (Way::ToRam, self.source, self.destination)
        } else {
            (Way::FromRam, self.destination, self.source)
        };
        // The engine has no more address bits than these: the rest is cut off.
        Transfer::new(way, &self.buffer, local, guest & self.mask, self.count)
    }

    fn end_transfer(&mut self, cx: &Cx<Self>, outcome: Result<Transfer>) {
        self.transfer = 0;
        match outcome {
            Ok(transfer) => transfer.finish(&mut self.buffer),
            Err(error) => {
                if let Some(suppressed) = self.warnings.allow() {
                    let Self { source, destination, count, .. } = *self;
                    let hex = |address| format!("{address:#x}");
                    tracing::warn!(
                        device = cx.name(), source = hex(source), destination = hex(destination),
                        count, %error, suppressed, "DMA failed"
                    );
                }
            }
        }
        if self.command & DMA_INTERRUPT != 0 {
            self.raise(cx, CAUSE_DMA);
        }
    }
}

impl RegisterModel for Edu {
    type State = Works<HasState>;
    const KIND: &'static str = "edu";
    const VERSION: u32 = 1;

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

    fn write(&mut self, cx: &Cx<Self>, write: Write) {
        match write {
            Write::Liveness(word) => self.liveness = !word,
            Write::Factorial(_) if self.computing != 0 => {}
            Write::Factorial(n) => {
                (self.computing, self.factorial) = (1, n);
                self.resume(cx);
            }
            Write::Status(word) => self.status = word & STATUS_INTERRUPT,
            Write::InterruptRaise(causes) => self.raise(cx, causes),
            Write::InterruptAcknowledge(causes) => self.acknowledge(cx, causes),
            // The rest describes a transfer.
            _ if self.transfer != 0 => {}
            Write::DmaSource(address) => self.source = address,
            Write::DmaDestination(address) => self.destination = address,
            Write::DmaCount(count) => self.count = count,
            Write::DmaCommand(command) if command & DMA_RUN != 0 => {
                self.command = command & COMMAND_MASK;
                self.mask = self.dma_mask.load(Ordering::Relaxed);
                self.transfer = 1;
                self.resume(cx);
            }
            Write::DmaCommand(_) => {}
        }
    }
}

impl Worker for Edu {
    /// A transfer moves the same bytes when it is repeated, and a factorial is computed anew: so
    /// both can be dropped at any await, and are started again by `resume`.
    fn quiesce(&mut self, _cx: &Cx<Self>, why: Why) -> Quiesce {
        if why.ends() {
            // Even where the state is retained: a transfer could reach the next client's memory.
            self.transfer = 0;
        }
        Quiesce::Cancel
    }

    fn resume(&mut self, cx: &Cx<Self>) {
        if self.computing != 0 {
            let n = self.factorial;
            cx.ensure_task("factorial", |task| async move {
                let result = factorial(n);
                task.last_step(|edu, cx| edu.end_factorial(cx, result)).await;
            });
        }
        if self.transfer != 0 {
            cx.ensure_task("transfer", |task| async move {
                let outcome = match task.step(|edu, _| edu.described_transfer()).await {
                    Ok(transfer) => transfer.run(task.dma()).await,
                    Err(error) => Err(error),
                };
                task.last_step(|edu, cx| edu.end_transfer(cx, outcome)).await;
            });
        }
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
