//! The kernel's requests.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};

use crate::files;
use crate::inodes::Inodes;
use crate::mdev_bus::MdevBus;
use crate::tree::{Look, Node};

/// The kernel asks again each time: for nodes that appear and disappear.
const NEVER: Duration = Duration::ZERO;
/// For what does not change while a node exists: modes and owners, and the topmost directories.
const LONG: Duration = Duration::from_secs(3600);
/// The largest number of threads that wait for a device.
const WAITING: usize = 512;
/// The most bytes of one write.
const PAGE: usize = 4096;

/// The file system. Its clones are one.
#[derive(Clone)]
pub(super) struct Sysfs {
    shared: Arc<Shared>,
}

struct Shared {
    /// `None` while the daemon shuts down.
    bus: RwLock<Option<Arc<dyn MdevBus>>>,
    inodes: Mutex<Inodes>,
    directories: Mutex<HashMap<u64, Arc<[Entry]>>>,
    /// The open files, each with the text of its first read, for reads at later offsets.
    texts: Mutex<HashMap<u64, Option<Arc<[u8]>>>>,
    next: AtomicU64,
    waiting: AtomicUsize,
    since: SystemTime,
    owner: (u32, u32),
}

/// An entry of a directory.
struct Entry {
    number: u64,
    kind: FileType,
    name: String,
}

/// One of the threads that may wait.
struct Place(Arc<Shared>);

