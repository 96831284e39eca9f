//! REGION_READ.

use vfiod_protocol::limits::MAX_DATA;
use vfiod_protocol::wire::Command;
use vfiod_protocol::wire::payload::RegionAccess;
use zerocopy::IntoBytes;

use crate::driver::*;

fn access(offset: u64, count: usize) -> RegionAccess {
    RegionAccess { offset, region: REGION, count: count as u32 }
}

#[test]
fn data_follows_the_echoed_access() {
    let mut driver = Driver::negotiated();
    driver.memory[8..12].copy_from_slice(b"data");
    let access = access(8, 4);
    let reply = driver.ask(Command::RegionRead, access.as_bytes(), &[]).unwrap();
    assert_eq!(reply.payload, [access.as_bytes(), b"data"].concat());
}

#[test]
fn largest_transfer_passes_and_larger_is_refused() {
    let mut driver = Driver::negotiated();
    let reply = driver.ask(Command::RegionRead, access(0, MAX_DATA).as_bytes(), &[]).unwrap();
    assert_eq!((reply.errno(), reply.payload.len()), (None, MAX_DATA + 16));
    for count in [MAX_DATA + 1, u32::MAX as usize] {
        let reply = driver.ask(Command::RegionRead, access(0, count).as_bytes(), &[]).unwrap();
        assert_eq!((reply.errno(), reply.payload.len()), (Some(EINVAL), 0));
    }
}

#[test]
fn failed_read_is_an_errno_or_all_ones_for_rust_vmm() {
    let beyond = access(SIZE as u64, 4);
    let mut driver = Driver::negotiated();
    let reply = driver.ask(Command::RegionRead, beyond.as_bytes(), &[]).unwrap();
    assert_eq!((reply.errno(), reply.payload.len()), (Some(EINVAL), 0));
    let mut driver = Driver::rust_vmm();
    let reply = driver.ask(Command::RegionRead, beyond.as_bytes(), &[]).unwrap();
    assert_eq!((reply.errno(), &reply.payload[16..]), (None, &[0xff; 4][..]));
}

#[test]
fn posted_read_gets_no_reply() {
    let mut driver = Driver::negotiated();
    driver.feed(&posted(1, Command::RegionRead, access(0, 4).as_bytes()), &[]);
    driver.feed(&posted(1, Command::RegionRead, access(SIZE as u64, 4).as_bytes()), &[]);
    assert_eq!(driver.take_sent(), []);
    assert_eq!(driver.log.len(), 2);
}
