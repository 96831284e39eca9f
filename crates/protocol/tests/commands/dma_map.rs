//! DMA_MAP.

use vfiod_protocol::wire::Command;
use vfiod_protocol::wire::payload::DmaMap;
use zerocopy::IntoBytes;

use crate::driver::*;

fn map() -> DmaMap {
    DmaMap { argsz: 32, flags: 3, offset: 0, address: 0x1000, size: 0x2000 }
}

#[test]
fn descriptor_comes_with_the_request() {
    let mut driver = Driver::negotiated();
    let reply = driver.ask(Command::DmaMap, map().as_bytes(), &[42]).unwrap();
    assert_eq!((reply.errno(), reply.payload.len()), (None, 0));
    assert!(driver.log[0].ends_with("Some(42))"), "{:?}", driver.log);
}

#[test]
fn without_descriptor() {
    let mut driver = Driver::negotiated();
    driver.ask(Command::DmaMap, map().as_bytes(), &[]).unwrap();
    assert!(driver.log[0].ends_with("None)"), "{:?}", driver.log);
}

#[test]
fn two_descriptors_are_refused() {
    let mut driver = Driver::negotiated();
    let reply = driver.ask(Command::DmaMap, map().as_bytes(), &[42, 43]).unwrap();
    assert_eq!(reply.errno(), Some(EINVAL));
}

#[test]
fn descriptors_of_many_pieces_are_bounded() {
    let mut driver = Driver::negotiated();
    let bytes = message(7, Command::DmaMap, map().as_bytes());
    for (number, byte) in bytes.iter().enumerate() {
        let fds: Vec<u32> = (0..3).map(|fd| number as u32 * 3 + fd).collect();
        driver.feed(&[*byte], &fds);
    }
    assert_eq!(driver.take_sent()[0].errno(), Some(EINVAL));
}

#[test]
fn lost_descriptors_are_an_error() {
    let mut driver = Driver::negotiated();
    let descriptors = vfiod_protocol::Descriptors { fds: vec![1], truncated: true };
    let bytes = message(7, Command::DmaMap, map().as_bytes());
    driver.connection.receive(&bytes, descriptors, driver.now).unwrap();
    driver.run();
    assert_eq!(driver.take_sent()[0].errno(), Some(EINVAL));
}
