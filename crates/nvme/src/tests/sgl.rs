//! I/O commands whose data pointer is an SGL.

use super::rig::{BASE, Command, DATA, Host, nvme, pattern};

const WRITE: u8 = 1;
const READ: u8 = 2;
const COMPARE: u8 = 5;
const DATASET: u8 = 9;

/// Types of descriptors.
const BLOCK: u8 = 0;
const BUCKET: u8 = 0x10;
const SEGMENT: u8 = 0x20;
const LAST: u8 = 0x30;

type Descriptor = (u8, u64, u32);

fn bytes((kind, address, len): Descriptor) -> Vec<u8> {
    let mut bytes = [&address.to_le_bytes()[..], &len.to_le_bytes(), &[0; 4]].concat();
    bytes[15] = kind;
    bytes
}

/// A command with this descriptor.
fn command(opcode: u8, first: u64, blocks: u32, (kind, address, len): Descriptor) -> Command {
    let second = u64::from(len) | u64::from(kind) << 56;
    let command = Command::io(opcode, first, blocks, (address, second));
    command.set(0, u32::from(opcode) | 1 << 14)
}

/// Puts descriptors into segments of `room` each, and returns the one that leads to the first.
fn put(host: &Host, list: &[Descriptor], room: usize) -> Descriptor {
    if let [only] = list {
        return *only;
    }
    let (mut at, mut left) = (DATA + 8, list);
    let mut first = None;
    let mut place: Option<u64> = None;
    while !left.is_empty() {
        let is_last = left.len() <= room;
        let (now, rest) = if is_last { (left, &[][..]) } else { left.split_at(room - 1) };
        let count = now.len() + usize::from(!is_last);
        let leads_here = (if is_last { LAST } else { SEGMENT }, at, 16 * count as u32);
        match place {
            None => first = Some(leads_here),
            Some(place) => host.memory.put(place - BASE, &bytes(leads_here)),
        }
        let data: Vec<u8> = now.iter().flat_map(|descriptor| bytes(*descriptor)).collect();
        host.memory.put(at - BASE, &data);
        place = Some(at + data.len() as u64);
        at += 16 * count as u64;
        left = rest;
    }
    first.expect("a list")
}

/// Blocks of these lengths in turn, apart from each other, for `len` bytes.
fn blocks(lengths: &[u32], len: u32) -> Vec<Descriptor> {
    let (mut list, mut left, mut at) = (Vec::new(), len, DATA + (1 << 20) + 1);
    for part in lengths.iter().cycle() {
        let part = (*part).min(left);
        list.push((BLOCK, at, part));
        at += u64::from(part) + 3;
        left -= part;
        if left == 0 {
            return list;
        }
    }
    unreachable!("a cycle has no end")
}

fn fill(host: &Host, list: &[Descriptor], mut data: &[u8]) {
    for (_, at, len) in list {
        host.memory.put(at - BASE, &data[..*len as usize]);
        data = &data[*len as usize..];
    }
}

fn collect(host: &Host, list: &[Descriptor]) -> Vec<u8> {
    list.iter().flat_map(|(_, at, len)| host.memory.get(at - BASE, *len as usize)).collect()
}

#[test]
fn data_comes_back_by_lists_of_every_form() {
    let mut host = Host::new(nvme());
    host.create_pair(1, 64, 1);
    let forms: [&[u32]; 6] = [&[u32::MAX], &[512], &[1, 511], &[7, 0, 4096, 13], &[3], &[65537]];
    for (n, count) in [1, 2, 9, 64, 2048].into_iter().enumerate() {
        for (m, lengths) in forms.into_iter().enumerate() {
            let list = blocks(lengths, 512 * count);
            if list.len() > 4000 {
                continue;
            }
            for room in [2, 17, 4096] {
                let data = pattern((n * 10 + m) as u64, 512 * count as usize);
                let pointer = put(&host, &list, room);
                fill(&host, &list, &data);
                let what = format!("{count} blocks, {lengths:?}, segments of {room}");
                // Each segment has one that leads to the next.
                let links = list.len().saturating_sub(room).div_ceil(room - 1);
                if 1 + list.len() + links > 4096 {
                    assert_eq!(host.perform(1, command(WRITE, 5, count, pointer)), Err(0x0e));
                    continue;
                }
                assert_eq!(host.perform(1, command(WRITE, 5, count, pointer)), Ok(0), "{what}");
                assert_eq!(host.perform(1, command(COMPARE, 5, count, pointer)), Ok(0), "{what}");
                fill(&host, &list, &vec![0xee; data.len()]);
                assert_eq!(host.perform(1, command(READ, 5, count, pointer)), Ok(0), "{what}");
                assert!(collect(&host, &list) == data, "{what}");
            }
        }
    }
}

