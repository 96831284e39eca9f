//! The client: negotiation, and a method for every command.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use vfiod_wire::payload::{
    DeviceInfo, DmaAccess, DmaMap, DmaUnmap, Feature, HotReset, IoFd, IrqInfo, IrqSet, MultiWrite,
    RegionAccess, RegionInfo, RegionIoFds, SpaceOf, dma_flag, feature_flag, irq_flag,
};
use vfiod_wire::set::{self, SetInfo};
use vfiod_wire::space;
use vfiod_wire::{Capabilities, Command, Header, Kind, RegionReply, TwinSocket, Version};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::error::{Error, Result};
use crate::memory::GuestMemory;
use crate::socket::{RawMessage, Socket};

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long a call waits for its reply.
    pub timeout: Duration,
    /// What to propose.
    pub capabilities: Capabilities,
    /// Where the server's DMA messages go; without, they are refused with `EFAULT`.
    pub memory: Option<GuestMemory>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(5),
            capabilities: Capabilities {
                max_msg_fds: Some(16),
                max_data_xfer_size: Some(1 << 20),
                max_dma_maps: Some(65535),
                pgsizes: Some(4096),
                write_multiple: Some(true),
                ..Capabilities::default()
            },
            memory: None,
        }
    }
}

impl Options {
    /// Offers a second socket for the server's commands.
    #[must_use]
    pub fn twin_socket(mut self) -> Self {
        self.capabilities.twin_socket = Some(TwinSocket { supported: true, fd_index: None });
        self
    }

    /// Asks whether the server knows vfiod's own features (`vfiod_wire::set`).
    #[must_use]
    pub fn vfiod_features(mut self) -> Self {
        self.capabilities.vfiod_features = Some(true);
        self
    }

    /// Presents a VF token, a UUID.
    #[must_use]
    pub fn vf_token(mut self, token: &str) -> Self {
        self.capabilities.vf_token = Some(token.to_owned());
        self
    }

    /// Serves the server's DMA messages from this memory.
    #[must_use]
    pub fn memory(mut self, memory: GuestMemory) -> Self {
        self.memory = Some(memory);
        self
    }
}

/// A region as the server describes it.
#[derive(Debug)]
pub struct Region {
    /// The description.
    pub reply: RegionReply,
    /// What to map, where it can be.
    pub fd: Option<OwnedFd>,
}

/// The reply to a command that was submitted.
#[derive(Debug)]
pub struct Reply {
    /// What the server sent behind the header.
    pub payload: Vec<u8>,
    /// Descriptors that came along.
    pub fds: Vec<OwnedFd>,
}

/// What SET_IRQS does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqAction {
    /// Hold back.
    Mask,
    /// Let through.
    Unmask,
    /// Signal, or set up.
    Trigger,
}

/// What comes with a SET_IRQS.
#[derive(Clone, Copy, Debug)]
pub enum IrqData<'a> {
    /// The action on every vector.
    None,
    /// The action where the byte is not 0.
    Bool(&'a [u8]),
    /// Eventfds; none to take them away.
    EventFds(&'a [BorrowedFd<'a>]),
}

/// A connection to a server.
#[derive(Debug)]
pub struct Client {
    socket: Socket,
    twin: Option<Socket>,
    options: Options,
    server: Version,
    next_id: u16,
    /// Commands without a reply, by id.
    open: HashMap<u16, VecDeque<Command>>,
    /// Replies that no call has taken yet.
    arrived: Vec<(u16, Command, RawMessage)>,
}

impl Client {
    /// Connects and negotiates with the options that most clients have.
    ///
    /// # Errors
    /// See [`Client::with_socket`].
    pub fn connect(path: impl AsRef<Path>) -> Result<Self> {
        Self::connect_with(path, Options::default())
    }

    /// Connects and negotiates.
    ///
    /// # Errors
    /// See [`Client::with_socket`].
    pub fn connect_with(path: impl AsRef<Path>, options: Options) -> Result<Self> {
        Self::with_socket(Socket::connect(path, options.timeout)?, options)
    }

