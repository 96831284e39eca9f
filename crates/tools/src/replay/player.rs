//! Plays the client of a captured session to a device, without a socket.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};
use vfiod_core::dma::DmaPeer;
use vfiod_core::{
    DescriptorTable, Device, DeviceSpec, Error, File, Owner, ReadEffect, ReadTraits, RegionIndex,
    Registration, Registry, Token,
};
use vfiod_protocol::{Call, Connection, Descriptors, DmaReply, Event, Request};
use vfiod_server::{ClientLink, Target, now};
use vfiod_tasks::Workers;
use vfiod_wire::payload::{IrqSet, RegionAccess, irq_flag};
use vfiod_wire::{Command, HEADER_LEN, Header, Kind};
use zerocopy::{FromBytes, IntoBytes};

use super::channel::Channel;
use crate::capture::withhold;

/// How long the device may take for a signal or a DMA message that the capture has.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long a register may take to get the value that it had.
const SETTLE: Duration = Duration::from_millis(200);

/// Makes the device.
pub(super) type Make = Box<dyn Fn() -> anyhow::Result<Box<dyn Device>>>;

/// An eventfd that was set up.
struct Vector {
    index: u32,
    vector: u32,
    unmask: bool,
    fd: Arc<OwnedFd>,
    /// Signals that were taken from it and not asked for yet.
    taken: u64,
}

/// The client that is played.
pub(super) struct Player {
    make: Make,
    /// Before the registration, which waits for its end.
    file: Option<File>,
    device: Registered,
    connection: Connection<u32>,
    dma: Arc<Channel>,
    /// Eventfds on their way to the device, by the names that the protocol has for them.
    fds: HashMap<u32, OwnedFd>,
    next_fd: u32,
    vectors: Vec<Vector>,
    /// Replies of the device, as the captured client would have got them.
    replies: VecDeque<Vec<u8>>,
}

struct Link<'a>(&'a Arc<Channel>);

