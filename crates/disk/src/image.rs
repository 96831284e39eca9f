//! An image: a regular file or a block device, opened, judged and locked.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags, SeekFrom, StatxFlags};
use vfiod_dma::{Errno, Error, Hold, Result};
use vfiod_sync::atomic::{AtomicBool, Ordering};
use vfiod_sync::{Mutex, lock};

use crate::limits::Limits;
use crate::lock::{Holder, NotLocked, could_lock, holder, lock_image, unlock_image};

/// Whether the page cache is passed by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirectIo {
    /// Where the kernel takes blocks of the size that is asked for.
    #[default]
    Auto,
    /// Always: otherwise the image is refused.
    Required,
    /// Never.
    Off,
}

/// How an image is opened.
#[derive(Clone, Debug)]
pub struct ImageOptions {
    /// Where it is.
    pub path: PathBuf,
    /// Nothing is written to it, and others may read it as well.
    pub read_only: bool,
    /// The block size of the controller's format: a power of two from 512 on.
    pub block: u32,
    /// Whether the page cache is passed by.
    pub direct: DirectIo,
    /// Without locks: nothing keeps others from writing to the image meanwhile. For file systems that
    /// have none.
    pub unlocked: bool,
    /// I/O is done by so many threads instead of io_uring.
    pub threads: Option<usize>,
    /// Most memory, in bytes, that one controller's requests are copied through where direct I/O does
    /// not take guest memory as it is.
    pub bounce: usize,
}

impl ImageOptions {
    /// Writable, blocks of 512 bytes, direct I/O where that is possible, locked, 16 MiB of bounce memory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            read_only: false,
            block: 512,
            direct: DirectIo::Auto,
            unlocked: false,
            threads: None,
            bounce: 16 << 20,
        }
    }
}

/// What direct I/O asks of addresses, and of offsets and lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Alignment {
    pub(crate) memory: usize,
    pub(crate) offset: usize,
}

impl Alignment {
    /// Whether the kernel takes this memory as it is.
    pub(crate) fn fits(self, holds: &[Hold]) -> bool {
        let segments = holds.iter().flat_map(Hold::segments);
        segments.into_iter().all(|segment| self.fits_bytes(segment.as_ptr(), segment.len()))
    }

    pub(crate) fn fits_bytes(self, address: *const u8, len: usize) -> bool {
        address.addr().is_multiple_of(self.memory) && len.is_multiple_of(self.offset)
    }
}

/// Who has an image that was examined.
#[derive(Debug)]
pub enum ImageUse {
    /// Nobody has what keeps it from being opened.
    Free,
    /// Somebody has.
    Taken {
        /// The refusal that [`Image::open`] would be.
        refusal: Error,
        /// It is another process of the same program, or may be one.
        by_this_program: bool,
    },
}

/// A regular file or a block device that keeps a disk, raw from its first byte on. It is locked until
/// this and all requests to it have ended.
pub struct Image {
    pub(crate) file: Arc<OwnedFd>,
    /// `None`: through the page cache.
    pub(crate) direct: Option<Alignment>,
    /// Ranges can be made zero without writing zeroes, as far as is known.
    pub(crate) can_zero: AtomicBool,
    /// What ranges are allocated in multiples of: the sectors of a block device.
    pub(crate) allocation_unit: u64,
    pub(crate) options: ImageOptions,
    limits: Limits,
    is_device: bool,
}

impl Image {
    /// Opens an image, asks the kernel what it can do, and locks it.
    ///
    /// # Errors
    /// What the file cannot be opened with; `EINVAL`: it is none of the two kinds, empty, or its size or
    /// the block size does not fit; `EBUSY`: somebody else uses it; `EOPNOTSUPP`: no direct I/O, or no
    /// locks. The text names the image, what is wrong, and the remedy.
    pub fn open(options: &ImageOptions) -> Result<Arc<Self>> {
        let image = Self::open_file(options)?;
        tracing::info!(
            image = %options.path.display(),
            bytes = image.limits.capacity,
            io = %image.how(),
            read_only = options.read_only,
            deallocate = ?image.limits.deallocate,
            "image opened"
        );
        Ok(Arc::new(image))
    }

