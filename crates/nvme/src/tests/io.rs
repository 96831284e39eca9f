//! I/O commands.

use vfiod_core::Errno;

use super::rig::{BASE, BLOCKS, Command, DATA, Held, Host, Tells, nvme, pattern, with};

const FLUSH: u8 = 0;
const WRITE: u8 = 1;
const READ: u8 = 2;
const COMPARE: u8 = 5;
const ZEROES: u8 = 8;
const DATASET: u8 = 9;
const VERIFY: u8 = 12;

fn host() -> Host {
    let mut host = Host::new(nvme());
    host.create_pair(1, 64, 1);
    host
}

/// PRPs for data that begins at an offset in a page: the pages lie apart, last to first, and the list
/// begins so late in its page that it is chained.
fn scattered(host: &Host, offset: u64, len: u64) -> ((u64, u64), Vec<(u64, usize)>) {
    let page = 4096;
    let pages = (offset + len).div_ceil(page);
    let at = |n: u64| DATA + (1 << 20) + 2 * page * (pages - n);
    let pieces = (0..pages).map(|n| {
        let (from, to) = (if n == 0 { offset } else { 0 }, page.min(offset + len - n * page));
        (at(n) + from, (to - from) as usize)
    });
    let second = match pages {
        1 => 0,
        2 => at(1),
        _ => {
            let mut list = DATA + page - 16;
            let mut left: Vec<u64> = (1..pages).map(at).collect();
            let first = list;
            let mut next_page = DATA + 4 * page;
            while !left.is_empty() {
                let room = ((page - list % page) / 8) as usize;
                let count = if left.len() > room { room - 1 } else { left.len() };
                let now: Vec<u64> = left.drain(..count).collect();
                let mut bytes: Vec<u8> = now.iter().flat_map(|entry| entry.to_le_bytes()).collect();
                if !left.is_empty() {
                    bytes.extend(next_page.to_le_bytes());
                }
                host.memory.put(list - BASE, &bytes);
                list = next_page;
                next_page += page;
            }
            first
        }
    };
    ((at(0) + offset, second), pieces.collect())
}

fn fill(host: &Host, pieces: &[(u64, usize)], mut bytes: &[u8]) {
    for (at, len) in pieces {
        host.memory.put(at - BASE, &bytes[..*len]);
        bytes = &bytes[*len..];
    }
}

fn collect(host: &Host, pieces: &[(u64, usize)]) -> Vec<u8> {
    pieces.iter().flat_map(|(at, len)| host.memory.get(at - BASE, *len)).collect()
}

#[test]
fn data_comes_back_at_every_alignment_and_length() {
    let mut host = host();
    for (n, blocks) in
        [1, 2, 7, 8, 9, 15, 16, 17, 64, 255, 1024, 2047, 2048].into_iter().enumerate()
    {
        for (m, offset) in [0, 4, 8, 512, 2052, 4092].into_iter().enumerate() {
            let (first, len) = ((97 * n as u64) % 4096, u64::from(blocks) * 512);
            let data = pattern((n * 10 + m) as u64, len as usize);
            let (prps, pieces) = scattered(&host, offset, len);
            fill(&host, &pieces, &data);
            let write = Command::io(WRITE, first, blocks, prps);
            assert_eq!(host.perform(1, write), Ok(0), "{blocks} blocks at {offset}");
            fill(&host, &pieces, &vec![0xee; len as usize]);
            let read = Command::io(READ, first, blocks, prps);
            assert_eq!(host.perform(1, read), Ok(0), "{blocks} blocks at {offset}");
            assert!(collect(&host, &pieces) == data, "{blocks} blocks at {offset}");
        }
    }
}

