//! Interrupts: indices, vectors, masks and the eventfds behind them
//! (VFIO uAPI `struct vfio_irq_info`, `struct vfio_irq_set`).

use std::os::fd::OwnedFd;

use crate::error::Result;
use crate::file::FileId;

/// The number of an interrupt kind in its device (`VFIO_PCI_INTX_IRQ_INDEX` and so on).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// Hold back triggers.
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

/// All interrupts of one device.
///
/// Device code triggers from any thread; the client's side sets up through [`IrqSet::set`].
#[derive(Debug)]
pub struct IrqSet {}

impl IrqSet {
    pub(crate) fn new(_indices: &[IrqInfo]) -> Self {
        todo!()
    }

    /// The attributes of an index; `EINVAL` where there is none.
    pub fn info(&self, _index: IrqIndex) -> Result<IrqInfo> {
        todo!()
    }

    /// Number of indices.
    pub fn indices(&self) -> u32 {
        todo!()
    }

    /// Triggers a vector once (edge). Masked: it stays pending and is signalled at unmask.
    /// Returns whether an eventfd was signalled. Never blocks.
    ///
    /// # Errors
    /// `EINVAL` for an index or vector that is not there.
    pub fn trigger(&self, _index: IrqIndex, _vector: u32) -> Result<bool> {
        todo!()
    }

    /// Sets the level of a line (INTx). Asserted and not masked, it signals, and masks itself
    /// where the index is AUTOMASKED; still asserted at unmask, it signals again.
    ///
    /// # Errors
    /// `EINVAL` for an index or vector that is not there.
    pub fn set_level(&self, _index: IrqIndex, _vector: u32, _asserted: bool) -> Result<()> {
        todo!()
    }

    /// Whether a client has any eventfd set up on an index.
    pub fn is_enabled(&self, _index: IrqIndex) -> bool {
        todo!()
    }

    /// The device's own mask of a vector (MSI-X table, MSI mask bits, PCI command register),
    /// apart from the client's.
    ///
    /// # Errors
    /// `EINVAL` for an index or vector that is not there.
    pub fn set_device_mask(&self, _index: IrqIndex, _vector: u32, _masked: bool) -> Result<()> {
        todo!()
    }

    /// Whether a trigger is being held back by a mask.
    pub fn is_pending(&self, _index: IrqIndex, _vector: u32) -> bool {
        todo!()
    }

    /// DEVICE_SET_IRQS for a file: eventfds set here go away with the file.
    ///
    /// # Errors
    /// `EINVAL`: no such index, range or combination of action and data, too many descriptors,
    /// or a descriptor that is not an eventfd.
    pub fn set(
        &self,
        _file: FileId,
        _index: IrqIndex,
        _start: u32,
        _count: u32,
        _action: IrqAction,
        _data: IrqData<'_>,
    ) -> Result<()> {
        todo!()
    }

    /// Takes away every eventfd that a file set up.
    pub(crate) fn drop_file(&self, _file: FileId) {
        todo!()
    }

    /// Forgets levels, pending triggers and masks (device reset); eventfds stay.
    pub fn reset(&self) {
        todo!()
    }
}
