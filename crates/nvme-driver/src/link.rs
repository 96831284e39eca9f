//! The connection to the controller, which all its queues share.

use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use vfiod_client::{Client, IrqAction, IrqData};
use vfiod_dma::{Attachment, Backing, MapRequest, Perm, Space};

use crate::error::{Error, Result};
use crate::memory::{Buffer, PAGE};

/// The registers of the controller: BAR 0.
const REGISTERS: u32 = 0;
/// The region of configuration space (`VFIO_PCI_CONFIG_REGION_INDEX`).
const CONFIG: u32 = 7;
/// MSI-X (`VFIO_PCI_MSIX_IRQ_INDEX`).
const MSIX: u32 = 2;
/// Where the doorbells begin; CAP.DSTRD is 0.
const DOORBELLS: u64 = 0x1000;
/// How often a waiter looks whether the controller has failed.
const LOOK: Duration = Duration::from_millis(100);

/// Controller Status.
pub(crate) const CSTS: u64 = 0x1c;
/// CSTS.CFS: fatal status.
pub(crate) const FATAL: u32 = 1 << 1;

/// Stores a doorbell to its shadow, and returns whether the register is to be written as well: the value has
/// moved past the event index (B.5).
pub(crate) fn store_shadow(
    pages: &Buffer,
    (pair, completions): (u16, bool),
    old: u32,
    new: u32,
) -> bool {
    let at = 8 * usize::from(pair) + 4 * usize::from(completions);
    pages.store32(at, new);
    // The controller stores the event index, and then looks at the doorbell once more.
    fence(Ordering::SeqCst);
    let event = pages.load32(PAGE as usize + at);
    is_past_event(event as u16, old as u16, new as u16)
}

