//! DEVICE_GET_INFO.

use vfiod_protocol::wire::Command;
use vfiod_protocol::wire::payload::DeviceInfo;
use zerocopy::IntoBytes;

use crate::driver::*;

#[test]
fn reply_has_what_the_driver_says() {
    let mut driver = Driver::negotiated();
    let asked = DeviceInfo { argsz: 16, ..DeviceInfo::default() };
    let reply = driver.ask(Command::DeviceGetInfo, asked.as_bytes(), &[]).unwrap();
    let info = DeviceInfo { argsz: 16, flags: 3, num_regions: 9, num_irqs: 5 };
    assert_eq!(reply.payload, info.as_bytes());
    assert_eq!(reply.header.id, 7);
}

#[test]
fn short_argsz_is_refused() {
    let mut driver = Driver::negotiated();
    let asked = DeviceInfo { argsz: 15, ..DeviceInfo::default() };
    let reply = driver.ask(Command::DeviceGetInfo, asked.as_bytes(), &[]).unwrap();
    assert_eq!((reply.errno(), reply.payload.len()), (Some(EINVAL), 0));
    assert!(driver.log.is_empty());
    assert_eq!(driver.refusals[0].command, Some(Command::DeviceGetInfo));
}

#[test]
fn refusal_is_padded_for_rust_vmm() {
    let mut driver = Driver::rust_vmm();
    let reply = driver.ask(Command::DeviceGetInfo, &[0; 16], &[]).unwrap();
    assert_eq!((reply.errno(), reply.payload.len()), (Some(EINVAL), DeviceInfo::LEN));
}
