//! The space against a model that knows every byte.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Small, so that everything meets: addresses and offsets in units of 16 bytes.
const UNIT: u64 = 16;
const PLACES: u64 = 96;
const FILES: usize = 3;
const FILE_SIZE: u64 = 4096;

#[derive(Clone, Debug)]
enum Op {
    Map { file: usize, at: u64, len: u64, offset: u64, perm: u32, owner: u64 },
    Unmap { at: u64, len: u64 },
    Read { at: u64, len: u64 },
    Write { at: u64, len: u64, byte: u8 },
    End { owner: u64 },
    All,
}

fn op() -> impl Strategy<Value = Op> {
    let at = || 0..PLACES;
    prop_oneof![
        6 => (0..FILES, at(), 1u64..12, 0u64..200, 1u32..4, 0u64..2).prop_map(
            |(file, at, len, offset, perm, owner)| Op::Map { file, at, len, offset, perm, owner }
        ),
        2 => (at(), 1u64..24).prop_map(|(at, len)| Op::Unmap { at, len }),
        6 => (at(), 1u64..20).prop_map(|(at, len)| Op::Read { at, len }),
        6 => (at(), 1u64..20, any::<u8>()).prop_map(|(at, len, byte)| Op::Write { at, len, byte }),
        1 => (0u64..2).prop_map(|owner| Op::End { owner }),
        1 => Just(Op::All),
    ]
}

struct Mapping {
    size: u64,
    file: usize,
    offset: u64,
    perm: Perm,
    owner: u64,
}

#[derive(Default)]
struct Model {
    mappings: BTreeMap<u64, Mapping>,
    files: Vec<Vec<u8>>,
}

impl Model {
    /// The file and the offset behind each byte, or why not.
    fn bytes(&self, iova: u64, len: u64, perm: Perm) -> Result<Vec<(usize, usize)>, Errno> {
        (iova..iova + len)
            .map(|at| {
                let found = self.mappings.range(..=at).next_back();
                let (first, mapping) =
                    found.filter(|(f, w)| at < *f + w.size).ok_or(Errno::FAULT)?;
                if !mapping.perm.contains(perm) {
                    return Err(Errno::ACCESS);
                }
                Ok((mapping.file, (mapping.offset + at - first) as usize))
            })
            .collect()
    }

    fn touching(&self, first: u64, end: u64) -> Vec<u64> {
        let hit = |(f, w): &(&u64, &Mapping)| **f < end && *f + w.size > first;
        self.mappings.iter().filter(hit).map(|(f, _)| *f).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_is_where_it_should_be(ops in prop::collection::vec(op(), 1..120)) {
        let space = DmaSpace::new();
        let memories: Vec<_> = (0..FILES).map(|_| Memory::new(FILE_SIZE)).collect();
        let mut model =
            Model { files: vec![vec![0; FILE_SIZE as usize]; FILES], ..Model::default() };
        for op in ops {
            match op {
                Op::Map { file, at, len, offset, perm, owner } => {
                    let (iova, size, offset) = (at * UNIT, len * UNIT, offset);
                    let perm = Perm::from_bits_truncate(perm);
                    let got = space.map(
                        MapOwner(owner),
                        request(iova, size, perm, memories[file].fd(), offset),
                    );
                    if model.touching(iova, iova + size).is_empty() {
                        got.unwrap();
                        model.mappings.insert(iova, Mapping { size, file, offset, perm, owner });
                    } else {
                        prop_assert_eq!(errno(got), Errno::EXIST);
                    }
                }
                Op::Unmap { at, len } => {
                    let (iova, end) = (at * UNIT, (at + len) * UNIT);
                    let hit = model.touching(iova, end);
                    let cut = hit.iter().any(|f| *f < iova || *f + model.mappings[f].size > end);
                    let got = space.unmap(iova, end - iova, SOON);
                    if cut {
                        prop_assert_eq!(errno(got), Errno::INVAL);
                    } else {
                        let gone: u64 =
                            hit.iter().map(|f| model.mappings.remove(f).unwrap().size).sum();
                        prop_assert_eq!(got.unwrap(), gone);
                    }
                }
                Op::Read { at, len } => {
                    let mut bytes = vec![0; (len * UNIT) as usize];
                    match (space.read(at * UNIT, &mut bytes), model.bytes(at * UNIT, len * UNIT, Perm::READ)) {
                        (Ok(()), Ok(places)) => {
                            let want: Vec<u8> = places.iter().map(|(f, o)| model.files[*f][*o]).collect();
                            prop_assert_eq!(bytes, want);
                        }
                        (Err(got), Err(want)) => prop_assert_eq!(got.errno(), want),
                        (got, want) => prop_assert!(false, "{:?} {:?}", got, want),
                    }
                }
                Op::Write { at, len, byte } => {
                    // Mappings may show the same bytes twice: all the same, in any order.
                    let bytes = vec![byte; (len * UNIT) as usize];
                    match (space.write(at * UNIT, &bytes), model.bytes(at * UNIT, len * UNIT, Perm::WRITE)) {
                        (Ok(()), Ok(places)) => {
                            places.iter().for_each(|(f, o)| model.files[*f][*o] = byte);
                        }
                        (Err(got), Err(want)) => prop_assert_eq!(got.errno(), want),
                        (got, want) => prop_assert!(false, "{:?} {:?}", got, want),
                    }
                }
                Op::End { owner } => {
                    space.drop_owner(MapOwner(owner));
                    model.mappings.retain(|_, w| w.owner != owner);
                }
                Op::All => {
                    let sum: u64 = model.mappings.values().map(|w| w.size).sum();
                    prop_assert_eq!(space.unmap_all(SOON).unwrap(), sum);
                    model.mappings.clear();
                }
            }
            prop_assert_eq!(space.len(), model.mappings.len());
            prop_assert!(space.usage().mapped_files <= FILES);
        }
        for (memory, want) in memories.iter().zip(&model.files) {
            prop_assert_eq!(&memory.peek(0, FILE_SIZE as usize), want);
        }
    }
}
