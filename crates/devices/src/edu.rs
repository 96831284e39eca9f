//! QEMU's educational device (QEMU documentation, `docs/specs/edu`): identification, liveness,
//! factorial, DMA in both directions, INTx and MSI.
//!
//! A factorial and a transfer run beside the register access that starts them, on a thread of
//! their own that ends with them, so that slow guest memory holds up nobody. A reset forgets
//! them: what they bring is dropped.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use vfiod_core::{Errno, Error, Result};
use vfiod_pci::{Bar, Capability, FunctionSpec, Handle, Model, Pin, Register, RegisterMap, Widths};

/// Where the device's buffer is in its own address space, and its length.
const BUFFER: u64 = 0x40000;
const BUFFER_LEN: usize = 4096;

const ID: u64 = 0x0100_00ed;
const STATUS_COMPUTING: u32 = 0x01;
const STATUS_IRQ_FACTORIAL: u32 = 0x80;
const IRQ_FACTORIAL: u32 = 0x001;
const IRQ_DMA: u32 = 0x100;
const DMA_RUN: u64 = 1;
const DMA_TO_RAM: u64 = 2;
const DMA_IRQ: u64 = 4;

#[derive(Clone, Copy, Debug)]
enum Reg {
    Id,
    Liveness,
    Factorial,
    Status,
    IrqStatus,
    IrqRaise,
    IrqAcknowledge,
    DmaSource,
    DmaDestination,
    DmaCount,
    DmaCommand,
}

const REGISTERS: RegisterMap<Reg> = RegisterMap::new(&[
    Register::new(0x00, Widths::W4, Reg::Id),
    Register::new(0x04, Widths::W4, Reg::Liveness),
    Register::new(0x08, Widths::W4, Reg::Factorial),
    Register::new(0x20, Widths::W4, Reg::Status),
    Register::new(0x24, Widths::W4, Reg::IrqStatus),
    Register::new(0x60, Widths::W4, Reg::IrqRaise),
    Register::new(0x64, Widths::W4, Reg::IrqAcknowledge),
    Register::new(0x80, Widths::W4_OR_8, Reg::DmaSource),
    Register::new(0x88, Widths::W4_OR_8, Reg::DmaDestination),
    Register::new(0x90, Widths::W4_OR_8, Reg::DmaCount),
    Register::new(0x98, Widths::W4_OR_8, Reg::DmaCommand),
]);

/// Options of the model.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EduOptions {
    /// Address bits that the device's DMA engine has, as a mask.
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
    options: EduOptions,
    handle: Option<Handle>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Clone)]
struct State {
    liveness: u32,
    factorial: u32,
    status: u32,
    irq_status: u32,
    dma_source: u64,
    dma_destination: u64,
    dma_count: u64,
    dma_command: u64,
    buffer: Box<[u8; BUFFER_LEN]>,
    /// Counts resets: work begun before the last one has lost its meaning.
    epoch: u64,
}

impl State {
    fn new(epoch: u64) -> Self {
        Self {
            liveness: 0,
            factorial: 0,
            status: 0,
            irq_status: 0,
            dma_source: 0,
            dma_destination: 0,
            dma_count: 0,
            dma_command: 0,
            buffer: Box::new([0; BUFFER_LEN]),
            epoch,
        }
    }

    fn raise(&mut self, handle: &Handle, causes: u32) {
        self.irq_status |= causes;
        if self.irq_status != 0 {
            handle.interrupts().set(0, true);
        }
    }

