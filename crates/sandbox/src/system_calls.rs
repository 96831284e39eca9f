//! System calls: seccomp, with a list of what is allowed.
//!
//! Everything else fails with `EPERM`, and with `ENOSYS` where programs probe for a call and have
//! another way. Nothing kills the process but a system call of another architecture's table.
//!
//! # What a list of numbers cannot do
//! The filter sees arguments, but not the memory that they point to: it cannot tell one path from
//! another (landlock does), nor the address that a socket is connected to.

use std::collections::{BTreeMap, BTreeSet};

use rustix::io::Errno;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq, Ne};
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

/// Rules by number: a call is allowed if one of its rules matches, or if it has none.
type RulesByNumber = BTreeMap<i64, Vec<SeccompRule>>;

/// Whether an error says that the kernel, or the compiler of filters for this architecture, cannot
/// restrict system calls.
pub(crate) fn is_missing(error: &Error) -> bool {
    let missing = [Errno::INVAL.raw_os_error(), Errno::NOSYS.raw_os_error()];
    match error {
        Error::Seccomp(error) => error.raw_os_error().is_some_and(|errno| missing.contains(&errno)),
        Error::Backend(BackendError::InvalidTargetArch(_)) => true,
        _ => false,
    }
}

/// Restricts every thread of the process.
///
/// # Errors
/// Errors of the kernel; see [`is_missing`].
pub(crate) fn restrict(calls: &Calls) -> Result<(), Error> {
    let mut rules = allowed()?;
    modes(&mut rules, calls.modes.as_ref())?;
    rules.extend(calls.more.iter().map(|number| (*number, Vec::new())));
    if calls.changes_owners {
        rules.insert(libc::SYS_fchownat, Vec::new());
        #[cfg(target_arch = "x86_64")]
        rules.extend([libc::SYS_chown, libc::SYS_lchown].map(|number| (number, Vec::new())));
    }
    rules.extend(none(AT_THE_START));
    let probed: Vec<_> = probed().filter(|number| !rules.contains_key(number)).collect();
    install(rules, SeccompAction::Allow, refuse(Errno::PERM))?;
    // Where both refuse a call, the kernel takes the errno of the filter that was installed last.
    install(none(&probed), refuse(Errno::NOSYS), SeccompAction::Allow)
}

/// Takes what only the start of the process needs from every thread, as the last filter. `connects`:
/// sockets can still be connected.
///
/// # Errors
/// As [`restrict`].
pub(crate) fn restrict_finally(connects: bool) -> Result<(), Error> {
    let mut rules = none(AT_THE_START);
    if !connects {
        rules.insert(libc::SYS_connect, Vec::new());
    }
    install(rules, refuse(Errno::PERM), SeccompAction::Allow)
}

/// What differs between sandboxes.
#[derive(Debug)]
pub(crate) struct Calls {
    /// Calls beyond those of every daemon.
    pub(crate) more: BTreeSet<i64>,
    pub(crate) changes_owners: bool,
    /// The modes that files may be given; `None`: any without the special bits.
    pub(crate) modes: Option<BTreeSet<u32>>,
}

fn refuse(errno: Errno) -> SeccompAction {
    SeccompAction::Errno(errno.raw_os_error().unsigned_abs())
}

/// Rules for calls with any arguments.
fn none(numbers: &[i64]) -> RulesByNumber {
    numbers.iter().map(|number| (*number, Vec::new())).collect()
}

fn install(
    rules: RulesByNumber,
    if_listed: SeccompAction,
    otherwise: SeccompAction,
) -> Result<(), Error> {
    let architecture: TargetArch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, otherwise, if_listed, architecture)?;
    let program: BpfProgram = filter.try_into()?;
    seccompiler::apply_filter_all_threads(&program)
}

/// Adds a rule for a call: it is allowed if all these conditions hold.
fn only(
    rules: &mut RulesByNumber,
    number: i64,
    conditions: &[Condition],
) -> Result<(), BackendError> {
    let conditions = conditions.iter().map(|(argument, operator, value)| {
        SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, operator.clone(), *value)
    });
    let rule = SeccompRule::new(conditions.collect::<Result<_, _>>()?)?;
    rules.entry(number).or_default().push(rule);
    Ok(())
}

