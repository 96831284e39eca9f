//! An I/O queue.

use std::sync::Arc;

use rustix::event::EventfdFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::command::{Command, Completion, opcode};
use crate::error::{Error, Result};
use crate::link::Link;
use crate::memory::{Data, Memory};
use crate::namespace::Namespace;
use crate::pair::Pair;

/// How a queue waits for completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Looks at the queue's memory again and again.
    Polling,
    /// Sleeps until the queue's MSI-X vector comes.
    Interrupts,
}

/// An I/O queue pair of a controller, made by
/// [`Controller::create_queue`](crate::Controller::create_queue). Each thread uses one of its own; they share
/// the connection.
///
/// A reset of the controller ends its queues: every call fails with [`Error::QueueEnded`] then. A queue that
/// is dropped stays with the controller, its memory, too, until
/// [`Controller::delete_queue`](crate::Controller::delete_queue) or a reset.
#[derive(Debug)]
pub struct Queue {
    pub(crate) pair: Pair,
    event: Option<OwnedFd>,
}

impl Queue {
    pub(crate) fn new(
        link: &Arc<Link>,
        memory: &Memory,
        (id, entries): (u16, u32),
        waiting: Waiting,
    ) -> Result<Self> {
        let event = match waiting {
            Waiting::Polling => None,
            Waiting::Interrupts => {
                let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
                let event = rustix::event::eventfd(0, flags);
                let event = event.map_err(|errno| Error::io("cannot make an eventfd", errno))?;
                link.set_vector(id, event.as_fd())?;
                Some(event)
            }
        };
        Ok(Self { pair: Pair::new(link, memory, id, entries)?, event })
    }

    /// Its number.
    pub fn id(&self) -> u16 {
        self.pair.id
    }

    /// Commands that were submitted and have not completed.
    pub fn in_flight(&self) -> usize {
        self.pair.in_flight()
    }

    /// The eventfd that the queue's interrupt signals, for a loop of one's own around [`Queue::poll`].
    pub fn event(&self) -> Option<BorrowedFd<'_>> {
        self.event.as_ref().map(AsFd::as_fd)
    }

    /// Puts a command into the queue. Returns its identifier, by which its completion is known. The
    /// controller sees it at the next [`Queue::ring`], [`Queue::poll`] or [`Queue::wait`]: several commands
    /// cost one doorbell.
    ///
    /// # Errors
    /// [`Error::QueueFull`]; [`Error::Unsupported`]: more data than the driver has lists for;
    /// [`Error::NoMemory`]: for the list of its pages; [`Error::QueueEnded`].
    pub fn submit(&mut self, command: Command, data: Option<Data>) -> Result<u16> {
        self.pair.submit(command, data)
    }

    /// Tells the controller what was submitted.
    ///
    /// # Errors
    /// [`Error::Client`], [`Error::QueueEnded`].
    pub fn ring(&mut self) -> Result<()> {
        self.pair.ring()
    }

    /// A completion, if one is there.
    ///
    /// # Errors
    /// As [`Queue::ring`].
    pub fn poll(&mut self) -> Result<Option<Completion>> {
        self.pair.poll()
    }

    /// Waits for a completion of any command.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Fatal`], [`Error::Client`], [`Error::QueueEnded`].
    pub fn wait(&mut self) -> Result<Completion> {
        let event = self.event.as_ref().map(AsFd::as_fd);
        self.pair.wait(event, |_| true)
    }

    /// Waits for the completion of one command; those of others are kept for later calls.
    ///
    /// # Errors
    /// As [`Queue::wait`].
    pub fn wait_for(&mut self, id: u16) -> Result<Completion> {
        let event = self.event.as_ref().map(AsFd::as_fd);
        self.pair.wait(event, |completion| completion.id == id)
    }

    /// Submits a command and waits for its completion. Returns its Dword 0.
    ///
    /// # Errors
    /// Those of [`Queue::submit`] and [`Queue::wait`]; [`Error::Status`].
    pub fn perform(&mut self, command: Command, data: Option<Data>) -> Result<u32> {
        let id = self.submit(command, data)?;
        let completion = self.wait_for(id)?;
        let status = completion.status;
        if status.is_success() { Ok(completion.result) } else { Err(Error::Status(status)) }
    }

    /// Reads blocks, from `first` on, as many as the data has room for.
    ///
    /// # Errors
    /// As [`Queue::perform`]; [`Error::Unsupported`]: no whole number of blocks.
    pub fn read(&mut self, namespace: &Namespace, first: u64, data: Data) -> Result<()> {
        let command = namespace.transfer(opcode::READ, first, &data)?;
        self.perform(command, Some(data)).map(drop)
    }

    /// Writes blocks, from `first` on. They are durable after a [`Queue::flush`].
    ///
    /// # Errors
    /// As [`Queue::read`].
    pub fn write(&mut self, namespace: &Namespace, first: u64, data: Data) -> Result<()> {
        let command = namespace.transfer(opcode::WRITE, first, &data)?;
        self.perform(command, Some(data)).map(drop)
    }

    /// Makes durable what was written and completed before, on whichever queue.
    ///
    /// # Errors
    /// As [`Queue::perform`].
    pub fn flush(&mut self, namespace: &Namespace) -> Result<()> {
        let command = Command::new(opcode::FLUSH).namespace(namespace.id);
        self.perform(command, None).map(drop)
    }
}
