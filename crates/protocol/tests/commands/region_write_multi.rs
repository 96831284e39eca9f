//! REGION_WRITE_MULTI.

use vfiod_protocol::wire::Command;
use vfiod_protocol::wire::payload::MultiWrite;
use zerocopy::IntoBytes;

use crate::driver::*;

fn multi(writes: &[MultiWrite]) -> Vec<u8> {
    [(writes.len() as u64).as_bytes(), writes.as_bytes()].concat()
}

#[test]
fn reply_has_the_number_of_writes() {
    let mut driver = Driver::negotiated();
    let write = |offset, byte| MultiWrite { offset, region: REGION, count: 1, data: [byte; 8] };
    let payload = multi(&[write(0, 5), write(1, 6), write(0, 7)]);
    let reply = driver.ask(Command::RegionWriteMulti, &payload, &[]).unwrap();
    assert_eq!(reply.payload, 3u64.as_bytes());
    assert_eq!(driver.memory[..3], [7, 6, 0]);
}

#[test]
fn count_that_is_not_the_number_of_writes_is_refused() {
    let mut driver = Driver::negotiated();
    let reply = driver.ask(Command::RegionWriteMulti, &1u64.to_ne_bytes(), &[]).unwrap();
    assert_eq!(reply.errno(), Some(EINVAL));
}
