//! REGION_WRITE.

use vfiod_protocol::limits::MAX_DATA;
use vfiod_protocol::wire::Command;
use vfiod_protocol::wire::payload::RegionAccess;
use zerocopy::IntoBytes;

use crate::driver::*;

pub(crate) fn write(offset: u64, data: &[u8]) -> Vec<u8> {
    let access = RegionAccess { offset, region: REGION, count: data.len() as u32 };
    [access.as_bytes(), data].concat()
}

#[test]
fn access_is_echoed() {
    let mut driver = Driver::negotiated();
    let payload = write(4, b"data");
    let reply = driver.ask(Command::RegionWrite, &payload, &[]).unwrap();
    assert_eq!(reply.payload, payload[..16]);
    assert_eq!(driver.memory[4..8], *b"data");
}

#[test]
fn posted_write_gets_no_reply_even_if_it_fails() {
    let mut driver = Driver::negotiated();
    driver.feed(&posted(1, Command::RegionWrite, &write(0, &[1])), &[]);
    driver.feed(&posted(1, Command::RegionWrite, &write(SIZE as u64, &[1])), &[]);
    driver.feed(&posted(1, Command::RegionWrite, &[0; 15]), &[]);
    assert_eq!(driver.take_sent(), []);
    assert_eq!(driver.memory[0], 1);
    assert_eq!(driver.refusals.len(), 1);
    assert!(driver.refusals[0].reply.is_empty());
}

#[test]
fn count_that_is_not_the_length_is_refused() {
    let mut driver = Driver::negotiated();
    let mut payload = write(0, &[1; 8]);
    payload.pop();
    let reply = driver.ask(Command::RegionWrite, &payload, &[]).unwrap();
    assert_eq!(reply.errno(), Some(EINVAL));
    assert_eq!(driver.memory[0], 0);
}

#[test]
fn more_than_the_limit_is_refused() {
    let mut driver = Driver::negotiated();
    let reply = driver.ask(Command::RegionWrite, &write(0, &vec![1; MAX_DATA]), &[]).unwrap();
    assert_eq!(reply.errno(), None);
    let reply = driver.ask(Command::RegionWrite, &write(0, &vec![2; MAX_DATA + 1]), &[]).unwrap();
    assert_eq!(reply.errno(), Some(EINVAL));
    assert_eq!(driver.memory[0], 1);
}
