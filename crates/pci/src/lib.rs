//! PCI functions for `vfiod-core`: write what your device does, and get configuration space,
//! capabilities, base address registers, interrupts and resets.
//!
//! ```
//! use vfiod_pci::{Bar, Cx, Function, FunctionSpec, Model, Stateless};
//!
//! /// Remembers one 32-bit word.
//! struct Word(u32);
//!
//! impl Model for Word {
//!     type State = Stateless;
//!     fn spec(&self) -> FunctionSpec {
//!         FunctionSpec::new(0x1234, 0x0001).class(0xff_00_00).bar(0, Bar::memory32(4096))
//!     }
//!     fn read(&mut self, _cx: &Cx<Self>, _bar: u8, offset: u64, data: &mut [u8]) {
//!         match (offset, data.len()) {
//!             (0, 4) => data.copy_from_slice(&self.0.to_le_bytes()),
//!             _ => data.fill(0xff), // what a bus says where nobody answers
//!         }
//!     }
//!     fn write(&mut self, _cx: &Cx<Self>, _bar: u8, offset: u64, data: &[u8]) {
//!         if let (0, Ok(bytes)) = (offset, data.try_into()) {
//!             self.0 = u32::from_le_bytes(bytes);
//!         }
//!     }
//!     fn reset(&mut self, _cx: &Cx<Self>) {
//!         *self = Word(0);
//!     }
//! }
//!
//! let device = Function::new(Word(0))?;
//! # let _: Box<dyn vfiod_core::Device> = Box::new(device);
//! # Ok::<(), vfiod_core::Error>(())
//! ```
//!
//! A model of more than a word has a [`RegisterMap`] and matches on an enum of its registers; it
//! never sees a misaligned, partial or oversized access. `reset` is an assignment of the whole
//! or a destructuring of `self` (`let Self { word, log: _ } = self;`), so that a new field does
//! not compile until somebody has decided what a reset does to it.
//!
//! # What a guest's write does
//! | write | effect |
//! | --- | --- |
//! | Command, bus master (PCIe 7.5.1.1.3) | DMA works, or fails with `EPERM` |
//! | Command, interrupt disable | holds the pin back; Status tells its level all the same |
//! | Command, memory and I/O space | kept; BARs answer all the same, because clients trap by their own view |
//! | BAR (PCIe 7.5.1.2.1) | kept but for the bits below its size |
//! | PMCSR, D3hot (PCIe 5.3.1.4.1) | no DMA, interrupts are held back; D1 and D2 are not taken |
//! | PMCSR, back to D0 | what was held back comes through, or the function is reset ([`Capability::PowerManagementSoftReset`]) |
//! | Device Control, Initiate FLR (PCIe 6.6.2) | the function is reset; the bit reads as 0 |
//! | MSI mask bits (PCIe 7.7.1.7) | hold messages back; pending bits tell |
//! | MSI-X vector control and function mask (PCIe 7.7.2) | likewise |
//! | anything read-only or not there | nothing |
//!
//! Every reset (a client's, a function-level one, first open, of the set) brings configuration
//! space, the MSI-X table, levels, masks and pending bits back to power-on; the client's eventfds
//! and DMA windows stay.
//!
//! References: *PCI Local Bus Specification 3.0* (PCI), *PCI Express Base Specification 6.0*
//! (PCIe), *PCI Bus Power Management Interface Specification 1.2* (PM).
//!
//! # What it does not implement
//! Expansion ROMs (read as absent), bridges that are seen (they are
//! places that buses hang off), SR-IOV capabilities that are written and virtual functions that come
//! and go with them, MSI with 32-bit addresses, ATS, PASID, AER,
//! VGA ranges, the power states D1 and D2, PME. Errors are never logged, so the bits that a guest
//! would clear by writing 1 are always 0. Bus mastering off does not hold messages back, as it
//! would in hardware. A function-level reset also resets the few bits that it should leave alone
//! (payload size, ASPM and clock of the link); drivers restore them.

mod address;
mod capability;
mod config;
mod function;
mod interrupts;
mod model;
mod msix;
mod registers;
mod spec;
mod sriov;
mod state;
mod topology;
mod worker;

/// What [`image!`] refers to.
#[doc(hidden)]
pub mod image {
    pub use {serde, zerocopy};
}

/// What most models need: `use vfiod_pci::prelude::*`.
pub mod prelude {
    pub use crate::{
        Bar, CannotSave, Capability, Cx, FunctionSpec, HasState, Model, Pin, Register, RegisterMap,
        Save, Stateless, Task, Unsaved, Widths, Worker, Works, image,
    };
    pub use vfiod_core::{Errno, Error, Quiesce, ReadTraits, Result, Why};
}

pub use address::{Address, AddressError};
pub use capability::Capability;
pub use function::{Fitting, Function};
pub use interrupts::{Interrupt, Interrupts, irq_index};
pub use model::{Cx, Handle, Model};
pub use registers::{Register, RegisterMap, Widths};
pub use spec::{Bar, BarKind, FunctionSpec, Pin};
pub use sriov::{Role, Sriov, VirtualFunctions};
pub use state::{CannotSave, HasState, Image, Save, StateOf, Stateless, Unsaved, Works};
pub use topology::{Bus, BusKind, Placement, ResetScope, Slot};
pub use worker::{Task, Worker};