    /// Negotiates on a connected socket.
    ///
    /// # Errors
    /// [`Error::Remote`]: the server does not want us (`EBUSY`, `EINVAL`: the device is open);
    /// [`Error::Protocol`]: it does not speak vfio-user 0.x.
    pub fn with_socket(socket: Socket, options: Options) -> Result<Self> {
        let proposed = Version { major: 0, minor: 0, capabilities: options.capabilities.clone() };
        let mut client = Self {
            socket,
            twin: None,
            server: Version::default(),
            next_id: 0,
            open: HashMap::new(),
            arrived: Vec::new(),
            options,
        };
        let mut reply = client.call(Command::Version, &proposed.encode(), &[])?;
        let server = Version::decode(&reply.payload)
            .map_err(|error| Error::Protocol(format!("its VERSION: {error}")))?;
        if server.major != 0 {
            return Err(Error::Protocol(format!("version {}.{}", server.major, server.minor)));
        }
        if let Some(TwinSocket { supported: true, fd_index }) = server.capabilities.twin_socket {
            let index = fd_index.unwrap_or(u32::MAX) as usize;
            if index >= reply.fds.len() {
                return Err(Error::Protocol("a second socket without its descriptor".to_owned()));
            }
            let fd = reply.fds.swap_remove(index);
            client.twin = Some(Socket::from_fd(fd, client.options.timeout)?);
        }
        client.server = server;
        Ok(client)
    }

    /// What the server said in the negotiation.
    pub fn server(&self) -> &Version {
        &self.server
    }

    /// The socket, to misbehave on.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The second socket, to misbehave on.
    pub fn twin(&self) -> Option<&Socket> {
        self.twin.as_ref()
    }

    /// Whether there is a second socket for the server's commands.
    pub fn has_twin_socket(&self) -> bool {
        self.twin.is_some()
    }

    /// Ends the connection so that the server sees nothing but its end: what it still sends is read
    /// until it has closed, for at most `timeout`. A socket that is closed with unread bytes resets the
    /// connection, which not every server survives.
    pub fn close(self, timeout: Duration) {
        let end = Instant::now() + timeout;
        for socket in self.twin.iter().chain([&self.socket]) {
            if rustix::net::shutdown(socket, rustix::net::Shutdown::Write).is_err() {
                continue;
            }
            let mut buffer = [0; 4096];
            loop {
                let left = end.saturating_duration_since(Instant::now());
                let Ok(left) = Timespec::try_from(left) else { break };
                let mut fds = [PollFd::new(socket, PollFlags::IN)];
                match rustix::event::poll(&mut fds, Some(&left)) {
                    Ok(count) if count > 0 => {}
                    _ => break,
                }
                match socket.receive(&mut buffer, &mut Vec::new()) {
                    Ok(count) if count > 0 => {}
                    _ => break,
                }
            }
        }
    }

