//! Large accesses to plain memory: received where they belong, sent from where they are.

use std::os::fd::AsFd;

use vfiod_client::Client;
use vfiod_wire::payload::RegionAccess;
use vfiod_wire::{Command, Header, Kind};
use zerocopy::IntoBytes;

use crate::rig::*;

const MIB: u32 = 1 << 20;
/// Where the accesses begin.
const AT: u64 = 0x3001;

fn pattern(seed: u32) -> Vec<u8> {
    (0..MIB).map(|i| (i ^ i >> 8 ^ i >> 16 ^ seed) as u8).collect()
}

fn access() -> RegionAccess {
    RegionAccess { offset: AT, region: MEMORY, count: MIB }
}

fn write_message(id: u16, data: &[u8]) -> Vec<u8> {
    message(id, Command::RegionWrite, &[access().as_bytes(), data].concat())
}

/// One byte of the memory, as another client reads it.
fn byte(client: &mut Client, at: usize) -> u8 {
    let mut data = [0];
    client.region_read(MEMORY, AT + at as u64, &mut data).unwrap();
    data[0]
}

#[test]
fn a_large_write_to_memory_is_read_back() {
    let rig = Rig::new();
    let mut client = rig.client();
    for seed in 1..4 {
        let data = pattern(seed);
        client.region_write(MEMORY, AT, &data).unwrap();
        let mut back = vec![0; MIB as usize];
        client.region_read(MEMORY, AT, &mut back).unwrap();
        assert!(back == data);
    }
    let mut around = [0; 1];
    for offset in [AT - 1, AT + u64::from(MIB)] {
        client.region_read(MEMORY, offset, &mut around).unwrap();
        assert_eq!(around, [0], "{offset:#x}");
    }
}

#[test]
fn large_writes_in_a_row_arrive_in_order_and_whole() {
    let rig = Rig::new();
    let client = negotiated(&rig);
    let sent = std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            for id in 1..=5 {
                let mut bytes = write_message(id, &pattern(id.into()));
                let read = RegionAccess { count: 16, ..access() };
                bytes.extend(message(id + 100, Command::RegionRead, read.as_bytes()));
                client.send(&bytes, &[]).unwrap();
            }
        });
        for id in 1..=5 {
            let written = client.receive_message().unwrap();
            assert_eq!((written.header.id, written.header.kind()), (id, Kind::Reply(Ok(()))));
            assert_eq!(written.payload, access().as_bytes());
            let read = client.receive_message().unwrap();
            assert_eq!(read.header.id, id + 100);
            assert_eq!(read.payload[16..], pattern(id.into())[..16]);
        }
        sender.join()
    });
    sent.unwrap();
}

#[test]
fn what_has_arrived_of_a_large_write_is_stored_and_the_rest_is_not_waited_for() {
    let rig = Rig::new();
    let mut other = rig.client();
    let writer = negotiated(&rig);
    let data = vec![7; MIB as usize];
    let bytes = write_message(1, &data);
    let part = 300 << 10;
    writer.send(&bytes[..part], &[]).unwrap();
    eventually("what has arrived is stored", || byte(&mut other, part - 40) == 7);
    assert_eq!(byte(&mut other, part), 0);
    // Nothing holds the device meanwhile.
    write_u64(&mut other, PLAIN, 0, 5);
    assert_eq!(read_u64(&mut other, PLAIN, 0), 5);
    writer.send(&bytes[part..], &[]).unwrap();
    assert_eq!(writer.receive_message().unwrap().header.kind(), Kind::Reply(Ok(())));
    assert_eq!(byte(&mut other, MIB as usize - 1), 7);
}

#[test]
fn a_reset_in_between_clears_a_large_write_and_drops_its_rest() {
    let rig = Rig::new();
    let mut other = rig.client();
    let writer = negotiated(&rig);
    let bytes = write_message(1, &vec![7; MIB as usize]);
    let part = 300 << 10;
    writer.send(&bytes[..part], &[]).unwrap();
    eventually("what has arrived is stored", || byte(&mut other, part - 40) == 7);
    other.reset().unwrap();
    writer.send(&bytes[part..], &[]).unwrap();
    assert_eq!(writer.receive_message().unwrap().header.kind(), Kind::Reply(Ok(())));
    let mut memory = vec![1; MIB as usize];
    other.region_read(MEMORY, AT, &mut memory).unwrap();
    assert!(memory.iter().all(|byte| *byte == 0));
    // The stream goes on behind it.
    writer.send(&write_message(2, &pattern(2)), &[]).unwrap();
    assert_eq!(writer.receive_message().unwrap().header.kind(), Kind::Reply(Ok(())));
    other.region_read(MEMORY, AT, &mut memory).unwrap();
    assert!(memory == pattern(2));
}

#[test]
fn a_posted_large_write_gets_no_reply() {
    let rig = Rig::new();
    let client = negotiated(&rig);
    let payload = [access().as_bytes(), &pattern(3)[..]].concat();
    let header = Header::command(1, Command::RegionWrite, payload.len(), true);
    let read = RegionAccess { count: 16, ..access() };
    let next = message(2, Command::RegionRead, read.as_bytes());
    client.send(&[header.as_bytes(), &payload, &next].concat(), &[]).unwrap();
    let reply = client.receive_message().unwrap();
    assert_eq!((reply.header.id, &reply.payload[16..]), (2, &pattern(3)[..16]));
}

#[test]
fn descriptors_in_the_middle_of_a_large_write_are_closed() {
    if !alone("large_access::descriptors_in_the_middle_of_a_large_write_are_closed") {
        return;
    }
    let rig = Rig::new();
    let client = negotiated(&rig);
    let bytes = write_message(1, &pattern(4));
    let eventfd = event();
    let mut other = rig.client();
    let part = 100 << 10;
    client.send(&bytes[..part], &[]).unwrap();
    // Then the device has its memory, which is a descriptor, too.
    let last = pattern(4)[part - 40];
    assert_ne!(last, 0);
    eventually("what has arrived is stored", || byte(&mut other, part - 40) == last);
    let before = open_descriptors();
    for piece in bytes[part..].chunks(50 << 10) {
        client.send(piece, &[eventfd.as_fd()]).unwrap();
    }
    assert_eq!(client.receive_message().unwrap().header.kind(), Kind::Reply(Ok(())));
    eventually("the descriptors are closed", || open_descriptors() == before);
}

#[test]
fn a_client_that_leaves_in_the_middle_of_a_large_write_harms_nobody() {
    let rig = Rig::new();
    for len in [70 << 10, 300 << 10, MIB as usize] {
        let client = negotiated(&rig);
        client.send(&write_message(1, &pattern(5))[..len], &[]).unwrap();
    }
    rig.wait_idle();
    rig.assert_alive();
}

#[test]
fn large_reads_are_whole_though_the_client_takes_them_late() {
    let rig = Rig::new();
    let mut other = rig.client();
    other.region_write(MEMORY, AT, &pattern(6)).unwrap();
    let reader = negotiated(&rig);
    let reads: Vec<u8> =
        (1..=4).flat_map(|id| message(id, Command::RegionRead, access().as_bytes())).collect();
    reader.send(&reads, &[]).unwrap();
    let clients = || rig.served.as_ref().unwrap().clients();
    eventually("the replies wait", || clients().iter().any(|c| c.bytes_sent > u64::from(MIB)));
    for id in 1..=4 {
        let reply = reader.receive_message().unwrap();
        assert_eq!((reply.header.id, reply.header.kind()), (id, Kind::Reply(Ok(()))));
        assert!(reply.payload[16..] == pattern(6));
    }
}
