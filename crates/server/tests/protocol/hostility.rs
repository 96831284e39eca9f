//! Clients that mean harm: an errno or a clean end, the server alive, nothing leaked.

use std::os::fd::AsFd;

use vfiod_client::{Error, GuestMemory};
use vfiod_core::OpenPolicy;
use vfiod_wire::payload::{DmaMap, IrqSet, RegionAccess};
use vfiod_wire::{Command, Header, Kind};
use zerocopy::IntoBytes;

use crate::rig::*;

/// A message of every kind that a client sends, well-formed.
pub(crate) fn every_message() -> Vec<Vec<u8>> {
    let access = RegionAccess { offset: 0, region: PLAIN, count: 4 };
    let map = DmaMap { argsz: 32, flags: 3, offset: 0, address: 0x1000, size: 0x1000 };
    let irqs = IrqSet { argsz: 20, flags: 0x21, index: VECTORS, start: 0, count: 0 };
    vec![
        message(1, Command::DmaMap, map.as_bytes()),
        message(2, Command::DmaUnmap, [24u32, 0, 0x1000, 0, 0x1000, 0].as_bytes()),
        message(3, Command::DeviceGetInfo, [16u32, 0, 0, 0].as_bytes()),
        message(4, Command::DeviceGetRegionInfo, [64u32, 0, SPARSE, 0, 0, 0, 0, 0].as_bytes()),
        message(5, Command::DeviceGetRegionIoFds, [512u32, 0, PLAIN, 0].as_bytes()),
        message(6, Command::DeviceGetIrqInfo, [16u32, 0, VECTORS, 0].as_bytes()),
        message(7, Command::DeviceSetIrqs, irqs.as_bytes()),
        message(8, Command::RegionRead, access.as_bytes()),
        message(9, Command::RegionWrite, &[access.as_bytes(), &[1; 4]].concat()),
        message(10, Command::DeviceReset, &[]),
        message(11, Command::RegionWriteMulti, &0u64.to_ne_bytes()),
        message(12, Command::DeviceFeature, &[16, 0, 0, 0, 0x42, 0x42, 1, 0]),
        message(13, Command::MigDataRead, [8u32, 0].as_bytes()),
    ]
}

#[test]
fn client_that_disconnects_at_any_byte_of_any_message_harms_nobody() {
    let rig = Rig::with(OpenPolicy::Single, server_options());
    for whole in std::iter::once(version_message()).chain(every_message()) {
        for cut in 0..=whole.len() {
            let socket = if whole[2] == 1 { rig.socket() } else { negotiated(&rig) };
            socket.send(&whole[..cut], &[]).unwrap();
            drop(socket);
            rig.wait_idle(); // and so the device is closed: it takes one client only
        }
    }
    rig.assert_alive();
}

#[test]
fn messages_sent_byte_by_byte_are_handled() {
    let rig = Rig::new();
    let socket = rig.socket();
    let mut messages = vec![version_message()];
    messages.extend(every_message());
    for whole in messages {
        for byte in &whole {
            socket.send(std::slice::from_ref(byte), &[]).unwrap();
        }
        let reply = socket.receive_message().unwrap();
        assert!(matches!(reply.header.kind(), Kind::Reply(_)));
        assert_eq!(reply.header.id.to_ne_bytes(), whole[..2]);
    }
}

#[test]
fn message_sent_byte_by_byte_keeps_its_descriptor() {
    let rig = Rig::new();
    let mut client = rig.client();
    let memory = GuestMemory::new(0x1000).unwrap();
    memory.write(0, &[0x77]).unwrap();
    let map = DmaMap { argsz: 32, flags: 3, offset: 0, address: 0x1000, size: 0x1000 };
    let bytes = message(500, Command::DmaMap, map.as_bytes());
    client.socket().send(&bytes[..1], &[memory.fd()]).unwrap();
    for byte in &bytes[1..] {
        client.socket().send(std::slice::from_ref(byte), &[]).unwrap();
    }
    assert_eq!(client.socket().receive_message().unwrap().header.kind(), Kind::Reply(Ok(())));
    assert_eq!(dma(&mut client, DMA_READ, 0x1000, 1), 0);
}

#[test]
fn sizes_that_make_the_stream_meaningless_end_it() {
    let rig = Rig::new();
    for size in [0u32, 1, 15, (1 << 20) + 8192, 1 << 30, u32::MAX] {
        let socket = negotiated(&rig);
        let header = Header { id: 1, command: 9, size, flags: 0, error: 0 };
        socket.send(header.as_bytes(), &[]).unwrap();
        assert!(matches!(socket.receive_message(), Err(Error::Closed)), "size {size}");
        // The same before negotiation, where less is allowed.
        let socket = rig.socket();
        socket.send(header.as_bytes(), &[]).unwrap();
        assert!(matches!(socket.receive_message(), Err(Error::Closed)), "size {size}");
    }
    rig.wait_idle();
    rig.assert_alive();
}

