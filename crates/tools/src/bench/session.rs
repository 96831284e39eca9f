//! vfio-user with as little in the way as possible: messages built once, replies checked in
//! place.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use vfiod_wire::payload::{
    DeviceInfo, DmaAccess, DmaMap, DmaUnmap, IrqSet, RegionAccess, RegionInfo, dma_flag, irq_flag,
};
use vfiod_wire::{Capabilities, Command, HEADER_LEN, Header, Kind, Version};
use zerocopy::{FromBytes, IntoBytes};

use super::raw::{PATIENCE, Raw};

/// How long a single-open device may take to be free again after the last client.
const HANDOVER: Duration = Duration::from_secs(5);

/// How long the server sends no message before one is no longer waited for.
const SILENCE: Duration = Duration::from_millis(100);

/// A negotiated connection.
pub(super) struct Session {
    raw: Raw,
}

/// A message, whole.
pub(super) fn message(command: Command, payload: &[u8], posted: bool) -> Vec<u8> {
    let mut message = Header::command(0, command, payload.len(), posted).as_bytes().to_vec();
    message.extend_from_slice(payload);
    message
}

/// The VERSION message that we send.
pub(super) fn version() -> Vec<u8> {
    let capabilities = Capabilities {
        max_msg_fds: Some(16),
        max_data_xfer_size: Some(1 << 20),
        max_dma_maps: Some(65535),
        pgsizes: Some(4096),
        write_multiple: Some(true),
        ..Capabilities::default()
    };
    message(Command::Version, &Version { major: 0, minor: 0, capabilities }.encode(), false)
}

/// A DEVICE_GET_INFO message.
pub(super) fn get_info() -> Vec<u8> {
    let info = DeviceInfo { argsz: DeviceInfo::LEN as u32, ..DeviceInfo::default() };
    message(Command::DeviceGetInfo, info.as_bytes(), false)
}

/// A REGION_READ or REGION_WRITE message.
pub(super) fn access(region: u32, offset: u64, size: u32, write: bool, posted: bool) -> Vec<u8> {
    let access = RegionAccess { offset, region, count: size };
    let mut payload = access.as_bytes().to_vec();
    if write {
        payload.resize(RegionAccess::LEN + size as usize, 0x5a);
    }
    let command = if write { Command::RegionWrite } else { Command::RegionRead };
    message(command, &payload, posted)
}

/// A DMA_MAP message.
pub(super) fn dma_map(iova: u64, size: u64, offset: u64) -> Vec<u8> {
    let flags = dma_flag::READ | dma_flag::WRITE;
    let map = DmaMap { argsz: DmaMap::LEN as u32, flags, offset, address: iova, size };
    message(Command::DmaMap, map.as_bytes(), false)
}

/// A DMA_UNMAP message.
pub(super) fn dma_unmap(iova: u64, size: u64) -> Vec<u8> {
    let unmap = DmaUnmap { argsz: DmaUnmap::LEN as u32, flags: 0, address: iova, size };
    message(Command::DmaUnmap, unmap.as_bytes(), false)
}

/// A DMA_UNMAP message for every window.
pub(super) fn dma_unmap_all() -> Vec<u8> {
    let (argsz, flags) = (DmaUnmap::LEN as u32, dma_flag::UNMAP_ALL);
    let unmap = DmaUnmap { argsz, flags, ..DmaUnmap::default() };
    message(Command::DmaUnmap, unmap.as_bytes(), false)
}

/// A message that gives the first vector of an interrupt index an eventfd.
pub(super) fn set_irq(index: u32) -> Vec<u8> {
    let flags = irq_flag::DATA_EVENTFD | irq_flag::ACTION_TRIGGER;
    let set = IrqSet { argsz: IrqSet::LEN as u32, flags, index, start: 0, count: 1 };
    message(Command::DeviceSetIrqs, set.as_bytes(), false)
}

