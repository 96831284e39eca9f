//! The directory on the disk: whole files only, and every change synced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;
use vfiod_config::open_regular;
use vfiod_core::{Errno, Error, Result};
use vfiod_directories::{directory_of, make_private_directory, syncing};

use super::{Damaged, Definition, file};

/// A directory of mdevctl that is not that of a parent.
pub(super) const SCRIPTS: &str = "scripts.d";
/// Where the store has what is not a definition.
const OWN: &str = ".vfiod";
const NEW: &str = "new";
const DAMAGED: &str = "damaged";

/// A directory of definitions. Its methods wait for the directory, and are called by threads that may be
/// lost; changes come one after the other.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
}

/// The lock of a directory, against other daemons.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Gives up the lock. Another process, or a thread that does not end, may have a copy of the descriptor,
    /// which would keep it.
    pub(super) fn release(&self) {
        if let Err(error) = flock(&self.file, FlockOperation::Unlock) {
            tracing::warn!(path = %self.path.display(), %error, "cannot unlock the definitions");
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.release();
    }
}

impl Directory {
    /// # Errors
    /// `EBUSY`: locked by another daemon; or errors of the file system.
    pub(super) fn open(path: &Path) -> Result<(Self, Lock)> {
        make(path).map_err(|error| failed("make", path, error))?;
        // Whoever changes to another directory later still finds it.
        let path = path.canonicalize().map_err(|error| failed("find", path, error))?;
        let file = File::open(&path).map_err(|error| failed("open", &path, error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let what = format!(
                    "{}: another vfiod has its definitions there; give each daemon a directory",
                    path.display()
                );
                return Err(Error::new(Errno::BUSY, what));
            }
            Err(errno) => return Err(failed("lock", &path, errno.into())),
        }
        let (lock, directory) = (Lock { path: path.clone(), file }, Self { path });
        directory.clean()?;
        Ok((directory, lock))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes what an interrupted write left behind.
    fn clean(&self) -> Result<()> {
        let new = self.path.join(OWN).join(NEW);
        make(&new).map_err(|error| failed("make", &new, error))?;
        for entry in fs::read_dir(&new).map_err(|error| failed("read", &new, error))? {
            let entry = entry.map_err(|error| failed("read", &new, error))?;
            let path = entry.path();
            fs::remove_file(&path).map_err(|error| failed("remove", &path, error))?;
            tracing::info!(path = %path.display(), "removed what an interrupted write left");
        }
        Ok(())
    }

    /// Names of parents that have or had definitions, in order.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(super) fn parents(&self) -> Result<Vec<String>> {
        let mut parents = Vec::new();
        let entries =
            fs::read_dir(&self.path).map_err(|error| failed("read", &self.path, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| failed("read", &self.path, error))?;
            // Through symbolic links, as mdevctl does it.
            if let Ok(name) = entry.file_name().into_string()
                && super::check_name("parent", &name).is_ok()
                && fs::metadata(entry.path()).is_ok_and(|metadata| metadata.is_dir())
            {
                parents.push(name);
            }
        }
        parents.sort_unstable();
        Ok(parents)
    }

