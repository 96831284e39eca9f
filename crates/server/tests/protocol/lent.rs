//! Descriptors that a client sends to do harm: their last close does not return, or they are the
//! client's own end of the connection.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::SendFlags;
use vfiod_client::{Client, Socket};
use vfiod_core::OpenPolicy;
use vfiod_server::Listener;
use vfiod_wire::payload::{DmaMap, IrqSet, RegionAccess};
use vfiod_wire::{Command, Kind};
use zerocopy::IntoBytes;

use crate::rig::*;
use crate::testing::{Lingering, send_byte};

/// More than threads may be with one device.
const CONNECTIONS: usize = 40;

/// Sends bytes with a socket whose close does not return, which nobody else has.
fn send_with(socket: &Socket, bytes: &[u8], lingering: &Lingering) {
    lingering.send_with(|fd| socket.send(bytes, &[fd])).unwrap();
}

/// A REGION_READ, which asks for no descriptor.
fn read() -> Vec<u8> {
    let access = RegionAccess { offset: 0, region: PLAIN, count: 4 };
    message(1, Command::RegionRead, access.as_bytes())
}

/// That a client that was there before and one that comes are served, and that the server ends.
fn assert_harmless(rig: Rig, before: &mut Client, lingering: impl Sized) {
    // Whatever fails, the server's end does not wait for them.
    let served = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        before.device_info().unwrap();
        rig.assert_alive();
    }));
    let (told, ended) = std::sync::mpsc::channel();
    let ending = std::thread::spawn(move || {
        drop(rig);
        let _ = told.send(());
    });
    let ended = ended.recv_timeout(PATIENCE);
    drop(lingering);
    ending.join().unwrap();
    assert!(served.is_ok(), "somebody is held up");
    ended.expect("the server's end waits for them");
}

#[test]
fn unasked_descriptors_with_a_request_hold_up_nobody() {
    let rig = Rig::new();
    let mut before = rig.client();
    let lingering: Vec<_> = (0..CONNECTIONS).map(|_| Lingering::new()).collect();
    let mut clients = Vec::new();
    for lingering in &lingering {
        let socket = negotiated(&rig);
        send_with(&socket, &read(), lingering);
        assert_eq!(socket.receive_message().unwrap().header.kind(), Kind::Reply(Ok(())));
        clients.push(socket);
    }
    assert_harmless(rig, &mut before, lingering);
}

#[test]
fn descriptors_before_negotiation_hold_up_nobody() {
    let rig = Rig::new();
    let mut before = rig.client();
    let lingering: Vec<_> = (0..CONNECTIONS).map(|_| Lingering::new()).collect();
    let sockets: Vec<_> = lingering.iter().map(|_| rig.socket()).collect();
    let version = version_message();
    for (at, (socket, lingering)) in sockets.iter().zip(&lingering).enumerate() {
        // Half of a VERSION, or a whole one.
        let whole = at % 2 == 0;
        send_with(socket, if whole { &version } else { &version[..1] }, lingering);
        if whole {
            let reply = socket.receive_message().unwrap();
            assert_eq!(reply.header.kind(), Kind::Reply(Ok(())));
        }
    }
    // A command that came together with VERSION has lost its descriptor, and says so.
    let socket = rig.socket();
    let map = DmaMap { argsz: 32, flags: 3, offset: 0, address: 0, size: 0x1000 };
    let both = [version, message(2, Command::DmaMap, map.as_bytes())].concat();
    socket.send(&both, &[event().as_fd()]).unwrap();
    assert_eq!(socket.receive_message().unwrap().header.kind(), Kind::Reply(Ok(())));
    assert_eq!(reply_errno(&socket.receive_message().unwrap()), EINVAL);
    assert_harmless(rig, &mut before, lingering);
}

