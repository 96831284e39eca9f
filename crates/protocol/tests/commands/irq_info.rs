//! DEVICE_GET_IRQ_INFO.

use vfiod_protocol::wire::Command;
use vfiod_protocol::wire::payload::IrqInfo;
use zerocopy::IntoBytes;

use crate::driver::*;

#[test]
fn reply_has_the_index_that_was_asked_for() {
    let mut driver = Driver::negotiated();
    let asked = IrqInfo { argsz: 16, index: 2, ..IrqInfo::default() };
    let reply = driver.ask(Command::DeviceGetIrqInfo, asked.as_bytes(), &[]).unwrap();
    let info = IrqInfo { argsz: 16, flags: 1, index: 2, count: 32 };
    assert_eq!(reply.payload, info.as_bytes());
}

#[test]
fn driver_can_refuse() {
    for (mut driver, padding) in [(Driver::negotiated(), 0), (Driver::rust_vmm(), IrqInfo::LEN)] {
        let asked = IrqInfo { argsz: 16, index: 5, ..IrqInfo::default() };
        let reply = driver.ask(Command::DeviceGetIrqInfo, asked.as_bytes(), &[]).unwrap();
        assert_eq!((reply.errno(), reply.payload.len()), (Some(EINVAL), padding));
    }
}
