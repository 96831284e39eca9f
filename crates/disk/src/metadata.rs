//! What outlives a disk's controllers, beside the image: who it is, its format, saved features, counters.
//!
//! One small file, `disk.img.vfiod` beside `disk.img` unless it is somewhere else. Its first line has the
//! version and a checksum of all that follows, which is JSON. It is replaced as a whole: written under
//! another name, synced, renamed; so whoever is killed at any moment leaves the old or the new one.
//!
//! # Copies
//! The file says which file its image is: device, inode, when it was made, and the path. An image that is
//! another one is a copy if the one that was meant is still there, under its path; the copy gets a new
//! identity. If it is not there any more, the image was moved to another file system, or restored: it
//! stays who it was. A copy on another machine cannot be told from a move to there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, OFlags, StatxFlags};
use serde::{Deserialize, Serialize};
use vfiod_directories::syncing;
use vfiod_dma::{Errno, Error, Result};
use vfiod_sync::{Mutex, lock};

use crate::identity::Identity;
use crate::image::Image;

/// The version that this program writes, and the only one that it reads.
const VERSION: u32 = 1;
/// No file is longer.
const LONGEST: u64 = 64 << 10;
/// The last number that a controller can have.
const LAST_CONTROLLER: u16 = 0xffef;
/// Controllers whose numbers are kept.
const MOST_CONTROLLERS: usize = 64;
/// The first line of a file, without the checksum's eight digits.
const BEGIN: &str = "vfiod-disk 1 crc32c ";

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stored {
    /// Who the disk is.
    pub identity: Identity,
    /// The block size of its format, in bytes.
    pub block: u32,
    /// Values of features that outlive a reset, by the controller's names.
    pub features: BTreeMap<String, u64>,
    /// Counters, by the controller's names.
    pub counters: BTreeMap<String, u64>,
    /// The numbers of controllers that share the disk, by the names of their devices.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub controllers: BTreeMap<String, u16>,
}

impl Stored {
    /// The number of the controller that is called so, which it keeps from now on; `taken` are those of
    /// controllers that are there. `None`: none is left.
    pub fn keep_controller(&mut self, name: &str, taken: &[u16]) -> Option<u16> {
        if let Some(id) = self.controllers.get(name).filter(|id| !taken.contains(id)) {
            return Some(*id);
        }
        let is_free =
            |id: &u16| !taken.contains(id) && !self.controllers.values().any(|kept| kept == id);
        let first = self.identity.controller;
        let id = (first..=LAST_CONTROLLER).chain(1..first).find(is_free)?;
        if self.controllers.len() >= MOST_CONTROLLERS {
            // Those that are not there are forgotten.
            self.controllers.retain(|_, id| taken.contains(id));
        }
        if self.controllers.len() < MOST_CONTROLLERS {
            self.controllers.insert(name.to_owned(), id);
        }
        Some(id)
    }
}

/// What the file has beyond that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    image: Mark,
    disk: Stored,
}

/// Which file an image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mark {
    path: PathBuf,
    /// `None`: a block device, whose numbers change.
    file: Option<FileMark>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileMark {
    device: (u32, u32),
    inode: u64,
    /// Seconds and nanoseconds, where the file system keeps them.
    made: Option<(i64, u32)>,
}

/// Who a disk is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Identify {
    /// Who it was; a new disk and a copy get an identity of their own.
    #[default]
    Auto,
    /// Who it was, also if it is a copy.
    Keep,
    /// Somebody new.
    New,
    /// This.
    As(Identity),
}

/// How metadata are opened.
#[derive(Clone, Debug, Default)]
pub struct MetadataOptions {
    /// Where they are; `None`: beside the image.
    pub path: Option<PathBuf>,
    /// Who the disk is to be.
    pub identify: Identify,
}

/// What is kept of an image that is open, which keeps others from changing it.
pub struct Metadata {
    path: PathBuf,
    contents: Mutex<Contents>,
}

