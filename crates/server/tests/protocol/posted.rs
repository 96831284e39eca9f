//! No_reply: never answered, whatever happens.

use vfiod_wire::Command;
use vfiod_wire::payload::RegionInfo;
use zerocopy::IntoBytes;

use crate::hostility::every_message;
use crate::rig::*;

/// The next answer is the one to `DEVICE_GET_INFO` with this id.
fn assert_nothing_before(socket: &vfiod_client::Socket, id: u16) {
    socket.send(&message(id, Command::DeviceGetInfo, [16u32, 0, 0, 0].as_bytes()), &[]).unwrap();
    let reply = socket.receive_message().unwrap();
    assert_eq!((reply.header.id, reply.header.command), (id, Command::DeviceGetInfo as u16));
    assert!(reply.fds.is_empty());
}

#[test]
fn posted_commands_get_no_reply() {
    let rig = Rig::new();
    let socket = negotiated(&rig);
    for (id, mut posted) in (1000..).zip(every_message()) {
        posted[8] |= 0x10;
        socket.send(&posted, &[]).unwrap();
        assert_nothing_before(&socket, id);
    }
}

#[test]
fn posted_commands_that_ask_for_descriptors_get_no_reply() {
    let rig = Rig::new();
    let socket = negotiated(&rig);
    let info = RegionInfo { argsz: 512, index: SPARSE, ..RegionInfo::default() };
    for (command, payload) in [
        (Command::DeviceGetRegionInfo, info.as_bytes()),
        (Command::DeviceGetRegionIoFds, [512u32, 0, KNOBS, 0].as_bytes()),
    ] {
        let mut posted = message(1, command, payload);
        posted[8] |= 0x10;
        socket.send(&posted, &[]).unwrap();
        assert_nothing_before(&socket, 7);
    }
}

#[test]
fn invalid_posted_command_gets_no_reply() {
    let rig = Rig::new();
    let socket = negotiated(&rig);
    for (id, mut posted) in (1000..).zip(every_message()) {
        posted[8] |= 0x10;
        // Cut in the payload, or one byte too long: every length that is not right.
        for len in (16..posted.len()).chain([posted.len() + 1]) {
            let mut wrong = posted.clone();
            wrong.resize(len, 0);
            wrong[4..8].copy_from_slice(&(len as u32).to_ne_bytes());
            socket.send(&wrong, &[]).unwrap();
        }
        assert_nothing_before(&socket, id);
    }
    // A command that nobody knows.
    let mut unknown = message(1, Command::DeviceReset, &[]);
    unknown[2] = 200;
    unknown[8] |= 0x10;
    socket.send(&unknown, &[]).unwrap();
    assert_nothing_before(&socket, 9);
}
