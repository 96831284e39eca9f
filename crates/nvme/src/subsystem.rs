//! The NVM subsystem (base 2.2): what its controllers have in common, and the numbers of these.
//!
//! A controller has a subsystem of its own, unless `shared` is set: then it joins the one that has its image,
//! if another device of the same registry has opened that. Images are opened once, so that their disks, locks
//! and failures are those of all controllers.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use vfiod_core::{Errno, Error, Result};
use vfiod_directories::{directory_of, in_directory, in_directory_to_disk};
use vfiod_disk::Metadata;
use vfiod_sync::{Mutex, lock, try_lock};

use crate::identity::Identity;
use crate::namespace::{Namespace, Volume};
use crate::options::NvmeOptions;

/// The last number that a controller can have (CNTLID).
const LAST: u16 = 0xffef;

/// The subsystems of a registry's devices.
#[derive(Debug, Default)]
pub(crate) struct Subsystems {
    /// Those that are shared. Held while one is opened.
    shared: Mutex<Vec<Weak<Subsystem>>>,
    /// All, for their names. Never held for long.
    all: Mutex<Vec<Weak<Subsystem>>>,
}

/// A file, whichever path leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileId {
    /// Of a file system, and its number there.
    Regular(u64, u64),
    BlockDevice(u64),
}

/// What controllers have in common.
#[derive(Debug)]
pub(crate) struct Subsystem {
    /// What it was opened with. Those that join give the same.
    options: NvmeOptions,
    /// Its images. Not known of one that is not shared.
    images: Vec<FileId>,
    /// What it is called, with the first controller's number.
    identity: Identity,
    /// Its namespaces, as the options number them. Of one that is not shared, they may have come and gone since.
    volumes: Mutex<Vec<Arc<Volume>>>,
    /// Its controllers by number: the names of their devices.
    controllers: Mutex<BTreeMap<u16, String>>,
}

/// A controller's place in its subsystem, which is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    subsystem: Arc<Subsystem>,
    id: u16,
}

impl Drop for Seat {
    fn drop(&mut self) {
        lock(&self.subsystem.controllers).remove(&self.id);
    }
}

impl Seat {
    /// What the controller is called.
    pub(crate) fn identity(&self) -> Identity {
        Identity { controller: self.id, ..self.subsystem.identity.clone() }
    }

    /// The controller's namespaces.
    pub(crate) fn namespaces(&self) -> Vec<Namespace> {
        let volumes = lock(&self.subsystem.volumes).clone();
        let numbers = self.subsystem.options.numbers();
        numbers.zip(volumes).map(|(id, volume)| Namespace::new(id, volume)).collect()
    }

    /// Forgets a namespace that was removed, so that its image is closed.
    pub(crate) fn forget(&self, volume: &Arc<Volume>) {
        lock(&self.subsystem.volumes).retain(|other| !Arc::ptr_eq(other, volume));
    }

    /// The numbers of all controllers of the subsystem, ascending.
    pub(crate) fn controllers(&self) -> Vec<u16> {
        lock(&self.subsystem.controllers).keys().copied().collect()
    }

    /// The devices that are the other controllers of the subsystem; none while one takes its place.
    pub(crate) fn others(&self) -> Vec<String> {
        let Some(controllers) = try_lock(&self.subsystem.controllers) else { return Vec::new() };
        let others = controllers.iter().filter(|(id, _)| **id != self.id);
        others.map(|(_, name)| name.clone()).collect()
    }

    /// Whether the subsystem may have several controllers (CMIC).
    pub(crate) fn is_shared(&self) -> bool {
        self.subsystem.options.shared
    }
}

impl Subsystems {
    /// Takes a place for the controller that is the device `name` in the subsystem that its options mean, which
    /// is opened unless it is there.
    ///
    /// # Errors
    /// `EINVAL`: another controller has opened it with other options; `EBUSY`: an image is another
    /// subsystem's. Those of [`NvmeOptions::open`].
    pub(crate) fn enter(&self, options: &NvmeOptions, name: &str) -> Result<Seat> {
        if !options.shared {
            let (identity, volumes) = options.open()?;
            let subsystem = Arc::new(Subsystem {
                options: options.clone(),
                images: Vec::new(),
                identity,
                volumes: Mutex::new(volumes),
                controllers: Mutex::default(),
            });
            self.note(&subsystem)?;
            return subsystem.take(name);
        }
        let images = options.images().map(identify).collect::<Result<Vec<_>>>()?;
        // One that comes while it is being opened waits, and joins.
        let mut known = lock(&self.shared);
        known.retain(|subsystem| subsystem.strong_count() > 0);
        for subsystem in known.iter().filter_map(Weak::upgrade) {
            if subsystem.images.first() == images.first() {
                subsystem.accept(options, &images)?;
                return subsystem.take(name);
            }
            if let Some(place) = images.iter().position(|image| subsystem.images.contains(image)) {
                let path = options.images().nth(place).unwrap_or(Path::new(""));
                let what = format!(
                    "image {}: it is one of the subsystem of {}, whose controllers name the same `file` and \
                     the same `files`",
                    path.display(),
                    subsystem.devices()
                );
                return Err(Error::new(Errno::BUSY, what));
            }
        }
        let (identity, volumes) = options.open()?;
        let (options, volumes) = (options.clone(), Mutex::new(volumes));
        let controllers = Mutex::default();
        let subsystem = Arc::new(Subsystem { options, images, identity, volumes, controllers });
        self.note(&subsystem)?;
        known.push(Arc::downgrade(&subsystem));
        subsystem.take(name)
    }
}

