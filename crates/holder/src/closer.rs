//! Closing sockets of clients.
//!
//! The queue of a socket may hold descriptors whose last close never returns, such as a file of a FUSE server
//! that does not answer. So a thread closes them that may be lost. While one is stuck, further sockets wait, and
//! still count as connections.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Threads that may be stuck.
const MAX_THREADS: usize = 4;

#[derive(Debug, Default)]
pub(crate) struct Closer {
    waiting: Vec<OwnedFd>,
    running: Arc<AtomicUsize>,
}

impl Closer {
    /// Closes a socket, or keeps it until there is a thread for that.
    pub(crate) fn close(&mut self, socket: OwnedFd) {
        self.waiting.push(socket);
        self.poll();
    }

    /// How many are not closed.
    pub(crate) fn count(&self) -> usize {
        self.waiting.len() + self.running.load(Ordering::Relaxed)
    }

    /// Closes what waits, if there is a thread.
    pub(crate) fn poll(&mut self) {
        while self.running.load(Ordering::Relaxed) < MAX_THREADS {
            let Some(socket) = self.waiting.pop() else { return };
            let running = self.running.clone();
            running.fetch_add(1, Ordering::Relaxed);
            let close = move || {
                drop(socket);
                running.fetch_sub(1, Ordering::Relaxed);
            };
            // Without a thread the socket is closed here: the closure is dropped.
            if std::thread::Builder::new().name("close".to_owned()).spawn(close).is_err() {
                self.running.fetch_sub(1, Ordering::Relaxed);
                return;
            }
        }
    }
}
