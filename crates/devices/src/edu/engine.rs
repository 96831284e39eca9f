//! What runs beside the registers: factorials and transfers, each on a thread of its own that
//! ends with it, so that slow guest memory holds up no vCPU and an idle device costs no thread.
//!
//! A piece of work has a ticket. What no longer has the ticket that the state names was
//! cancelled: it begins no access to guest memory, changes nothing and interrupts nobody. An
//! access that has begun cannot be called back; a reset or a close waits for it.

use std::sync::Arc;
use std::time::Duration;

use vfiod_core::{Errno, Error, Result};
use vfiod_pci::Handle;
use vfiod_sync::{Condvar, Mutex, MutexGuard, wait_while};

use super::registers::{
    BUFFER, BUFFER_LEN, CAUSE_DMA, CAUSE_FACTORIAL, DMA_INTERRUPT, DMA_TO_RAM, STATUS_INTERRUPT,
};
use crate::Complaints;

/// How long a reset waits for an access that has begun. Mapped memory takes microseconds. Where
/// a client answers no messages because it waits for this very reset, waiting is in vain, and
/// nothing is lost by going on: it gets the message before it gets the reset's reply.
pub(super) const RESET_PATIENCE: Duration = Duration::from_millis(500);
/// How long a close does: the client has gone, and with it whatever could take long.
pub(super) const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// Names a piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// The registers and what runs.
#[derive(Debug)]
pub(super) struct State {
    pub(super) liveness: u32,
    pub(super) factorial: u32,
    /// STATUS_INTERRUPT or nothing.
    pub(super) status: u32,
    pub(super) causes: u32,
    pub(super) source: u64,
    pub(super) destination: u64,
    pub(super) count: u64,
    /// Without DMA_RUN.
    pub(super) command: u64,
    pub(super) buffer: Box<[u8; BUFFER_LEN]>,
    /// The factorial under way.
    pub(super) computing: Option<Ticket>,
    /// The transfer under way.
    pub(super) transfer: Option<Ticket>,
    /// Tickets so far.
    tickets: u64,
    /// Accesses to guest memory that have begun.
    accesses: u32,
    complaints: Complaints,
}

impl State {
    fn new() -> Self {
        Self {
            liveness: 0,
            factorial: 0,
            status: 0,
            causes: 0,
            source: 0,
            destination: 0,
            count: 0,
            command: 0,
            buffer: Box::new([0; BUFFER_LEN]),
            computing: None,
            transfer: None,
            tickets: 0,
            accesses: 0,
            complaints: Complaints::default(),
        }
    }

    /// The registers after power-on; nothing runs. Tickets and begun accesses go on counting.
    pub(super) fn reset(&mut self) {
        let Self { tickets, accesses, complaints, .. } = self;
        let complaints = std::mem::take(complaints);
        *self = Self { tickets: *tickets, accesses: *accesses, complaints, ..Self::new() };
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    pub(super) fn raise(&mut self, handle: &Handle, causes: u32) {
        self.causes |= causes;
        if self.causes != 0 {
            handle.interrupts().set(0, true);
        }
    }

    pub(super) fn acknowledge(&mut self, handle: &Handle, causes: u32) {
        self.causes &= !causes;
        if self.causes == 0 {
            handle.interrupts().set(0, false);
        }
    }

    /// The transfer that the registers describe.
    fn job(&self, mask: u64) -> Result<Job> {
        let to_ram = self.command & DMA_TO_RAM != 0;
        let (local, guest) =
            if to_ram { (self.source, self.destination) } else { (self.destination, self.source) };
        let range = || {
            let start = usize::try_from(local.checked_sub(BUFFER)?).ok()?;
            let end = start.checked_add(usize::try_from(self.count).ok()?)?;
            (end <= BUFFER_LEN).then_some(start..end)
        };
        let Some(range) = range() else {
            let what = format!("{} bytes at {local:#x} are not in the buffer", self.count);
            return Err(Error::new(Errno::INVAL, what));
        };
        let at = range.start;
        // The engine has no more address bits than these: the rest is cut off.
        Ok(Job { to_ram, at, guest: guest & mask, bytes: self.buffer[range].to_vec() })
    }
}

/// A transfer, apart from the registers.
struct Job {
    to_ram: bool,
    /// Where in the buffer.
    at: usize,
    /// Where in the guest's memory.
    guest: u64,
    bytes: Vec<u8>,
}

impl Job {
    fn run(&mut self, handle: &Handle) -> Result<()> {
        if self.to_ram {
            handle.dma().write(self.guest, &self.bytes)
        } else {
            handle.dma().read(self.guest, &mut self.bytes)
        }
    }
}

/// State, and the work that goes on in it. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Engine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Signalled when an access to guest memory has ended.
    ended: Condvar,
}

