//! Eventfds that a client makes readable without end, replies that it does not take: the server does not go
//! on for ever. A socket that the client has watched very often: it is served seldom.

// A model checker has no descriptors to poll.
#![cfg(not(any(loom, shuttle)))]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use vfiod_client::{RawMessage, Socket};
use vfiod_core::irq::{IrqFlags, IrqInfo};
use vfiod_core::region::Doorbell;
use vfiod_core::{
    Context, Description, Device, DeviceFlags, DeviceSpec, IrqIndex, Persistence, Region,
    RegionIndex, Registration, Registry, ResetCause, Result,
};
use vfiod_server::{Listener, Served, Server, ServerOptions, SocketAccess};
use vfiod_tasks::Runtime;
use vfiod_wire::payload::{DmaMap, IrqSet, RegionAccess, RegionIoFds, irq_flag};
use vfiod_wire::{Capabilities, Command, HEADER_LEN, Header, Kind, Version};
use zerocopy::IntoBytes;

const TIMEOUT: Duration = Duration::from_secs(60);
/// Turns of the only thread within which nothing must be left to do, once at least.
const TURNS: usize = 300;

const LINE: u32 = 0;
const MESSAGE: u32 = 1;

/// A doorbell, whose rings are interrupts; and the level of a line.
const BELL: u64 = 0;
const LEVEL: u64 = 8;

/// A device that interrupts whenever its doorbell is rung.
#[derive(Default)]
struct Echo(Option<Context>);

impl Device for Echo {
    fn describe(&self) -> Description {
        let line = IrqFlags::EVENTFD | IrqFlags::MASKABLE | IrqFlags::AUTOMASKED;
        Description {
            flags: DeviceFlags::RESET,
            regions: vec![Region {
                doorbells: vec![Doorbell::eventfd(BELL, 4).matching(1)],
                ..Region::registers(16)
            }],
            irqs: vec![
                IrqInfo { flags: line, count: 1 },
                IrqInfo { flags: IrqFlags::EVENTFD, count: 1 },
            ],
        }
    }

    fn init(&mut self, context: &Context) -> Result<()> {
        self.0 = Some(context.clone());
        Ok(())
    }

    fn open_device(&mut self) -> Result<()> {
        Ok(())
    }

    fn close_device(&mut self) {}

    fn read(&mut self, _: RegionIndex, _: u64, data: &mut [u8]) -> Result<()> {
        data.fill(7);
        Ok(())
    }

    fn write(&mut self, _: RegionIndex, offset: u64, data: &[u8]) -> Result<()> {
        let Some(context) = &self.0 else { return Ok(()) };
        match offset {
            BELL => context.irqs().trigger(IrqIndex(MESSAGE), 0).map(drop),
            _ => context.irqs().set_level(IrqIndex(LINE), 0, data[0] != 0).map(drop),
        }
    }

    fn reset(&mut self, _: ResetCause) -> Result<()> {
        Ok(())
    }

    fn persistence(&mut self) -> Persistence<'_> {
        Persistence::Stateless
    }
}

/// The server and its client, on one thread.
struct Host {
    runtime: Runtime,
    _registration: Registration,
    _server: Server,
    _served: Served,
    socket: Socket,
}

impl Host {
    fn new() -> Self {
        let runtime = Runtime::new().expect("starts");
        let registry = Registry::with_runtime(runtime.clone(), None);
        let spec = DeviceSpec { name: "echo".to_owned(), ..DeviceSpec::default() };
        let registration = registry.register(spec, Box::new(Echo::default())).expect("registers");
        let server = Server::embedded(ServerOptions::default(), &runtime).expect("starts");
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("echo.sock");
        let listener = Listener::bind(&path, SocketAccess::default()).expect("listens");
        let served = server.serve(listener, registration.device().clone()).expect("serves");
        let socket = Socket::connect(&path, TIMEOUT).expect("connects");
        let host =
            Self { runtime, _registration: registration, _server: server, _served: served, socket };
        let version = Version { major: 0, minor: 0, capabilities: Capabilities::default() };
        host.call(Command::Version, &version.encode(), &[]);
        host
    }

