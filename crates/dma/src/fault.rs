//! Access to memory that a hostile peer can take away at any moment.
//!
//! The peer holds the file behind a mapping and may truncate it, or may have lied about its
//! length; touching what is not there raises SIGBUS. So does touching a hole that is to stay one
//! ([`crate::userfault`]). The routines here survive that and report the address
//! ([`Fault::Missing`]). They are also the only code that touches such memory: opaque to the
//! compiler, so every access is volatile, and one of 1, 2, 4 or 8 bytes that is naturally
//! aligned is a single access. Longer ones are copied in ascending order, [`CHUNK`] bytes at most
//! at a time.
//!
//! On x86-64 they are leaf routines in assembly that lie between two labels. The handler of
//! SIGBUS moves an instruction pointer between the labels to a landing that returns the
//! failure; no routine has anything on its stack, so that is all there is to undo. It does so
//! only for a fault at an address that is watched ([`crate::watched`]). Every other SIGBUS goes to the handler
//! that was there before, as if ours did not exist: one from other code, one that was sent, and
//! one for memory of the caller that a routine copies from or to. A handler that is installed
//! later replaces ours, and has to pass on what it does not know. A thread that blocks SIGBUS must not come here: the
//! kernel kills a process whose synchronous signal is blocked.
//!
//! Elsewhere the kernel copies on our behalf (`process_vm_readv` on ourselves), which has no
//! atomic read-modify-write.

#![allow(unsafe_code)]

#[cfg(any(not(target_arch = "x86_64"), vfiod_portable))]
pub(crate) use portable::*;
#[cfg(all(target_arch = "x86_64", not(vfiod_portable)))]
pub(crate) use x86_64::*;

/// Why an access did not happen, or only in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The memory at this address is not there: the file ends before it, or has a hole.
    Missing(usize),
    /// This architecture cannot do it recoverably.
    #[cfg_attr(all(target_arch = "x86_64", not(vfiod_portable)), allow(dead_code))]
    Unsupported,
}

/// Most bytes that a copy reads before it writes them: when it fails at an address, those before the
/// address but for these have been copied.
pub(crate) const CHUNK: usize = 64;

/// An integer that guest memory can be accessed as, in one piece.
pub trait Scalar: sealed::Sealed + Copy + Eq + Send + 'static {}

pub(crate) mod sealed {
    pub trait Sealed {
        const SIZE: usize;
        fn widen(self) -> u64;
        fn narrow(value: u64) -> Self;
        /// The integer that the first bytes are in memory.
        fn from_memory(bytes: [u8; 8]) -> Self
        where
            Self: Sized,
        {
            let value = u64::from_ne_bytes(bytes);
            let unused = 64 - 8 * Self::SIZE;
            Self::narrow(if cfg!(target_endian = "big") { value >> unused } else { value })
        }
    }
}

macro_rules! scalar {
    ($($t:ty),*) => {$(
        impl Scalar for $t {}
        impl sealed::Sealed for $t {
            const SIZE: usize = size_of::<$t>();
            fn widen(self) -> u64 {
                u64::from(self)
            }
            fn narrow(value: u64) -> Self {
                value as $t
            }
        }
    )*};
}
scalar!(u8, u16, u32, u64);

#[cfg(all(target_arch = "x86_64", any(test, not(vfiod_portable))))]
#[cfg_attr(vfiod_portable, allow(dead_code))]
mod x86_64 {
    use std::ffi::{c_int, c_void};
    use std::sync::{Once, OnceLock};

    use super::{Fault, Scalar};

    /// What every routine returns, in `rax` and `rdx`.
    #[repr(C)]
    struct Outcome {
        value: u64,
        fault: u64,
    }

    impl Outcome {
        fn result(self) -> Result<u64, Fault> {
            if self.fault == 0 { Ok(self.value) } else { Err(Fault::Missing(self.value as usize)) }
        }
    }

    std::arch::global_asm!(include_str!("fault_x86_64.s"), options(att_syntax));