impl ClientLink for Link<'_> {
    type Fd = u32;

    fn name(&self, _fd: OwnedFd) -> u32 {
        // Descriptors for the client are withheld.
        0
    }

    fn dma_peer(&self) -> Result<Arc<dyn DmaPeer>, Error> {
        Ok(self.0.clone())
    }

    fn doorbells(&self, _region: RegionIndex) -> Result<Vec<OwnedFd>, Error> {
        Ok(Vec::new())
    }

    fn follow_unmask(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// The device, and a thread for its tasks.
struct Registered {
    registration: Registration,
    _workers: Workers,
}

fn register(device: Box<dyn Device>) -> anyhow::Result<Registered> {
    let spec = DeviceSpec { name: "replay".to_owned(), ..DeviceSpec::default() };
    let registry = Registry::new();
    let workers = Workers::start(registry.runtime(), 1).context("cannot start a thread")?;
    let registration = registry.register(spec, device).context("cannot register the device")?;
    Ok(Registered { registration, _workers: workers })
}

impl Player {
    pub(super) fn new(make: Make) -> anyhow::Result<Self> {
        Ok(Self {
            device: register(make()?)?,
            make,
            file: None,
            connection: Connection::default(),
            dma: Channel::new(1 << 20),
            fds: HashMap::new(),
            next_fd: 0,
            vectors: Vec::new(),
            replies: VecDeque::new(),
        })
    }

    /// The bits of what was read that differ from run to run.
    pub(super) fn volatile(&self, region: u32, offset: u64, len: usize) -> u64 {
        let traits =
            self.device.registration.device().read_traits(RegionIndex(region), offset, len);
        traits.map_or(0, |traits| traits.volatile)
    }

    /// Reads a register again until it has the value that was captured, or for a moment. What the
    /// captured client did next, it did after it had seen that value: that the device was done, say.
    pub(super) fn settle(&self, access: &RegionAccess, captured: &[u8]) {
        let region = RegionIndex(access.region);
        let Some(file) = &self.file else { return };
        let device = self.device.registration.device();
        let traits = device.read_traits(region, access.offset, captured.len());
        let pure = |traits: ReadTraits| traits.effect == ReadEffect::None && traits.volatile != 0;
        if captured.len() > 8 || !traits.is_ok_and(pure) {
            return;
        }
        let deadline = Instant::now() + SETTLE;
        let mut data = [0; 8];
        let data = &mut data[..captured.len()];
        while file.read(region, access.offset, data).is_ok()
            && data != captured
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The client's next message, to which eventfds belong.
    pub(super) fn client(&mut self, message: &[u8], eventfds: u8) -> anyhow::Result<()> {
        let mut names = Vec::new();
        for _ in 0..eventfds {
            let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
            let fd = eventfd(0, flags).context("cannot make an eventfd")?;
            self.fds.insert(self.next_fd, fd);
            names.push(self.next_fd);
            self.next_fd += 1;
        }
        self.keep_vectors(message, &names)?;
        let descriptors = Descriptors { fds: names, truncated: false };
        self.connection.receive(message, descriptors, now());
        while let Some(event) = self.connection.next()? {
            match event {
                Event::Refused(_) => {}
                Event::DmaReply(reply) => self.dma.complete(&reply),
                Event::Call(call) => {
                    let Call { request, reply, deadline, .. } = call;
                    if let Request::Version { proposed, token } = &request {
                        let owner = Owner::in_process("replay");
                        let device = self.device.registration.device();
                        let limit = proposed.data_limit();
                        match device.open_with(owner, token.map(Token)) {
                            Ok(file) => {
                                self.file = Some(file);
                                self.dma = Channel::new(limit);
                                reply.negotiated(None);
                            }
                            Err(error) => {
                                reply.refuse(error.errno().raw_os_error().unsigned_abs());
                            }
                        }
                        continue;
                    }
                    let file = self.file.as_ref().context("a request without an open device")?;
                    let fds = &mut self.fds;
                    let request = request.try_map_descriptors(|name| fds.remove(&name));
                    let request = request.context("a descriptor that was used twice")?;
                    let link = Link(&self.dma);
                    // A refusal is in the reply.
                    let _ = Target { file, link: &link }.carry_out(request, reply, deadline);
                }
            }
        }
        self.take_replies();
        Ok(())
    }

    fn take_replies(&mut self) {
        let output = self.connection.output();
        let mut bytes = Vec::new();
        while let Some(chunk) = output.chunk() {
            let len = chunk.bytes.len();
            bytes.extend_from_slice(chunk.bytes);
            output.sent(len);
        }
        let mut rest = &bytes[..];
        while let Some(header) = Header::parse(rest) {
            let (message, behind) = rest.split_at(header.size as usize);
            self.replies.push_back(match header.kind() {
                Kind::Reply(Ok(())) => withhold::reply(&header, &message[HEADER_LEN..]),
                _ => message.to_vec(),
            });
            rest = behind;
        }
    }

    /// The device's next reply.
    pub(super) fn reply(&mut self) -> Option<Vec<u8>> {
        self.replies.pop_front()
    }

    /// The device's next DMA message, if it comes in time.
    pub(super) fn dma_message(&self) -> Option<(Header, Vec<u8>)> {
        self.dma.next_message(Instant::now() + TIMEOUT)
    }

    /// The client's reply to a DMA message of the device.
    pub(super) fn dma_reply(&mut self, header: Header, payload: &[u8]) {
        self.dma.complete(&DmaReply { header, payload, position: 0 });
    }

    /// Waits until the device has signalled a vector as often as it did before. Returns how often
    /// it has if that is less.
    pub(super) fn wait_for_signals(
        &mut self,
        index: u32,
        vector: u32,
        count: u64,
    ) -> Result<(), u64> {
        let deadline = Instant::now() + TIMEOUT;
        let found = self
            .vectors
            .iter_mut()
            .find(|known| (known.index, known.vector, known.unmask) == (index, vector, false));
        let Some(known) = found else { return Err(0) };
        while known.taken < count {
            known.taken += read_count(&known.fd);
            if known.taken >= count {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(std::mem::take(&mut known.taken));
            }
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: 0 };
            let timeout = Timespec { tv_nsec: left.subsec_nanos().into(), ..timeout };
            let mut fds = [PollFd::new(&known.fd, PollFlags::IN)];
            // Whatever it says, the counter is looked at next.
            let _ = rustix::event::poll(&mut fds, Some(&timeout));
        }
        known.taken -= count;
        Ok(())
    }

    /// The client signals an unmasking eventfd.
    pub(super) fn unmask(&mut self, index: u32, vector: u32, count: u64) {
        let known =
            |known: &&Vector| (known.index, known.vector, known.unmask) == (index, vector, true);
        let Some(known) = self.vectors.iter().find(known) else { return };
        // Non-blocking, and far from full.
        let _ = rustix::io::write(&known.fd, &count.to_ne_bytes());
        if let Some(file) = &self.file {
            for fd in file.unmask_fds() {
                file.unmask_signalled(&fd);
            }
        }
    }

    /// What the device has done that nobody asked for: vectors and how often they were signalled,
    /// and the number of replies and DMA messages.
    pub(super) fn left_over(&mut self) -> (Vec<(u32, u32, u64)>, usize, usize) {
        let mut signals = Vec::new();
        for known in self.vectors.iter_mut().filter(|known| !known.unmask) {
            known.taken += read_count(&known.fd);
            if known.taken > 0 {
                signals.push((known.index, known.vector, known.taken));
            }
        }
        let mut messages = 0;
        while self.dma.next_message(Instant::now()).is_some() {
            messages += 1;
        }
        (signals, self.replies.len(), messages)
    }

    /// Keeps the eventfds of a DEVICE_SET_IRQS.
    fn keep_vectors(&mut self, message: &[u8], names: &[u32]) -> anyhow::Result<()> {
        let Some(payload) = payload_of(message, Command::DeviceSetIrqs) else { return Ok(()) };
        let Ok((set, _)) = IrqSet::read_from_prefix(payload) else { return Ok(()) };
        let unmask = set.flags & irq_flag::ACTION_UNMASK != 0;
        let trigger = set.flags & irq_flag::ACTION_TRIGGER != 0;
        let eventfds = set.flags & irq_flag::DATA_EVENTFD != 0;
        let range = set.start..set.start.saturating_add(set.count);
        if (trigger && set.count == 0) || (eventfds && (trigger || unmask)) {
            self.vectors.retain(|known| {
                let same = range.contains(&known.vector) && known.unmask == unmask;
                known.index != set.index || !(set.count == 0 || same)
            });
        }
        for (vector, name) in range.zip(names) {
            let fd = self.fds.get(name).ok_or_else(|| anyhow!("a descriptor that is not there"))?;
            let fd = Arc::new(fd.try_clone().context("cannot duplicate an eventfd")?);
            self.vectors.push(Vector { index: set.index, vector, unmask, fd, taken: 0 });
        }
        Ok(())
    }

    /// Saves everything, drops it, and builds it again from what was saved. Not while DMA or a
    /// task of the device runs: a restored task would send its DMA messages again.
    pub(super) fn rebuild(&mut self) -> anyhow::Result<()> {
        let works = !self.device.registration.device().status().tasks.is_empty();
        if works || !self.dma.is_idle() {
            return Ok(());
        }
        let text = serde_json::to_string(&self.connection)?;
        self.connection = serde_json::from_str(&text).context("the protocol's state")?;
        self.dma = self.dma.rebuilt().context("the state of DMA messages")?;
        let Some(file) = self.file.take() else { return Ok(()) };
        let peer: Arc<dyn DmaPeer> = self.dma.clone();
        let mut table = DescriptorTable::new().with_peer(peer);
        let device = self.device.registration.device().save(&mut table);
        let text = serde_json::to_string(&device.context("cannot save the device")?)?;
        drop(file);
        self.device = register((self.make)()?)?;
        let saved = serde_json::from_str(&text).context("the device's state")?;
        let files = self.device.registration.device().restore(&saved, None, &mut table);
        let file = files.context("cannot restore the device")?.pop();
        let file = file.context("the restored device has no file")?;
        self.file = Some(file);
        Ok(())
    }
}

fn payload_of(message: &[u8], command: Command) -> Option<&[u8]> {
    let header = Header::parse(message)?;
    let asked = matches!(header.kind(), Kind::Command | Kind::Posted);
    (asked && header.command == command as u16).then(|| &message[HEADER_LEN..])
}

fn read_count(fd: &OwnedFd) -> u64 {
    let mut count = 0u64;
    match rustix::io::read(fd, count.as_mut_bytes()) {
        Ok(_) => count,
        Err(_) => 0,
    }
}
