//! A checksum engine: the driver writes an address and a length, the device reads guest memory by
//! itself, adds it up, and interrupts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vfiod_config::ConfiguredModel;
use vfiod_pci::prelude::*;

/// Values of STATUS.
const IDLE: u32 = 0;
const BUSY: u32 = 1;
const DONE: u32 = 2;
const FAILED: u32 = 3;

#[derive(Clone, Copy, Debug)]
enum Reg {
    Address, // read-write: where in guest memory
    Length,  // write: how many bytes, and start; read: what was written
    Status,  // read: one of the values above; any write acknowledges the interrupt
    Sum,     // read-only: all bytes added up, modulo 2^32
}

const REGISTERS: RegisterMap<Reg> = RegisterMap::new(&[
    Register::new(0x00, Widths::W8, Reg::Address),
    Register::new(0x08, Widths::W4, Reg::Length),
    Register::new(0x0c, Widths::W4, Reg::Status).volatile(3), // changes by itself
    Register::new(0x10, Widths::W4, Reg::Sum).volatile(u32::MAX as u64),
]);

/// Options of the model.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Bytes that one request may have.
    limit: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { limit: 1 << 20 }
    }
}

vfiod_pci::image! {
    /// The registers. The saved image is the same.
    #[derive(Default)]
    pub struct Registers { address: u64, length: u32, status: u32, sum: u32, interrupt: u32 }
}

/// The device.
#[derive(Debug, Default)]
pub struct Checksum {
    options: Options,
    registers: Registers,
}

impl ConfiguredModel for Checksum {
    type Options = Options;
    const SUMMARY: &'static str = "adds up guest memory";

    fn configured(options: Options) -> Result<Self> {
        Ok(Self { options, registers: Registers::default() })
    }
}

impl Model for Checksum {
    type State = Works<HasState>;

    fn spec(&self) -> FunctionSpec {
        let spec = FunctionSpec::new(0x1234, 0xc5c5).class(0xff_00_00).pin(Pin::A);
        spec.bar(0, Bar::memory32(4096)).capability(Capability::Msi { vectors: 1 })
    }

    fn read(&mut self, _cx: &Cx<Self>, _bar: u8, offset: u64, data: &mut [u8]) {
        REGISTERS.read(offset, data, |register| match register {
            Reg::Address => self.registers.address,
            Reg::Length => self.registers.length.into(),
            Reg::Status => self.registers.status.into(),
            Reg::Sum => self.registers.sum.into(),
        });
    }

    fn read_traits(&self, _bar: u8, offset: u64, len: usize) -> ReadTraits {
        REGISTERS.read_traits(offset, len)
    }

    fn write(&mut self, cx: &Cx<Self>, _bar: u8, offset: u64, data: &[u8]) {
        match REGISTERS.write(offset, data) {
            Some((Reg::Status, _)) => self.interrupt(cx, false),
            Some((_, _)) if self.registers.status == BUSY => {} // one request at a time
            Some((Reg::Address, value)) => self.registers.address = value,
            Some((Reg::Length, value)) => {
                self.registers.length = value as u32;
                self.registers.status = BUSY;
                self.start(cx);
            }
            Some((Reg::Sum, _)) | None => {}
        }
    }

    fn reset(&mut self, _cx: &Cx<Self>) {
        let Self { options: _, registers } = self;
        *registers = Registers { address: 0, length: 0, status: IDLE, sum: 0, interrupt: 0 };
    }
}

impl Checksum {
    /// Starts the sum that STATUS says is due.
    fn start(&mut self, cx: &Cx<Self>) {
        let Registers { address, length, .. } = self.registers;
        if length > self.options.limit {
            return self.finish(cx, Err(Error::new(Errno::INVAL, "longer than the limit")));
        }
        let started = cx.spawn("sum", |task| async move {
            let result = sum(&task, address, length).await;
            task.step(|model, cx| model.finish(cx, result)).await;
        });
        drop(started); // refused while the device is being stopped: `resume` calls this again
    }

    fn interrupt(&mut self, cx: &Cx<Self>, on: bool) {
        self.registers.interrupt = on.into();
        cx.interrupts().set(0, on);
    }

    fn finish(&mut self, cx: &Cx<Self>, result: Result<u32>) {
        self.registers.status = if result.is_ok() { DONE } else { FAILED };
        self.registers.sum = result.unwrap_or(0);
        self.interrupt(cx, true);
    }
}

/// Adds up guest memory, mapped or reached by messages; while it waits it occupies no thread.
async fn sum(task: &Task<Checksum>, mut address: u64, mut length: u32) -> Result<u32> {
    let mut sum = 0_u32;
    while length > 0 {
        let mut buffer = [0; 4096];
        let part = &mut buffer[..length.min(4096) as usize];
        task.dma().read(address, part).await?;
        sum = part.iter().fold(sum, |sum, byte| sum.wrapping_add((*byte).into()));
        (address, length) = (address.wrapping_add(part.len() as u64), length - part.len() as u32);
    }
    Ok(sum)
}

impl Worker for Checksum {
    type Saves = HasState;

    /// A sum that is given up is made again from its start: STATUS says that it is due.
    fn quiesce(&mut self, _cx: &Cx<Self>, _why: Why) -> Quiesce {
        Quiesce::Cancel
    }

    fn resume(&mut self, cx: &Cx<Self>) {
        if self.registers.status == BUSY && cx.find_task("sum").is_none() {
            self.start(cx);
        }
    }
}

impl Save for Checksum {
    const KIND: &'static str = "checksum";
    const VERSION: u32 = 1;
    type Image = Registers;

    fn save(&self) -> Registers {
        self.registers.clone()
    }

    fn restore(&mut self, _cx: &Cx<Self>, image: Registers) -> Result<()> {
        if image.status > FAILED || image.interrupt > 1 {
            return Err(Error::new(Errno::INVAL, "no state of a checksum engine"));
        }
        self.registers = image;
        Ok(())
    }
}
