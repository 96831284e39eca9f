//! Words of memory that outlive the process that stores to them.
//!
//! `unsafe`: the file is mapped, and its words are used as atomics. The file is sealed against shrinking,
//! so that no access can fault; whoever else has it can change values, but no value is wrong for an integer.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// Words that survive their writer. What a dead process has stored is there in the order of its program:
/// a process dies between two of its instructions, and what it stored before is in memory.
///
/// That the compiler keeps the order where it matters is what [`Words::publish`] is for.
pub trait Words {
    /// Loads a word.
    ///
    /// # Panics
    /// `at` is beyond the end.
    fn load(&self, at: usize) -> u64;

    /// Stores a word.
    ///
    /// # Panics
    /// `at` is beyond the end.
    fn store(&self, at: usize, value: u64);

    /// Stores a word after everything that was stored before, and before everything that is stored or done
    /// after it.
    ///
    /// # Panics
    /// `at` is beyond the end.
    fn publish(&self, at: usize, value: u64);

    /// How many words there are.
    fn count(&self) -> usize;
}

/// The words of a memory file, mapped.
#[derive(Debug)]
pub struct SharedWords {
    first: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: it owns its mapping, and all access is by atomics.
unsafe impl Send for SharedWords {}
// SAFETY: as for `Send`.
unsafe impl Sync for SharedWords {}

/// Why a file cannot be used as shared words.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It is no memory file, or could be truncated under whoever uses it.
    #[error("not a memory file that is sealed against shrinking")]
    NotSealed,
    /// It has fewer bytes than are needed.
    #[error("the memory file has {has} bytes, but {needs} are needed")]
    TooShort {
        /// Its size.
        has: u64,
        /// What is needed.
        needs: u64,
    },
    /// The kernel refused.
    #[error("the memory file cannot be used: {0}")]
    Kernel(#[from] Errno),
}

fn bytes_of(words: usize) -> Result<u64, Errno> {
    words.checked_mul(8).map(|bytes| bytes as u64).ok_or(Errno::OVERFLOW)
}

impl SharedWords {
    /// Makes a memory file of `words` words, all zero, and seals its size. It takes no memory before it is
    /// stored to.
    ///
    /// # Errors
    /// Those of `memfd_create`, `ftruncate` and of sealing.
    pub fn create(name: &str, words: usize) -> Result<OwnedFd, Errno> {
        create_file(name, bytes_of(words)?)
    }

    /// Maps the first `words` words of a file that [`SharedWords::create`] has made. They are not part of a
    /// core file.
    ///
    /// # Errors
    /// The file can be truncated or is too short; those of `mmap`.
    pub fn open(file: impl AsFd, words: usize) -> Result<Self, Unusable> {
        let seals = rustix::fs::fcntl_get_seals(&file).map_err(|_| Unusable::NotSealed)?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(Unusable::NotSealed);
        }
        let needs = bytes_of(words)?;
        let has = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
        if has < needs || needs == 0 {
            return Err(Unusable::TooShort { has, needs: needs.max(8) });
        }
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at a place that the kernel chooses; nothing else is there.
        let memory = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), words * 8, protection, flags, &file, 0)
        }?;
        // SAFETY: the mapping was made above, with this length. Its content is not changed by this advice.
        unsafe { rustix::mm::madvise(memory, words * 8, Advice::LinuxDontDump) }?;
        let first = NonNull::new(memory.cast()).ok_or(Errno::FAULT)?;
        Ok(Self { first, count: words })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has `count` words, is aligned to a page, and is there until the drop. The file
        // cannot shrink. Every access to it in this process is atomic.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

impl Words for SharedWords {
    #[inline]
    fn load(&self, at: usize) -> u64 {
        self.words()[at].load(Ordering::Acquire)
    }

    #[inline]
    fn store(&self, at: usize, value: u64) {
        self.words()[at].store(value, Ordering::Relaxed);
    }

    #[inline]
    fn publish(&self, at: usize, value: u64) {
        self.words()[at].store(value, Ordering::Release);
        // What comes next may be a system call, which must not be moved before the store.
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
    }

    fn count(&self) -> usize {
        self.count
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's, and nothing borrows from it any more.
        let _ = unsafe { rustix::mm::munmap(self.first.as_ptr().cast(), self.count * 8) };
    }
}

/// Makes a memory file of `bytes` zeros that keeps its size.
///
/// # Errors
/// Those of `memfd_create`, `ftruncate` and of sealing.
pub fn create_file(name: &str, bytes: u64) -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Before Linux 6.3.
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags)?,
        other => other?,
    };
    rustix::fs::ftruncate(&file, bytes)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(file)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn stored_words_are_seen_by_another_mapping() {
        let file = SharedWords::create("words", 3).unwrap();
        let (one, other) =
            (SharedWords::open(&file, 3).unwrap(), SharedWords::open(&file, 3).unwrap());
        one.store(0, 7);
        one.publish(2, u64::MAX);
        drop(one);
        assert_eq!([other.load(0), other.load(1), other.load(2)], [7, 0, u64::MAX]);
    }

    #[test]
    fn file_that_can_shrink_is_refused() {
        let open = rustix::fs::memfd_create("open", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&open, 64).unwrap();
        assert!(matches!(SharedWords::open(&open, 8), Err(Unusable::NotSealed)));
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(SharedWords::open(&null, 8), Err(Unusable::NotSealed)));
    }

    #[test]
    fn file_that_is_too_short_is_refused() {
        let file = SharedWords::create("short", 4).unwrap();
        for words in [0, 5, usize::MAX / 8] {
            let refused = SharedWords::open(&file, words);
            assert!(matches!(refused, Err(Unusable::TooShort { has: 32, .. })), "{refused:?}");
        }
        assert!(matches!(SharedWords::open(&file, usize::MAX), Err(Unusable::Kernel(_))));
        assert_eq!(rustix::fs::ftruncate(&file, 0), Err(Errno::PERM));
    }
}
