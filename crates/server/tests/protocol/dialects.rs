//! What single clients need; each of these fails under the plain rules.

use vfiod_client::Socket;
use vfiod_wire::payload::{DmaMap, DmaUnmap, RegionAccess, RegionInfo};
use vfiod_wire::{Command, Kind};
use zerocopy::IntoBytes;

use crate::rig::*;

/// As rust-vmm's `vfio_user` 0.1.7 negotiates.
fn rust_vmm(rig: &Rig) -> Socket {
    let socket = Socket::connect(&rig.path, PATIENCE).unwrap();
    let json = br#"{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"migration":{"pgsize":4096}}}"#;
    let payload = [&[0; 4][..], json, &[0]].concat();
    socket.send(&message(0, Command::Version, &payload), &[]).unwrap();
    assert_eq!(socket.receive_message().unwrap().header.kind(), Kind::Reply(Ok(())));
    socket
}

fn call(socket: &Socket, command: Command, payload: &[u8]) -> vfiod_client::RawMessage {
    socket.send(&message(1, command, payload), &[]).unwrap();
    socket.receive_message().unwrap()
}

#[test]
fn rust_vmm_gets_errors_of_full_size() {
    let rig = Rig::new();
    let socket = rust_vmm(&rig);
    let region = RegionInfo { argsz: 32, index: 99, ..RegionInfo::default() };
    let reply = call(&socket, Command::DeviceGetRegionInfo, region.as_bytes());
    assert_eq!((reply_errno(&reply), reply.payload.len()), (EINVAL, 32));
    let irq = [16u32, 0, 99, 0];
    let reply = call(&socket, Command::DeviceGetIrqInfo, irq.as_bytes());
    assert_eq!((reply_errno(&reply), reply.payload.len()), (EINVAL, 16));
    let access = RegionAccess { offset: 0, region: 99, count: 4 };
    let reply = call(&socket, Command::RegionWrite, &[access.as_bytes(), &[0; 4]].concat());
    assert_eq!((reply_errno(&reply), reply.payload.len()), (EINVAL, 16));
    let unmap = DmaUnmap { argsz: 24, flags: 0, address: 0, size: 0 };
    let reply = call(&socket, Command::DmaUnmap, unmap.as_bytes());
    assert_eq!((reply_errno(&reply), reply.payload.len()), (EINVAL, 24));
}

#[test]
fn rust_vmm_reads_all_ones_where_there_is_nothing() {
    let rig = Rig::new();
    let socket = rust_vmm(&rig);
    let access = RegionAccess { offset: 0, region: 99, count: 4 };
    let reply = call(&socket, Command::RegionRead, access.as_bytes());
    assert_eq!(reply.header.kind(), Kind::Reply(Ok(())));
    assert_eq!(reply.payload[16..], [0xff; 4]);
    // Others get the errno.
    let mut data = [0; 4];
    assert_eq!(refused(rig.client().region_read(99, 0, &mut data)), EINVAL);
}

#[test]
fn rust_vmm_unmaps_what_is_not_there() {
    let rig = Rig::new();
    let socket = rust_vmm(&rig);
    let unmap = DmaUnmap { argsz: 24, flags: 0, address: 0x1000, size: 0x1000 };
    let reply = call(&socket, Command::DmaUnmap, unmap.as_bytes());
    assert_eq!((reply.header.kind(), reply.header.size), (Kind::Reply(Ok(())), 40));
}

#[test]
fn error_to_a_client_of_the_specification_is_a_bare_header() {
    let rig = Rig::new();
    let client = rig.client();
    let map = DmaMap { argsz: 32, flags: 0, ..DmaMap::default() };
    let reply = call(client.socket(), Command::DmaMap, map.as_bytes());
    assert_eq!((reply_errno(&reply), reply.header.size), (EINVAL, 16));
}