    fn acknowledge(&mut self, handle: &Handle, causes: u32) {
        self.irq_status &= !causes;
        if self.irq_status == 0 {
            handle.interrupts().set(0, false);
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `n!` modulo 2^32. It is 0 from 34! on, so the loop is short.
fn factorial(n: u32) -> u32 {
    (2..=n)
        .try_fold(1u32, |product, factor| match product.wrapping_mul(factor) {
            0 => None,
            product => Some(product),
        })
        .unwrap_or(0)
}

impl Edu {
    /// The device with its options.
    pub fn new(options: EduOptions) -> Self {
        Self { options, handle: None, state: Arc::new(Mutex::new(State::new(0))) }
    }

    /// Runs `work` on a thread of its own. Where there is none to be had, it runs right here.
    fn beside(&self, work: impl Fn(&Mutex<State>, &Handle) + Send + Sync + 'static) {
        let Some(handle) = self.handle.clone() else { return };
        let state = self.state.clone();
        let work = Arc::new(work);
        let started = std::thread::Builder::new().name("edu".to_owned()).spawn({
            let (state, handle, work) = (state.clone(), handle.clone(), work.clone());
            move || work(&state, &handle)
        });
        if let Err(error) = started {
            tracing::warn!(device = handle.name(), %error, "no thread; working in place");
            work(&state, &handle);
        }
    }

    fn start_factorial(&self, n: u32) {
        let epoch = {
            let mut state = lock(&self.state);
            if state.status & STATUS_COMPUTING != 0 {
                return; // as the documentation says: only after the bit is clear
            }
            state.factorial = n;
            state.status |= STATUS_COMPUTING;
            state.epoch
        };
        self.beside(move |state, handle| {
            let result = factorial(n);
            let mut state = lock(state);
            if state.epoch != epoch {
                return;
            }
            state.factorial = result;
            state.status &= !STATUS_COMPUTING;
            if state.status & STATUS_IRQ_FACTORIAL != 0 {
                state.raise(handle, IRQ_FACTORIAL);
            }
        });
    }

    fn start_dma(&self, command: u64) {
        let job = {
            let mut state = lock(&self.state);
            if state.dma_command & DMA_RUN != 0 || command & DMA_RUN == 0 {
                return;
            }
            state.dma_command = command;
            state.clone()
        };
        let mask = self.options.dma_mask;
        self.beside(move |state, handle| {
            let done = transfer(&job, mask, handle);
            let mut state = lock(state);
            if state.epoch != job.epoch {
                return;
            }
            match done {
                Ok(Some((at, bytes))) => state.buffer[at..at + bytes.len()].copy_from_slice(&bytes),
                Ok(None) => {}
                Err(error) => {
                    let (source, destination) = (job.dma_source, job.dma_destination);
                    tracing::warn!(
                        device = handle.name(), %error, count = job.dma_count,
                        "DMA from {source:#x} to {destination:#x} failed"
                    );
                }
            }
            state.dma_command &= !DMA_RUN;
            if state.dma_command & DMA_IRQ != 0 {
                state.raise(handle, IRQ_DMA);
            }
        });
    }
}

/// Does a transfer on a copy of the registers. What came from the guest goes into the buffer
/// later, if the device was not reset meanwhile.
fn transfer(job: &State, mask: u64, handle: &Handle) -> Result<Option<(usize, Vec<u8>)>> {
    let to_ram = job.dma_command & DMA_TO_RAM != 0;
    let (local, guest) = if to_ram {
        (job.dma_source, job.dma_destination)
    } else {
        (job.dma_destination, job.dma_source)
    };
    let count = usize::try_from(job.dma_count).unwrap_or(usize::MAX);
    let at = local
        .checked_sub(BUFFER)
        .and_then(|at| usize::try_from(at).ok())
        .filter(|at| at.checked_add(count).is_some_and(|end| end <= BUFFER_LEN))
        .ok_or_else(|| {
            Error::new(Errno::INVAL, format!("{count} bytes at {local:#x} are not in the buffer"))
        })?;
    if guest & !mask != 0 {
        tracing::warn!(device = handle.name(), "DMA address {guest:#x} is cut to {mask:#x}");
    }
    let guest = guest & mask;
    if count == 0 {
        return Ok(None);
    }
    if to_ram {
        handle.dma().write(guest, &job.buffer[at..at + count])?;
        Ok(None)
    } else {
        let mut bytes = vec![0; count];
        handle.dma().read(guest, &mut bytes)?;
        Ok(Some((at, bytes)))
    }
}

impl Model for Edu {
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

    fn init(&mut self, handle: &Handle) -> Result<()> {
        self.handle = Some(handle.clone());
        Ok(())
    }

    fn read(&mut self, _bar: u8, offset: u64, data: &mut [u8]) {
        let state = lock(&self.state);
        REGISTERS.read(offset, data, |register| match register {
            Reg::Id => ID,
            Reg::Liveness => state.liveness.into(),
            Reg::Factorial => state.factorial.into(),
            Reg::Status => state.status.into(),
            Reg::IrqStatus => state.irq_status.into(),
            Reg::DmaSource => state.dma_source,
            Reg::DmaDestination => state.dma_destination,
            Reg::DmaCount => state.dma_count,
            Reg::DmaCommand => state.dma_command,
            Reg::IrqRaise | Reg::IrqAcknowledge => u64::MAX, // write-only
        });
    }

    fn write(&mut self, _bar: u8, offset: u64, data: &[u8]) {
        let Some((register, value)) = REGISTERS.write(offset, data) else { return };
        let value32 = value as u32;
        let mut state = lock(&self.state);
        let idle = state.dma_command & DMA_RUN == 0;
        match (register, &self.handle) {
            (Reg::Liveness, _) => state.liveness = !value32,
            (Reg::Status, _) => {
                let keep = state.status & !STATUS_IRQ_FACTORIAL;
                state.status = keep | value32 & STATUS_IRQ_FACTORIAL;
            }
            (Reg::IrqRaise, Some(handle)) => state.raise(handle, value32),
            (Reg::IrqAcknowledge, Some(handle)) => state.acknowledge(handle, value32),
            (Reg::DmaSource, _) if idle => state.dma_source = value,
            (Reg::DmaDestination, _) if idle => state.dma_destination = value,
            (Reg::DmaCount, _) if idle => state.dma_count = value,
            (Reg::Factorial, _) => {
                drop(state);
                self.start_factorial(value32);
            }
            (Reg::DmaCommand, _) => {
                drop(state);
                self.start_dma(value);
            }
            _ => {}
        }
    }

    fn reset(&mut self) {
        let Self { options: _, handle: _, state } = self;
        let mut state = lock(state);
        *state = State::new(state.epoch + 1);
    }

    fn close(&mut self) {
        // Work under way finds the epoch changed, and its memory gone.
        lock(&self.state).epoch += 1;
    }
}

#[cfg(test)]
crate::conformance!(Edu::new(EduOptions::default()));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factorials() {
        assert_eq!([0, 1, 2, 5, 10, 12].map(factorial), [1, 1, 2, 120, 3_628_800, 479_001_600]);
        assert_eq!(factorial(13), 1_932_053_504); // 13! modulo 2^32
        assert_eq!([34, u32::MAX].map(factorial), [0, 0]);
    }
}
