//! A namespace: a disk, in blocks, and what its controllers have in common.

use std::ops::Deref;
use std::sync::{Arc, OnceLock, Weak};

use vfiod_core::dma::Flights;
use vfiod_core::{CurrentPayer, Errno, Error, Result};
use vfiod_disk::{Disk, DiskChannel, Interest, Limits, Metadata};
use vfiod_sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use vfiod_sync::{Mutex, lock};
use vfiod_tasks::{Runtime, Waiters};

use crate::limits::MAX_COPY_RANGES;
use vfiod_nvme_spec::identify;
use vfiod_nvme_spec::{Status, Submission};

/// What a namespace is called, by whatever host and for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NamespaceIdentity {
    pub(crate) nguid: [u8; 16],
    pub(crate) uuid: [u8; 16],
}

/// A command of a namespace is under way.
#[derive(Debug)]
pub(crate) struct InUse<'a>(&'a Volume);

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A namespace of which a command is under way, as [`InUse`] is of a volume.
#[derive(Debug)]
pub(crate) struct UsedNamespace(Arc<Namespace>);

impl Deref for UsedNamespace {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.0
    }
}

impl Drop for UsedNamespace {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// A namespace is being formatted.
#[derive(Debug)]
pub(crate) struct Formatting<'a>(&'a Volume);

impl Formatting<'_> {
    /// Waits until the commands have ended that had begun before. Those that wait for their host's memory end
    /// with Format In Progress ([`Volume::unavailable`]).
    pub(crate) async fn alone(&self) {
        let users = &self.0.users;
        let alone = || (users.load(Ordering::SeqCst) & COUNT == 0).then_some(());
        self.0.unused.wait_for(alone).await;
    }
}

impl Drop for Formatting<'_> {
    fn drop(&mut self) {
        *lock(&self.0.interest) = Interest::new();
        if self.0.users.fetch_and(!FORMATTING, Ordering::SeqCst) & REMOVED != 0 {
            self.0.interest().end();
        }
        self.0.unused.wake_all();
    }
}

/// A namespace is being given another size.
#[derive(Debug)]
pub(crate) struct Resizing(Arc<Volume>);

impl Drop for Resizing {
    fn drop(&mut self) {
        self.0.users.fetch_and(!RESIZING, Ordering::SeqCst);
        drop(InUse(&self.0));
    }
}

/// A controller that is told what another one has made of a namespace of both.
pub(crate) trait Neighbour: std::fmt::Debug + Send + Sync {
    /// A sync of the disk has failed.
    fn sync_failed(&self);

    /// The namespace of this number has come, has gone, or has other attributes.
    fn namespace_changed(&self, id: u32);
}

/// What the controllers of a namespace have in common: the disk, its format, and who uses it.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) identity: NamespaceIdentity,
    pub(crate) limits: Limits,
    /// A block has 2^n bytes.
    block_shift: AtomicU32,
    /// Blocks that power failures tear are accepted.
    torn_writes: bool,
    pub(crate) disk: Disk,
    /// Where its format is kept.
    pub(crate) metadata: Option<Arc<Metadata>>,
    /// Bytes that hosts see.
    capacity: AtomicU64,
    /// Commands of all controllers that use it, whether it is being formatted or given another size, and
    /// whether it was removed.
    users: AtomicU32,
    unused: Waiters,
    /// Ends the commands that take long when it is formatted, or removed.
    interest: Mutex<Interest>,
    /// Several controllers may have it (NMIC).
    pub(crate) is_shared: bool,
    neighbours: Mutex<Vec<Weak<dyn Neighbour>>>,
    /// All of them were told that a sync has failed.
    told_of_sync: AtomicBool,
}

/// An active namespace of a controller.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) id: u32,
    volume: Arc<Volume>,
    channel: OnceLock<Arc<DiskChannel>>,
}

impl Deref for Namespace {
    type Target = Volume;

    fn deref(&self) -> &Volume {
        &self.volume
    }
}

/// The block sizes of its formats (NVM command set 4.1.5.1, LBAF0 and LBAF1).
pub(crate) const BLOCK_SIZES: [u32; 2] = [512, 4096];
/// A bit of `Namespace::users`.
const FORMATTING: u32 = 1 << 31;
/// Another: it has gone, and what has begun ends.
const REMOVED: u32 = 1 << 30;
/// Another: it is being given another size, which counts as a command.
const RESIZING: u32 = 1 << 29;
/// How many commands there are.
const COUNT: u32 = RESIZING - 1;

