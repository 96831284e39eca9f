//! One thread polls a device, its tasks and its server, and is the client as well.

// A model checker has no descriptors to poll.
#![cfg(not(any(loom, shuttle)))]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfiod_client::{RawMessage, Socket};
use vfiod_core::irq::{IrqFlags, IrqInfo};
use vfiod_core::{
    Context, Description, Device, DeviceFlags, DeviceSpec, DeviceTask, Errno, IrqIndex,
    Persistence, Quiesce, Region, RegionIndex, Registration, Registry, ResetCause, Result, Why,
    Worker,
};
use vfiod_server::{Listener, Served, Server, ServerOptions, SocketAccess};
use vfiod_tasks::Runtime;
use vfiod_wire::payload::{DmaMap, IrqSet, RegionAccess, dma_flag, irq_flag};

use vfiod_wire::{Capabilities, Command, Header, Kind, Version};
use zerocopy::IntoBytes;

const TIMEOUT: Duration = Duration::from_secs(60);

/// Where the bytes are that are to be added; a write starts that.
const START: u64 = 0;
const SUM: u64 = 8;
const LEN: usize = 0x1000;

/// A device that adds the bytes of a page of guest memory, and interrupts.
#[derive(Default)]
struct Sum {
    context: Option<Context>,
    /// The page whose sum is under way.
    page: Option<u64>,
    sum: u64,
}

impl Sum {
    fn start(&self) {
        let (Some(context), Some(page)) = (&self.context, self.page) else { return };
        let make = |task: DeviceTask<Self>| async move {
            let mut bytes = vec![0; LEN];
            let read = task.dma().read(page, &mut bytes).await;
            let irqs = task.context().clone();
            let finish = |sum: &mut Self| {
                let bytes = bytes.iter().map(|&byte| u64::from(byte));
                sum.sum = if read.is_ok() { bytes.sum() } else { u64::MAX };
                sum.page = None;
                irqs.irqs().trigger(IrqIndex(0), 0).expect("has one");
            };
            task.step(finish).await;
        };
        DeviceTask::spawn(context, "sum", make).expect("starts");
    }
}

impl Device for Sum {
    fn describe(&self) -> Description {
        let irqs = vec![IrqInfo { flags: IrqFlags::EVENTFD, count: 1 }];
        Description { flags: DeviceFlags::RESET, regions: vec![Region::registers(16)], irqs }
    }

    fn init(&mut self, context: &Context) -> Result<()> {
        self.context = Some(context.clone());
        Ok(())
    }

    fn open_device(&mut self) -> Result<()> {
        Ok(())
    }

    fn close_device(&mut self) {}

    fn read(&mut self, _: RegionIndex, offset: u64, data: &mut [u8]) -> Result<()> {
        data.fill(0);
        if offset == SUM && data.len() == 8 {
            data.copy_from_slice(&self.sum.to_le_bytes());
        }
        Ok(())
    }

    fn write(&mut self, _: RegionIndex, offset: u64, data: &[u8]) -> Result<()> {
        if let (START, Ok(page)) = (offset, data.try_into()) {
            self.page = Some(u64::from_le_bytes(page));
            self.start();
        }
        Ok(())
    }

    fn reset(&mut self, _: ResetCause) -> Result<()> {
        let Self { context: _, page, sum } = self;
        (*page, *sum) = (None, 0);
        Ok(())
    }

    fn persistence(&mut self) -> Persistence<'_> {
        Persistence::Unsaved("a test")
    }

    fn as_worker(&mut self) -> Option<&mut dyn Worker> {
        Some(self)
    }
}

impl Worker for Sum {
    fn quiesce(&mut self, _: Why) -> Quiesce {
        Quiesce::Cancel
    }

    fn resume(&mut self) {
        self.start();
    }
}

/// The only thread.
struct Host {
    runtime: Runtime,
    registration: Registration,
    _server: Server,
    _served: Served,
    socket: Socket,
    next_id: u16,
}

impl Host {
    fn new() -> Self {
        let runtime = Runtime::new().expect("starts");
        let registry = Registry::with_runtime(runtime.clone(), None);
        let spec = DeviceSpec { name: "sum".to_owned(), ..DeviceSpec::default() };
        let registration = registry.register(spec, Box::new(Sum::default())).expect("registers");
        let server = Server::embedded(ServerOptions::default(), &runtime).expect("starts");
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("sum.sock");
        let listener = Listener::bind(&path, SocketAccess::default()).expect("listens");
        let served = server.serve(listener, registration.device().clone()).expect("serves");
        let socket = Socket::connect(&path, TIMEOUT).expect("connects");
        let next_id = 0;
        Self { runtime, registration, _server: server, _served: served, socket, next_id }
    }

    /// Polls the runtime's descriptor, and runs what there is, until `fd` is readable.
    fn run_until_readable(&self, fd: BorrowedFd<'_>) {
        loop {
            let mut fds =
                [self.runtime.fd(), fd].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            let timeout = Timespec { tv_sec: TIMEOUT.as_secs() as i64, tv_nsec: 0 };
            let ready = poll(&mut fds, Some(&timeout)).expect("polls");
            assert!(ready > 0, "nothing happens");
            if !fds[1].revents().is_empty() {
                return;
            }
            self.runtime.run();
        }
    }

    /// Runs what there is until nothing is ready.
    fn run(&self) {
        self.runtime.run_until_idle();
    }

