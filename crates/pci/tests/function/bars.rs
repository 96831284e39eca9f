//! Base address registers: sized as Linux does (`__pci_read_base`).

use vfiod_core::RegionIndex;
use vfiod_pci::{Bar, BarKind, FunctionSpec};

use super::rig::{CONFIG, Guest};

/// Writes all ones, reads, writes back: (flags, size), and whether the next register belongs to
/// it.
fn size(guest: &Guest, bar: u8) -> (u32, u64, bool) {
    let at = 0x10 + 4 * u64::from(bar);
    let probe = |at| {
        let old = guest.config32(at);
        guest.set_config32(at, u32::MAX);
        let ones = guest.config32(at);
        guest.set_config32(at, old);
        assert_eq!(guest.config32(at), old, "it takes back what it was");
        (old, ones)
    };
    let (old, ones) = probe(at);
    let flag_bits = if old & 1 == 1 { 3 } else { 15 };
    let mut mask = u64::from(ones & !flag_bits);
    let wide = old & 7 == 4;
    if wide {
        mask |= u64::from(probe(at + 4).1) << 32;
    } else if mask != 0 {
        mask |= 0xffff_ffff << 32;
    }
    (ones & flag_bits, if mask == 0 { 0 } else { (!mask).wrapping_add(1) }, wide)
}

#[test]
fn every_kind_and_size() {
    let memory32 = |prefetchable| BarKind::Memory32 { prefetchable };
    let memory64 = |prefetchable| BarKind::Memory64 { prefetchable };
    for (kind, flags, sizes) in [
        (memory32(false), 0, 4..=31),
        (memory32(true), 8, 4..=31),
        (memory64(false), 4, 4..=62),
        (memory64(true), 12, 4..=62),
        (BarKind::Io, 1, 2..=8),
    ] {
        for bits in sizes {
            let spec = FunctionSpec::new(1, 2).bar(2, Bar::new(kind, 1 << bits));
            let guest = Guest::new(spec);
            let wide = matches!(kind, BarKind::Memory64 { .. });
            assert_eq!(size(&guest, 2), (flags, 1 << bits, wide), "{kind:?}, {bits} bits");
            assert_eq!(guest.file.region(RegionIndex(2)).unwrap().size, 1 << bits);
            for absent in [0, 1, 3, 4, 5].into_iter().filter(|bar| !(wide && *bar == 3)) {
                assert_eq!(size(&guest, absent), (0, 0, false), "BAR {absent} is not there");
            }
            assert_eq!(guest.file.region(RegionIndex(3)).unwrap().size, 0, "BAR 3 is no region");
        }
    }
}

#[test]
fn an_address_is_kept_but_for_its_low_bits() {
    let bar = Bar::new(BarKind::Memory64 { prefetchable: true }, 1 << 20);
    let guest = Guest::new(FunctionSpec::new(1, 2).bar(0, bar).bar(5, Bar::io(16)));
    guest.write(CONFIG, 0x10, &0x1234_5678_9abc_def0_u64.to_le_bytes());
    assert_eq!(guest.config32(0x10), 0x9ab0_000c);
    assert_eq!(guest.config32(0x14), 0x1234_5678);
    guest.set_config32(0x24, 0xc13f);
    assert_eq!(guest.config32(0x24), 0xc131);
    guest.file.reset().unwrap();
    assert_eq!((guest.config32(0x10), guest.config32(0x14), guest.config32(0x24)), (12, 0, 1));
}

#[test]
fn accesses_reach_the_model_as_they_are() {
    let guest = Guest::of_everything();
    for (bar, offset, len) in [(0, 0, 4), (0, 0xffd, 3), (1, 5, 1), (2, (1 << 33) - 8, 8)] {
        let mut data = vec![0; len];
        guest.file.read(RegionIndex(bar.into()), offset, &mut data).unwrap();
        assert_eq!(data, vec![0x5a; len]);
        guest.write(RegionIndex(bar.into()), offset, &vec![7; len]);
        let mut seen = guest.seen();
        assert_eq!(seen.reads.pop(), Some((bar, offset, len)));
        assert_eq!(seen.writes.pop(), Some((bar, offset, vec![7; len])));
    }
    let seen = guest.seen();
    assert!(seen.reads.is_empty() && seen.writes.is_empty(), "one call for one access");
}