    /// Looks at an image as [`Image::open`] would, without a lock on it, and changes nothing.
    ///
    /// # Errors
    /// As [`Image::open`], but for `EBUSY`.
    pub fn examine(options: &ImageOptions) -> Result<(ImageUse, Limits)> {
        let (file, is_device, used) = match open(&options.path, options.read_only, Share::Alone) {
            Ok((file, is_device)) => (file, is_device, None),
            // A block device: the kernel does not say by whom.
            Err(refusal) if refusal.errno() == Errno::BUSY => {
                let (file, is_device) = open(&options.path, options.read_only, Share::Beside)?;
                (file, is_device, Some(ImageUse::Taken { refusal, by_this_program: true }))
            }
            Err(error) => return Err(error),
        };
        let size = check_size(options, &file, is_device)?;
        let direct = choose_direct(&options.path, &file, options)?;
        let limits = limits_of(&file, is_device, size, options, direct, false);
        let used = used.map_or_else(|| Self::used(options, &file), Ok)?;
        Ok((used, limits))
    }

    /// Who has an image.
    fn used(options: &ImageOptions, file: &OwnedFd) -> Result<ImageUse> {
        if options.unlocked {
            return Ok(ImageUse::Free);
        }
        match could_lock(file, options.read_only) {
            Ok(()) => Ok(ImageUse::Free),
            Err(NotLocked::InUse { byte }) => {
                let holder = user_of(file, byte, Instant::now() + SEARCH);
                let name = Holder::this().name;
                let by_this_program = holder.as_ref().is_none_or(|holder| holder.name == name);
                let refusal = in_use(&options.path, holder.as_ref(), options.read_only);
                Ok(ImageUse::Taken { refusal, by_this_program })
            }
            Err(NotLocked::Failed(error)) => Err(no_locks(&options.path, error)),
        }
    }

    /// Whether this process has the image open, and locked.
    pub fn is_open_here(path: &Path) -> bool {
        rustix::fs::stat(path).is_ok_and(|stat| is_open_here((stat.st_dev, stat.st_ino)))
    }

    fn open_file(options: &ImageOptions) -> Result<Self> {
        let path = options.path.as_path();
        let (file, is_device) = open(path, options.read_only, Share::Alone)?;
        let size = check_size(options, &file, is_device)?;
        if !options.unlocked {
            take_locks(path, &file, options.read_only)?;
        }
        let direct = choose_direct(path, &file, options)?;
        let limits = limits_of(&file, is_device, size, options, direct, true);
        // A file system takes any range.
        let sector = is_device.then(|| rustix::fs::ioctl_blksszget(&file));
        let allocation_unit =
            u64::from(sector.transpose().map_err(|e| named(path, e, "no sectors"))?.unwrap_or(1));
        let (file, can_zero, options) = (Arc::new(file), AtomicBool::new(true), options.clone());
        if !options.unlocked {
            note_open(&file);
        }
        Ok(Self { file, direct, can_zero, allocation_unit, options, limits, is_device })
    }

    /// How the image is read and written, in words.
    pub fn how(&self) -> String {
        match self.direct {
            Some(Alignment { memory, offset }) => {
                format!(
                    "direct, blocks of {offset} bytes at addresses that are multiples of {memory}"
                )
            }
            None => "through the page cache".to_owned(),
        }
    }

    /// Whether the page cache is passed by.
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// What it can do, with the size that it has now.
    pub(crate) fn limits_now(&self) -> Limits {
        let size = self.size();
        let capacity = size - size % u64::from(self.options.block);
        Limits { capacity, max_range: capacity, ..self.limits.clone() }
    }

