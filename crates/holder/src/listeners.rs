//! Listening sockets that are watched, and accepting from them.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::SocketFlags;
use vfiod_journal::message::Key;

use crate::state::{Files, State};

/// Events of listening sockets have these numbers; smaller ones are the loop's.
pub(crate) const FIRST: u64 = 16;
/// Connections that are accepted before other events have their turn.
const TURN: usize = 16;

/// Which listening sockets are watched.
pub(crate) struct Listeners {
    pub(crate) epoll: OwnedFd,
    watched: BTreeMap<Key, u64>,
    numbers: BTreeMap<u64, Key>,
    next: u64,
    /// Not watched until there is room again.
    crowded: Vec<Key>,
    spare: Option<Files>,
}

impl Listeners {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            watched: BTreeMap::new(),
            numbers: BTreeMap::new(),
            next: FIRST,
            crowded: Vec::new(),
            spare: None,
        })
    }

    /// Whether connections are accepted from it, now or when there is room.
    pub(crate) fn is_on(&self, key: Key) -> bool {
        self.watched.contains_key(&key) || self.crowded.contains(&key)
    }

    /// The number of its events, if it is watched now.
    #[cfg(test)]
    pub(crate) fn number(&self, key: Key) -> Option<u64> {
        self.watched.get(&key).copied()
    }

    /// Whether some wait for room.
    pub(crate) fn is_crowded(&self) -> bool {
        !self.crowded.is_empty()
    }

    pub(crate) fn watch(&mut self, key: Key, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        if self.is_on(key) {
            return Ok(());
        }
        // Somebody else may have taken the connection before us.
        rustix::io::ioctl_fionbio(fd, true)?;
        let number = self.next;
        let data = epoll::EventData::new_u64(number);
        epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)?;
        self.next += 1;
        self.watched.insert(key, number);
        self.numbers.insert(number, key);
        Ok(())
    }

    pub(crate) fn unwatch(&mut self, key: Key, fd: Option<BorrowedFd<'_>>) {
        self.crowded.retain(|crowded| *crowded != key);
        let (Some(number), Some(fd)) = (self.watched.remove(&key), fd) else { return };
        self.numbers.remove(&number);
        // Others have the same open file, so that it would be watched on.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// There may be room again: [`State::watch_crowded`] tries it.
    pub(crate) fn forgive(&mut self) {
        self.spare = None;
    }
}

impl State {
    /// Accepts from the listening socket of an event. Returns it if there is no room.
    pub(crate) fn accept(&mut self, number: u64) -> Option<Key> {
        let key = *self.listeners.numbers.get(&number)?;
        for _ in 0..TURN {
            match self.accept_one(key) {
                Ok(()) | Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return None,
                // No room, or no descriptor or memory for it: the client waits in the queue.
                Err(_) => {
                    let fd = self.kept.get(&key).map(|kept| kept.fd.as_fd());
                    self.listeners.unwatch(key, fd);
                    self.listeners.crowded.push(key);
                    return Some(key);
                }
            }
        }
        None
    }

    fn accept_one(&mut self, key: Key) -> Result<(), Errno> {
        if !self.has_room() {
            return Err(Errno::MFILE);
        }
        // What it needs is there before it is accepted.
        if self.listeners.spare.is_none() {
            self.listeners.spare = Some(Files::new()?);
        }
        let listener = self.kept.get(&key).ok_or(Errno::AGAIN)?;
        let socket = rustix::net::accept_with(&listener.fd, SocketFlags::CLOEXEC)?;
        if let Some(files) = self.listeners.spare.take() {
            self.add_connection(socket, files, key);
        }
        Ok(())
    }

    /// Watches listening sockets again that had to wait, if there is room.
    pub(crate) fn watch_crowded(&mut self) {
        self.closer.poll();
        if !self.listeners.is_crowded() || !self.has_room() {
            return;
        }
        for key in std::mem::take(&mut self.listeners.crowded) {
            if let Some(kept) = self.kept.get(&key)
                && self.listeners.watch(key, kept.fd.as_fd()).is_err()
            {
                self.listeners.crowded.push(key);
            }
        }
    }
}
