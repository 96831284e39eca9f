//! Lasting definitions of mediated devices, in the files of mdevctl.
//!
//! ```text
//! DIR/<parent>/<uuid>              a definition (JSON), as mdevctl 1.4 writes and reads it
//! DIR/.vfiod/new/                  files being written; emptied when the store is opened
//! DIR/.vfiod/damaged/<parent>/     damaged files, set aside
//! ```
//!
//! The directory is the truth. Nothing is cached, because mdevctl may use the same directory (it
//! looks for `etc/mdevctl.d` below `MDEVCTL_ENV_ROOT`): every call reads what is there now.
//! mdevctl passes over `.vfiod`, which has directories only, without a word. Directories that the store makes
//! have mode 0700: who may list one, or read a file in it, can hold up changes there.
//!
//! # What lasts
//! Every change is one rename, link or removal of a whole and synced file, and is on the disk when
//! the call returns: a reader, and a daemon that was killed at any instant, finds the old
//! definition or the new one. mdevctl itself does not write like that, so a file that cannot be
//! read is given [`file::SETTLED`] to become whole before it is set aside.
//!
//! # One UUID under two parents
//! mdevctl allows that, and so does this store: a definition is found by parent and UUID. Calls
//! that take an optional parent refuse (`EINVAL`) to choose between two. Only one of them can be
//! running at a time; that is for the bus to say.
//!
//! # What it does not implement
//! mdevctl takes no lock, so when mdevctl and the daemon modify the same definition at the same
//! moment, one of the two changes wins. Fields that neither knows are kept, in alphabetical order.

mod directory;
mod file;
#[cfg(test)]
mod killed;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vfiod_core::{Errno, Error, Result};
use vfiod_directories::{in_directory, in_directory_to_disk};

use self::directory::{Directory, Lock};

/// Whether an instance is started with the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Start {
    /// With the daemon, when its parent is there.
    Auto,
    /// When asked for.
    #[default]
    Manual,
}

impl Start {
    /// The word in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Manual => "manual",
        }
    }
}

/// A mediated device that can be started.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// Its UUID.
    pub uuid: Uuid,
    /// The parent that makes it.
    pub parent: String,
    /// Its type among those of the parent.
    pub mdev_type: String,
    /// When it starts.
    pub start: Start,
    /// What is set when it starts, in this order; a name may come more than once.
    pub attrs: Vec<(String, String)>,
    /// Fields of the file that are none of the above.
    pub other: serde_json::Map<String, serde_json::Value>,
}

impl Definition {
    /// A definition without attributes, started when asked for.
    pub fn new(uuid: Uuid, parent: impl Into<String>, mdev_type: impl Into<String>) -> Self {
        Self {
            uuid,
            parent: parent.into(),
            mdev_type: mdev_type.into(),
            start: Start::default(),
            attrs: Vec::new(),
            other: serde_json::Map::new(),
        }
    }

    fn validate(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::new(Errno::INVAL, what));
        check_uuid(self.uuid)?;
        check_name("parent", &self.parent)?;
        check_name("type", &self.mdev_type)?;
        if self.attrs.iter().any(|(name, _)| name.is_empty() || name.contains('\0')) {
            return wrong(format!("definition {}: an attribute has no name", self.uuid));
        }
        for field in file::FIELDS {
            if self.other.contains_key(field) {
                return wrong(format!("definition {}: field {field} is there twice", self.uuid));
            }
        }
        Ok(())
    }
}

/// A file that is no definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// Where it was found.
    pub path: PathBuf,
    /// What is wrong with it, and what would be right.
    pub why: String,
    /// Where it is now; `None`: where it was, because it could not be read or moved, or was
    /// written a moment ago and may be whole at the next look.
    pub set_aside_as: Option<PathBuf>,
}

/// What a look at the directory found.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Definitions, by parent and UUID.
    pub definitions: Vec<Definition>,
    /// What could not be read, now or earlier: a file that was set aside is listed until it is removed.
    pub damaged: Vec<Damaged>,
}