    /// Makes a regular file longer or shorter.
    pub(crate) fn truncate(&self, bytes: u64) -> Result<()> {
        let path = self.path();
        if self.is_device {
            let what = "a block device has the size that it has";
            return Err(named(path, Errno::OPNOTSUPP, what));
        }
        rustix::fs::ftruncate(&self.file, bytes)
            .map_err(|errno| named(path, errno, &format!("cannot be given {bytes} bytes")))
    }

    /// Gives the locks up. A block device is others' when its last descriptor is closed.
    pub(crate) fn unlock(&self) {
        unlock_image(&self.file);
        lock(&OPEN_HERE).retain(|(_, file)| !std::ptr::eq(file.as_ptr(), &*self.file));
    }

    /// Its size now; 0 if it cannot be asked for.
    pub(crate) fn size(&self) -> u64 {
        size_of(&self.file, self.is_device).unwrap_or(0)
    }

    /// The block size that it was opened with.
    pub(crate) fn block(&self) -> u32 {
        self.options.block
    }

    pub(crate) fn is_device(&self) -> bool {
        self.is_device
    }

    /// Whether other programs are kept from using it: by locks, or by the kernel, which opens a block
    /// device for us alone.
    pub(crate) fn is_locked(&self) -> bool {
        self.is_device || !self.options.unlocked
    }

    pub(crate) fn path(&self) -> &Path {
        &self.options.path
    }

    pub(crate) fn zeroes(&self) -> bool {
        self.can_zero.load(Ordering::Relaxed)
    }
}

/// The size of an image, which has a whole number of blocks.
fn check_size(options: &ImageOptions, file: &OwnedFd, is_device: bool) -> Result<u64> {
    let (path, block) = (options.path.as_path(), u64::from(options.block));
    if !options.block.is_power_of_two() || block < 512 {
        let what = format!("blocks of {block} bytes: a power of two from 512 on");
        return Err(named(path, Errno::INVAL, &what));
    }
    let size = size_of(file, is_device).map_err(|errno| named(path, errno, "no size"))?;
    if size == 0 {
        return Err(named(path, Errno::INVAL, "it is empty; `truncate -s 10G` gives it a size"));
    }
    if !size.is_multiple_of(block) {
        let larger = size.next_multiple_of(block);
        let what = format!(
            "its size of {size} bytes is no multiple of the block size, {block}; \
             `truncate -s {larger}` makes it one"
        );
        return Err(named(path, Errno::INVAL, &what));
    }
    Ok(size)
}

fn named(path: &Path, errno: Errno, what: &str) -> Error {
    Error::new(errno, format!("image {}: {what}", path.display()))
}

/// Who may have a block device beside us.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Share {
    Alone,
    Beside,
}

/// Opens a regular file, or a block device.
fn open(path: &Path, read_only: bool, share: Share) -> Result<(OwnedFd, bool)> {
    let kind_of = |mode| FileType::from_raw_mode(mode);
    let fails = |errno| named(path, errno, "cannot be opened");
    let before = kind_of(rustix::fs::stat(path).map_err(fails)?.st_mode);
    if !matches!(before, FileType::RegularFile | FileType::BlockDevice) {
        let what = "neither a regular file nor a block device";
        return Err(named(path, Errno::INVAL, what));
    }
    let is_device = before == FileType::BlockDevice;
    let mode = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let is_ours = is_device && share == Share::Alone;
    let exclusive = if is_ours { OFlags::EXCL } else { OFlags::empty() };
    // What it is may have changed meanwhile: a pipe must not make us wait.
    let flags = mode | exclusive | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::BUSY => {
            let what = "in use: mounted, or another program has the device for itself";
            named(path, errno, what)
        }
        Errno::ROFS | Errno::ACCESS | Errno::PERM if !read_only => {
            named(path, errno, "cannot be opened for writing; with `readonly` it is only read")
        }
        errno => fails(errno),
    })?;
    let after = kind_of(rustix::fs::fstat(&file).map_err(fails)?.st_mode);
    if after != before {
        return Err(named(path, Errno::AGAIN, "replaced by something else while it was opened"));
    }
    Ok((file, is_device))
}