impl Session {
    /// Connects and negotiates; waits for a device that its last client has only just left.
    pub(super) fn connect(socket: &Path, spin: bool) -> anyhow::Result<Self> {
        let deadline = Instant::now() + HANDOVER;
        loop {
            match Self::attach(socket, spin) {
                Ok(session) => return Ok(session),
                Err(error) if !error.is::<Refused>() || Instant::now() > deadline => {
                    return Err(error);
                }
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Its socket.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.raw.fd()
    }

    /// Exactly so many bytes.
    pub(super) fn receive(&mut self, len: usize) -> anyhow::Result<&[u8]> {
        self.raw.receive(len)
    }

    /// Connects and negotiates.
    pub(super) fn attach(socket: &Path, spin: bool) -> anyhow::Result<Self> {
        let mut session = Self { raw: Raw::connect(socket, spin)? };
        let reply = session.call(&version(), None)?;
        let server = Version::decode(&reply)?;
        ensure!(server.major == 0, "version {}.{}", server.major, server.minor);
        Ok(session)
    }

    /// Sends a message and waits for its reply; the payload of that.
    pub(super) fn call(
        &mut self,
        message: &[u8],
        fd: Option<BorrowedFd<'_>>,
    ) -> anyhow::Result<Vec<u8>> {
        match fd {
            Some(fd) => self.raw.send_with(message, fd)?,
            None => self.raw.send(message)?,
        }
        let head = self.raw.receive(HEADER_LEN)?;
        let header = check(head)?;
        let len = header.size as usize - HEADER_LEN;
        Ok(self.raw.receive(len)?.to_vec())
    }

    /// Sends messages that are whole and ready, and waits for `count` replies of `size` bytes.
    pub(super) fn exchange(
        &mut self,
        messages: &[u8],
        count: usize,
        size: usize,
    ) -> anyhow::Result<()> {
        self.raw.send(messages)?;
        self.replies(count, size)
    }

    /// Sends a message with a descriptor, without waiting.
    pub(super) fn send_with(&self, message: &[u8], fd: BorrowedFd<'_>) -> anyhow::Result<()> {
        self.raw.send_with(message, fd)
    }

    /// Sends a message without waiting.
    pub(super) fn send(&self, message: &[u8]) -> anyhow::Result<()> {
        self.raw.send(message)
    }

    /// Waits for `count` replies of `size` bytes.
    pub(super) fn replies(&mut self, count: usize, size: usize) -> anyhow::Result<()> {
        let bytes = self.raw.receive(count * size)?;
        for reply in bytes.chunks_exact(size) {
            let header = check(reply)?;
            ensure!(header.size as usize == size, "a reply of {} bytes", header.size);
        }
        Ok(())
    }

    /// The size of a region in bytes.
    pub(super) fn region_size(&mut self, index: u32) -> anyhow::Result<u64> {
        let info = RegionInfo { argsz: 4096, index, ..RegionInfo::default() };
        let reply =
            self.call(&message(Command::DeviceGetRegionInfo, info.as_bytes(), false), None)?;
        let (info, _) = RegionInfo::read_from_prefix(&reply)
            .map_err(|_| anyhow::anyhow!("region info of {} bytes", reply.len()))?;
        Ok(info.size)
    }

    /// Reads a number from a region.
    pub(super) fn read(&mut self, region: u32, offset: u64, size: u32) -> anyhow::Result<u64> {
        let reply = self.call(&access(region, offset, size, false, false), None)?;
        let bytes = reply.get(RegionAccess::LEN..).context("a short reply")?;
        let mut number = [0; 8];
        number.get_mut(..bytes.len()).context("a long reply")?.copy_from_slice(bytes);
        Ok(u64::from_le_bytes(number))
    }

    /// Writes a 64-bit number to a region.
    pub(super) fn write64(&mut self, region: u32, offset: u64, value: u64) -> anyhow::Result<()> {
        self.call(&write64(region, offset, value), None).map(drop)
    }

    /// Writes a 64-bit number to a region, and answers the server's DMA_READ messages with zeroes
    /// meanwhile. Adds to `served` how many there were.
    pub(super) fn write64_serving(
        &mut self,
        region: u32,
        offset: u64,
        value: u64,
        served: &mut u64,
    ) -> anyhow::Result<()> {
        self.call_serving(&write64(region, offset, value), served).map(drop)
    }

    /// Reads a 64-bit number from a region, as [`Session::write64_serving`] writes.
    pub(super) fn read64_serving(
        &mut self,
        region: u32,
        offset: u64,
        served: &mut u64,
    ) -> anyhow::Result<u64> {
        let reply = self.call_serving(&access(region, offset, 8, false, false), served)?;
        let number = reply.get(RegionAccess::LEN..).and_then(|bytes| bytes.try_into().ok());
        Ok(u64::from_le_bytes(number.context("a reply of another length")?))
    }

    fn call_serving(&mut self, message: &[u8], served: &mut u64) -> anyhow::Result<Vec<u8>> {
        self.raw.send(message)?;
        loop {
            match self.serve_one()? {
                Served::Reply(reply) => return Ok(reply),
                Served::Request => *served += 1,
                Served::Nothing => bail!("no reply came within {PATIENCE:?}"),
            }
        }
    }

    /// Answers `count` DMA_READ messages of the server, or fewer if it sends none for [`SILENCE`]. Returns
    /// how many there were.
    pub(super) fn serve(&mut self, count: u64) -> anyhow::Result<u64> {
        self.raw.set_patience(SILENCE)?;
        let served = self.serve_until_silence(count);
        self.raw.set_patience(PATIENCE)?;
        served
    }

    fn serve_until_silence(&mut self, count: u64) -> anyhow::Result<u64> {
        for served in 0..count {
            match self.serve_one()? {
                Served::Request => {}
                Served::Reply(_) => bail!("a reply that was not waited for"),
                Served::Nothing => return Ok(served),
            }
        }
        Ok(count)
    }

    /// Takes a message, and answers it with zeroes if it is DMA_READ.
    fn serve_one(&mut self) -> anyhow::Result<Served> {
        let mut answer = Vec::new();
        let Some(head) = self.raw.receive_or_nothing(HEADER_LEN)? else {
            return Ok(Served::Nothing);
        };
        let header = Header::parse(head).context("a short header")?;
        let len = (header.size as usize).saturating_sub(HEADER_LEN);
        let payload = self.raw.receive(len)?;
        if matches!(header.kind(), Kind::Reply(_)) {
            check(header.as_bytes())?;
            return Ok(Served::Reply(payload.to_vec()));
        }
        ensure!(header.command == Command::DmaRead as u16, "command {}", header.command);
        let (dma, _) = DmaAccess::read_from_prefix(payload)
            .map_err(|_| anyhow::anyhow!("a short DMA_READ"))?;
        ensure!(dma.count <= 1 << 20, "a DMA_READ of {} bytes", dma.count);
        answer.clear();
        let len = DmaAccess::LEN + dma.count as usize;
        answer.extend_from_slice(header.reply(len).as_bytes());
        answer.extend_from_slice(dma.as_bytes());
        answer.resize(HEADER_LEN + len, 0);
        self.raw.send(&answer)?;
        Ok(Served::Request)
    }
}

/// What a message of the server was.
enum Served {
    Request,
    /// The payload of a reply.
    Reply(Vec<u8>),
    /// None came in time.
    Nothing,
}

fn write64(region: u32, offset: u64, value: u64) -> Vec<u8> {
    let mut message = access(region, offset, 8, true, false);
    let at = message.len() - 8;
    message[at..].copy_from_slice(&value.to_le_bytes());
    message
}

/// The server refused something.
#[derive(Debug)]
pub(super) struct Refused(u32);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let error = std::io::Error::from_raw_os_error(self.0 as i32);
        write!(f, "the server refused it: {error}")
    }
}

impl std::error::Error for Refused {}

fn check(bytes: &[u8]) -> anyhow::Result<Header> {
    let header = Header::parse(bytes).context("a short reply")?;
    match header.kind() {
        Kind::Reply(Ok(())) if header.size as usize >= HEADER_LEN => Ok(header),
        Kind::Reply(Err(errno)) => Err(Refused(errno).into()),
        _ => bail!("the server sent something that is no reply"),
    }
}
