//! What devices and clients name: the structures of the VFIO uAPI (`struct vfio_irq_info`,
//! `struct vfio_irq_set`).

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

/// The number of an interrupt kind in its device (`VFIO_PCI_INTX_IRQ_INDEX` and so on).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IrqIndex(pub u32);

bitflags::bitflags! {
    /// Attributes of an interrupt index (`VFIO_IRQ_INFO_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IrqFlags: u32 {
        /// Can be signalled by eventfd.
        const EVENTFD = 1;
        /// Can be masked and unmasked.
        const MASKABLE = 2;
        /// Masks itself when triggered.
        const AUTOMASKED = 4;
        /// Vectors are set up as one set.
        const NORESIZE = 8;
    }
}

/// One interrupt index as a device describes it. Count 0 stands for "not there".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqInfo {
    /// Attributes.
    pub flags: IrqFlags,
    /// Number of vectors.
    pub count: u32,
}

/// What a SET_IRQS asks for (`VFIO_IRQ_SET_ACTION_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqAction {
    /// Masks vectors: triggers become pending.
    Mask,
    /// Let triggers through again; a level still asserted triggers at once.
    Unmask,
    /// Signal, or set up what is signalled.
    Trigger,
}

/// The data that comes with an action (`VFIO_IRQ_SET_DATA_*`).
#[derive(Debug)]
pub enum IrqData<'a> {
    /// Act on every vector of the range. With count 0 and `Trigger`: disable the index.
    None,
    /// Act on the vectors whose byte is not 0.
    Bool(&'a [u8]),
    /// Set these eventfds; `None` in a place, or an empty list, takes them away.
    EventFds(Vec<Option<OwnedFd>>),
}
