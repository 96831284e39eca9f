//! One thread for all pseudo-terminals of the process: it sleeps in `epoll`, and tells a port
//! when its terminal has something, or takes something again. Started with the first terminal.
//!
//! Events come once for each change (`EPOLLET`): a terminal that nobody has open, which the
//! kernel reports without end, costs nothing.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use vfiod_core::contain::contain;
use vfiod_core::{Errno, Error, Result};
use vfiod_sync::{Mutex, MutexGuard, lock};

use super::port::Port;

/// Events taken at once.
const BATCH: usize = 64;

static POLLER: Mutex<Option<Arc<Poller>>> = Mutex::new(None);

#[derive(Debug)]
struct Poller {
    epoll: OwnedFd,
    watched: Mutex<Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    /// Never used twice: an event that was on its way when its watch ended finds nobody.
    next: u64,
    ports: HashMap<u64, Weak<Port>>,
}

/// A port is told of its descriptor's changes while this lives.
#[derive(Debug)]
pub(super) struct Watch {
    poller: Arc<Poller>,
    key: u64,
    fd: Arc<OwnedFd>,
}

/// Watches a descriptor, which must not block.
pub(super) fn watch(fd: Arc<OwnedFd>, port: Weak<Port>) -> Result<Watch> {
    let poller = running()?;
    let key = {
        let mut watched = poller.watched();
        watched.next += 1;
        let key = watched.next;
        watched.ports.insert(key, port);
        key
    };
    let flags = EventFlags::IN | EventFlags::OUT | EventFlags::ET;
    let added = epoll::add(&poller.epoll, &fd, EventData::new_u64(key), flags);
    // If it was not added, dropping it removes the port alone.
    let watch = Watch { poller, key, fd };
    added.map_err(|errno| Error::new(errno, "serial: cannot watch a pseudo-terminal"))?;
    Ok(watch)
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = epoll::delete(&self.poller.epoll, &self.fd);
        self.poller.watched().ports.remove(&self.key);
    }
}

/// The poller, started if it is the first time.
fn running() -> Result<Arc<Poller>> {
    let mut running = lock(&POLLER);
    if let Some(poller) = &*running {
        return Ok(poller.clone());
    }
    let epoll = epoll::create(CreateFlags::CLOEXEC)
        .map_err(|errno| Error::new(errno, "serial: no epoll for pseudo-terminals"))?;
    let poller = Arc::new(Poller { epoll, watched: Mutex::default() });
    let thread = poller.clone();
    std::thread::Builder::new().name("serial".to_owned()).spawn(move || thread.run()).map_err(
        |error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::AGAIN);
            Error::new(errno, "serial: no thread for pseudo-terminals").because(error)
        },
    )?;
    *running = Some(poller.clone());
    Ok(poller)
}

impl Poller {
    fn watched(&self) -> MutexGuard<'_, Watched> {
        lock(&self.watched)
    }

    fn run(&self) {
        let mut events: Vec<Event> = Vec::with_capacity(BATCH);
        loop {
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => {
                    tracing::error!(%errno, "serial: pseudo-terminals are not waited for any more");
                    return;
                }
            }
            for event in &events {
                // Not under the lock: the port has one of its own.
                let port = self.watched().ports.get(&event.data.u64()).and_then(Weak::upgrade);
                let Some(port) = port else { continue };
                if let Err(panic) = contain(|| port.wake()) {
                    tracing::error!(error = %panic, "serial: a port failed");
                }
            }
        }
    }
}
