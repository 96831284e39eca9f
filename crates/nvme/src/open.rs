//! Opens the disks of a controller, as its options say.

use std::path::Path;
use std::sync::Arc;

use vfiod_core::{Errno, Error, Result};
use vfiod_directories::{directory_of, in_directory_to_disk};
use vfiod_disk::{
    DirectIo, Disk, Identify, Identity as DiskIdentity, Image, ImageOptions, Memory, Metadata,
    MetadataOptions, Null,
};

use crate::identity::{Identity, MODEL};
use crate::namespace::{NamespaceIdentity, Volume};
use crate::options::{IdentityOption, NvmeOptions, invalid};

/// Bytes of a disk in memory whose size is not said.
const MEMORY: u64 = 64 << 20;

/// What lets two controllers use an image, if another one of this daemon has it.
fn may_be_shared(error: Error, path: &Path) -> Error {
    if error.errno() != Errno::BUSY || !Image::is_open_here(path) {
        return error;
    }
    let what = format!(
        "{error}; two controllers of one daemon share it with `shared = true` in the options of both"
    );
    Error::new(Errno::BUSY, what)
}

/// The refusal of an image that a namespace has already.
pub(crate) fn twins(path: &Path, twin: u32) -> Error {
    let path = path.display();
    invalid(format!("{path}: it has the identifiers of namespace {twin}; name it once"))
}

impl NvmeOptions {
    /// Opens the disks, and says what the subsystem is called.
    ///
    /// # Errors
    /// Those of [`Image::open`], [`Metadata::open`] and [`Memory::new`]. `EINVAL`: two namespaces have one
    /// identifier.
    pub(crate) fn open(&self) -> Result<(Identity, Vec<Arc<Volume>>)> {
        let (identity, first) = self.open_first()?;
        let mut volumes = vec![first];
        for (number, path) in self.numbered() {
            let volume = self.open_another(number, path)?;
            let mut others = self.numbers().zip(&volumes);
            if let Some((twin, _)) = others.find(|(_, other)| other.has_id_of(&volume)) {
                return Err(twins(path, twin));
            }
            volumes.push(volume);
        }
        let share = |volume: Volume| if self.shared { volume.shared() } else { volume };
        Ok((identity, volumes.into_iter().map(|volume| Arc::new(share(volume))).collect()))
    }

    /// Opens an image that is not the first one: who the controller is, is kept beside that.
    ///
    /// # Errors
    /// Those of [`Image::open`] and [`Metadata::open`].
    pub(crate) fn open_another(&self, number: u32, path: &Path) -> Result<Volume> {
        let others = self.of_image(number);
        let (torn_writes, place) = (self.torn_writes, path.to_owned());
        let open = move || {
            let (disk, block_size, named, metadata) = others.open_image(&place)?;
            let ids = NamespaceIdentity { nguid: named.nguid, uuid: named.uuid.into_bytes() };
            let volume = Volume::new(ids, disk, block_size, torn_writes)?;
            Ok(volume.kept_in(metadata))
        };
        // By a thread that may be lost: somebody may hold up the directory.
        let opened = in_directory_to_disk(directory_of(path), open).map_err(|error| {
            let what = format!("image {}: cannot be opened", path.display());
            Error::new(error.errno(), what).because(error)
        });
        opened.and_then(std::convert::identity).map_err(|error| {
            Error::new(error.errno(), format!("namespace {number}")).because(error)
        })
    }

    /// The options of an image: who the controller is, is kept beside the first one.
    pub(crate) fn of_image(&self, number: u32) -> Self {
        if number == 1 {
            return self.clone();
        }
        Self { serial: None, uuid: None, metadata: None, ..self.clone() }
    }

