//! An allocator of tests that can refuse what is large. It is shared by the tests of several crates, each of
//! which has all that it does with it in one test: the others would get nothing, either.
#![allow(dead_code)] // each of them uses a part
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Scarce;

#[global_allocator]
static ALLOCATOR: Scarce = Scarce;

/// The most that a thread gets at once, bytes.
static LARGEST: AtomicUsize = AtomicUsize::new(usize::MAX);
/// How often somebody got nothing.
static REFUSED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static IS_SPARED: Cell<bool> = const { Cell::new(false) };
}

fn is_refused(bytes: usize) -> bool {
    // A thread that ends is not asked any more.
    let refused =
        bytes > LARGEST.load(Ordering::SeqCst) && !IS_SPARED.try_with(Cell::get).unwrap_or(true);
    if refused {
        REFUSED.fetch_add(1, Ordering::SeqCst);
    }
    refused
}

// SAFETY: what is returned is of the system's allocator, or null, which stands for a failure.
unsafe impl GlobalAlloc for Scarce {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_refused(layout.size()) {
            return std::ptr::null_mut();
        }
        // SAFETY: as for this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as for this function; everything is of the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if is_refused(size) {
            return std::ptr::null_mut();
        }
        // SAFETY: as for this function; everything is of the system's allocator.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Whether the calling thread gets what it wants all the same.
pub(crate) fn spare_this_thread(is_spared: bool) {
    IS_SPARED.set(is_spared);
}

/// While this is there, nobody else gets much.
pub(crate) struct Scarcity(());

/// From now on nobody else gets more than `largest` bytes at once.
pub(crate) fn begin(largest: usize) -> Scarcity {
    LARGEST.store(largest, Ordering::SeqCst);
    Scarcity(())
}

impl Drop for Scarcity {
    fn drop(&mut self) {
        LARGEST.store(usize::MAX, Ordering::SeqCst);
    }
}

/// How often somebody got nothing.
pub(crate) fn refused() -> usize {
    REFUSED.load(Ordering::SeqCst)
}
