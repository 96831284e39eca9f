//! Large accesses to plain memory of a device, without a copy in between: a write is received where
//! it belongs, a read is sent from where it is.
//!
//! Of a write, what has arrived is stored at once, and nothing waits for the rest. A reset in
//! between clears the memory; it counts as having come after the whole write, so what arrives later
//! is dropped.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use vfiod_core::{File, RegionFlags, RegionIndex};
use vfiod_protocol::limits::LARGE_WRITE;
use vfiod_protocol::{Access, LargeWrite};

use crate::descriptor::{Descriptor, State};
use crate::dispatch::{Outcome, refuse};
use crate::outgoing::Outgoing;
use crate::transport::{Lent, Received, Socket, Wait};

/// A write that is received where it belongs. Used with the state locked.
#[derive(Debug, Default)]
pub(crate) struct DirectWrite {
    /// Resets that had been when it began.
    resets: AtomicU64,
}

impl DirectWrite {
    /// Begins, if the message that is next is a large write to plain memory of which part has
    /// arrived.
    pub(crate) fn begin(&self, state: &mut State, file: &File) {
        let Some(LargeWrite { access, arrived }) = state.large_write() else { return };
        let resets = file.shared_resets();
        let (region, len) = (RegionIndex(access.region), access.count as usize);
        // What is wrong with it is found when all of it has arrived.
        let Ok(Some(memory)) = file.shared(region, access.offset, len, RegionFlags::WRITE) else {
            return;
        };
        if memory.write(access.offset, arrived).is_ok() {
            self.resets.store(resets, Ordering::Relaxed);
            state.receive_outside();
        }
    }

    /// Receives more of it. Descriptors that come with it are added to `lent`.
    pub(crate) fn receive(
        &self,
        state: &mut State,
        file: &File,
        socket: &Socket,
        lent: &mut Lent,
        wait: Wait,
    ) -> Result<Received, Errno> {
        let mut received = self.receive_now(state, file, socket, lent)?;
        if matches!(received, Received::Nothing) && wait == Wait::Linger {
            // Not in the receive itself: there may be a reset meanwhile.
            socket.await_input();
            received = self.receive_now(state, file, socket, lent)?;
        }
        if let Received::Bytes(bytes) = received {
            state.received_outside(bytes);
        }
        Ok(received)
    }

    fn receive_now(
        &self,
        state: &State,
        file: &File,
        socket: &Socket,
        lent: &mut Lent,
    ) -> Result<Received, Errno> {
        let (left, outside) = (state.outside_left(), state.outside());
        let Some((access, done)) = outside else { return Ok(Received::Nothing) };
        if file.shared_resets() == self.resets.load(Ordering::Relaxed) {
            let (region, offset) = (RegionIndex(access.region), access.offset + done as u64);
            if let Ok(Some(memory)) = file.shared(region, offset, left, RegionFlags::WRITE) {
                match socket.receive_into(memory, offset, left, lent) {
                    // The opening has ended: nobody is to see it.
                    Err(Errno::NODEV) => {}
                    received => return received,
                }
            }
        }
        socket.receive_nowhere(left, lent)
    }
}

/// Whether a read is large enough to be sent from where its data are.
#[inline]
pub(crate) fn is_large_read<D>(access: &Access<'_, D>) -> bool {
    access.access.count as usize >= LARGE_WRITE && access.data.is_none()
}

/// Carries out a large read, and answers it: from plain memory at once, as far as the client takes
/// it. Returns how many bytes were sent that way, too.
pub(crate) fn read(
    file: &File,
    access: Access<'_, Descriptor>,
    outgoing: &Outgoing,
    wait: Wait,
) -> (Outcome, usize) {
    let Access { access, reply, .. } = access;
    let (region, len) = (RegionIndex(access.region), access.count as usize);
    let memory = match file.shared(region, access.offset, len, RegionFlags::READ) {
        Ok(memory) => memory,
        Err(error) => return (refuse(reply, error), 0),
    };
    let mut sent = 0;
    let replied = match memory {
        Some(memory) => reply.read_in_place(
            |head| {
                // Whoever sends next finds the error.
                let all = outgoing.send_memory(head, memory, access.offset, len, wait);
                sent = if all.unwrap_or(false) { head.len() + len } else { 0 };
                sent
            },
            |from, data| memory.read(access.offset + from as u64, data),
        ),
        None => reply.read(|data| file.read(region, access.offset, data)),
    };
    let outcome = match replied {
        Ok(_) => Ok(()),
        Err((error, reply)) => refuse(reply, error),
    };
    (outcome, sent)
}