/// That a disk can have blocks of a size.
///
/// # Errors
/// `EINVAL`.
pub(crate) fn check_blocks(block_size: u32, limits: &Limits, torn_writes: bool) -> Result<()> {
    let bad = |what: String| Err(Error::new(Errno::INVAL, what));
    if !matches!(block_size, 512 | 4096) {
        return bad(format!("block size {block_size}; must be 512 or 4096"));
    }
    if block_size < limits.block {
        let least = limits.block;
        return bad(format!("block size {block_size}: the disk has blocks of {least} bytes"));
    }
    if block_size > limits.atomic_write && !torn_writes {
        let whole = limits.atomic_write;
        return bad(format!(
            "block size {block_size}: the disk writes only {whole} bytes whole when power fails; \
             with `torn_writes` a block may then be half written"
        ));
    }
    if limits.capacity < block_size.into() {
        return bad(format!("a disk of {} bytes has no block", limits.capacity));
    }
    Ok(())
}

impl Volume {
    /// A disk as a namespace.
    ///
    /// # Errors
    /// `EINVAL`: no block size of NVMe, or the disk cannot have such blocks.
    pub(crate) fn new(
        identity: NamespaceIdentity,
        disk: Disk,
        block_size: u32,
        torn_writes: bool,
    ) -> Result<Self> {
        let limits = disk.limits();
        check_blocks(block_size, &limits, torn_writes)?;
        Ok(Self {
            identity,
            capacity: AtomicU64::new(limits.capacity),
            limits,
            block_shift: AtomicU32::new(block_size.ilog2()),
            torn_writes,
            disk,
            metadata: None,
            users: AtomicU32::new(0),
            unused: Waiters::new(),
            interest: Mutex::new(Interest::new()),
            is_shared: false,
            neighbours: Mutex::default(),
            told_of_sync: AtomicBool::new(false),
        })
    }

    /// Keeps its format there.
    pub(crate) fn kept_in(self, metadata: Option<Metadata>) -> Self {
        Self { metadata: metadata.map(Arc::new), ..self }
    }

    /// Several controllers may have it.
    pub(crate) fn shared(self) -> Self {
        Self { is_shared: true, ..self }
    }

    /// Tells a controller from now on what others make of it, as long as it is there.
    pub(crate) fn tell(&self, neighbour: &Arc<dyn Neighbour>) {
        let mut neighbours = lock(&self.neighbours);
        neighbours.retain(|known| known.strong_count() > 0);
        neighbours.push(Arc::downgrade(neighbour));
    }

    /// Tells every controller, once, that a sync has failed.
    pub(crate) fn sync_failed(&self) {
        if !self.told_of_sync.swap(true, Ordering::SeqCst) {
            let all: Vec<_> = lock(&self.neighbours).iter().filter_map(Weak::upgrade).collect();
            all.iter().for_each(|neighbour| neighbour.sync_failed());
        }
    }

    pub(crate) fn block_shift(&self) -> u32 {
        self.block_shift.load(Ordering::SeqCst)
    }

    /// Whether it can be formatted with blocks of this size: the disk takes and writes them whole, and
    /// ends with one. What several controllers may have keeps its size. The host of another one would go on
    /// with the old size, and what it reads would be written behind its buffers.
    pub(crate) fn can_have(&self, block_size: u32) -> bool {
        if self.is_shared && block_size != 1 << self.block_shift() {
            return false;
        }
        let Limits { block, atomic_write, .. } = self.limits;
        let is_whole = block_size <= atomic_write || self.torn_writes;
        block_size >= block && is_whole && self.capacity().is_multiple_of(block_size.into())
    }

    /// Changes the size of its blocks. No command uses it.
    pub(crate) fn set_block_size(&self, block_size: u32) {
        self.block_shift.store(block_size.ilog2(), Ordering::SeqCst);
    }

