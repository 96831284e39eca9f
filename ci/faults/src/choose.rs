//! Choosing a few faults by a text, so that every commit tries others.

use crate::list::Fault;

/// Chooses `count` faults. The same text and list give the same choice on every machine.
pub(crate) fn by_seed<'a>(
    faults: impl Iterator<Item = &'a Fault>,
    seed: &str,
    count: usize,
) -> Vec<&'a Fault> {
    let mut order: Vec<_> = faults.collect();
    order.sort_by_key(|fault| hash(seed.bytes().chain(fault.name.bytes())));
    order.truncate(count);
    order
}

/// FNV-1a, which no library version changes.
fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
