//! Requests take effect in the order of their arrival; only replies to DMA messages overtake.

use vfiod_protocol::wire::{Command, Kind};

use crate::driver::*;
use crate::region_write::write;

#[test]
fn request_without_reply_holds_up_those_behind_it() {
    let mut driver = Driver::negotiated();
    driver.silent = true;
    let two = [message(1, Command::DeviceReset, &[]), message(2, Command::DeviceReset, &[])];
    driver.feed(&two.concat(), &[]);
    assert_eq!(driver.log.len(), 1);
    let (bytes, _) = driver.connection.pending().unwrap();
    assert!(driver.connection.pending_reply(bytes.start + 1).is_none());
    let reply = driver.connection.pending_reply(bytes.start).unwrap();
    assert_eq!(reply.done().end - bytes.start, reply_end(&mut driver, bytes.start));
    driver.silent = false;
    driver.run();
    let ids: Vec<_> = driver.take_sent().iter().map(|sent| sent.header.id).collect();
    assert_eq!(ids, [1, 2]);
}

fn reply_end(driver: &mut Driver, start: u64) -> u64 {
    let output = driver.connection.output();
    output.position() + output.len() as u64 - start
}

#[test]
fn dma_reply_overtakes_requests_that_wait() {
    let mut driver = Driver::negotiated();
    driver.feed(&message(1, Command::RegionWrite, &write(DMA, &0x4000u64.to_ne_bytes())), &[]);
    let sent = driver.take_sent();
    let asked = sent.iter().find(|sent| sent.header.kind() == Kind::Command).unwrap();
    driver.silent = true;
    let behind = [
        message(2, Command::DeviceReset, &[]),
        message(3, Command::RegionWrite, &write(0, &[9])),
        dma_reply(asked, &[5; 16]),
        message(4, Command::DeviceReset, &[]),
    ];
    driver.feed(&behind.concat(), &[]);
    assert_eq!(driver.ended.len(), 1);
    assert_eq!(driver.ended[0].outcome, Ok(vec![5; 16]));
    assert_eq!(driver.log.len(), 2, "{:?}", driver.log);
    let (bytes, _) = driver.connection.pending().unwrap();
    driver.connection.pending_reply(bytes.start).unwrap().done();
    driver.silent = false;
    driver.run();
    let ids: Vec<_> = driver.take_sent().iter().map(|sent| sent.header.id).collect();
    assert_eq!(ids, [2, 3, 4]);
    assert_eq!(driver.ended.len(), 1);
}

#[test]
fn positions_are_those_of_the_streams() {
    let mut driver = Driver::negotiated();
    let start = driver.connection.input_position();
    let bad = message(1, Command::DeviceReset, &[1, 2, 3]);
    driver.feed(&bad, &[]);
    driver.feed(&bad, &[]);
    let bytes: Vec<_> = driver.refusals.iter().map(|refusal| refusal.bytes.clone()).collect();
    assert_eq!(bytes, [start..start + 19, start + 19..start + 38]);
    assert_eq!(driver.refusals[0].reply.end, driver.refusals[1].reply.start);
    assert_eq!(driver.refusals[0].reply.end - driver.refusals[0].reply.start, 16);
    assert_eq!(driver.connection.output().position(), driver.refusals[1].reply.end);
}
