//! PCI functions for `vfiod-core`: write what your device does, and get configuration space,
//! capabilities, base address registers, interrupts and resets.
//!
//! ```
//! use vfiod_core::Result;
//! use vfiod_pci::{Bar, Function, FunctionSpec, Handle, Model};
//!
//! /// Remembers one 32-bit word.
//! struct Word(u32);
//!
//! impl Model for Word {
//!     fn spec(&self) -> FunctionSpec {
//!         FunctionSpec::new(0x1234, 0x0001).class(0xff_00_00).bar(0, Bar::memory32(4096))
//!     }
//!     fn init(&mut self, _handle: &Handle) -> Result<()> {
//!         Ok(())
//!     }
//!     fn read(&mut self, _bar: u8, offset: u64, data: &mut [u8]) {
//!         match (offset, data.len()) {
//!             (0, 4) => data.copy_from_slice(&self.0.to_le_bytes()),
//!             _ => data.fill(0xff), // what a bus says where nobody answers
//!         }
//!     }
//!     fn write(&mut self, _bar: u8, offset: u64, data: &[u8]) {
//!         if let (0, Ok(bytes)) = (offset, data.try_into()) {
//!             self.0 = u32::from_le_bytes(bytes);
//!         }
//!     }
//!     fn reset(&mut self) {
//!         *self = Word(0);
//!     }
//! }
//!
//! let device = Function::new(Word(0))?;
//! # let _: Box<dyn vfiod_core::Device> = Box::new(device);
//! # Ok::<(), vfiod_core::Error>(())
//! ```
//!
//! References: *PCI Local Bus Specification 3.0* (PCI), *PCI Express Base Specification 6.0*
//! (PCIe), *PCI Bus Power Management Interface Specification 1.2* (PM).
//!
//! # What it does not implement
//! Expansion ROMs (read as absent), bridges, SR-IOV, MSI with 32-bit addresses, ATS, PASID, AER,
//! VGA ranges. The power states D1 and D2. Whether a guest has memory or I/O decoding on
//! (command register bits 0 and 1) is kept but not enforced: clients trap by their own view.

mod address;
mod capability;
mod config;
mod function;
mod interrupts;
mod msix;
mod registers;
mod spec;
mod topology;

pub use address::{Address, AddressError};
pub use capability::Capability;
pub use function::{Function, Handle, Model};
pub use interrupts::{Interrupts, irq_index};
pub use registers::{Register, RegisterMap, Widths};
pub use spec::{Bar, BarKind, FunctionSpec, Pin};
pub use topology::{Bus, BusKind, Placement, ResetScope, Slot};
