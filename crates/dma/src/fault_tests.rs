use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::*;
use crate::watched::{Watch, watch};

const PAGE: usize = 4096;

/// A file mapped once; truncated at will.
struct Shared {
    fd: std::os::fd::OwnedFd,
    at: *mut u8,
    len: usize,
    _watch: Watch,
}

// SAFETY: an address of a mapping that lives until the drop; accessed by the routines only.
unsafe impl Sync for Shared {}

impl Shared {
    fn new(pages: usize, mapped: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        super::x86_64::install();
        let fd = memfd_create("fault", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, (pages * PAGE) as u64).unwrap();
        let len = mapped * PAGE;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel picks.
        let at = unsafe { mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, &fd, 0) };
        let at = at.unwrap().cast::<u8>();
        Self { fd, at, len, _watch: watch(at, len).unwrap() }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and no one uses it any more.
        unsafe { munmap(self.at.cast(), self.len).unwrap() };
    }
}

/// What an access to memory returns that is missing at an address.
fn missing<T>(at: *const u8) -> Result<T, Fault> {
    Err(Fault::Missing(at.addr()))
}

macro_rules! suite {
    ($module:ident, $atomics:expr) => {
        mod $module {
            use super::super::$module::{compare_exchange, copy_in, copy_out, load, store, swap};
            use super::*;

            #[test]
            fn every_length_and_offset_is_copied_exactly() {
                let shared = Shared::new(2, 2);
                let pattern: Vec<u8> = (0..2 * PAGE).map(|i| (i * 7 + i / 256) as u8).collect();
                for len in (0..=200).chain([255, 256, 257, 511, 512, 513, 1000, 4000, 5000]) {
                    for shift in [0, 1, 3, 8, 15] {
                        let mut before = vec![0xee; 2 * PAGE];
                        // SAFETY: all within two mapped pages and buffers of that length.
                        unsafe {
                            copy_out(shared.at, before.as_ptr(), 2 * PAGE).unwrap();
                            copy_out(shared.at.add(shift), pattern.as_ptr(), len).unwrap();
                            copy_in(before.as_mut_ptr(), shared.at, 2 * PAGE).unwrap();
                        }
                        assert!(before[..shift].iter().all(|b| *b == 0xee));
                        assert_eq!(before[shift..shift + len], pattern[..len], "{len} {shift}");
                        assert!(before[shift + len..].iter().all(|b| *b == 0xee), "{len} {shift}");
                        let mut back = vec![0; len + 2];
                        // SAFETY: within the mapped pages and a buffer of `len + 2` bytes.
                        unsafe {
                            copy_in(back.as_mut_ptr().add(1), shared.at.add(shift), len).unwrap();
                        }
                        assert_eq!(back[1..=len], pattern[..len]);
                        assert_eq!((back[0], back[len + 1]), (0, 0));
                    }
                }
            }

            #[test]
            fn scalars_have_their_size() {
                let shared = Shared::new(1, 1);
                // SAFETY: within the page, aligned.
                unsafe {
                    store(shared.at, 0x1122_3344_5566_7788u64).unwrap();
                    assert_eq!(load::<u64>(shared.at), Ok(0x1122_3344_5566_7788));
                    store(shared.at.add(4), 0xaabb_ccddu32).unwrap();
                    store(shared.at.add(2), 0xeeffu16).unwrap();
                    store(shared.at.add(1), 0x99u8).unwrap();
                    let mut bytes = [0; 8];
                    copy_in(bytes.as_mut_ptr(), shared.at, 8).unwrap();
                    let mut want = [0; 8];
                    want.copy_from_slice(&0xaabb_ccdd_eeff_9988u64.to_le_bytes());
                    assert_eq!(bytes, want);
                    assert_eq!(load::<u32>(shared.at.add(4)), Ok(0xaabb_ccdd));
                    assert_eq!(load::<u16>(shared.at.add(2)), Ok(0xeeff));
                    assert_eq!(load::<u8>(shared.at.add(1)), Ok(0x99));
                }
            }

            #[test]
            fn read_modify_write() {
                let shared = Shared::new(1, 1);
                let at = shared.at;
                // SAFETY: within the page, aligned.
                unsafe {
                    if !$atomics {
                        assert_eq!(swap(at, 1u32), Err(Fault::Unsupported));
                        assert_eq!(compare_exchange(at, 0u32, 1), Err(Fault::Unsupported));
                        return;
                    }
                    store(at, u64::MAX).unwrap();
                    assert_eq!(swap(at, 0x12u8), Ok(0xff));
                    assert_eq!(load::<u64>(at), Ok(0xffff_ffff_ffff_ff12));
                    assert_eq!(swap(at, 0x3456u16), Ok(0xff12));
                    assert_eq!(swap(at, 0x789a_bcdeu32), Ok(0xffff_3456));
                    assert_eq!(load::<u64>(at), Ok(0xffff_ffff_789a_bcde));
                    assert_eq!(swap(at, 5u64), Ok(0xffff_ffff_789a_bcde));
                    assert_eq!(compare_exchange(at, 6u64, 7), Ok(5));
                    assert_eq!(load::<u64>(at), Ok(5));
                    assert_eq!(compare_exchange(at, 5u64, u64::MAX), Ok(5));
                    assert_eq!(compare_exchange(at, u32::MAX, 1), Ok(u32::MAX));
                    assert_eq!(compare_exchange(at, 1u16, 2), Ok(1));
                    assert_eq!(compare_exchange(at, 2u8, 3), Ok(2));
                    assert_eq!(load::<u64>(at), Ok(0xffff_ffff_0000_0003));
                }
            }

            #[test]
            fn what_is_not_there_is_a_fault() {
                let shared = Shared::new(1, 3);
                let gone = shared.at.wrapping_add(PAGE);
                let mut buffer = vec![0u8; 2 * PAGE];
                // SAFETY: within three mapped pages, of which two have no file behind them.
                unsafe {
                    for len in [1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65, 200, 512, 5000] {
                        assert_eq!(copy_in(buffer.as_mut_ptr(), gone, len), missing(gone));
                        assert_eq!(copy_out(gone, buffer.as_ptr(), len), missing(gone));
                        let straddles = gone.sub(1);
                        let want = if len == 1 { Ok(()) } else { missing(gone) };
                        assert_eq!(copy_in(buffer.as_mut_ptr(), straddles, len), want);
                        assert_eq!(copy_out(straddles, buffer.as_ptr(), len), want);
                    }
                    assert_eq!(load::<u8>(gone), missing(gone));
                    assert_eq!(load::<u16>(gone), missing(gone));
                    assert_eq!(load::<u32>(gone), missing(gone));
                    assert_eq!(load::<u64>(gone), missing(gone));
                    assert_eq!(store(gone, 1u8), missing(gone));
                    assert_eq!(store(gone, 1u16), missing(gone));
                    assert_eq!(store(gone, 1u32), missing(gone));
                    assert_eq!(store(gone, 1u64), missing(gone));
                    if $atomics {
                        assert_eq!(swap(gone, 1u8), missing(gone));
                        assert_eq!(swap(gone, 1u16), missing(gone));
                        assert_eq!(swap(gone, 1u32), missing(gone));
                        assert_eq!(swap(gone, 1u64), missing(gone));
                        assert_eq!(compare_exchange(gone, 1u8, 2), missing(gone));
                        assert_eq!(compare_exchange(gone, 1u16, 2), missing(gone));
                        assert_eq!(compare_exchange(gone, 1u32, 2), missing(gone));
                        assert_eq!(compare_exchange(gone, 1u64, 2), missing(gone));
                    }
                    // It comes back when the file grows.
                    ftruncate(&shared.fd, 3 * PAGE as u64).unwrap();
                    assert_eq!(load::<u64>(gone), Ok(0));
                }
            }

            #[test]
            fn truncation_and_holes_under_running_accesses() {
                let shared = Shared::new(16, 16);
                let stop = AtomicBool::new(false);
                let (went, failed) = (AtomicU64::new(0), AtomicU64::new(0));
                std::thread::scope(|s| {
                    let workers: Vec<_> = [64, 8 * PAGE]
                        .into_iter()
                        .map(|len| {
                            let (shared, stop) = (&shared, &stop);
                            let (went, failed) = (&went, &failed);
                            s.spawn(move || {
                                let mut buffer = vec![0u8; len];
                                while !stop.load(Ordering::Relaxed) {
                                    let at = shared.at.wrapping_add(15 * PAGE - len);
                                    // SAFETY: within sixteen mapped pages.
                                    let (a, b) = unsafe {
                                        (
                                            copy_in(buffer.as_mut_ptr(), at, len),
                                            copy_out(at, buffer.as_ptr(), len),
                                        )
                                    };
                                    for result in [a, b] {
                                        let outcome = if result.is_ok() { went } else { failed };
                                        outcome.fetch_add(1, Ordering::Relaxed);
                                    }
                                }
                            })
                        })
                        .collect();
                    for round in 0..2000 {
                        ftruncate(&shared.fd, PAGE as u64).unwrap();
                        if round % 16 == 0 {
                            std::thread::yield_now();
                        }
                        ftruncate(&shared.fd, 16 * PAGE as u64).unwrap();
                        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                        fallocate(&shared.fd, hole, 0, 16 * PAGE as u64).unwrap();
                        if round % 16 == 8 {
                            std::thread::yield_now();
                        }
                    }
                    // Each outcome at least once, however threads were scheduled.
                    let happens = |outcome: &AtomicU64| {
                        let before = outcome.load(Ordering::Relaxed);
                        while outcome.load(Ordering::Relaxed) == before {
                            std::thread::yield_now();
                        }
                    };
                    ftruncate(&shared.fd, 0).unwrap();
                    happens(&failed);
                    ftruncate(&shared.fd, 16 * PAGE as u64).unwrap();
                    happens(&went);
                    stop.store(true, Ordering::Relaxed);
                    for worker in workers {
                        worker.join().unwrap();
                    }
                });
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
suite!(x86_64, true);
suite!(portable, false);

/// Runs a test of this file, which is to end the process, in a process of its own.
#[cfg(all(target_arch = "x86_64", not(vfiod_portable)))]
fn in_child(test: &str) -> std::process::ExitStatus {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--include-ignored", &format!("fault::tests::{test}")])
        .env("VFIOD_FAULT_CHILD", "1")
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap()
}

#[cfg(all(target_arch = "x86_64", not(vfiod_portable)))]
mod elsewhere {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn child() -> bool {
        std::env::var_os("VFIOD_FAULT_CHILD").is_some()
    }

    #[test]
    #[ignore = "ends its process; run by the tests below"]
    fn touch_plainly() {
        if child() {
            let shared = Shared::new(0, 1);
            // SAFETY: mapped; nothing behind it, which is the point.
            unsafe { shared.at.read_volatile() };
        }
    }

    /// Sends itself the signal, and sees that accesses are still recoverable.
    fn be_sent_one() {
        let shared = Shared::new(0, 1);
        // SAFETY: raises a signal; the page is mapped.
        unsafe {
            libc::raise(libc::SIGBUS);
            assert_eq!(super::super::load::<u8>(shared.at), missing(shared.at));
        }
        std::process::exit(3);
    }

    #[test]
    #[ignore = "ends its process; run by the tests below"]
    fn be_sent_one_after_std() {
        if child() {
            be_sent_one();
        }
    }

    #[test]
    #[ignore = "ends its process; run by the tests below"]
    fn be_sent_one_after_default() {
        if child() {
            // SAFETY: the default action.
            unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
            be_sent_one();
        }
    }

    #[test]
    #[ignore = "ends its process; run by the tests below"]
    fn be_sent_one_ignored() {
        if child() {
            // SAFETY: ignores the signal.
            unsafe { libc::signal(libc::SIGBUS, libc::SIG_IGN) };
            be_sent_one();
        }
    }

    extern "C" fn leave(_: libc::c_int) {
        // SAFETY: async-signal-safe.
        unsafe { libc::_exit(42) };
    }

    #[test]
    #[ignore = "ends its process; run by the tests below"]
    fn touch_plainly_with_a_handler_before() {
        if child() {
            // SAFETY: a handler of the right type.
            unsafe { libc::signal(libc::SIGBUS, leave as *const () as usize) };
            touch_plainly();
        }
    }

    /// Whoever sends a signal chooses what it says of an address.
    #[test]
    fn signal_that_was_sent_is_not_taken_for_a_fault_at_the_address_that_it_names() {
        const BUS_ADRERR: libc::c_int = 2;
        const BUS_MCEERR_AO: libc::c_int = 5;
        let shared = Shared::new(1, 1);
        let is_ours = |code| super::super::x86_64::is_ours(code, shared.at.addr());
        assert!(is_ours(BUS_ADRERR));
        for code in [libc::SI_USER, libc::SI_QUEUE, libc::SI_TKILL, libc::SI_KERNEL, BUS_MCEERR_AO]
        {
            assert!(!is_ours(code), "code {code}");
        }
    }

    #[test]
    fn a_fault_of_others_still_ends_the_process() {
        assert_eq!(in_child("elsewhere::touch_plainly").signal(), Some(libc::SIGBUS));
    }

    #[test]
    fn a_signal_that_was_sent_does_what_it_would_without_us() {
        // std swallows one, and so it stays; but recovery goes on.
        assert_eq!(in_child("elsewhere::be_sent_one_after_std").code(), Some(3));
        assert_eq!(in_child("elsewhere::be_sent_one_ignored").code(), Some(3));
        let status = in_child("elsewhere::be_sent_one_after_default");
        assert_eq!(status.signal(), Some(libc::SIGBUS));
    }

    #[test]
    fn an_older_handler_is_called() {
        let status = in_child("elsewhere::touch_plainly_with_a_handler_before");
        assert_eq!(status.code(), Some(42));
    }

    /// A page that is not there, of memory that has nothing to do with clients.
    fn foreign() -> *mut u8 {
        let fd = memfd_create("foreign", MemfdFlags::CLOEXEC).unwrap();
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel picks.
        let at = unsafe { mmap(std::ptr::null_mut(), PAGE, prot, MapFlags::SHARED, &fd, 0) };
        at.unwrap().cast()
    }

    #[test]
    #[ignore = "ends its process; run by the tests below"]
    fn copy_to_foreign_memory_with_a_handler_before() {
        if child() {
            // SAFETY: a handler of the right type; the routine copies from a page that is there
            // to one that is not.
            unsafe {
                libc::signal(libc::SIGBUS, leave as *const () as usize);
                let shared = Shared::new(1, 1);
                let copied = super::super::copy_in(foreign(), shared.at, 64);
                assert_eq!(copied, missing(shared.at), "the handler was not called");
            }
        }
    }

    #[test]
    fn fault_in_memory_of_the_caller_is_not_taken_for_one_of_the_client() {
        let status = in_child("elsewhere::copy_to_foreign_memory_with_a_handler_before");
        assert_eq!(status.code(), Some(42));
    }

    /// Maps a page where there was none, as an embedder may that has its own use for SIGBUS.
    extern "C" fn repair(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: maps over the page that has failed, which only the test uses.
        unsafe {
            let at = (*info).si_addr().map_addr(|at| at & !(PAGE - 1));
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            libc::mmap(at, PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        }
    }

    #[test]
    #[ignore = "ends its process; run by the tests below"]
    fn repair_foreign_memory() {
        if !child() {
            return;
        }
        // SAFETY: a handler of the kind that the flag says; the pages are repaired by it.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = repair as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
            let (gone, there) = (Shared::new(0, 1), Shared::new(1, 1));
            for _ in 0..3 {
                foreign().write_volatile(7);
                super::super::copy_out(there.at, [5; 8].as_ptr(), 8).unwrap();
                super::super::copy_in(foreign(), there.at, 8).unwrap();
                assert_eq!(super::super::load::<u8>(gone.at), missing(gone.at));
            }
        }
        std::process::exit(7);
    }

    #[test]
    fn embedders_handler_goes_on_working_between_recoveries() {
        assert_eq!(in_child("elsewhere::repair_foreign_memory").code(), Some(7));
    }
}