fn size_of(file: &OwnedFd, is_device: bool) -> Result<u64, Errno> {
    if is_device {
        return rustix::fs::seek(file, SeekFrom::End(0));
    }
    Ok(rustix::fs::fstat(file)?.st_size.try_into().unwrap_or(0))
}

/// How often an image is tried that this process uses, or somebody whom nobody sees: a process that is killed has
/// its locks a moment longer than its entry in `/proc`, and the kernel has a file a moment longer than we do.
const TRIES: usize = 20;
/// How long it is looked for who uses an image, in all: less than anybody waits for what opens an image.
const SEARCH: Duration = Duration::from_secs(4);

fn take_locks(path: &Path, file: &OwnedFd, read_only: bool) -> Result<()> {
    let mut tries = 1..=TRIES;
    let deadline = Instant::now() + SEARCH;
    loop {
        let byte = match lock_image(file, read_only) {
            Ok(()) => return Ok(()),
            Err(NotLocked::InUse { byte }) => byte,
            Err(NotLocked::Failed(error)) => return Err(no_locks(path, error)),
        };
        let by = user_of(file, byte, deadline);
        let may_end = by.as_ref().is_none_or(Holder::is_this);
        if may_end && tries.next().is_some() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        }
        return Err(in_use(path, by.as_ref(), read_only));
    }
}

/// Who has an image, of which somebody holds a byte; it is looked for until `deadline`.
fn user_of(file: &OwnedFd, byte: i64, deadline: Instant) -> Option<Holder> {
    // A sandbox hides all processes, this one, too.
    let stat = rustix::fs::fstat(file).ok();
    let is_here = stat.is_some_and(|stat| is_open_here((stat.st_dev, stat.st_ino)));
    if is_here { Some(Holder::this()) } else { holder(file, byte, deadline) }
}

/// The refusal of an image that somebody has.
fn in_use(path: &Path, by: Option<&Holder>, read_only: bool) -> Error {
    let does = if read_only { "writes to it" } else { "uses it" };
    let what = match by {
        Some(by) => format!("{by} {does}"),
        None => format!(
            "a process that this one may not look at {does}; `lsof {}` names it",
            path.display()
        ),
    };
    let what = format!("in use: {what}. One image is one disk of one VM at a time");
    named(path, Errno::BUSY, &what)
}

fn no_locks(path: &Path, error: Error) -> Error {
    let what = "its file system has no locks, so nothing keeps others from using it; with `locks = false` it is \
                used all the same";
    named(path, Errno::OPNOTSUPP, what).because(error)
}

/// A file, by its file system and its number there.
type FileKey = (u64, u64);

/// The files that this process has locked, until their last descriptors are closed.
static OPEN_HERE: Mutex<Vec<(FileKey, Weak<OwnedFd>)>> = Mutex::new(Vec::new());

fn note_open(file: &Arc<OwnedFd>) {
    let Ok(stat) = rustix::fs::fstat(file) else { return };
    let mut open = lock(&OPEN_HERE);
    open.retain(|(_, file)| file.strong_count() > 0);
    open.push(((stat.st_dev, stat.st_ino), Arc::downgrade(file)));
}

fn is_open_here(key: FileKey) -> bool {
    lock(&OPEN_HERE).iter().any(|(other, file)| *other == key && file.strong_count() > 0)
}