impl Engine {
    pub(super) fn new() -> Self {
        let shared = Shared { state: Mutex::new(State::new()), ended: Condvar::new() };
        Self { shared: Arc::new(shared) }
    }

    /// Threads that have not ended, for tests. One `Engine` is the device's, one the asker's.
    #[cfg(test)]
    pub(super) fn workers(&self) -> usize {
        Arc::strong_count(&self.shared) - 2
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        vfiod_sync::lock(&self.shared.state)
    }

    /// Cancels the transfer and waits for an access that has begun.
    pub(super) fn cancel_transfer(&self, patience: Duration) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.transfer = None;
        let shared = &*self.shared;
        let state =
            wait_while(&shared.ended, &shared.state, state, patience, |state| state.accesses > 0);
        if state.accesses > 0 {
            tracing::warn!("a DMA access goes on that the client does not let end");
        }
        state
    }

    /// Runs work on a thread of its own. Where there is none to be had, it runs right here.
    fn beside(&self, handle: &Handle, work: impl Fn(&Engine, &Handle) + Send + Sync + 'static) {
        let work = Arc::new(work);
        let started = std::thread::Builder::new().name("edu".to_owned()).spawn({
            let (engine, handle, work) = (self.clone(), handle.clone(), work.clone());
            move || work(&engine, &handle)
        });
        if let Err(error) = started {
            if let Some(held_back) = self.lock().complaints.due() {
                tracing::warn!(device = handle.name(), %error, held_back, "no thread to work on");
            }
            work(self, handle);
        }
    }

    /// Starts computing a factorial, unless one is being computed.
    pub(super) fn start_factorial(&self, handle: &Handle, n: u32) {
        let ticket = {
            let mut state = self.lock();
            if state.computing.is_some() {
                return;
            }
            let ticket = state.ticket();
            state.computing = Some(ticket);
            state.factorial = n;
            ticket
        };
        self.beside(handle, move |engine, handle| {
            let result = factorial(n);
            let mut state = engine.lock();
            if state.computing != Some(ticket) {
                return;
            }
            state.computing = None;
            state.factorial = result;
            if state.status & STATUS_INTERRUPT != 0 {
                state.raise(handle, CAUSE_FACTORIAL);
            }
        });
    }

    /// Starts the transfer that the registers describe, unless one is under way.
    pub(super) fn start_transfer(&self, handle: &Handle, command: u64, mask: u64) {
        let ticket = {
            let mut state = self.lock();
            if state.transfer.is_some() {
                return;
            }
            let ticket = state.ticket();
            state.transfer = Some(ticket);
            state.command = command;
            ticket
        };
        self.beside(handle, move |engine, handle| engine.transfer(handle, ticket, mask));
    }

    fn transfer(&self, handle: &Handle, ticket: Ticket, mask: u64) {
        let mut job = {
            let mut state = self.lock();
            if state.transfer != Some(ticket) {
                return;
            }
            state.accesses += 1;
            // The registers are as they were at the start: a transfer under way locks them.
            state.job(mask)
        };
        let done = match &mut job {
            Ok(job) => job.run(handle),
            Err(_) => Ok(()),
        };
        let job = done.and(job);
        let mut state = self.lock();
        state.accesses -= 1;
        self.shared.ended.notify_all();
        if state.transfer != Some(ticket) {
            return;
        }
        state.transfer = None;
        match job {
            Ok(job) if job.to_ram => {}
            Ok(job) => state.buffer[job.at..job.at + job.bytes.len()].copy_from_slice(&job.bytes),
            Err(error) => {
                if let Some(held_back) = state.complaints.due() {
                    let (source, destination, count) =
                        (state.source, state.destination, state.count);
                    tracing::warn!(
                        device = handle.name(), %error, count, held_back,
                        "DMA from {source:#x} to {destination:#x} failed"
                    );
                }
            }
        }
        if state.command & DMA_INTERRUPT != 0 {
            state.raise(handle, CAUSE_DMA);
        }
    }
}

/// `n!` modulo 2^32. It is 0 from 34! on, so the loop is short.
fn factorial(n: u32) -> u32 {
    let step = |product: u32, factor| match product.wrapping_mul(factor) {
        0 => None,
        product => Some(product),
    };
    (2..=n).try_fold(1, step).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factorials() {
        assert_eq!([0, 1, 2, 5, 10, 12].map(factorial), [1, 1, 2, 120, 3_628_800, 479_001_600]);
        assert_eq!(factorial(13), 1_932_053_504); // 13! modulo 2^32
        assert_ne!(factorial(33), 0);
        assert_eq!([34, 35, u32::MAX].map(factorial), [0, 0, 0]);
    }
}
