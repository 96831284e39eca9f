//! Processor time for a message, the client's side included: `cargo bench -p vfiod-server`.
//!
//! Processor time, and the least of many slices, since the machine may have other work. A device
//! that does nothing is behind it, so these are the figures of protocol, server and core alone.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::time::{ClockId, clock_gettime};
use vfiod_core::region::SparseArea;
use vfiod_core::{
    Context, Description, Device, DeviceFlags, DeviceSpec, Owner, Persistence, Region, RegionIndex,
    Registry, ResetCause, Result,
};
use vfiod_server::{Listener, Server, ServerOptions, SocketAccess};
use vfiod_wire::payload::{DeviceInfo, DmaMap, DmaUnmap, RegionAccess};
use vfiod_wire::{Capabilities, Command, HEADER_LEN, Header, Version};
use zerocopy::IntoBytes;

/// Messages that are sent at once.
const BATCH: usize = 256;
/// Bytes of a large access.
const LARGE: usize = 1 << 20;
/// Slices of which the least counts.
const SLICES: usize = 40;

struct Register(u32);

impl Device for Register {
    fn persistence(&mut self) -> Persistence<'_> {
        Persistence::Stateless
    }

    fn describe(&self) -> Description {
        Description {
            flags: DeviceFlags::RESET,
            regions: vec![
                Region::registers(0x1000),
                Region {
                    shared: vec![SparseArea { offset: 0, size: LARGE as u64 }],
                    ..Region::registers(LARGE as u64)
                },
            ],
            irqs: vec![],
        }
    }

    fn init(&mut self, _context: &Context) -> Result<()> {
        Ok(())
    }

    fn open_device(&mut self) -> Result<()> {
        Ok(())
    }

    fn close_device(&mut self) {}

    fn read(&mut self, _region: RegionIndex, _offset: u64, data: &mut [u8]) -> Result<()> {
        let value = self.0.to_ne_bytes();
        data.iter_mut().zip(value).for_each(|(to, from)| *to = from);
        Ok(())
    }

    fn write(&mut self, _region: RegionIndex, _offset: u64, data: &[u8]) -> Result<()> {
        self.0 = data[0].into();
        Ok(())
    }

    fn reset(&mut self, _cause: ResetCause) -> Result<()> {
        Ok(())
    }
}

/// Nanoseconds that this process has used.
fn used() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// Nanoseconds for one of the `count` operations of `run`, in the best slice.
fn least(count: usize, mut run: impl FnMut()) -> f64 {
    let slice = |_| {
        let start = used();
        run();
        (used() - start) / count as f64
    };
    (0..SLICES).map(slice).fold(f64::MAX, f64::min)
}

fn message(command: Command, posted: bool, payload: &[u8]) -> Vec<u8> {
    let header = Header::command(1, command, payload.len(), posted);
    [header.as_bytes(), payload].concat()
}

