//! DEVICE_GET_REGION_INFO.

use vfiod_protocol::wire::payload::RegionInfo;
use vfiod_protocol::wire::{Command, decode_region_info};
use zerocopy::IntoBytes;

use crate::driver::*;

#[test]
fn descriptor_comes_with_a_whole_reply_only() {
    let mut driver = Driver::negotiated();
    let mut info = RegionInfo { argsz: 32, index: 4, ..RegionInfo::default() };
    let reply = driver.ask(Command::DeviceGetRegionInfo, info.as_bytes(), &[]).unwrap();
    assert_eq!((reply.payload.len(), reply.fds.len()), (32, 0));
    let needed = decode_region_info(&reply.payload).unwrap().info.argsz;
    info.argsz = needed;
    let reply = driver.ask(Command::DeviceGetRegionInfo, info.as_bytes(), &[]).unwrap();
    assert_eq!((reply.payload.len(), reply.fds), (needed as usize, vec![5]));
    let decoded = decode_region_info(&reply.payload).unwrap();
    assert_eq!((decoded.info.index, decoded.areas.len()), (4, 1));
}

#[test]
fn descriptors_go_with_the_first_byte_of_their_reply() {
    let mut driver = Driver::negotiated();
    let info = RegionInfo { argsz: 1000, ..RegionInfo::default() };
    let one = message(1, Command::DeviceReset, &[]);
    let two = message(2, Command::DeviceGetRegionInfo, info.as_bytes());
    driver.feed(&[one.clone(), two.clone(), one, two].concat(), &[]);
    let with: Vec<_> = driver.take_sent().iter().map(|sent| sent.fds.len()).collect();
    assert_eq!(with, [0, 1, 0, 1]);
}
