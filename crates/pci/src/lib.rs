#![doc = include_str!("../README.md")]
//!
//! Most models are a table of their registers ([`registers!`]) and a [`RegisterModel`]: they match
//! on an enum of what a driver writes. One whose reads have an effect has a [`RegisterMap`] and
//! matches on an enum of its registers. Neither sees a misaligned, partial or oversized access.
//! `reset` is then an assignment of the whole or a destructuring of `self`
//! (`let Self { word, log: _ } = self;`), so that a new field does not compile until its author has
//! decided what a reset does to it.
//!
//! # What a guest's write does
//! | write | effect |
//! | --- | --- |
//! | Command, bus master (PCIe 7.5.1.1.3) | DMA works, or fails with `EPERM` |
//! | Command, interrupt disable | masks INTx; Status shows its level all the same |
//! | Command, memory and I/O space (PCIe 7.5.1.1.3) | kept, and gate nothing: a client stops forwarding accesses when its guest clears them, and one that reads a BAR while they are off (a debugger, a test) gets the register |
//! | BAR (PCIe 7.5.1.2.1) | kept but for the bits below its size |
//! | PMCSR, D3hot (PCIe 5.3.1.4.1) | no DMA, interrupts are masked, BARs read as all ones and drop writes (what a client has mapped works on); D1 and D2 are ignored |
//! | PMCSR, back to D0 | pending interrupts are sent, or the function is reset ([`Capability::PowerManagementSoftReset`]) |
//! | Device Control, Initiate FLR (PCIe 6.6.2) | the function is reset after the write, once it has quiesced; the bit reads as 0 |
//! | MSI mask bits (PCIe 7.7.1.7) | mask messages; pending bits show them |
//! | MSI-X vector control and function mask (PCIe 7.7.2) | mask messages; pending bits show them |
//! | anything read-only or not there | nothing |
//!
//! Every reset (a client's, a function-level one, first open, of the set) brings configuration
//! space, the MSI-X table, levels, masks and pending bits back to power-on; the client's eventfds
//! and DMA mappings stay.
//!
//! References: *PCI Local Bus Specification 3.0* (PCI), *PCI Express Base Specification 6.0*
//! (PCIe), *PCI Bus Power Management Interface Specification 1.2* (PM).

mod address;
mod capability;
mod config;
mod cx;
mod function;
mod function_state;
mod interrupts;
mod masked_bytes;
mod model;
mod model_ref;
mod msix;
mod register_table;
mod registers;
mod save;
mod spec;
mod sriov;
mod task;
mod topology;
mod worker;

/// What [`image!`] and [`registers!`] refer to.
#[doc(hidden)]
pub mod image {
    pub use crate::register_table::{RegisterValue, out_of_range, unknown_bits};
    pub use vfiod_core::{ReadTraits, Result};
    pub use {serde, zerocopy};
}

/// What most models need: `use vfiod_pci::prelude::*`.
pub mod prelude {
    pub use crate::{
        Bar, CannotSave, Capability, Cx, FunctionSpec, HasState, Model, Pin, Register, RegisterMap,
        RegisterModel, Registers, Save, Stateless, Task, Unsaved, Widths, Worker, Works, image,
        registers,
    };
    pub use vfiod_core::{Errno, Error, Quiesce, ReadEffect, ReadTraits, Result, Why};
}

pub use address::{Address, AddressError};
pub use capability::Capability;
pub use cx::Cx;
pub use function::{Fitting, Function};
pub use interrupts::{Interrupt, Interrupts, irq_index};
pub use model::Model;
pub use model_ref::ModelRef;
pub use register_table::{RegisterModel, Registers};
pub use registers::{Register, RegisterMap, Widths};
pub use save::{CannotSave, HasState, Image, Save, StateOf, Stateless, Unsaved};
pub use spec::{Bar, BarKind, FunctionSpec, Pin};
pub use sriov::{Role, Sriov, VirtualFunctions};
pub use task::Task;
pub use topology::{Bus, BusKind, Placement, ResetScope, Slot};
pub use worker::{Worker, WorkingState, Works};
