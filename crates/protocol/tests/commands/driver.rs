//! A driver with a device of one region, whose descriptors are numbers.

use std::collections::VecDeque;
use std::time::Duration;

use vfiod_protocol::wire::payload::{DmaAccess, IoFd, SparseArea};
use vfiod_protocol::wire::{Capabilities, Command, FeatureOp, Header, Kind, Version};
use vfiod_protocol::{
    Access, Completed, Connection, Descriptors, DmaRequests, End, Ended, Event, IrqData, Output,
    Refusal, Request, Time,
};
use zerocopy::IntoBytes;

pub(crate) const EINVAL: u32 = 22;
pub(crate) const ENOSYS: u32 = 38;
pub(crate) const EOPNOTSUPP: u32 = 95;
pub(crate) const ETIMEDOUT: u32 = 110;

/// The region, and its size.
pub(crate) const REGION: u32 = 0;
pub(crate) const SIZE: usize = 2 << 20;
/// A write of 8 bytes here reads the client's memory at that address, and a read returns how
/// many transfers have ended.
pub(crate) const DMA: u64 = 0x1000;

/// A message that was sent to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<u32>,
}

impl Sent {
    pub(crate) fn errno(&self) -> Option<u32> {
        match self.header.kind() {
            Kind::Reply(Err(errno)) => Some(errno),
            _ => None,
        }
    }
}

pub(crate) struct Driver {
    pub(crate) connection: Connection<u32>,
    pub(crate) dma: DmaRequests,
    pub(crate) memory: Vec<u8>,
    /// What was asked for, in order.
    pub(crate) log: Vec<String>,
    pub(crate) refusals: Vec<Refusal>,
    pub(crate) ended: Vec<Ended>,
    pub(crate) end: Option<End>,
    /// All that was sent.
    pub(crate) sent: Vec<u8>,
    pub(crate) sent_fds: VecDeque<(usize, Vec<u32>)>,
    /// Requests are left without a reply.
    pub(crate) silent: bool,
    /// Everything is saved and restored after each event.
    pub(crate) rebuilds: bool,
    /// Region accesses are taken by `next_access`.
    pub(crate) takes_accesses: bool,
    pub(crate) now: Time,
}

impl Driver {
    /// Before VERSION.
    pub(crate) fn fresh() -> Self {
        Self {
            connection: Connection::default(),
            dma: DmaRequests::new(1 << 20),
            memory: vec![0; SIZE],
            log: Vec::new(),
            refusals: Vec::new(),
            ended: Vec::new(),
            end: None,
            sent: Vec::new(),
            sent_fds: VecDeque::new(),
            silent: false,
            rebuilds: false,
            takes_accesses: false,
            now: Time(1_000_000_000),
        }
    }

    pub(crate) fn negotiated() -> Self {
        Self::with(Capabilities { max_msg_fds: Some(8), ..Capabilities::default() })
    }

    pub(crate) fn with(capabilities: Capabilities) -> Self {
        let mut driver = Self::fresh();
        driver.feed(&version(capabilities), &[]);
        assert_eq!(driver.take_sent().len(), 1);
        driver.log.clear();
        driver
    }

    /// rust-vmm's client.
    pub(crate) fn rust_vmm() -> Self {
        let json = br#"{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576,"migration":{"pgsize":4096}}}"#;
        let mut driver = Self::fresh();
        driver.feed(&message(0, Command::Version, &[&[0; 4], &json[..]].concat()), &[]);
        assert_eq!(driver.take_sent().len(), 1);
        driver.log.clear();
        driver
    }

    pub(crate) fn feed(&mut self, bytes: &[u8], fds: &[u32]) {
        let descriptors = Descriptors { fds: fds.to_vec(), truncated: false };
        self.connection.receive(bytes, descriptors, self.now).unwrap();
        self.run();
    }

    /// Sends a command, and returns the reply, if there is one.
    pub(crate) fn ask(&mut self, command: Command, payload: &[u8], fds: &[u32]) -> Option<Sent> {
        self.feed(&message(7, command, payload), fds);
        let mut sent = self.take_sent();
        assert!(sent.len() <= 1, "{sent:?}");
        sent.pop()
    }

    pub(crate) fn run(&mut self) {
        loop {
            if self.rebuilds {
                self.rebuild();
            }
            if !self.step() {
                break;
            }
        }
        self.send();
    }

    fn send(&mut self) {
        while let Some(chunk) = self.connection.output().chunk() {
            let len = chunk.bytes.len();
            if !chunk.fds.is_empty() {
                self.sent_fds.push_back((self.sent.len(), chunk.fds.to_vec()));
            }
            self.sent.extend_from_slice(chunk.bytes);
            self.connection.output().sent(len);
        }
    }

    pub(crate) fn rebuild(&mut self) {
        let text = serde_json::to_string(&(&self.connection, &self.dma)).unwrap();
        (self.connection, self.dma) = serde_json::from_str(&text).unwrap();
    }

    fn completed(&mut self, completed: Result<Completed, End>, mut output: Output<u32>) {
        match completed {
            Ok(Completed::Ended(ended)) => self.ended.push(ended),
            Ok(_) => {}
            Err(end) => self.end = Some(end),
        }
        self.connection.output().append(&mut output).unwrap();
    }

