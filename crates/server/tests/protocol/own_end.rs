//! Clients that die and leave their own end of the connection where the server does not read it: in what
//! they have sent behind requests whose replies nobody takes. Each client is a process of its own.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command as Process, Stdio};

use rustix::io::Errno;
use rustix::net::sockopt::set_socket_send_buffer_size_force;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vfiod_client::Socket;
use vfiod_core::OpenPolicy;
use vfiod_wire::payload::{IrqSet, RegionAccess};
use vfiod_wire::{Capabilities, Command, Kind, TwinSocket, Version};
use zerocopy::IntoBytes;

use crate::rig::*;
use crate::testing::send_byte;

const PATH: &str = "VFIOD_TEST_DIES_AT";
const HOW: &str = "VFIOD_TEST_DIES_HOW";
/// Of each reply.
const DATA: usize = 4096;

/// A client in a process of its own, whose standard input is the other end of a socket.
struct Mortal {
    process: Child,
    channel: UnixStream,
}

impl Mortal {
    fn new(rig: &Rig, how: &str) -> Self {
        let (channel, theirs) = UnixStream::pair().unwrap();
        let process = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "own_end::dies_for_another_test"])
            .env(PATH, &rig.path)
            .env(HOW, how)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, channel }
    }

    /// Waits until it has done what it does.
    fn await_done(&mut self) {
        assert_eq!(self.channel.read(&mut [0]).unwrap(), 1, "it has failed");
    }

    fn await_end(mut self) {
        self.process.wait().unwrap();
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn read(id: u16) -> Vec<u8> {
    let access = RegionAccess { offset: 0, region: PLAIN, count: DATA as u32 };
    message(id, Command::RegionRead, access.as_bytes())
}

/// Sends if there is room.
fn try_send(socket: &Socket, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.into_iter().collect();
    assert!(fds.is_empty() || control.push(SendAncillaryMessage::ScmRights(&fds)));
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags) {
        Ok(sent) => {
            assert_eq!(sent, bytes.len());
            true
        }
        Err(Errno::AGAIN) => false,
        Err(errno) => panic!("{errno}"),
    }
}

/// Asks for data until there is no room for more, again and again with `fd`.
fn fill(socket: &Socket, fd: Option<BorrowedFd<'_>>) {
    fill_from(socket, 0, fd);
}

/// Asks for data until there is no room for more, in messages with these numbers. Every eighth has
/// `fd`. Returns the next number.
fn fill_from(socket: &Socket, first: u16, fd: Option<BorrowedFd<'_>>) -> u16 {
    let mut id = first;
    while try_send(socket, &read(id), fd.filter(|_| id.is_multiple_of(8))) {
        id += 1;
    }
    id
}

/// Not a test of its own: what a [`Mortal`] does.
#[test]
fn dies_for_another_test() {
    let (Some(path), Some(how)) = (std::env::var_os(PATH), std::env::var_os(HOW)) else { return };
    let socket = Socket::connect(path, PATIENCE).unwrap();
    let (channel, how) = (std::io::stdin(), how.into_string().unwrap());
    let capabilities = Capabilities {
        twin_socket: how
            .ends_with("twin")
            .then_some(TwinSocket { supported: true, fd_index: None }),
        ..Capabilities::default()
    };
    let version = Version { major: 0, minor: 0, capabilities };
    socket.send(&message(0, Command::Version, &version.encode()), &[]).unwrap();
    let twin = socket.receive_message().unwrap().fds.pop();
    let end = socket.as_fd();
    match &*how {
        "replies" => fill(&socket, Some(end)),
        "wrapped" => {
            let (one, other) = UnixStream::pair().unwrap();
            send_byte(&one, end, SendFlags::empty());
            send_byte(&one, one.as_fd(), SendFlags::empty());
            fill(&socket, Some(other.as_fd()));
        }
        "exchange" => {
            // Another client of the same process: each has the other's end in its stream.
            let other = Socket::connect(std::env::var_os(PATH).unwrap(), PATIENCE);
            let other = other.unwrap();
            other.send(&message(0, Command::Version, &version_payload()), &[]).unwrap();
            other.receive_message().unwrap();
            fill(&socket, Some(other.as_fd()));
            fill(&other, Some(end));
        }
        "memory" => {
            // As many descriptors as may wait, and more, in front of it.
            fill(&socket, None);
            let memory = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
            set_socket_send_buffer_size_force(&socket, 4 << 20).unwrap();
            let set = IrqSet { argsz: 20, flags: 0x24, index: VECTORS, start: 0, count: 1 };
            let irqs = message(1, Command::DeviceSetIrqs, set.as_bytes());
            for _ in 0..600 {
                assert!(try_send(&socket, &irqs, Some(memory.as_fd())));
            }
            assert!(try_send(&socket, &read(0), Some(end)));
        }
        "much" => {
            // More than is kept, in front of it: messages of a megabyte.
            fill(&socket, None);
            set_socket_send_buffer_size_force(&socket, 32 << 20).unwrap();
            let access = RegionAccess { offset: 0, region: MEMORY, count: 1 << 20 };
            let payload = [access.as_bytes(), &vec![0; 1 << 20]].concat();
            let write = message(1, Command::RegionWrite, &payload);
            for _ in 0..8 {
                socket.send(&write, &[]).unwrap();
            }
            assert!(try_send(&socket, &read(0), Some(end)));
        }
        "twin" => send_byte(twin.unwrap(), end, SendFlags::empty()),
        "broken twin" => {
            // No header, and something behind it.
            let mut twin = twin.map(UnixStream::from).unwrap();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let ends = [end];
            assert!(control.push(SendAncillaryMessage::ScmRights(&ends)));
            twin.write_all(&[1; 15]).unwrap();
            let last = [IoSlice::new(&[1])];
            while sendmsg(&twin, &last, &mut control, SendFlags::NOSIGNAL).is_ok() {}
        }
        "hands over" => send_byte(&channel, end, SendFlags::empty()),
        other => panic!("{other}"),
    }
    if how != "hands over" {
        send_byte(&channel, channel.as_fd(), SendFlags::empty());
    }
    // Until the other end is closed, or sends something.
    let _ = rustix::io::read(&channel, &mut [0]);
    std::process::exit(0);
}