    /// Begins a command: what a block is stays so until it has ended.
    ///
    /// # Errors
    /// Format In Progress. Invalid Field: the namespace is not active any more.
    pub(crate) fn enter(&self) -> std::result::Result<InUse<'_>, Status> {
        self.begin().map(|()| InUse(self))
    }

    fn begin(&self) -> std::result::Result<(), Status> {
        let status = match self.users.fetch_add(1, Ordering::SeqCst) {
            removed if removed & REMOVED != 0 => Status::INVALID_FIELD,
            formatting if formatting & FORMATTING != 0 => Status::FORMAT_IN_PROGRESS,
            _ => return Ok(()),
        };
        self.end();
        Err(status)
    }

    fn end(&self) {
        let before = self.users.fetch_sub(1, Ordering::SeqCst);
        if before & COUNT == 1 && before != 1 {
            self.unused.wake_all();
        }
    }

    /// Waits until no command may begin any more, and says what one ends with then that waits for its host's
    /// memory: a host that is slow must not hold up a Format, whose namespace others may have as well, nor the
    /// removal.
    pub(crate) async fn unavailable(&self) -> Status {
        let status = || match self.users.load(Ordering::SeqCst) {
            removed if removed & REMOVED != 0 => Some(Status::INVALID_FIELD),
            formatting if formatting & FORMATTING != 0 => Some(Status::FORMAT_IN_PROGRESS),
            _ => None,
        };
        self.unused.wait_for(status).await
    }

    /// What commands that have begun belong to, until no command may begin any more.
    pub(crate) fn interest(&self) -> Interest {
        lock(&self.interest).clone()
    }

    /// Whether it is not active any more.
    pub(crate) fn is_removed(&self) -> bool {
        self.users.load(Ordering::SeqCst) & REMOVED != 0
    }

    /// Lets no command begin from now on. Waits until those have ended that had begun, and all requests to
    /// the disk; then the disk is free for others.
    fn leave(self: Arc<Self>) -> impl Future<Output = ()> + Send + 'static {
        self.users.fetch_or(REMOVED, Ordering::SeqCst);
        self.interest().end();
        self.unused.wake_all();
        async move {
            let used = || self.users.load(Ordering::SeqCst) & (COUNT | FORMATTING);
            self.unused.wait_for(|| (used() == 0).then_some(())).await;
            self.disk.idle().await;
            self.disk.release();
        }
    }

    /// Its size in bytes.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::SeqCst)
    }

    /// Gives it another size, as far as hosts can tell.
    pub(crate) fn set_capacity(&self, bytes: u64) {
        self.capacity.store(bytes, Ordering::SeqCst);
    }

    /// Lets no command begin from now on, until the result is dropped.
    ///
    /// # Errors
    /// Format In Progress: of another controller. Invalid Field: the namespace is not active any more.
    pub(crate) fn begin_format(&self) -> std::result::Result<Formatting<'_>, Status> {
        if self.is_removed() {
            return Err(Status::INVALID_FIELD);
        }
        if self.users.fetch_or(FORMATTING, Ordering::SeqCst) & FORMATTING != 0 {
            return Err(Status::FORMAT_IN_PROGRESS);
        }
        self.interest().end();
        self.unused.wake_all();
        Ok(Formatting(self))
    }

    /// Whether it has an identifier of another namespace.
    pub(crate) fn has_id_of(&self, other: &Self) -> bool {
        self.identity.nguid == other.identity.nguid || self.identity.uuid == other.identity.uuid
    }
}

impl Namespace {
    /// A namespace of this number.
    pub(crate) fn new(id: u32, volume: Arc<Volume>) -> Self {
        Self { id, volume, channel: OnceLock::new() }
    }

    /// Begins a command, as [`Volume::enter`].
    ///
    /// # Errors
    /// As [`Volume::enter`].
    pub(crate) fn enter_owned(self: Arc<Self>) -> std::result::Result<UsedNamespace, Status> {
        self.volume.begin().map(|()| UsedNamespace(self))
    }

    /// What its controllers have in common.
    pub(crate) fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// Lets no command begin from now on. Waits until those have ended that had begun, and all requests to
    /// the disk; then the disk is free for others.
    pub(crate) fn leave(&self) -> impl Future<Output = ()> + Send + use<> {
        self.volume.clone().leave()
    }

    /// Its attributes are others: all controllers are told that have it, but `by`, whose host knows.
    pub(crate) fn has_changed(&self, by: Option<&Arc<dyn Neighbour>>) {
        let all: Vec<_> = lock(&self.neighbours).iter().filter_map(Weak::upgrade).collect();
        let is_by = |one: &Arc<dyn Neighbour>| by.is_some_and(|by| Arc::ptr_eq(by, one));
        all.iter().filter(|one| !is_by(one)).for_each(|one| one.namespace_changed(self.id));
    }