    /// One event; `false` if there was none.
    fn step(&mut self) -> bool {
        let access = if self.takes_accesses { self.connection.next_access() } else { None };
        let (request, reply) = match access {
            Some(Access { access, data: Some(data), reply }) => {
                (Request::RegionWrite(access, data), reply)
            }
            Some(Access { access, data: None, reply }) => (Request::RegionRead(access), reply),
            None => match self.connection.next() {
                Ok(Some(Event::Call(call))) => (call.request, call.reply),
                Ok(Some(Event::Refused(refusal))) => {
                    self.refusals.push(refusal);
                    return true;
                }
                Ok(Some(Event::DmaReply(reply))) => {
                    let mut output = Output::default();
                    let completed = self.dma.complete(&reply, &mut output);
                    self.completed(completed, output);
                    return true;
                }
                Ok(None) => {
                    // Replies overtake while a request waits.
                    let Some(reply) = self.connection.next_dma_reply() else { return false };
                    let mut output = Output::default();
                    let completed = self.dma.complete(&reply, &mut output);
                    self.completed(completed, output);
                    return true;
                }
                Err(end) => {
                    self.end = Some(end);
                    return false;
                }
            },
        };
        self.log.push(describe(&request));
        if self.silent && !matches!(request, Request::Version { .. }) {
            return true;
        }
        match request {
            Request::Version { proposed, .. } => {
                reply.negotiated(proposed.wants_twin_socket().then_some(99));
                self.dma = DmaRequests::new(proposed.data_limit());
            }
            Request::RegionRead(access) => {
                let from = access.offset as usize;
                let memory = &self.memory;
                let filled = reply.read(|data| {
                    let bytes = memory.get(from..from.saturating_add(data.len()));
                    data.copy_from_slice(bytes.ok_or(EINVAL)?);
                    Ok(())
                });
                if let Err((errno, reply)) = filled {
                    reply.refuse(errno);
                }
            }
            Request::RegionWrite(access, data) => {
                let from = access.offset as usize;
                match self.memory.get_mut(from..from.saturating_add(data.len())) {
                    Some(bytes) => {
                        bytes.copy_from_slice(data);
                        reply.done();
                    }
                    None => {
                        reply.refuse(EINVAL);
                    }
                }
                if access.offset == DMA && data.len() == 8 {
                    let iova = u64::from_ne_bytes(data.try_into().unwrap());
                    let timeout = Duration::from_secs(2);
                    let output = self.connection.output();
                    self.dma.read(iova, 16, self.now, timeout, output).unwrap();
                }
            }
            Request::RegionWriteMulti(writes) => {
                for write in writes.iter() {
                    let Ok(write) = write else {
                        reply.refuse(EINVAL);
                        return true;
                    };
                    let at = write.offset as usize;
                    let end = at + write.bytes().len();
                    self.memory[at..end].copy_from_slice(write.bytes());
                }
                reply.done();
            }
            Request::DeviceGetInfo => {
                reply.device_info(3, 9, 5);
            }
            Request::DeviceGetRegionInfo(_) => {
                let areas = [SparseArea { offset: 0, size: 0x1000 }];
                reply.region_info(7, SIZE as u64, &areas, Some((5, 0)));
            }
            Request::DeviceGetRegionIoFds(region) => match reply.wants_io_fds(2) {
                Ok(wanted) => {
                    let entry = IoFd { offset: 8, size: 4, ..IoFd::default() };
                    let fds = if wanted { vec![region, region + 1] } else { Vec::new() };
                    reply.region_io_fds(&[entry, IoFd { fd_index: 1, ..entry }], fds);
                }
                Err(errno) => {
                    reply.refuse(errno);
                }
            },
            Request::DeviceGetIrqInfo(index) if index < 5 => {
                reply.irq_info(1, 32);
            }
            Request::DeviceGetIrqInfo(_) => {
                reply.refuse(EINVAL);
            }
            Request::DeviceFeature { op: FeatureOp::Get, .. } => {
                reply.feature(b"feature");
            }
            _ => {
                reply.done();
            }
        }
        true
    }

    /// What was sent since the last time, as messages.
    pub(crate) fn take_sent(&mut self) -> Vec<Sent> {
        let bytes = std::mem::take(&mut self.sent);
        let mut messages = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let header = Header::parse(&bytes[at..]).unwrap();
            let end = at + header.size as usize;
            let mut fds = Vec::new();
            if self.sent_fds.front().is_some_and(|(place, _)| *place == at) {
                fds = self.sent_fds.pop_front().unwrap().1;
            }
            messages.push(Sent { header, payload: bytes[at + 16..end].to_vec(), fds });
            at = end;
        }
        assert!(self.sent_fds.is_empty());
        messages
    }
}

fn describe(request: &Request<'_, u32>) -> String {
    match request {
        Request::RegionWrite(access, data) if data.len() > 64 => {
            format!("RegionWrite {access:?} of {} bytes", data.len())
        }
        Request::DeviceSetIrqs { data: IrqData::EventFds(fds), index, .. } => {
            format!("DeviceSetIrqs {index} with {fds:?}")
        }
        request => format!("{request:?}"),
    }
}

pub(crate) fn message(id: u16, command: Command, payload: &[u8]) -> Vec<u8> {
    let header = Header::command(id, command, payload.len(), false);
    [header.as_bytes(), payload].concat()
}

pub(crate) fn posted(id: u16, command: Command, payload: &[u8]) -> Vec<u8> {
    let header = Header::command(id, command, payload.len(), true);
    [header.as_bytes(), payload].concat()
}

pub(crate) fn version(capabilities: Capabilities) -> Vec<u8> {
    message(0, Command::Version, &Version { major: 0, minor: 0, capabilities }.encode())
}

/// A client's reply to a DMA_READ that was sent to it.
pub(crate) fn dma_reply(request: &Sent, data: &[u8]) -> Vec<u8> {
    let payload = [&request.payload[..DmaAccess::LEN], data].concat();
    [request.header.reply(payload.len()).as_bytes(), &payload].concat()
}