    unsafe extern "sysv64" {
        static vfiod_dma_begin: u8;
        static vfiod_dma_end: u8;
        static vfiod_dma_landing: u8;
        fn vfiod_dma_copy(to: *mut u8, from: *const u8, len: usize) -> Outcome;
        fn vfiod_dma_load1(at: *const u8) -> Outcome;
        fn vfiod_dma_load2(at: *const u8) -> Outcome;
        fn vfiod_dma_load4(at: *const u8) -> Outcome;
        fn vfiod_dma_load8(at: *const u8) -> Outcome;
        fn vfiod_dma_store1(at: *mut u8, value: u64) -> Outcome;
        fn vfiod_dma_store2(at: *mut u8, value: u64) -> Outcome;
        fn vfiod_dma_store4(at: *mut u8, value: u64) -> Outcome;
        fn vfiod_dma_store8(at: *mut u8, value: u64) -> Outcome;
        fn vfiod_dma_swap1(at: *mut u8, value: u64) -> Outcome;
        fn vfiod_dma_swap2(at: *mut u8, value: u64) -> Outcome;
        fn vfiod_dma_swap4(at: *mut u8, value: u64) -> Outcome;
        fn vfiod_dma_swap8(at: *mut u8, value: u64) -> Outcome;
        fn vfiod_dma_cas1(at: *mut u8, old: u64, new: u64) -> Outcome;
        fn vfiod_dma_cas2(at: *mut u8, old: u64, new: u64) -> Outcome;
        fn vfiod_dma_cas4(at: *mut u8, old: u64, new: u64) -> Outcome;
        fn vfiod_dma_cas8(at: *mut u8, old: u64, new: u64) -> Outcome;
    }

    /// Copies out of the peer's memory. After a fault some of `to` may have been written.
    ///
    /// # Safety
    /// `to` is valid for writes of `len` bytes; `from` lies in a mapping (of at least `len`
    /// bytes from there) that stays mapped during the call; [`install`] has been called.
    pub(crate) unsafe fn copy_in(to: *mut u8, from: *const u8, len: usize) -> Result<(), Fault> {
        // SAFETY: as the caller promises; a missing page ends in the landing.
        unsafe { vfiod_dma_copy(to, from, len) }.result().map(drop)
    }

    /// Copies into the peer's memory. After a fault some of it may have been written.
    ///
    /// # Safety
    /// As [`copy_in`], with the sides swapped; the mapping is writable.
    pub(crate) unsafe fn copy_out(to: *mut u8, from: *const u8, len: usize) -> Result<(), Fault> {
        // SAFETY: as the caller promises; a missing page ends in the landing.
        unsafe { vfiod_dma_copy(to, from, len) }.result().map(drop)
    }

    /// Loads, with acquire ordering.
    ///
    /// # Safety
    /// As [`copy_in`]; `at` is aligned to the size.
    pub(crate) unsafe fn load<T: Scalar>(at: *const u8) -> Result<T, Fault> {
        // SAFETY: as the caller promises; a missing page ends in the landing.
        let outcome = unsafe {
            match T::SIZE {
                1 => vfiod_dma_load1(at),
                2 => vfiod_dma_load2(at),
                4 => vfiod_dma_load4(at),
                _ => vfiod_dma_load8(at),
            }
        };
        outcome.result().map(T::narrow)
    }

    /// Stores, with release ordering.
    ///
    /// # Safety
    /// As [`load`]; the mapping is writable.
    pub(crate) unsafe fn store<T: Scalar>(at: *mut u8, value: T) -> Result<(), Fault> {
        let value = value.widen();
        // SAFETY: as the caller promises; a missing page ends in the landing.
        let outcome = unsafe {
            match T::SIZE {
                1 => vfiod_dma_store1(at, value),
                2 => vfiod_dma_store2(at, value),
                4 => vfiod_dma_store4(at, value),
                _ => vfiod_dma_store8(at, value),
            }
        };
        outcome.result().map(drop)
    }

    /// Exchanges, sequentially consistent; what was there.
    ///
    /// # Safety
    /// As [`store`].
    pub(crate) unsafe fn swap<T: Scalar>(at: *mut u8, value: T) -> Result<T, Fault> {
        let value = value.widen();
        // SAFETY: as the caller promises; a missing page ends in the landing.
        let outcome = unsafe {
            match T::SIZE {
                1 => vfiod_dma_swap1(at, value),
                2 => vfiod_dma_swap2(at, value),
                4 => vfiod_dma_swap4(at, value),
                _ => vfiod_dma_swap8(at, value),
            }
        };
        outcome.result().map(T::narrow)
    }

