use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn mapping(last: u64, owner: u16) -> Mapping {
    Mapping::new(last, last ^ 0x55, 1, owner, Perm::READ)
}

/// The same, the slow way.
#[derive(Default)]
struct Model(BTreeMap<u64, Mapping>);

impl Model {
    fn touches(&self, first: u64, last: u64) -> bool {
        self.0.iter().any(|(f, w)| *f <= last && w.last >= first)
    }

    fn inside(&self, first: u64, last: u64) -> Result<Vec<u64>, ()> {
        let touching: Vec<_> =
            self.0.iter().filter(|(f, w)| **f <= last && w.last >= first).collect();
        if touching.iter().any(|(f, w)| **f < first || w.last > last) {
            return Err(());
        }
        Ok(touching.into_iter().map(|(f, _)| *f).collect())
    }
}

fn check(table: &Table, model: &Model) {
    assert_eq!(table.len(), model.0.len());
    assert!(table.iter().eq(model.0.iter().map(|(f, w)| (*f, w))));
    assert_eq!(table.firsts.len(), table.chunks.len());
    for (first, chunk) in table.firsts.iter().zip(&table.chunks) {
        assert!((1..=CAPACITY).contains(&chunk.len));
        assert_eq!(*first, chunk.firsts[0]);
        assert!(chunk.blocks.iter().eq(chunk.firsts.iter().step_by(BLOCK).skip(1)));
        assert!(chunk.firsts[chunk.len..].iter().all(|f| *f == u64::MAX));
    }
}

#[derive(Clone, Debug)]
enum Op {
    Insert(u64, u64, u16),
    Remove(u64, u64),
    Find(u64),
    Owner(u16),
    All,
    AndBack(u64, u64),
}

/// Addresses that meet each other, some at the very ends.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        20 => 0u64..4000,
        1 => 0u64..4,
        2 => (u64::MAX - 40)..=u64::MAX,
    ]
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    prop_oneof![
        4 => (address(), 0u64..4).prop_map(|(f, len)| (f, f.saturating_add(len))),
        1 => (address(), address()).prop_map(|(a, b)| (a.min(b), a.max(b))),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        60 => (address(), 0u64..4, 0u16..3)
            .prop_map(|(f, len, owner)| Op::Insert(f, f.saturating_add(len), owner)),
        8 => range().prop_map(|(f, l)| Op::Remove(f, l)),
        10 => address().prop_map(Op::Find),
        1 => (0u16..3).prop_map(Op::Owner),
        1 => Just(Op::All),
        2 => range().prop_map(|(f, l)| Op::AndBack(f, l)),
    ]
}

fn removed(removed: &Removed) -> Vec<u64> {
    let mut firsts: Vec<u64> = removed.iter().map(|(f, _)| f).collect();
    firsts.sort_unstable();
    firsts
}

fn run(ops: Vec<Op>) {
    let (mut table, mut model) = (Table::default(), Model::default());
    for op in ops {
        match op {
            Op::Insert(first, last, owner) => {
                let free = !model.touches(first, last);
                assert_eq!(table.touching(first, last).is_none(), free);
                assert_eq!(table.insert(first, mapping(last, owner)), free);
                if free {
                    model.0.insert(first, mapping(last, owner));
                }
            }
            Op::Remove(first, last) => match (table.remove(first, last), model.inside(first, last))
            {
                (Ok(gone), Ok(firsts)) => {
                    assert_eq!(gone.is_empty(), firsts.is_empty());
                    assert_eq!(removed(&gone), firsts);
                    firsts.iter().for_each(|f| _ = model.0.remove(f));
                }
                (Err(_), Err(())) => {}
                (a, b) => panic!("{first:#x} {last:#x}: {a:?}, not {b:?}"),
            },
            Op::AndBack(first, last) => {
                if let Ok(gone) = table.remove(first, last) {
                    table.restore(&gone);
                }
            }
            Op::Find(iova) => {
                let want = model.0.range(..=iova).next_back().filter(|(_, w)| w.last >= iova);
                assert_eq!(table.find(iova), want.map(|(f, w)| (*f, w)));
            }
            Op::Owner(owner) => {
                let (mut gone, mut from) = (Vec::new(), Some(0));
                while let Some(at) = from {
                    from = table.take_owned(owner, at, &mut gone);
                }
                let mut firsts: Vec<u64> = gone.iter().map(|(f, _)| *f).collect();
                firsts.sort_unstable();
                let want: Vec<u64> =
                    model.0.iter().filter(|(_, w)| w.owner == owner).map(|(f, _)| *f).collect();
                assert_eq!(firsts, want);
                model.0.retain(|_, w| w.owner != owner);
            }
            Op::All => {
                assert_eq!(removed(&table.take()), model.0.keys().copied().collect::<Vec<_>>());
                model.0.clear();
            }
        }
        check(&table, &model);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_a_sorted_map(ops in prop::collection::vec(op(), 1..600)) {
        run(ops);
    }

    #[test]
    fn and_when_grown_in_order(
        count in 1u64..400,
        step in 1u64..6,
        ops in prop::collection::vec(op(), 1..100),
    ) {
        let filled = (0..count).map(|i| Op::Insert(i * step, i * step, (i % 3) as u16));
        run(filled.chain(ops).collect());
    }
}

#[test]
fn the_whole_address_space() {
    let mut table = Table::default();
    assert!(table.insert(0, mapping(u64::MAX, 0)));
    assert!(!table.insert(u64::MAX, mapping(u64::MAX, 0)));
    assert!(table.find(u64::MAX).is_some() && table.find(0).is_some());
    assert_eq!(table.remove(1, u64::MAX).unwrap_err(), Cut { first: 0, last: u64::MAX });
    assert_eq!(table.remove(0, u64::MAX - 1).unwrap_err(), Cut { first: 0, last: u64::MAX });
    assert_eq!(removed(&table.remove(0, u64::MAX).unwrap()), [0]);
    assert!(table.insert(u64::MAX, mapping(u64::MAX, 0)));
    assert!(table.find(u64::MAX).is_some() && table.find(u64::MAX - 1).is_none());
    assert_eq!(removed(&table.remove(u64::MAX, u64::MAX).unwrap()), [u64::MAX]);
}

#[test]
fn owners_of_many_windows() {
    let mut table = Table::default();
    for i in 0..20_000u64 {
        assert!(table.insert(i * 2, mapping(i * 2, (i % 2) as u16)));
    }
    let (mut gone, mut from, mut turns) = (Vec::new(), Some(0), 0);
    while let Some(at) = from {
        from = table.take_owned(1, at, &mut gone);
        turns += 1;
    }
    assert!(turns > 1, "one turn must not look at everything");
    assert_eq!((gone.len(), table.len()), (10_000, 10_000));
    assert!(table.iter().all(|(_, w)| w.owner == 0));
}
