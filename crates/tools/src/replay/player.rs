//! Plays the client of a captured session to a device, without a socket and on one thread: the
//! device's tasks run here, between the client's messages and while the device is waited for.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd};
use vfiod_core::dma::DmaPeer;
use vfiod_core::{
    Device, DeviceSpec, Errno, Error, File, InputEntry, InputPlace, Owner, ReadEffect, ReadTraits,
    RegionIndex, Registration, Registry, Token,
};
use vfiod_protocol::{Call, Connection, Descriptors, Event, Request};
use vfiod_server::{ClientLink, Target, now};
use vfiod_tasks::Runtime;
use vfiod_wire::payload::{IrqSet, RegionAccess, irq_flag};
use vfiod_wire::{Command, HEADER_LEN, Header, Kind};
use zerocopy::{FromBytes, IntoBytes};

use super::channel::Channel;
use super::saved::{Found, Images, Text};
use crate::capture::format::Event as Captured;
use crate::capture::withhold;

/// How long after it has once not done in time what the capture has.
const SHORT_TIMEOUT: Duration = Duration::from_millis(100);

/// How long a register may take to get the value that it had.
const SETTLE: Duration = Duration::from_millis(200);

/// The time between two looks at a register.
const PAUSE: Duration = Duration::from_millis(1);

/// Every how many rebuilds the device is saved as text where its images would do.
const TEXTS: usize = 8;

/// A DMA message that the capture has and the device has not sent.
pub(super) enum Unsent {
    /// It has sent nothing.
    Nothing,
    /// It has sent another one.
    Other,
}

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
    /// The VF token that the configuration presents for clients.
    token: Option<Token>,
    /// Input that arrived after the device was opened. Calls are counted from there.
    inputs: Option<Vec<InputEntry>>,
    /// Before the registration, which waits for its end.
    file: Option<File>,
    device: Registered,
    connection: Connection<u32>,
    dma: Arc<Channel>,
    /// Eventfds on their way to the device, by the names that the protocol has for them.
    fds: HashMap<u32, OwnedFd>,
    next_fd: u32,
    vectors: Vec<Vector>,
    /// How long the device may take for a signal or a DMA message that the capture has.
    timeout: Duration,
    /// The last register that did not get a value in time, and this value.
    missed: Option<(RegionAccess, Vec<u8>)>,
    /// The last text that was saved.
    text: Option<Text>,
    /// How often the device was built again.
    pub(super) rebuilds: usize,
    /// The device finishes what it has begun before it can be saved as text.
    finishes_requests: bool,
    /// How often the device could not be saved, because it waited for the client.
    pub(super) rebuilds_skipped: usize,
    /// Replies of the device, as the captured client would have got them.
    replies: VecDeque<Vec<u8>>,
}

struct Link<'a>(&'a Arc<Channel>);