    /// Begins to give it another size, until the result is dropped. It is not formatted, or free for others,
    /// before that.
    ///
    /// # Errors
    /// `EBUSY`: it is being formatted, or given another size; `ENOENT`: it was removed.
    pub(crate) fn begin_resize(&self) -> Result<Resizing> {
        let begin = |users: u32| {
            (users & (FORMATTING | REMOVED | RESIZING) == 0).then_some((users | RESIZING) + 1)
        };
        match self.users.fetch_update(Ordering::SeqCst, Ordering::SeqCst, begin) {
            Ok(_) => Ok(Resizing(self.volume.clone())),
            Err(users) if users & REMOVED != 0 => {
                Err(Error::new(Errno::NOENT, format!("there is no namespace {}", self.id)))
            }
            Err(users) => {
                let does = if users & FORMATTING != 0 { "formatted" } else { "given another size" };
                let what = format!("namespace {} is being {does}; try again", self.id);
                Err(Error::new(Errno::BUSY, what))
            }
        }
    }

    /// Its blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.capacity() >> self.block_shift()
    }

    /// Connects it to its disk, once. The controller is not idle before its requests have ended.
    ///
    /// # Errors
    /// Those of the disk.
    pub(crate) fn connect(
        &self,
        runtime: &Runtime,
        controller: Flights,
        payer: CurrentPayer,
    ) -> Result<()> {
        if self.channel.get().is_none() {
            // The same device is not registered twice at the same time.
            _ = self.channel.set(self.disk.connect_device(runtime, controller, payer)?);
        }
        Ok(())
    }

    /// Whether it is being formatted.
    pub(crate) fn is_formatting(&self) -> bool {
        self.users.load(Ordering::Relaxed) & FORMATTING != 0
    }

    /// Where requests are started.
    pub(crate) fn channel(&self) -> std::result::Result<&Arc<DiskChannel>, Status> {
        self.channel.get().ok_or(Status::NAMESPACE_NOT_READY)
    }

    /// The bytes of a range of blocks: where it begins, and its length.
    ///
    /// # Errors
    /// LBA Out of Range.
    pub(crate) fn range(&self, first: u64, blocks: u64) -> std::result::Result<(u64, u64), Status> {
        match first.checked_add(blocks) {
            Some(end) if end <= self.blocks() => {
                let shift = self.block_shift();
                Ok((first << shift, blocks << shift))
            }
            _ => Err(Status::LBA_OUT_OF_RANGE),
        }
    }

    /// Whether a Write Zeroes command is to deallocate its blocks (DEAC), and the disk does that.
    pub(crate) fn deallocates(&self, command: &Submission) -> bool {
        command.dword(12) & 1 << 25 != 0 && self.limits.deallocate.is_some()
    }

    /// Bytes as blocks, for a field of 16 bits: at least one.
    fn in_blocks(&self, bytes: u32) -> u16 {
        u16::try_from(bytes >> self.block_shift()).unwrap_or(u16::MAX).max(1)
    }

    /// Blocks that are written whole or not at all, 0's based.
    pub(crate) fn atomic_blocks(&self) -> u16 {
        self.in_blocks(self.limits.atomic_write) - 1
    }

    /// What Identify Namespace says of it.
    pub(crate) fn identify(&self) -> identify::Namespace {
        let shift = self.block_shift();
        let has = |size: u32| size.ilog2() == shift;
        let shift_of = |size: u32| if has(size) || self.can_have(size) { size.ilog2() } else { 0 };
        identify::Namespace {
            blocks: self.blocks(),
            formats: BLOCK_SIZES.map(|size| shift_of(size) as u8),
            format: BLOCK_SIZES.into_iter().position(has).unwrap_or(0) as u8,
            copy_blocks: self.copy_blocks(),
            copy_ranges: MAX_COPY_RANGES as u8,
            write_granularity: self.in_blocks(self.limits.preferred_write),
            deallocate_granularity: self.limits.deallocate.map(|bytes| self.in_blocks(bytes)),
            deallocated_reads_zero: self.limits.deallocated_reads_zero,
            write_protected: self.limits.read_only,
            atomic_blocks: self.atomic_blocks(),
            nguid: self.identity.nguid,
            shared: self.is_shared,
        }
    }
}
