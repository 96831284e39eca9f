//! Interrupting a system call of another thread by a signal.
//!
//! The signal is SIGURG: its default action is to ignore it, so one that comes too late, or where
//! other code has replaced the handler, does no harm. The handler does nothing, and is installed
//! without `SA_RESTART`, so that the system call fails with `EINTR`. It is installed before the
//! first signal is sent, which is when a client first blocks a thread; a handler that was there
//! before is called by it.
//!
//! `unsafe`: signal handlers and `tgkill`.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;

use libc::{c_int, c_void, sigaction, siginfo_t};

const SIGNAL: c_int = libc::SIGURG;

/// A thread of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ThreadId(libc::pid_t);

impl ThreadId {
    /// The calling thread.
    pub(super) fn current() -> Self {
        // SAFETY: always succeeds and touches no memory.
        Self(unsafe { libc::gettid() })
    }
}

/// Lets the calling thread be interrupted, whatever mask of signals it has inherited.
pub(super) fn unblock() {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `set` is initialised by `sigemptyset` before it is used; no old mask is asked for.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), SIGNAL);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), ptr::null_mut());
    }
}

/// Interrupts a system call of a thread, which must not have ended.
pub(super) fn interrupt(thread: ThreadId) {
    install();
    // SAFETY: sends a signal to a thread of this process, whose handler is `handle`; touches no
    // memory.
    let sent = unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread.0, SIGNAL) };
    if sent != 0 {
        tracing::warn!("cannot interrupt a thread that a client blocks");
    }
}

/// The handler that was installed before ours.
static PREVIOUS: OnceLock<sigaction> = OnceLock::new();

fn install() {
    PREVIOUS.get_or_init(|| {
        let mut previous = MaybeUninit::<sigaction>::zeroed();
        // SAFETY: all zero is a valid `sigaction`; `handle` has the signature that SA_SIGINFO
        // asks for and calls nothing that is not async-signal-safe but the handler before it.
        unsafe {
            let mut action: sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(SIGNAL, &action, previous.as_mut_ptr());
            previous.assume_init()
        }
    });
}

extern "C" fn handle(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // Not there yet: the signal came between the two system calls of the first installation.
    let Some(previous) = PREVIOUS.get() else { return };
    match previous.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {}
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: the kernel's arguments for a handler that was installed with SA_SIGINFO.
            unsafe {
                std::mem::transmute::<usize, extern "C" fn(c_int, *mut siginfo_t, *mut c_void)>(
                    handler,
                )(signal, info, context);
            }
        }
        handler => {
            // SAFETY: the kernel's argument for a handler that was installed without SA_SIGINFO.
            unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(handler)(signal) }
        }
    }
}