/// No file is made or becomes set-user-ID. Landlock does not restrict changes of mode, so these are also
/// limited to `modes`.
fn modes(rules: &mut RulesByNumber, modes: Option<&BTreeSet<u32>>) -> Result<(), BackendError> {
    // Where the mode is among the arguments.
    let makes = [
        (libc::SYS_openat, 3),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_open, 2),
    ];
    let changes = [
        (libc::SYS_fchmodat, 2),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_chmod, 1),
    ];
    let any = |place| [(place, MaskedEq(0o7000), 0)];
    // Where no file is made, the argument is not looked at by the kernel, and may be anything.
    let make = bits(libc::O_CREAT | (libc::O_TMPFILE & !libc::O_DIRECTORY));
    for (number, place) in makes {
        only(rules, number, &any(place))?;
        only(rules, number, &[(place - 1, MaskedEq(make), 0)])?;
    }
    for (number, place) in changes {
        match modes {
            None => only(rules, number, &any(place))?,
            Some(modes) => {
                for mode in modes {
                    only(rules, number, &[(place, Eq, u64::from(*mode))])?;
                }
            }
        }
    }
    Ok(())
}

/// What a daemon needs, whatever its models.
fn allowed() -> Result<RulesByNumber, BackendError> {
    let mut rules: RulesByNumber =
        ALWAYS.iter().flat_map(|list| *list).map(|number| (*number, Vec::new())).collect();
    let own = u64::from(std::process::id());
    let mut only = |number, conditions: &[Condition]| only(&mut rules, number, conditions);
    // Threads, but no processes. clone3 has its flags in memory, and glibc has another way.
    let thread = bits(libc::CLONE_THREAD);
    only(libc::SYS_clone, &[(0, MaskedEq(thread), thread)])?;
    // No code is made or loaded any more.
    let execute = bits(libc::PROT_EXEC);
    only(libc::SYS_mmap, &[(2, MaskedEq(execute), 0)])?;
    only(libc::SYS_mprotect, &[(2, MaskedEq(execute), 0)])?;
    // Stream sockets of the UNIX domain.
    let (unix, kind) = (bits(libc::AF_UNIX), 0xf);
    for number in [libc::SYS_socket, libc::SYS_socketpair] {
        let stream = bits(libc::SOCK_STREAM);
        only(number, &[(0, Eq, unix), (1, MaskedEq(kind), stream)])?;
    }
    // Nothing is typed into the terminal that the daemon was started from.
    only(libc::SYS_ioctl, &[(1, Ne, TIOCSTI), (1, Ne, TIOCLINUX)])?;
    // Signals to this process only. Those to threads name the process, too.
    for number in [libc::SYS_kill, libc::SYS_tgkill] {
        only(number, &[(0, Eq, own)])?;
    }
    // Its own limits only.
    only(libc::SYS_prlimit64, &[(0, Eq, 0)])?;
    for option in [libc::PR_SET_NAME, libc::PR_GET_NAME, PR_SET_VMA, libc::PR_SET_NO_NEW_PRIVS] {
        only(libc::SYS_prctl, &[(0, Eq, bits(option))])?;
    }
    // Faults of this process's own code only.
    only(libc::SYS_userfaultfd, &[(0, MaskedEq(UFFD_USER_MODE_ONLY), UFFD_USER_MODE_ONLY)])?;
    Ok(rules)
}

/// The place of an argument, how it is compared, and with what.
type Condition = (u8, SeccompCmpOp, u64);

/// Typing into a terminal.
const TIOCSTI: u64 = 0x5412;
/// Pasting into a console, among other things.
const TIOCLINUX: u64 = 0x541c;
/// How glibc names its memory.
const PR_SET_VMA: i32 = 0x5356_4d41;
const UFFD_USER_MODE_ONLY: u64 = 1;

fn bits(value: i32) -> u64 {
    u64::from(value.cast_unsigned())
}