#[test]
fn a_bad_size_behind_good_messages_ends_the_stream_after_their_answers() {
    let rig = Rig::new();
    let socket = negotiated(&rig);
    let mut bytes = message(1, Command::DeviceReset, &[]);
    bytes.extend(Header { id: 2, command: 9, size: 3, flags: 0, error: 0 }.as_bytes());
    socket.send(&bytes, &[]).unwrap();
    assert_eq!(socket.receive_message().unwrap().header.id, 1);
    assert!(matches!(socket.receive_message(), Err(Error::Closed)));
}

#[test]
fn unknown_message_types_are_refused() {
    let rig = Rig::new();
    let socket = negotiated(&rig);
    for flags in [2u32, 3, 15, 0xf] {
        socket
            .send(Header { id: 4, command: 9, size: 16, flags, error: 0 }.as_bytes(), &[])
            .unwrap();
        assert_eq!(reply_errno(&socket.receive_message().unwrap()), EINVAL);
    }
}

#[test]
fn random_messages_harm_nobody() {
    let rig = Rig::new();
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..300 {
        let socket = if round % 3 == 0 { rig.socket() } else { negotiated(&rig) };
        for _ in 0..20 {
            let len = (random() % 64) as usize;
            let mut payload: Vec<u8> =
                (0..len).map(|_| (random() >> (random() % 56)) as u8).collect();
            // Often plausible, so that it gets past the first check.
            if random() % 2 == 0 && payload.len() >= 16 {
                payload[8..12].copy_from_slice(&(random() as u32 % 8).to_ne_bytes());
            }
            let header = Header {
                id: random() as u16,
                command: (random() % 20) as u16,
                size: (16 + len) as u32,
                flags: if random() % 8 == 0 {
                    random() as u32
                } else {
                    0x10 * (random() % 2) as u32
                },
                error: random() as u32,
            };
            let mut bytes = header.as_bytes().to_vec();
            bytes.extend(payload);
            if socket.send(&bytes, &[]).is_err() {
                break;
            }
        }
    }
    rig.wait_idle();
    // Something in there may have asked the device to panic; a reset brings it back.
    rig.client().reset().unwrap();
    rig.assert_alive();
}

#[test]
fn unrequested_descriptors_are_closed() {
    let rig = Rig::new();
    let mut client = rig.client();
    client.device_info().unwrap();
    let (watched, other) = std::os::unix::net::UnixStream::pair().unwrap();
    let sent = [other.as_fd(); 8];
    for _ in 0..10 {
        client.call(Command::DeviceReset, &[], &sent).unwrap();
        let read = RegionAccess { offset: 0, region: PLAIN, count: 4 };
        client.call(Command::RegionRead, read.as_bytes(), &sent).unwrap();
        refused(client.call(Command::DeviceGetInfo, &[], &sent));
        client.post(Command::DeviceReset, &[], &sent).unwrap();
    }
    client.device_info().unwrap();
    // When ours is gone too, the other end sees the end: the server kept none.
    drop(other);
    watched.set_read_timeout(Some(PATIENCE)).unwrap();
    let read = std::io::Read::read(&mut &watched, &mut [0]);
    assert!(matches!(read, Ok(0)), "{read:?}");
    client.device_info().unwrap();
}

#[test]
fn dma_map_with_too_many_descriptors_is_refused() {
    let rig = Rig::new();
    let mut client = rig.client();
    let event = event();
    let fds = vec![event.as_fd(); 60];
    let map = DmaMap { argsz: 32, flags: 3, offset: 0, address: 0, size: 0x1000 };
    assert_eq!(refused(client.call(Command::DmaMap, map.as_bytes(), &fds)), EINVAL);
    client.device_info().unwrap();
}

#[test]
fn a_client_that_never_reads_stops_being_served_and_nobody_else() {
    // The memory of the whole process is measured.
    if !alone("hostility::a_client_that_never_reads_stops_being_served_and_nobody_else") {
        return;
    }
    let rig = Rig::new();
    let greedy = negotiated(&rig);
    let read = RegionAccess { offset: 0, region: LARGE, count: 1 << 20 };
    let command = message(1, Command::RegionRead, read.as_bytes());
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/statm").unwrap();
        status.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let before = resident();
    // 8 GiB of answers, if they were made; a non-blocking socket, so that we can see it fill up.
    rustix::io::ioctl_fionbio(greedy.as_fd(), true).unwrap();
    for _ in 0..8192 {
        if greedy.send(&command, &[]).is_err() {
            break;
        }
    }
    rig.assert_alive();
    let grown = resident().saturating_sub(before);
    assert!(grown < 256 << 20, "{grown} bytes for answers that nobody reads");
    drop(greedy);
    rig.wait_idle();
}

