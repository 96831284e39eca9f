//! Admin commands.

use std::sync::Arc;

use super::rig::{BASE, BLOCKS, Command, DATA, Held, Host, namespace_of, nvme, with};
use super::shadow::Reads;

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

#[test]
fn identify_gives_every_structure_that_is_offered() {
    let mut host = Host::new(nvme());
    let controller = host.identify(1, 0).unwrap();
    assert_eq!(controller[4..24], *b"serial-1            ");
    assert_eq!(controller[24..64], *b"vfiod NVMe disk                         ");
    assert_eq!(number(&controller[80..84]), 0x20000);
    assert_eq!((controller[77], controller[111], number(&controller[516..520])), (8, 1, 16));
    assert_eq!((controller[512], controller[513]), (0x66, 0x44));
    assert!(controller[768..].starts_with(b"nqn.2014-08.org.nvmexpress:uuid:12345678-"));
    let namespace = host.identify(0, 1).unwrap();
    assert_eq!((number(&namespace[..8]), namespace[26], namespace[130]), (BLOCKS, 0, 9));
    // The other format: blocks of 4 KiB.
    assert_eq!((namespace[25], namespace[134]), (1, 12));
    let list = host.identify(2, 0).unwrap();
    assert_eq!((number(&list[..4]), list[4..].iter().all(|byte| *byte == 0)), (1, true));
    assert_eq!(host.identify(2, 1).unwrap(), [0; 4096]);
    let descriptors = host.identify(3, 1).unwrap();
    // The same identifiers in both places.
    assert_eq!((descriptors[0], descriptors[1]), (2, 16));
    assert_eq!(descriptors[4..20], namespace[104..120]);
    assert_eq!((descriptors[20], descriptors[21], descriptors[40]), (3, 16, 4));
    assert_eq!(host.identify(5, 1).unwrap(), [0; 4096]);
    // WZSL: 32 MiB; DMRL; DMRSL: 1 GiB.
    let limits = host.identify(6, 0).unwrap();
    assert_eq!((limits[1], limits[3], number(&limits[4..8])), (13, 64, 1 << 21));
    assert_eq!(host.identify(7, 0).unwrap(), list);
    assert_eq!(host.identify(8, 1).unwrap()[14], 1, "ready");
}

#[test]
fn identify_of_what_is_not_there() {
    let mut host = Host::new(nvme());
    let zeroes = Ok(vec![0; 4096]);
    for (cns, namespace, expected) in [
        (0, 2, zeroes.clone()),
        (0, 16, zeroes.clone()),
        (8, 16, zeroes.clone()),
        (5, 16, zeroes),
        (3, 16, Err(0x02)),
        (0, 0, Err(0x0b)),
        (0, 17, Err(0x0b)),
        (0, 0xffff_fffe, Err(0x0b)),
        (0, u32::MAX, Err(0x0b)),
        (3, 0, Err(0x0b)),
        (2, 0xffff_fffe, Err(0x0b)),
        (2, u32::MAX, Err(0x0b)),
    ] {
        assert_eq!(host.identify(cns, namespace), expected, "CNS {cns}, NSID {namespace:#x}");
    }
    let offered = [0, 1, 2, 3, 5, 6, 7, 8, 0x12, 0x13, 0x1c];
    for cns in (0..=255).filter(|cns| !offered.contains(cns)) {
        assert_eq!(host.identify(cns, 1), Err(0x02), "CNS {cns:#x}");
    }
    // A command set that is not offered.
    for cns in [5, 6, 7] {
        let command = Command::new(6).namespace(1).prps(DATA, 0).set(10, cns).set(11, 2 << 24);
        assert_eq!(host.admin(command), Err(0x02), "CNS {cns}");
    }
}

#[test]
fn every_opcode_that_is_not_offered_is_invalid() {
    let mut host = Host::new(nvme());
    host.create_pair(1, 16, 1);
    let effects = host.log(5, 4096).unwrap();
    let offered =
        |table: usize, opcode: u8| effects[table * 1024 + 4 * usize::from(opcode)] & 1 != 0;
    let admin = [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 0x10, 0x11, 0x7c, 0x80];
    let io = [0, 1, 2, 5, 8, 9, 12, 0x19];
    for opcode in 0..=255 {
        assert_eq!(offered(0, opcode), admin.contains(&opcode), "admin {opcode:#x}");
        assert_eq!(offered(1, opcode), io.contains(&opcode), "I/O {opcode:#x}");
        // A fused command, an admin command with an SGL, and an SGL of metadata have an invalid field.
        for (bits, is_io) in [(1 << 8, false), (3 << 8, true), (1 << 14, false), (2 << 14, true)] {
            let command = Command::new(opcode).namespace(1).set(0, u32::from(opcode) | bits);
            let expected = |known: bool| Err(if known { 0x02 } else { 0x01 });
            assert_eq!(host.admin(command), expected(admin.contains(&opcode)), "{opcode:#x}");
            if is_io {
                assert_eq!(host.perform(1, command), expected(io.contains(&opcode)), "{opcode:#x}");
            }
        }
    }
}

