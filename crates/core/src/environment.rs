//! What a registry and its devices share.

use std::sync::Arc;

use vfiod_tasks::Runtime;

use crate::event::Observer;
use crate::ids::{FileId, IdSequence};

/// What a registry and its devices share: the runtime, the observer, the numbers of files.
pub(crate) struct Environment {
    pub(crate) runtime: Runtime,
    pub(crate) observer: Option<Arc<dyn Observer>>,
    file_ids: IdSequence,
    event_numbers: IdSequence,
}

impl Environment {
    pub(crate) fn new(runtime: Runtime, observer: Option<Arc<dyn Observer>>) -> Arc<Self> {
        Arc::new(Self {
            runtime,
            observer,
            file_ids: IdSequence::new(),
            event_numbers: IdSequence::new(),
        })
    }

    pub(crate) fn next_file(&self) -> FileId {
        FileId(self.file_ids.take())
    }

    /// The numbers of files.
    pub(crate) fn file_ids(&self) -> &IdSequence {
        &self.file_ids
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
