//! DEVICE_FEATURE.

use vfiod_protocol::wire::Command;
use vfiod_protocol::wire::payload::{Feature, feature_flag};
use zerocopy::IntoBytes;

use crate::driver::*;

fn feature(argsz: u32, flags: u32, data: &[u8]) -> Vec<u8> {
    [Feature { argsz, flags }.as_bytes(), data].concat()
}

#[test]
fn probe_and_set_are_echoed() {
    for flag in [feature_flag::SET, feature_flag::PROBE | feature_flag::SET] {
        let mut driver = Driver::negotiated();
        let payload = feature(100, 0x4242 | flag, b"data");
        let reply = driver.ask(Command::DeviceFeature, &payload, &[]).unwrap();
        assert_eq!(reply.payload, payload);
    }
}

#[test]
fn get_returns_the_data() {
    let mut driver = Driver::negotiated();
    let flags = 1 | feature_flag::GET;
    let reply = driver.ask(Command::DeviceFeature, &feature(15, flags, &[]), &[]).unwrap();
    assert_eq!(reply.payload, feature(15, flags, b"feature"));
}

#[test]
fn get_with_short_argsz_returns_the_needed_size() {
    let mut driver = Driver::negotiated();
    let flags = 1 | feature_flag::GET;
    let reply = driver.ask(Command::DeviceFeature, &feature(14, flags, &[]), &[]).unwrap();
    assert_eq!(reply.payload, feature(15, flags, &[]));
}

#[test]
fn without_exactly_one_operation_it_is_refused() {
    for flags in [0, feature_flag::GET | feature_flag::SET, 1 << 31] {
        let mut driver = Driver::negotiated();
        let reply = driver.ask(Command::DeviceFeature, &feature(8, flags, &[]), &[]).unwrap();
        assert_eq!(reply.errno(), Some(EINVAL));
    }
}
