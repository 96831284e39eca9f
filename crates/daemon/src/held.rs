//! A server that a holder has started (`NAME holder -- serve …`), from its own side: the holder keeps its
//! listening sockets, so that the next process has them when this one dies.
//!
//! What is kept has an owner each, with two descriptors: the socket, and a memory file that says what it is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;

use anyhow::Context;
use vfiod_holder::{
    Beginning, Class, FromHolder, Initial, Key, Link, Settings, ToHolder, create_file,
};
use vfiod_manager::{Manager, PassedSockets, Restarts};
use vfiod_sockets::{Keeper, LeftSocket};

use crate::signals::Asked;

/// The token of the memory file, and of the socket.
const RECORD: u64 = 0;
const SOCKET: u64 = 1;
/// What a record begins with: that of a socket at a path, or the name of one that the service manager passed.
const AT_PATH: u8 = b'p';
const PASSED: u8 = b'a';
/// The longest record.
const MAX_RECORD: u64 = 4096;

/// The holder of this process.
pub(crate) struct Held {
    link: Link,
    beginning: Beginning,
    left: Vec<LeftSocket>,
    passed: Vec<(String, OwnedFd)>,
    next_owner: u64,
}

/// What a holder keeps of the sockets that were passed to it.
///
/// # Errors
/// The kernel has no memory.
pub(crate) fn initial(passed: Vec<(String, OwnedFd)>) -> io::Result<Vec<Initial>> {
    let mut all = Vec::new();
    for (owner, (name, fd)) in (0..).zip(passed) {
        let record = record_file(PASSED, name.as_bytes())?;
        let key = |token| Key { owner, token };
        all.push(Initial { key: key(RECORD), class: Class::Plain, fd: record });
        all.push(Initial { key: key(SOCKET), class: Class::Listener, fd });
    }
    Ok(all)
}

impl Held {
    /// Takes over what the holder of this process has; `None`: the process has none. To be called before anything
    /// else is opened.
    ///
    /// # Errors
    /// The holder has ended, or sends what this program does not know.
    pub(crate) fn begin() -> anyhow::Result<Option<Self>> {
        let begun = Link::begin().context("cannot take over from the holder")?;
        let Some((link, mut beginning)) = begun else { return Ok(None) };
        let mut owners = BTreeMap::<u64, (Option<OwnedFd>, Option<OwnedFd>)>::new();
        for (key, (class, fd)) in std::mem::take(&mut beginning.kept) {
            let (record, socket) = owners.entry(key.owner).or_default();
            match (key.token, class) {
                (RECORD, Class::Plain) => *record = Some(fd),
                (SOCKET, Class::Listener) => *socket = Some(fd),
                _ => {}
            }
        }
        let next_owner = owners.keys().next_back().map_or(0, |last| last + 1);
        let mut this = Self { link, beginning, left: Vec::new(), passed: Vec::new(), next_owner };
        for (owner, (record, socket)) in owners {
            if let (Some(record), Some(socket)) = (record.and_then(read_record), socket) {
                match record.split_first() {
                    Some((&AT_PATH, record)) => {
                        let record = record.to_vec();
                        this.left.push(LeftSocket { number: owner, socket, record });
                        continue;
                    }
                    Some((&PASSED, name)) => {
                        this.passed.push((String::from_utf8_lossy(name).into_owned(), socket));
                        continue;
                    }
                    _ => {}
                }
            }
            // The process before died between the two, or this program does not know what it is.
            this.link.send(ToHolder::DropOwner { owner }, None);
        }
        Ok(Some(this))
    }

    /// The holder's process id.
    pub(crate) fn holder(&self) -> u32 {
        self.link.holder().unsigned_abs()
    }

    /// The sockets that the service manager has passed to the holder.
    pub(crate) fn passed(&mut self) -> PassedSockets {
        PassedSockets::of_listening(std::mem::take(&mut self.passed))
    }

