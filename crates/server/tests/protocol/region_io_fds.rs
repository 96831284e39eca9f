//! DEVICE_GET_REGION_IO_FDS.

use vfiod_wire::Command;
use vfiod_wire::payload::{IoFd, RegionIoFds};
use zerocopy::{FromBytes, IntoBytes};

use crate::rig::*;

#[test]
fn signalled_doorbell_is_a_write() {
    let rig = Rig::new();
    let mut client = rig.client();
    let (bells, fds) = client.region_io_fds(KNOBS).unwrap();
    assert_eq!(bells.len(), 2);
    assert_eq!(bells[0], IoFd { offset: BELL, size: 4, flags: 1, datamatch: 1, ..IoFd::default() });
    let second =
        IoFd { offset: BELL, size: 8, fd_index: 1, flags: 1, datamatch: 7, ..IoFd::default() };
    assert_eq!(bells[1], second);
    for round in 1..=5 {
        rustix::io::write(&fds[(round % 2) as usize], &1u64.to_ne_bytes()).unwrap();
        eventually("the bell is heard", || read_u64(&mut client, KNOBS, RINGS) == round);
    }
}

#[test]
fn doorbell_that_was_asked_for_twice_rings_once() {
    let rig = Rig::new();
    let mut client = rig.client();
    let (_, first) = client.region_io_fds(KNOBS).unwrap();
    let (_, second) = client.region_io_fds(KNOBS).unwrap();
    rustix::io::write(&first[0], &1u64.to_ne_bytes()).unwrap();
    eventually("the bell is heard", || read_u64(&mut client, KNOBS, RINGS) == 1);
    rustix::io::write(&second[0], &1u64.to_ne_bytes()).unwrap();
    eventually("the bell is heard", || read_u64(&mut client, KNOBS, RINGS) == 2);
}

#[test]
fn region_without_doorbells_has_no_descriptors() {
    let rig = Rig::new();
    let (bells, fds) = rig.client().region_io_fds(PLAIN).unwrap();
    assert!(bells.is_empty() && fds.is_empty());
}

#[test]
fn too_small_an_argsz_gets_the_size_and_no_descriptors() {
    let rig = Rig::new();
    let mut client = rig.client();
    let request = RegionIoFds { argsz: 16, index: KNOBS, ..RegionIoFds::default() };
    let reply = client.call(Command::DeviceGetRegionIoFds, request.as_bytes(), &[]).unwrap();
    assert!(reply.fds.is_empty());
    let fixed = RegionIoFds::read_from_bytes(&reply.payload).unwrap();
    assert_eq!((fixed.argsz, fixed.count), (16 + 2 * 40, 2));
}

#[test]
fn malformed_region_io_fds_is_refused() {
    let rig = Rig::new();
    let mut client = rig.client();
    assert_eq!(refused(client.region_io_fds(REGIONS)), EINVAL);
    let good = RegionIoFds { argsz: 200, index: KNOBS, ..RegionIoFds::default() };
    for bad in [
        RegionIoFds { argsz: 15, ..good },
        RegionIoFds { flags: 1, ..good },
        RegionIoFds { count: 1, ..good },
    ] {
        let refusal = refused(client.call(Command::DeviceGetRegionIoFds, bad.as_bytes(), &[]));
        assert_eq!(refusal, EINVAL, "{bad:?}");
    }
    let short = &good.as_bytes()[..15];
    assert_eq!(refused(client.call(Command::DeviceGetRegionIoFds, short, &[])), EINVAL);
}