    fn open_first(&self) -> Result<(Identity, Volume)> {
        let (disk, block_size, named, metadata) = match &self.file {
            None => {
                let disk = match self.null {
                    Some(bytes) => Disk::new(Null::new(bytes, false)?),
                    None => Disk::new(Memory::new(self.memory.unwrap_or(MEMORY))?),
                };
                (disk, self.block_size(), DiskIdentity::random(), None)
            }
            Some(path) => {
                let (options, place) = (self.clone(), path.clone());
                // By a thread that may be lost: somebody may hold up the directory.
                in_directory_to_disk(directory_of(path), move || options.open_image(&place))
                    .map_err(|error| {
                        let what = format!("image {}: cannot be opened", path.display());
                        Error::new(error.errno(), what).because(error)
                    })??
            }
        };
        let (identity, volume) = self.first(disk, block_size, named)?;
        Ok((identity, volume.kept_in(metadata)))
    }

    /// What the subsystem is called, and its only namespace, whose disk is one of the caller's.
    ///
    /// # Errors
    /// As [`Nvme::with_backend`](crate::Nvme::with_backend).
    pub(crate) fn name_disk(&self, disk: Disk) -> Result<(Identity, Volume)> {
        self.check()?;
        if self.file.is_some() || self.memory.is_some() || self.null.is_some() {
            let what =
                "`file`, `memory` and `null` name a disk; this controller has one of its own";
            return Err(invalid(what.to_owned()));
        }
        self.first(disk, self.block_size(), DiskIdentity::random())
    }

    /// The first namespace, and the controller, which has its name.
    fn first(
        &self,
        disk: Disk,
        block_size: u32,
        named: DiskIdentity,
    ) -> Result<(Identity, Volume)> {
        let named = self.renamed(named)?;
        let identity = Identity {
            serial: named.serial,
            model: MODEL.to_owned(),
            subsystem_name: named.nqn,
            controller: named.controller,
        };
        let ids = NamespaceIdentity { nguid: named.nguid, uuid: named.uuid.into_bytes() };
        Ok((identity, Volume::new(ids, disk, block_size, self.torn_writes)?))
    }

    /// Opens an image and what is kept beside it.
    fn open_image(&self, path: &Path) -> Result<(Disk, u32, DiskIdentity, Option<Metadata>)> {
        let block_size = self.block_size_of(path)?;
        let options = self.image_options(path, block_size);
        let image = Image::open(&options).map_err(|error| may_be_shared(error, path))?;
        let (identity, metadata) = if self.readonly {
            (DiskIdentity::random(), None)
        } else {
            let options =
                MetadataOptions { path: self.metadata.clone(), identify: self.identify() };
            let metadata = Metadata::open(&image, &options)?;
            let named = self.renamed(metadata.identity())?;
            metadata.change(|stored| stored.identity = named)?;
            (metadata.identity(), Some(metadata))
        };
        Ok((Disk::new(image), block_size, identity, metadata))
    }

    /// Who the disk is to be.
    pub(crate) fn identify(&self) -> Identify {
        match self.identity {
            IdentityOption::Auto => Identify::Auto,
            IdentityOption::Keep => Identify::Keep,
            IdentityOption::New => Identify::New,
        }
    }

    /// The size of an image's blocks: that of the options, or that which is kept.
    pub(crate) fn block_size_of(&self, path: &Path) -> Result<u32> {
        match self.block_size {
            Some(block_size) => Ok(block_size),
            // Several may read an image, which has one owner.
            None if self.readonly => Ok(self.block_size()),
            None => {
                let kept = self.metadata.clone().unwrap_or_else(|| Metadata::beside(path));
                let stored = Metadata::stored_block(&kept, &self.identify())?;
                Ok(stored.unwrap_or(self.block_size()))
            }
        }
    }

    /// How an image is opened.
    pub(crate) fn image_options(&self, path: &Path, block: u32) -> ImageOptions {
        let direct = match self.direct {
            None => DirectIo::Auto,
            Some(true) => DirectIo::Required,
            Some(false) => DirectIo::Off,
        };
        let unlocked = self.locks == Some(false);
        ImageOptions {
            read_only: self.readonly,
            block,
            direct,
            unlocked,
            ..ImageOptions::new(path)
        }
    }
}
