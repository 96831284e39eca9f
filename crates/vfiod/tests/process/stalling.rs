//! A FUSE file system that does not answer other processes, and nobody's reads.
#![allow(dead_code)] // each test file uses a part

use std::any::Any;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    Request,
};

const FILE: INodeNo = INodeNo(2);
/// How long the kernel may keep what it was told: whoever asks it asks the file system.
const KEPT: Duration = Duration::ZERO;

/// It has one file. Requests of other processes wait until this is dropped, the FLUSH of a close among
/// them; and so does every read, as of a page fault.
pub(crate) struct Stalling {
    directory: PathBuf,
    waiting: Waiting,
    session: Option<BackgroundSession>,
}

/// The replies that are held back; `None` once requests are answered.
type Waiting = Arc<Mutex<Option<Vec<Box<dyn Any + Send>>>>>;

struct Files {
    waiting: Waiting,
    /// Whether it answers other processes, but for their reads.
    only_reads: bool,
}

impl Stalling {
    /// Mounts it; `None` where that is not allowed.
    pub(crate) fn mount(directory: &Path) -> Option<Self> {
        Self::mount_with(directory, false)
    }

    /// Mounts it, to hold back nothing but reads.
    pub(crate) fn mount_unreadable(directory: &Path) -> Option<Self> {
        Self::mount_with(directory, true)
    }

    fn mount_with(directory: &Path, only_reads: bool) -> Option<Self> {
        std::fs::create_dir(directory).unwrap();
        let waiting: Waiting = Arc::new(Mutex::new(Some(Vec::new())));
        let files = Files { waiting: waiting.clone(), only_reads };
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("stalling".into())];
        match fuser::spawn_mount(files, directory, &config) {
            Ok(session) => {
                Some(Self { directory: directory.to_owned(), waiting, session: Some(session) })
            }
            Err(error) => {
                eprintln!("SKIPPED: no FUSE file system can be mounted here: {error}");
                None
            }
        }
    }

    /// Opens its file.
    pub(crate) fn open(&self) -> File {
        File::options().read(true).write(true).open(self.directory.join("file")).unwrap()
    }

    /// How many requests wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.lock().unwrap().as_ref().map_or(0, Vec::len)
    }
}

impl Drop for Stalling {
    fn drop(&mut self) {
        // A reply that is dropped is an error.
        drop(self.waiting.lock().unwrap().take());
        // Lazily: a daemon may have files of it open. The session ends with the last of them.
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.directory).status();
        drop(self.session.take());
    }
}

fn attributes(number: INodeNo) -> FileAttr {
    let (kind, perm) = match number {
        FILE => (FileType::RegularFile, 0o666),
        _ => (FileType::Directory, 0o777),
    };
    FileAttr {
        ino: number,
        size: 1 << 20,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Files {
    /// Holds a reply back if the request is of another process.
    fn hold<R: Any + Send>(&self, request: &Request, reply: R) -> Option<R> {
        let ours = Path::new(&format!("/proc/self/task/{}", request.pid())).exists();
        if ours || self.only_reads { Some(reply) } else { self.hold_any(reply) }
    }

    fn hold_any<R: Any + Send>(&self, reply: R) -> Option<R> {
        match self.waiting.lock().unwrap().as_mut() {
            Some(waiting) => {
                waiting.push(Box::new(reply));
                None
            }
            None => Some(reply),
        }
    }
}

impl Filesystem for Files {
    fn lookup(&self, request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some(reply) = self.hold(request, reply) else { return };
        match name.to_str() {
            Some("file") => reply.entry(&KEPT, &attributes(FILE), Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(
        &self,
        request: &Request,
        number: INodeNo,
        _file: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        let Some(reply) = self.hold(request, reply) else { return };
        reply.attr(&KEPT, &attributes(number));
    }

    fn read(
        &self,
        _request: &Request,
        _number: INodeNo,
        _file: FileHandle,
        _offset: u64,
        _size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(reply) = self.hold_any(reply) else { return };
        reply.error(Errno::EIO);
    }

    fn flush(
        &self,
        request: &Request,
        _number: INodeNo,
        _file: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let Some(reply) = self.hold(request, reply) else { return };
        reply.ok();
    }

    fn open(
        &self,
        _request: &Request,
        _number: INodeNo,
        _flags: OpenFlags,
        reply: fuser::ReplyOpen,
    ) {
        reply.opened(FileHandle(0), fuser::FopenFlags::empty());
    }
}
