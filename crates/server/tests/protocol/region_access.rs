//! REGION_READ, REGION_WRITE, REGION_WRITE_MULTI; posted and pipelined.

use vfiod_wire::payload::{MultiWrite, RegionAccess};
use vfiod_wire::{Command, Header, Kind};
use zerocopy::IntoBytes;

use crate::rig::*;

#[test]
fn written_data_is_read_back() {
    let rig = Rig::new();
    let mut client = rig.client();
    for len in [1, 2, 3, 4, 8, 100, 4096] {
        let data: Vec<u8> = (0..len).map(|i| i as u8 ^ len as u8).collect();
        client.region_write(PLAIN, 5, &data).unwrap();
        let mut back = vec![0; len];
        client.region_read(PLAIN, 5, &mut back).unwrap();
        assert_eq!(back, data);
    }
}

#[test]
fn transfer_of_one_mebibyte_is_accepted_and_of_more_refused() {
    let rig = Rig::new();
    let mut client = rig.client();
    let data: Vec<u8> = (0..1 << 20).map(|i: u32| (i ^ i >> 8 ^ i >> 16) as u8).collect();
    client.region_write(LARGE, 0x1000, &data).unwrap();
    let mut back = vec![0; 1 << 20];
    client.region_read(LARGE, 0x1000, &mut back).unwrap();
    assert!(back == data);
    // One byte more is over max_data_xfer_size.
    let mut more = vec![0; (1 << 20) + 1];
    assert_eq!(refused(client.region_read(LARGE, 0, &mut more)), EINVAL);
    assert_eq!(refused(client.region_write(LARGE, 0, &more)), EINVAL);
    client.device_info().unwrap();
}

#[test]
fn outside_and_forbidden_accesses_are_refused() {
    let rig = Rig::new();
    let mut client = rig.client();
    let mut data = [0; 4];
    for (region, offset) in [
        (PLAIN, PLAIN_SIZE),
        (PLAIN, PLAIN_SIZE - 3),
        (PLAIN, u64::MAX),
        (PLAIN, u64::MAX - 3),
        (ABSENT, 0),
        (REGIONS, 0),
        (u32::MAX, 0),
    ] {
        assert_eq!(refused(client.region_read(region, offset, &mut data)), EINVAL);
        assert_eq!(refused(client.region_write(region, offset, &data)), EINVAL);
    }
    assert_eq!(refused(client.region_write(READ_ONLY, 0, &data)), EACCES);
    client.region_read(READ_ONLY, 0, &mut data).unwrap();
}

#[test]
fn counts_that_contradict_the_message_are_refused() {
    let rig = Rig::new();
    let mut client = rig.client();
    let access = RegionAccess { offset: 0, region: PLAIN, count: 8 };
    for len in [0, 7, 9] {
        let payload = [access.as_bytes(), &[0; 9][..len]].concat();
        assert_eq!(refused(client.call(Command::RegionWrite, &payload, &[])), EINVAL, "{len}");
    }
    for len in [0, 15] {
        let payload = &access.as_bytes()[..len];
        assert_eq!(refused(client.call(Command::RegionRead, payload, &[])), EINVAL);
        assert_eq!(refused(client.call(Command::RegionWrite, payload, &[])), EINVAL);
    }
    let long = [access.as_bytes(), &[0; 8]].concat();
    assert_eq!(refused(client.call(Command::RegionRead, &long, &[])), EINVAL);
    let huge = RegionAccess { offset: 0, region: LARGE, count: u32::MAX };
    assert_eq!(refused(client.call(Command::RegionRead, huge.as_bytes(), &[])), EINVAL);
}