#[test]
fn fields_that_are_not_allowed_get_their_status() {
    let mut host = host();
    let data = (DATA, DATA + 4096);
    let at = |opcode, first, blocks| Command::io(opcode, first, blocks, data);
    for opcode in [READ, WRITE, COMPARE] {
        for (what, command, expected) in [
            ("the last block", at(opcode, BLOCKS - 1, 1), Ok(0)),
            ("past the end", at(opcode, BLOCKS - 1, 2), Err(0x80)),
            ("the block after the last", at(opcode, BLOCKS, 1), Err(0x80)),
            ("far past the end", at(opcode, u64::MAX, 1), Err(0x80)),
            ("more than MDTS", at(opcode, 0, 2049), Err(0x02)),
            ("no namespace", at(opcode, 0, 1).namespace(0), Err(0x0b)),
            ("an inactive one", at(opcode, 0, 1).namespace(2), Err(0x02)),
            ("one past NN", at(opcode, 0, 1).namespace(17), Err(0x0b)),
            ("all of them", at(opcode, 0, 1).namespace(u32::MAX), Err(0x0b)),
            ("memory that is not there", at(opcode, 0, 1).prps(1 << 40, 0), Err(0x04)),
            ("memory at the end of all", at(opcode, 0, 1).prps(u64::MAX - 3, 0), Err(0x04)),
            ("an offset", at(opcode, 0, 1).prps(DATA + 1, 0), Err(0x13)),
            ("a list that leads to itself", at(opcode, 0, 24).prps(DATA, DATA + 4088), Err(0x13)),
        ] {
            let itself = (DATA + 4088).to_le_bytes();
            host.memory.put(DATA + 4088 - BASE, &itself);
            assert_eq!(host.perform(1, command), expected, "{opcode}: {what}");
        }
    }
    for opcode in [ZEROES, VERIFY] {
        for (first, blocks, expected) in [(BLOCKS - 1, 2, Err(0x80)), (0, BLOCKS as u32, Ok(0))] {
            let command = Command::io(opcode, first, blocks, (0, 0));
            assert_eq!(host.perform(1, command), expected, "{opcode}");
        }
    }
}

#[test]
fn flush_and_forced_writes_reach_the_disk() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    host.create_pair(1, 64, 1);
    assert_eq!(host.perform(1, Command::new(FLUSH).namespace(1)), Ok(0));
    assert_eq!(host.perform(1, Command::new(FLUSH).namespace(u32::MAX)), Ok(0));
    assert_eq!(host.perform(1, Command::new(FLUSH).namespace(0)), Err(0x0b));
    assert_eq!(disk.seen(), ["flush", "flush"]);
    let write = Command::io(WRITE, 1, 1, (DATA, 0));
    assert_eq!(host.perform(1, write), Ok(0));
    assert_eq!(host.perform(1, write.set(12, 1 << 30)), Ok(0));
    assert_eq!(disk.seen(), ["write 512 512 false", "write 512 512 false", "flush"]);
    // Without the write cache each write is durable.
    assert_eq!(host.admin(Command::new(9).set(10, 6).set(11, 0)), Ok(0));
    assert_eq!(host.perform(1, write), Ok(0));
    assert_eq!(host.perform(1, Command::io(ZEROES, 2, 1, (0, 0))), Ok(0));
    let (write, zero) = ("write 512 512 false", "zero 1024 512 false false");
    assert_eq!(disk.seen(), [write, "flush", zero, "flush"]);
}

/// Force Unit Access of a read: what was read is durable when the command completes.
#[test]
fn forced_reads_make_durable_what_was_read() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    host.create_pair(1, 64, 1);
    let at = |opcode| Command::io(opcode, 1, 1, (DATA, 0));
    for opcode in [READ, COMPARE, VERIFY] {
        assert_eq!(host.perform(1, at(opcode)), Ok(0));
        assert_eq!(disk.seen(), ["read 512 512"], "opcode {opcode}");
        assert_eq!(host.perform(1, at(opcode).set(12, 1 << 30)), Ok(0));
        assert_eq!(disk.seen(), ["read 512 512", "flush"], "opcode {opcode}");
    }
    // Where nothing is volatile there is nothing to do.
    let disk = Held::new();
    disk.tell(Tells { deallocate: true, volatile: false });
    let mut host = Host::new(with(disk.clone()));
    host.create_pair(1, 64, 1);
    assert_eq!(host.perform(1, at(READ).set(12, 1 << 30)), Ok(0));
    assert_eq!(disk.seen(), ["read 512 512"]);
}

