//! The space against a model that knows every byte.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// Small, so that everything meets: addresses are multiples of this.
const UNIT: u64 = 128;
const PLACES: u64 = 96;
const FILES: usize = 3;
/// Who owns a mapping that stays until it is unmapped.
const NOBODY: u64 = u64::MAX;
const FILE_SIZE: u64 = 4096;
/// Of the dirty log.
const PAGE: u64 = 4096;

#[derive(Clone, Debug)]
enum Op {
    Map {
        file: usize,
        at: u64,
        len: u64,
        offset: u64,
        perm: u32,
        owner: u64,
    },
    Unmap {
        at: u64,
        len: u64,
    },
    Read {
        at: u64,
        len: u64,
    },
    Write {
        at: u64,
        len: u64,
        byte: u8,
    },
    End {
        owner: u64,
    },
    All,
    /// Takes a hold, and keeps it.
    Hold {
        at: u64,
        len: u64,
        perm: u32,
    },
    /// Writes through a hold and ends it.
    EndHold {
        which: usize,
        byte: u8,
    },
    Report {
        at: u64,
        len: u64,
        clear: bool,
    },
    /// Moves the device to an empty space and back.
    Move,
    Copy {
        at: u64,
        len: u64,
        to: u64,
    },
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
        2 => (at(), 1u64..20, 1u32..4).prop_map(|(at, len, perm)| Op::Hold { at, len, perm }),
        2 => (any::<usize>(), any::<u8>()).prop_map(|(which, byte)| Op::EndHold { which, byte }),
        2 => (at(), 1u64..60, any::<bool>())
            .prop_map(|(at, len, clear)| Op::Report { at, len, clear }),
        1 => Just(Op::Move),
        1 => (at(), 1u64..12, at()).prop_map(|(at, len, to)| Op::Copy { at, len, to }),
    ]
}

struct Mapping {
    size: u64,
    file: usize,
    offset: u64,
    perm: Perm,
    owner: u64,
}

/// A hold, and what it must show.
struct Held {
    hold: Hold,
    iova: u64,
    places: Vec<(usize, usize)>,
}

#[derive(Default)]
struct Model {
    mappings: BTreeMap<u64, Mapping>,
    files: Vec<Vec<u8>>,
    holds: Vec<Held>,
    /// Pages that have been written.
    dirty: BTreeSet<u64>,
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

    /// Whether a hold has an address of a range.
    fn is_held(&self, first: u64, end: u64) -> bool {
        self.holds.iter().any(|held| held.iova < end && held.iova + held.hold.len() as u64 > first)
    }

    /// A hold ends: its pages are marked if it was writable.
    fn ended(&mut self, held: Held) {
        if held.hold.perm().contains(Perm::WRITE) {
            self.written(held.iova, held.hold.len() as u64);
        }
    }

    fn written(&mut self, iova: u64, len: u64) {
        self.dirty.extend(iova / PAGE..=(iova + len - 1) / PAGE);
    }