/// What a bit bucket takes of a read the host does not get; of a write it takes nothing.
#[test]
fn bit_bucket_takes_what_is_read_and_nothing_of_what_is_written() {
    let mut host = Host::new(nvme());
    host.create_pair(1, 64, 1);
    let data = pattern(1, 1024);
    let at = DATA + (1 << 20) + 1;
    let list = [(BLOCK, at, 100), (BUCKET, 0, 300), (BLOCK, at + 200, 624), (BLOCK, at + 900, 300)];
    let pointer = put(&host, &list, 16);
    host.memory.put(at - BASE, &data[..100]);
    host.memory.put(at + 200 - BASE, &data[100..724]);
    host.memory.put(at + 900 - BASE, &data[724..]);
    assert_eq!(host.perform(1, command(WRITE, 3, 2, pointer)), Ok(0));
    assert_eq!(host.perform(1, command(COMPARE, 3, 2, pointer)), Ok(0));
    host.memory.put(at - BASE, &[0xee; 1200]);
    assert_eq!(host.perform(1, command(READ, 3, 2, pointer)), Ok(0));
    let mut expected = vec![0xee; 1200];
    expected[..100].copy_from_slice(&data[..100]);
    expected[200..824].copy_from_slice(&data[400..]);
    assert!(host.memory.get(at - BASE, 1200) == expected);
}

#[test]
fn memory_that_is_not_there_is_a_transfer_error() {
    let mut host = Host::new(nvme());
    host.create_pair(1, 64, 1);
    for address in [1 << 40, u64::MAX - 511, u64::MAX] {
        for opcode in [WRITE, READ, COMPARE] {
            let outcome = host.perform(1, command(opcode, 0, 1, (BLOCK, address, 512)));
            assert_eq!(outcome, Err(0x04), "{opcode} at {address:#x}");
            // Through a buffer: half of it is discarded.
            let list = [(BLOCK, address, 256), (BUCKET, 0, 256), (BLOCK, address, 256)];
            let pointer = put(&host, &list, 16);
            let outcome = host.perform(1, command(opcode, 0, 1, pointer));
            assert_eq!(outcome, Err(0x04), "{opcode} at {address:#x}");
        }
        let outcome = host.perform(1, command(READ, 0, 1, (LAST, address & !7, 16)));
        assert_eq!(outcome, Err(0x04), "a segment at {address:#x}");
    }
}

#[test]
fn ranges_to_deallocate_come_by_a_list() {
    let mut host = Host::new(nvme());
    host.create_pair(1, 64, 1);
    host.memory.put(DATA - BASE, &[7; 4096]);
    assert_eq!(host.perform(1, Command::io(WRITE, 0, 8, (DATA, 0))), Ok(0));
    let range = [&[0; 4][..], &8_u32.to_le_bytes(), &0_u64.to_le_bytes()].concat();
    let at = DATA + 0x2001;
    host.memory.put(at - BASE, &range[..5]);
    host.memory.put(at + 100 - BASE, &range[5..]);
    let pointer = put(&host, &[(BLOCK, at, 5), (BLOCK, at + 100, 11)], 16);
    let dataset = command(DATASET, 0, 1, pointer).set(10, 0).set(11, 4).set(12, 0);
    assert_eq!(host.perform(1, dataset), Ok(0));
    assert_eq!(host.perform(1, Command::io(READ, 0, 8, (DATA, 0))), Ok(0));
    assert_eq!(host.memory.get(DATA - BASE, 4096), [0; 4096]);
}

/// A list that leads to itself ends, and others go on.
#[test]
fn list_that_leads_to_itself_ends() {
    let mut host = Host::new(nvme());
    host.create_pair(1, 64, 1);
    for (n, kind) in [(0, SEGMENT), (1, LAST)] {
        host.memory.put(DATA - BASE, &[bytes((BLOCK, 0, 0)), bytes((kind, DATA, 32))].concat());
        let ids = [0, 1].map(|_| host.put(1, command(READ, 0, 1, (SEGMENT, DATA, 32))));
        let after = host.put(1, Command::io(READ, 0, 1, (DATA + 4096, 0)));
        host.ring(1);
        let expected = [0x0e, 0x0d][n];
        for _ in 0..3 {
            let entry = host.wait(1);
            let status = if entry.id == after { 0 } else { expected };
            assert!(ids.contains(&entry.id) || entry.id == after);
            assert_eq!(entry.status, status);
        }
    }
    assert_eq!(host.identify(1, 0).unwrap()[536..540], (1_u32 | 1 << 16 | 1 << 18).to_le_bytes());
}
