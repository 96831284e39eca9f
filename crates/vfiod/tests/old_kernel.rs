//! A daemon on kernels that do not tell client processes apart: before Linux 6.5, and before 6.9. Their
//! answers are given by a seccomp filter that the daemon inherits.

mod process;

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use process::Daemon;
use rustix::process::Signal;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// `SO_PEERPIDFD` of the kernel's `asm-generic/socket.h`.
const SO_PEERPIDFD: u64 = 77;

/// Which system call an old kernel answers otherwise, and how.
struct OldKernel {
    name: &'static str,
    call: i64,
    rules: Vec<SeccompRule>,
    errno: i32,
}

/// Before Linux 6.5 there is no `SO_PEERPIDFD`.
fn before_peer_pidfds() -> OldKernel {
    let option = SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, SO_PEERPIDFD);
    OldKernel {
        name: "before_peer_pidfds",
        call: libc::SYS_getsockopt,
        rules: vec![SeccompRule::new(vec![option.unwrap()]).unwrap()],
        errno: libc::ENOPROTOOPT,
    }
}

/// Before Linux 6.9 the file system of a pidfd is not pidfs. A filter cannot give another type: it is
/// not told at all.
fn before_pidfs() -> OldKernel {
    OldKernel {
        name: "before_pidfs",
        call: libc::SYS_fstatfs,
        rules: Vec::new(),
        errno: libc::ENOSYS,
    }
}

const CONFIG: &str = "VFIOD_TEST_CONFIG";
const KERNEL: &str = "VFIOD_TEST_KERNEL";

/// Not a test of its own: becomes the daemon, below a filter.
#[test]
fn becomes_a_daemon_on_an_old_kernel_for_another_test() {
    let Ok(name) = std::env::var(KERNEL) else { return };
    let mut kernels = [before_peer_pidfds(), before_pidfs()].into_iter();
    let kernel = kernels.find(|kernel| kernel.name == name).unwrap();
    let filter = SeccompFilter::new(
        BTreeMap::from([(kernel.call, kernel.rules)]),
        SeccompAction::Allow,
        SeccompAction::Errno(kernel.errno.cast_unsigned()),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    seccompiler::apply_filter(&BpfProgram::try_from(filter.unwrap()).unwrap()).unwrap();
    let config = std::env::var(CONFIG).unwrap();
    panic!("{}", process::vfiod(["serve", &config]).exec());
}

fn serve(directory: &Path, kernel: &OldKernel, sockets: &[&Path; 2]) -> Daemon {
    let [one, two] = sockets;
    let text = format!(
        "[bus.b]\nnumber = 1\nbridge = \"root/01.0\"\n[bus.root]\nnumber = 0\n\
         [slot.s]\nbus = \"b\"\nnumber = 2\n\
         [device.one]\nmodel = \"edu\"\nslot = \"s\"\nopen = \"multi\"\nsocket = {one:?}\n\
         [device.two]\nmodel = \"edu\"\nslot = \"s\"\nfunction = 1\nopen = \"multi\"\nsocket = {two:?}\n"
    );
    let config = directory.join("vfiod.toml");
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "becomes_a_daemon_on_an_old_kernel_for_another_test", "--nocapture"])
        .env(KERNEL, kernel.name)
        .env(CONFIG, &config);
    Daemon::serving(command, sockets)
}

fn errno<T: std::fmt::Debug>(outcome: vfiod_client::Result<T>) -> Option<u32> {
    outcome.expect_err("it was not refused").remote_errno()
}

/// A second open of a device and a hot reset of its set, from this same process.
fn connections_are_strangers(kernel: &OldKernel) {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (directory.path().join("one"), directory.path().join("two"));
    let daemon = serve(directory.path(), kernel, &[&one, &two]);

    let mut first = process::connect(&one).unwrap();
    first.hot_reset().unwrap();
    assert_eq!(errno(process::connect(&one)), Some(16), "a second open");
    let second = process::connect(&two).unwrap();
    assert_eq!(errno(first.hot_reset()), Some(22), "a hot reset across connections");
    drop(second);
    process::until("the second has gone", || first.hot_reset_info().unwrap().allowed);
    assert_eq!(errno(process::connect(&one)), Some(16), "another second open");

    let (_, log) = daemon.terminate(Signal::TERM);
    let told = log.matches("does not tell client processes apart").count();
    assert_eq!(told, 1, "how often it was told: {log}");
}

#[test]
fn connections_are_strangers_where_the_kernel_has_no_peer_pidfds() {
    connections_are_strangers(&before_peer_pidfds());
}

#[test]
fn connections_are_strangers_where_all_pidfds_share_one_inode() {
    connections_are_strangers(&before_pidfs());
}
