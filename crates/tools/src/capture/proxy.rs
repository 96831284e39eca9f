//! Relays messages and eventfds between a client and a server, and writes them down.
//!
//! Nothing here waits for a descriptor that a peer has sent: what can make its close, a look at it or an access
//! wait for another process is closed elsewhere ([`Closer`]) and refused, as the server does it; eventfds are
//! signalled and read as it does, too.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use vfiod_client::{RawMessage, Socket};
use vfiod_core::irq::{EventFd, Signalled, is_eventfd};
use vfiod_server::{Closer, is_safe};
use vfiod_wire::payload::{IrqSet, irq_flag};
use vfiod_wire::{Command, HEADER_LEN, Header, Kind};
use zerocopy::{FromBytes, IntoBytes};

use super::format::{Event, Signal, Writer};
use super::inputs::Inputs;
use super::memory::{self, Memory};
use super::withhold;

/// How long the rest of a message may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// As many descriptors as Linux passes with one message.
const MAX_FDS: usize = 253;

/// One end: a socket, and what it has not taken yet.
struct End {
    socket: Socket,
    queue: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    /// How much of the first message is gone.
    sent: usize,
}

impl End {
    fn new(socket: OwnedFd) -> anyhow::Result<Self> {
        let socket = Socket::from_fd(socket, TIMEOUT)?;
        Ok(Self { socket, queue: VecDeque::new(), sent: 0 })
    }

    fn send(&mut self, message: Vec<u8>, fds: Vec<OwnedFd>) -> rustix::io::Result<()> {
        self.queue.push_back((message, fds));
        self.flush()
    }

    fn flush(&mut self) -> rustix::io::Result<()> {
        while let Some((message, fds)) = self.queue.front() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            if self.sent == 0 && !fds.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(&fds));
            }
            let bytes = [IoSlice::new(&message[self.sent..])];
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::sendmsg(&self.socket, &bytes, &mut control, flags) {
                Ok(sent) => self.sent += sent,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno),
            }
            if self.sent == message.len() {
                self.queue.pop_front();
                self.sent = 0;
            }
        }
        Ok(())
    }

    fn poll(&self) -> PollFd<'_> {
        let mut events = PollFlags::IN;
        if !self.queue.is_empty() {
            events |= PollFlags::OUT;
        }
        PollFd::new(&self.socket, events)
    }
}

/// An eventfd that one side signals and the other hears.
struct Relay {
    index: u32,
    vector: u32,
    /// The client signals it, to unmask.
    unmask: bool,
    from: OwnedFd,
    /// `None`: its client let a signal block, and gets no others.
    to: Option<EventFd>,
}

/// Takes the counter of an eventfd without waiting, whatever its flags are; `None` where it is 0.
fn take(fd: &OwnedFd) -> Option<u64> {
    let mut counter = [0; 8];
    match preadv2(fd, &mut [IoSliceMut::new(&mut counter)], u64::MAX, ReadWriteFlags::NOWAIT) {
        Ok(_) => Some(u64::from_ne_bytes(counter)),
        // Before Linux 5.7: its flags are those that its maker has given it, unless a peer changes them.
        Err(Errno::OPNOTSUPP) => {
            let mut fds = [PollFd::new(fd, PollFlags::IN)];
            let is_ready = poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0);
            let read = is_ready.then(|| rustix::io::read(fd, &mut counter))?;
            read.is_ok().then(|| u64::from_ne_bytes(counter))
        }
        Err(_) => None,
    }
}

/// What is captured.
pub(crate) struct Proxy<W> {
    client: End,
    server: End,
    writer: Writer<W>,
    closer: Arc<Closer>,
    start: Instant,
    memory: Memory,
    inputs: Inputs,
    /// The reply to VERSION, until the server records the device's input.
    held: Option<Vec<u8>>,
    relays: Vec<Relay>,
}

/// How a session ended, for people.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Closed {
    ByClient,
    ByServer,
}

impl<W: Write> Proxy<W> {
    pub(crate) fn new(client: OwnedFd, server: OwnedFd, writer: Writer<W>) -> anyhow::Result<Self> {
        Ok(Self {
            client: End::new(client)?,
            server: End::new(server)?,
            writer,
            closer: Closer::new("capture"),
            start: Instant::now(),
            memory: Memory::new(),
            inputs: Inputs::new(),
            held: None,
            relays: Vec::new(),
        })
    }

    fn record(&mut self, event: &Event) -> anyhow::Result<()> {
        let time = self.start.elapsed().as_nanos() as u64;
        self.writer.write(event, time).context("cannot write the capture")
    }

