#![doc = include_str!("../README.md")]

mod aligned;

use std::collections::TryReserveError;

pub use aligned::Aligned;

/// Memory that everybody may have, bytes. What cannot be more than this, whatever a peer asks for, need not
/// be asked for here.
pub const SMALL: usize = 64 << 10;

/// There is no memory for what somebody asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory for {bytes} bytes")]
pub struct NoMemory {
    /// How much it is.
    pub bytes: usize,
}

fn no_memory(bytes: usize) -> impl FnOnce(TryReserveError) -> NoMemory {
    move |_| NoMemory { bytes }
}

/// `len` bytes, all zero.
///
/// # Errors
/// There is no memory for them.
pub fn zeroed(len: usize) -> Result<Vec<u8>, NoMemory> {
    let mut bytes = Vec::new();
    grow(&mut bytes, len)?;
    Ok(bytes)
}

/// A copy of `bytes`.
///
/// # Errors
/// There is no memory for it.
pub fn copy_of(bytes: &[u8]) -> Result<Vec<u8>, NoMemory> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(bytes.len()).map_err(no_memory(bytes.len()))?;
    copy.extend_from_slice(bytes);
    Ok(copy)
}

/// Makes a buffer at least `len` bytes long, with zeros behind what it has.
///
/// # Errors
/// There is no memory for it; it is as before.
pub fn grow(buffer: &mut Vec<u8>, len: usize) -> Result<(), NoMemory> {
    if let Some(more) = len.checked_sub(buffer.len()) {
        buffer.try_reserve_exact(more).map_err(no_memory(len))?;
        buffer.resize(len, 0);
    }
    Ok(())
}

/// Adds an element to a list of which somebody else chooses the length.
///
/// # Errors
/// There is no memory for it; the list is as before.
pub fn push<T>(list: &mut Vec<T>, element: T) -> Result<(), NoMemory> {
    list.try_reserve(1).map_err(no_memory((list.len() + 1).saturating_mul(size_of::<T>())))?;
    list.push(element);
    Ok(())
}

/// An empty list with room for `len` elements.
///
/// # Errors
/// There is no memory for them.
pub fn list_for<T>(len: usize) -> Result<Vec<T>, NoMemory> {
    let mut list = Vec::new();
    list.try_reserve_exact(len).map_err(no_memory(len.saturating_mul(size_of::<T>())))?;
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_no_memory_for_is_refused() {
        let bytes = isize::MAX as usize;
        assert_eq!(zeroed(bytes), Err(NoMemory { bytes }));
        let mut kept = vec![1, 2];
        assert_eq!(grow(&mut kept, usize::MAX), Err(NoMemory { bytes: usize::MAX }));
        assert_eq!(kept, [1, 2]);
        assert_eq!(list_for::<u64>(bytes), Err(NoMemory { bytes: usize::MAX }));
    }

    #[test]
    fn buffers_and_lists_have_what_was_asked_for() {
        let mut bytes = copy_of(&[1, 2]).unwrap();
        grow(&mut bytes, 4).unwrap();
        grow(&mut bytes, 3).unwrap();
        assert_eq!(bytes, [1, 2, 0, 0]);
        let mut list = list_for(2).unwrap();
        assert!(list.capacity() >= 2);
        push(&mut list, 7).unwrap();
        assert_eq!(list, [7]);
    }
}
