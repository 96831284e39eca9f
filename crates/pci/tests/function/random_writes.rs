//! Whatever a guest writes to configuration space, only the bits that are its to change change.

use proptest::prelude::*;
use vfiod_pci::Capability;

use super::rig::{CONFIG, EXPRESS, Guest, MSI, MSIX, POWER, everything};

/// The bits of [`everything`] that a guest may change, from the specifications' tables of
/// registers rather than from the code: (offset, mask).
const WRITABLE: &[(u64, u32)] = &[
    (0x04, 0x0000_0547), // command
    (0x0c, 0x0000_00ff), // cache line size
    (0x10, 0xffff_f000), // BAR 0: 4 KiB
    (0x14, 0xffff_ffc0), // BAR 1: 64 ports
    (0x18, 0),           // BAR 2: 8 GiB
    (0x1c, 0xffff_fffe),
    (0x20, 0xffff_c000), // BAR 4: 16 KiB
    (0x3c, 0x0000_00ff), // interrupt line
    (POWER + 4, 3),
    (EXPRESS + 0x08, 0x0000_79ff), // device control
    (EXPRESS + 0x10, 0x0000_02cb), // link control
    (EXPRESS + 0x28, 0x0000_0010), // device control 2
    (EXPRESS + 0x30, 0x0000_000f), // link control 2
    (MSI, 0x0071_0000),
    (MSI + 0x04, 0xffff_fffc),
    (MSI + 0x08, 0xffff_ffff),
    (MSI + 0x0c, 0x0000_ffff),
    (MSI + 0x10, 0x0000_000f),
    (MSIX, 0xc000_0000),
];

fn writable() -> Vec<u8> {
    let mut masks = vec![0; 4096];
    for &(offset, mask) in WRITABLE {
        masks[offset as usize..][..4].copy_from_slice(&mask.to_le_bytes());
    }
    masks
}

#[test]
fn exactly_these_bits_can_be_written() {
    let guest = Guest::of_everything();
    let power_on = guest.config();
    for (offset, mask) in writable().into_iter().enumerate() {
        let flr = offset as u64 == EXPRESS + 9;
        for bit in 0..8 {
            let ones = if flr && bit == 7 { continue } else { power_on[offset] | 1 << bit };
            let zeros = power_on[offset] & !(1 << bit);
            // D1 and D2 are not taken; D3hot is.
            let pmcsr = offset as u64 == POWER + 4 && bit < 2;
            for value in if pmcsr { [0xb, 8] } else { [ones, zeros] } {
                guest.write(CONFIG, offset as u64, &[value]);
                let expected = power_on[offset] & !mask | value & mask;
                assert_eq!(guest.config8(offset as u64), expected, "{value:#x} at {offset:#x}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_rest_stays(
        soft in any::<bool>(),
        writes in prop::collection::vec(
            (prop_oneof![4 => 0u64..0x120, 1 => 0u64..4096],
             prop::collection::vec(any::<u8>(), 1..70)),
            1..100,
        ),
    ) {
        let power = if soft {
            Capability::PowerManagementSoftReset
        } else {
            Capability::PowerManagement
        };
        let guest = Guest::new(everything(power));
        let power_on = guest.config();
        let masks = writable();
        for (offset, data) in writes {
            let len = data.len().min(4096 - offset as usize);
            guest.write(CONFIG, offset, &data[..len]);
            let now = guest.config();
            for (at, mask) in masks.iter().enumerate() {
                prop_assert_eq!(now[at] & !mask, power_on[at] & !mask, "at {:#x}", at);
            }
            let state = now[POWER as usize + 4] & 3;
            prop_assert!(state == 0 || state == 3, "D{}", state);
            let master = now[4] & 4 != 0 && state == 0;
            prop_assert_eq!(guest.dma().bus_master(), master);
        }
        guest.file.reset().unwrap();
        prop_assert_eq!(guest.config(), power_on);
    }
}
