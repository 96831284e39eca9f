//! DEVICE_SET_IRQS.

use vfiod_protocol::wire::Command;
use vfiod_protocol::wire::payload::{IrqSet, irq_flag};
use zerocopy::IntoBytes;

use crate::driver::*;

fn eventfds(count: u32) -> Vec<u8> {
    let flags = irq_flag::DATA_EVENTFD | irq_flag::ACTION_TRIGGER;
    let set = IrqSet { argsz: IrqSet::LEN as u32, flags, index: 1, start: 0, count };
    set.as_bytes().to_vec()
}

#[test]
fn descriptors_come_with_the_request() {
    let mut driver = Driver::negotiated();
    let reply = driver.ask(Command::DeviceSetIrqs, &eventfds(3), &[10, 11, 12]).unwrap();
    assert_eq!((reply.errno(), reply.payload.len()), (None, 0));
    assert_eq!(driver.log, ["DeviceSetIrqs 1 with [10, 11, 12]"]);
}

#[test]
fn no_descriptor_takes_them_away() {
    let mut driver = Driver::negotiated();
    assert_eq!(driver.ask(Command::DeviceSetIrqs, &eventfds(3), &[]).unwrap().errno(), None);
    assert_eq!(driver.log, ["DeviceSetIrqs 1 with []"]);
}

#[test]
fn another_number_of_descriptors_is_refused() {
    let mut driver = Driver::negotiated();
    for fds in [&[1][..], &[1, 2, 3, 4]] {
        let reply = driver.ask(Command::DeviceSetIrqs, &eventfds(3), fds).unwrap();
        assert_eq!(reply.errno(), Some(EINVAL));
    }
}

#[test]
fn descriptors_belong_to_the_message_that_they_were_sent_with() {
    let mut driver = Driver::negotiated();
    let one = message(1, Command::DeviceSetIrqs, &eventfds(1));
    let (head, tail) = one.split_at(20);
    // The kernel ends a receive behind data that carries descriptors.
    driver.feed(&[message(0, Command::DeviceReset, &[]), head.to_vec()].concat(), &[]);
    driver.feed(tail, &[5]);
    driver.feed(&[one.clone(), head.to_vec()].concat(), &[]);
    driver.feed(tail, &[6]);
    assert_eq!(
        driver.log,
        [
            "DeviceReset",
            "DeviceSetIrqs 1 with [5]",
            "DeviceSetIrqs 1 with []",
            "DeviceSetIrqs 1 with [6]"
        ]
    );
}

/// Many requests with descriptors may wait behind one that has no reply yet.
#[test]
fn descriptors_of_requests_that_wait_are_kept() {
    let mut driver = Driver::negotiated();
    driver.silent = true;
    driver.feed(&message(0, Command::DeviceReset, &[]), &[]);
    let mut fds = 0;
    while driver.connection.wants_input() {
        driver.feed(&message(1, Command::DeviceSetIrqs, &eventfds(8)), &[fds; 8]);
        fds += 8;
    }
    assert_eq!(fds, 256);
    let (bytes, _) = driver.connection.pending().unwrap();
    driver.connection.pending_reply(bytes.start).unwrap().done();
    driver.silent = false;
    driver.run();
    assert_eq!(driver.log.len(), 33);
    assert!(driver.take_sent().iter().all(|sent| sent.errno().is_none()));
}
