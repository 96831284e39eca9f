//! Of the saved state: completions that wait until the host lets the device reach memory. Each is its entry, as it
//! will be written, with its queue and its place there in Dword 1, which is reserved.

use vfiod_core::{Errno, Error, Result};
use vfiod_nvme_spec::completion::{BEFORE_PHASE, LEN};
use vfiod_nvme_spec::registers::QUEUES;
use vfiod_nvme_spec::{Completion, Status};

use crate::limits::MAX_DEFERRED;
use crate::queues::Queues;
use crate::queues::completion::Entry;

/// Entries; those behind the last one are all zeroes.
pub(super) type Deferred = [u8; LEN * MAX_DEFERRED];

/// The queue, in Dword 1; its place is above.
const QUEUE: u32 = 0xffff;

/// What is deferred, with the numbers of its completion queues.
pub(super) fn of(queues: &Queues) -> Vec<(u32, Entry)> {
    let of_queue = |(id, queue): (usize, std::sync::Arc<crate::queues::CompletionQueue>)| {
        queue.deferred().into_iter().map(move |entry| (id as u32, entry))
    };
    queues.all_completions().flat_map(of_queue).collect()
}

pub(super) fn save(queues: Option<&Queues>) -> Deferred {
    let mut image = [0; LEN * MAX_DEFERRED];
    let entries = queues.map(of).unwrap_or_default();
    for ((queue, entry), to) in entries.into_iter().zip(image.chunks_exact_mut(LEN)) {
        let (bytes, last) = entry.completion.encode(entry.phase);
        to[..BEFORE_PHASE].copy_from_slice(&bytes);
        // The queue is one more: so an entry is never all zeroes.
        to[4..8].copy_from_slice(&(entry.place << 16 | (queue + 1)).to_le_bytes());
        to[BEFORE_PHASE..].copy_from_slice(&last.to_le_bytes());
    }
    image
}

/// # Errors
/// `EINVAL`: entries that cannot be.
pub(super) fn restore(image: &Deferred) -> Result<Vec<(u32, Entry)>> {
    let (entries, _) = image.as_chunks::<LEN>();
    let count = entries.iter().rposition(|entry| *entry != [0; LEN]).map_or(0, |last| last + 1);
    entries[..count].iter().map(decode).collect()
}

fn decode(bytes: &[u8; LEN]) -> Result<(u32, Entry)> {
    let word = |n: usize| {
        u32::from_le_bytes([bytes[4 * n], bytes[4 * n + 1], bytes[4 * n + 2], bytes[4 * n + 3]])
    };
    let (at, queues, last) = (word(1), word(2), word(3));
    let (queue, submissions) = (at & QUEUE, queues >> 16);
    if queue == 0 || queue > QUEUES as u32 || submissions >= QUEUES as u32 {
        return Err(Error::new(
            Errno::INVAL,
            format!("a completion of queues {submissions} and {queue}"),
        ));
    }
    let completion = Completion {
        result: word(0),
        head: queues as u16,
        queue: submissions as u16,
        id: last as u16,
        status: Status((last >> 17) as u16),
    };
    Ok((queue - 1, Entry { place: at >> 16, phase: last >> 16 & 1 == 1, completion }))
}

/// Takes the entries of a completion queue, which has so many places, and has come from `head` to `tail`.
///
/// # Errors
/// `EINVAL`: they are not in places that were taken, with the phase tags of these, each in its own.
pub(super) fn take(
    left: &mut Vec<(u32, Entry)>,
    id: usize,
    (places, head): (u32, u32),
    (tail, phase): (u32, bool),
) -> Result<Vec<Entry>> {
    let own: Vec<Entry> =
        left.extract_if(.., |(queue, _)| *queue as usize == id).map(|(_, entry)| entry).collect();
    let mut used = vec![false; places as usize];
    for Entry { place, phase: own, .. } in &own {
        let before_tail = if *place < tail { phase } else { !phase };
        let is_taken =
            *place < places && (place + places - head) % places < (tail + places - head) % places;
        if !is_taken || *own != before_tail || std::mem::replace(&mut used[*place as usize], true) {
            return Err(Error::new(
                Errno::INVAL,
                format!("completion queue {id}: a completion at {place}"),
            ));
        }
    }
    Ok(own)
}