    /// Stores `new` if `old` is there, sequentially consistent; what was there.
    ///
    /// # Safety
    /// As [`store`].
    pub(crate) unsafe fn compare_exchange<T: Scalar>(
        at: *mut u8,
        old: T,
        new: T,
    ) -> Result<T, Fault> {
        let (old, new) = (old.widen(), new.widen());
        // SAFETY: as the caller promises; a missing page ends in the landing.
        let outcome = unsafe {
            match T::SIZE {
                1 => vfiod_dma_cas1(at, old, new),
                2 => vfiod_dma_cas2(at, old, new),
                4 => vfiod_dma_cas4(at, old, new),
                _ => vfiod_dma_cas8(at, old, new),
            }
        };
        outcome.result().map(T::narrow)
    }

    static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

    /// Sets up the handler of SIGBUS, once for the process.
    pub(crate) fn install() {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            // SAFETY: `sigaction` is plain data, for which all zeroes are a value, and the
            // call gets a valid pointer.
            let previous = unsafe {
                let mut previous: libc::sigaction = std::mem::zeroed();
                libc::sigaction(libc::SIGBUS, std::ptr::null(), &mut previous);
                previous
            };
            // Before ours is in place: it reads this.
            _ = PREVIOUS.set(previous);
            if handle() != 0 {
                tracing::error!(
                    error = %std::io::Error::last_os_error(),
                    "no handler for SIGBUS: a peer that truncates its memory ends the process"
                );
            }
        });
    }

    fn handle() -> c_int {
        // SAFETY: all zeroes are a value of `sigaction`; the handler has the signature that
        // SA_SIGINFO asks for.
        unsafe {
            let mut ours: libc::sigaction = std::mem::zeroed();
            ours.sa_sigaction = on_sigbus as *const () as usize;
            ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
            libc::sigemptyset(&mut ours.sa_mask);
            libc::sigaction(libc::SIGBUS, &ours, std::ptr::null_mut())
        }
    }

    /// Whether a signal was raised by an instruction that accessed watched memory.
    pub(super) fn is_ours(code: c_int, address: usize) -> bool {
        // Faults: not aligned, no page, an error of the object, an error of the hardware. Others
        // were sent, or report an error that no instruction ran into.
        matches!(code, BUS_ADRALN..=BUS_MCEERR_AR) && crate::watched::contains(address)
    }

    const BUS_ADRALN: c_int = 1;
    const BUS_MCEERR_AR: c_int = 4;

    /// Only async-signal-safe calls here.
    extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
        // SAFETY: the kernel passes a valid context and information to a handler with SA_SIGINFO;
        // the labels are addresses only.
        unsafe {
            let (code, address) = ((*info).si_code, (*info).si_addr().addr());
            let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
            let at = registers[libc::REG_RIP as usize] as usize;
            let begin = &raw const vfiod_dma_begin as usize;
            let end = &raw const vfiod_dma_end as usize;
            if (begin..end).contains(&at) && is_ours(code, address) {
                registers[libc::REG_RIP as usize] = &raw const vfiod_dma_landing as i64;
                registers[libc::REG_RAX as usize] = address as i64;
                return;
            }
            pass_on(signal, info, context);
        }
    }

    /// Does what would have been done without us.
    ///
    /// # Safety
    /// Called from a signal handler with that handler's arguments.
    unsafe fn pass_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
        let previous = PREVIOUS.get();
        let action = previous.map_or(libc::SIG_DFL, |previous| previous.sa_sigaction);
        // SAFETY: `info` is the kernel's; `action` is a handler of the kind that its flags
        // say, as whoever installed it promised; the zeroed `sigaction` is the default action.
        unsafe {
            let sent = (*info).si_code <= 0;
            // The signals that it asked to be blocked while it runs.
            let mut before: libc::sigset_t = std::mem::zeroed();
            if let Some(previous) = previous {
                libc::pthread_sigmask(libc::SIG_BLOCK, &previous.sa_mask, &mut before);
            }
            match action {
                libc::SIG_IGN if sent => return,
                libc::SIG_DFL | libc::SIG_IGN => {
                    let default: libc::sigaction = std::mem::zeroed();
                    libc::sigaction(signal, &default, std::ptr::null_mut());
                    // A fault happens again as soon as we return; a signal that was sent does not.
                    if sent {
                        libc::raise(signal);
                    }
                    return;
                }
                action if previous.is_some_and(|p| p.sa_flags & libc::SA_SIGINFO != 0) => {
                    type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
                    std::mem::transmute::<usize, Handler>(action)(signal, info, context);
                }
                action => {
                    std::mem::transmute::<usize, extern "C" fn(c_int)>(action)(signal);
                }
            }
            if previous.is_some() {
                libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
            }
            // std's handler puts the default back and returns, for a fault to end the process;
            // a signal that a process sent must not take our protection away like that.
            if sent {
                handle();
            }
        }
    }
}

