//! What is kept of a controller beside its first image: counters, saved features. The file is synced, by
//! threads that may be lost; no command waits for a counter.
//!
//! Counters are kept when the controller begins to be used and when that ends (a shutdown, the last close,
//! the end of the device), and every few minutes in between; a host that does that again and again has it written
//! once a second. While it is used the file says so: a daemon that
//! finds that has died meanwhile, which is an unsafe shutdown, and what was counted since is lost.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use vfiod_core::dma::Completion;
use vfiod_core::{Errno, Error, Result};
use vfiod_directories::{directory_of, in_directory_to_disk};
use vfiod_disk::{Metadata, Stored};
use vfiod_sync::atomic::Ordering;
use vfiod_sync::lock;
use vfiod_tasks::{Runtime, Task};

use crate::common::Common;
use crate::counters::{KEPT, POWER_ON};
use crate::features::Features;
use crate::keeping::Snapshot;
use crate::namespace::Namespace;

/// How often counters are kept while the controller is open.
const PERIOD: Duration =
    if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(300) };

/// How long the end of a controller waits for a disk that does not answer.
const LAST_WAIT: Duration = Duration::from_secs(6);

/// The names of the counters, in the order of [`crate::counters::Counters::all`].
const NAMES: [&str; KEPT] = [
    "read_bytes",
    "written_bytes",
    "read_commands",
    "write_commands",
    "power_cycles",
    "media_errors",
    "errors",
    "unsafe_shutdowns",
    "power_on_seconds",
    "busy_milliseconds",
];
/// 1: the controller is in use.
const IN_USE: &str = "in_use";
/// The feature that namespaces have, each with its own image.
const ERROR_RECOVERY: &str = "error_recovery";

impl Common {
    /// Where things are kept, if anywhere: beside the first namespace's image.
    fn metadata(&self) -> Option<Arc<Metadata>> {
        self.namespaces.get(1)?.metadata.clone()
    }

    /// Takes over what was kept: counters, and returns the features.
    pub(crate) fn load(&self) -> Features {
        let Some(metadata) = self.metadata() else { return Features::default() };
        let (stored, keeping) = (metadata.stored(), &self.keeping);
        let counter = |name| stored.counters.get(&keeping.key(name)).copied().unwrap_or(0);
        self.counters.restore_all(NAMES.map(counter));
        if counter(IN_USE) != 0 {
            self.counters.count_unsafe_shutdown();
        }
        let feature = |name: &str| stored.features.get(&keeping.key(name)).copied();
        Features::loaded(feature).unwrap_or_else(|| {
            let file = metadata.path().display();
            tracing::warn!(%file, "saved features that no controller has; they are ignored");
            Features::default()
        })
    }

    /// What was kept of a namespace's Error Recovery.
    pub(crate) fn load_error_recovery(&self, namespace: &Namespace) -> u16 {
        let stored = namespace.metadata.as_ref().map(|metadata| metadata.stored());
        let value = stored
            .and_then(|stored| stored.features.get(&self.keeping.key(ERROR_RECOVERY)).copied());
        value.and_then(|value| value.try_into().ok()).unwrap_or(0)
    }

    /// Saves a namespace's Error Recovery. It is durable when this returns; also done if nobody waits any more.
    ///
    /// # Errors
    /// What files cannot be written with.
    pub(crate) async fn keep_error_recovery(
        &self,
        namespace: &Namespace,
        value: u16,
    ) -> Result<()> {
        let Some(metadata) = namespace.metadata.clone() else { return Ok(()) };
        let name = self.keeping.key(ERROR_RECOVERY);
        let change = move |stored: &mut Stored| {
            match value {
                0 => stored.features.remove(&name),
                value => stored.features.insert(name, value.into()),
            };
        };
        change_metadata(metadata, change).await
    }