fn get(feature: u32, select: u32) -> Command {
    Command::new(10).set(10, select << 8 | feature).prps(DATA, 0).namespace(namespace_of(feature))
}

fn set(feature: u32, value: u32) -> Command {
    Command::new(9).set(10, feature).set(11, value).namespace(namespace_of(feature))
}

#[test]
fn features_have_defaults_and_values_until_a_reset() {
    let mut host = Host::new(with(Held::new()));
    let queues = 63 << 16 | 63;
    // Feature, its default, a value, and what is read then.
    let rows = [
        (0x01, 0, 0x0102_0304, 0x0102_0304),
        (0x02, 0, 0x20, 0x20),
        (0x04, 343, 400, 400),
        (0x05, 0, 17, 17),
        (0x06, 1, 0, 0),
        (0x07, queues, 0x0003_0003, queues),
        (0x08, 0, 0x0a0b, 0x0a0b),
        (0x0a, 0, 1, 1),
        (0x0b, 0, 0x1ff, 0x1ff),
    ];
    for (feature, default, value, then) in rows {
        for select in [0, 1, 2] {
            assert_eq!(host.admin(get(feature, select)), Ok(default), "{feature:#x}, {select}");
        }
        let saveable = [0x01, 0x04, 0x05, 0x06, 0x08, 0x0a].contains(&feature);
        let capabilities = 4 | u32::from(feature == 0x05) << 1 | u32::from(saveable);
        assert_eq!(host.admin(get(feature, 3)), Ok(capabilities), "{feature:#x}: capabilities");
        let expected = if feature == 7 { queues } else { 0 };
        assert_eq!(host.admin(set(feature, value)), Ok(expected), "{feature:#x}");
        assert_eq!(host.admin(get(feature, 0)), Ok(then), "{feature:#x}");
        assert_eq!(host.admin(get(feature, 1)), Ok(default), "{feature:#x}: the default stays");
        assert_eq!(host.admin(get(feature, 2)), Ok(default), "{feature:#x}: it was not saved");
        if !saveable {
            let save = set(feature, value).set(10, feature | 1 << 31);
            assert_eq!(host.admin(save), Err(0x10d), "{feature:#x}: not saveable");
        }
    }
    let vector = get(0x09, 0).set(11, 64);
    assert_eq!(host.admin(vector), Ok(64));
    assert_eq!(host.admin(set(0x09, 1 << 16 | 64)), Ok(0));
    assert_eq!(host.admin(vector), Ok(1 << 16 | 64));
    host.disable();
    host.enable();
    for (feature, default, ..) in rows {
        assert_eq!(host.admin(get(feature, 0)), Ok(default), "{feature:#x} after a reset");
    }
}

#[test]
fn features_and_values_that_are_not_offered_are_invalid() {
    let mut host = Host::new(nvme());
    // A disk in memory has no volatile cache.
    let offered = [1, 2, 4, 5, 7, 8, 9, 0xa, 0xb, 0xe];
    let effects = host.log(0x12, 1024).unwrap();
    for feature in 0..=255 {
        let known = offered.contains(&feature);
        assert_eq!(host.admin(get(feature, 0)).is_ok(), known, "{feature:#x}");
        assert_eq!(effects[4 * feature as usize] & 1 == 1, known, "{feature:#x}");
        if !known {
            assert_eq!(host.admin(get(feature, 0)), Err(0x02), "{feature:#x}");
            assert_eq!(host.admin(set(feature, 0)), Err(0x02), "{feature:#x}");
        }
    }
    for (feature, value) in [
        (0x02, 1),       // a power state that there is not
        (0x04, 1 << 16), // a sensor that there is not
        (0x04, 2 << 20), // a reserved threshold
        (0x05, 1 << 16), // DULBE
        (0x07, 0xffff),  // no number of queues
        (0x07, 0xffff_0000),
        (0x09, 65),     // a vector that there is not
        (0x0b, 1 << 9), // events that there are not
    ] {
        assert_eq!(host.admin(set(feature, value)), Err(0x02), "{feature:#x} = {value:#x}");
    }
    assert_eq!(host.admin(get(1, 4)), Err(0x02), "a reserved select");
    let all_sensors = 0xf << 16;
    assert_eq!(host.admin(set(4, all_sensors | 350)), Ok(0));
    let of_all = get(4, 0).set(11, all_sensors);
    assert_eq!(host.admin(of_all), Err(0x02), "one temperature of all sensors");
    host.create_pair(1, 16, 1);
    assert_eq!(host.admin(set(7, 0)), Err(0x0c), "queues were created");
}

#[test]
fn log_pages_that_are_offered_and_no_others() {
    let mut host = Host::new(nvme());
    let supported = host.log(0, 1024).unwrap();
    let offered = [0, 1, 2, 3, 4, 5, 0x12, 0x13];
    for page in 0..=255 {
        let known = offered.contains(&page);
        assert_eq!(supported[4 * page as usize] & 1 == 1, known, "{page:#x}");
        let expected = if known { Ok(()) } else { Err(0x109) };
        assert_eq!(host.log(page, 512).map(drop), expected, "{page:#x}");
    }
    let health = host.log(2, 512).unwrap();
    assert_eq!((health[0], number(&health[1..3]), health[3]), (0, 298, 100));
    assert_eq!(host.log(3, 512).unwrap()[8..16], *b"0.1.0   ");
}

