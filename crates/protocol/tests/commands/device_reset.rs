//! DEVICE_RESET.

use vfiod_protocol::wire::Command;

use crate::driver::*;

#[test]
fn reply_is_a_header() {
    let mut driver = Driver::negotiated();
    let reply = driver.ask(Command::DeviceReset, &[], &[]).unwrap();
    assert_eq!((reply.errno(), reply.payload.len()), (None, 0));
    assert_eq!(driver.log, ["DeviceReset"]);
}

#[test]
fn payload_is_refused() {
    let mut driver = Driver::negotiated();
    let reply = driver.ask(Command::DeviceReset, &[0], &[]).unwrap();
    assert_eq!(reply.errno(), Some(EINVAL));
    assert!(driver.log.is_empty());
}
