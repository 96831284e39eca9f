//! Whatever a peer sends, decoding ends with a value or an errno; what is encoded is decoded.

use proptest::prelude::*;
use vfiod_wire::payload::{
    DmaMap, Feature, IrqSet, RegionAccess, RegionInfo, SparseArea, feature_flag, region_flag,
};
use vfiod_wire::{
    Capabilities, Command, EINVAL, FeatureOp, Header, Kind, Migration, Request, TwinSocket,
    Version, decode_region_info, encode_region_info,
};
use zerocopy::IntoBytes;

fn any_command() -> impl Strategy<Value = Command> {
    proptest::sample::select(Command::ALL)
}

/// What a message is made of: mostly small numbers, now and then anything.
fn any_payload() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![4 => 0u32..64, 1 => Just(u32::MAX), 1 => any::<u32>()];
    (proptest::collection::vec(word, 0..24), 0usize..4).prop_map(|(words, cut)| {
        let mut bytes = words.as_bytes().to_vec();
        bytes.truncate(bytes.len().saturating_sub(cut));
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn any_payload_of_any_command_ends(command in any_command(), payload in any_payload()) {
        match Request::decode(command, &payload) {
            Ok(Request::RegionWriteMulti(writes)) => {
                prop_assert_eq!(writes.iter().count(), writes.len());
                for write in writes.iter().flatten() {
                    prop_assert_eq!(write.bytes().len(), write.count as usize);
                }
            }
            Ok(Request::RegionWrite(access, data)) => {
                prop_assert_eq!(access.count as usize, data.len());
            }
            Ok(_) => {}
            Err(error) => prop_assert!(error.errno != 0 && !error.what.is_empty()),
        }
    }

    #[test]
    fn any_bytes_as_version(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Version::decode(&bytes);
    }

    #[test]
    fn any_bytes_as_region_info(bytes in any_payload()) {
        // Ends, and takes no more than the bytes could hold.
        if let Ok(reply) = decode_region_info(&bytes) {
            prop_assert!(reply.areas.len() * SparseArea::LEN <= bytes.len());
        }
    }

    #[test]
    fn a_header_is_what_it_was_made_as(id: u16, command in any_command(), len in 0usize..1 << 20, posted: bool) {
        let header = Header::command(id, command, len, posted);
        let parsed = Header::parse(header.as_bytes()).unwrap();
        prop_assert_eq!(parsed, header);
        prop_assert_eq!(parsed.kind(), if posted { Kind::Posted } else { Kind::Command });
        prop_assert_eq!(Command::from_number(parsed.command), Some(command));
        prop_assert_eq!(header.reply(4).kind(), Kind::Reply(Ok(())));
        prop_assert_eq!(header.error(5, 0).kind(), Kind::Reply(Err(5)));
    }

    #[test]
    fn a_version_is_what_it_was_made_as(
        major: u16, minor: u16, fds: Option<u32>, size: Option<u64>, multiple: Option<bool>,
        twin: Option<bool>, pgsize: Option<u64>,
    ) {
        let version = Version { major, minor, capabilities: Capabilities {
            max_msg_fds: fds,
            max_data_xfer_size: size,
            write_multiple: multiple,
            twin_socket: twin.map(|supported| TwinSocket { supported, fd_index: fds }),
            migration: pgsize.map(|_| Migration { pgsize, max_bitmap_size: None }),
            ..Capabilities::default()
        }};
        prop_assert_eq!(Version::decode(&version.encode()).unwrap(), version);
    }

    #[test]
    fn region_info_is_what_it_was_made_as(argsz in 32u32..400, index: u32, size: u64, areas in 0usize..20) {
        let areas: Vec<_> = (0..areas as u64).map(|i| SparseArea { offset: i << 16, size: 4096 }).collect();
        let (payload, whole) = encode_region_info(argsz, index, 3, size, 0, &areas);
        let reply = decode_region_info(&payload).unwrap();
        prop_assert_eq!((reply.info.index, reply.info.size), (index, size));
        prop_assert_eq!(whole, reply.info.argsz <= argsz);
        prop_assert!(payload.len() <= argsz as usize);
        if whole {
            prop_assert_eq!(reply.areas, areas);
        } else {
            prop_assert!(reply.areas.is_empty() && reply.info.flags & region_flag::CAPS != 0);
            prop_assert_eq!(reply.info.cap_offset, 32);
        }
    }
}

#[test]
fn capability_chains_that_lie_are_refused() {
    let info =
        RegionInfo { argsz: 64, flags: region_flag::CAPS, cap_offset: 32, ..RegionInfo::default() };
    let with = |cap_offset: u32, cap: &[u8]| {
        let mut bytes = RegionInfo { cap_offset, ..info }.as_bytes().to_vec();
        bytes.extend_from_slice(cap);
        bytes.resize(64, 0);
        decode_region_info(&bytes).map_err(|error| error.errno)
    };
    let cap = |id: u16, next: u32, count: u32| {
        [id.as_bytes(), 1u16.as_bytes(), next.as_bytes(), count.as_bytes()].concat()
    };
    assert_eq!(with(65, &[]), Err(EINVAL), "outside");
    assert_eq!(with(60, &[]), Err(EINVAL), "cut short");
    assert_eq!(with(32, &cap(9, 32, 0)), Err(EINVAL), "a loop");
    assert_eq!(with(32, &cap(9, 8, 0)), Err(EINVAL), "backwards");
    assert_eq!(with(32, &cap(1, 0, 2)), Err(EINVAL), "more areas than there is room");
    assert_eq!(with(32, &cap(1, 0, u32::MAX)), Err(EINVAL));
    assert!(with(32, &cap(9, 0, 0)).is_ok(), "unknown ones are passed over");
}

/// Well-formed messages; the bounded fuzz run below starts from them.
fn seeds() -> Vec<(Command, Vec<u8>)> {
    let access = RegionAccess { offset: 4, region: 2, count: 4 };
    let map = DmaMap { argsz: 32, flags: 3, offset: 0, address: 1 << 32, size: 4096 };
    let irqs = IrqSet { argsz: 22, flags: 0x22, index: 1, start: 0, count: 2 };
    let feature = Feature { argsz: 8, flags: feature_flag::PROBE | feature_flag::GET | 2 };
    vec![
        (Command::Version, b"\0\0\0\0{\"capabilities\":{\"max_msg_fds\":8,\"twin_socket\":{\"supported\":true}}}\0".to_vec()),
        (Command::DmaMap, map.as_bytes().to_vec()),
        (Command::DmaUnmap, [24u32, 0, 0, 1, 4096, 0].as_bytes().to_vec()),
        (Command::DeviceGetInfo, [16u32, 0, 0, 0].as_bytes().to_vec()),
        (Command::DeviceGetRegionInfo, [32u32, 0, 7, 0, 0, 0, 0, 0].as_bytes().to_vec()),
        (Command::DeviceGetRegionIoFds, [16u32, 0, 2, 0].as_bytes().to_vec()),
        (Command::DeviceGetIrqInfo, [16u32, 0, 2, 0].as_bytes().to_vec()),
        (Command::DeviceSetIrqs, [irqs.as_bytes(), &[1, 0]].concat()),
        (Command::RegionRead, access.as_bytes().to_vec()),
        (Command::RegionWrite, [access.as_bytes(), &[1, 2, 3, 4]].concat()),
        (Command::DeviceReset, Vec::new()),
        (Command::RegionWriteMulti, [1u64.as_bytes(), access.as_bytes(), &[0; 8]].concat()),
        (Command::DeviceFeature, feature.as_bytes().to_vec()),
        (Command::MigDataRead, [8u32, 4].as_bytes().to_vec()),
        (Command::MigDataWrite, [[12u32, 4].as_bytes(), &[0; 4]].concat()),
    ]
}

#[test]
fn every_seed_is_taken() {
    for (command, payload) in seeds() {
        let decoded = Request::decode(command, &payload);
        assert!(decoded.is_ok(), "{}: {decoded:?}", command.name());
    }
    let seeds = seeds();
    let probe = Request::decode(Command::DeviceFeature, &seeds[12].1).unwrap();
    assert!(matches!(
        probe,
        Request::DeviceFeature { index: 2, op: FeatureOp::Probe { get: true, set: false }, .. }
    ));
}

/// The corpus of the fuzz target `wire_decode`: a byte for the command, then its payload. It may have
/// any other inputs, too.
#[test]
fn fuzz_corpus_has_a_well_formed_input_for_each_command() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/wire_decode");
    let files = std::fs::read_dir(corpus).unwrap().map(|file| file.unwrap().path());
    let inputs: Vec<_> = files.map(|path| std::fs::read(path).unwrap()).collect();
    for (command, _) in seeds() {
        let is_taken = |input: &Vec<u8>| {
            let Some((&number, payload)) = input.split_first() else { return false };
            u16::from(number) == command as u16 && Request::decode(command, payload).is_ok()
        };
        assert!(inputs.iter().any(is_taken), "{}", command.name());
    }
}

