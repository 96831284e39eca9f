//! DEVICE_GET_REGION_IO_FDS.

use vfiod_protocol::wire::payload::{IoFd, RegionIoFds};
use vfiod_protocol::wire::{Capabilities, Command};
use zerocopy::{FromBytes, IntoBytes};

use crate::driver::*;

fn ask(driver: &mut Driver, argsz: u32) -> Sent {
    let asked = RegionIoFds { argsz, index: 3, ..RegionIoFds::default() };
    driver.ask(Command::DeviceGetRegionIoFds, asked.as_bytes(), &[]).unwrap()
}

#[test]
fn short_argsz_gets_the_needed_size() {
    let mut driver = Driver::negotiated();
    let reply = ask(&mut driver, 16);
    let needed = (RegionIoFds::LEN + 2 * IoFd::LEN) as u32;
    let fixed = RegionIoFds::read_from_bytes(&reply.payload).unwrap();
    assert_eq!(fixed, RegionIoFds { argsz: needed, flags: 0, index: 3, count: 2 });
    assert!(reply.fds.is_empty());
    let reply = ask(&mut driver, needed);
    assert_eq!(reply.payload.len(), needed as usize);
    assert_eq!(reply.fds, [3, 4]);
}

#[test]
fn more_descriptors_than_the_client_takes_are_refused() {
    let mut driver = Driver::with(Capabilities { max_msg_fds: Some(1), ..Capabilities::default() });
    assert_eq!(ask(&mut driver, 1000).errno(), Some(7));
    assert_eq!(ask(&mut driver, 16).errno(), None);
}