/// The store. Its methods may be called by any thread. They wait for the disk and for the directory, but not
/// for ever for one that somebody holds up: two seconds to read, six to change (`ETIMEDOUT`). A change that
/// has begun by then is made later.
#[derive(Debug)]
pub(crate) struct Definitions {
    directory: Arc<Directory>,
    /// Against another daemon.
    lock: Lock,
    /// Changes by this process come one after the other.
    changing: Mutex<()>,
}

impl Definitions {
    /// Opens a directory of definitions, made if it is not there, and locks it against another
    /// daemon until the store is dropped. What an interrupted write left behind is removed.
    ///
    /// # Errors
    /// `EBUSY`: another daemon uses it; or errors of the file system.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let place = dir.to_owned();
        let (directory, lock) =
            in_directory_to_disk(dir, move || Directory::open(&place)).map_err(held_up)??;
        Ok(Self { directory: Arc::new(directory), lock, changing: Mutex::default() })
    }

    /// Lets another daemon use the directory.
    pub(crate) fn unlock(&self) {
        self.lock.release();
    }

    /// Every definition. Damaged files are set aside, and do not keep the others from being read.
    ///
    /// # Errors
    /// Errors of the file system at the directory itself.
    pub(crate) fn list(&self) -> Result<Listing> {
        self.read(list)
    }

    /// The definition of a UUID, if there is one; under this parent, if one is named.
    ///
    /// # Errors
    /// `EINVAL`: two parents have it and none is named; `EBADMSG`: its file is damaged.
    pub(crate) fn get(&self, uuid: Uuid, parent: Option<&str>) -> Result<Option<Definition>> {
        let parent = parent.map(str::to_owned);
        self.read(move |directory| get(directory, uuid, parent.as_deref()))
    }

    /// Adds a definition.
    ///
    /// # Errors
    /// `EEXIST`: this parent has one of this UUID; `EINVAL`: the nil UUID, or a parent, a type or
    /// an attribute with an impossible name; or errors of the file system.
    pub(crate) fn define(&self, definition: &Definition) -> Result<()> {
        definition.validate()?;
        let _one_at_a_time = vfiod_sync::lock(&self.changing);
        let definition = definition.clone();
        self.change(move |directory| directory.create(&definition))
    }

    /// Changes a definition; returns it as it is now. If `change` fails, nothing has changed.
    ///
    /// # Errors
    /// `ENOENT`: there is none; `EINVAL`: two parents have it and none is named, or `change`
    /// touched its UUID or parent, or what it left could not be defined; those of `change`; or
    /// errors of the file system.
    pub(crate) fn modify(
        &self,
        uuid: Uuid,
        parent: Option<&str>,
        change: impl FnOnce(&mut Definition) -> Result<()>,
    ) -> Result<Definition> {
        let _one_at_a_time = vfiod_sync::lock(&self.changing);
        let old = self.get(uuid, parent)?.ok_or_else(|| undefined(uuid, parent))?;
        let mut new = old.clone();
        change(&mut new)?;
        new.validate()?;
        if (&new.parent, new.uuid) != (&old.parent, old.uuid) {
            let what = format!("definition {uuid}: its UUID and parent stay; define another one");
            return Err(Error::new(Errno::INVAL, what));
        }
        if new != old {
            let written = new.clone();
            self.change(move |directory| directory.replace(&written))?;
        }
        Ok(new)
    }

    /// Removes a definition.
    ///
    /// # Errors
    /// `ENOENT`: there is none; `EINVAL`: two parents have it and none is named; or errors of the
    /// file system.
    pub(crate) fn undefine(&self, uuid: Uuid, parent: Option<&str>) -> Result<()> {
        let _one_at_a_time = vfiod_sync::lock(&self.changing);
        let parent = parent.map(str::to_owned);
        self.change(move |directory| match find(directory, uuid, parent.as_deref())? {
            Some(found) if directory.remove(&found, uuid)? => Ok(()),
            _ => Err(undefined(uuid, parent.as_deref())),
        })
    }

    /// Every parent that has a definition of a UUID.
    ///
    /// # Errors
    /// Errors of the file system.
    pub(crate) fn parents_of(&self, uuid: Uuid) -> Result<Vec<String>> {
        self.read(move |directory| parents_of(directory, uuid))
    }

    fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Directory) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let directory = self.directory.clone();
        in_directory(self.directory.path(), move || work(&directory)).map_err(held_up)?
    }

    fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Directory) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let directory = self.directory.clone();
        in_directory_to_disk(self.directory.path(), move || work(&directory)).map_err(held_up)?
    }
}