/// Makes the file one that passes the page cache by, if that is wanted and possible.
fn choose_direct(path: &Path, file: &OwnedFd, options: &ImageOptions) -> Result<Option<Alignment>> {
    if options.direct == DirectIo::Off {
        return Ok(None);
    }
    let why = match alignment(file) {
        None => "its file system has no direct I/O, or does not say what that asks for".to_owned(),
        Some(alignment) if alignment.offset > options.block as usize => format!(
            "direct I/O asks for blocks of {} bytes, and the disk's have {}",
            alignment.offset, options.block
        ),
        Some(alignment) => {
            let on = rustix::fs::fcntl_getfl(file)
                .and_then(|flags| rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT));
            match on {
                Ok(()) => return Ok(Some(alignment)),
                Err(errno) => format!("direct I/O is refused ({errno})"),
            }
        }
    };
    if options.direct == DirectIo::Required {
        let what = format!("{why}; without `direct` the page cache is used");
        return Err(named(path, Errno::OPNOTSUPP, &what));
    }
    tracing::warn!(image = %path.display(), why, "I/O goes through the page cache");
    Ok(None)
}

/// What direct I/O asks for; `None`: there is none, or the kernel does not say (before Linux 6.1).
fn alignment(file: &OwnedFd) -> Option<Alignment> {
    let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let told = stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    let (memory, offset) = (stat.stx_dio_mem_align as usize, stat.stx_dio_offset_align as usize);
    (told && memory > 0 && offset > 0).then_some(Alignment { memory, offset })
}

/// A number that the block layer tells of the device that a file is, or is on.
fn queue_limit(device: u64, name: &str) -> Option<u32> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    // A partition has its disk's.
    ["", "../"].iter().find_map(|up| {
        let path = format!("/sys/dev/block/{major}:{minor}/{up}queue/{name}");
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    })
}

/// What an image can do; without `tries_holes` nothing is changed to find that out.
fn limits_of(
    file: &OwnedFd,
    is_device: bool,
    size: u64,
    options: &ImageOptions,
    direct: Option<Alignment>,
    tries_holes: bool,
) -> Limits {
    let stat = rustix::fs::fstat(file).ok();
    let of = |f: fn(&rustix::fs::Stat) -> u64| stat.as_ref().map_or(0, f);
    let device = if is_device { of(|stat| stat.st_rdev) } else { of(|stat| stat.st_dev) };
    let file_block = u32::try_from(of(|stat| stat.st_blksize as u64)).unwrap_or(0);
    let file_block = file_block.clamp(512, 1 << 20).next_power_of_two();
    let sector = if is_device {
        // Also in a sandbox, where `/sys` cannot be read.
        rustix::fs::ioctl_blkpbszget(file).ok()
    } else {
        queue_limit(device, "physical_block_size").map(|sector| sector.min(file_block))
    };
    let sector = sector.unwrap_or(512);
    let granularity = if options.read_only {
        None
    } else if is_device {
        let zeroes = queue_limit(device, "write_zeroes_max_bytes").unwrap_or(0);
        queue_limit(device, "discard_granularity").filter(|unit| *unit > 0 && zeroes > 0)
    } else {
        (tries_holes && punches_holes(file, size)).then_some(file_block)
    };
    // Smaller blocks than direct I/O takes would need the page cache.
    let block = direct.map_or(512, |alignment| alignment.offset.max(512) as u32);
    Limits {
        capacity: size,
        block,
        atomic_write: sector.max(block),
        preferred_write: file_block.max(4096),
        read_only: options.read_only,
        volatile: !options.read_only,
        deallocate: granularity.map(|unit| unit.next_power_of_two().max(options.block)),
        deallocated_reads_zero: true,
        max_range: size,
    }
}

/// Whether holes can be punched, tried behind the end of a file.
fn punches_holes(file: &OwnedFd, size: u64) -> bool {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let behind = size.next_multiple_of(1 << 20);
    rustix::fs::fallocate(file, mode, behind, 1 << 20).is_ok()
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("path", &self.options.path)
            .field("io", &self.how())
            .field("limits", &self.limits_now())
            .finish_non_exhaustive()
    }
}