    /// The marks of whole pages go with their mappings.
    fn forget(&mut self, first: u64, end: u64) {
        self.dirty.retain(|page| page * PAGE < first || (page + 1) * PAGE > end);
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
        let device = TestDevice::new();
        let space = device.space();
        space.start_dirty_log();
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
                    let got = space.unmap(iova, end - iova, Duration::ZERO);
                    if cut {
                        prop_assert_eq!(errno(got), Errno::INVAL);
                    } else if model.is_held(iova, end) {
                        prop_assert_eq!(errno(got), Errno::BUSY);
                    } else {
                        model.forget(iova, end);
                        let gone: u64 =
                            hit.iter().map(|f| model.mappings.remove(f).unwrap().size).sum();
                        prop_assert_eq!(got.unwrap(), gone);
                    }
                }
                Op::Read { at, len } => {
                    let mut bytes = vec![0; (len * UNIT) as usize];
                    match (device.read(at * UNIT, &mut bytes), model.bytes(at * UNIT, len * UNIT, Perm::READ)) {
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
                    match (device.write(at * UNIT, &bytes), model.bytes(at * UNIT, len * UNIT, Perm::WRITE)) {
                        (Ok(()), Ok(places)) => {
                            places.iter().for_each(|(f, o)| model.files[*f][*o] = byte);
                            model.written(at * UNIT, len * UNIT);
                        }
                        (Err(got), Err(want)) => prop_assert_eq!(got.errno(), want),
                        (got, want) => prop_assert!(false, "{:?} {:?}", got, want),
                    }
                }
                Op::End { owner } => {
                    // With its holds ended, so that nobody waits.
                    for held in std::mem::take(&mut model.holds) {
                        model.ended(held);
                    }
                    space.drop_owner(MapOwner(owner));
                    let ends = |m: &Mapping| m.owner == owner;
                    let ranges: Vec<_> = model.mappings.iter().filter(|(_, m)| ends(m))
                        .map(|(first, m)| (*first, first + m.size)).collect();
                    ranges.into_iter().for_each(|(first, end)| model.forget(first, end));
                    model.mappings.retain(|_, m| !ends(m));
                }
                Op::All => {
                    let got = space.unmap_all(Duration::ZERO);
                    if model.holds.is_empty() {
                        let sum: u64 = model.mappings.values().map(|w| w.size).sum();
                        prop_assert_eq!(got.unwrap(), sum);
                        model.mappings.clear();
                        model.dirty.clear();
                    } else {
                        prop_assert_eq!(errno(got), Errno::BUSY);
                    }
                }
                Op::Hold { at, len, perm } => {
                    let (iova, len, perm) = (at * UNIT, len * UNIT, Perm::from_bits_truncate(perm));
                    match (device.pin(iova, len as usize, perm), model.bytes(iova, len, perm)) {
                        (Ok(hold), Ok(places)) => model.holds.push(Held { hold, iova, places }),
                        (Err(got), Err(want)) => prop_assert_eq!(got.errno(), want),
                        (got, want) => prop_assert!(false, "{:?} {:?}", got, want),
                    }
                }
                Op::EndHold { which, byte } => {
                    if model.holds.is_empty() {
                        continue;
                    }
                    let held = model.holds.swap_remove(which % model.holds.len());
                    let bytes = vec![byte; held.hold.len()];
                    if held.hold.perm().contains(Perm::WRITE) {
                        held.hold.write(0, &bytes).unwrap();
                        held.places.iter().for_each(|(f, o)| model.files[*f][*o] = byte);
                    } else {
                        prop_assert_eq!(errno(held.hold.write(0, &bytes)), Errno::ACCESS);
                    }
                    model.ended(held);
                }
                Op::Report { at, len, clear } => {
                    let (iova, size) = (at * UNIT, len * UNIT);
                    let marks = if clear { Marks::Clear } else { Marks::Keep };
                    let mut bitmap = [0; 8];
                    space.report_dirty(iova, size, PAGE, marks, &mut bitmap).unwrap();
                    let mut want = [0; 8];
                    for place in (iova..iova + size).step_by(UNIT as usize) {
                        if model.dirty.contains(&(place / PAGE)) {
                            want[0] |= 1 << ((place - iova) / PAGE);
                        }
                    }
                    prop_assert_eq!(bitmap, want);
                    if clear {
                        model.forget(iova, iova + size);
                    }
                }
                Op::Move => {
                    let back = device.attachment().attach(&Space::new()).unwrap();
                    prop_assert_eq!(errno(device.read(0, &mut [0])), Errno::FAULT);
                    device.attachment().attach(&back);
                }
                Op::Copy { at, len, to } => {
                    let (from, size, iova) = (at * UNIT, len * UNIT, to * UNIT);
                    let got = space.copy(from, size, &space, iova, Perm::READ, None);
                    let source = model.mappings.range(..=from).next_back();
                    let source = source.filter(|(first, m)| from < *first + m.size);
                    let want = match source {
                        None => Err(Errno::FAULT),
                        Some((first, m)) if from + size > first + m.size => Err(Errno::INVAL),
                        Some((_, m)) if !m.perm.contains(Perm::READ) => Err(Errno::ACCESS),
                        _ if !model.touching(iova, iova + size).is_empty() => Err(Errno::EXIST),
                        Some((first, m)) => Ok((m.file, m.offset + (from - first))),
                    };
                    match want {
                        Ok((file, offset)) => {
                            got.unwrap();
                            let mapping =
                                Mapping { size, file, offset, perm: Perm::READ, owner: NOBODY };
                            model.mappings.insert(iova, mapping);
                        }
                        Err(want) => prop_assert_eq!(errno(got), want),
                    }
                }
            }
            prop_assert_eq!(space.len(), model.mappings.len());
            prop_assert_eq!(device.attachment().in_flight(), model.holds.len());
            prop_assert!(space.usage().mapped_files <= FILES);
        }
        for (memory, want) in memories.iter().zip(&model.files) {
            prop_assert_eq!(&memory.peek(0, FILE_SIZE as usize), want);
        }
    }
}