#[test]
fn log_pages_by_offset_and_length() {
    let mut host = Host::new(nvme());
    let whole = host.log(5, 4096).unwrap();
    let part = |offset: u64, dwords: u32| {
        Command::new(2)
            .namespace(u32::MAX)
            .prps(DATA, 0)
            .set(10, 5 | (dwords - 1) << 16)
            .set(12, offset as u32)
            .set(13, (offset >> 32) as u32)
    };
    host.memory.put(DATA - BASE, &[0xee; 64]);
    assert_eq!(host.admin(part(1024, 8)), Ok(0));
    assert_eq!(host.memory.get(DATA - BASE, 33), [&whole[1024..1056], &[0xee]].concat());
    // Past the end of the page nothing is written.
    assert_eq!(host.admin(part(4092, 16)), Ok(0));
    assert_eq!(host.memory.get(DATA - BASE + 4, 4), whole[1028..1032]);
    for offset in [2, 4096, 1 << 40, u64::MAX - 3] {
        assert_eq!(host.admin(part(offset, 1)), Err(0x02), "offset {offset:#x}");
    }
    // 16 GiB, and more than MDTS.
    assert_eq!(host.admin(part(0, 1).set(10, 0xffff_0005).set(11, 0xffff)), Err(0x02));
    assert_eq!(host.admin(part(0, 1).set(14, 1 << 23)), Err(0x02), "an index");
    let of_namespace = Command::new(2).namespace(1).prps(DATA, 0).set(10, 2 | 127 << 16);
    assert_eq!(host.admin(of_namespace), Err(0x02), "SMART of a namespace");
}

#[test]
fn data_that_cannot_be_written_is_a_transfer_error() {
    let mut host = Host::new(nvme());
    for (prps, expected) in [
        ((1 << 40, 0), 0x04),
        ((u64::MAX - 4095, 0), 0x04),
        ((DATA + 2, 0), 0x13),
        ((DATA + 8, DATA + 12), 0x13),
    ] {
        let command = Command::new(6).prps(prps.0, prps.1).set(10, 1);
        assert_eq!(host.admin(command), Err(expected), "{prps:x?}");
    }
}

/// A host whose memory is reached by message may let a thousand downloads wait: none has memory for its data.
#[test]
fn firmware_image_is_taken_in_small_pieces() {
    let (memory, at) = (Arc::new(Reads::default()), 1 << 41);
    let mut host = Host::new(nvme());
    host.device.map_peer(at, 1 << 20, memory.clone());
    let pages: Vec<u8> = (1..256).flat_map(|n| (at + n * 4096_u64).to_le_bytes()).collect();
    host.memory.put(DATA - BASE, &pages);
    let download = Command::new(0x11).prps(at, DATA).set(10, (1 << 18) - 1);
    assert_eq!(host.admin(download), Ok(0));
    let seen = memory.seen.lock().unwrap();
    assert_eq!(seen.iter().map(|(_, len)| len).sum::<usize>(), 1 << 20);
    assert!(seen.iter().all(|(_, len)| *len <= 4096), "{seen:x?}");
    let ascends = seen.iter().is_sorted_by(|(a, len), (b, _)| a + *len as u64 == *b);
    assert!(ascends, "each byte once");
}

/// The firmware is this program: an image can be given, and none is accepted.
#[test]
fn firmware_takes_no_image() {
    let mut host = Host::new(nvme());
    let download = |dwords: u32| Command::new(0x11).prps(DATA, DATA + 4096).set(10, dwords - 1);
    assert_eq!(host.admin(download(1)), Ok(0));
    assert_eq!(host.admin(download(1024).set(11, 1)), Ok(0));
    assert_eq!(host.admin(download(262_145)), Err(0x02), "more than MDTS");
    assert_eq!(host.admin(download(1).prps(1 << 40, 0)), Err(0x04));
    let commit = |slot: u32, action: u32| Command::new(0x10).set(10, action << 3 | slot);
    for (slot, action, expected) in [
        (0, 0, Err(0x107)),
        (0, 1, Err(0x107)),
        (1, 0, Err(0x106)),
        (1, 1, Err(0x106)),
        (2, 2, Err(0x106)),
        (7, 3, Err(0x106)),
        (1, 2, Ok(0)),
        (1, 3, Ok(0)),
        (0, 2, Ok(0)),
        (1, 4, Err(0x02)),
        (0, 6, Err(0x02)),
        (1, 7, Err(0x02)),
    ] {
        assert_eq!(host.admin(commit(slot, action)), expected, "slot {slot}, action {action}");
    }
    let slots = host.log(3, 512).unwrap();
    assert_eq!((slots[0], &slots[8..16]), (1, &b"0.1.0   "[..]));
    assert!(slots[16..].iter().all(|byte| *byte == 0), "other slots are empty");
    let controller = host.identify(1, 0).unwrap();
    assert_eq!((controller[260], controller[319]), (3, 0xff), "one slot, read-only");
}
