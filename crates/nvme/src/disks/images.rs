//! The images in a directory: making and deleting them, and how much they are.
//!
//! An image is made under another name, `UUID.img.new`, and gets its own once it has its size: what is called
//! `UUID.img` is whole. A daemon that is killed meanwhile leaves one of the two. The first one goes when the
//! parent is started, or an image of this UUID is made. The second one is an image that nobody has written to;
//! an instance of its UUID gets it.
//!
//! What waits for the directory is done by a thread that may be lost ([`vfiod_directories`]), one call after
//! the other; what is known changes there, too, so that it follows what has happened.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, Stat};
use uuid::Uuid;
use vfiod_core::{Errno, Error, Result};
use vfiod_directories::{
    in_directory, in_directory_to_disk, make_private_directory, remove_in, syncing,
};
use vfiod_sync::atomic::{AtomicBool, Ordering};
use vfiod_sync::{Mutex, lock};

use super::types::Allocation;

/// The images of a directory.
#[derive(Debug)]
pub(super) struct Images {
    directory: PathBuf,
    /// Bytes that all may have together.
    capacity: u64,
    known: Mutex<Known>,
}

/// What is known of the directory; files that others make and delete there are seen later.
#[derive(Debug, Default)]
struct Known {
    /// Bytes of the images that are there.
    there: BTreeMap<Uuid, u64>,
    /// Those of images that are being made.
    promised: BTreeMap<Uuid, u64>,
    /// Who has an instance, or is about to.
    in_use: BTreeSet<Uuid>,
}

impl Known {
    fn used(&self) -> u64 {
        self.there
            .values()
            .chain(self.promised.values())
            .fold(0, |all, size| all.saturating_add(*size))
    }

    /// How many images have no instance.
    fn without_instance(&self) -> usize {
        self.there.keys().filter(|uuid| !self.in_use.contains(uuid)).count()
    }
}

/// Whether there was an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// There was.
    There {
        /// It was kept beside it who the disk is.
        has_names: bool,
    },
    /// It was made.
    Made,
}

/// Whether an image that is being made has its name.
type IsNamed = Arc<AtomicBool>;

impl Images {
    pub(super) fn new(directory: PathBuf, capacity: u64) -> Self {
        Self { directory, capacity, known: Mutex::default() }
    }

    /// Where an image is.
    pub(super) fn path(&self, uuid: Uuid) -> PathBuf {
        self.directory.join(format!("{uuid}.img"))
    }

    /// Where it is kept who the disk of an image is.
    pub(super) fn names(&self, uuid: Uuid) -> PathBuf {
        metadata_of(&self.path(uuid))
    }

    /// Looks at the directory, or makes it, and removes what was not finished.
    ///
    /// # Errors
    /// `EPERM`: others may write to it; what else is wrong with it.
    pub(super) fn start(self: &Arc<Self>) -> Result<()> {
        let images = self.clone();
        in_directory_to_disk(&self.directory, move || {
            make_private_directory(&images.directory)
                .and_then(|()| rustix::fs::stat(&images.directory))
                .map_err(|errno| images.fails(errno, "cannot be used"))
                .and_then(|stat| images.check(&stat))?;
            images.look(true)
        })?
    }