fn send_with(client: &UnixStream, message: &[u8], fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(client, &[IoSlice::new(message)], &mut control, SendFlags::empty()).map(drop)
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let registry = Registry::new();
    let spec = DeviceSpec { name: "register".into(), ..DeviceSpec::default() };
    let registration = registry.register(spec, Box::new(Register(1)))?;
    let device = registration.device();

    let file = device.open(Owner::in_process("bench"))?;
    let mut data = [0; 4];
    let core = least(100_000, || {
        for _ in 0..100_000 {
            file.read(RegionIndex(0), 0, &mut data).unwrap();
        }
    });
    drop(file);

    let server = Server::new(ServerOptions::default())?;
    let (mut client, socket) = UnixStream::pair()?;
    let _served = server.serve_connected(socket.into(), device.clone())?;
    let version = Version { major: 0, minor: 0, capabilities: Capabilities::default() };
    client.write_all(&message(Command::Version, false, &version.encode()))?;
    let mut buffer = vec![0; 1 << 16];
    let _ = client.read(&mut buffer)?;

    let access = RegionAccess { offset: 0, region: 0, count: 4 };
    let read = message(Command::RegionRead, false, access.as_bytes());
    let write = [access.as_bytes(), &[1, 2, 3, 4]].concat();
    let write = message(Command::RegionWrite, true, &write);
    let reply = HEADER_LEN + RegionAccess::LEN + 4;
    let (reads, writes) = (read.repeat(BATCH), [write.repeat(BATCH), read.clone()].concat());

    let mut exchange = |request: &[u8], replies: usize| {
        client.write_all(request).unwrap();
        client.read_exact(&mut buffer[..replies * reply]).unwrap();
    };
    println!("read of a register in process        {core:7.1} ns");
    let one = least(2000, || (0..2000).for_each(|_| exchange(&read, 1)));
    println!("read of a register, round trip       {one:7.1} ns");
    let each = least(100 * BATCH, || (0..100).for_each(|_| exchange(&reads, BATCH)));
    println!("read in a batch of {BATCH}               {each:7.1} ns");
    let each = least(100 * BATCH, || (0..100).for_each(|_| exchange(&writes, 1)));
    println!("posted write in a batch of {BATCH}       {each:7.1} ns");

    let large = RegionAccess { region: 1, count: LARGE as u32, ..access };
    let read = message(Command::RegionRead, false, large.as_bytes());
    let write = [large.as_bytes(), &vec![1; LARGE]].concat();
    let write = message(Command::RegionWrite, false, &write);
    let mut buffer = vec![0; LARGE + 32];
    let each = least(20, || {
        for _ in 0..20 {
            client.write_all(&read).unwrap();
            client.read_exact(&mut buffer).unwrap();
        }
    });
    println!("read of 1 MiB of memory              {each:7.0} ns");
    let each = least(20, || {
        for _ in 0..20 {
            client.write_all(&write).unwrap();
            client.read_exact(&mut buffer[..32]).unwrap();
        }
    });
    println!("write of 1 MiB of memory             {each:7.0} ns");

    let memory = memfd_create("bench", MemfdFlags::CLOEXEC)?;
    ftruncate(&memory, 2 << 20)?;
    let map = DmaMap { argsz: 32, flags: 3, offset: 0, address: 1 << 32, size: 2 << 20 };
    let map = message(Command::DmaMap, false, map.as_bytes());
    let unmap = DmaUnmap { argsz: 24, flags: 0, address: 1 << 32, size: 2 << 20 };
    let unmap = message(Command::DmaUnmap, false, unmap.as_bytes());
    let kept = DmaMap { argsz: 32, flags: 3, offset: 0, address: 1 << 33, size: 2 << 20 };
    let kept = message(Command::DmaMap, false, kept.as_bytes());
    send_with(&client, &kept, memory.as_fd())?;
    client.read_exact(&mut buffer[..16])?;
    let each = least(500, || {
        for _ in 0..500 {
            send_with(&client, &map, memory.as_fd()).unwrap();
            client.read_exact(&mut buffer[..16]).unwrap();
            client.write_all(&unmap).unwrap();
            client.read_exact(&mut buffer[..40]).unwrap();
        }
    });
    println!("map and unmap                        {each:7.0} ns");
    drop(client);

    let directory = tempfile::tempdir()?;
    let path = directory.path().join("socket");
    let listener = Listener::bind(&path, SocketAccess::default())?;
    let _served = server.serve(listener, device.clone())?;
    let version = message(Command::Version, false, &version.encode());
    let info = DeviceInfo { argsz: 16, ..DeviceInfo::default() };
    let info = message(Command::DeviceGetInfo, false, info.as_bytes());
    let each = least(200, || {
        for _ in 0..200 {
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(&version).unwrap();
            let _ = client.read(&mut buffer).unwrap();
            client.write_all(&info).unwrap();
            client.read_exact(&mut buffer[..32]).unwrap();
        }
    });
    println!("connect, negotiate, info, disconnect {each:7.0} ns");
    Ok(())
}