#[test]
fn wrong_descriptors_for_interrupts_and_dma_hold_up_nobody() {
    let rig = Rig::new();
    let mut before = rig.client();
    let set = IrqSet { argsz: 20, flags: 0x24, index: VECTORS, start: 0, count: 1 };
    let map = DmaMap { argsz: 32, flags: 3, offset: 0, address: 0, size: 0x1000 };
    let messages = [
        (message(1, Command::DeviceSetIrqs, set.as_bytes()), EINVAL),
        (message(2, Command::DmaMap, map.as_bytes()), ENODEV),
    ];
    let mut kept = Vec::new();
    for _ in 0..CONNECTIONS / 2 {
        for (bytes, errno) in &messages {
            let (socket, lingering) = (negotiated(&rig), Lingering::new());
            send_with(&socket, bytes, &lingering);
            assert_eq!(reply_errno(&socket.receive_message().unwrap()), *errno);
            kept.push((socket, lingering));
        }
    }
    assert_harmless(rig, &mut before, kept);
}

#[test]
fn descriptors_in_the_middle_of_large_data_hold_up_nobody() {
    let rig = Rig::new();
    let mut before = rig.client();
    let access = RegionAccess { offset: 0, region: MEMORY, count: 1 << 20 };
    let data = vec![7; 1 << 20];
    let bytes = message(1, Command::RegionWrite, &[access.as_bytes(), &data].concat());
    let mut kept = Vec::new();
    for _ in 0..CONNECTIONS {
        let (socket, lingering) = (negotiated(&rig), Lingering::new());
        let (first, rest) = bytes.split_at(300_000);
        socket.send(first, &[]).unwrap();
        send_with(&socket, &rest[..1], &lingering);
        socket.send(&rest[1..], &[]).unwrap();
        assert_eq!(socket.receive_message().unwrap().header.kind(), Kind::Reply(Ok(())));
        kept.push((socket, lingering));
    }
    assert_harmless(rig, &mut before, kept);
}

#[test]
fn descriptors_with_urgent_bytes_hold_up_nobody() {
    let rig = Rig::new();
    let mut before = rig.client();
    let mut kept = Vec::new();
    for _ in 0..CONNECTIONS {
        let (socket, lingering) = (negotiated(&rig), Lingering::new());
        // The urgent byte is the first of a message.
        let id_and_rest = message(u16::from(b'x'), Command::RegionRead, &read()[16..]);
        lingering.send_with(|fd| send_byte(&socket, fd, SendFlags::OOB));
        socket.send(&id_and_rest[1..], &[]).unwrap();
        assert_eq!(socket.receive_message().unwrap().header.kind(), Kind::Reply(Ok(())));
        kept.push((socket, lingering));
    }
    assert_harmless(rig, &mut before, kept);
}

#[test]
fn descriptors_that_nobody_has_received_hold_up_nobody() {
    let rig = Rig::new();
    let mut before = rig.client();
    let mut kept = Vec::new();
    let sockets: Vec<_> = (0..CONNECTIONS).map(|_| negotiated(&rig)).collect();
    let stall = Stall::new();
    let mut stalling = rig.client();
    stalling.post(Command::RegionWrite, &stall.payload(), &[]).unwrap();
    stall.await_begin();
    // They wait for the device, and end with the second message. The third is never received.
    let bad = vfiod_wire::Header { id: 1, command: 9, size: 3, flags: 0, error: 0 };
    for socket in sockets {
        let lingering = Lingering::new();
        socket.send(&read(), &[]).unwrap();
        socket.send(bad.as_bytes(), &[event().as_fd()]).unwrap();
        send_with(&socket, &read(), &lingering);
        kept.push((socket, lingering));
    }
    drop(stall);
    for (socket, _) in &kept {
        socket.receive_message().unwrap();
        assert_closed(socket);
    }
    drop(stalling);
    assert_harmless(rig, &mut before, kept);
}