/// What libraries probe for, and do without: calls that are newer than they are or whose arguments
/// the filter cannot see.
fn probed() -> impl Iterator<Item = i64> {
    let io_uring =
        [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
    // From close_range on every architecture has the same numbers, also those that nobody has used yet.
    std::iter::once(libc::SYS_clone3).chain(io_uring).chain(libc::SYS_close_range..=511)
}

/// Calls that the process makes only until it serves: how a descriptor that was passed by number is
/// taken over (of other processes landlock refuses it), and the last filter itself.
const AT_THE_START: &[i64] = &[libc::SYS_pidfd_open, libc::SYS_pidfd_getfd, libc::SYS_seccomp];

/// Calls that are allowed with any arguments.
#[rustfmt::skip]
const ALWAYS: &[&[i64]] = &[
    // Descriptors.
    &[
        libc::SYS_read, libc::SYS_write, libc::SYS_readv, libc::SYS_writev,
        libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_preadv, libc::SYS_pwritev,
        libc::SYS_preadv2, libc::SYS_pwritev2, libc::SYS_lseek, libc::SYS_close,
        libc::SYS_close_range, libc::SYS_dup, libc::SYS_dup3, libc::SYS_fcntl,
        libc::SYS_eventfd2, libc::SYS_pipe2, libc::SYS_memfd_create,
        libc::SYS_timerfd_create, libc::SYS_timerfd_settime, libc::SYS_timerfd_gettime,
        libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2,
        libc::SYS_ppoll, libc::SYS_pselect6,
    ],
    // Sockets.
    &[
        libc::SYS_bind, libc::SYS_listen, libc::SYS_accept, libc::SYS_accept4, libc::SYS_connect,
        libc::SYS_getsockname, libc::SYS_getpeername, libc::SYS_getsockopt, libc::SYS_setsockopt,
        libc::SYS_shutdown, libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_sendmsg,
        libc::SYS_recvmsg, libc::SYS_sendmmsg, libc::SYS_recvmmsg,
    ],
    // Files, which landlock restricts.
    &[
        libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx,
        libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_readlinkat, libc::SYS_statfs,
        libc::SYS_fstatfs, libc::SYS_getdents64, libc::SYS_getcwd, libc::SYS_umask,
        libc::SYS_mkdirat, libc::SYS_unlinkat, libc::SYS_renameat2, libc::SYS_linkat,
        libc::SYS_symlinkat, libc::SYS_ftruncate, libc::SYS_fallocate, libc::SYS_fadvise64,
        libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_sync_file_range, libc::SYS_flock,
        libc::SYS_copy_file_range,
    ],
    // Memory.
    &[
        libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise, libc::SYS_brk, libc::SYS_membarrier,
        libc::SYS_mincore, libc::SYS_mlock, libc::SYS_mlock2, libc::SYS_munlock, libc::SYS_msync,
    ],
    // Threads, signals, time.
    &[
        libc::SYS_futex, libc::SYS_futex_waitv, libc::SYS_set_robust_list, libc::SYS_get_robust_list,
        libc::SYS_rseq, libc::SYS_set_tid_address, libc::SYS_exit, libc::SYS_exit_group,
        libc::SYS_sched_yield, libc::SYS_sched_getaffinity, libc::SYS_sched_setaffinity,
        libc::SYS_sched_getparam, libc::SYS_sched_getscheduler, libc::SYS_getcpu,
        libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn,
        libc::SYS_rt_sigpending, libc::SYS_rt_sigtimedwait, libc::SYS_sigaltstack,
        libc::SYS_restart_syscall, libc::SYS_nanosleep, libc::SYS_clock_nanosleep,
        libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_gettimeofday, libc::SYS_times,
        libc::SYS_getrandom, libc::SYS_wait4, libc::SYS_waitid,
    ],
    // What the process is.
    &[
        libc::SYS_getpid, libc::SYS_gettid, libc::SYS_getppid, libc::SYS_getpgid, libc::SYS_getuid,
        libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid, libc::SYS_getgroups,
        libc::SYS_getresuid, libc::SYS_getresgid, libc::SYS_getrusage, libc::SYS_uname,
        libc::SYS_sysinfo,
    ],
    OLD,
];

/// The older forms of some of these calls, which glibc uses on this architecture.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLD: &[i64] = &[
    libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_readlink,
    libc::SYS_mkdir, libc::SYS_rmdir, libc::SYS_unlink, libc::SYS_rename, libc::SYS_renameat,
    libc::SYS_link, libc::SYS_symlink, libc::SYS_dup2, libc::SYS_pipe,
    libc::SYS_poll, libc::SYS_select, libc::SYS_epoll_create, libc::SYS_epoll_wait,
    libc::SYS_eventfd, libc::SYS_getrlimit, libc::SYS_setrlimit, libc::SYS_time, libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[i64] = &[];
