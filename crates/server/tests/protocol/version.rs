//! VERSION.

use vfiod_client::{Options, Socket};
use vfiod_core::OpenPolicy;
use vfiod_wire::{Capabilities, Command, Kind, Version};

use crate::rig::{
    EBUSY, EINVAL, Rig, assert_closed, connect, message, options, reply_errno, server_options,
    version_message,
};

fn exchange(socket: &Socket, bytes: &[u8]) -> vfiod_client::RawMessage {
    socket.send(bytes, &[]).unwrap();
    socket.receive_message().unwrap()
}

#[test]
fn the_version_is_0_0_whatever_minor_is_proposed() {
    let rig = Rig::new();
    for minor in [0u16, 1, 7, u16::MAX] {
        let mut payload = vec![0, 0];
        payload.extend(minor.to_ne_bytes());
        let reply = exchange(&rig.socket(), &message(9, Command::Version, &payload));
        assert_eq!(reply.header.kind(), Kind::Reply(Ok(())));
        assert_eq!(reply.header.id, 9);
        let version = Version::decode(&reply.payload).unwrap();
        assert_eq!((version.major, version.minor), (0, 0));
    }
}

#[test]
fn another_major_is_refused() {
    let rig = Rig::new();
    let socket = rig.socket();
    let reply = exchange(&socket, &message(1, Command::Version, &[1, 0, 0, 0]));
    assert_eq!(reply_errno(&reply), EINVAL);
    assert_closed(&socket);
    rig.assert_alive();
}

#[test]
fn the_reply_fits_qemu() {
    let rig = Rig::new();
    // As QEMU 11.1 sends it.
    let json = br#"{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, "max_data_xfer_size": 1048576, "migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "write_multiple": true}}"#;
    let mut payload = vec![0; 4];
    payload.extend_from_slice(json);
    payload.push(0);
    let reply = exchange(&rig.socket(), &message(0, Command::Version, &payload));
    assert!(reply.header.size <= 214, "{} bytes", reply.header.size);
    assert_eq!(reply.payload.last(), Some(&0), "NUL-terminated");
    let capabilities = Version::decode(&reply.payload).unwrap().capabilities;
    assert_eq!(capabilities.max_msg_fds, Some(8));
    assert!(capabilities.max_data_xfer_size.is_some_and(|max| (1 << 20..=64 << 20).contains(&max)));
    assert_eq!(capabilities.max_dma_maps, None, "no such number is a limit here");
    assert!(capabilities.pgsizes.is_some_and(|sizes| sizes.trailing_zeros() >= 12));
    assert_eq!(capabilities.write_multiple, Some(true));
}

#[test]
fn capabilities_are_optional_and_unknown_ones_ignored() {
    let rig = Rig::new();
    for json in [
        &b""[..],
        b"\0",
        b"{}",
        b"{}\0",
        b"{\"capabilities\":{}}\0",
        b"{\"capabilities\":{\"flux\":[1,{\"x\":null}]},\"more\":1}\0",
    ] {
        let mut payload = vec![0; 4];
        payload.extend_from_slice(json);
        let reply = exchange(&rig.socket(), &message(0, Command::Version, &payload));
        assert_eq!(reply.header.kind(), Kind::Reply(Ok(())), "{json:?}");
    }
}

#[test]
fn json_that_cannot_be_read_is_refused() {
    let rig = Rig::new();
    let deep = [b"[".repeat(1500), b"]".repeat(1500)].concat();
    let long = [b"{\"a\":\"".to_vec(), b"x".repeat(5000), b"\"}".to_vec()].concat();
    for json in [
        &b" \0"[..],
        b"{\0",
        b"[]\0",
        b"{\"capabilities\":1}\0",
        b"{\"capabilities\":{\"max_msg_fds\":-1}}\0",
        b"{\"capabilities\":{\"max_msg_fds\":1e9}}\0",
        b"{\"capabilities\":{\"max_msg_fds\":\"8\"}}\0",
        b"\xff\xfe\0",
        &deep,
    ] {
        let socket = rig.socket();
        let mut payload = vec![0; 4];
        payload.extend_from_slice(json);
        let reply = exchange(&socket, &message(0, Command::Version, &payload));
        assert_eq!(reply_errno(&reply), EINVAL);
        assert_closed(&socket);
    }
    // So long that the message itself makes no sense yet.
    let socket = rig.socket();
    let mut payload = vec![0; 4];
    payload.extend_from_slice(&long);
    socket.send(&message(0, Command::Version, &payload), &[]).unwrap();
    assert_closed(&socket);
    rig.assert_alive();
}