#[test]
fn zeroes_and_deallocation_change_the_blocks_that_were_asked_for() {
    let mut host = host();
    let data = pattern(1, 8192);
    let write = |host: &mut Host| {
        host.memory.put(DATA - BASE, &data);
        assert_eq!(host.perform(1, Command::io(WRITE, 100, 16, (DATA, DATA + 4096))), Ok(0));
    };
    let read = |host: &mut Host| {
        assert_eq!(host.perform(1, Command::io(READ, 100, 16, (DATA, DATA + 4096))), Ok(0));
        host.memory.get(DATA - BASE, 8192)
    };
    let mut expected = data.clone();
    expected[2 * 512..5 * 512].fill(0);
    for deallocate in [0, 1 << 25] {
        write(&mut host);
        let zeroes = Command::io(ZEROES, 102, 3, (0, 0)).set(12, 2 | deallocate);
        assert_eq!(host.perform(1, zeroes), Ok(0));
        assert!(read(&mut host) == expected);
    }
    let range = |blocks: u32, first: u64| -> Vec<u8> {
        [&[0; 4][..], &blocks.to_le_bytes(), &first.to_le_bytes()].concat()
    };
    write(&mut host);
    let ranges = [range(1, 102), range(0, 110), range(2, 103)].concat();
    let dataset =
        |count: u32| Command::new(DATASET).namespace(1).prps(DATA + 8192, 0).set(10, count - 1);
    host.memory.put(DATA + 8192 - BASE, &ranges);
    assert_eq!(host.perform(1, dataset(3)), Ok(0));
    assert!(read(&mut host) == data, "without AD nothing changes");
    assert_eq!(host.perform(1, dataset(3).set(11, 4)), Ok(0));
    assert!(read(&mut host) == expected);
    // A range past the end: none of them is deallocated.
    write(&mut host);
    let ranges = [range(1, 102), range(2, BLOCKS - 1)].concat();
    host.memory.put(DATA + 8192 - BASE, &ranges);
    assert_eq!(host.perform(1, dataset(2).set(11, 4)), Err(0x80));
    assert!(read(&mut host) == data);
    // The whole disk, by 256 ranges.
    let ranges = range(BLOCKS as u32 / 256, 0);
    let all: Vec<u8> = (0..256_u64)
        .flat_map(|n| {
            let mut range = ranges.clone();
            range[8..].copy_from_slice(&(n * BLOCKS / 256).to_le_bytes());
            range
        })
        .collect();
    host.memory.put(DATA + 8192 - BASE, &all);
    assert_eq!(host.perform(1, dataset(256).set(11, 4)), Ok(0));
    assert_eq!(read(&mut host), [0; 8192]);
}

#[test]
fn failures_of_the_disk_have_their_statuses_and_are_logged() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    host.create_pair(1, 64, 1);
    let count = |host: &mut Host| {
        let health = host.log(2, 512).unwrap();
        (health[160], health[176])
    };
    let mut expected = (0, 0);
    for (opcode, errno, status, media) in [
        (READ, Errno::IO, 0x281, true),
        (WRITE, Errno::IO, 0x280, true),
        (WRITE, Errno::NOSPC, 0x81, false),
        (WRITE, Errno::DQUOT, 0x81, false),
        (READ, Errno::NODEV, 0x281, true),
        (COMPARE, Errno::IO, 0x281, true),
        (VERIFY, Errno::IO, 0x281, true),
        (READ, Errno::FAULT, 0x04, false),
        (READ, Errno::NOTSUP, 0x06, false),
    ] {
        disk.fail(Some(errno));
        assert_eq!(
            host.perform(1, Command::io(opcode, 3, 1, (DATA + 8192, 0))),
            Err(status),
            "{errno}"
        );
        disk.fail(None);
        assert_eq!(
            host.perform(1, Command::io(opcode, 3, 1, (DATA + 8192, 0))),
            Ok(0),
            "after {errno}"
        );
        expected = (expected.0 + u8::from(media), expected.1 + 1);
        assert_eq!(count(&mut host), expected, "{opcode}, {errno}");
        // The newest entry; to read it adds none.
        let entry = host.log(1, 64).unwrap();
        assert_eq!((entry[0], entry[8]), (expected.1, 1), "count and queue");
        assert_eq!(u16::from_le_bytes([entry[12], entry[13]]) >> 1 & 0x7ff, status);
        assert_eq!(u32::from_le_bytes([entry[24], entry[25], entry[26], entry[27]]), 1);
    }
}

#[test]
fn counters_tell_what_was_moved() {
    let mut host = host();
    for n in 0..3 {
        let (prps, _) = scattered(&host, 0, 512_000);
        assert_eq!(host.perform(1, Command::io(WRITE, n, 1000, prps)), Ok(0));
        assert_eq!(host.perform(1, Command::io(READ, n, 1, (DATA, 0))), Ok(0));
    }
    let health = host.log(2, 512).unwrap();
    assert_eq!([32, 48, 64, 80].map(|at| health[at]), [1, 3, 3, 3]);
}

