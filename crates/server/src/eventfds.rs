//! Eventfds that a client signals instead of sending a message: doorbells (GET_REGION_IO_FDS)
//! and unmasking eventfds of interrupts. They are watched by the pool for as long as they count.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};

use vfiod_core::irq::UnmaskFd;
use vfiod_core::{Errno, Error, RegionIndex, Result};
use vfiod_quota::{Charge, Payer, Resource};
use vfiod_sync::{Mutex, lock};

use crate::clock::now;
use crate::gate::Visitor;
use crate::message_log::errno_name;
use crate::opened::Opened;
use crate::pace::Pace;
use crate::pool::{Alarm, Interest, Pool, Source, Watch, Worker};

/// How often a doorbell is served within ten milliseconds: more often than a client rings that
/// writes an eventfd for each.
const MAX_RINGS: u32 = 1000;
/// How often an unmasking eventfd is served within ten milliseconds: more often than a guest ends
/// interrupts of a line.
const MAX_UNMASKS: u32 = 250;

/// Descriptors for each doorbell: the core's, the one that is watched, and one to be handed out again.
const FDS_OF_BELL: u64 = 3;

/// The eventfds of one session, watched until it ends.
pub(crate) struct EventFds {
    payer: Payer,
    bells: Mutex<Vec<RegionBells>>,
    unmask: Mutex<Vec<(UnmaskFd, Watch)>>,
}

/// The doorbells of a region that the client has asked for.
struct RegionBells {
    region: u32,
    /// As handed to the client.
    fds: Vec<OwnedFd>,
    watches: Vec<Watch>,
    _charge: Charge,
}

impl Drop for EventFds {
    fn drop(&mut self) {
        let bells = lock(&self.bells).drain(..).flat_map(|bells| bells.watches).collect::<Vec<_>>();
        let unmask = lock(&self.unmask).drain(..).map(|(_, watch)| watch).collect::<Vec<_>>();
        bells.iter().chain(&unmask).for_each(Watch::forget);
    }
}

fn cannot_watch(errno: Errno) -> Error {
    Error::new(errno, "cannot watch an eventfd")
}

fn duplicate(fd: &OwnedFd) -> Result<OwnedFd> {
    fd.try_clone()
        .map_err(|error| Error::new(Errno::MFILE, "cannot duplicate a doorbell").because(error))
}

impl EventFds {
    /// Those of a client who pays for the descriptors.
    pub(crate) fn new(payer: Payer) -> Self {
        Self { payer, bells: Mutex::default(), unmask: Mutex::default() }
    }

    /// The descriptors of a region's doorbells, watched from the first time they are asked for.
    pub(crate) fn doorbells(
        &self,
        opened: &Arc<Opened>,
        pool: &Pool,
        index: u32,
    ) -> Result<Vec<OwnedFd>> {
        let mut bells = lock(&self.bells);
        if let Some(known) = bells.iter().find(|bells| bells.region == index) {
            return known.fds.iter().map(duplicate).collect();
        }
        let region = RegionIndex(index);
        let count = opened.file.region(region)?.eventfds().count() as u64;
        let charge = self.payer.charge(Resource::Descriptors, count * FDS_OF_BELL)?;
        let fds = opened.file.doorbells(region)?;
        let copies = fds.iter().map(duplicate).collect::<Result<Vec<_>>>()?;
        // From here on in the list, so that a failure half way forgets the first half.
        let watches = Vec::new();
        bells.push(RegionBells { region: index, fds: copies, watches, _charge: charge });
        let Some(known) = bells.last_mut() else { return Ok(fds) };
        for (doorbell, fd) in fds.iter().enumerate() {
            let bell = Bell {
                fd: duplicate(fd)?,
                opened: Arc::downgrade(opened),
                payer: opened.payer.clone(),
                region,
                doorbell,
                pacer: Pacer::new(MAX_RINGS),
            };
            let source: Arc<dyn Source> = Arc::new(bell);
            let watch = pool.reserve();
            watch.arm(&source, Interest::Read).map_err(cannot_watch)?;
            known.watches.push(watch);
        }
        Ok(fds)
    }

