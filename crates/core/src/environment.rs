//! What a registry and its devices share.

use std::sync::{Arc, OnceLock, Weak};

use vfiod_tasks::Runtime;

use crate::common::CommonObjects;
use crate::dma::{AcceptedFiles, Space};
use crate::error::Result;
use crate::event::Observer;
use crate::ids::{DeviceId, FileId, IdSequence, Owner};

/// Finds the address spaces of devices.
pub(crate) trait FindSpace: Send + Sync {
    /// The space that a device is attached to which `owner` has open by this file. Takes the lock of
    /// the device's set.
    ///
    /// # Errors
    /// `ENOENT`: no such file; `EACCES`: it is another owner's.
    fn find_space(&self, device: DeviceId, file: FileId, owner: &Owner) -> Result<Space>;
}

/// What a registry and its devices share: the runtime, the observer, the numbers of files.
pub(crate) struct Environment {
    pub(crate) runtime: Runtime,
    pub(crate) observer: Option<Arc<dyn Observer>>,
    /// The registry. Weak, as the registry holds this.
    spaces: OnceLock<Weak<dyn FindSpace>>,
    accepted_files: OnceLock<AcceptedFiles>,
    file_ids: IdSequence,
    event_numbers: IdSequence,
    /// What devices have in common.
    pub(crate) common: Arc<CommonObjects>,
}

impl Environment {
    pub(crate) fn new(runtime: Runtime, observer: Option<Arc<dyn Observer>>) -> Arc<Self> {
        Arc::new(Self {
            runtime,
            observer,
            spaces: OnceLock::new(),
            accepted_files: OnceLock::new(),
            file_ids: IdSequence::new(),
            event_numbers: IdSequence::new(),
            common: Arc::default(),
        })
    }

    /// Sets what finds spaces, once.
    pub(crate) fn set_spaces(&self, spaces: Weak<dyn FindSpace>) {
        _ = self.spaces.set(spaces);
    }

    /// What finds spaces, while the registry is there.
    pub(crate) fn spaces(&self) -> Option<Arc<dyn FindSpace>> {
        self.spaces.get()?.upgrade()
    }

    /// Sets which files of clients devices accept, once.
    pub(crate) fn set_accepted_files(&self, files: AcceptedFiles) {
        _ = self.accepted_files.set(files);
    }

    /// Which files of clients devices accept.
    pub(crate) fn accepted_files(&self) -> AcceptedFiles {
        self.accepted_files.get().copied().unwrap_or_default()
    }

    pub(crate) fn next_file(&self) -> FileId {
        FileId(self.file_ids.take())
    }

    /// The numbers of files.
    pub(crate) fn file_ids(&self) -> &IdSequence {
        &self.file_ids
    }

    /// The number of an event that is about to be emitted. Without an observer there are no events.
    pub(crate) fn next_event(&self) -> u64 {
        if self.observer.is_some() { self.event_numbers.take() } else { 0 }
    }

    /// The numbers of events.
    pub(crate) fn event_numbers(&self) -> &IdSequence {
        &self.event_numbers
    }

    /// Excludes the number of a restored file, and all below it, from those given out later.
    pub(crate) fn reserve_file(&self, file: FileId) {
        self.file_ids.continue_after(file.0);
    }
}