#[test]
fn posted_writes_are_done_in_order_and_never_answered() {
    let rig = Rig::new();
    let mut client = rig.client();
    for i in 0..1000u32 {
        client.region_post(PLAIN, 0, &i.to_ne_bytes()).unwrap();
    }
    // Refused ones are not answered either.
    client.region_post(PLAIN, PLAIN_SIZE, &[0; 4]).unwrap();
    client.region_post(READ_ONLY, 0, &[0; 4]).unwrap();
    client.post(Command::RegionWrite, &[1, 2, 3], &[]).unwrap();
    client.post(Command::DeviceReset, &[1], &[]).unwrap();
    let unknown = Header { id: 1, command: 99, size: 16, flags: 0x10, error: 0 };
    client.socket().send(unknown.as_bytes(), &[]).unwrap();
    // The client takes the next message for the answer to this, and would notice another.
    let mut data = [0; 4];
    client.region_read(PLAIN, 0, &mut data).unwrap();
    assert_eq!(u32::from_ne_bytes(data), 999);
}

#[test]
fn many_commands_under_way_are_answered_in_order() {
    let rig = Rig::new();
    let mut client = rig.client();
    client.region_write(PLAIN, 0, &(0..=255).collect::<Vec<u8>>()).unwrap();
    let ids: Vec<_> = (0..500u64)
        .map(|i| {
            let access = RegionAccess { offset: i % 256, region: PLAIN, count: 1 };
            client.submit(Command::RegionRead, access.as_bytes(), &[]).unwrap()
        })
        .collect();
    for (i, id) in ids.into_iter().enumerate() {
        assert_eq!(client.complete(id).unwrap().payload[16], i as u8);
    }
}

#[test]
fn one_send_with_many_commands_gets_all_answers() {
    let rig = Rig::new();
    let client = rig.client();
    let mut bytes = Vec::new();
    for id in 0..200u16 {
        let access = RegionAccess { offset: 0, region: PLAIN, count: 4 };
        bytes.extend(message(id, Command::RegionRead, access.as_bytes()));
    }
    client.socket().send(&bytes, &[]).unwrap();
    for id in 0..200 {
        let reply = client.socket().receive_message().unwrap();
        assert_eq!((reply.header.id, reply.header.kind()), (id, Kind::Reply(Ok(()))));
    }
}

#[test]
fn access_of_no_bytes_succeeds() {
    let rig = Rig::new();
    let mut client = rig.client();
    // No data is no error, as long as the place exists.
    client.region_read(PLAIN, 0, &mut []).unwrap();
    client.region_write(PLAIN, 0, &[]).unwrap();
    client.device_info().unwrap();
}

fn write(region: u32, offset: u64, data: &[u8]) -> MultiWrite {
    let mut bytes = [0; 8];
    bytes[..data.len()].copy_from_slice(data);
    MultiWrite { offset, region, count: data.len() as u32, data: bytes }
}

#[test]
fn several_writes_in_one_message_are_carried_out() {
    let rig = Rig::new();
    let mut client = rig.client();
    let writes: Vec<_> = (0..200u64).map(|i| write(PLAIN, i * 8, &i.to_ne_bytes())).collect();
    assert_eq!(client.region_write_multi(&writes).unwrap(), 200);
    assert_eq!(read_u64(&mut client, PLAIN, 199 * 8), 199);
    assert_eq!(client.region_write_multi(&[]).unwrap(), 0);
    let short = write(PLAIN, 0, &[1, 2, 3]);
    assert_eq!(client.region_write_multi(&[short]).unwrap(), 1);
    assert_eq!(read_u64(&mut client, PLAIN, 0), 0x03_02_01);
}

#[test]
fn malformed_write_multi_is_refused() {
    let rig = Rig::new();
    let mut client = rig.client();
    let good = write(PLAIN, 0, &[1]);
    for bad in [
        MultiWrite { count: 0, ..good },
        MultiWrite { count: 9, ..good },
        MultiWrite { count: u32::MAX, ..good },
        MultiWrite { region: REGIONS, ..good },
        MultiWrite { offset: PLAIN_SIZE, ..good },
    ] {
        assert_eq!(refused(client.region_write_multi(&[bad])), EINVAL, "{bad:?}");
    }
    for (count, bytes) in [(2u64, 32usize), (0, 32), (1, 31), (1, 0), (u64::MAX, 32)] {
        let payload = [count.as_bytes(), &[0; 32][..bytes]].concat();
        assert_eq!(refused(client.call(Command::RegionWriteMulti, &payload, &[])), EINVAL);
    }
}