#[test]
fn flood_of_malformed_posted_messages_harms_nobody() {
    let rig = Rig::new();
    let mut client = rig.client();
    let bad = [RegionAccess { offset: 0, region: 77, count: 4 }.as_bytes(), &[0; 4]].concat();
    for _ in 0..100_000 {
        client.post(Command::RegionWrite, &bad, &[]).unwrap();
    }
    client.device_info().unwrap();
}

#[test]
fn more_connections_than_a_device_takes_are_closed() {
    let rig = Rig::new();
    let mut sockets = Vec::new();
    let mut closed = 0;
    for _ in 0..300 {
        let socket = rig.socket();
        sockets.push(socket);
    }
    for socket in &sockets {
        // Sending to a closed one fails, or the answer is the end.
        let sent = socket.send(&version_message(), &[]);
        if sent.is_err() || socket.receive_message().is_err() {
            closed += 1;
        }
    }
    // One may have been closed only just after it was answered: for its silence before.
    eventually("those that it takes", || rig.served.as_ref().unwrap().connections() <= 256);
    assert!(closed > 0);
    drop(sockets);
    rig.wait_idle();
    rig.assert_alive();
}

#[test]
fn stalled_device_delays_no_client_of_another() {
    let stalled = Rig::new();
    // Two devices of one server.
    let dir = tempfile::tempdir().unwrap();
    let other = Rig::new();
    let path = dir.path().join("other");
    let listener = vfiod_server::Listener::bind(&path, Default::default()).unwrap();
    let device = other.registration.as_ref().unwrap().device().clone();
    let served = stalled.server.serve(listener, device).unwrap();
    let mut waiting = stalled.client();
    let stall = Stall::new();
    waiting.post(Command::RegionWrite, &stall.payload(), &[]).unwrap();
    stall.await_begin();
    let mut client = connect(&path).unwrap();
    for _ in 0..100 {
        client.device_info().unwrap();
        write_u64(&mut client, PLAIN, 0, 1);
    }
    drop(stall);
    waiting.device_info().unwrap();
    drop(client);
    drop(served);
}

#[test]
fn two_hundred_clients_leave_no_descriptor_open() {
    if !alone("hostility::two_hundred_clients_leave_no_descriptor_open") {
        return;
    }
    let rig = Rig::with(OpenPolicy::Single, server_options());
    let memory = GuestMemory::new(1 << 20).unwrap();
    let event = event();
    let round = |i: u64| {
        let mut client = rig.client();
        client.dma_map(0, 0x1000, Some((memory.fd(), 0))).unwrap();
        client.dma_map(0x10000, 0x1000, None).unwrap();
        refused(client.dma_map(0, 0x1000, Some((memory.fd(), 0))));
        let fds = [event.as_fd(), event.as_fd()];
        let data = vfiod_client::IrqData::EventFds(&fds);
        client.set_irqs(VECTORS, 0, 2, vfiod_client::IrqAction::Trigger, data).unwrap();
        client.region_info(SPARSE).unwrap();
        client.region_io_fds(KNOBS).unwrap();
        if i.is_multiple_of(2) {
            // Dies in the middle of a message, with a descriptor on the way.
            let map = DmaMap { argsz: 32, flags: 3, offset: 0, address: 0x9000, size: 0x1000 };
            let bytes = message(1, Command::DmaMap, map.as_bytes());
            client.socket().send(&bytes[..20], &[memory.fd()]).unwrap();
        }
        drop(client);
        rig.wait_idle();
    };
    (0..20).for_each(round);
    let before = open_descriptors();
    (0..200).for_each(round);
    eventually("all descriptors are closed", || open_descriptors() <= before);
}

/// What it is sent is dropped, descriptors included.
#[test]
fn client_that_takes_no_replies_asks_for_descriptors_and_ends_as_any_other() {
    let rig = Rig::new();
    let socket = negotiated(&rig);
    rustix::net::shutdown(&socket, rustix::net::Shutdown::Read).unwrap();
    let info =
        message(4, Command::DeviceGetRegionInfo, [64u32, 0, SPARSE, 0, 0, 0, 0, 0].as_bytes());
    for round in 1..=3 {
        socket.send(&info.repeat(3), &[]).unwrap();
        eventually("they are handled", || {
            rig.served.as_ref().unwrap().clients()[0].messages == 1 + 3 * round
        });
    }
    drop(socket);
    eventually("its connection has ended", || rig.connections() == 0);
    rig.client().device_info().unwrap();
}