fn held_up(error: Error) -> Error {
    Error::new(error.errno(), "the definitions cannot be reached").because(error)
}

fn list(directory: &Directory) -> Result<Listing> {
    let mut listing = Listing::default();
    for parent in directory.parents()? {
        for uuid in directory.files(&parent)? {
            match directory.read(&parent, uuid) {
                Ok(Some(definition)) => listing.definitions.push(definition),
                Ok(None) => {}
                Err(damaged) => listing.damaged.push(damaged),
            }
        }
    }
    // Until somebody has looked after them.
    for damaged in directory.damaged()? {
        if !listing.damaged.iter().any(|known| known.set_aside_as == damaged.set_aside_as) {
            listing.damaged.push(damaged);
        }
    }
    let key = |definition: &Definition| (definition.parent.clone(), definition.uuid);
    listing.definitions.sort_by_cached_key(key);
    listing.damaged.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(listing)
}

fn get(directory: &Directory, uuid: Uuid, parent: Option<&str>) -> Result<Option<Definition>> {
    let Some(parent) = find(directory, uuid, parent)? else { return Ok(None) };
    directory.read(&parent, uuid).map_err(|damaged| {
        let Damaged { path, why, set_aside_as } = damaged;
        let place =
            set_aside_as.map_or_else(String::new, |at| format!("; set aside as {}", at.display()));
        Error::new(Errno::BADMSG, format!("{}: {why}{place}", path.display()))
    })
}

fn parents_of(directory: &Directory, uuid: Uuid) -> Result<Vec<String>> {
    let mut found = directory.parents()?;
    found.retain(|parent| directory.has(parent, uuid));
    Ok(found)
}

/// The one parent that has a definition of this UUID.
fn find(directory: &Directory, uuid: Uuid, parent: Option<&str>) -> Result<Option<String>> {
    if let Some(parent) = parent {
        check_name("parent", parent)?;
        return Ok(Some(parent.to_owned()));
    }
    let mut found = parents_of(directory, uuid)?;
    if found.len() > 1 {
        let what = format!("{uuid} is defined under {}; name the parent", found.join(" and "));
        return Err(Error::new(Errno::INVAL, what));
    }
    Ok(found.pop())
}

fn undefined(uuid: Uuid, parent: Option<&str>) -> Error {
    let place = parent.map_or_else(String::new, |parent| format!(" under {parent}"));
    Error::new(Errno::NOENT, format!("{uuid} is not defined{place}"))
}

fn check_uuid(uuid: Uuid) -> Result<()> {
    if uuid.is_nil() {
        return Err(Error::new(Errno::INVAL, "the nil UUID names no device"));
    }
    Ok(())
}

/// Names become names of files: one component of a path, and none with a meaning of its own.
fn check_name(what: &str, name: &str) -> Result<()> {
    let good = |c: char| !c.is_control() && c != '/';
    if name.is_empty() || name.starts_with('.') || name.len() > 255 || !name.chars().all(good) {
        let what = format!(
            "`{}` is no name for a {what}: up to 255 bytes without `/` and control characters, the \
             first not a dot",
            name.escape_debug()
        );
        return Err(Error::new(Errno::INVAL, what));
    }
    if name == directory::SCRIPTS {
        return Err(Error::new(Errno::INVAL, format!("{name} is where mdevctl has its scripts")));
    }
    Ok(())
}
