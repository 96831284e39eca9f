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

registers! {
    /// The device.
    #[derive(Debug)]
    pub struct Checksum, enum Write {
        0x00 address: u64 => Address;               // where in guest memory
        0x08 length: u32 => Length;                 // how many bytes; a write starts
        0x0c status: u32 => Status, in IDLE..=FAILED, volatile 3; // any write acknowledges
        0x10 sum: u32, volatile u32::MAX;           // read-only: all bytes added up, modulo 2^32
        0x14 interrupt: u32, in 0..=1, volatile 1;  // read-only: 1 until acknowledged
        kept options: Options;
    }
}

impl ConfiguredModel for Checksum {
    type Options = Options;
    const SUMMARY: &'static str = "adds up guest memory";

    fn configured(options: Options) -> Result<Self> {
        Ok(Self::power_on(options))
    }
}

impl RegisterModel for Checksum {
    type State = Works<HasState>;
    const KIND: &'static str = "checksum";
    const VERSION: u32 = 1;

    fn spec(&self) -> FunctionSpec {
        let spec = FunctionSpec::new(0x1234, 0xc5c5).class(0xff_00_00).pin(Pin::A);
        spec.bar(0, Bar::memory32(4096)).capability(Capability::Msi { vectors: 1 })
    }

    fn write(&mut self, cx: &Cx<Self>, write: Write) {
        match write {
            Write::Status(_) => self.interrupt(cx, false),
            _ if self.status == BUSY => {} // one request at a time
            Write::Address(address) => self.address = address,
            Write::Length(length) => {
                (self.length, self.status) = (length, BUSY);
                self.resume(cx);
            }
        }
    }
}

impl Worker for Checksum {
    /// A sum that is given up is made again from its start: STATUS says that it is due.
    fn quiesce(&mut self, _cx: &Cx<Self>, _why: Why) -> Quiesce {
        Quiesce::Cancel
    }

    fn resume(&mut self, cx: &Cx<Self>) {
        if self.status == BUSY {
            let Self { address, length, options, .. } = *self;
            cx.ensure_task("sum", |task| async move {
                let result = sum(&task, address, length, options.limit).await;
                task.last_step(|device, cx| device.finish(cx, result)).await;
            });
        }
    }
}

impl Checksum {
    fn finish(&mut self, cx: &Cx<Self>, result: Result<u32>) {
        (self.status, self.sum) = result.map_or((FAILED, 0), |sum| (DONE, sum));
        self.interrupt(cx, true);
    }

    fn interrupt(&mut self, cx: &Cx<Self>, on: bool) {
        self.interrupt = on.into();
        cx.interrupts().set(0, on);
    }
}

/// Adds up guest memory, mapped or reached by messages; while it waits it occupies no thread.
async fn sum(task: &Task<Checksum>, address: u64, length: u32, limit: u32) -> Result<u32> {
    if length > limit {
        return Err(Error::new(Errno::INVAL, "longer than the limit"));
    }
    let (mut sum, mut buffer) = (0_u32, [0; 4096]);
    for at in (0..length).step_by(buffer.len()) {
        let part = &mut buffer[..(length - at).min(4096) as usize];
        task.dma().read(address.wrapping_add(at.into()), part).await?;
        sum = part.iter().fold(sum, |sum, byte| sum.wrapping_add((*byte).into()));
    }
    Ok(sum)
}