    /// Sends a command without waiting for its reply; see [`Client::complete`].
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Timeout`], [`Error::Io`].
    pub fn submit(
        &mut self,
        command: Command,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<u16> {
        let id = self.send(command, payload, fds, false)?;
        self.open.entry(id).or_default().push_back(command);
        Ok(id)
    }

    /// Sends a command that gets no reply.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Timeout`], [`Error::Io`].
    pub fn post(&mut self, command: Command, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.send(command, payload, fds, true).map(|_| ())
    }

    fn send(
        &mut self,
        command: Command,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
        posted: bool,
    ) -> Result<u16> {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let header = Header::command(id, command, payload.len(), posted);
        let mut message = header.as_bytes().to_vec();
        message.extend_from_slice(payload);
        self.socket.send(&message, fds)?;
        Ok(id)
    }

    /// Waits for the reply to a command that was submitted.
    ///
    /// # Errors
    /// [`Error::Remote`] if the server refused it; otherwise the connection is of no more use.
    pub fn complete(&mut self, id: u16) -> Result<Reply> {
        let deadline = Instant::now() + self.options.timeout;
        loop {
            if let Some(at) = self.arrived.iter().position(|(arrived, ..)| *arrived == id) {
                let (_, command, message) = self.arrived.remove(at);
                return match message.header.kind() {
                    Kind::Reply(Ok(())) => Ok(Reply { payload: message.payload, fds: message.fds }),
                    Kind::Reply(Err(errno)) => Err(Error::Remote { command, errno }),
                    _ => Err(Error::Protocol("a reply of another kind".to_owned())),
                };
            }
            self.progress(deadline)?;
        }
    }

    /// Sends a command and waits for its reply.
    ///
    /// # Errors
    /// As [`Client::submit`] and [`Client::complete`].
    pub fn call(
        &mut self,
        command: Command,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Reply> {
        let id = self.submit(command, payload, fds)?;
        self.complete(id)
    }

    fn call_for<T: FromBytes + KnownLayout + Immutable>(
        &mut self,
        command: Command,
        payload: &[u8],
    ) -> Result<(T, Reply)> {
        let reply = self.call(command, payload, &[])?;
        let Ok((fixed, _)) = T::read_from_prefix(&reply.payload) else {
            let len = reply.payload.len();
            return Err(Error::Protocol(format!(
                "the reply to {} has {len} bytes",
                command.name()
            )));
        };
        Ok((fixed, reply))
    }

    /// Serves DMA messages until none has come for `idle`.
    ///
    /// # Errors
    /// As [`Client::complete`].
    pub fn serve_dma(&mut self, idle: Duration) -> Result<()> {
        loop {
            match self.progress(Instant::now() + idle) {
                Ok(()) => {}
                Err(Error::Timeout) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Receives one message, from whichever socket has one, and deals with it. Returns without one
    /// if a signal interrupts it.
    fn progress(&mut self, deadline: Instant) -> Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let socket = PollFd::new(&self.socket, PollFlags::IN);
        let mut fds = vec![socket];
        if let Some(twin) = &self.twin {
            fds.push(PollFd::new(twin, PollFlags::IN));
        }
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(()),
            Err(errno) => return Err(Error::io("cannot wait for the server", errno)),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let from_twin = match (ready.first(), ready.get(1)) {
            (_, Some(true)) => true,
            (Some(true), _) => false,
            _ => return Err(Error::Timeout),
        };
        let source = if from_twin { self.twin.as_ref() } else { None }.unwrap_or(&self.socket);
        let message = source.receive_message()?;
        match message.header.kind() {
            Kind::Reply(_) => self.arrive(message),
            Kind::Command | Kind::Posted => self.serve(&message, from_twin),
            Kind::Unknown => Err(Error::Protocol("a message of unknown type".to_owned())),
        }
    }

    fn arrive(&mut self, message: RawMessage) -> Result<()> {
        let id = message.header.id;
        let open = self.open.get_mut(&id).and_then(VecDeque::pop_front);
        let Some(command) = open else {
            return Err(Error::Protocol(format!("a reply to message {id}, which was not sent")));
        };
        if message.header.command != command as u16 {
            return Err(Error::Protocol(format!(
                "a reply to {} of another command",
                command.name()
            )));
        }
        self.arrived.push((id, command, message));
        Ok(())
    }

    /// Serves a DMA message.
    fn serve(&mut self, message: &RawMessage, from_twin: bool) -> Result<()> {
        let mut reply_bytes = Vec::new();
        match self.dma(message) {
            Some((access, data)) => {
                reply_bytes.extend_from_slice(
                    message.header.reply(DmaAccess::LEN + data.len()).as_bytes(),
                );
                reply_bytes.extend_from_slice(access.as_bytes());
                reply_bytes.extend_from_slice(&data);
            }
            None => reply_bytes.extend_from_slice(message.header.error(14, 0).as_bytes()), // EFAULT
        }
        let target = if from_twin { self.twin.as_ref() } else { None }.unwrap_or(&self.socket);
        if message.header.kind() == Kind::Posted { Ok(()) } else { target.send(&reply_bytes, &[]) }
    }

    fn dma(&self, message: &RawMessage) -> Option<(DmaAccess, Vec<u8>)> {
        let memory = self.options.memory.as_ref()?;
        let (access, data) = DmaAccess::read_from_prefix(&message.payload).ok()?;
        let offset = memory.translate(access.address, access.count)?;
        match Command::from_number(message.header.command)? {
            Command::DmaRead if data.is_empty() && access.count <= 1 << 20 => {
                let mut read = vec![0; access.count as usize];
                memory.read(offset, &mut read).ok()?;
                Some((access, read))
            }
            Command::DmaWrite if data.len() as u64 == access.count => {
                memory.write(offset, data).ok()?;
                Some((access, Vec::new()))
            }
            _ => None,
        }
    }
}

/// The commands.
impl Client {
    /// DEVICE_GET_INFO.
    ///
    /// # Errors
    /// As [`Client::call`]; so for all commands.
    pub fn device_info(&mut self) -> Result<DeviceInfo> {
        let info = DeviceInfo { argsz: DeviceInfo::LEN as u32, ..DeviceInfo::default() };
        Ok(self.call_for(Command::DeviceGetInfo, info.as_bytes())?.0)
    }

    /// DEVICE_GET_REGION_INFO, repeated with more room where the capabilities need it.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn region_info(&mut self, index: u32) -> Result<Region> {
        let mut argsz = RegionInfo::LEN as u32;
        loop {
            let info = RegionInfo { argsz, index, ..RegionInfo::default() };
            let (info, mut reply): (RegionInfo, _) =
                self.call_for(Command::DeviceGetRegionInfo, info.as_bytes())?;
            if info.argsz > argsz && info.argsz <= 1 << 20 {
                argsz = info.argsz;
                continue;
            }
            let decoded = vfiod_wire::decode_region_info(&reply.payload)
                .map_err(|error| Error::Protocol(error.to_string()))?;
            return Ok(Region { reply: decoded, fd: reply.fds.pop() });
        }
    }

    /// DEVICE_GET_REGION_IO_FDS: the sub-regions, and their descriptors.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn region_io_fds(&mut self, index: u32) -> Result<(Vec<IoFd>, Vec<OwnedFd>)> {
        let request = RegionIoFds { argsz: 1 << 16, index, ..RegionIoFds::default() };
        let (_, reply): (RegionIoFds, _) =
            self.call_for(Command::DeviceGetRegionIoFds, request.as_bytes())?;
        let entries = reply.payload[RegionIoFds::LEN..].chunks_exact(IoFd::LEN);
        Ok((entries.filter_map(|entry| IoFd::read_from_bytes(entry).ok()).collect(), reply.fds))
    }

    /// DEVICE_GET_IRQ_INFO.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn irq_info(&mut self, index: u32) -> Result<IrqInfo> {
        let info = IrqInfo { argsz: IrqInfo::LEN as u32, index, ..IrqInfo::default() };
        Ok(self.call_for(Command::DeviceGetIrqInfo, info.as_bytes())?.0)
    }

    /// DEVICE_SET_IRQS.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn set_irqs(
        &mut self,
        index: u32,
        start: u32,
        count: u32,
        action: IrqAction,
        data: IrqData<'_>,
    ) -> Result<()> {
        let action = match action {
            IrqAction::Mask => irq_flag::ACTION_MASK,
            IrqAction::Unmask => irq_flag::ACTION_UNMASK,
            IrqAction::Trigger => irq_flag::ACTION_TRIGGER,
        };
        let (kind, bytes, fds): (_, &[u8], &[BorrowedFd<'_>]) = match data {
            IrqData::None => (irq_flag::DATA_NONE, &[], &[]),
            IrqData::Bool(bytes) => (irq_flag::DATA_BOOL, bytes, &[]),
            IrqData::EventFds(fds) => (irq_flag::DATA_EVENTFD, &[], fds),
        };
        let argsz = (IrqSet::LEN + bytes.len()) as u32;
        let set = IrqSet { argsz, flags: kind | action, index, start, count };
        let mut payload = set.as_bytes().to_vec();
        payload.extend_from_slice(bytes);
        self.call(Command::DeviceSetIrqs, &payload, fds).map(|_| ())
    }

    /// REGION_READ.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<()> {
        let access = RegionAccess { offset, region, count: data.len() as u32 };
        let reply = self.call(Command::RegionRead, access.as_bytes(), &[])?;
        match reply.payload.get(RegionAccess::LEN..) {
            Some(bytes) if bytes.len() == data.len() => {
                data.copy_from_slice(bytes);
                Ok(())
            }
            _ => Err(Error::Protocol("the reply to REGION_READ has another length".to_owned())),
        }
    }

    /// REGION_WRITE.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<()> {
        let payload = write_payload(region, offset, data);
        self.call(Command::RegionWrite, &payload, &[]).map(|_| ())
    }

    /// A REGION_WRITE that gets no reply.
    ///
    /// # Errors
    /// As [`Client::post`].
    pub fn region_post(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<()> {
        self.post(Command::RegionWrite, &write_payload(region, offset, data), &[])
    }

    /// REGION_WRITE_MULTI: how many were done.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn region_write_multi(&mut self, writes: &[MultiWrite]) -> Result<u64> {
        let mut payload = (writes.len() as u64).as_bytes().to_vec();
        payload.extend_from_slice(writes.as_bytes());
        Ok(self.call_for(Command::RegionWriteMulti, &payload)?.0)
    }

    /// DEVICE_RESET.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn reset(&mut self) -> Result<()> {
        self.call(Command::DeviceReset, &[], &[]).map(|_| ())
    }

    /// DMA_MAP, readable and writeable, of all or part of a file; without one, the server
    /// reaches the memory by messages.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn dma_map(
        &mut self,
        iova: u64,
        size: u64,
        file: Option<(BorrowedFd<'_>, u64)>,
    ) -> Result<()> {
        self.dma_map_with(iova, size, dma_flag::READ | dma_flag::WRITE, file)
    }

    /// DMA_MAP with flags of one's own.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn dma_map_with(
        &mut self,
        iova: u64,
        size: u64,
        flags: u32,
        file: Option<(BorrowedFd<'_>, u64)>,
    ) -> Result<()> {
        let offset = file.map_or(0, |(_, offset)| offset);
        let map = DmaMap { argsz: DmaMap::LEN as u32, flags, offset, address: iova, size };
        let fds: Vec<_> = file.iter().map(|(fd, _)| fd.as_fd()).collect();
        self.call(Command::DmaMap, map.as_bytes(), &fds).map(|_| ())
    }

    /// DMA_UNMAP of everything in a range.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn dma_unmap(&mut self, iova: u64, size: u64) -> Result<()> {
        let unmap = DmaUnmap { argsz: DmaUnmap::LEN as u32, flags: 0, address: iova, size };
        self.call(Command::DmaUnmap, unmap.as_bytes(), &[]).map(|_| ())
    }

    /// DMA_UNMAP of everything.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn dma_unmap_all(&mut self) -> Result<()> {
        let flags = dma_flag::UNMAP_ALL;
        let unmap = DmaUnmap { argsz: DmaUnmap::LEN as u32, flags, ..DmaUnmap::default() };
        self.call(Command::DmaUnmap, unmap.as_bytes(), &[]).map(|_| ())
    }

    /// DEVICE_FEATURE: succeeds if the server has the feature and what is asked of it.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn feature_probe(&mut self, index: u16, get: bool, set: bool) -> Result<()> {
        let mut flags = u32::from(index) | feature_flag::PROBE;
        flags |= if get { feature_flag::GET } else { 0 };
        flags |= if set { feature_flag::SET } else { 0 };
        self.feature(flags, &[]).map(|_| ())
    }

    /// DEVICE_FEATURE: the data of a feature.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn feature_get(&mut self, index: u16, argument: &[u8]) -> Result<Vec<u8>> {
        self.feature(u32::from(index) | feature_flag::GET, argument)
    }

    /// DEVICE_FEATURE: sets a feature.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn feature_set(&mut self, index: u16, data: &[u8]) -> Result<()> {
        self.feature(u32::from(index) | feature_flag::SET, data).map(|_| ())
    }

    /// Who is reset together with the device (`vfiod_wire::set`); refused with `ENOTTY` by a
    /// server that does not know it.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn hot_reset_info(&mut self) -> Result<SetInfo> {
        let data = self.feature_get(set::HOT_RESET_INFO, &[])?;
        SetInfo::decode(&data).map_err(|error| Error::Protocol(error.to_string()))
    }

    /// Resets the device's whole set (`vfiod_wire::set`, where the errors are).
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn hot_reset(&mut self) -> Result<()> {
        self.feature_set(set::HOT_RESET, HotReset::default().as_bytes())
    }

    /// The numbers by which [`Client::join_space`] of another client finds this one's address space
    /// (`vfiod_wire::space`); refused with `ENOTTY` by a server that does not know it.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn space(&mut self) -> Result<SpaceOf> {
        let data = self.feature_get(space::SPACE, &[])?;
        space::decode(&data).map_err(|error| Error::Protocol(error.to_string()))
    }

    /// Attaches the device to the address space of another client's device (`vfiod_wire::space`,
    /// where the errors are).
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn join_space(&mut self, other: SpaceOf) -> Result<()> {
        self.feature_set(space::SPACE, other.as_bytes())
    }

    fn feature(&mut self, flags: u32, data: &[u8]) -> Result<Vec<u8>> {
        let mut payload = Feature { argsz: 1 << 20, flags }.as_bytes().to_vec();
        payload.extend_from_slice(data);
        let (_, reply): (Feature, _) = self.call_for(Command::DeviceFeature, &payload)?;
        Ok(reply.payload[Feature::LEN..].to_vec())
    }
}

fn write_payload(region: u32, offset: u64, data: &[u8]) -> Vec<u8> {
    let access = RegionAccess { offset, region, count: data.len() as u32 };
    let mut payload = access.as_bytes().to_vec();
    payload.extend_from_slice(data);
    payload
}