/// A bounded fuzz run: the seeds, mutated, always in the same way.
#[test]
fn mutated_messages_end() {
    let mut state = 0x0123_4567_89ab_cdefu64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let seeds = seeds();
    let (mut taken, mut refused) = (0u32, 0u32);
    for _ in 0..400_000 {
        let (command, seed) = &seeds[random() as usize % seeds.len()];
        let mut payload = seed.clone();
        for _ in 0..random() % 4 {
            match random() % 5 {
                0 if !payload.is_empty() => {
                    let at = random() as usize % payload.len();
                    payload[at] = random() as u8;
                }
                1 if !payload.is_empty() => {
                    let at = random() as usize % payload.len();
                    payload[at] ^= 1 << (random() % 8);
                }
                2 => payload.truncate(random() as usize % (payload.len() + 1)),
                3 => payload.extend_from_slice(&random().to_ne_bytes()[..random() as usize % 9]),
                _ if payload.len() >= 4 => {
                    let at = random() as usize % (payload.len() - 3);
                    payload[at..at + 4].fill(0xff);
                }
                _ => {}
            }
        }
        match Request::decode(*command, &payload) {
            Ok(_) => taken += 1,
            Err(error) => {
                assert_ne!(error.errno, 0);
                refused += 1;
            }
        }
    }
    assert!(taken > 10_000 && refused > 10_000, "{taken} taken, {refused} refused: too one-sided");
}
