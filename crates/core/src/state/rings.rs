//! Rings of doorbells in a saved state: a ring that was answered must not be lost, even if no task
//! has acted on it.

use serde::{Deserialize, Serialize};
use vfiod_tasks::Ring;

use crate::error::{Errno, Error, Result};
use crate::work::Work;

/// Bytes of a doorbell in the flat form.
const DOORBELL: usize = 16;
/// It was rung.
const RUNG: u64 = 1;
/// The value is known.
const HAS_VALUE: u64 = 2;

/// The newest ring of a doorbell that was ever rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RingState {
    /// Its number among the device's doorbells.
    bell: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<u64>,
}

/// The newest rings of all doorbells that were ever rung.
pub(super) fn save(work: &Work) -> Vec<RingState> {
    let state = |bell| work.newest_ring(bell).map(|ring| RingState { bell, value: ring.value });
    (0..work.bells()).filter_map(state).collect()
}

/// Checks that a device could have these: `EINVAL`.
pub(super) fn check(work: &Work, rings: &[RingState]) -> Result<()> {
    let ascend = rings.is_sorted_by(|before, next| before.bell < next.bell);
    match rings.iter().find(|ring| ring.bell >= work.bells()) {
        Some(ring) => {
            let what = format!("a ring of doorbell {}, of {}", ring.bell, work.bells());
            Err(Error::new(Errno::INVAL, what))
        }
        None if !ascend => Err(Error::new(Errno::INVAL, "rings that are not in their order")),
        None => Ok(()),
    }
}

/// Restores what [`check`] has accepted.
pub(super) fn restore(work: &Work, rings: &[RingState]) {
    work.restore_rings(rings.iter().map(|ring| (ring.bell, Ring { value: ring.value })));
}

/// The size of the flat form in bytes.
pub(super) fn flat_len(work: &Work) -> usize {
    work.bells() * DOORBELL
}

/// Writes the flat form; `image` has [`flat_len`] bytes.
pub(super) fn save_flat(work: &Work, image: &mut [u8]) {
    let (doorbells, _) = image.as_chunks_mut::<DOORBELL>();
    for (bell, image) in doorbells.iter_mut().enumerate() {
        let (flags, value) = match work.newest_ring(bell) {
            None => (0, 0),
            Some(Ring { value: None }) => (RUNG, 0),
            Some(Ring { value: Some(value) }) => (RUNG | HAS_VALUE, value),
        };
        image[..8].copy_from_slice(&u64::to_le_bytes(flags));
        image[8..].copy_from_slice(&value.to_le_bytes());
    }
}

/// Reads the flat form, which may be hostile.
///
/// # Errors
/// `EINVAL`: it has another size, or flags that cannot be.
pub(super) fn read_flat(work: &Work, image: &[u8]) -> Result<Vec<RingState>> {
    let refuse = |what: &str| Err(Error::new(Errno::INVAL, format!("the core's image {what}")));
    if image.len() != flat_len(work) {
        return refuse("is of another device");
    }
    let mut rings = Vec::new();
    let (words, _) = image.as_chunks::<8>();
    let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
    for bell in 0..work.bells() {
        let (flags, value) = (words.next().unwrap_or(0), words.next().unwrap_or(0));
        match (flags, value) {
            (0, 0) => {}
            (RUNG, 0) => rings.push(RingState { bell, value: None }),
            (flags, value) if flags == RUNG | HAS_VALUE => {
                rings.push(RingState { bell, value: Some(value) });
            }
            _ => return refuse("has a ring with flags that are not known"),
        }
    }
    Ok(rings)
}