    /// Watches the unmasking eventfds that the client has set up by now, and no others.
    pub(crate) fn follow_unmask(&self, opened: &Arc<Opened>, pool: &Pool) -> Result<()> {
        let now = opened.file.unmask_fds();
        let same = |a: &UnmaskFd, b: &UnmaskFd| a.as_fd().as_raw_fd() == b.as_fd().as_raw_fd();
        let mut watched = lock(&self.unmask);
        watched.retain(|(fd, watch)| {
            let still = now.iter().any(|other| same(fd, other));
            if !still {
                watch.forget();
            }
            still
        });
        for fd in now {
            if watched.iter().any(|(other, _)| same(&fd, other)) {
                continue;
            }
            let unmask = Unmask {
                fd: fd.clone(),
                opened: Arc::downgrade(opened),
                pacer: Pacer::new(MAX_UNMASKS),
            };
            let source: Arc<dyn Source> = Arc::new(unmask);
            let watch = pool.reserve();
            watch.arm(&source, Interest::Read).map_err(cannot_watch)?;
            watched.push((fd, watch));
        }
        Ok(())
    }
}

/// Watches an eventfd again after it was served, at once or after a pause.
struct Pacer {
    pace: Pace,
    /// Set while there is a pause.
    alarm: Mutex<Option<Alarm>>,
}

impl Pacer {
    fn new(limit: u32) -> Self {
        Self { pace: Pace::new(limit), alarm: Mutex::default() }
    }

    /// `payer` made it readable, and may be in debt.
    fn rearm(&self, payer: &Payer, watch: &Watch, source: Arc<dyn Source>) {
        let Some(pause) = self.pace.pause_at(now()).max(payer.debt().pause()) else {
            // Fails only when the session has ended, which forgets it anyway.
            let _ = watch.rearm(&*source, Interest::Read);
            return;
        };
        let alarm = watch.pool().wake_after(pause, watch, &source);
        let before = lock(&self.alarm).replace(alarm);
        drop(before);
    }
}

/// A doorbell.
struct Bell {
    fd: OwnedFd,
    opened: Weak<Opened>,
    payer: Payer,
    region: RegionIndex,
    doorbell: usize,
    pacer: Pacer,
}

impl Source for Bell {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn serve(self: Arc<Self>, watch: &Watch, worker: &mut Worker) {
        let Some(gate) = self.opened.upgrade().map(|opened| opened.gate.clone()) else { return };
        if let Some(turn) = gate.enter(watch, self) {
            turn.take(worker);
        }
    }
}

impl Visitor for Bell {
    fn payer(&self) -> Option<&Payer> {
        Some(&self.payer)
    }

    fn visit(self: Arc<Self>, watch: &Watch, _worker: &mut Worker) -> Option<Arc<dyn Visitor>> {
        let opened = self.opened.upgrade()?;
        if let Err(error) = opened.file.ring(self.region, self.doorbell) {
            opened.quiet.warn_of(&self.payer, |suppressed| {
                let device = opened.file.device().name();
                let errno = errno_name(error.errno());
                tracing::warn!(device, ?errno, %error, suppressed, "doorbell refused");
            });
            if error.errno() == Errno::NODEV {
                // The file was revoked: a later ring has no receiver.
                return None;
            }
        }
        self.pacer.rearm(&self.payer, watch, self.clone());
        None
    }
}

/// An unmasking eventfd.
struct Unmask {
    fd: UnmaskFd,
    opened: Weak<Opened>,
    pacer: Pacer,
}

impl Source for Unmask {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn serve(self: Arc<Self>, watch: &Watch, _worker: &mut Worker) {
        let Some(opened) = self.opened.upgrade() else { return };
        opened.file.unmask_signalled(&self.fd);
        self.pacer.rearm(&opened.payer, watch, self.clone());
    }
}