    /// UUIDs that a parent has files of. Other files are ignored: mdevctl finds a
    /// device by the usual spelling of its UUID only.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(super) fn files(&self, parent: &str) -> Result<Vec<Uuid>> {
        let path = self.path.join(parent);
        let mut files = Vec::new();
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(files),
            entries => entries.map_err(|error| failed("read", &path, error))?,
        };
        for entry in entries {
            let entry = entry.map_err(|error| failed("read", &path, error))?;
            let name = entry.file_name();
            match name.to_str().and_then(spelt) {
                Some(uuid) => files.push(uuid),
                None => {
                    tracing::debug!(path = %entry.path().display(), "not a definition: its name")
                }
            }
        }
        Ok(files)
    }

    /// Whether there is something of the name of a file, also if it is none.
    pub(super) fn has(&self, parent: &str, uuid: Uuid) -> bool {
        fs::symlink_metadata(self.file(parent, uuid)).is_ok()
    }

    /// Reads a definition, if there is one. A damaged file is set aside. What is no file is damaged, too: it
    /// is not opened, and stays.
    ///
    /// # Errors
    /// The damaged file, which has been logged.
    pub(super) fn read(&self, parent: &str, uuid: Uuid) -> Result<Option<Definition>, Damaged> {
        let path = self.file(parent, uuid);
        let (why, movable) = match contents(&path) {
            Ok(None) => return Ok(None),
            Ok(Some((text, settled))) => match file::parse(parent, uuid, &text) {
                Ok(definition) => return Ok(Some(definition)),
                Err(why) => (why, settled),
            },
            Err(error) => (format!("it cannot be read: {error}"), false),
        };
        let mut damaged = Damaged { path, why, set_aside_as: None };
        if movable {
            match self.set_aside(parent, uuid) {
                Ok(place) => damaged.set_aside_as = place,
                Err(error) => tracing::warn!(%error, "a damaged definition stays where it is"),
            }
        }
        let Damaged { path, why, set_aside_as } = &damaged;
        let aside = set_aside_as.as_ref().map(|path| path.display().to_string());
        tracing::warn!(path = %path.display(), why, aside, "damaged definition");
        Err(damaged)
    }

    /// The files that were set aside.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(super) fn damaged(&self) -> Result<Vec<Damaged>> {
        let top = self.path.join(OWN).join(DAMAGED);
        let mut all = Vec::new();
        for parent in entries(&top)? {
            let (place, Some(parent)) = (top.join(&parent), parent.to_str()) else { continue };
            for name in entries(&place)? {
                let file = place.join(&name);
                // The name may have a number at its end.
                let Some(uuid) = name.to_str().and_then(|name| spelt(name.get(..36)?)) else {
                    continue;
                };
                let why = match contents(&file) {
                    Ok(None) => continue,
                    Ok(Some((text, _))) => match file::parse(parent, uuid, &text) {
                        Ok(_) => "it was damaged, and is right now: move it back".to_owned(),
                        Err(why) => why,
                    },
                    Err(error) => format!("it cannot be read: {error}"),
                };
                let path = self.file(parent, uuid);
                all.push(Damaged { path, why, set_aside_as: Some(file) });
            }
        }
        Ok(all)
    }

    /// Moves a file to a place that mdevctl ignores. `None`: there is no such file any more.
    fn set_aside(&self, parent: &str, uuid: Uuid) -> Result<Option<PathBuf>> {
        let from = self.file(parent, uuid);
        let to = self.path.join(OWN).join(DAMAGED).join(parent);
        make(&to).map_err(|error| failed("make", &to, error))?;
        for count in 1.. {
            let name = match count {
                1 => uuid.to_string(),
                _ => format!("{uuid}.{count}"),
            };
            let place = to.join(name);
            // A link rather than a rename: it never replaces anything.
            match fs::hard_link(&from, &place) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(failed("set aside", &from, error)),
            }
            sync(&to).map_err(|error| failed("sync", &to, error))?;
            self.remove(parent, uuid)?;
            return Ok(Some(place));
        }
        Ok(None)
    }

    /// Writes a definition that is not there.
    ///
    /// # Errors
    /// `EEXIST`; or errors of the file system.
    pub(super) fn create(&self, definition: &Definition) -> Result<()> {
        let path = self.file(&definition.parent, definition.uuid);
        self.write(definition, |new| match fs::hard_link(new, &path) {
            Ok(()) => discard(new),
            Err(error) => {
                let _ = fs::remove_file(new);
                Err(error)
            }
        })
        .map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                let Definition { uuid, parent, .. } = definition;
                Error::new(Errno::EXIST, format!("{uuid} is defined under {parent} already"))
            }
            _ => failed("write", &path, error),
        })
    }

    /// Writes a definition in the place of the one that is there.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(super) fn replace(&self, definition: &Definition) -> Result<()> {
        let path = self.file(&definition.parent, definition.uuid);
        self.write(definition, |new| fs::rename(new, &path))
            .map_err(|error| failed("write", &path, error))
    }

    /// Writes a whole and synced file, and lets `publish` give it its name.
    fn write(
        &self,
        definition: &Definition,
        publish: impl FnOnce(&Path) -> io::Result<()>,
    ) -> io::Result<()> {
        let parent = self.path.join(&definition.parent);
        make(&parent)?;
        let name = format!("{}:{}", definition.uuid, definition.parent);
        // A long name of a parent leaves room for nothing else.
        let name = if name.len() > 255 { definition.uuid.to_string() } else { name };
        let new = self.path.join(OWN).join(NEW).join(name);
        let written = (|| {
            // Never opened for writing: it may be another name of a definition by now.
            discard(&new)?;
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o644).open(&new)?;
            file.write_all(&file::text(definition)?)?;
            syncing(|| file.sync_all())
        })();
        if let Err(error) = written {
            // Half a file, on a full disk for instance: room for others.
            let _ = fs::remove_file(&new);
            return Err(error);
        }
        publish(&new)?;
        sync(&parent)
    }

    /// Removes a file; whether it was there.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(super) fn remove(&self, parent: &str, uuid: Uuid) -> Result<bool> {
        let path = self.file(parent, uuid);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed("remove", &path, error)),
        }
        let parent = self.path.join(parent);
        sync(&parent).map_err(|error| failed("sync", &parent, error))?;
        Ok(true)
    }

    fn file(&self, parent: &str, uuid: Uuid) -> PathBuf {
        self.path.join(parent).join(uuid.to_string())
    }
}

