//! What a rebuild keeps of a device: its text, its images, and the descriptors that the text names.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vfiod_core::dma::{DmaPeer, Space};
use vfiod_core::irq::FdToken;
use vfiod_core::{
    DescriptorTable, DeviceRef, Error, FileId, FindDescriptors, Result, Saved, SpaceToken,
};

/// What decides whether images go with a text: whether the device is in the error state, in which its
/// own state is not in the text, and the number of the set-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setup {
    failed: bool,
    number: u64,
}

/// A device as text, written down and read again.
pub(super) struct Text {
    /// What images must agree with.
    pub(super) setup: Setup,
    pub(super) saved: Saved,
    pub(super) table: DescriptorTable,
}

impl Text {
    /// Saves a device, which quiesces and resumes.
    pub(super) fn save(device: &DeviceRef) -> Result<Self> {
        let mut table = DescriptorTable::new();
        let saved = device.save(&mut table)?;
        // Nothing sets it up meanwhile: the client is played on this thread.
        let setup = Images::save(device)?.setup();
        let unwritten = |error: serde_json::Error| {
            Error::new(vfiod_core::Errno::INVAL, "the device's state is not text").because(error)
        };
        let text = serde_json::to_string(&saved).map_err(unwritten)?;
        let saved = serde_json::from_str(&text).map_err(unwritten)?;
        Ok(Self { setup, saved, table })
    }
}

/// The images of a device.
pub(super) struct Images {
    core: Vec<u8>,
    own: Vec<u8>,
}

impl Images {
    /// Saves the images, whatever the device does at the moment.
    pub(super) fn save(device: &DeviceRef) -> Result<Self> {
        let mut core = vec![0; device.core_image_len()];
        let mut own = vec![0; device.image_len()?];
        device.save_core_image(&mut core)?;
        device.save_image(&mut own)?;
        Ok(Self { core, own })
    }

    /// The text with which these images go.
    pub(super) fn setup(&self) -> Setup {
        let number = |from: usize, to: usize| {
            let bytes = self.core.get(from..to).unwrap_or_default().iter().rev();
            bytes.fold(0, |value, byte| value << 8 | u64::from(*byte))
        };
        Setup { failed: number(4, 8) != 0, number: number(16, 24) }
    }

    pub(super) fn borrow(&self) -> vfiod_core::Images<'_> {
        let own = (!self.own.is_empty()).then_some(&self.own[..]);
        vfiod_core::Images { core: Some(&self.core), own }
    }
}

/// Finds what a text refers to, as often as a device is restored from it. (A table remembers the spaces
/// that were restored, so it serves one restore.)
pub(super) struct Found<'a> {
    pub(super) table: &'a mut DescriptorTable,
    pub(super) peer: Arc<dyn DmaPeer>,
}

impl FindDescriptors for Found<'_> {
    fn find(&mut self, token: FdToken) -> Result<OwnedFd> {
        self.table.find(token)
    }

    fn peer(&mut self, _file: Option<FileId>) -> Result<Arc<dyn DmaPeer>> {
        Ok(self.peer.clone())
    }

    fn space(&mut self, _token: SpaceToken) -> Option<Space> {
        None
    }

    fn add_space(&mut self, _token: SpaceToken, _space: &Space) {}

    fn is_file_of_another_device(&self, _file: FileId) -> bool {
        false
    }
}
