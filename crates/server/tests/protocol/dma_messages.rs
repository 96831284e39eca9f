//! DMA_READ and DMA_WRITE: memory that the client gave no descriptor for.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SendFlags;
use vfiod_client::{Client, GuestMemory, Options, RawMessage, Socket};
use vfiod_core::OpenPolicy;
use vfiod_server::quota::{Limit, Resource, Share, Size};
use vfiod_wire::payload::{DmaAccess, DmaMap, RegionAccess, dma_flag};
use vfiod_wire::{Capabilities, Command, Kind, TwinSocket, Version};
use zerocopy::{FromBytes, IntoBytes};

use crate::rig::*;

const IOVA: u64 = 0x4000_0000;
const SIZE: u64 = 4 << 20;

fn client_with_messages(rig: &Rig, options: Options) -> (Client, GuestMemory) {
    rig.wait_idle(); // windows are the device's: those of a client before must be gone
    let memory = GuestMemory::new(SIZE).unwrap();
    memory.attach(IOVA, SIZE, 0);
    let mut client = rig.client_with(options.memory(memory.clone()));
    client.dma_map(IOVA, SIZE, None).unwrap();
    (client, memory)
}

fn both_ways(client: &mut Client, memory: &GuestMemory) {
    memory.write(0x123, b"by message").unwrap();
    assert_eq!(dma(client, DMA_READ, IOVA + 0x123, 10), 0);
    let mut data = [0; 10];
    client.region_read(PLAIN, 0, &mut data).unwrap();
    assert_eq!(&data, b"by message");
    client.region_write(PLAIN, 0, b"back again").unwrap();
    assert_eq!(dma(client, DMA_WRITE, IOVA + 0x456, 10), 0);
    memory.read(0x456, &mut data).unwrap();
    assert_eq!(&data, b"back again");
}

#[test]
fn dma_message_on_the_only_socket_is_answered_while_a_command_waits() {
    let rig = Rig::new();
    let (mut client, memory) = client_with_messages(&rig, options());
    for _ in 0..50 {
        both_ways(&mut client, &memory);
    }
}

#[test]
fn dma_messages_travel_on_the_second_socket() {
    let rig = Rig::new();
    let (mut client, memory) = client_with_messages(&rig, options().twin_socket());
    assert!(client.has_twin_socket());
    for _ in 0..50 {
        both_ways(&mut client, &memory);
    }
}

#[test]
fn client_without_a_pending_command_serves_dma_messages() {
    let rig = Rig::new();
    for options in [options(), options().twin_socket()] {
        let (mut client, _memory) = client_with_messages(&rig, options);
        for _ in 0..20 {
            start_dma(&mut client, DMA_READ, IOVA, 0x1000);
            // Served while the client waits for its own answers, or for nothing.
            client.serve_dma(Duration::from_millis(1)).unwrap();
            assert_eq!(dma_errno(&mut client), 0);
        }
    }
}

#[test]
fn large_transfers_are_cut_to_what_the_client_takes() {
    let rig = Rig::new();
    let mut options = options();
    options.capabilities.max_data_xfer_size = Some(5000);
    let (mut client, memory) = client_with_messages(&rig, options);
    let data: Vec<u8> = (0..8192u32).map(|i| ((i * 31) >> 3) as u8).collect();
    memory.write(0, &data).unwrap();
    assert_eq!(dma(&mut client, DMA_READ, IOVA, 8192), 0);
    let mut back = vec![0; 8192];
    client.region_read(PLAIN, 0, &mut back).unwrap();
    assert!(back == data);
}

/// Sends a message as QEMU does: with one call that does not wait. If nothing of it was sent, it is sent
/// again; if a part was, it passes for sent.
fn send_once(socket: &Socket, message: &[u8]) {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    while let Err(errno) = rustix::net::send(socket, message, flags) {
        assert_eq!(errno, Errno::AGAIN);
        poll(&mut [PollFd::new(socket, PollFlags::OUT)], None).unwrap();
    }
}

#[test]
fn client_that_drops_the_rest_of_a_partly_sent_reply_is_read_all_the_same() {
    const LEN: u64 = 2 << 20;
    let rig = Rig::new();
    let mut client = rig.client();
    client.dma_map(IOVA, SIZE, None).unwrap();
    write_u64(&mut client, DMA, 0, IOVA);
    write_u64(&mut client, DMA, 8, LEN);
    client.socket().send(&message(77, Command::RegionWrite, &start()), &[]).unwrap();
    let mut left = LEN;
    while left > 0 {
        let request = request(&client);
        assert_eq!(request.header.command, Command::DmaRead as u16);
        let access = DmaAccess::read_from_bytes(&request.payload).unwrap();
        let payload = [access.as_bytes(), &vec![0x77; access.count as usize]].concat();
        let reply = [request.header.reply(payload.len()).as_bytes(), &payload].concat();
        send_once(client.socket(), &reply);
        left -= access.count;
    }
    assert_eq!(dma_errno(&mut client), 0);
    let mut data = [0; PLAIN_SIZE as usize];
    client.region_read(PLAIN, 0, &mut data).unwrap();
    assert!(data == [0x77; PLAIN_SIZE as usize]);
}

