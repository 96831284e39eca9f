//! What a daemon that was taken over would try: each attempt is one system call, made by a device model.
//!
//! The arguments are such that each call succeeds outside the sandbox, or fails with another errno than
//! in it, and does no harm.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::os::unix::ffi::OsStringExt;
use std::ptr::null;

use libc::{c_long, syscall};
use vfiod_config::{ConfiguredModel, NoOptions};
use vfiod_pci::prelude::*;

/// The environment variable with a file that is outside the sandbox.
pub(crate) const OUTSIDE: &str = "VFIOD_TEST_OUTSIDE";

/// An attempt: its name, the call, and the errno that the sandbox answers with (0: it succeeds).
pub(crate) type Attempt = (&'static str, fn() -> c_long, i32);

/// What is refused to a daemon that runs as root only: other users cannot do harm by it.
pub(crate) const IF_ROOT: &[&str] = &["changing the mode of a file outside"];

const EPERM: i32 = libc::EPERM;
const ENOSYS: i32 = libc::ENOSYS;

/// Calls a system call. Pointers among the arguments are null or outlive the call.
macro_rules! call {
    ($number:ident $(, $argument:expr)*) => {
        // SAFETY: no argument makes the kernel write to memory, but where the caller passes its own.
        unsafe { syscall(libc::$number $(, $argument)*) }
    };
}

/// The file outside the sandbox.
fn outside() -> CString {
    let path = std::env::var_os(OUTSIDE).unwrap_or_default();
    CString::new(path.into_vec()).unwrap_or_default()
}

/// The attempt that landlock refuses where it can (Linux 7.1), with `EACCES`.
pub(crate) const CONNECTING: &str = "connecting to a socket outside";

/// Connects to a socket beside the file outside the sandbox.
fn connect_outside() -> c_long {
    let Ok(path) = outside().into_string() else { return 0 };
    let path = std::path::Path::new(&path).with_file_name("socket");
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => 0,
        Err(_) => -1,
    }
}