impl Subsystems {
    /// The subsystems but for this one. They are not dropped under the lock.
    fn others(&self, own: &Arc<Subsystem>) -> Vec<Arc<Subsystem>> {
        let mut all = lock(&self.all);
        all.retain(|subsystem| subsystem.strong_count() > 0);
        let own = Arc::as_ptr(own);
        all.iter().filter(|other| other.as_ptr() != own).filter_map(Weak::upgrade).collect()
    }

    /// Notes a subsystem. Of two that come at the same time with the same names one is refused.
    ///
    /// # Errors
    /// `EINVAL`: another one has one of its names; a host that has both would refuse one of them.
    fn note(&self, subsystem: &Arc<Subsystem>) -> Result<()> {
        lock(&self.all).push(Arc::downgrade(subsystem));
        let volumes = lock(&subsystem.volumes).clone();
        for other in self.others(subsystem) {
            volumes.iter().try_for_each(|volume| other.differs_in(volume))?;
            if other.identity.subsystem_name == subsystem.identity.subsystem_name
                && let Some(first) = volumes.first()
            {
                return Err(other.is_twin_of(first));
            }
        }
        Ok(())
    }

    /// Adds a namespace to a subsystem that is not shared.
    ///
    /// # Errors
    /// `EINVAL`: another subsystem has one of its identifiers.
    pub(crate) fn add(&self, seat: &Seat, volume: &Arc<Volume>) -> Result<()> {
        lock(&seat.subsystem.volumes).push(volume.clone());
        let others = self.others(&seat.subsystem);
        let differs = others.iter().try_for_each(|other| other.differs_in(volume));
        differs.inspect_err(|_| seat.forget(volume))
    }
}

impl Subsystem {
    /// That none of its namespaces has an identifier of this one.
    fn differs_in(&self, volume: &Volume) -> Result<()> {
        let is_twin = lock(&self.volumes).iter().any(|own| own.has_id_of(volume));
        if is_twin { Err(self.is_twin_of(volume)) } else { Ok(()) }
    }

    fn is_twin_of(&self, volume: &Volume) -> Error {
        let path = volume.disk.about().path;
        let name = path.map_or_else(|| "the disk".to_owned(), |path| path.display().to_string());
        let what = format!(
            "{name} has the identifiers of a disk of {}, and no two disks have the same; with `identity = new` it \
             gets its own, unless `serial` and `uuid` say which",
            self.devices()
        );
        Error::new(Errno::INVAL, what)
    }

    /// The devices that are its controllers, in words.
    fn devices(&self) -> String {
        let names: Vec<_> = lock(&self.controllers).values().map(|n| format!("`{n}`")).collect();
        if names.is_empty() { "another device".to_owned() } else { names.join(" and ") }
    }

    /// That a controller with these options can join.
    fn accept(&self, options: &NvmeOptions, images: &[FileId]) -> Result<()> {
        let differs = |option: &str| {
            let what = format!(
                "`{option}` is another one than that of {}, which has the same image; both share it with \
                 the same options",
                self.devices()
            );
            Err(Error::new(Errno::INVAL, what))
        };
        if self.images != images {
            return differs("files");
        }
        if let Some(option) = self.options.differs(options) {
            return differs(option);
        }
        // A host may have formatted it since.
        let formatted = |volume: &Arc<Volume>| {
            options.block_size.is_some_and(|size| size.ilog2() != volume.block_shift())
        };
        if lock(&self.volumes).iter().any(formatted) {
            let what =
                "`block_size`: the disk was formatted with blocks of another size; leave it out";
            return Err(Error::new(Errno::INVAL, what));
        }
        Ok(())
    }

    /// Takes a place: that which the device of this name had before, if it is known.
    fn take(self: Arc<Self>, name: &str) -> Result<Seat> {
        let mut controllers = lock(&self.controllers);
        let metadata = lock(&self.volumes).first().and_then(|volume| volume.metadata.clone());
        let id = match metadata {
            Some(metadata) if self.options.shared => {
                let taken = controllers.keys().copied().collect();
                kept(metadata, name.to_owned(), taken)?
            }
            _ => (self.identity.controller..=LAST).find(|id| !controllers.contains_key(id)),
        };
        let id = id.ok_or_else(|| Error::new(Errno::USERS, "no controller number is left"))?;
        controllers.insert(id, name.to_owned());
        drop(controllers);
        Ok(Seat { subsystem: self, id })
    }
}

/// The number of a device's controller, which is kept with the first image from now on.
fn kept(metadata: Arc<Metadata>, name: String, taken: Vec<u16>) -> Result<Option<u16>> {
    let directory = directory_of(metadata.path()).to_owned();
    let keep = move || {
        let mut id = None;
        metadata.change(|stored| id = stored.keep_controller(&name, &taken)).map(|()| id)
    };
    in_directory_to_disk(&directory, keep)?
}

/// Which file a path leads to. Waits for a directory that is held up, but not for ever.
pub(crate) fn identify(path: &Path) -> Result<FileId> {
    let place: PathBuf = path.to_owned();
    let what = format!("image {}: cannot be opened", path.display());
    let found = in_directory(directory_of(path), move || std::fs::metadata(place));
    let found = found.map_err(|error| Error::new(error.errno(), what.clone()).because(error))?;
    let found = found.map_err(|error| {
        let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
        Error::new(errno, what).because(error)
    })?;
    let is_device = found.file_type().is_block_device();
    let regular = FileId::Regular(found.dev(), found.ino());
    Ok(if is_device { FileId::BlockDevice(found.rdev()) } else { regular })
}