/// Lets the kernel copy. Works on every architecture; tested on all.
#[cfg(any(test, vfiod_portable, not(target_arch = "x86_64")))]
#[cfg_attr(all(target_arch = "x86_64", not(vfiod_portable)), allow(dead_code))]
mod portable {
    use super::{Fault, Scalar};

    type Call = unsafe extern "C" fn(
        libc::pid_t,
        *const libc::iovec,
        libc::c_ulong,
        *const libc::iovec,
        libc::c_ulong,
        libc::c_ulong,
    ) -> libc::ssize_t;

    /// # Safety
    /// `local` is valid for what `call` does with `len` bytes of it.
    unsafe fn transfer(
        call: Call,
        local: *mut u8,
        remote: *mut u8,
        len: usize,
    ) -> Result<(), Fault> {
        let mut done = 0;
        while done < len {
            let rest = |side: *mut u8| libc::iovec {
                iov_base: side.wrapping_add(done).cast(),
                iov_len: len - done,
            };
            // SAFETY: the local side is valid as the caller promises; the kernel checks the
            // remote one.
            match unsafe { call(libc::getpid(), &rest(local), 1, &rest(remote), 1, 0) } {
                moved @ 1.. => done += moved as usize,
                _ => return Err(Fault::Missing(remote.addr() + done)),
            }
        }
        Ok(())
    }

    /// See the x86-64 routine.
    pub(crate) unsafe fn copy_in(to: *mut u8, from: *const u8, len: usize) -> Result<(), Fault> {
        // SAFETY: as the caller promises.
        unsafe { transfer(libc::process_vm_readv, to, from.cast_mut(), len) }
    }

    /// See the x86-64 routine.
    pub(crate) unsafe fn copy_out(to: *mut u8, from: *const u8, len: usize) -> Result<(), Fault> {
        // SAFETY: as the caller promises; the local side is only read.
        unsafe { transfer(libc::process_vm_writev, from.cast_mut(), to, len) }
    }

    /// See the x86-64 routine.
    pub(crate) unsafe fn load<T: Scalar>(at: *const u8) -> Result<T, Fault> {
        let mut value = [0; 8];
        // SAFETY: as the caller promises; no scalar is longer than 8 bytes.
        unsafe { copy_in(value.as_mut_ptr(), at, T::SIZE)? };
        std::sync::atomic::fence(std::sync::atomic::Ordering::Acquire);
        Ok(T::from_memory(value))
    }

    /// See the x86-64 routine.
    pub(crate) unsafe fn store<T: Scalar>(at: *mut u8, value: T) -> Result<(), Fault> {
        let value = value.widen();
        let value = if cfg!(target_endian = "big") { value << (64 - 8 * T::SIZE) } else { value };
        std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
        // SAFETY: as the caller promises; no scalar is longer than 8 bytes.
        unsafe { copy_out(at, value.to_ne_bytes().as_ptr(), T::SIZE) }
    }

    /// Unsupported: the kernel has no such call.
    pub(crate) unsafe fn swap<T: Scalar>(_at: *mut u8, _value: T) -> Result<T, Fault> {
        Err(Fault::Unsupported)
    }

    /// Unsupported: the kernel has no such call.
    pub(crate) unsafe fn compare_exchange<T: Scalar>(
        _at: *mut u8,
        _old: T,
        _new: T,
    ) -> Result<T, Fault> {
        Err(Fault::Unsupported)
    }

    /// Nothing to set up.
    pub(crate) fn install() {}
}

#[cfg(test)]
#[path = "fault_tests.rs"]
mod tests;