    fn send(&mut self, command: Command, payload: &[u8], fds: &[BorrowedFd<'_>]) -> u16 {
        self.next_id += 1;
        let header = Header::command(self.next_id, command, payload.len(), false);
        self.socket.send(&[header.as_bytes(), payload].concat(), fds).expect("is sent");
        self.next_id
    }

    /// Receives the reply to a request.
    fn reply(&self, id: u16) -> RawMessage {
        self.run_until_readable(self.socket.as_fd());
        let reply = self.socket.receive_message().expect("a message");
        assert_eq!(reply.header.id, id);
        reply
    }

    fn call(&mut self, command: Command, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Vec<u8> {
        let id = self.send(command, payload, fds);
        let reply = self.reply(id);
        assert!(matches!(reply.header.kind(), Kind::Reply(Ok(()))), "{command:?}: {reply:?}");
        reply.payload
    }

    fn map(&mut self, address: u64, memory: Option<&OwnedFd>) {
        let flags = dma_flag::READ | dma_flag::WRITE;
        let argsz = DmaMap::LEN as u32;
        let map = DmaMap { argsz, flags, offset: 0, address, size: LEN as u64 };
        let fds: Vec<_> = memory.iter().map(|memory| memory.as_fd()).collect();
        self.call(Command::DmaMap, map.as_bytes(), &fds);
    }

    fn start(&mut self, page: u64) {
        let access = RegionAccess { offset: START, region: 0, count: 8 };
        self.call(Command::RegionWrite, &[access.as_bytes(), &page.to_le_bytes()].concat(), &[]);
    }

    fn sum(&mut self) -> u64 {
        let access = RegionAccess { offset: SUM, region: 0, count: 8 };
        let reply = self.call(Command::RegionRead, access.as_bytes(), &[]);
        u64::from_le_bytes(reply[RegionAccess::LEN..].try_into().expect("eight bytes"))
    }

    /// Receives the device's request for the page.
    fn dma_read(&self) -> RawMessage {
        self.run_until_readable(self.socket.as_fd());
        let request = self.socket.receive_message().expect("a message");
        assert_eq!(request.header.command, Command::DmaRead as u16);
        request
    }

    fn answer(&self, request: &RawMessage, byte: u8) {
        let payload = [&request.payload[..], &[byte; LEN]].concat();
        let header = request.header.reply(payload.len());
        self.socket.send(&[header.as_bytes(), &payload].concat(), &[]).expect("is sent");
    }

    fn is_open(&self) -> bool {
        !self.registration.device().status().files.is_empty()
    }
}

/// The threads of this process, without the one that core starts for the process to interrupt
/// signals that a client blocks.
fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").expect("has threads");
    let is_watchdog = |path: std::path::PathBuf| {
        std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "irq-watchdog")
    };
    tasks.flatten().filter(|task| !is_watchdog(task.path())).count()
}

#[test]
fn one_thread_polls_a_device_its_tasks_and_its_server() {
    assert!(vfiod_core::irq::forgo_watchdog());
    let before = threads();
    let mut host = Host::new();
    let version = Version { major: 0, minor: 0, capabilities: Capabilities::default() };
    host.call(Command::Version, &version.encode(), &[]);
    assert!(host.is_open());

    let interrupt = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("an eventfd");
    let flags = irq_flag::DATA_EVENTFD | irq_flag::ACTION_TRIGGER;
    let set = IrqSet { argsz: IrqSet::LEN as u32, flags, index: 0, start: 0, count: 1 };
    host.call(Command::DeviceSetIrqs, set.as_bytes(), &[interrupt.as_fd()]);

    // A mapped page.
    let memory = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&memory, LEN as u64).expect("has a size");
    rustix::io::pwrite(&memory, &[2; LEN], 0).expect("is written");
    host.map(0x10_0000, Some(&memory));
    host.start(0x10_0000);
    host.run_until_readable(interrupt.as_fd());
    rustix::io::read(&interrupt, &mut [0; 8]).expect("was signalled");
    assert_eq!(host.sum(), 2 * LEN as u64);

    // A page that is reached by messages.
    host.map(0x20_0000, None);
    host.start(0x20_0000);
    let request = host.dma_read();
    host.answer(&request, 3);
    host.run_until_readable(interrupt.as_fd());
    rustix::io::read(&interrupt, &mut [0; 8]).expect("was signalled");
    assert_eq!(host.sum(), 3 * LEN as u64);

    // A reset while a task waits for a message. The reset waits for the client to answer that:
    // the thread, which is in the reset, must take in the answer, too.
    host.start(0x20_0000);
    let request = host.dma_read();
    assert_eq!(host.registration.device().status().tasks.len(), 1);
    let reset = host.send(Command::DeviceReset, &[], &[]);
    host.answer(&request, 4);
    let reply = host.reply(reset);
    assert!(matches!(reply.header.kind(), Kind::Reply(Ok(()))), "{reply:?}");
    assert_eq!(host.registration.device().status().tasks.len(), 0);
    assert_eq!(host.sum(), 0);
    assert_eq!(rustix::io::read(&interrupt, &mut [0; 8]), Err(Errno::AGAIN));

    // The client goes.
    rustix::net::shutdown(&host.socket, rustix::net::Shutdown::Both).expect("shuts down");
    host.run();
    assert!(!host.is_open());
    // The thread that gave the socket its name (`vfiod-sockets`) ends by itself, and no other is there.
    let deadline = Instant::now() + TIMEOUT;
    while threads() != before {
        assert!(Instant::now() < deadline, "{} threads, {before} before", threads());
        std::thread::sleep(Duration::from_millis(1));
    }
}
