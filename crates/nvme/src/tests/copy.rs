//! Copy.

use super::rig::{BASE, BLOCKS, Command, DATA, Held, Host, nvme, pattern, with};

const WRITE: u8 = 1;
const READ: u8 = 2;
const COPY: u8 = 0x19;
/// Where ranges are.
const RANGES: u64 = DATA + (2 << 20);

/// A range of format 0.
fn range(first: u64, blocks: u32) -> Vec<u8> {
    [&[0; 8][..], &first.to_le_bytes(), &((blocks - 1) as u16).to_le_bytes(), &[0; 14]].concat()
}

fn copy(host: &Host, to: u64, ranges: &[(u64, u32)]) -> Command {
    let bytes: Vec<u8> = ranges.iter().flat_map(|(first, n)| range(*first, *n)).collect();
    host.memory.put(RANGES - BASE, &bytes);
    let command = Command::new(COPY).namespace(1).prps(RANGES, RANGES + 4096);
    command.set(10, to as u32).set(11, (to >> 32) as u32).set(12, ranges.len() as u32 - 1)
}

/// Whole disks of 4,096 blocks, by commands of 8 each.
fn fill(host: &mut Host, bytes: &[u8]) {
    for (n, part) in (0..).zip(bytes.chunks(4096)) {
        host.memory.put(DATA - BASE, part);
        assert_eq!(host.perform(1, Command::io(WRITE, 8 * n, 8, (DATA, 0))), Ok(0));
    }
}

fn collect(host: &mut Host, blocks: u64) -> Vec<u8> {
    let part = |n| {
        assert_eq!(host.perform(1, Command::io(READ, 8 * n, 8, (DATA, 0))), Ok(0));
        host.memory.get(DATA - BASE, 4096)
    };
    (0..blocks / 8).flat_map(part).collect()
}

#[test]
fn ranges_are_copied_one_behind_the_other() {
    let mut host = Host::new(nvme());
    host.create_pair(1, 64, 1);
    let many: Vec<(u64, u32)> = (0..128).map(|n| (2 * n, 1)).collect();
    let forms: [(u64, &[(u64, u32)]); 5] = [
        (200, &[(3, 5)]),
        (100, &[(9, 1), (7, 2), (9, 3)]),
        // The destination is amid the sources.
        (4, &[(0, 8), (2, 8)]),
        (0, &[(1, 63)]),
        (256, &many),
    ];
    for (n, (to, ranges)) in (0..).zip(forms) {
        let data = pattern(n, 512 * 512);
        fill(&mut host, &data);
        let copy = copy(&host, to, ranges);
        assert_eq!(host.perform(1, copy), Ok(0), "{ranges:?}");
        let source = |(first, blocks): &(u64, u32)| {
            let from = 512 * *first as usize;
            data[from..from + 512 * *blocks as usize].to_vec()
        };
        let copied: Vec<u8> = ranges.iter().flat_map(source).collect();
        let mut expected = data.clone();
        let to = 512 * to as usize;
        expected[to..to + copied.len()].copy_from_slice(&copied);
        assert!(collect(&mut host, 512) == expected, "{ranges:?} to {to}");
    }
}

#[test]
fn limits_are_what_identify_says() {
    let mut host = Host::new(nvme());
    host.create_pair(1, 64, 1);
    let namespace = host.identify(0, 1).unwrap();
    let most = u32::from(u16::from_le_bytes([namespace[74], namespace[75]]));
    assert_eq!(namespace[76..80], most.to_le_bytes(), "MSSRL and MCL");
    let ranges = usize::from(namespace[80]) + 1;
    assert_eq!(host.identify(1, 0).unwrap()[534..536], [1, 0], "OCFS");
    let many = vec![(0, 1); ranges];
    let too_many = vec![(0, 1); ranges + 1];
    type Row<'a> = (&'a str, u64, &'a [(u64, u32)], Result<u32, u16>);
    let rows: [Row<'_>; 9] = [
        ("all ranges", 0, &many, Ok(0)),
        ("one too many", 0, &too_many, Err(0x183)),
        ("the longest range", 0, &[(0, most)], Ok(0)),
        ("a longer one", 0, &[(0, most + 1)], Err(0x183)),
        ("too many blocks in all", 0, &[(0, most), (0, 1)], Err(0x183)),
        ("a source past the end", 0, &[(0, 1), (BLOCKS - 1, 2)], Err(0x80)),
        ("a source far past the end", 0, &[(u64::MAX, 1)], Err(0x80)),
        ("a destination past the end", BLOCKS - 1, &[(0, 1), (5, 1)], Err(0x80)),
        ("a destination far past the end", u64::MAX, &[(0, 1)], Err(0x80)),
    ];
    for (what, to, ranges, expected) in rows {
        let copy = copy(&host, to, ranges);
        assert_eq!(host.perform(1, copy), expected, "{what}");
    }
    let other_format = copy(&host, 0, &[(0, 1)]).set(12, 1 << 8);
    assert_eq!(host.perform(1, other_format), Err(0x02));
    let nowhere = copy(&host, 0, &[(0, 1)]).prps(1 << 40, 0);
    assert_eq!(host.perform(1, nowhere), Err(0x04));
}

/// Nothing is written before all was read; a failure says which of both it was, and a forced copy is durable.
#[test]
fn copy_reads_first_and_tells_what_failed() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    host.create_pair(1, 64, 1);
    let command = copy(&host, 64, &[(0, 2), (8, 1)]);
    disk.seen();
    assert_eq!(host.perform(1, command.set(12, 1 | 1 << 30)), Ok(0));
    let (first, second) = ("read 0 1024", "read 4096 512");
    assert_eq!(disk.seen(), [first, second, "write 32768 1536 false", "flush"]);
    disk.fail(Some(vfiod_core::Errno::IO));
    assert_eq!(host.perform(1, command), Err(0x281));
    assert_eq!(disk.seen(), [first]);
}