#[test]
fn commands_are_handled_while_a_transfer_runs() {
    let rig = Rig::new();
    let (mut client, _memory) = client_with_messages(&rig, options());
    write_u64(&mut client, DMA, 0, IOVA);
    write_u64(&mut client, DMA, 8, 16);
    let op = [RegionAccess { offset: 16, region: DMA, count: 8 }.as_bytes(), DMA_READ.as_bytes()]
        .concat();
    let started = client.submit(Command::RegionWrite, &op, &[]).unwrap();
    let read = RegionAccess { offset: 0, region: PLAIN, count: 4 };
    let behind: Vec<_> = (0..100)
        .map(|_| client.submit(Command::RegionRead, read.as_bytes(), &[]).unwrap())
        .collect();
    client.complete(started).unwrap();
    for id in behind {
        client.complete(id).unwrap();
    }
    assert_eq!(dma_errno(&mut client), 0);
}

#[test]
fn a_client_that_refuses_gives_the_device_its_errno() {
    let rig = Rig::new();
    let mut client = rig.client(); // no memory: refuses with EFAULT
    client.dma_map(IOVA, SIZE, None).unwrap();
    assert_eq!(dma(&mut client, DMA_READ, IOVA, 16), EFAULT);
    assert_eq!(dma(&mut client, DMA_WRITE, IOVA, 16), EFAULT);
    client.device_info().unwrap();
}

/// The client's next message that is a command, and the replies before it.
fn request(client: &Client) -> vfiod_client::RawMessage {
    loop {
        let message = client.socket().receive_message().unwrap();
        if message.header.kind() == Kind::Command {
            return message;
        }
    }
}

#[test]
fn client_that_does_not_answer_fails_the_transfer_after_three_seconds() {
    let rig = Rig::new();
    let mut client = rig.client();
    client.dma_map(IOVA, SIZE, None).unwrap();
    write_u64(&mut client, DMA, 0, IOVA);
    write_u64(&mut client, DMA, 8, 16);
    client.socket().send(&message(77, Command::RegionWrite, &start()), &[]).unwrap();
    let request = request(&client);
    assert_eq!(request.header.command, Command::DmaRead as u16);
    let access = DmaAccess::read_from_bytes(&request.payload).unwrap();
    assert_eq!(access, DmaAccess { address: IOVA, count: 16 });
    // Nobody waits for it but the transfer.
    let mut other = rig.client();
    other.device_info().unwrap();
    assert_eq!(dma_errno(&mut other), ETIMEDOUT);
}

fn start() -> Vec<u8> {
    [RegionAccess { offset: 16, region: DMA, count: 8 }.as_bytes(), DMA_READ.as_bytes()].concat()
}

/// The reset waits for the transfer, whose reply is behind it, and behind another command.
#[test]
fn dma_reply_overtakes_a_reset_that_waits_for_it() {
    let rig = Rig::new();
    let mut client = rig.client();
    client.dma_map(IOVA, SIZE, None).unwrap();
    write_u64(&mut client, KNOBS, RESET_AWAITS_DMA, 1);
    write_u64(&mut client, DMA, 0, IOVA);
    write_u64(&mut client, DMA, 8, 16);
    client.socket().send(&message(77, Command::RegionWrite, &start()), &[]).unwrap();
    let request = request(&client);
    let payload = [&request.payload[..], &[9; 16]].concat();
    let reply = [request.header.reply(payload.len()).as_bytes(), &payload].concat();
    let read = RegionAccess { offset: DMA_WAS_DONE, region: KNOBS, count: 1 };
    let reset = message(78, Command::DeviceReset, &[]);
    let behind = message(79, Command::RegionRead, read.as_bytes());
    client.socket().send(&[reset, behind, reply].concat(), &[]).unwrap();
    loop {
        let message = client.socket().receive_message().unwrap();
        if message.header.id == 79 {
            assert_eq!(message.payload[16..], [1], "the reset was over first");
            break;
        }
    }
}