/// A Write Zeroes is for as many bytes as WZSL says. What DMRL and DMRSL advise may be exceeded.
#[test]
fn commands_that_take_long_have_their_limits() {
    let disk = vfiod_disk::Null::new(1 << 40, false).unwrap();
    for block_size in [512, 4096_u32] {
        let mut host = Host::new(with(disk.clone()));
        host.create_pair(1, 64, 1);
        let format = u32::from(block_size == 4096);
        assert_eq!(host.admin(Command::new(0x80).namespace(1).set(10, format)), Ok(0));
        let limits = host.identify(6, 0).unwrap();
        let range = u32::from_le_bytes([limits[4], limits[5], limits[6], limits[7]]);
        assert_eq!(u64::from(range) * u64::from(block_size), 1 << 30, "DMRSL");
        let most = (4096 << limits[1]) / block_size;
        let zeroes = |blocks| Command::io(ZEROES, 7, blocks, (0, 0));
        assert_eq!(host.perform(1, zeroes(most)), Ok(0));
        if most < 0x1_0000 {
            assert_eq!(host.perform(1, zeroes(most + 1)), Err(0x02));
        }
    }
}

/// Commands at depth 32 on several queues, to neighbouring blocks: each block has what was written to it.
#[test]
fn neighbouring_writes_of_all_queues() {
    let mut host = Host::new(nvme());
    for id in 1..=4 {
        host.create_pair(id, 64, 1);
    }
    for round in 0..20_u64 {
        for block in 0..128_u64 {
            let at = DATA + block * 512;
            host.memory.put(at - BASE, &pattern(round * 1000 + block, 512));
            host.put(1 + block as usize % 4, Command::io(WRITE, block, 1, (at, 0)));
        }
        (1..=4).for_each(|id| host.ring(id));
        for block in 0..128 {
            assert_eq!(host.wait(1 + block % 4).status, 0);
        }
        let (prps, pieces) = scattered(&host, 0, 128 * 512);
        assert_eq!(host.perform(1, Command::io(READ, 0, 128, prps)), Ok(0));
        let read = collect(&host, &pieces);
        for (block, bytes) in (0..).zip(read.chunks_exact(512)) {
            assert!(bytes == pattern(round * 1000 + block, 512), "round {round}, block {block}");
        }
    }
}

/// After a sync that has failed nothing is written any more, and the host is told: once.
#[test]
fn failed_sync_ends_writes_and_is_told_once() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    host.create_pair(1, 64, 1);
    assert_eq!(host.admin(Command::new(9).set(10, 0x0b).set(11, 8)), Ok(0));
    let events = [host.submit(0, Command::new(12)), host.submit(0, Command::new(12))];
    assert_eq!(host.perform(1, Command::io(WRITE, 3, 1, (DATA, 0))), Ok(0));
    disk.fail(Some(Errno::IO));
    assert_eq!(host.perform(1, Command::new(FLUSH).namespace(1)), Err(0x280));
    let entry = host.wait(0);
    assert_eq!((entry.id, entry.result), (events[0], 0x2_0001));
    disk.fail(None);
    disk.seen();
    for _ in 0..3 {
        assert_eq!(host.perform(1, Command::new(FLUSH).namespace(1)), Err(0x280));
        assert_eq!(host.perform(1, Command::io(WRITE, 3, 1, (DATA, 0))), Err(0x280));
        assert_eq!(host.perform(1, Command::io(ZEROES, 3, 1, (0, 0))), Err(0x280));
        assert_eq!(disk.seen(), [""; 0], "the disk is not asked");
        assert_eq!(host.perform(1, Command::io(READ, 3, 1, (DATA, 0))), Ok(0));
        assert_eq!(disk.seen(), ["read 1536 512"]);
        assert_eq!(host.log(2, 512).unwrap()[0], 8, "read-only");
    }
    assert!(host.peek(0).is_none());
}

/// Compare tells any byte that differs, wherever it is, and is no error of the media.
#[test]
fn compare_finds_every_difference() {
    let mut host = host();
    for (blocks, offset) in [(1, 0), (9, 4), (300, 512), (2048, 4092)] {
        let len = u64::from(blocks) * 512;
        let data = pattern(len, len as usize);
        let (prps, pieces) = scattered(&host, offset, len);
        fill(&host, &pieces, &data);
        assert_eq!(host.perform(1, Command::io(WRITE, 7, blocks, prps)), Ok(0));
        let compare = Command::io(COMPARE, 7, blocks, prps);
        assert_eq!(host.perform(1, compare), Ok(0));
        for at in [0, len / 2, len - 1] {
            let mut other = data.clone();
            other[at as usize] ^= 0x10;
            fill(&host, &pieces, &other);
            assert_eq!(host.perform(1, compare), Err(0x285), "{blocks} blocks, byte {at}");
        }
    }
    assert_eq!(host.log(2, 512).unwrap()[160], 0, "media errors");
}