impl ClientLink for Link<'_> {
    type Fd = u32;

    fn name(&self, fds: Vec<OwnedFd>) -> Result<Vec<u32>, Error> {
        // Descriptors for the client are withheld.
        Ok(vec![0; fds.len()])
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

/// The device, and what runs its tasks.
struct Registered {
    registration: Registration,
    runtime: Runtime,
}

fn register(device: Box<dyn Device>) -> anyhow::Result<Registered> {
    let spec = DeviceSpec { name: "replay".to_owned(), ..DeviceSpec::default() };
    let registry = Registry::new();
    let registration = registry.register(spec, device).context("cannot register the device")?;
    Ok(Registered { registration, runtime: registry.runtime().clone() })
}

impl Player {
    /// `inputs` is what the device got from outside, if that was recorded. The device may take `timeout`
    /// for a signal or a DMA message that the capture has.
    pub(super) fn new(
        make: Make,
        token: Option<Token>,
        inputs: Option<Vec<InputEntry>>,
        timeout: Duration,
    ) -> anyhow::Result<Self> {
        let device = register(make()?)?;
        let inputs = inputs.map(|mut inputs| {
            let later = inputs.iter().position(|input| input.place != InputPlace::Before);
            let later = inputs.split_off(later.unwrap_or(inputs.len()));
            device.registration.device().input_log().start_replay(0, inputs);
            later
        });
        Ok(Self {
            device,
            make,
            token,
            inputs,
            file: None,
            connection: Connection::default(),
            dma: Channel::new(1 << 20),
            fds: HashMap::new(),
            next_fd: 0,
            vectors: Vec::new(),
            timeout,
            missed: None,
            text: None,
            rebuilds: 0,
            finishes_requests: false,
            rebuilds_skipped: 0,
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
    ///
    /// A device may also be ahead of the captured one, whose client has read the old value many times: a
    /// value that did not come is waited for again only when the client has sent something else than
    /// reads.
    pub(super) fn settle(&mut self, access: &RegionAccess, captured: &[u8]) {
        let awaited = (*access, captured.to_vec());
        if self.missed.as_ref() == Some(&awaited) {
            return;
        }
        let region = RegionIndex(access.region);
        let Some(file) = &self.file else { return };
        let device = self.device.registration.device();
        let traits = device.read_traits(region, access.offset, captured.len());
        let pure = |traits: ReadTraits| traits.effect == ReadEffect::None && traits.volatile != 0;
        if captured.len() > 8 || !traits.is_ok_and(pure) {
            return;
        }
        let mut data = [0; 8];
        let data = &mut data[..captured.len()];
        let deadline = Instant::now() + SETTLE;
        while file.read(region, access.offset, data).is_ok()
            && data != captured
            && Instant::now() < deadline
        {
            self.wait_for_work(PAUSE.min(deadline.saturating_duration_since(Instant::now())), None);
        }
        if data != captured {
            self.missed = Some(awaited);
        }
    }

    /// Runs the device's tasks, and waits until there is more to do for them or `event` is readable,
    /// or until the time is up.
    fn wait_for_work(&self, time: Duration, event: Option<&OwnedFd>) {
        let runtime = &self.device.runtime;
        if runtime.run() {
            return;
        }
        let fd = runtime.fd();
        let mut fds = vec![PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        fds.extend(event.map(|event| PollFd::new(event, PollFlags::IN)));
        let tv_nsec = time.subsec_nanos().into();
        let timeout = Timespec { tv_sec: time.as_secs() as i64, tv_nsec };
        // Whatever it says, the caller looks at what it waits for.
        let _ = rustix::event::poll(&mut fds, Some(&timeout));
    }

    /// Runs the device's tasks until `look` finds something, or the time for that is up, and then for a shorter time.
    fn wait_for<R>(&mut self, look: impl Fn(&Channel) -> Option<R>) -> Option<R> {
        let deadline = Instant::now() + self.timeout;
        loop {
            self.device.runtime.run();
            let found = look(&self.dma);
            let left = deadline.saturating_duration_since(Instant::now());
            if found.is_some() {
                return found;
            }
            if left.is_zero() {
                self.timeout = self.timeout.min(SHORT_TIMEOUT);
                return None;
            }
            self.wait_for_work(left, None);
        }
    }

    /// The capture goes on with a message of the client.
    pub(super) fn client_speaks(&self) {
        self.dma.client_speaks();
    }

    /// The client's next message, to which eventfds belong.
    pub(super) fn client(&mut self, message: &[u8], eventfds: u8) -> anyhow::Result<()> {
        let command =
            Header::parse(message).and_then(|header| Command::from_number(header.command));
        if command != Some(Command::RegionRead) {
            self.missed = None;
        }
        let mut names = Vec::new();
        for _ in 0..eventfds {
            let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
            let fd = eventfd(0, flags).context("cannot make an eventfd")?;
            self.fds.insert(self.next_fd, fd);
            names.push(self.next_fd);
            self.next_fd += 1;
        }
        self.keep_vectors(message, &names)?;
        if calls_device(message) {
            self.replay_inputs();
        }
        let descriptors = Descriptors { fds: names, truncated: false };
        self.connection.receive(message, descriptors, now())?;
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
                        match device.open_with(owner, token.map(Token).or(self.token)) {
                            Ok(file) => {
                                self.file = Some(file);
                                if let Some(inputs) = self.inputs.take() {
                                    device.input_log().start_replay(0, inputs);
                                }
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
        // Those that no request has taken.
        self.fds.clear();
        self.take_replies();
        self.device.runtime.run();
        Ok(())
    }

    /// Gives the device the input that it got before its next call.
    pub(super) fn replay_inputs(&self) {
        self.device.registration.device().input_log().replay_due();
        self.device.runtime.run();
    }

    /// Whether playing an event may have changed the device. Nothing happens to it by a reply, which was
    /// there before.
    pub(super) fn may_have_changed(&self, event: &Captured) -> bool {
        match event {
            Captured::Client { .. } | Captured::Signal(_) | Captured::Unmask(_) => true,
            Captured::Server { message } => {
                Header::parse(message).is_some_and(|header| header.kind() == Kind::Command)
            }
            Captured::Inputs(_) | Captured::End => false,
        }
    }

    /// How often the device was called, as far as it counts.
    pub(super) fn calls(&self) -> u64 {
        self.device.registration.device().input_log().calls()
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

    /// Takes the device's DMA message that the capture has, if it comes in time.
    pub(super) fn dma_message(&mut self, captured: &Header, payload: &[u8]) -> Result<(), Unsent> {
        let found = self.wait_for(|dma| dma.take_message(captured, payload));
        found.ok_or_else(|| match self.dma.drop_message() {
            Some(()) => Unsent::Other,
            None => Unsent::Nothing,
        })
    }

    /// The client's reply to a DMA message of the device, which had the id of that message.
    pub(super) fn dma_reply(&mut self, header: Header, payload: &[u8]) -> anyhow::Result<()> {
        if !self.dma.awaits_reply(header.id) {
            // The device has not sent the message, and that was reported.
            return Ok(());
        }
        match self.wait_for(|dma| dma.reply(header, payload)) {
            Some(header) => self.client(&[header.as_bytes(), payload].concat(), 0),
            // The rebuilt device does without.
            None => Ok(()),
        }
    }

    /// Waits until the device has signalled a vector as often as it did before. Returns how often
    /// it has if that is less.
    pub(super) fn wait_for_signals(
        &mut self,
        index: u32,
        vector: u32,
        count: u64,
    ) -> Result<(), u64> {
        let deadline = Instant::now() + self.timeout;
        let is_it =
            |known: &Vector| (known.index, known.vector, known.unmask) == (index, vector, false);
        let Some(at) = self.vectors.iter().position(is_it) else { return Err(0) };
        loop {
            self.device.runtime.run();
            let known = &mut self.vectors[at];
            known.taken += read_count(&known.fd);
            if known.taken >= count {
                known.taken -= count;
                return Ok(());
            }
            // It may be what input causes.
            self.replay_inputs();
            let known = &mut self.vectors[at];
            known.taken += read_count(&known.fd);
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.timeout = self.timeout.min(SHORT_TIMEOUT);
                return Err(std::mem::take(&mut known.taken));
            }
            let event = known.fd.clone();
            if known.taken >= count {
                continue;
            }
            self.wait_for_work(left, Some(&event));
        }
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
        self.replay_inputs();
        let mut signals = Vec::new();
        for known in self.vectors.iter_mut().filter(|known| !known.unmask) {
            known.taken += read_count(&known.fd);
            if known.taken > 0 {
                signals.push((known.index, known.vector, known.taken));
            }
        }
        (signals, self.replies.len(), self.dma.left_over())
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

    /// Saves everything, drops it, and builds it again from what was saved: from the device's images,
    /// which go with the last text, or from a new text if clients have set up something since, and
    /// every [`TEXTS`] times. Counted and skipped while the device, asked to quiesce for a new text,
    /// finishes a request for DMA that waits for the client.
    pub(super) fn rebuild(&mut self) -> anyhow::Result<()> {
        let text = serde_json::to_string(&self.connection)?;
        self.connection = serde_json::from_str(&text).context("the protocol's state")?;
        let Some(file) = self.file.take() else { return Ok(()) };
        self.dma.forget_ended();
        let device = self.device.registration.device();
        let mut images = Some(Images::save(device).context("cannot save the device's images")?);
        let setup = images.as_ref().map(Images::setup);
        let has_text = self.text.as_ref().is_some_and(|text| Some(text.setup) == setup);
        let waits = self.finishes_requests && self.dma.awaits_replies();
        if !has_text || (self.rebuilds.is_multiple_of(TEXTS) && !waits) {
            match Text::save(device) {
                Ok(text) => {
                    self.text = Some(text);
                    images = None;
                }
                // It finishes what it has begun, for which it needs a reply that the capture has later.
                Err(error) if error.errno() == Errno::BUSY && self.dma.awaits_replies() => {
                    self.finishes_requests = true;
                    if !has_text {
                        self.file = Some(file);
                        self.rebuilds_skipped += 1;
                        return Ok(());
                    }
                }
                Err(error) => return Err(error).context("cannot save the device"),
            }
        }
        let text = self.text.as_mut().context("no text of the device")?;
        self.dma = self.dma.rebuilt().context("the state of DMA messages")?;
        drop(file);
        let log = device.input_log();
        let replayed = log.is_replaying().then(|| log.take_replay());
        self.device = register((self.make)()?)?;
        let device = self.device.registration.device();
        if let Some((calls, inputs)) = replayed {
            device.input_log().start_replay(calls, inputs);
        }
        let mut found = Found { table: &mut text.table, peer: self.dma.clone() };
        let images = images.as_ref().map(Images::borrow).unwrap_or_default();
        let files = device.restore_images(&text.saved, images, &mut found);
        let file = files.context("cannot restore the device")?.pop();
        self.file = Some(file.context("the restored device has no file")?);
        self.dma.forget_all_but(&device.status().tasks);
        self.rebuilds += 1;
        Ok(())
    }
}

/// Whether a message causes calls of the device.
fn calls_device(message: &[u8]) -> bool {
    let command = Header::parse(message).and_then(|header| Command::from_number(header.command));
    matches!(
        command,
        Some(
            Command::RegionRead
                | Command::RegionWrite
                | Command::RegionWriteMulti
                | Command::DeviceReset
        )
    )
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
