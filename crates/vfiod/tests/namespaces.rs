//! A daemon in a pid namespace of its own, as in a container: the process ids of its clients are all 0
//! to it, and they run as one user.

mod process;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use process::Daemon;
use process::api::ask;
use rustix::process::{PidfdFlags, getpid, pidfd_open};
use vfiod_wire::payload::SpaceOf;

const STRANGER: &str = "VFIOD_TEST_STRANGER";

/// Another process that has a device open.
struct Stranger {
    process: Child,
    space: SpaceOf,
}

impl Stranger {
    fn with(socket: &Path) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "has_a_device_open_for_another_test", "--nocapture"])
            .env(STRANGER, socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = lines.map(Result::unwrap).find_map(|line| {
            let numbers = line.strip_prefix("space ")?.split_once(' ')?;
            Some(SpaceOf { device: numbers.0.parse().unwrap(), file: numbers.1.parse().unwrap() })
        });
        Self { process, space: line.unwrap() }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Not a test of its own: what [`Stranger`] does.
#[test]
fn has_a_device_open_for_another_test() {
    let Some(socket) = std::env::var_os(STRANGER) else { return };
    let mut client = process::connect(socket).unwrap();
    let SpaceOf { device, file } = client.space().unwrap();
    println!("\nspace {device} {file}");
    let _ = std::io::stdin().lines().next();
}

/// Two functions in a slot, which are one set; `None` where no namespace can be made.
fn serve(directory: &Path) -> Option<(Daemon, [PathBuf; 3])> {
    let unshare = ["--map-root-user", "--pid", "--fork", "--kill-child"];
    let tried = Command::new("unshare").args(unshare).arg("true").status();
    if !tried.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no new pid namespace can be made here (unshare)");
        return None;
    }
    let paths = ["one", "two", "control"].map(|name| directory.join(name));
    let [one, two, control] = &paths;
    let text = format!(
        "[control]\nsocket = {control:?}\n\
         [bus.b]\nnumber = 1\nbridge = \"root/01.0\"\n[bus.root]\nnumber = 0\n\
         [slot.s]\nbus = \"b\"\nnumber = 2\n\
         [device.one]\nmodel = \"edu\"\nslot = \"s\"\nopen = \"multi\"\nsocket = {one:?}\n\
         [device.two]\nmodel = \"edu\"\nslot = \"s\"\nfunction = 1\nopen = \"multi\"\nsocket = {two:?}\n"
    );
    let config = directory.join("vfiod.toml");
    std::fs::write(&config, text).unwrap();
    let program = process::vfiod(["serve", config.to_str().unwrap()]);
    let mut command = Command::new("unshare");
    command.args(unshare).arg(program.get_program()).args(program.get_args());
    Some((Daemon::serving(command, &[one, two, control]), paths))
}

/// Whether the kernel tells processes apart (since Linux 6.9).
fn has_pidfs() -> bool {
    let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    rustix::fs::fstatfs(&pidfd).unwrap().f_type == 0x5049_4446
}

fn errno<T: std::fmt::Debug>(outcome: vfiod_client::Result<T>) -> Option<u32> {
    outcome.expect_err("it was not refused").remote_errno()
}

#[test]
fn strangers_of_one_user_outside_of_the_daemons_namespace_stay_strangers() {
    let directory = tempfile::tempdir().unwrap();
    let Some((_daemon, [one, two, control])) = serve(directory.path()) else { return };
    let mut mine = process::connect(&one).unwrap();
    let stranger = Stranger::with(&two);
    let (_, shown) = ask(&control, "GET", "devices/two", None).unwrap();
    assert!(shown.to_string().contains("\"pid\":0"), "{shown}");

    assert_eq!(errno(process::connect(&two)), Some(16), "another owner has it open");
    assert!(!mine.hot_reset_info().unwrap().allowed);
    assert_eq!(errno(mine.hot_reset()), Some(22), "a member is another owner's");
    assert_eq!(errno(mine.join_space(stranger.space)), Some(13), "it is another owner's space");

    drop(stranger);
    process::until("the stranger is gone", || mine.hot_reset_info().unwrap().allowed);
    mine.hot_reset().unwrap();
    if !has_pidfs() {
        assert_eq!(errno(process::connect(&one)), Some(16), "each connection is an owner");
        return;
    }
    let mut again = process::connect(&one).unwrap();
    let mut other = process::connect(&two).unwrap();
    other.join_space(mine.space().unwrap()).unwrap();
    again.hot_reset().unwrap();
}