impl Metadata {
    /// Where the metadata of an image are unless an option says otherwise. Links are followed: the same
    /// image has the same metadata by every name.
    pub fn beside(image: &Path) -> PathBuf {
        let image = std::fs::canonicalize(image).unwrap_or_else(|_| image.to_owned());
        let mut path = image.into_os_string();
        path.push(".vfiod");
        path.into()
    }

    /// The refusal of a block device whose metadata have no place.
    pub fn nothing_beside(device: &Path) -> Error {
        let what = format!(
            "image {}: there is nothing beside a block device; `metadata = FILE` says where its identity is kept",
            device.display()
        );
        Error::new(Errno::INVAL, what)
    }

    /// The block size of a disk's format, if one is stored: what its image is to be opened with.
    ///
    /// # Errors
    /// As [`Metadata::open`].
    pub fn stored_block(path: &Path, identify: &Identify) -> Result<Option<u32>> {
        Ok(known(path, identify)?.map(|contents| contents.disk.block))
    }

    /// Who the disk of an image will be, by what is kept at `path`, as [`Metadata::open`] decides it; `None`: somebody
    /// new. Changes nothing.
    ///
    /// # Errors
    /// As [`Metadata::open`], but for what only an open image shows.
    pub fn expected(path: &Path, image: &Path, identify: &Identify) -> Result<Option<Identity>> {
        who(path, known(path, identify)?.as_ref(), identify, || mark_at(image))
    }

    /// Looks at what is kept at a path of a disk that is to have blocks of `block` bytes, as [`Metadata::open`]
    /// would, and changes nothing.
    ///
    /// # Errors
    /// As [`Metadata::open`], but for what only an open image shows.
    pub fn examine(path: &Path, block: u32, identify: &Identify) -> Result<()> {
        if let Some(known) = known(path, identify)? {
            check_block(path, &known, block)?;
        }
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        let wanted = Access::WRITE_OK | Access::EXEC_OK;
        match rustix::fs::accessat(CWD, directory, wanted, AtFlags::EACCESS) {
            // Made by whoever serves it.
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(not_written(path, errno)),
        }
    }