    /// Relays until one side closes its connection.
    pub(crate) fn run(mut self) -> anyhow::Result<Closed> {
        let closed = self.relay_all();
        // What was not received of it may have descriptors.
        for end in [self.client, self.server] {
            self.closer.close_socket(end.socket.into(), None);
        }
        closed
    }

    /// Receives a message.
    fn receive(&self, socket: &Socket) -> vfiod_client::Result<RawMessage> {
        let mut fds = Vec::new();
        match socket.receive_message_with(&mut fds) {
            Ok((header, payload)) => Ok(RawMessage { header, payload, fds }),
            Err(error) => {
                self.discard(fds);
                Err(error)
            }
        }
    }

    /// Closes descriptors of a peer.
    fn discard(&self, fds: impl IntoIterator<Item = OwnedFd>) {
        fds.into_iter().for_each(|fd| _ = self.closer.close(fd, None));
    }

    /// Refuses a request of the client, which the server does not get.
    fn refuse(&mut self, header: &Header, errno: Errno, why: &str) {
        tracing::warn!(command = header.command, %errno, "a request of the client was refused: {why}");
        if header.kind() == Kind::Command {
            // The end of a stream is found by reading it.
            let _ = self.client.send(memory::error(header, errno), Vec::new());
        }
    }

    fn relay_all(&mut self) -> anyhow::Result<Closed> {
        loop {
            if self.closer.is_saturated() {
                bail!("a peer has sent many descriptors whose close does not return");
            }
            let mut fds = vec![self.client.poll(), self.server.poll()];
            fds.extend(self.relays.iter().map(|relay| PollFd::new(&relay.from, PollFlags::IN)));
            let due = self.inputs.due();
            let left = due.map(|due| due.saturating_duration_since(Instant::now()));
            let timeout = left.map(|left| Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            });
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno).context("cannot wait for messages"),
            }
            let ready: Vec<PollFlags> = fds.iter().map(PollFd::revents).collect();
            drop(fds);
            if self.inputs.due().is_some_and(|due| due <= Instant::now()) {
                let message = self.inputs.ask();
                // The end of a stream is found by reading it.
                let _ = self.server.send(message, Vec::new());
            }
            // Signals first: what a message says may depend on them.
            for at in 0..self.relays.len() {
                if !ready[at + 2].is_empty() {
                    self.signal(at)?;
                }
            }
            for (end, ready) in [(&mut self.client, ready[0]), (&mut self.server, ready[1])] {
                if ready.contains(PollFlags::OUT) {
                    // The end of a stream is found by reading it.
                    let _ = end.flush();
                }
            }
            let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
            if ready[1].intersects(readable) {
                match self.receive(&self.server.socket) {
                    Ok(message) => self.relay_reply(message)?,
                    Err(vfiod_client::Error::Closed) => return Ok(Closed::ByServer),
                    Err(error) => return Err(error).context("the server"),
                }
            }
            if ready[0].intersects(readable) {
                match self.receive(&self.client.socket) {
                    Ok(message) => self.relay_request(message)?,
                    Err(vfiod_client::Error::Closed) => {
                        self.collect_inputs()?;
                        self.record(&Event::End)?;
                        return Ok(Closed::ByClient);
                    }
                    Err(error) => return Err(error).context("the client"),
                }
            }
        }
    }

    /// The client has closed its connection: takes what the device has got until then.
    fn collect_inputs(&mut self) -> anyhow::Result<()> {
        // One that was asked for before may have been answered before the last message.
        let mut asked = false;
        loop {
            if self.inputs.due().is_some() {
                if asked {
                    return Ok(());
                }
                asked = true;
                let message = self.inputs.ask();
                let _ = self.server.send(message, Vec::new());
            }
            if !self.inputs.is_asked() {
                return Ok(());
            }
            match self.receive(&self.server.socket) {
                Ok(message) => self.relay_reply(message)?,
                // What was recorded is lost with the server; a replay finds that out.
                Err(_) => return Ok(()),
            }
        }
    }

    fn signal(&mut self, at: usize) -> anyhow::Result<()> {
        let relay = &self.relays[at];
        // Another reader of the same eventfd may have been first.
        let Some(count) = take(&relay.from) else { return Ok(()) };
        let signal = Signal { index: relay.index, vector: relay.vector, count };
        let event = if relay.unmask { Event::Unmask(signal) } else { Event::Signal(signal) };
        let signalled = relay.to.as_ref().map(EventFd::signal);
        if matches!(signalled, Some(Signalled::Blocked | Signalled::Slow)) {
            tracing::warn!(
                index = signal.index,
                vector = signal.vector,
                "an eventfd cannot be signalled"
            );
            self.relays[at].to = None;
        }
        self.record(&event)
    }

    fn relay_request(&mut self, message: RawMessage) -> anyhow::Result<()> {
        let RawMessage { header, payload, mut fds } = message;
        let command = Command::from_number(header.command)
            .filter(|_| matches!(header.kind(), Kind::Command | Kind::Posted));
        let bytes = match command {
            Some(Command::Version) => withhold::version(&header, &payload),
            _ => [header.as_bytes(), &payload].concat(),
        };
        match command {
            Some(Command::DmaMap) => {
                let fd = fds.pop();
                self.discard(fds.drain(..));
                if fd.as_ref().is_some_and(|fd| !is_safe(fd)) {
                    self.discard(fd);
                    self.refuse(&header, Errno::NODEV, "a file that is no memory");
                    return Ok(());
                }
                if let Some(Err(error)) = fd.map(|fd| self.memory.map(&payload, fd)) {
                    self.refuse(&header, error.errno(), error.message());
                    return Ok(());
                }
            }
            Some(Command::DmaUnmap) => {
                self.memory.unmap(&payload);
                self.discard(fds.drain(..));
            }
            Some(Command::DeviceSetIrqs) if !fds.iter().all(is_eventfd) => {
                self.discard(fds);
                self.refuse(&header, Errno::INVAL, "a descriptor for an interrupt is no eventfd");
                return Ok(());
            }
            Some(Command::DeviceSetIrqs) => fds = self.relay(&payload, fds)?,
            _ => self.discard(fds.drain(..)),
        }
        self.inputs.request(&header);
        self.record(&Event::Client { message: bytes.clone(), eventfds: fds.len() as u8 })?;
        // The end of a stream is found by reading it.
        let _ = self.server.send(bytes, fds);
        Ok(())
    }

    /// Puts eventfds of ours in place of the client's. Returns those for the server.
    fn relay(&mut self, payload: &[u8], fds: Vec<OwnedFd>) -> anyhow::Result<Vec<OwnedFd>> {
        let Ok((set, _)) = IrqSet::read_from_prefix(payload) else { return Ok(Vec::new()) };
        let unmask = set.flags & irq_flag::ACTION_UNMASK != 0;
        let trigger = set.flags & irq_flag::ACTION_TRIGGER != 0;
        let eventfds = set.flags & irq_flag::DATA_EVENTFD != 0;
        let range = set.start..set.start.saturating_add(set.count);
        if (trigger && set.count == 0) || (eventfds && (trigger || unmask)) {
            self.relays.retain(|relay| {
                let all = set.count == 0;
                let same = all || (range.contains(&relay.vector) && relay.unmask == unmask);
                relay.index != set.index || !same
            });
        }
        if !eventfds || !(trigger || unmask) {
            return Ok(Vec::new());
        }
        let mut ours = Vec::new();
        for (vector, theirs) in range.zip(fds) {
            let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
            let fd = eventfd(0, flags).context("cannot make an eventfd")?;
            ours.push(fd.try_clone().context("cannot duplicate an eventfd")?);
            let (from, to) = if unmask { (theirs, fd) } else { (fd, theirs) };
            let to = Some(EventFd::new(to, None)?);
            self.relays.push(Relay { index: set.index, vector, unmask, from, to });
        }
        Ok(ours)
    }

    fn relay_reply(&mut self, message: RawMessage) -> anyhow::Result<()> {
        let RawMessage { header, payload, fds } = message;
        self.discard(fds);
        if let Kind::Command = header.kind() {
            let message = [header.as_bytes(), &payload].concat();
            self.record(&Event::Server { message: message.clone() })?;
            match self.memory.answer(&header, &payload) {
                Some(reply) => {
                    self.record(&Event::Client { message: reply.clone(), eventfds: 0 })?;
                    let _ = self.server.send(reply, Vec::new());
                }
                None => {
                    let _ = self.client.send(message, Vec::new());
                }
            }
            return Ok(());
        }
        if let Some(inputs) = self.inputs.reply(&header, &payload) {
            if let Some(message) = self.held.take() {
                let _ = self.client.send(message, Vec::new());
            }
            return inputs.map_or(Ok(()), |inputs| self.record(&Event::Inputs(inputs)));
        }
        let message = match header.kind() {
            Kind::Reply(Ok(())) => withhold::reply(&header, &payload),
            _ => [header.as_bytes(), &payload].concat(),
        };
        debug_assert!(message.len() >= HEADER_LEN);
        self.record(&Event::Server { message: message.clone() })?;
        let negotiated = header.command == Command::Version as u16;
        if negotiated && header.kind() == Kind::Reply(Ok(())) {
            // Before the client learns that it may go on.
            let begin = self.inputs.begin();
            let _ = self.server.send(begin, Vec::new());
            self.held = Some(message);
            return Ok(());
        }
        let _ = self.client.send(message, Vec::new());
        Ok(())
    }
}
