//! Interrupts: indices, vectors, masks and the eventfds behind them
//! (VFIO uAPI `struct vfio_irq_info`, `struct vfio_irq_set`).
//!
//! A device triggers a vector by its [`IrqVector`], which it gets once from its [`IrqSet`] and may
//! use from any thread: no look-up, no lock that another vector needs, no lock held while an
//! eventfd is signalled. The handle stands for the vector, whatever clients set up for it.
//!
//! Interrupts that belong together are raised in an [`IrqBatch`]: first everything is decided, then
//! everything is signalled. What a device raises in a call of the core is collected in a batch
//! ([`IrqBatch::collect`]) and sent when the call has ended. What it raises elsewhere, as in its data
//! path, is signalled at once.
//!
//! # What it does not implement
//! A masking eventfd (`MASK` with `EVENTFD`): the kernel has none either.

mod batch;
mod eventfd;
mod flat;
mod index;
mod saved;
mod set;
#[cfg(not(any(loom, shuttle)))]
mod thread_signal;
mod uapi;
mod vector;
#[cfg_attr(any(loom, shuttle), allow(dead_code))]
pub(crate) mod watchdog;

pub use self::batch::IrqBatch;
pub(crate) use self::eventfd::drain;
pub use self::eventfd::{EventFd, Signalled, is_eventfd};
pub use self::index::IrqVector;
pub use self::saved::{FdToken, IrqState, SavedEventFd, VectorState};
pub use self::set::{IrqSet, UnmaskFd};
pub use self::uapi::{IrqAction, IrqData, IrqFlags, IrqIndex, IrqInfo};
pub use self::vector::VectorCounters;
#[cfg(not(any(loom, shuttle)))]
pub use self::watchdog::forgo_watchdog;

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