    /// Reads what is kept of an image, and writes it if the disk is new, or somebody new.
    ///
    /// # Errors
    /// `EINVAL`: the file is damaged, of another version, or says another block size than the image was
    /// opened with; an identity that no guest can have; a block device without a path for it. `EEXIST`: it
    /// cannot be found out whether the image is a copy, or the file cannot be one of ours. What files cannot be
    /// read or written with. The text names the file and the remedy.
    pub fn open(image: &Image, options: &MetadataOptions) -> Result<Self> {
        let mark = mark_of(image)?;
        let path = match &options.path {
            Some(path) => path.clone(),
            None if mark.file.is_none() => return Err(Self::nothing_beside(image.path())),
            None => Self::beside(image.path()),
        };
        let known = known(&path, &options.identify)?;
        let block = image.block();
        if let Some(known) = &known {
            check_block(&path, known, block)?;
        }
        let identity = who(&path, known.as_ref(), &options.identify, || Ok(mark.clone()))?;
        let identity = identity.unwrap_or_else(Identity::random);
        let contents = match known.clone() {
            Some(Contents { disk, .. }) => {
                // What a copy has counted it has not done.
                let same = disk.identity == identity;
                let counters = if same { disk.counters.clone() } else { BTreeMap::new() };
                Contents { image: mark, disk: Stored { identity, counters, ..disk } }
            }
            None => {
                let (features, counters) = (BTreeMap::new(), BTreeMap::new());
                let controllers = BTreeMap::new();
                let disk = Stored { identity, block, features, counters, controllers };
                Contents { image: mark, disk }
            }
        };
        if known.as_ref() != Some(&contents) {
            write(&path, &contents)?;
        }
        Ok(Self { path, contents: Mutex::new(contents) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who the disk is.
    pub fn identity(&self) -> Identity {
        lock(&self.contents).disk.identity.clone()
    }

    /// What is kept.
    pub fn stored(&self) -> Stored {
        lock(&self.contents).disk.clone()
    }

    /// Changes what is kept. It is durable when this returns; if this fails, nothing has changed.
    /// Blocks until the file is synced: not on a command's path.
    ///
    /// # Errors
    /// What files cannot be written with.
    pub fn change(&self, change: impl FnOnce(&mut Stored)) -> Result<()> {
        let mut contents = lock(&self.contents);
        let mut changed = contents.clone();
        change(&mut changed.disk);
        if changed != *contents {
            write(&self.path, &changed)?;
            *contents = changed;
        }
        Ok(())
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metadata").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The mark of a file that is open, or at a path.
fn file_mark(at: impl std::os::fd::AsFd, path: &Path) -> Result<FileMark, Errno> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let stat = rustix::fs::statx(at, path, AtFlags::EMPTY_PATH, wanted)?;
    let told = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
    let made = told.then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec));
    let device = (stat.stx_dev_major, stat.stx_dev_minor);
    Ok(FileMark { device, inode: stat.stx_ino, made })
}

fn mark_of(image: &Image) -> Result<Mark> {
    let file = || file_mark(&*image.file, Path::new(""));
    mark(image.path(), (!image.is_device()).then(file))
}

/// The mark of an image that is not open.
fn mark_at(image: &Path) -> Result<Mark> {
    let is_device = std::fs::metadata(image).is_ok_and(|found| found.file_type().is_block_device());
    mark(image, (!is_device).then(|| file_mark(CWD, image)))
}

fn mark(named: &Path, file: Option<Result<FileMark, Errno>>) -> Result<Mark> {
    let path = std::fs::canonicalize(named).unwrap_or_else(|_| named.to_owned());
    let fails =
        |errno| Error::new(errno, format!("image {}: cannot be asked who it is", named.display()));
    Ok(Mark { path, file: file.transpose().map_err(fails)? })
}

/// Who a disk is to be, of which this is known; `None`: somebody new.
fn who(
    path: &Path,
    known: Option<&Contents>,
    identify: &Identify,
    mark: impl FnOnce() -> Result<Mark>,
) -> Result<Option<Identity>> {
    let stored = known.map(|known| known.disk.identity.clone());
    Ok(match (identify, known) {
        (Identify::As(identity), _) => {
            identity.check()?;
            Some(identity.clone())
        }
        (Identify::Keep, _) => stored,
        (Identify::Auto, Some(known)) if !is_copy(path, &known.image, &mark()?)? => stored,
        _ => None,
    })
}

/// Whether an image is a copy of the one that a file of metadata was written for.
fn is_copy(metadata: &Path, meant: &Mark, image: &Mark) -> Result<bool> {
    let (Some(meant_file), Some(file)) = (meant.file, image.file) else { return Ok(false) };
    if meant_file == file || meant.path == image.path {
        return Ok(false);
    }
    match file_mark(CWD, &meant.path) {
        Ok(found) => Ok(found == meant_file),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(errno) => {
            let what = format!(
                "{} belongs to {}, which cannot be looked at, so that nobody knows whether {} is a copy \
                 of it; `identity = keep` says that it is the same disk, `identity = new` that it is not",
                metadata.display(),
                meant.path.display(),
                image.path.display()
            );
            Err(Error::new(Errno::EXIST, what).because(errno))
        }
    }
}

/// What is known of a disk; `None`: nothing.
fn known(path: &Path, identify: &Identify) -> Result<Option<Contents>> {
    match read(path) {
        // What is replaced need not be right.
        Err(error) if error.errno() == Errno::BADMSG && *identify == Identify::New => {
            tracing::warn!(%error, "replaced");
            Ok(None)
        }
        known => known,
    }
}

/// That a disk has blocks of this size.
fn check_block(path: &Path, known: &Contents, block: u32) -> Result<()> {
    let stored = known.disk.block;
    if stored == block {
        return Ok(());
    }
    let what = format!(
        "{}: the disk is formatted with blocks of {stored} bytes, not {block}; leave the option out, or format \
         the disk",
        path.display()
    );
    Err(Error::new(Errno::INVAL, what))
}

/// What a file has; `None`: there is none.
fn read(path: &Path) -> Result<Option<Contents>> {
    let fails = |error: std::io::Error| {
        let errno = error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error);
        Error::new(errno, format!("{}: cannot be read", path.display()))
    };
    // Neither what a link points to, nor what does not end.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits();
    let mut options = OpenOptions::new();
    let file = match options.read(true).custom_flags(flags.cast_signed()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::LOOP) => {
            let what = format!(
                "{}: it is a link, which is not followed; `metadata = FILE` names another place",
                path.display()
            );
            return Err(Error::new(Errno::LOOP, what));
        }
        Err(error) => return Err(fails(error)),
    };
    if !file.metadata().map_err(fails)?.is_file() {
        return Err(Error::new(Errno::INVAL, format!("{}: not a regular file", path.display())));
    }
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes).map_err(fails)?;
    if let Some(version) = other_version(&bytes) {
        let what = format!(
            "{}: it is of version {version}, and this program knows version {VERSION}; use one that knows it",
            path.display()
        );
        return Err(Error::new(Errno::NOTSUP, what));
    }
    if bytes.len() as u64 > LONGEST {
        // No kill and no power cut makes such a file of ours: an image, perhaps, that was named by mistake.
        let what = format!(
            "{}: longer than {LONGEST} bytes: it was not written by this program, and is never replaced; \
             `metadata = FILE` names another place",
            path.display()
        );
        return Err(Error::new(Errno::EXIST, what));
    }
    parse(&bytes).map(Some).map_err(|what| {
        let what = format!(
            "{}: {what}. Restore it from a backup; with `identity = new` it is replaced, and the disk \
             is another one for its guest",
            path.display()
        );
        Error::new(Errno::BADMSG, what)
    })
}

