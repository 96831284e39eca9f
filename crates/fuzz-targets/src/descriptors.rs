//! Descriptors of all kinds, as a client may send them.

use std::os::unix::net::UnixStream;

use arbitrary::Arbitrary;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, memfd_create, open};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

/// Most descriptors of one message: one more than Linux passes.
const MOST: usize = 254;
/// Most that are kept after they were sent, to be used on.
const KEPT: usize = 16;
const PAGE: u64 = 4096;

/// What a descriptor is.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// Memory, with every page there.
    Memory {
        pages: u8,
    },
    /// Memory of which no page is there.
    Sparse {
        pages: u8,
    },
    /// Memory whose size is sealed.
    Sealed {
        pages: u8,
    },
    /// Memory of no bytes.
    Empty,
    /// A file of a tmpfs.
    Tmpfs {
        pages: u8,
    },
    /// An eventfd.
    Event {
        blocks: bool,
        semaphore: bool,
        count: u8,
        full: bool,
    },
    PipeRead,
    PipeWrite,
    /// A pipe that nobody reads.
    ClosedPipe,
    Socket,
    /// A socket whose other end is closed.
    ClosedSocket,
    /// The client's end of the connection that it is sent on.
    OwnEnd,
    Directory,
    Null,
    /// A path, opened for nothing.
    Path,
    /// A regular file on a disk, or whatever the program is on.
    File,
    Process,
    Epoll,
    /// One that was sent before, or that the server sent.
    Kept {
        which: u8,
    },
}

/// How many of which.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct Sent {
    kind: Kind,
    /// Sent so many times more.
    more: u8,
}

impl Sent {
    /// Whether it is the client's end of the connection that it is sent on.
    pub(crate) fn is_own_end(&self) -> bool {
        matches!(self.kind, Kind::OwnEnd)
    }
}

/// Descriptors that the client still has after it has sent them.
#[derive(Debug, Default)]
pub(crate) struct Kept(Vec<OwnedFd>);

impl Kept {
    /// Keeps a descriptor, in the place of the oldest if there are enough.
    pub(crate) fn keep(&mut self, fd: OwnedFd) {
        if self.0.len() == KEPT {
            self.0.remove(0);
        }
        self.0.push(fd);
    }

    pub(crate) fn get(&self, which: u8) -> Option<BorrowedFd<'_>> {
        let count = self.0.len();
        (count > 0).then(|| self.0[usize::from(which) % count].as_fd())
    }

    /// Makes what is to be sent on a connection. What cannot be made is left out.
    pub(crate) fn make(&mut self, sent: &[Sent], own: BorrowedFd<'_>) -> Vec<OwnedFd> {
        let mut all = Vec::new();
        for Sent { kind, more } in sent {
            let Some(fd) = self.make_one(*kind, own) else { continue };
            let again = usize::from(*more).min(MOST.saturating_sub(all.len() + 1));
            // Duplicates are the same file. Fails when there are no descriptors left.
            all.extend((0..again).map_while(|_| fd.try_clone().ok()));
            if let Ok(copy) = fd.try_clone() {
                self.keep(copy);
            }
            all.push(fd);
        }
        all.truncate(MOST);
        all
    }

    fn make_one(&mut self, kind: Kind, own: BorrowedFd<'_>) -> Option<OwnedFd> {
        match kind {
            Kind::Memory { pages } => memory(pages, true),
            Kind::Sparse { pages } => memory(pages, false),
            Kind::Sealed { pages } => {
                let memory = memory(pages, true)?;
                let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
                fcntl_add_seals(&memory, seals).ok()?;
                Some(memory)
            }
            Kind::Empty => memory(0, false),
            Kind::Tmpfs { pages } => {
                let file = tempfile::tempfile_in("/dev/shm").ok()?;
                file.set_len(u64::from(pages) * PAGE).ok()?;
                Some(file.into())
            }
            Kind::Event { blocks, semaphore, count, full } => {
                let mut flags = EventfdFlags::CLOEXEC;
                flags.set(EventfdFlags::NONBLOCK, !blocks);
                flags.set(EventfdFlags::SEMAPHORE, semaphore);
                let event = eventfd(count.into(), flags).ok()?;
                if full {
                    // As high as it goes: the next write blocks or fails.
                    let room = u64::MAX - 1 - u64::from(count);
                    rustix::io::write(&event, &room.to_ne_bytes()).ok()?;
                }
                Some(event)
            }
            Kind::PipeRead => {
                let (read, write) = rustix::pipe::pipe().ok()?;
                self.keep(write);
                Some(read)
            }
            Kind::PipeWrite => {
                let (read, write) = rustix::pipe::pipe().ok()?;
                self.keep(read);
                Some(write)
            }
            Kind::ClosedPipe => {
                let (read, write) = rustix::pipe::pipe().ok()?;
                drop(read);
                Some(write)
            }
            Kind::Socket => {
                let (one, other) = UnixStream::pair().ok()?;
                self.keep(other.into());
                Some(one.into())
            }
            Kind::ClosedSocket => UnixStream::pair().ok().map(|(one, _)| one.into()),
            Kind::OwnEnd => own.try_clone_to_owned().ok(),
            Kind::Directory => path("/", OFlags::RDONLY | OFlags::DIRECTORY),
            Kind::Null => path("/dev/null", OFlags::RDWR),
            Kind::Path => path("/", OFlags::PATH),
            Kind::File => path("/proc/self/exe", OFlags::RDONLY),
            Kind::Process => pidfd_open(getpid(), PidfdFlags::empty()).ok(),
            Kind::Epoll => epoll::create(epoll::CreateFlags::CLOEXEC).ok(),
            Kind::Kept { which } => self.get(which)?.try_clone_to_owned().ok(),
        }
    }
}

fn memory(pages: u8, present: bool) -> Option<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = memfd_create("fuzz", flags).ok()?;
    let size = u64::from(pages) * PAGE;
    rustix::fs::ftruncate(&memory, size).ok()?;
    if present {
        // A byte in each page is enough.
        (0..u64::from(pages)).for_each(|page| _ = rustix::io::pwrite(&memory, &[1], page * PAGE));
    }
    Some(memory)
}

fn path(path: &str, flags: OFlags) -> Option<OwnedFd> {
    open(path, flags | OFlags::CLOEXEC, Mode::empty()).ok()
}