/// The names in a directory; none if it is not there.
fn entries(directory: &Path) -> Result<Vec<std::ffi::OsString>> {
    let read = || -> io::Result<_> {
        fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect()
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        names => names.map_err(|error| failed("read", directory, error)),
    }
}

/// The UUID that a file's name spells as mdevctl does: lower case, with hyphens.
fn spelt(name: &str) -> Option<Uuid> {
    let uuid = Uuid::try_parse(name).ok()?;
    (uuid.to_string() == name).then_some(uuid)
}

/// A file's contents, and whether it is no longer being written; `None`: there is no such file.
fn contents(path: &Path) -> io::Result<Option<(Vec<u8>, bool)>> {
    let file = match open_regular(path) {
        // A symbolic link to nothing is no file that is not there.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match fs::symlink_metadata(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
                Ok(_) => Err(io::Error::new(error.kind(), "it is a symbolic link to nothing")),
            };
        }
        file => file?,
    };
    let metadata = file.metadata()?;
    let mut text = Vec::new();
    file.take(file::LARGEST + 1).read_to_end(&mut text)?;
    Ok(Some((text, file::settled(metadata.modified()?))))
}

fn discard(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Makes a directory and those above it, so that they last. Whoever may list it, or open a file in it, could
/// hold it up: others may do neither.
fn make(path: &Path) -> io::Result<()> {
    let missing: Vec<_> = path.ancestors().take_while(|path| !path.is_dir()).collect();
    make_private_directory(path)?;
    missing.into_iter().rev().try_for_each(|made| sync(directory_of(made)))
}

fn sync(directory: &Path) -> io::Result<()> {
    let directory = File::open(directory)?;
    syncing(|| directory.sync_all())
}

fn failed(what: &str, path: &Path, error: io::Error) -> Error {
    let what = format!("cannot {what} {}", path.display());
    let errno = match error.kind() {
        io::ErrorKind::NotADirectory => Errno::NOTDIR,
        _ => Errno::from_io_error(&error).unwrap_or(Errno::IO),
    };
    Error::new(errno, what).because(error)
}