/// Otherwise a client could have a page asked for in 4,096 messages.
#[test]
fn transfers_of_less_than_a_page_are_refused() {
    let rig = Rig::new();
    for (size, errno) in [(0, EINVAL), (1, EINVAL), (4095, EINVAL), (4096, 0)] {
        let json = format!("{{\"capabilities\":{{\"max_data_xfer_size\":{size}}}}}\0");
        let payload = [&[0; 4], json.as_bytes()].concat();
        let reply = exchange(&rig.socket(), &message(0, Command::Version, &payload));
        let is_taken = reply.header.kind() == Kind::Reply(Ok(()));
        assert_eq!(is_taken, errno == 0, "a client that takes {size} bytes");
        let got = if is_taken { 0 } else { reply_errno(&reply) };
        assert_eq!(got, errno, "{size}");
    }
}

#[test]
fn a_version_shorter_than_its_numbers_is_refused() {
    let rig = Rig::new();
    for len in 0..4 {
        let socket = rig.socket();
        let reply = exchange(&socket, &message(0, Command::Version, &[0; 4][..len]));
        assert_eq!(reply_errno(&reply), EINVAL);
        assert_closed(&socket);
    }
}

#[test]
fn nothing_comes_before_version() {
    let rig = Rig::new();
    for command in Command::ALL.iter().filter(|command| **command != Command::Version) {
        let socket = rig.socket();
        let reply = exchange(&socket, &message(3, *command, &[0; 32]));
        assert_eq!(reply_errno(&reply), EINVAL, "{}", command.name());
        assert_closed(&socket);
    }
    rig.wait_idle();
}

#[test]
fn version_twice_is_refused_and_changes_nothing() {
    let rig = Rig::new();
    let socket = rig.socket();
    exchange(&socket, &version_message());
    let reply = exchange(&socket, &version_message());
    assert_eq!(reply_errno(&reply), EINVAL);
    let reply = exchange(&socket, &message(5, Command::DeviceReset, &[]));
    assert_eq!(reply.header.kind(), Kind::Reply(Ok(())));
}

#[test]
fn a_single_open_device_takes_one_client() {
    let rig = Rig::with(OpenPolicy::Single, server_options());
    let first = rig.client();
    let second = connect(&rig.path).unwrap_err();
    assert_eq!(second.remote_errno(), Some(EINVAL));
    drop(first);
    rig.wait_idle();
    rig.client();
}

#[test]
fn a_multi_open_device_takes_one_owner() {
    let rig = Rig::new();
    let mut clients: Vec<_> = (0..5).map(|_| rig.client()).collect();
    for client in &mut clients {
        client.device_info().unwrap();
    }
    let device = rig.registration.as_ref().unwrap().device();
    let other = device.open(vfiod_core::Owner::in_process("somebody else"));
    assert_eq!(other.err().map(|error| error.errno().raw_os_error() as u32), Some(EBUSY));
}

#[test]
fn the_second_socket_is_offered_only_where_wanted() {
    let rig = Rig::new();
    assert!(!rig.client().has_twin_socket());
    let client = rig.client_with(options().twin_socket());
    assert!(client.has_twin_socket());
    let options = Options { capabilities: Capabilities::default(), ..options() };
    assert!(!rig.client_with(options).has_twin_socket());
}

#[test]
fn a_version_that_wants_no_answer_gets_none() {
    let rig = Rig::new();
    let socket = rig.socket();
    let mut posted = version_message();
    posted[8] = 0x10;
    socket.send(&posted, &[]).unwrap();
    assert_closed(&socket);
    rig.assert_alive();
}
