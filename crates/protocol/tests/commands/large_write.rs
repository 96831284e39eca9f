//! REGION_WRITE whose data is received where it belongs, not through the buffer.

use vfiod_protocol::limits::LARGE_WRITE;
use vfiod_protocol::wire::Command;
use vfiod_protocol::{Descriptors, Event, Request};

use crate::driver::*;
use crate::region_write::write;

fn begun(driver: &mut Driver, arrived: usize) -> Vec<u8> {
    let bytes = message(9, Command::RegionWrite, &write(0x100, &vec![7; LARGE_WRITE]));
    driver.feed(&bytes[..32 + arrived], &[]);
    bytes
}

#[test]
fn is_answered_like_any_other() {
    for (arrived, rebuild) in [(0, false), (0, true), (1, true), (LARGE_WRITE - 1, false)] {
        let mut driver = Driver::negotiated();
        begun(&mut driver, arrived);
        let large = driver.connection.large_write().unwrap();
        assert_eq!((large.access.offset, large.arrived), (0x100, &vec![7; arrived][..]));
        let left = driver.connection.receive_outside();
        assert_eq!(left, LARGE_WRITE - arrived);
        for part in [left / 2, left - left / 2] {
            if rebuild {
                driver.rebuild();
            }
            assert!(driver.connection.next().unwrap().is_none());
            driver.connection.received_outside(part);
        }
        assert_eq!(driver.connection.outside_left(), 0);
        match driver.connection.next().unwrap() {
            Some(Event::Call(call)) => {
                assert!(
                    matches!(call.request, Request::RegionWritten(access) if access.offset == 0x100)
                );
                if !rebuild {
                    call.reply.done();
                }
            }
            other => panic!("{other:?}"),
        }
        if rebuild {
            driver.rebuild();
            let (bytes, _) = driver.connection.pending().unwrap();
            driver.connection.pending_reply(bytes.start).unwrap().done();
        }
        driver.feed(&message(10, Command::DeviceReset, &[]), &[]);
        let sent = driver.take_sent();
        assert_eq!(sent.iter().map(|sent| sent.header.id).collect::<Vec<_>>(), [9, 10]);
        assert_eq!(sent[0].payload, write(0x100, &vec![7; LARGE_WRITE])[..16]);
    }
}

#[test]
fn whole_or_small_or_foreign_messages_are_not_offered() {
    let mut driver = Driver::negotiated();
    let small = message(9, Command::RegionWrite, &write(0, &vec![7; LARGE_WRITE - 1]));
    driver.feed(&small[..100], &[]);
    assert!(driver.connection.large_write().is_none());
    driver.feed(&small[100..], &[]);
    let other = message(9, Command::DeviceFeature, &vec![7; LARGE_WRITE + 16]);
    driver.feed(&other[..100], &[]);
    assert!(driver.connection.large_write().is_none());
    driver.feed(&other[100..], &[]);
    let mut wrong = message(9, Command::RegionWrite, &write(0, &vec![7; LARGE_WRITE]));
    wrong[28] ^= 1;
    driver.feed(&wrong[..100], &[]);
    assert!(driver.connection.large_write().is_none());
}

#[test]
fn without_a_driver_that_can_it_comes_through_the_buffer() {
    let mut driver = Driver::negotiated();
    let bytes = begun(&mut driver, 10);
    assert!(driver.connection.large_write().is_some());
    driver.connection.receive(&bytes[42..], Descriptors::default(), driver.now).unwrap();
    driver.run();
    assert_eq!(driver.memory[0x100], 7);
    assert_eq!(driver.take_sent()[0].header.id, 9);
}