    /// That nobody else can put something into the directory.
    fn check(&self, stat: &Stat) -> Result<()> {
        let (user, group) =
            (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let mode = Mode::from_raw_mode(stat.st_mode);
        let is_trusted = |owner: u32, ours: u32| owner == 0 || owner == ours;
        if !is_trusted(stat.st_uid, user) {
            let what =
                format!("it belongs to user {}, and must belong to user {user}", stat.st_uid);
            return Err(self.fails(Errno::PERM, &what));
        }
        let by_group = mode.contains(Mode::WGRP) && !is_trusted(stat.st_gid, group);
        if mode.contains(Mode::WOTH) || by_group {
            let what = format!("others may write to it; chmod go-w {}", self.directory.display());
            return Err(self.fails(Errno::PERM, &what));
        }
        Ok(())
    }

    fn fails(&self, errno: Errno, what: &str) -> Error {
        Error::new(errno, format!("{}: {what}", self.directory.display()))
    }

    /// Looks which images there are; removes those that were not finished if nobody makes any.
    fn look(&self, removes: bool) -> Result<()> {
        let fails = |error: std::io::Error| {
            let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
            self.fails(errno, "cannot be listed")
        };
        let mut there = BTreeMap::new();
        for entry in std::fs::read_dir(&self.directory).map_err(fails)? {
            let name = entry.map_err(fails)?.file_name();
            let Some(name) = name.to_str() else { continue };
            if let Some(uuid) = uuid_of(name, ".img") {
                let stat =
                    rustix::fs::statat(CWD, self.directory.join(name), AtFlags::SYMLINK_NOFOLLOW);
                if let Ok(stat) = stat
                    && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                {
                    there.insert(uuid, stat.st_size.try_into().unwrap_or(0));
                }
            } else if let Some(uuid) = uuid_of(name, ".img.new").filter(|_| removes) {
                tracing::info!(%uuid, directory = %self.directory.display(), "an image that was not finished is removed");
                _ = rustix::fs::unlink(self.directory.join(name));
            }
        }
        lock(&self.known).there = there;
        Ok(())
    }

    /// How many instances of disks of a size there can be: those that fit in, and those of images that have
    /// none.
    pub(super) fn available(&self, size: u64) -> u32 {
        let known = lock(&self.known);
        let kept = known.without_instance() as u64;
        let fit = self.capacity.saturating_sub(known.used()) / size;
        fit.saturating_add(kept).try_into().unwrap_or(u32::MAX)
    }

    /// Keeps room for an image, unless it is there.
    ///
    /// # Errors
    /// `EUSERS`: there is none; `ETIMEDOUT`: the directory is held up.
    pub(super) fn reserve(self: &Arc<Self>, uuid: Uuid, size: u64) -> Result<()> {
        if self.try_reserve(uuid, size).is_ok() {
            return Ok(());
        }
        // Somebody may have deleted images.
        let images = self.clone();
        in_directory(&self.directory, move || images.look(false))??;
        self.try_reserve(uuid, size)
    }

    fn try_reserve(&self, uuid: Uuid, size: u64) -> Result<()> {
        let mut known = lock(&self.known);
        if !known.there.contains_key(&uuid) && !known.promised.contains_key(&uuid) {
            let (used, capacity) = (known.used(), self.capacity);
            if used.checked_add(size).is_none_or(|sum| sum > capacity) {
                let kept = known.without_instance();
                let what = format!(
                    "a disk of {size} bytes does not fit in: images have {used} of {capacity} bytes; \
                     {kept} of them have no instance, and can be deleted as files"
                );
                return Err(self.fails(Errno::USERS, &what));
            }
            known.promised.insert(uuid, size);
        }
        known.in_use.insert(uuid);
        Ok(())
    }

    /// An instance has ended; its image stays.
    pub(super) fn release(&self, uuid: Uuid) {
        let mut known = lock(&self.known);
        known.promised.remove(&uuid);
        known.in_use.remove(&uuid);
    }

    /// Keeps room for an image that becomes so large; [`Images::has_size`] or [`Images::stop_growing`] follows.
    ///
    /// # Errors
    /// `EUSERS`: there is none; `ETIMEDOUT`: the directory is held up.
    pub(super) fn grow(self: &Arc<Self>, uuid: Uuid, size: u64) -> Result<()> {
        if self.try_grow(uuid, size).is_ok() {
            return Ok(());
        }
        // Somebody may have deleted images.
        let images = self.clone();
        in_directory(&self.directory, move || images.look(false))??;
        self.try_grow(uuid, size)
    }

    fn try_grow(&self, uuid: Uuid, size: u64) -> Result<()> {
        let mut known = lock(&self.known);
        let more = size.saturating_sub(known.there.get(&uuid).copied().unwrap_or(0));
        let (used, capacity) = (known.used(), self.capacity);
        if used.checked_add(more).is_none_or(|sum| sum > capacity) {
            let what = format!(
                "{more} bytes more do not fit in: images have {used} of {capacity} bytes; {} of them have no \
                 instance, and can be deleted as files",
                known.without_instance()
            );
            return Err(self.fails(Errno::USERS, &what));
        }
        known.promised.insert(uuid, more);
        Ok(())
    }

    /// An image of an instance has this size now.
    pub(super) fn has_size(&self, uuid: Uuid, size: u64) {
        let mut known = lock(&self.known);
        known.promised.remove(&uuid);
        known.there.insert(uuid, size);
    }

    /// An image has not grown.
    pub(super) fn stop_growing(&self, uuid: Uuid) {
        lock(&self.known).promised.remove(&uuid);
    }

    /// Makes the image for which there is room, unless it is there.
    ///
    /// # Errors
    /// `ENOSPC`, `EDQUOT`, `EFBIG`: the file system has no room; nothing is left then. `EPERM`: what is there
    /// is none of ours.
    pub(super) fn find_or_make(
        self: &Arc<Self>,
        uuid: Uuid,
        size: u64,
        allocation: Allocation,
    ) -> Result<Found> {
        let path = self.path(uuid);
        let (images, place) = (self.clone(), path.clone());
        let new = match in_directory(&self.directory, move || images.begin(uuid, &place))?? {
            Begun::There { has_names } => return Ok(Found::There { has_names }),
            Begun::New(new) => new,
        };
        // A file that was deleted by somebody else may have had another size.
        self.try_reserve(uuid, size)?;
        allocate(&new.file, size, allocation)
            .map_err(|errno| not_allocated(&path, errno, size, allocation))?;
        let (images, is_named) = (self.clone(), IsNamed::default());
        let named = is_named.clone();
        let finish = move || images.finish(uuid, size, new, &named);
        let finished = in_directory_to_disk(&self.directory, finish);
        finished
            .and_then(std::convert::identity)
            .inspect_err(|_| self.take_back(uuid, is_named))?;
        Ok(Found::Made)
    }

    /// Deletes an image that has got its name, and cannot be used. Where the directory is held up it may get that
    /// later: calls in a directory are made one after the other, this one then.
    fn take_back(self: &Arc<Self>, uuid: Uuid, is_named: IsNamed) {
        let images = self.clone();
        remove_in(&self.directory, move || {
            if is_named.load(Ordering::SeqCst) {
                _ = rustix::fs::unlink(images.path(uuid));
                lock(&images.known).there.remove(&uuid);
            }
        });
    }

    /// Begins an image, unless there is one.
    fn begin(self: &Arc<Self>, uuid: Uuid, path: &Path) -> Result<Begun> {
        let fails = |errno: Errno, what: &str| {
            Error::new(errno, format!("image {}: {what}", path.display()))
        };
        match rustix::fs::lstat(path) {
            Ok(stat) => {
                // Nobody else can change that meanwhile, in this directory.
                is_own(&stat).map_err(|what| fails(Errno::PERM, &what))?;
                let mut known = lock(&self.known);
                known.promised.remove(&uuid);
                known.there.insert(uuid, stat.st_size.try_into().unwrap_or(0));
                let has_names = rustix::fs::lstat(metadata_of(path)).err() != Some(Errno::NOENT);
                return Ok(Begun::There { has_names });
            }
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(fails(errno, "cannot be looked at")),
        }
        lock(&self.known).there.remove(&uuid);
        let place = self.directory.join(format!("{uuid}.img.new"));
        // What one that was killed has left.
        match rustix::fs::unlink(&place) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => {
                return Err(fails(
                    errno,
                    "what is at its place until it is whole cannot be removed",
                ));
            }
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(&place, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| fails(errno, "cannot be made"))?;
        Ok(Begun::New(New { file, place: Some(place), directory: self.directory.clone() }))
    }

    /// Gives an image its name.
    fn finish(&self, uuid: Uuid, size: u64, mut new: New, is_named: &IsNamed) -> Result<()> {
        let path = self.path(uuid);
        let named = || -> Result<(), Errno> {
            // Of another image that was here once.
            match rustix::fs::unlink(metadata_of(&path)) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno),
            }
            let place = new.place.as_deref().ok_or(Errno::NOENT)?;
            rustix::fs::renameat_with(CWD, place, CWD, &path, RenameFlags::NOREPLACE)
        };
        named().map_err(|errno| {
            Error::new(errno, format!("image {}: cannot get its name", path.display()))
        })?;
        new.place = None;
        is_named.store(true, Ordering::SeqCst);
        {
            let mut known = lock(&self.known);
            known.promised.remove(&uuid);
            known.there.insert(uuid, size);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(&self.directory, flags, Mode::empty())
            .and_then(|directory| syncing(|| rustix::fs::fsync(directory)))
            .map_err(|errno| self.fails(errno, "the name of an image in it cannot be made to last"))
    }