/// The version of a file that is whole and of another version, as far as can be seen.
fn other_version(bytes: &[u8]) -> Option<u32> {
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let version = words.next().filter(|word| *word == "vfiod-disk").and(words.next())?;
    version.parse().ok().filter(|version| *version != VERSION)
}

/// Takes the bytes of a file apart, whatever they are.
fn parse(bytes: &[u8]) -> Result<Contents, String> {
    let Some(rest) = bytes.strip_prefix(BEGIN.as_bytes()) else {
        return Err(format!("it does not begin with `{BEGIN}`: damaged, or of another version"));
    };
    let Some((sum, body)) = rest.split_at_checked(9) else {
        return Err("it is truncated".to_owned());
    };
    if format!("{:08x}\n", crc32c(body)).as_bytes() != sum {
        return Err("damaged: its checksum is another one".to_owned());
    }
    let contents: Contents = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    contents.disk.identity.check().map_err(|error| error.message().to_owned())?;
    let ids: BTreeSet<u16> = contents.disk.controllers.values().copied().collect();
    let known = |id: &u16| (1..=LAST_CONTROLLER).contains(id);
    if ids.len() != contents.disk.controllers.len() || !ids.iter().all(known) {
        return Err(format!(
            "controllers {:?}: each a number of its own",
            contents.disk.controllers
        ));
    }
    let block = contents.disk.block;
    if !block.is_power_of_two() || block < 512 {
        return Err(format!("blocks of {block} bytes: a power of two from 512 on"));
    }
    Ok(contents)
}

