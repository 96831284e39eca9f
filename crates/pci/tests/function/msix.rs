//! MSI-X: the table and the pending bits in a BAR.

use vfiod_core::RegionIndex;
use vfiod_pci::irq_index;

use super::rig::{CONFIG, Counter, Guest, MSIX, PENDING, TABLE};

const BAR: RegionIndex = RegionIndex(4);
/// Message Control, upper byte: enable, function mask.
const CONTROL: u64 = MSIX + 3;
const ENABLE: u8 = 0x80;
const FUNCTION_MASK: u8 = 0x40;

struct Msix {
    guest: Guest,
    vectors: Vec<Counter>,
}

impl Msix {
    fn new() -> Self {
        let guest = Guest::of_everything();
        let vectors = guest.listen(irq_index::MSIX, 70);
        guest.write(CONFIG, CONTROL, &[ENABLE]);
        Self { guest, vectors }
    }

    fn mask(&self, vector: u64, masked: bool) {
        self.guest.write(BAR, TABLE + 16 * vector + 12, &u32::from(masked).to_le_bytes());
    }

    fn entry(&self, vector: u64) -> [u8; 16] {
        self.guest.read(BAR, TABLE + 16 * vector)
    }

    fn pending(&self) -> u128 {
        u128::from_le_bytes(self.guest.read(BAR, PENDING))
    }

    fn trigger(&self, vector: u32) -> u64 {
        self.guest.interrupts().trigger(vector);
        self.vectors[vector as usize].take()
    }
}

/// QEMU keeps the guest's table to itself: the device's own is never written.
#[test]
fn a_table_that_nobody_writes_masks_nothing() {
    let msix = Msix::new();
    assert_eq!(msix.entry(69)[12], 1, "though it says so");
    assert_eq!(msix.trigger(69), 1);
    assert_eq!(msix.pending(), 0);
}

#[test]
fn a_masked_vector_is_pending() {
    let msix = Msix::new();
    for vector in [3, 63, 64, 69] {
        msix.mask(vector, true);
        assert_eq!(msix.trigger(vector as u32), 0);
        assert_eq!(msix.pending(), 1 << vector);
        assert_eq!(msix.trigger(vector as u32), 0);
        msix.mask(vector, false);
        assert_eq!(msix.vectors[vector as usize].take(), 1, "once, for both");
        assert_eq!(msix.pending(), 0);
        assert_eq!(msix.trigger(vector as u32), 1);
    }
}

#[test]
fn the_function_mask_is_for_all() {
    let msix = Msix::new();
    msix.mask(1, true);
    msix.guest.write(CONFIG, CONTROL, &[ENABLE | FUNCTION_MASK]);
    for vector in [0, 1, 69] {
        assert_eq!(msix.trigger(vector), 0);
    }
    assert_eq!(msix.pending(), 1 << 69 | 0b11);
    msix.mask(1, true);
    msix.mask(0, false);
    assert_eq!(msix.vectors[0].take(), 0, "the function's mask is still on");
    msix.guest.write(CONFIG, CONTROL, &[ENABLE]);
    let got: Vec<_> =
        [0, 1, 69].iter().map(|&vector: &usize| msix.vectors[vector].take()).collect();
    assert_eq!(got, [1, 0, 1], "vector 1 has a mask of its own");
    assert_eq!(msix.pending(), 0b10);
}

#[test]
fn pending_bits_are_read_only_in_any_piece() {
    let msix = Msix::new();
    msix.mask(9, true);
    msix.trigger(9);
    msix.guest.write(BAR, PENDING, &[0; 16]);
    assert_eq!(msix.pending(), 1 << 9);
    assert_eq!(msix.guest.read(BAR, PENDING + 1), [2]);
    assert_eq!(msix.guest.read(BAR, PENDING), 0x200_u32.to_le_bytes());
    assert!(msix.guest.seen().writes.is_empty(), "the model does not see them");
}

#[test]
fn entries_take_whole_doublewords() {
    let msix = Msix::new();
    let entry: [u8; 16] = std::array::from_fn(|index| index as u8 + 0x80);
    msix.guest.write(BAR, TABLE + 32, &entry);
    let mut kept = entry;
    kept[12..].copy_from_slice(&[0, 0, 0, 0]);
    assert_eq!(msix.entry(2), kept, "of vector control, just the mask bit");
    for (offset, len) in [(0, 1), (0, 2), (1, 4), (2, 4), (4, 3), (12, 1), (0, 15)] {
        msix.guest.write(BAR, TABLE + 32 + offset, &vec![0xff; len]);
        assert_eq!(msix.entry(2), kept, "{len} bytes at {offset}");
    }
    msix.guest.write(BAR, TABLE + 32 + 8, &[0xff; 8]);
    assert_eq!(msix.entry(2)[8..], [0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    assert_eq!(msix.trigger(2), 0, "and that masks it");
    assert!(msix.guest.seen().writes.is_empty(), "the model does not see the table");
}

#[test]
fn the_rest_of_the_bar_is_the_models() {
    let msix = Msix::new();
    for offset in [0, TABLE - 4, TABLE + 70 * 16, PENDING - 8, PENDING + 16, 0x3ffc] {
        msix.guest.write(BAR, offset, &[1; 4]);
        assert_eq!(msix.guest.seen().writes.pop(), Some((4, offset, vec![1; 4])));
    }
    let table: [u8; 16] = msix.entry(0);
    msix.guest.write(RegionIndex(2), TABLE, &[1; 4]);
    assert_eq!(msix.guest.seen().writes.pop(), Some((2, TABLE, vec![1; 4])), "another BAR");
    assert_eq!(msix.entry(0), table);
}

#[test]
fn a_reset_masks_every_entry_again() {
    let msix = Msix::new();
    let power_on = Msix::new().entry(5);
    msix.guest.write(BAR, TABLE + 80, &[0xff; 12]);
    msix.mask(5, true);
    msix.trigger(5);
    msix.guest.write(CONFIG, CONTROL, &[ENABLE | FUNCTION_MASK]);
    msix.guest.file.reset().unwrap();
    assert_eq!(msix.entry(5), power_on);
    assert_eq!(msix.pending(), 0);
    assert_eq!(msix.trigger(5), 1, "masks of before are gone, eventfds are not");
}