#[test]
fn device_with_too_many_of_them_takes_no_client_until_they_are_closed() {
    let rig = Rig::new();
    let mut before = rig.client();
    let (other, path) = (Rig::new(), rig.path.with_extension("other"));
    let listener = Listener::bind(&path, Default::default()).unwrap();
    let device = other.registration.as_ref().unwrap().device().clone();
    let _served = rig.server.serve(listener, device).unwrap();

    let lingering: Vec<_> = (0..120).map(|_| Lingering::new()).collect();
    let sockets: Vec<_> = lingering.iter().map(|_| rig.socket()).collect();
    for (socket, lingering) in sockets.iter().zip(&lingering) {
        send_with(socket, b"x", lingering);
    }
    // One that has not negotiated ends at its next byte, once nothing has been closed for a while. In
    // turns and slowly, so that none gets to the end of a header, which would be a wrong one.
    let mut turns = (0..14).flat_map(|_| &sockets);
    eventually("the device takes no more", || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        turns.next().expect("a socket that may send").send(b"x", &[]).is_err()
    });
    let newcomer = rig.socket();
    newcomer.send(&version_message(), &[]).unwrap();
    // Who was there is served, and the other device's clients.
    for _ in 0..10 {
        before.device_info().unwrap();
        connect(&path).unwrap().device_info().unwrap();
    }
    let mut fds = [rustix::event::PollFd::new(&newcomer, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut fds, Some(&now)), Ok(0), "it waits");
    drop(lingering);
    assert_eq!(newcomer.receive_message().unwrap().header.kind(), Kind::Reply(Ok(())));
    rig.assert_alive();
}

/// A duplicate of a client's own end.
fn own_end(socket: &Socket) -> OwnedFd {
    socket.as_fd().try_clone_to_owned().unwrap()
}

#[test]
fn client_that_sends_its_own_end_is_seen_to_go() {
    let rig = Rig::with(OpenPolicy::Single, server_options());
    let set = IrqSet { argsz: 20, flags: 0x24, index: VECTORS, start: 0, count: 1 };
    let irqs = message(1, Command::DeviceSetIrqs, set.as_bytes());
    type Wrap = fn(&Socket) -> OwnedFd;
    let bare: Wrap = own_end;
    let in_a_socket: Wrap = |socket| {
        let (one, other) = UnixStream::pair().unwrap();
        send_byte(&one, own_end(socket).as_fd(), SendFlags::empty());
        other.into()
    };
    let in_each_other: Wrap = |socket| {
        let (one, other) = UnixStream::pair().unwrap();
        send_byte(&one, own_end(socket).as_fd(), SendFlags::empty());
        send_byte(&one, one.as_fd(), SendFlags::empty());
        send_byte(&other, other.as_fd(), SendFlags::empty());
        other.into()
    };
    let in_an_epoll: Wrap = |socket| {
        use rustix::event::epoll;
        let watching = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let data = epoll::EventData::new_u64(0);
        epoll::add(&watching, socket, data, epoll::EventFlags::IN).unwrap();
        watching
    };
    for wrap in [bare, in_a_socket, in_each_other, in_an_epoll] {
        for (bytes, reply) in
            [(&irqs[..20], false), (&irqs[..], true), (&read(), true), (&read()[..1], false)]
        {
            let socket = negotiated(&rig);
            let fd = wrap(&socket);
            socket.send(bytes, &[fd.as_fd()]).unwrap();
            drop(fd);
            if reply {
                socket.receive_message().unwrap();
            }
            drop(socket);
            rig.wait_idle();
        }
        // Before negotiation there is no device to keep, but a connection.
        let socket = rig.socket();
        socket.send(&version_message()[..4], &[wrap(&socket).as_fd()]).unwrap();
        drop(socket);
        rig.wait_idle();
    }
    rig.assert_alive();
}

#[test]
fn client_that_sends_its_own_end_behind_a_stalled_request_is_seen_to_go() {
    let rig = Rig::with(OpenPolicy::Single, server_options());
    let socket = negotiated(&rig);
    let stall = Stall::new();
    socket.send(&message(1, Command::RegionWrite, &stall.payload()), &[]).unwrap();
    stall.await_begin();
    for _ in 0..10 {
        socket.send(&read(), &[own_end(&socket).as_fd()]).unwrap();
    }
    drop(socket);
    drop(stall);
    rig.wait_idle();
    rig.assert_alive();
}