impl Place {
    fn take(shared: &Arc<Shared>) -> Option<Self> {
        let place = Self(shared.clone());
        (shared.waiting.fetch_add(1, Ordering::Relaxed) < WAITING).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

type Result<T> = std::result::Result<T, Errno>;

impl Sysfs {
    /// A file system whose requests are refused with `ENODEV` until [`Self::open`].
    pub(super) fn new() -> Self {
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let shared = Shared {
            bus: RwLock::new(None),
            inodes: Mutex::default(),
            directories: Mutex::default(),
            texts: Mutex::default(),
            next: AtomicU64::new(1),
            waiting: AtomicUsize::new(0),
            since: SystemTime::now(),
            owner,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Shows a bus from now on.
    pub(super) fn open(&self, bus: Arc<dyn MdevBus>) {
        *self.shared.bus.write().unwrap_or_else(PoisonError::into_inner) = Some(bus);
    }

    /// Lets go of the bus: whoever still asks gets `ENODEV`.
    pub(super) fn close(&self) {
        self.shared.bus.write().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// How many inodes the kernel knows, and how many files and directories are open.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        let Shared { inodes, directories, texts, .. } = &*self.shared;
        (lock(inodes).len(), lock(directories).len(), lock(texts).len())
    }

    fn bus(&self) -> Result<Arc<dyn MdevBus>> {
        let bus = self.shared.bus.read().unwrap_or_else(PoisonError::into_inner);
        bus.clone().ok_or(Errno::ENODEV)
    }

    fn node(&self, number: INodeNo) -> Result<Node> {
        lock(&self.shared.inodes).node(number.0).cloned().ok_or(Errno::ESTALE)
    }

    fn look(&self, node: &Node) -> Result<Look> {
        node.look(&*self.bus()?).ok_or(Errno::ENOENT)
    }

    fn attributes(&self, number: u64, look: &Look) -> FileAttr {
        let (kind, perm, nlink, size) = match look {
            Look::Directory => (FileType::Directory, 0o755, 2, 0),
            Look::Link(target) => (FileType::Symlink, 0o777, 1, target.len() as u64),
            Look::File { readable, writable } => {
                let perm = if *readable { 0o444 } else { 0 } | if *writable { 0o200 } else { 0 };
                (FileType::RegularFile, perm, 1, files::PAGE as u64)
            }
        };
        let Shared { since, owner: (uid, gid), .. } = *self.shared;
        FileAttr {
            ino: INodeNo(number),
            size,
            blocks: 0,
            atime: since,
            mtime: since,
            ctime: since,
            crtime: since,
            kind,
            perm,
            nlink,
            uid,
            gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// What is there under a name, and for how long.
    fn found(&self, within: INodeNo, name: &OsStr) -> Result<(FileAttr, Duration)> {
        let within = self.node(within)?;
        let child = name.to_str().and_then(|name| within.child(name)).ok_or(Errno::ENOENT)?;
        let look = self.look(&child)?;
        let stays = if matches!(child, Node::Fixed(_)) { LONG } else { NEVER };
        let number = lock(&self.shared.inodes).reference(child);
        Ok((self.attributes(number, &look), stays))
    }

    fn attributes_of(&self, number: INodeNo) -> Result<FileAttr> {
        let look = self.look(&self.node(number)?)?;
        Ok(self.attributes(number.0, &look))
    }

    /// The kernel has checked permissions, which root passes whatever they are.
    fn may_open(&self, number: INodeNo, flags: OpenFlags) -> Result<()> {
        let Look::File { readable, writable } = self.look(&self.node(number)?)? else {
            return Err(Errno::EINVAL);
        };
        let (reads, writes) = match flags.acc_mode() {
            OpenAccMode::O_RDONLY => (true, false),
            OpenAccMode::O_WRONLY => (false, true),
            OpenAccMode::O_RDWR => (true, true),
        };
        if (reads && !readable) || (writes && !writable) {
            return Err(Errno::EACCES);
        }
        Ok(())
    }

    fn entries(&self, number: INodeNo) -> Result<Arc<[Entry]>> {
        let node = self.node(number)?;
        let bus = self.bus()?;
        node.look(&*bus).ok_or(Errno::ENOENT)?;
        let children = node.children(&*bus);
        let inodes = lock(&self.shared.inodes);
        let entry = |name: String, node: &Node| Entry {
            number: inodes.number(node),
            kind: node.kind(),
            name,
        };
        let dots = [entry(".".into(), &node), entry("..".into(), &node.above())];
        Ok(dots
            .into_iter()
            .chain(children.into_iter().map(|(name, node)| entry(name, &node)))
            .collect())
    }

    /// What is seen of a directory does not change while one reads through it.
    fn directory(&self, number: INodeNo, handle: FileHandle, start: bool) -> Result<Arc<[Entry]>> {
        if !start && let Some(entries) = lock(&self.shared.directories).get(&handle.0) {
            return Ok(entries.clone());
        }
        let entries = self.entries(number)?;
        lock(&self.shared.directories).insert(handle.0, entries.clone());
        Ok(entries)
    }

    /// Runs what may have to wait for a device without keeping others waiting.
    fn aside<R: Send + 'static>(
        &self,
        reply: R,
        refuse: impl FnOnce(R, Errno),
        work: impl FnOnce(&Self, R) + Send + 'static,
    ) {
        let Some(place) = Place::take(&self.shared) else { return refuse(reply, Errno::EAGAIN) };
        let this = self.clone();
        // Kept here, so that the request gets a reply even if no thread can be started.
        let reply = Arc::new(Mutex::new(Some(reply)));
        let taken = reply.clone();
        let spawned = thread::Builder::new().name("sysfs".into()).spawn(move || {
            let _place = place;
            if let Some(reply) = lock(&taken).take() {
                work(&this, reply);
            }
        });
        if spawned.is_err()
            && let Some(reply) = lock(&reply).take()
        {
            refuse(reply, Errno::EAGAIN);
        }
    }

    fn text(&self, number: INodeNo, handle: FileHandle, start: bool) -> Result<Arc<[u8]>> {
        if !start && let Some(Some(text)) = lock(&self.shared.texts).get(&handle.0) {
            return Ok(text.clone());
        }
        let node = self.node(number)?;
        let text = files::show(&*self.bus()?, &node).map_err(|error| {
            tracing::debug!(path = %node, %error, "not read");
            errno(&error)
        })?;
        let text: Arc<[u8]> = text.into_bytes().into();
        // Closed by now if whoever reads was killed.
        if let Some(kept) = lock(&self.shared.texts).get_mut(&handle.0) {
            *kept = Some(text.clone());
        }
        Ok(text)
    }

    fn store(&self, number: INodeNo, data: &[u8]) -> Result<()> {
        let node = self.node(number)?;
        files::store(&*self.bus()?, &node, data).map_err(|error| {
            // The writer gets the number only.
            tracing::info!(path = %node, %error, "refused what was written");
            errno(&error)
        })
    }

    fn opened(&self) -> FileHandle {
        FileHandle(self.shared.next.fetch_add(1, Ordering::Relaxed))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn errno(error: &vfiod_core::Error) -> Errno {
    Errno::from_i32(error.errno().raw_os_error())
}

/// The part of a text from an offset, of a size at most.
fn part(text: &[u8], offset: u64, size: u32) -> &[u8] {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
    let end = start.saturating_add(size as usize).min(text.len());
    &text[start..end]
}

impl Filesystem for Sysfs {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.found(parent, name) {
            Ok((attributes, stays)) => {
                reply.entry_with_ttls(&LONG, &stays, &attributes, Generation(0));
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, nlookup: u64) {
        lock(&self.shared.inodes).forget(ino.0, nlookup);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes_of(ino) {
            Ok(attributes) => reply.attr(&LONG, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    /// Truncating does nothing, as in sysfs: a shell does it before it writes.
    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if mode.is_some() || uid.is_some() || gid.is_some() {
            return reply.error(Errno::EPERM);
        }
        match self.attributes_of(ino) {
            Ok(attributes) => reply.attr(&LONG, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.node(ino).and_then(|node| self.look(&node)) {
            Ok(Look::Link(target)) => reply.data(target.as_bytes()),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.may_open(ino, flags) {
            Ok(()) => {
                let handle = self.opened();
                lock(&self.shared.texts).insert(handle.0, None);
                reply.opened(handle, FopenFlags::FOPEN_DIRECT_IO);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let respond = move |this: &Self, reply: ReplyData| match this.text(ino, fh, offset == 0) {
            Ok(text) => reply.data(part(&text, offset, size)),
            Err(errno) => reply.error(errno),
        };
        match self.node(ino) {
            Ok(Node::Attribute(..)) => self.aside(reply, ReplyData::error, respond),
            // The bus knows that by itself.
            _ => respond(self, reply),
        }
    }

    /// One write is one request, wherever in the file it goes, as in sysfs.
    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // The kernel's files take no more than a page with one write.
        let data = data[..data.len().min(PAGE)].to_vec();
        self.aside(reply, ReplyWrite::error, move |this, reply| match this.store(ino, &data) {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(errno) => reply.error(errno),
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        lock(&self.shared.texts).remove(&fh.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(self.opened(), FopenFlags::empty());
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = match self.directory(ino, fh, offset == 0) {
            Ok(entries) => entries,
            Err(errno) => return reply.error(errno),
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (next, entry) in (1..).zip(&*entries).skip(start) {
            if reply.add(INodeNo(entry.number), next, entry.kind, &entry.name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        lock(&self.shared.directories).remove(&fh.0);
        reply.ok();
    }

    // What sysfs refuses, with its errnos.

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EACCES);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EPERM);
    }

    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::EOPNOTSUPP);
    }
}
