//! A device's state without what belongs to its clients, for a file: it can be restored by another process, on
//! another machine, and refers to no descriptor.
//!
//! It has the device's own state, the levels of its interrupts, the newest rings of its doorbells, and what is
//! not zero of the memory that it shares. It has no files, eventfds, mappings, masks or triggers of a client, and
//! nothing of guest memory.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::device::state_of;
use super::restore::{no_descriptor, restore_own};
use super::rings::{self, RingState};
use super::{Format, Saved};
use crate::device::Device;
use crate::device_ref::DeviceRef;
use crate::error::{Errno, Error, Result};
use crate::irq::{FdToken, IrqState, VectorState};
use crate::opening::MemoryPiece;
use crate::policy::Retained;
use crate::registered::Registered;
use crate::set::Phase;
use crate::sync::lock;

const PORTABLE: Format = Format { kind: "portable device", version: 1 };

/// How much shared memory a state has room for: pages that are not zero.
const MOST_PAGES: usize = 64;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PortableState {
    /// Without what clients have set up.
    interrupts: IrqState,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rings: Vec<RingState>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    memory: Vec<MemoryPiece>,
    /// `None`: the device is stateless.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<Saved>,
}

impl DeviceRef {
    /// Saves the device without what belongs to its clients, so that nothing has to be kept beside the result:
    /// its own state, levels of interrupts, rings of doorbells, and what its shared memory has. An open device
    /// quiesces for that, and resumes; accesses of its files wait. Blocks as [`DeviceRef::save`].
    ///
    /// # Errors
    /// As [`DeviceRef::save`]. `EIO`: the device is in the error state; `EFBIG`: it shares more than 64 pages of
    /// memory that are not zero.
    pub fn save_portable(&self) -> Result<Saved> {
        self.registered.save_portable()
    }

    /// Restores what [`DeviceRef::save_portable`] has saved to a device that has no files. Its next first open
    /// finds the state instead of a reset, whoever opens it and whatever the device's
    /// [`StatePolicy`](crate::StatePolicy) says; what would reach that user's memory and interrupts is off, as after a
    /// last close. A reset before that open ends the state, as always.
    ///
    /// The state may be hostile: everything is checked, and after a refusal the device is as it was. Blocks as
    /// [`DeviceRef::save`] does.
    ///
    /// # Errors
    /// `EINVAL`: damaged, of another kind or version, or not possible for this device; the message says what was
    /// found and what can be read. `EBUSY`: the device is in use. `EIO`: it is in the error state, or panicked.
    /// `EOPNOTSUPP`, `ENODEV` as for [`DeviceRef::save`].
    pub fn restore_portable(&self, saved: &Saved) -> Result<()> {
        let device = &self.registered;
        device.restore_portable(saved).map_err(|error| device.cannot("restore", error))
    }

    /// Whether the next first open is to find a state that [`DeviceRef::restore_portable`] has restored.
    pub fn has_restored_state(&self) -> bool {
        self.registered.has_restored_state()
    }
}

impl Registered {
    fn save_portable(self: &Arc<Self>) -> Result<Saved> {
        let (_marked, files) = self.begin_save()?;
        let read = |device: &mut dyn Device| self.read_portable(device);
        let saved = if files.is_empty() { self.call(read) } else { self.while_quiesced(read) };
        saved.map_err(|error| self.cannot("save", error))
    }

    fn read_portable(&self, device: &mut dyn Device) -> Result<Saved> {
        if self.is_in_error_state() {
            let what = "it is in the error state, in which its state cannot be trusted; reset it";
            return Err(Error::new(Errno::IO, what));
        }
        let device = state_of(device)?.map(|state| state.save()).transpose()?;
        // After the device: it has quiesced, so that none of this changes any more.
        let mut interrupts = self.context.irqs().save(|_, _| FdToken(u64::MAX));
        interrupts.indices.iter_mut().for_each(|vectors| {
            vectors.values_mut().for_each(|vector| *vector = without_client(vector));
            vectors.retain(|_, vector| *vector != VectorState::default());
        });
        let state = PortableState {
            interrupts,
            rings: rings::save(self.context.work()),
            memory: self.context.openings().contents(MOST_PAGES)?,
            device,
        };
        Saved::new(PORTABLE, &state)
    }

    fn restore_portable(self: &Arc<Self>, saved: &Saved) -> Result<()> {
        let PortableState { interrupts, rings, memory, device } = saved.read(PORTABLE)?;
        let refuse = |what: &str| Err(Error::new(Errno::INVAL, what.to_owned()));
        let mut vectors = interrupts.indices.iter().flat_map(|vectors| vectors.values());
        if vectors.any(|vector| *vector != without_client(vector)) {
            return refuse("an interrupt that a client has set up");
        }
        rings::check(self.context.work(), &rings)?;
        if memory.len() > MOST_PAGES {
            return refuse("more shared memory than a state has room for");
        }
        let opening = self.set.try_begin(Phase::Opening).map_err(|phase| self.set_is(phase))?;
        self.must_be_unused(&opening)?;
        if self.is_in_error_state() {
            return Err(Error::new(Errno::IO, "it is in the error state; reset it"));
        }
        // To be put back if the state is refused. There are no descriptors: it has no file.
        let irqs = self.context.irqs();
        let interrupts_before = irqs.save(|_, _| FdToken(u64::MAX));
        let openings = self.context.openings();
        let memory_before = openings.begin_with(&memory)?;
        let restored = self.call(|own| {
            irqs.restore(&interrupts, |_| Err(no_descriptor()))?;
            // It finds the vectors' levels as they are to be: it signals nothing.
            restore_own(own, false, device.as_ref(), None)?;
            if let Some(state) = state_of(own)? {
                state.disable();
            }
            rings::restore(self.context.work(), &rings);
            Ok(())
        });
        if let Err(error) = restored {
            // Cannot fail: it is what the vectors were.
            let _ = irqs.restore(&interrupts_before, |_| Err(no_descriptor()));
            openings.put_back(memory_before);
            return Err(error);
        }
        if let Some(before) = memory_before {
            before.end();
        }
        *lock(&self.retained) = Retained::Next;
        tracing::debug!(device = self.name(), "restored for the next user");
        Ok(())
    }
}

/// A vector as it is when its client has gone.
fn without_client(vector: &VectorState) -> VectorState {
    let VectorState { level, device_masked, .. } = *vector;
    VectorState { level, device_masked, ..VectorState::default() }
}
