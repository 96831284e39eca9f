//! Doorbells: eventfds that stand for a write to a region (GET_REGION_IO_FDS, ioeventfd).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use vfiod_core::{Errno, Error, RegionIndex, Result};

use crate::connection::{Connection, Session};
use crate::pool::{Interest, Pool, Source, Watch, Worker};
use crate::sync::lock;

/// An eventfd that is being watched in a client's stead.
struct Bell {
    fd: OwnedFd,
    connection: Weak<Connection>,
    region: RegionIndex,
    offset: u64,
    value: [u8; 8],
    size: usize,
}

/// The descriptors of a region's doorbells, watched from the first time they are asked for.
pub(crate) fn descriptors(
    connection: &Arc<Connection>,
    session: &Session,
    pool: &Pool,
    index: u32,
) -> Result<Vec<OwnedFd>> {
    let duplicate = |fd: &OwnedFd| {
        fd.try_clone()
            .map_err(|error| Error::new(Errno::MFILE, "cannot duplicate a doorbell").because(error))
    };
    let mut watched = lock(&session.doorbells);
    if let Some((_, fds)) = watched.iter().find(|(region, _)| *region == index) {
        return fds.iter().map(duplicate).collect();
    }
    let region = session.file.region(RegionIndex(index))?;
    let fds = session.file.doorbells(RegionIndex(index))?;
    for (bell, fd) in region.doorbells.iter().zip(&fds) {
        let source: Arc<dyn Source> = Arc::new(Bell {
            fd: duplicate(fd)?,
            connection: Arc::downgrade(connection),
            region: RegionIndex(index),
            offset: bell.offset,
            value: bell.datamatch.unwrap_or(0).to_ne_bytes(),
            size: if bell.size == 0 { 4 } else { usize::from(bell.size.min(8)) },
        });
        pool.reserve()
            .arm(&source, Interest::Read)
            .map_err(|errno| Error::new(errno, "cannot watch a doorbell"))?;
    }
    let copies = fds.iter().map(duplicate).collect();
    watched.push((index, fds));
    copies
}

impl Source for Bell {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn serve(self: Arc<Self>, watch: &Watch, _worker: &mut Worker) {
        let Some(connection) = self.connection.upgrade().filter(|c| !c.link().is_ended()) else {
            watch.forget();
            return;
        };
        // Empty if another ring was taken with the one before: nothing is lost.
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.fd, &mut count);
        if let Some(session) = connection.session() {
            let rung = session.file.write(self.region, self.offset, &self.value[..self.size]);
            if let Err(error) = rung {
                connection.quiet.warn(|more| tracing::warn!(%error, more, "doorbell refused"));
            }
        }
        if watch.rearm(&*self, Interest::Read).is_err() {
            watch.forget();
        }
    }
}