    /// Takes over the sockets that the process before has left, and has all that are made from now on kept. Asks to
    /// finish once the holder has ended.
    ///
    /// # Errors
    /// The kernel starts no thread.
    pub(crate) fn start(&mut self, asked: Sender<Asked>) -> io::Result<()> {
        self.link.send(ToHolder::Set(Settings::default()), None);
        let link = self.link;
        let watch = move || {
            while let FromHolder::Refused(message, errno) = link.wait() {
                tracing::warn!(message, %errno, "the holder does not keep a socket");
            }
            let _ = asked.send(Asked::Finish("end of the holder"));
        };
        std::thread::Builder::new().name("holder".into()).spawn(watch)?;
        let next_owner = AtomicU64::new(self.next_owner);
        let keeper = Box::new(KeptByHolder { link, next_owner });
        vfiod_sockets::keep_by(keeper, std::mem::take(&mut self.left));
        Ok(())
    }

    /// Everything is served. Sockets that were left for nothing that is served are closed.
    pub(crate) fn ready(&self, manager: &Manager) {
        vfiod_sockets::close_left();
        self.link.send(ToHolder::Ready, None);
        let Beginning { starts, death, deaths, .. } = &self.beginning;
        let blackout = self.beginning.since_death();
        let last = (*starts > 0).then(|| death.to_string());
        if let (Some(death), Some(blackout)) = (&last, blackout) {
            let blackout_ms = u64::try_from(blackout.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(
                death,
                restarts = starts,
                blackout_ms,
                "the server had ended, and serves again; connections that were open are lost"
            );
        }
        manager.set_restarts(Restarts {
            holder: self.holder(),
            signal: deaths.signal,
            exit: deaths.exit,
            link: deaths.link,
            unknown: deaths.unknown,
            last,
            blackout,
        });
    }

    /// This process is about to end as it was asked to: so does the holder then.
    pub(crate) fn finish(&self) {
        self.link.send(ToHolder::Finish, None);
    }
}

struct KeptByHolder {
    link: Link,
    next_owner: AtomicU64,
}

impl Keeper for KeptByHolder {
    /// The record comes first: a socket without one could not be used.
    fn keep(&self, socket: BorrowedFd<'_>, record: &[u8]) -> Option<u64> {
        let file = match record_file(AT_PATH, record) {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!(%error, "a socket is not kept by the holder");
                return None;
            }
        };
        let owner = self.next_owner.fetch_add(1, Ordering::Relaxed);
        let keep = |token, class| ToHolder::Keep { key: Key { owner, token }, class };
        self.link.send(keep(RECORD, Class::Plain), Some(file.as_fd()));
        self.link.send(keep(SOCKET, Class::Listener), Some(socket));
        Some(owner)
    }

    fn forget(&self, owner: u64) {
        self.link.send(ToHolder::DropOwner { owner }, None);
    }
}

/// A memory file with a record in it.
fn record_file(what: u8, record: &[u8]) -> io::Result<OwnedFd> {
    let bytes = [&[what], record].concat();
    let mut file = File::from(create_file("vfiod-record", bytes.len() as u64)?);
    file.write_all(&bytes)?;
    Ok(file.into())
}

/// `None`: it is none.
fn read_record(file: OwnedFd) -> Option<Vec<u8>> {
    let file = File::from(file);
    let length = file.metadata().ok()?.len();
    let mut bytes = vec![0; usize::try_from(length).ok().filter(|_| length <= MAX_RECORD)?];
    file.read_exact_at(&mut bytes, 0).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_is_read_again_unless_it_is_too_long() {
        let file = record_file(AT_PATH, b"what it is").unwrap();
        assert_eq!(read_record(file).unwrap(), b"pwhat it is");
        let file = record_file(AT_PATH, &vec![0; MAX_RECORD as usize]).unwrap();
        assert_eq!(read_record(file), None);
    }
}
