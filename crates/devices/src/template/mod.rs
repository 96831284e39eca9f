//! The template: copy this file, rename it, and make it your device.
//!
//! It has an identification, a scratch word whose writes it counts, and an interrupt that the
//! driver raises and acknowledges itself.

use vfiod_pci::prelude::*;

registers! {
    /// The device is a table of its registers, by the names that its own manual would use. The core
    /// calls one method at a time, so it is plain data; the table is also what is saved. Any access
    /// that is not in it reads as all ones and writes nothing, as on a real bus.
    #[derive(Debug)]
    pub struct Template, enum Write {
        0x0 _: u32 = |_| u32::from_be_bytes(*b"vfio");  // ID, read-only: "vfio" in ASCII
        0x4 scratch: u32 => Scratch;                    // read-write: anything
        0x8 writes: u32;                                // read-only: how often SCRATCH was written
        0xc interrupt: u32 => Interrupt, in 0..=1;      // write 1 to raise it, 0 to acknowledge it
    }
}

impl RegisterModel for Template {
    type State = HasState;
    const KIND: &'static str = "template";
    const VERSION: u32 = 1; // raise it with every change of the table's fields

    /// What the guest sees in `lspci`. Vendor 1234 is not assigned; virtual devices use it.
    fn spec(&self) -> FunctionSpec {
        FunctionSpec::new(0x1234, 0x7e31)
            .class(0xff_00_00) // no known class: no driver but yours will take it
            .pin(Pin::A) // the interrupt of drivers that know nothing better
            .bar(0, Bar::memory32(4096)) // where the registers are
            .capability(Capability::PowerManagement) // a guest may put it to sleep
            .capability(Capability::Msi { vectors: 1 }) // and the interrupt of those that do
    }

    /// A driver writes a register. Reads, resets, saves and restores follow from the table.
    fn write(&mut self, cx: &Cx<Self>, write: Write) {
        match write {
            Write::Scratch(value) => {
                self.scratch = value;
                self.writes = self.writes.wrapping_add(1);
            }
            Write::Interrupt(value) => {
                self.interrupt = value & 1;
                cx.interrupts().set(0, self.interrupt != 0); // INTx, MSI or MSI-X: the guest chose
            }
        }
    }
}

#[cfg(test)]
mod tests; // every check that a PCI device must pass, and what is particular to this one