    /// Deletes what is kept beside an image that has no instance.
    pub(super) fn forget_names(self: &Arc<Self>, uuid: Uuid) {
        let beside = self.names(uuid);
        remove_in(&self.directory, move || _ = rustix::fs::unlink(&beside));
    }

    /// Deletes an image that has no instance any more, and what is kept beside it.
    pub(super) fn delete(self: &Arc<Self>, uuid: Uuid) {
        let images = self.clone();
        let done = remove_in(&self.directory, move || {
            let path = images.path(uuid);
            match rustix::fs::unlink(&path) {
                Ok(()) | Err(Errno::NOENT) => {
                    _ = rustix::fs::unlink(metadata_of(&path));
                    lock(&images.known).there.remove(&uuid);
                    tracing::info!(%uuid, image = %path.display(), "image deleted");
                }
                Err(error) => {
                    tracing::error!(%uuid, image = %path.display(), %error, "the image cannot be deleted");
                }
            }
        });
        if !done {
            tracing::warn!(%uuid, "the directory of the image is held up; it is deleted later");
        }
        self.release(uuid);
    }
}

/// Where what must last of an image is kept; as [`vfiod_disk::Metadata::beside`], without a look at it.
fn metadata_of(path: &Path) -> PathBuf {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".vfiod");
    beside.into()
}

