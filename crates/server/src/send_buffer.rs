//! What the kernel keeps of what was sent on a socket until its peer has read it.
//!
//! That memory is charged to the memory group of this process, not to the client's, and stays so when the
//! socket is closed: it lies with the peer's end of the connection. How much it can be is known by the
//! size of the socket's send buffer. So:
//!
//! - The buffer is as small as the kernel allows at first, and nothing is sent before the client is
//!   [charged](SendBuffer::pay) for it.
//! - Where a reply does not fit, the buffer is made larger, a step each time, and the client is charged
//!   for that. This takes only what its user can spare: who has no more is served through a smaller
//!   buffer, more slowly.
//! - Nothing is given back before the client has read what was sent, or has closed its end; the
//!   connection may have ended long before ([`crate::unread`]).

use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::Errno;
use rustix::net::sockopt;
use vfiod_quota::{Charge, Exceeded, Payer, Resource};
use vfiod_sync::{Mutex, lock};

/// Sizes of the buffer, as the kernel counts: its bookkeeping included. The first is the kernel's least. The
/// last holds half of the largest reply or more: a larger one is no faster.
pub(crate) const SIZES: [usize; 4] = [4608, 64 << 10, 256 << 10, 1 << 20];

/// What a buffer of this size can take in the kernel. A send that begins below the size may go beyond it by
/// one piece, which is half of the size at most, and not more than 36 KiB. Pages and what the kernel keeps
/// beside the data are counted by the size; the last part is for the kernel's lists of small ones, and for
/// rounding.
pub(crate) const fn most_of(size: usize) -> u64 {
    let piece = if size / 2 < 36 << 10 { size / 2 } else { 36 << 10 };
    (size + piece + size / 40 + (4 << 10)) as u64
}

/// A socket's buffer, and who pays for it.
#[derive(Debug)]
pub(crate) struct SendBuffer {
    size: AtomicUsize,
    paid: OnceLock<Paid>,
}

/// What was charged for a socket to which something may have been sent.
#[derive(Debug)]
pub(crate) struct Paid {
    memory: Mutex<Charge>,
    /// The socket itself, where it has to stay; before that the one by which the process that
    /// connected may have to be watched.
    _descriptor: Charge,
}

impl Paid {
    /// From now on nothing is sent, and so much is not read.
    pub(crate) fn shrink(&self, unread: usize) {
        let mut memory = lock(&self.memory);
        let least = memory.amount().min(most_of(unread));
        // Less is never refused.
        let _ = memory.resize(least);
    }
}

impl SendBuffer {
    /// Makes the buffer of a socket small. Nothing was sent on it yet.
    pub(crate) fn of(socket: impl AsFd) -> Result<Self, Errno> {
        // The kernel doubles it.
        sockopt::set_socket_send_buffer_size(&socket, SIZES[0] / 2)?;
        let size = AtomicUsize::new(sockopt::socket_send_buffer_size(&socket)?);
        Ok(Self { size, paid: OnceLock::new() })
    }

    /// How many bytes of one send the kernel takes together or not at all: it cuts what is longer into pieces, of
    /// which each is less than half of the buffer, and not more than 32 KiB and a part of a page.
    pub(crate) fn whole(&self) -> usize {
        (self.size.load(Ordering::Relaxed) / 2).saturating_sub(64).min(32 << 10)
    }

    /// Whether something may be sent.
    pub(crate) fn is_paid(&self) -> bool {
        self.paid.get().is_some()
    }

    /// Charges for what will be sent, once.
    ///
    /// # Errors
    /// The payer's user may not have as much.
    pub(crate) fn pay(&self, payer: &Payer) -> Result<(), Exceeded> {
        self.pay_by(Payer::charge, payer)
    }

    /// [`SendBuffer::pay`], of what the user can spare: for a client that does not have the device open. What
    /// it leaves unread must not take the device's whole share.
    ///
    /// # Errors
    /// There is not as much to spare.
    pub(crate) fn pay_spare(&self, payer: &Payer) -> Result<(), Exceeded> {
        self.pay_by(Payer::charge_spare, payer)
    }

    fn pay_by(
        &self,
        charge: impl Fn(&Payer, Resource, u64) -> Result<Charge, Exceeded>,
        payer: &Payer,
    ) -> Result<(), Exceeded> {
        if !self.is_paid() {
            let memory =
                charge(payer, Resource::Memory, most_of(self.size.load(Ordering::Relaxed)))?;
            let descriptor = charge(payer, Resource::Descriptors, 1)?;
            // Who pays twice gets the second one back.
            let _ = self.paid.set(Paid { memory: Mutex::new(memory), _descriptor: descriptor });
        }
        Ok(())
    }

    /// Makes the buffer larger, as something did not fit into it. Returns whether it is.
    pub(crate) fn grow(&self, socket: impl AsFd) -> bool {
        let before = self.size.load(Ordering::Relaxed);
        let (Some(paid), Some(next)) = (self.paid.get(), SIZES.iter().find(|size| **size > before))
        else {
            return false;
        };
        let mut memory = lock(&paid.memory);
        if memory.resize_spare(most_of(*next)).is_err() {
            return false;
        }
        let set = sockopt::set_socket_send_buffer_size(&socket, next / 2);
        // The kernel cuts it to what is allowed (net.core.wmem_max).
        let now = set.and_then(|()| sockopt::socket_send_buffer_size(&socket)).unwrap_or(before);
        self.size.store(now, Ordering::Relaxed);
        let _ = memory.resize(most_of(now));
        now > before
    }

    /// What was charged, at the end.
    pub(crate) fn take(&mut self) -> Option<Paid> {
        self.paid.take()
    }
}