/// Every attempt. A client names it by its place.
#[rustfmt::skip]
pub(crate) const ATTEMPTS: &[Attempt] = &[
    ("execve", || call!(SYS_execve, null::<u8>(), null::<u8>(), null::<u8>()), EPERM),
    ("execveat", || call!(SYS_execveat, -1, null::<u8>(), null::<u8>(), null::<u8>(), 0), EPERM),
    ("clone of a process", || call!(SYS_clone, libc::CLONE_NEWUSER | libc::CLONE_FS, 0, 0, 0, 0), EPERM),
    ("clone3", || call!(SYS_clone3, null::<u8>(), 0), ENOSYS),
    ("unshare", || call!(SYS_unshare, 0), EPERM),
    ("setns", || call!(SYS_setns, -1, 0), EPERM),
    ("ptrace", || call!(SYS_ptrace, libc::PTRACE_PEEKDATA, 0, 0, 0), EPERM),
    ("process_vm_readv", || call!(SYS_process_vm_readv, libc::getpid(), null::<u8>(), 0, null::<u8>(), 0, 0), EPERM),
    ("kill of the parent", || call!(SYS_kill, libc::getppid(), 0), EPERM),
    ("kill of itself with no signal", || call!(SYS_kill, libc::getpid(), 0), 0),
    ("mount", || call!(SYS_mount, null::<u8>(), null::<u8>(), null::<u8>(), 0, null::<u8>()), EPERM),
    ("umount2", || call!(SYS_umount2, null::<u8>(), 0), EPERM),
    ("pivot_root", || call!(SYS_pivot_root, null::<u8>(), null::<u8>()), EPERM),
    ("chroot", || call!(SYS_chroot, null::<u8>()), EPERM),
    ("bpf", || call!(SYS_bpf, -1, null::<u8>(), 0), EPERM),
    ("perf_event_open", || call!(SYS_perf_event_open, null::<u8>(), 0, 0, -1, 0), EPERM),
    ("kexec_load", || call!(SYS_kexec_load, 0, 0, null::<u8>(), 0xffff), EPERM),
    ("init_module", || call!(SYS_init_module, null::<u8>(), 0, null::<u8>()), EPERM),
    ("reboot", || call!(SYS_reboot, 0, 0, 0, null::<u8>()), EPERM),
    ("setuid to itself", || call!(SYS_setuid, libc::getuid()), EPERM),
    ("setgroups", || call!(SYS_setgroups, usize::MAX, null::<u8>()), EPERM),
    ("capset", || call!(SYS_capset, null::<u8>(), null::<u8>()), EPERM),
    ("keyctl", || call!(SYS_keyctl, -1, 0, 0, 0, 0), EPERM),
    ("io_uring_setup", || call!(SYS_io_uring_setup, 0, null::<u8>()), ENOSYS),
    ("userfaultfd for the kernel's faults", || call!(SYS_userfaultfd, 0), EPERM),
    ("TCP socket", || call!(SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0), EPERM),
    ("UNIX datagram socket", || call!(SYS_socket, libc::AF_UNIX, libc::SOCK_DGRAM, 0), EPERM),
    ("netlink socket", || call!(SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, 0), EPERM),
    (CONNECTING, connect_outside, EPERM),
    ("memory that can be executed", || call!(SYS_mmap, null::<u8>(), 4096, libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0), EPERM),
    ("typing into a terminal", || call!(SYS_ioctl, 2, libc::TIOCSTI, null::<u8>()), EPERM),
    ("seccomp", || call!(SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &libc::SECCOMP_RET_ALLOW), EPERM),
    ("reading a file outside", || call!(SYS_openat, libc::AT_FDCWD, outside().as_ptr(), libc::O_RDONLY), libc::EACCES),
    ("writing a file outside", || call!(SYS_openat, libc::AT_FDCWD, outside().as_ptr(), libc::O_WRONLY), libc::EACCES),
    ("truncating a file outside", || call!(SYS_truncate, outside().as_ptr(), 0), EPERM),
    ("removing a file outside", || call!(SYS_unlinkat, libc::AT_FDCWD, outside().as_ptr(), 0), libc::EACCES),
    ("changing the mode of a file outside", || call!(SYS_fchmodat, libc::AT_FDCWD, outside().as_ptr(), 0o644), EPERM),
    ("changing the owner of a file outside", || call!(SYS_fchownat, libc::AT_FDCWD, outside().as_ptr(), -1, -1, 0), EPERM),
    ("making a set-user-ID file", || call!(SYS_openat, libc::AT_FDCWD, c"/proc/x".as_ptr(), libc::O_CREAT, 0o4755), EPERM),
    ("changing the mode of an open file", || call!(SYS_fchmod, 2, 0o644), EPERM),
    ("taking a descriptor of a process", || call!(SYS_pidfd_getfd, -1, 0, 0), EPERM),
    ("extended attributes", || call!(SYS_removexattr, outside().as_ptr(), c"user.x".as_ptr()), EPERM),
];

registers! {
    /// Writing the place of an attempt makes it.
    #[derive(Debug)]
    pub(crate) struct Intruder, enum Write {
        0x0 attempt: u32 => Attempt;
        0x4 errno: u32;
    }
}

impl RegisterModel for Intruder {
    type State = HasState;
    const KIND: &'static str = "intruder";
    const VERSION: u32 = 1;

    fn spec(&self) -> FunctionSpec {
        FunctionSpec::new(0x1234, 0x7e32).class(0xff_00_00).bar(0, Bar::memory32(4096))
    }

    fn write(&mut self, _cx: &Cx<Self>, write: Write) {
        let Write::Attempt(place) = write;
        self.attempt = place;
        let Some((_, attempt, _)) = ATTEMPTS.get(place as usize) else { return };
        self.errno = match attempt() {
            -1 => std::io::Error::last_os_error().raw_os_error().unwrap_or(-1).cast_unsigned(),
            _ => 0,
        };
    }
}

impl ConfiguredModel for Intruder {
    type Options = NoOptions;

    const SUMMARY: &'static str = "tries what the sandbox forbids";

    fn configured(NoOptions {}: NoOptions) -> vfiod_core::Result<Self> {
        Ok(Self::power_on())
    }
}
