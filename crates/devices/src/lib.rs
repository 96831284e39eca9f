//! Device models, one module each, all of one shape: a struct with the registers, its
//! `vfiod_pci::Model`, and a line that applies the [`conformance`] suite.
//!
//! * [`template`]: start here to write your own.
//! * [`gpio`]: ACCES PCI-IDIO-16, driven by Linux's `gpio-pci-idio-16`.
//! * [`edu`]: QEMU's educational device: factorial, DMA, INTx and MSI.
//! * `bench` (feature `bench`): what `vfiod bench` measures with.
//!
//! [`models`] lists them for people, [`build`] makes one by name.
//!
//! # What it does not implement
//! Saving and restoring any device's state.

#[cfg(feature = "bench")]
pub mod bench;
mod catalogue;
pub mod conformance;
pub mod edu;
pub mod gpio;
pub mod template;

pub use catalogue::{BuildError, ModelInfo, OptionInfo, Options, build, models};
