//! What the author of a device writes: the [`Model`] trait.

use std::ops::Range;

use vfiod_core::{ReadTraits, Result};

use crate::cx::Cx;
use crate::save::StateOf;
use crate::spec::FunctionSpec;

/// What a device does. [`Function`](crate::Function) does everything else about a PCI function.
///
/// The core calls one method at a time, with the device's lock held; a panic puts the device into
/// the error state. Accesses are within the BAR, but of any length and alignment: a
/// [`crate::RegisterMap`] sorts them. A callback must be quick and must not wait for a peer.
pub trait Model: Sized + Send + 'static {
    /// Whether and how the model is saved: [`Stateless`](crate::Stateless),
    /// [`HasState`](crate::HasState) (then it implements [`Save`](crate::Save)), or
    /// [`CannotSave`](crate::CannotSave) (then [`Unsaved`](crate::Unsaved) says why); within
    /// [`Works`](crate::Works) for one that has tasks or a data path (then it implements
    /// [`Worker`](crate::Worker)).
    type State: StateOf<Self>;

    /// Ids, BARs, capabilities. Asked for once.
    fn spec(&self) -> FunctionSpec;

    /// The device is being registered. An error refuses the registration.
    fn init(&mut self, _cx: &Cx<Self>) -> Result<()> {
        Ok(())
    }

    /// Reads from a BAR into `data`, which is not empty.
    fn read(&mut self, cx: &Cx<Self>, bar: u8, offset: u64, data: &mut [u8]);

    /// What such a read does, as far as the model declares it;
    /// [`RegisterMap::read_traits`](crate::RegisterMap::read_traits) answers it for a register. By
    /// default every read may change the state.
    fn read_traits(&self, _bar: u8, _offset: u64, _len: usize) -> ReadTraits {
        ReadTraits::default()
    }

    /// The offset of the first register of the model that lies in a range of a BAR, or partly;
    /// [`RegisterMap::find_in`](crate::RegisterMap::find_in) answers it. A register that the MSI-X
    /// table or its pending bits hide from every guest refuses the function. By default none is
    /// declared.
    fn find_register(&self, _bar: u8, _range: Range<u64>) -> Option<u64> {
        None
    }

    /// Writes `data`, which is not empty, to a BAR.
    fn write(&mut self, cx: &Cx<Self>, bar: u8, offset: u64, data: &[u8]);

    /// Restores the state after power-on. Interrupt conditions are already cleared. Written as an
    /// assignment or a destructuring of `self`, a new field cannot be forgotten.
    fn reset(&mut self, cx: &Cx<Self>);

    /// First open. After an error the device is not open, and [`Model::close`] is not called.
    fn open(&mut self, _cx: &Cx<Self>) -> Result<()> {
        Ok(())
    }

    /// Last close: lower all interrupts. The device has quiesced, unless it is stuck.
    fn close(&mut self, _cx: &Cx<Self>) {}
}
