//! The template: copy this file, rename it, and make it your device.
//!
//! It has an identification, a scratch word whose writes it counts, and an interrupt that the
//! driver raises and acknowledges itself.

use vfiod_pci::prelude::*;

/// The registers, by the names that the device's own manual would use.
#[derive(Clone, Copy, Debug)]
enum Reg {
    Id,        // read-only: "vfio" in ASCII
    Scratch,   // read-write: anything
    Writes,    // read-only: how often SCRATCH was written
    Interrupt, // write 1 to raise the interrupt, 0 to acknowledge it; reads return the last value
}

/// Where they are. Any other access reads as all ones and writes nothing, as on a real bus.
const REGISTERS: RegisterMap<Reg> = RegisterMap::new(&[
    Register::new(0x0, Widths::W4, Reg::Id),
    Register::new(0x4, Widths::W4, Reg::Scratch),
    Register::new(0x8, Widths::W4, Reg::Writes),
    Register::new(0xc, Widths::W4, Reg::Interrupt),
]);

vfiod_pci::image! {
    /// The state behind the registers. The core calls one method at a time, so it is plain data;
    /// integers without gaps, so it is also its own saved image.
    #[derive(Default)]
    pub struct Template {
        scratch: u32,
        writes: u32,
        interrupt: u32,
    }
}

impl Model for Template {
    type State = HasState;

    /// What the guest sees in `lspci`. Vendor 1234 is not assigned; virtual devices use it.
    fn spec(&self) -> FunctionSpec {
        FunctionSpec::new(0x1234, 0x7e31)
            .class(0xff_00_00) // no known class: no driver but yours will take it
            .pin(Pin::A) // the interrupt of drivers that know nothing better
            .bar(0, Bar::memory32(4096)) // where the registers are: `bar` and `offset` below
            .capability(Capability::PowerManagement) // a guest may put it to sleep
            .capability(Capability::Msi { vectors: 1 }) // and the interrupt of those that do
    }

    /// A driver reads: `data` is to be filled. The map does that from the value of a register.
    fn read(&mut self, _cx: &Cx<Self>, _bar: u8, offset: u64, data: &mut [u8]) {
        REGISTERS.read(offset, data, |register| match register {
            Reg::Id => u32::from_be_bytes(*b"vfio").into(),
            Reg::Scratch => self.scratch.into(),
            Reg::Writes => self.writes.into(),
            Reg::Interrupt => self.interrupt.into(),
        });
    }

    /// A driver writes: the map finds the register and the value.
    fn write(&mut self, cx: &Cx<Self>, _bar: u8, offset: u64, data: &[u8]) {
        match REGISTERS.write(offset, data) {
            Some((Reg::Scratch, value)) => {
                self.scratch = value as u32;
                self.writes = self.writes.wrapping_add(1);
            }
            Some((Reg::Interrupt, value)) => {
                self.interrupt = value as u32 & 1;
                cx.interrupts().set(0, self.interrupt != 0); // pin, MSI or MSI-X: the guest chose
            }
            Some((Reg::Id | Reg::Writes, _)) | None => {} // read-only, or no register
        }
    }

    /// All fields by name: a new one must be thought of here, or this does not compile.
    fn reset(&mut self, _cx: &Cx<Self>) {
        *self = Self { scratch: 0, writes: 0, interrupt: 0 };
    }
}

/// What survives the server: raise `VERSION` with every change of the fields.
impl Save for Template {
    const KIND: &'static str = "template";
    const VERSION: u32 = 1;
    type Image = Self;

    fn save(&self) -> Self {
        self.clone()
    }

    /// The image may hold anything: what cannot be is cut down to what can.
    fn restore(&mut self, _cx: &Cx<Self>, image: Self) -> Result<()> {
        *self = Self { interrupt: image.interrupt & 1, ..image };
        Ok(())
    }
}

#[cfg(test)]
mod tests; // every check that a PCI device must pass, and what is particular to this one
