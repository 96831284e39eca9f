//! Device models, one folder each, all of one shape: the registers, the
//! [`vfiod_pci::Model`], its tests, and a line that applies the conformance suite of `vfiod-testing`.
//!
//! * [`template`]: start here to write your own.
//! * [`gpio`]: ACCES PCI-IDIO-16, driven by Linux's `gpio-pci-idio-16`.
//! * [`edu`]: QEMU's educational device: factorial, DMA, INTx and MSI.
//! * [`serial`]: a PCI serial card, the kernel's mtty; driven by Linux's `8250_pci`.
//! * `nvme`: an NVMe controller, a crate of its own (`vfiod-nvme`); driven by Linux's `nvme`.
//! * `bench` (feature `bench`): what `vfiod bench` measures with.
//!
//! [`catalogue`] has them by name, with the parents that make mediated devices of them.

#[cfg(feature = "bench")]
pub mod bench;
mod catalogue;
pub mod edu;
pub mod gpio;
mod parents;
mod rate_limiter;
pub mod serial;
pub mod template;

pub use catalogue::catalogue;
pub use rate_limiter::RateLimiter;