    /// Keeps the counters soon; does not wait.
    pub(crate) fn keep(self: &Arc<Self>) {
        if self.metadata().is_none() {
            return;
        }
        self.keeping.wanted.store(true, Ordering::SeqCst);
        if self.keeping.runs.swap(true, Ordering::SeqCst) {
            return;
        }
        let (common, keeping) = (Arc::downgrade(self), self.keeping.clone());
        let work = move || {
            loop {
                // Nothing of the controller is held when nothing runs any more.
                while keeping.wanted.swap(false, Ordering::SeqCst) {
                    keeping.wait_for_turn();
                    common.upgrade().inspect(|common| common.keep_now());
                }
                keeping.runs.store(false, Ordering::SeqCst);
                // Wanted again by somebody who has still seen this thread.
                let is_wanted = keeping.wanted.load(Ordering::SeqCst);
                if !is_wanted || keeping.runs.swap(true, Ordering::SeqCst) {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("counters".to_owned());
        if let Err(error) = thread.spawn(work) {
            self.keeping.runs.store(false, Ordering::SeqCst);
            self.keeping_failed(&no_thread(error));
        }
    }

    /// Keeps the counters if they have changed. Waits for the disk, some seconds at most, but for syncs.
    pub(crate) fn keep_now(&self) {
        self.keep_snapshot(self.snapshot());
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.keeping.snapshot(|| (self.counters.all(), self.counters.is_in_use()))
    }

    /// Keeps counters if they have changed, unless later ones are kept already: a thread that has looked may
    /// lose its processor, and the end of the controller come meanwhile.
    pub(crate) fn keep_snapshot(&self, snapshot: Snapshot) {
        let (Some(namespace), Some(metadata)) = (self.namespaces.get(1), self.metadata()) else {
            return;
        };
        if *lock(&self.keeping.last) == Some(snapshot.values) {
            return;
        }
        let (values, in_use) = snapshot.values;
        let entries = NAMES.into_iter().zip(values).chain([(IN_USE, in_use.into())]);
        let entries: Vec<_> = entries.map(|(name, n)| (self.keeping.key(name), n)).collect();
        let directory = directory_of(metadata.path()).to_owned();
        // The image stays locked, so that nobody else writes the file meanwhile.
        let disk = namespace.disk.clone();
        let keeping = self.keeping.clone();
        let work = move || {
            let changed = metadata.change(|stored| {
                if keeping.is_latest(&snapshot) {
                    stored.counters.extend(entries);
                    *lock(&keeping.last) = Some(snapshot.values);
                }
            });
            if changed.is_err() {
                *lock(&keeping.last) = None;
            }
            drop(disk);
            changed
        };
        match in_directory_to_disk(&directory, work).and_then(|changed| changed) {
            Ok(()) => self.keeping.failed.store(false, Ordering::SeqCst),
            Err(error) => self.keeping_failed(&error),
        }
    }

    fn keeping_failed(&self, error: &Error) {
        // Once, until it succeeds again.
        if !self.keeping.failed.swap(true, Ordering::SeqCst) {
            tracing::warn!(%error, "counters of a disk cannot be kept; it is tried again");
        }
    }

    /// Whether it is time to keep the counters: something was counted, or the controller had power for
    /// another hour.
    fn is_worth_keeping(&self) -> bool {
        let Some((mut last, _)) = *lock(&self.keeping.last) else { return true };
        let mut now = self.counters.all();
        for values in [&mut last, &mut now] {
            values[POWER_ON] /= 3600;
        }
        last != now
    }

    /// Saves what has changed of features. It is durable when this returns; also done if nobody waits any more.
    ///
    /// # Errors
    /// What files cannot be written with.
    pub(crate) async fn keep_features(&self, before: Features, features: Features) -> Result<()> {
        let Some(metadata) = self.metadata() else { return Ok(()) };
        let parts = features.stored().zip(before.stored()).filter(|(new, old)| new != old);
        let entries: Vec<_> =
            parts.map(|((name, value), _)| (self.keeping.key(name), value)).collect();
        let change = move |stored: &mut Stored| {
            for (name, value) in entries {
                match value {
                    Some(value) => stored.features.insert(name, value),
                    None => stored.features.remove(&name),
                };
            }
        };
        change_metadata(metadata, change).await
    }
}

/// Keeps the counters every now and then, until the result is dropped.
pub(crate) fn keep_periodically(common: &Arc<Common>, runtime: &Runtime) -> Task<()> {
    let (common, clock) = (Arc::downgrade(common), runtime.downgrade());
    runtime.spawn(async move {
        while let Some(sleep) = clock.upgrade().map(|runtime| runtime.sleep(PERIOD)) {
            sleep.await;
            let Some(common) = Weak::upgrade(&common) else { return };
            if common.is_worth_keeping() {
                common.keep();
            }
        }
    })
}

/// Keeps the counters of a controller when it is dropped. Waits for the disk, some seconds at most.
#[derive(Debug)]
pub(crate) struct KeptAtEnd(pub(crate) Arc<Common>);

impl Drop for KeptAtEnd {
    fn drop(&mut self) {
        let start = Instant::now();
        self.0.keeping.hurry();
        self.0.keep_now();
        // A thread that still writes holds the image, which the next one is to open.
        let runs = &self.0.keeping.runs;
        while runs.load(Ordering::SeqCst) && start.elapsed() < LAST_WAIT {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Changes what is kept, on a thread of its own.
///
/// # Errors
/// What files cannot be written with; `EAGAIN`: no thread.
pub(crate) async fn change_metadata(
    metadata: Arc<Metadata>,
    change: impl FnOnce(&mut Stored) + Send + 'static,
) -> Result<()> {
    let (completion, reply) = Completion::new();
    let work = move || completion.complete(metadata.change(change));
    let thread = std::thread::Builder::new().name("metadata".to_owned());
    thread.spawn(work).map_err(no_thread)?;
    reply.await
}

fn no_thread(error: std::io::Error) -> Error {
    let errno = error.raw_os_error().map_or(Errno::AGAIN, Errno::from_raw_os_error);
    Error::new(errno, "no thread to write what is kept of a disk").because(error)
}