fn version_payload() -> Vec<u8> {
    Version { major: 0, minor: 0, capabilities: Capabilities::default() }.encode()
}

fn may_force() -> bool {
    let socket = UnixStream::pair().unwrap().0;
    set_socket_send_buffer_size_force(&socket, 1 << 20).is_ok()
}

#[track_caller]
fn assert_seen_to_go(how: &str, policy: OpenPolicy) {
    let rig = Rig::with(policy, server_options());
    let mut client = Mortal::new(&rig, how);
    client.await_done();
    drop(client);
    rig.wait_idle();
    rig.assert_alive();
}

#[test]
fn client_that_takes_no_replies_and_sends_its_own_end_is_seen_to_die() {
    assert_seen_to_go("replies", OpenPolicy::Single);
    assert_seen_to_go("wrapped", OpenPolicy::Single);
}

#[test]
fn clients_that_send_each_others_ends_are_seen_to_die() {
    assert_seen_to_go("exchange", OpenPolicy::Multi);
}

#[test]
fn client_that_sends_its_own_end_on_its_second_socket_is_seen_to_die() {
    assert_seen_to_go("twin", OpenPolicy::Single);
}

#[test]
fn client_that_sends_its_own_end_behind_what_ends_its_second_socket_is_seen_to_die() {
    assert_seen_to_go("broken twin", OpenPolicy::Single);
}

/// There is no room for what is in front of the client's own end.
#[test]
fn client_that_sends_its_own_end_behind_more_than_is_kept_is_seen_to_die() {
    if !may_force() {
        eprintln!("SKIPPED: only root may have sockets hold as much");
        return;
    }
    assert_seen_to_go("memory", OpenPolicy::Single);
    assert_seen_to_go("much", OpenPolicy::Single);
}

#[test]
fn client_that_another_process_has_connected_for_loses_nothing_when_that_dies() {
    let rig = Rig::with(OpenPolicy::Single, server_options());
    let connector = Mortal::new(&rig, "hands over");
    let mut fds = Vec::new();
    let channel = Socket::from_fd(connector.channel.try_clone().unwrap().into(), PATIENCE);
    channel.unwrap().receive(&mut [0], &mut fds).unwrap();
    let socket = Socket::from_fd(fds.pop().unwrap(), PATIENCE).unwrap();
    let mut sent = fill_from(&socket, 0, None);
    rustix::io::write(&connector.channel, b"x").unwrap();
    connector.await_end();
    // More than two sockets hold: it is read, though no reply is taken.
    eventually("much is taken in", || {
        sent = fill_from(&socket, sent, None);
        sent > 5000
    });
    for id in 0..sent {
        let reply = socket.receive_message().unwrap();
        assert_eq!((reply.header.id, reply.header.kind()), (id, Kind::Reply(Ok(()))));
        assert_eq!(reply.payload.len(), RegionAccess::LEN + DATA);
    }
    assert_eq!(rig.connections(), 1);
    drop(socket);
    rig.wait_idle();
}