fn print(contents: &Contents) -> Result<Vec<u8>> {
    let mut body = serde_json::to_vec_pretty(contents)
        .map_err(|error| Error::new(Errno::INVAL, "the metadata of a disk").because(error))?;
    body.push(b'\n');
    debug_assert_eq!(BEGIN.split(' ').nth(1), Some(VERSION.to_string().as_str()));
    let mut bytes = format!("{BEGIN}{:08x}\n", crc32c(&body)).into_bytes();
    bytes.append(&mut body);
    if bytes.len() as u64 > LONGEST {
        return Err(Error::new(Errno::FBIG, format!("metadata of more than {LONGEST} bytes")));
    }
    Ok(bytes)
}

/// Replaces a file by another one, in one step that is durable.
fn write(path: &Path, contents: &Contents) -> Result<()> {
    let bytes = print(contents)?;
    replace(path, &bytes).map_err(|error| {
        not_written(path, error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))
    })
}

fn not_written(path: &Path, errno: Errno) -> Error {
    let what = format!(
        "{}: cannot be written, and a disk's identity must last; `metadata = FILE` keeps it elsewhere",
        path.display()
    );
    Error::new(errno, what)
}

fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    // What one that was killed has left. Nobody else writes it: the image is locked.
    match std::fs::remove_file(&new) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = file.write_all(bytes).and_then(|()| syncing(|| file.sync_all()));
    let renamed = written.and_then(|()| std::fs::rename(&new, path));
    if renamed.is_err() {
        _ = std::fs::remove_file(&new);
    }
    renamed?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = File::open(directory.unwrap_or(Path::new(".")))?;
    syncing(|| directory.sync_all())
}

/// The checksum of iSCSI and others, bit by bit: the files are small.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |sum: u32, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            let low = sum & 1;
            sum >> 1 ^ if low == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents() -> Contents {
        let made = Some((1, 2));
        let file = Some(FileMark { device: (8, 1), inode: 77, made });
        let disk = Stored {
            identity: Identity::random(),
            block: 4096,
            features: [("write-cache".to_owned(), 1)].into(),
            counters: [("reads".to_owned(), u64::MAX)].into(),
            controllers: [("disk".to_owned(), 1), ("other".to_owned(), 2)].into(),
        };
        Contents { image: Mark { path: "/images/disk.img".into(), file }, disk }
    }

    #[test]
    fn checksum_is_that_of_the_standard() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn what_is_written_is_read() {
        let contents = contents();
        assert_eq!(parse(&print(&contents).unwrap()).unwrap(), contents);
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_found() {
        let bytes = print(&contents()).unwrap();
        for len in 0..bytes.len() {
            assert!(parse(&bytes[..len]).is_err(), "{len} bytes of {} are believed", bytes.len());
        }
        let mut flipped = bytes.clone();
        for bit in 0..bytes.len() * 8 {
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&flipped).is_err(), "what has bit {bit} flipped is believed");
            flipped[bit / 8] ^= 1 << (bit % 8);
        }
        parse(&flipped).unwrap();
        assert!(parse(&[&bytes[..], b"\n"].concat()).is_err());
    }

    /// Files with a right checksum, that somebody has written by hand.
    #[test]
    fn contents_that_make_no_sense_are_refused() {
        let good = String::from_utf8(print(&contents()).unwrap()).unwrap();
        let body = good.split_once('\n').unwrap().1;
        for (old, new, expected) in [
            ("\"block\": 4096", "\"block\": 1000", "blocks of 1000 bytes"),
            ("\"block\": 4096", "\"block\": -1", "invalid value"),
            ("\"block\": 4096", "\"block\": 4096, \"more\": 1", "unknown field"),
            ("\"controller\": 1", "\"controller\": 0", "controller number 0"),
            ("\"other\": 2", "\"other\": 1", "each a number of its own"),
            ("\"other\": 2", "\"other\": 0", "each a number of its own"),
            ("\"VFIOD", "\"Grüße", "serial number"),
            ("{", "[", "expected"),
        ] {
            let changed = body.replacen(old, new, 1);
            assert_ne!(changed, body);
            let file = format!("{BEGIN}{:08x}\n{changed}", crc32c(changed.as_bytes()));
            let error = parse(file.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