#[test]
fn malformed_dma_replies_fail_the_transfer() {
    let rig = Rig::new();
    for bad in [
        Vec::new(),
        vec![0; 15],
        DmaAccess { address: IOVA, count: 16 }.as_bytes().to_vec(),
        [DmaAccess { address: IOVA, count: 16 }.as_bytes(), &[0; 17]].concat(),
        [DmaAccess { address: IOVA + 1, count: 16 }.as_bytes(), &[0; 16]].concat(),
        [DmaAccess { address: IOVA, count: 15 }.as_bytes(), &[0; 15]].concat(),
    ] {
        rig.wait_idle();
        let mut client = rig.client();
        client.dma_map(IOVA, SIZE, None).unwrap();
        write_u64(&mut client, DMA, 0, IOVA);
        write_u64(&mut client, DMA, 8, 16);
        client.socket().send(&message(77, Command::RegionWrite, &start()), &[]).unwrap();
        let request = request(&client);
        let mut answer = request.header.reply(bad.len()).as_bytes().to_vec();
        answer.extend_from_slice(&bad);
        client.socket().send(&answer, &[]).unwrap();
        let mut other = rig.client();
        assert_eq!(dma_errno(&mut other), u64::from(EIO), "{bad:?}");
    }
}

#[test]
fn unsolicited_replies_are_ignored() {
    let rig = Rig::new();
    let mut client = rig.client();
    for command in Command::ALL {
        let header = vfiod_wire::Header::command(5, *command, 0, false).reply(0);
        client.socket().send(header.as_bytes(), &[]).unwrap();
    }
    client.device_info().unwrap();
}

#[test]
fn the_server_only_commands_are_refused_from_clients() {
    let rig = Rig::new();
    let mut client = rig.client();
    let access = DmaAccess { address: 0, count: 0 };
    assert_eq!(refused(client.call(Command::DmaRead, access.as_bytes(), &[])), EINVAL);
    assert_eq!(refused(client.call(Command::DmaWrite, access.as_bytes(), &[])), EINVAL);
}

/// A client that takes nothing does not make the server queue what has timed out, without end.
#[test]
fn writes_to_a_client_that_takes_nothing_are_not_queued_for_ever() {
    const BEFORE: u64 = 0;
    const BLOCKED: u64 = 0x10_0000;
    const AFTER: u64 = 0x20_0000;
    let mut options = server_options();
    // No room for a large socket buffer.
    let memory = Limit::new(Size::Common(0), Share::Demanded(300 << 10));
    options.limits.set(Resource::Memory, memory);
    let rig = Rig::with(OpenPolicy::Multi, options);
    let socket = rig.socket();
    let capabilities = Capabilities {
        twin_socket: Some(TwinSocket { supported: true, fd_index: None }),
        ..Capabilities::default()
    };
    let call = |command: Command, payload: &[u8]| {
        socket.send(&message(1, command, payload), &[]).unwrap();
        let reply = socket.receive_message().unwrap();
        assert_eq!(reply.header.kind(), Kind::Reply(Ok(())), "{command:?}");
        reply
    };
    let version = Version { major: 0, minor: 0, capabilities };
    let twin = call(Command::Version, &version.encode()).fds.pop().unwrap();
    let twin = Socket::from_fd(twin, PATIENCE).unwrap();
    let flags = dma_flag::READ | dma_flag::WRITE;
    let argsz = DmaMap::LEN as u32;
    let map = DmaMap { argsz, flags, offset: 0, address: IOVA, size: SIZE };
    call(Command::DmaMap, map.as_bytes());
    let register = |offset: u64, value: u64| {
        let access = RegionAccess { offset, region: DMA, count: 8 };
        call(Command::RegionWrite, &[access.as_bytes(), &value.to_ne_bytes()].concat());
    };
    let start = |offset: u64| {
        register(0, IOVA + offset);
        register(8, PLAIN_SIZE);
        register(16, DMA_WRITE);
    };
    let write = |offset: u64| {
        start(offset);
        let mut errno = RUNNING;
        eventually("the device gives the write up", || {
            let access = RegionAccess { offset: 24, region: DMA, count: 8 };
            let reply = call(Command::RegionRead, access.as_bytes());
            errno = u64::from_ne_bytes(reply.payload[RegionAccess::LEN..].try_into().unwrap());
            errno != RUNNING
        });
        assert_eq!(errno, ETIMEDOUT);
    };
    // More than the socket holds.
    (0..40).for_each(|_| write(BEFORE));
    (0..10).for_each(|_| write(BLOCKED));
    // What was queued before arrives when the client takes it.
    let address = |message: &RawMessage| {
        DmaAccess::read_from_prefix(&message.payload).unwrap().0.address - IOVA
    };
    let mut taken = 0;
    loop {
        let mut fds = [PollFd::new(&twin, PollFlags::IN)];
        if poll(&mut fds, Some(&Timespec::default())).unwrap() == 0 {
            // Perhaps everything was taken, and perhaps the server has yet to send the rest.
            start(AFTER);
        }
        match address(&twin.receive_message().unwrap()) {
            BEFORE => taken += 1,
            AFTER => break,
            other => panic!("{other:#x} was queued after {taken} messages"),
        }
    }
    assert!(taken > 1, "{taken} messages arrived");
}
