//! What the tasks of a controller share besides its queues: namespaces, counters, the error log.

use std::collections::VecDeque;
use std::sync::Arc;

use vfiod_sync::atomic::{AtomicBool, Ordering};
use vfiod_sync::{Mutex, lock};

use crate::bounce::BounceMemory;
use crate::counters::Counters;
use crate::features::Features;
use crate::keeping::Keeping;
use crate::limits::{DEFAULT_BUFFERS, DEFAULT_COMMANDS};
use crate::namespace::Namespace;
use crate::namespaces::Namespaces;
use crate::options::{DoorbellsOption, NvmeOptions};
use crate::rate::{RateLimit, RateLimits};
use crate::subsystem::Seat;
use vfiod_nvme_spec::log::{ERROR_LEN, ErrorEntry, Health};
use vfiod_nvme_spec::table::Needs;
use vfiod_nvme_spec::{Status, Submission};

/// Entries of the Error Information log that are kept (ELPE, as a count).
pub(crate) const ERROR_ENTRIES: usize = 8;

/// What the tasks share. It lasts as long as the device.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) namespaces: Namespaces,
    /// What all disks can do that there were at the start. It stays so: a host does not expect that commands
    /// come and go.
    pub(crate) offers: Offers,
    /// Commands that may have been read and not have completed.
    pub(crate) max_commands: u32,
    /// The doorbells are memory that the host maps.
    pub(crate) mapped_doorbells: bool,
    /// They are polled.
    pub(crate) is_polled: AtomicBool,
    pub(crate) bounce: BounceMemory,
    /// How many commands and bytes per second.
    pub(crate) rate: Arc<RateLimit>,
    pub(crate) counters: Counters,
    /// How they are kept.
    pub(crate) keeping: Arc<Keeping>,
    pub(crate) errors: Mutex<ErrorLog>,
    /// The volatile write cache is in use (feature 06h).
    pub(crate) write_cache: AtomicBool,
    /// A sync has failed of which the host was not told.
    pub(crate) sync_failed: AtomicBool,
    /// `None`: the controller is the only one of its subsystem.
    pub(crate) seat: Option<Seat>,
}

impl Common {
    /// A controller with these namespaces, and numbers up to `most` for others.
    pub(crate) fn new(most: u32, namespaces: Vec<Namespace>) -> Self {
        Self {
            offers: Offers::of(&namespaces),
            namespaces: Namespaces::new(most, namespaces),
            max_commands: DEFAULT_COMMANDS,
            mapped_doorbells: false,
            is_polled: AtomicBool::new(false),
            bounce: BounceMemory::default(),
            rate: Arc::new(RateLimit::new(RateLimits::default())),
            counters: Counters::default(),
            keeping: Arc::default(),
            errors: Mutex::default(),
            write_cache: AtomicBool::new(true),
            sync_failed: AtomicBool::new(false),
            seat: None,
        }
    }

    /// A controller with these options and namespaces.
    pub(crate) fn configured(options: &NvmeOptions, namespaces: Vec<Namespace>) -> Self {
        Self {
            max_commands: options.commands.unwrap_or(DEFAULT_COMMANDS),
            mapped_doorbells: options.doorbells == DoorbellsOption::Mapped,
            bounce: BounceMemory::new(options.buffers.unwrap_or(DEFAULT_BUFFERS)),
            ..Self::new(options.max_namespaces(), namespaces)
        }
    }

    /// A controller with these options and this place in its subsystem, of which a host has as much as `rate`
    /// allows.
    pub(crate) fn seated(options: &NvmeOptions, seat: Seat, rate: Arc<RateLimit>) -> Self {
        let keeping = Arc::new(Keeping::of(seat.identity().controller));
        let namespaces = seat.namespaces();
        Self { rate, keeping, seat: Some(seat), ..Self::configured(options, namespaces) }
    }

    /// Makes those features act that act in tasks.
    pub(crate) fn apply(&self, features: &Features) {
        self.write_cache.store(features.write_cache != 0, Ordering::SeqCst);
    }

    /// Whether some namespace has a volatile write cache.
    pub(crate) fn has_write_cache(&self) -> bool {
        self.offers.write_cache
    }

    /// Whether there is what a row of a table needs.
    pub(crate) fn has(&self, needs: Needs) -> bool {
        match needs {
            Needs::Deallocation => self.offers.deallocation,
            Needs::WriteCache => self.has_write_cache(),
            Needs::DoorbellMessages => !self.mapped_doorbells,
        }
    }

    /// Whether some namespace cannot be written, or not any more.
    pub(crate) fn is_read_only(&self) -> bool {
        let read_only = |namespace: Arc<Namespace>| {
            namespace.limits.read_only || namespace.disk.sync_failure().is_some()
        };
        self.namespaces.all().any(read_only)
    }

    /// Whether writes are to be durable before they complete.
    pub(crate) fn write_through(&self) -> bool {
        !self.write_cache.load(Ordering::SeqCst)
    }

    /// Counts what failed, and keeps it for the Error Information log.
    pub(crate) fn log_error(&self, queue: u16, command: &Submission, status: Status) {
        let count = self.counters.errors.fetch_add(1, Ordering::Relaxed) + 1;
        if status.is_media() {
            self.counters.media_errors.fetch_add(1, Ordering::Relaxed);
        }
        lock(&self.errors).push(&ErrorEntry {
            count,
            queue,
            command: command.id(),
            status,
            block: command.first_block(),
            namespace: command.namespace(),
            opcode: command.opcode(),
        });
    }

    /// Forgets the errors that were kept: they are another user's.
    pub(crate) fn forget_errors(&self) {
        lock(&self.errors).0.clear();
    }

    /// The SMART / Health Information log, but for what the features decide.
    pub(crate) fn health(&self) -> Health {
        let [read, written, reads, writes, cycles, media_errors, errors, unsafes, on, busy] =
            self.counters.all();
        Health {
            critical_warning: 0,
            temperature: 0,
            read,
            written,
            reads,
            writes,
            busy_minutes: busy / 60_000,
            power_cycles: cycles,
            power_on_hours: on / 3600,
            unsafe_shutdowns: unsafes,
            media_errors,
            errors,
        }
    }
}

/// What depends on the disks and is said of the controller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offers {
    pub(crate) deallocation: bool,
    write_cache: bool,
}

impl Offers {
    fn of(namespaces: &[Namespace]) -> Self {
        Self {
            deallocation: namespaces.iter().all(|one| one.limits.deallocate.is_some()),
            write_cache: namespaces.iter().any(|one| one.limits.volatile),
        }
    }
}

/// The entries of the Error Information log, the newest first.
#[derive(Debug, Default)]
pub(crate) struct ErrorLog(VecDeque<[u8; ERROR_LEN]>);

impl ErrorLog {
    fn push(&mut self, entry: &ErrorEntry) {
        self.0.truncate(ERROR_ENTRIES - 1);
        self.0.push_front(entry.encode());
    }

    /// The page: entries that are not there are 0.
    pub(crate) fn page(&self) -> [[u8; ERROR_LEN]; ERROR_ENTRIES] {
        let mut page = [[0; ERROR_LEN]; ERROR_ENTRIES];
        page.iter_mut().zip(&self.0).for_each(|(place, entry)| *place = *entry);
        page
    }

    pub(crate) fn restore(&mut self, page: [[u8; ERROR_LEN]; ERROR_ENTRIES]) {
        // An entry whose count is 0 is none.
        self.0 = page.into_iter().take_while(|entry| entry[..8] != [0; 8]).collect();
    }
}
