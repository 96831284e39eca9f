//! What a device saves and restores.
//!
//! A saved state is text for people and other versions ([`Saved`]: kind, version, a serde
//! structure), or an image for commits at every message ([`SaveState::save_image`]: bytes of fixed
//! size, written without allocation). Both are read as hostile: a restore checks everything, and
//! one that is refused leaves the device as it was.

mod descriptors;
mod device;
mod image;
mod mappings;
mod portable;
mod restore;
mod rings;
mod stopped;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{Errno, Error, Result};

pub use descriptors::{DescriptorTable, FindDescriptors, KeepDescriptors, KeptSpace, SpaceToken};
pub use device::{Identity, Images};
pub use stopped::SavedAndStopped;

/// The kind and version of a saved structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// What it is the state of: `edu`, `pci function`.
    pub kind: &'static str,
    /// The version of the structure; the first is 1.
    pub version: u32,
}

/// A saved structure that says what it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    kind: String,
    version: u32,
    state: serde_json::Value,
}

impl Saved {
    /// Saves a structure.
    ///
    /// # Errors
    /// `EINVAL`: the structure cannot be written as JSON.
    pub fn new(format: Format, state: &impl Serialize) -> Result<Self> {
        let state = serde_json::to_value(state).map_err(|error| {
            Error::new(Errno::INVAL, format!("the state of {} cannot be written", format.kind))
                .because(error)
        })?;
        Ok(Self { kind: format.kind.to_owned(), version: format.version, state })
    }

    /// What it is the state of.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The version of its structure.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Reads the structure.
    ///
    /// # Errors
    /// `EINVAL`: another kind or version than `format`, or damaged: says what was found and what
    /// can be read.
    pub fn read<S: DeserializeOwned>(&self, format: Format) -> Result<S> {
        let Self { kind, version, state } = self;
        if kind != format.kind {
            let what = format!("the state of a {}, not of a {}", kind.escape_debug(), format.kind);
            return Err(Error::new(Errno::INVAL, what));
        }
        if *version != format.version {
            let what = format!(
                "version {version} of the state of a {kind}; this program reads version {}",
                format.version
            );
            return Err(Error::new(Errno::INVAL, what));
        }
        S::deserialize(state).map_err(|error| {
            Error::new(Errno::INVAL, format!("the state of a {kind} is damaged: {error}"))
                .because(error)
        })
    }
}

/// Whether and how a device is saved. Every device says it; there is no default.
pub enum Persistence<'a> {
    /// There is nothing to save: a device that was reset is as good.
    Stateless,
    /// It has a state.
    Saved(&'a mut dyn SaveState),
    /// It cannot be saved; the text says why.
    Unsaved(&'static str),
}

/// A device with a state. The core calls every method with the device's lock held, and not while
/// the device is at work (see [`crate::work`]).
pub trait SaveState {
    /// Saves the state, for people and other versions.
    ///
    /// # Errors
    /// `EINVAL`: it cannot be written.
    fn save(&self) -> Result<Saved>;

    /// Restores the state, whatever the state of the device is: everything is replaced. The device
    /// is open if it was when it was saved; a state without clients ([`DeviceRef::restore_portable`]) is
    /// restored to a device that is not open, and found by its next first open.
    ///
    /// [`DeviceRef::restore_portable`]: crate::DeviceRef::restore_portable
    ///
    /// # Errors
    /// `EINVAL`: damaged, or of another kind or version; the device is as it was.
    fn restore(&mut self, saved: &Saved) -> Result<()>;

    /// Turns off what would reach the memory and the interrupts of a client, as a last close does: the state
    /// that was just restored may be of a device that was open, and is not any more. By default nothing.
    fn disable(&mut self) {}

    /// The size of the image in bytes. It never changes for one device.
    fn image_len(&self) -> usize;

    /// Writes the image, without allocating. `image` has [`SaveState::image_len`] bytes.
    fn save_image(&self, image: &mut [u8]);

    /// Restores the state from an image that a device of this very program wrote; otherwise as
    /// [`SaveState::restore`].
    ///
    /// # Errors
    /// `EINVAL`: damaged; the device is as it was.
    fn restore_image(&mut self, image: &[u8]) -> Result<()>;
}

/// What a read does to the state of a device, as far as the device declares it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadEffect {
    /// Not declared. Whoever commits the state must assume that the read changes it.
    #[default]
    Unknown,
    /// The read is pure: it changes nothing, so that no commit needs to follow.
    None,
    /// The read changes the state: it takes from a FIFO, or acknowledges an interrupt.
    Changes,
}

/// What a device declares about a read of some bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadTraits {
    /// What it does to the state.
    pub effect: ReadEffect,
    /// The bits of the value (little-endian; those beyond its width do not count) that differ from
    /// run to run, even if everything is done to the device in the same order.
    pub volatile: u64,
}
