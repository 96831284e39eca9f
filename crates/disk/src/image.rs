//! An image: a regular file or a block device, opened, judged and locked.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags, SeekFrom, StatxFlags};
use vfiod_dma::{Errno, Error, Hold, Result};
use vfiod_sync::atomic::{AtomicBool, Ordering};

use crate::backend::Limits;
use crate::lock::{NotLocked, holder, lock_image, unlock_image};

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

    fn open_file(options: &ImageOptions) -> Result<Self> {
        let path = options.path.as_path();
        let refuse = |errno, what: String| {
            Err(Error::new(errno, format!("image {}: {what}", path.display())))
        };
        if !options.block.is_power_of_two() || options.block < 512 {
            let what = format!("blocks of {} bytes: a power of two from 512 on", options.block);
            return refuse(Errno::INVAL, what);
        }
        let (file, is_device) = open(path, options.read_only)?;
        let size = size_of(&file, is_device).map_err(|errno| named(path, errno, "no size"))?;
        let block = u64::from(options.block);
        if size == 0 {
            return refuse(Errno::INVAL, "it is empty; `truncate -s 10G` gives it a size".into());
        }
        if !size.is_multiple_of(block) {
            let larger = size.next_multiple_of(block);
            let what = format!(
                "its size of {size} bytes is no multiple of the block size, {block}; \
                 `truncate -s {larger}` makes it one"
            );
            return refuse(Errno::INVAL, what);
        }
        if !options.unlocked {
            lock(path, &file, options.read_only)?;
        }
        let direct = choose_direct(path, &file, options)?;
        let limits = limits_of(&file, is_device, size, options, direct);
        // A file system takes any range.
        let sector = is_device.then(|| rustix::fs::ioctl_blksszget(&file));
        let allocation_unit =
            u64::from(sector.transpose().map_err(|e| named(path, e, "no sectors"))?.unwrap_or(1));
        let (file, can_zero, options) = (Arc::new(file), AtomicBool::new(true), options.clone());
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

fn named(path: &Path, errno: Errno, what: &str) -> Error {
    Error::new(errno, format!("image {}: {what}", path.display()))
}

/// Opens a regular file, or a block device for us alone.
fn open(path: &Path, read_only: bool) -> Result<(OwnedFd, bool)> {
    let kind_of = |mode| FileType::from_raw_mode(mode);
    let fails = |errno| named(path, errno, "cannot be opened");
    let before = kind_of(rustix::fs::stat(path).map_err(fails)?.st_mode);
    if !matches!(before, FileType::RegularFile | FileType::BlockDevice) {
        let what = "neither a regular file nor a block device";
        return Err(named(path, Errno::INVAL, what));
    }
    let is_device = before == FileType::BlockDevice;
    let mode = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let exclusive = if is_device { OFlags::EXCL } else { OFlags::empty() };
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

/// How often an image is tried that somebody uses whom nobody sees: a process that is killed has its locks a
/// moment longer than its entry in `/proc`.
const TRIES: usize = 20;
/// How long it is looked for who uses an image, in all: less than anybody waits for what opens an image.
const SEARCH: Duration = Duration::from_secs(4);

fn lock(path: &Path, file: &OwnedFd, read_only: bool) -> Result<()> {
    let mut tries = 1..=TRIES;
    let deadline = Instant::now() + SEARCH;
    loop {
        let byte = match lock_image(file, read_only) {
            Ok(()) => return Ok(()),
            Err(NotLocked::InUse { byte }) => byte,
            Err(NotLocked::Failed(error)) => {
                let what = "its file system has no locks, so nothing keeps others from using it; \
                            with `locks = false` it is used all the same";
                return Err(named(path, Errno::OPNOTSUPP, what).because(error));
            }
        };
        let by = match holder(file, byte, deadline) {
            Some(by) => by,
            None if tries.next().is_some() && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            None => "a process that this one may not look at".to_owned(),
        };
        let does = if read_only { "writes to it" } else { "uses it" };
        let what = format!("in use: {by} {does}. One image is one disk of one VM at a time");
        return Err(named(path, Errno::BUSY, &what));
    }
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

fn limits_of(
    file: &OwnedFd,
    is_device: bool,
    size: u64,
    options: &ImageOptions,
    direct: Option<Alignment>,
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
        punches_holes(file, size).then_some(file_block)
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