/// Whether a file is a regular one of this process's user, and has no other name.
fn is_own(stat: &Stat) -> Result<(), String> {
    let user = rustix::process::geteuid().as_raw();
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err("not a regular file; remove it".to_owned());
    }
    if stat.st_uid != user {
        let owner = stat.st_uid;
        return Err(format!("it belongs to user {owner}, and must belong to user {user}"));
    }
    if stat.st_nlink != 1 {
        return Err(format!("it has {} names, and must have one", stat.st_nlink));
    }
    Ok(())
}

/// The UUID of a name that is one, in the usual form, with this end.
fn uuid_of(name: &str, end: &str) -> Option<Uuid> {
    let stem = name.strip_suffix(end)?;
    let uuid: Uuid = stem.parse().ok()?;
    (uuid.to_string() == stem).then_some(uuid)
}

fn not_allocated(path: &Path, errno: Errno, size: u64, allocation: Allocation) -> Error {
    let path = path.display();
    let sparse = match allocation {
        Allocation::Full => ", or `allocation = sparse`, which takes space as it is written",
        Allocation::Sparse => "",
    };
    let why = match errno {
        Errno::OPNOTSUPP => {
            let what = format!(
                "{path}: its file system allocates no space; with `allocation = sparse` none is asked for"
            );
            return Error::new(errno, what);
        }
        Errno::NOSPC | Errno::DQUOT => {
            format!(
                ": its file system has no room for that; make some, or take a smaller type{sparse}"
            )
        }
        Errno::FBIG => ": its file system has no files so large; take a smaller type".to_owned(),
        _ => String::new(),
    };
    let what = format!("{path}: cannot be made with {size} bytes, the `size` of its type{why}");
    Error::new(errno, what)
}

fn allocate(file: &OwnedFd, size: u64, allocation: Allocation) -> Result<(), Errno> {
    rustix::fs::ftruncate(file, size)?;
    if allocation == Allocation::Full {
        rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size)?;
    }
    syncing(|| rustix::fs::fsync(file))
}

/// What was found where an image is to be.
#[derive(Debug)]
enum Begun {
    There { has_names: bool },
    New(New),
}

/// An image that does not have its name yet; dropping it removes it.
#[derive(Debug)]
struct New {
    file: OwnedFd,
    /// `None`: it has its name.
    place: Option<PathBuf>,
    directory: PathBuf,
}

impl Drop for New {
    fn drop(&mut self) {
        if let Some(place) = self.place.take() {
            remove_in(&self.directory, move || _ = rustix::fs::unlink(&place));
        }
    }
}