    fn is_ready(fd: BorrowedFd<'_>, timeout: Duration) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: 0 };
        poll(&mut fds, Some(&timeout)).expect("polls") > 0
    }

    fn call(&self, command: Command, payload: &[u8], fds: &[BorrowedFd<'_>]) -> RawMessage {
        let header = Header::command(1, command, payload.len(), false);
        self.socket.send(&[header.as_bytes(), payload].concat(), fds).expect("is sent");
        while !Self::is_ready(self.socket.as_fd(), Duration::ZERO) {
            assert!(Self::is_ready(self.runtime.fd(), TIMEOUT), "nothing happens");
            self.runtime.run();
        }
        let reply = self.socket.receive_message().expect("a message");
        assert!(matches!(reply.header.kind(), Kind::Reply(Ok(()))), "{command:?}: {reply:?}");
        reply
    }

    fn set_eventfd(&self, index: u32, action: u32, fd: &OwnedFd) {
        let flags = irq_flag::DATA_EVENTFD | action;
        let set = IrqSet { argsz: IrqSet::LEN as u32, flags, index, start: 0, count: 1 };
        self.call(Command::DeviceSetIrqs, set.as_bytes(), &[fd.as_fd()]);
    }

    fn write(&self, offset: u64) {
        let access = RegionAccess { offset, region: 0, count: 4 };
        let payload = [access.as_bytes(), &1u32.to_ne_bytes()].concat();
        self.call(Command::RegionWrite, &payload, &[]);
    }

    fn doorbell(&self) -> OwnedFd {
        let request = RegionIoFds { argsz: 256, ..RegionIoFds::default() };
        let mut reply = self.call(Command::DeviceGetRegionIoFds, request.as_bytes(), &[]);
        reply.fds.pop().expect("a doorbell")
    }

    /// Runs what there is, until nothing is left to do for the moment.
    #[track_caller]
    fn assert_rests(&self) {
        let rests = (0..TURNS).any(|_| {
            self.runtime.run();
            !Self::is_ready(self.runtime.fd(), Duration::ZERO)
        });
        assert!(rests, "still busy after {TURNS} turns");
    }

    /// As [`Self::assert_rests`]; and then the client is served.
    #[track_caller]
    fn assert_comes_to_rest(&self) {
        self.assert_rests();
        let access = RegionAccess { offset: 0, region: 0, count: 4 };
        let reply = self.call(Command::RegionRead, access.as_bytes(), &[]);
        assert_eq!(reply.payload[RegionAccess::LEN..], [7; 4]);
    }
}

fn event(initial: u32, flags: EventfdFlags) -> OwnedFd {
    eventfd(initial, flags | EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("an eventfd")
}

#[test]
fn eventfd_that_triggers_and_unmasks_the_same_line_does_not_keep_the_server_busy() {
    let host = Host::new();
    let both = event(0, EventfdFlags::empty());
    host.set_eventfd(LINE, irq_flag::ACTION_TRIGGER, &both);
    host.set_eventfd(LINE, irq_flag::ACTION_UNMASK, &both);
    host.write(LEVEL);
    host.assert_comes_to_rest();
}

#[test]
fn doorbell_that_is_handed_back_as_a_trigger_does_not_keep_the_server_busy() {
    let host = Host::new();
    let bell = host.doorbell();
    host.set_eventfd(MESSAGE, irq_flag::ACTION_TRIGGER, &bell);
    rustix::io::write(&bell, &1u64.to_ne_bytes()).expect("rings");
    host.assert_comes_to_rest();
}

/// Each read takes one from its counter.
#[test]
fn eventfd_that_stays_readable_does_not_keep_the_server_busy() {
    let host = Host::new();
    let counter = event(u32::MAX, EventfdFlags::SEMAPHORE);
    host.set_eventfd(LINE, irq_flag::ACTION_TRIGGER, &event(0, EventfdFlags::empty()));
    host.set_eventfd(LINE, irq_flag::ACTION_UNMASK, &counter);
    host.assert_comes_to_rest();
}

/// A line rings the doorbell, whose interrupt unmasks the line.
#[test]
fn interrupts_that_cause_each_other_do_not_keep_the_server_busy() {
    let host = Host::new();
    let line = event(0, EventfdFlags::empty());
    let bell = host.doorbell();
    host.set_eventfd(LINE, irq_flag::ACTION_TRIGGER, &bell);
    host.set_eventfd(LINE, irq_flag::ACTION_UNMASK, &line);
    host.set_eventfd(MESSAGE, irq_flag::ACTION_TRIGGER, &line);
    host.write(LEVEL);
    host.assert_comes_to_rest();
}

/// Has a file watched 60,000 times, through few descriptors.
fn watch_very_often(fd: BorrowedFd<'_>) -> (Vec<OwnedFd>, Vec<OwnedFd>) {
    use rustix::event::epoll;
    let copies: Vec<_> = (0..300).map(|_| fd.try_clone_to_owned().expect("a copy")).collect();
    let poll = |_| epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
    let polls: Vec<_> = (0..200).map(poll).collect();
    for poll in &polls {
        for copy in &copies {
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(poll, copy, epoll::EventData::new_u64(0), flags).expect("is watched");
        }
    }
    (copies, polls)
}

#[test]
fn client_whose_socket_is_watched_very_often_is_not_served_all_the_time() {
    let host = Host::new();
    let _watches = watch_very_often(host.socket.as_fd());
    let access = RegionAccess { offset: 0, region: 0, count: 4 };
    let paused = (0..1_000).any(|_| {
        let header = Header::command(1, Command::RegionRead, access.as_bytes().len(), false);
        let message = [header.as_bytes(), access.as_bytes()].concat();
        host.socket.send(&message, &[]).expect("is sent");
        while Host::is_ready(host.runtime.fd(), Duration::ZERO) {
            host.runtime.run();
        }
        // Nothing is left to do, though a request waits: it has its reply when the pause is over.
        let paused = !Host::is_ready(host.socket.as_fd(), Duration::ZERO);
        while !Host::is_ready(host.socket.as_fd(), Duration::ZERO) {
            assert!(Host::is_ready(host.runtime.fd(), TIMEOUT), "nothing happens");
            host.runtime.run();
        }
        host.socket.receive_message().expect("a message");
        paused
    });
    assert!(paused, "in vain: each request is answered at once");
}

/// Its replies fill the socket, and its requests what is kept of them.
#[test]
fn client_that_takes_no_replies_does_not_keep_the_server_busy() {
    const REPLY: usize = HEADER_LEN + RegionAccess::LEN + 4;
    let host = Host::new();
    // What it sends is read all the same: replies to messages of the device could be among it.
    let map = DmaMap { argsz: 32, flags: 3, offset: 0, address: 0, size: 0x1000 };
    host.call(Command::DmaMap, map.as_bytes(), &[]);
    let access = RegionAccess { offset: 0, region: 0, count: 4 };
    let header = Header::command(1, Command::RegionRead, access.as_bytes().len(), false);
    let request = [header.as_bytes(), access.as_bytes()].concat();
    let many = request.repeat(1 << 10);
    let fd = host.socket.as_fd();
    let (mut sent, mut before) = (0, None);
    while before != Some(sent) {
        before = Some(sent);
        while let Ok(count) = send(fd, &many[sent % request.len()..], SendFlags::DONTWAIT) {
            sent += count;
        }
        host.assert_rests();
    }
    assert!(sent > 4 << 20, "{sent} bytes are less than is kept");

    // It is served on as soon as it takes them.
    let (mut received, mut buffer) = (0, vec![0; 1 << 16]);
    while received < sent / request.len() * REPLY {
        match recv(fd, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((_, count)) => received += count,
            Err(_) => {
                assert!(Host::is_ready(host.runtime.fd(), TIMEOUT), "nothing happens");
                host.runtime.run();
            }
        }
    }
    assert_eq!(received, sent / request.len() * REPLY);
}
