//! REGION_READ.

use vfiod_protocol::Descriptors;
use vfiod_protocol::limits::MAX_DATA;
use vfiod_protocol::wire::Command;
use vfiod_protocol::wire::payload::RegionAccess;
use zerocopy::IntoBytes;

use crate::driver::*;

fn access(offset: u64, count: usize) -> RegionAccess {
    RegionAccess { offset, region: REGION, count: count as u32 }
}

#[test]
fn data_follows_the_echoed_access() {
    let mut driver = Driver::negotiated();
    driver.memory[8..12].copy_from_slice(b"data");
    let access = access(8, 4);
    let reply = driver.ask(Command::RegionRead, access.as_bytes(), &[]).unwrap();
    assert_eq!(reply.payload, [access.as_bytes(), b"data"].concat());
}

#[test]
fn largest_transfer_passes_and_larger_is_refused() {
    let mut driver = Driver::negotiated();
    let reply = driver.ask(Command::RegionRead, access(0, MAX_DATA).as_bytes(), &[]).unwrap();
    assert_eq!((reply.errno(), reply.payload.len()), (None, MAX_DATA + 16));
    for count in [MAX_DATA + 1, u32::MAX as usize] {
        let reply = driver.ask(Command::RegionRead, access(0, count).as_bytes(), &[]).unwrap();
        assert_eq!((reply.errno(), reply.payload.len()), (Some(EINVAL), 0));
    }
}

#[test]
fn failed_read_is_an_errno_or_all_ones_for_rust_vmm() {
    let beyond = access(SIZE as u64, 4);
    let mut driver = Driver::negotiated();
    let reply = driver.ask(Command::RegionRead, beyond.as_bytes(), &[]).unwrap();
    assert_eq!((reply.errno(), reply.payload.len()), (Some(EINVAL), 0));
    let mut driver = Driver::rust_vmm();
    let reply = driver.ask(Command::RegionRead, beyond.as_bytes(), &[]).unwrap();
    assert_eq!((reply.errno(), &reply.payload[16..]), (None, &[0xff; 4][..]));
}

#[test]
fn posted_read_gets_no_reply() {
    let mut driver = Driver::negotiated();
    driver.feed(&posted(1, Command::RegionRead, access(0, 4).as_bytes()), &[]);
    driver.feed(&posted(1, Command::RegionRead, access(SIZE as u64, 4).as_bytes()), &[]);
    assert_eq!(driver.take_sent(), []);
    assert_eq!(driver.log.len(), 2);
}

/// Answers a read of 8 bytes with [`vfiod_protocol::Reply::read_in_place`], of which `take` bytes are
/// sent at once; another reply is in front of it. Returns all that is sent, and the next position.
fn in_place(take: usize, fails: bool) -> (Vec<u8>, u64) {
    let mut driver = Driver::negotiated();
    let before = message(1, Command::RegionRead, access(0, 4).as_bytes());
    let read = message(2, Command::RegionRead, access(0, 8).as_bytes());
    let connection = &mut driver.connection;
    connection.receive(&[before, read].concat(), Descriptors::default(), driver.now).unwrap();
    let first = connection.next_access().unwrap();
    let filled = first.reply.read(|data| {
        data.fill(b'-');
        Ok::<(), ()>(())
    });
    filled.unwrap();
    let mut sent = Vec::new();
    let send = |head: &[u8]| {
        assert_eq!(head.len(), 36 + 32);
        sent.extend([head, b"abcdefgh"].concat()[..take].iter());
        take
    };
    let fill = |from: usize, data: &mut [u8]| {
        data.fill(b'?');
        if fails {
            return Err(5);
        }
        data.copy_from_slice(&b"abcdefgh"[from..]);
        Ok(())
    };
    let second = connection.next_access().unwrap();
    if let Err((errno, reply)) = second.reply.read_in_place(send, fill) {
        reply.refuse(errno);
    }
    assert!(connection.next_access().is_none());
    while let Some(chunk) = connection.output().chunk() {
        sent.extend_from_slice(chunk.bytes);
        let len = chunk.bytes.len();
        connection.output().sent(len);
    }
    let from = driver.connection.output().position();
    (sent, from)
}

#[test]
fn data_sent_in_place_are_followed_by_those_that_were_not() {
    let (whole, end) = in_place(0, false);
    assert_eq!((whole.len(), &whole[68..]), (76, &b"abcdefgh"[..]));
    for take in 1..=76 {
        assert_eq!(in_place(take, false), (whole.clone(), end), "{take} bytes sent at once");
    }
}

#[test]
fn data_that_are_gone_are_an_errno_or_zeros_behind_what_was_sent() {
    for take in 0..76 {
        let (sent, _) = in_place(take, true);
        if take <= 36 {
            assert_eq!(sent.len(), 36 + 16, "{take} bytes sent at once");
        } else {
            let data = take.saturating_sub(68);
            let expected = [&b"abcdefgh"[..data], &[0; 8][data..]].concat();
            assert_eq!(sent[68..], expected, "{take} bytes sent at once");
        }
    }
}