/// Whether a doorbell that moves from `old` to `new` moves past the event index.
fn is_past_event(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[derive(Debug)]
pub(crate) struct Link {
    client: Mutex<Client>,
    /// The connection's socket, to wait for.
    socket: OwnedFd,
    /// Counts resets: a queue of another one is of no use.
    generation: AtomicU64,
    /// The page of doorbells, where it is mapped, at its offset in BAR 0.
    mapped: Option<Attachment>,
    /// The page of shadow doorbells, and behind it that of the event indices, while there are any.
    shadow: Mutex<Option<Arc<Buffer>>>,
    /// Buffers that the controller may still reach, although their users have gone.
    kept: Mutex<Vec<Arc<Buffer>>>,
    /// The server reaches the memory by messages, which must be answered while one waits.
    pub(crate) by_message: bool,
    pub(crate) timeout: Duration,
}

impl Link {
    pub(crate) fn new(client: Client, by_message: bool, timeout: Duration) -> Result<Self> {
        let socket = client.twin().unwrap_or(client.socket()).as_fd().try_clone_to_owned();
        Ok(Self {
            socket: socket.map_err(|error| Error::io("cannot copy a socket", error))?,
            client: Mutex::new(client),
            generation: AtomicU64::new(0),
            mapped: None,
            shadow: Mutex::default(),
            kept: Mutex::default(),
            by_message,
            timeout,
        })
    }

    pub(crate) fn client(&self) -> MutexGuard<'_, Client> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn read32(&self, offset: u64) -> Result<u32> {
        let mut bytes = [0; 4];
        self.client().region_read(REGISTERS, offset, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    pub(crate) fn read64(&self, offset: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.client().region_read(REGISTERS, offset, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    pub(crate) fn write32(&self, offset: u64, value: u32) -> Result<()> {
        Ok(self.client().region_write(REGISTERS, offset, &value.to_le_bytes())?)
    }

    pub(crate) fn write64(&self, offset: u64, value: u64) -> Result<()> {
        Ok(self.client().region_write(REGISTERS, offset, &value.to_le_bytes())?)
    }

    pub(crate) fn read_config<const N: usize>(&self, offset: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.client().region_read(CONFIG, offset, &mut bytes)?;
        Ok(bytes)
    }

    pub(crate) fn write_config(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.client().region_write(CONFIG, offset, bytes)?)
    }

    /// Maps the page of doorbells, so that no message is needed for them.
    ///
    /// # Errors
    /// [`Error::Unsupported`]: the server does not let it be mapped; [`Error::Memory`].
    pub(crate) fn map_doorbells(&mut self) -> Result<()> {
        let region = self.client().region_info(REGISTERS)?;
        let areas = &region.reply.areas;
        let has_page = areas.iter().any(|area| {
            area.offset <= DOORBELLS && area.offset.saturating_add(area.size) >= DOORBELLS + PAGE
        });
        let (Some(fd), true) = (region.fd, areas.is_empty() || has_page) else {
            let what = "the page of doorbells cannot be mapped".to_owned();
            return Err(Error::Unsupported(what));
        };
        let space = Space::default();
        let backing = Backing::File { fd, offset: region.reply.info.offset + DOORBELLS };
        let perm = Perm::READ | Perm::WRITE;
        space.map(None, MapRequest { iova: DOORBELLS, size: PAGE, perm, backing })?;
        self.mapped = Some(Attachment::new(&space));
        Ok(())
    }

    /// Writes a doorbell, of the submission queue or the completion queue of a pair. There is no reply: the
    /// order of messages is that of the writes.
    pub(crate) fn ring(&self, pair: u16, completions: bool, value: u32) -> Result<()> {
        let offset = DOORBELLS + 8 * u64::from(pair) + 4 * u64::from(completions);
        if let Some(mapped) = &self.mapped {
            // It is a file, which no message reaches.
            let _mapped = mapped.batch()?.store(offset, value.to_le(), Ordering::SeqCst)?;
            return Ok(());
        }
        Ok(self.client().region_post(REGISTERS, offset, &value.to_le_bytes())?)
    }

    /// From now on, until the next reset, new queues have shadow doorbells.
    pub(crate) fn set_shadow(&self, pages: Arc<Buffer>) {
        *self.shadow.lock().unwrap_or_else(PoisonError::into_inner) = Some(pages);
    }

    /// The pages of shadow doorbells.
    pub(crate) fn shadow(&self) -> Option<Arc<Buffer>> {
        self.shadow.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets a vector signal an eventfd.
    pub(crate) fn set_vector(&self, vector: u16, event: BorrowedFd<'_>) -> Result<()> {
        let (vector, data) = (vector.into(), IrqData::EventFds(&[event]));
        Ok(self.client().set_irqs(MSIX, vector, 1, IrqAction::Trigger, data)?)
    }

    /// How many MSI-X vectors there are.
    pub(crate) fn vectors(&self) -> Result<u32> {
        Ok(self.client().irq_info(MSIX)?.count)
    }

    /// Which reset the controller has had last.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// The controller was reset: it reaches nothing any more of what it was given.
    pub(crate) fn next_generation(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        *self.shadow.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Keeps buffers of this generation until the next reset, or the end of the connection.
    pub(crate) fn keep(&self, buffers: impl IntoIterator<Item = Arc<Buffer>>) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).extend(buffers);
    }

    /// Answers the server's messages that are there, and notices the end of the connection.
    pub(crate) fn serve(&self) -> Result<()> {
        Ok(self.client().serve_dma(Duration::ZERO)?)
    }

    /// Sleeps until an event or a message of the server comes, [`LOOK`] at most; answers messages.
    fn sleep(&self, event: Option<BorrowedFd<'_>>, timeout: Duration) -> Result<()> {
        let timeout = Timespec::try_from(timeout.min(LOOK)).unwrap_or_default();
        let mut fds = vec![PollFd::new(&self.socket, PollFlags::IN)];
        fds.extend(event.map(|event| PollFd::from_borrowed_fd(event, PollFlags::IN)));
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::io("cannot wait for the controller", errno)),
        }
        if fds[0].revents().is_empty() { Ok(()) } else { self.serve() }
    }

    fn check_status(&self) -> Result<()> {
        if self.read32(CSTS)? & FATAL != 0 { Err(Error::Fatal) } else { Ok(()) }
    }
}

/// Somebody waits for a queue.
pub(crate) struct Wait<'a> {
    link: &'a Link,
    /// `None`: polls.
    event: Option<BorrowedFd<'a>>,
    start: Instant,
    next_look: Duration,
    spins: u32,
}

impl<'a> Wait<'a> {
    pub(crate) fn new(link: &'a Link, event: Option<BorrowedFd<'a>>) -> Self {
        Self { link, event, start: Instant::now(), next_look: LOOK, spins: 0 }
    }

    /// Waits for a moment, or for the event.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Fatal`], [`Error::Client`]: the connection has ended.
    pub(crate) fn pause(&mut self) -> Result<()> {
        if let Some(event) = self.event {
            let mut count = [0; 8];
            // What was signalled before the queue is looked at again is of no more use.
            self.link.sleep(Some(event), LOOK)?;
            match rustix::io::read(event, &mut count) {
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(Error::io("cannot read an eventfd", errno)),
            }
        } else {
            self.spins += 1;
            if self.link.by_message {
                self.link.serve()?;
            }
            if !self.spins.is_multiple_of(256) {
                std::hint::spin_loop();
                return Ok(());
            }
            // The server may need this processor.
            std::thread::yield_now();
        }
        let waited = self.start.elapsed();
        if waited >= self.next_look {
            self.next_look = waited + LOOK;
            self.link.serve()?;
            self.link.check_status()?;
        }
        let timeout = self.link.timeout;
        if waited > timeout {
            return Err(Error::Timeout { what: "a completion".to_owned(), timeout });
        }
        Ok(())
    }
}
