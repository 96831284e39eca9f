//! `vfiod serve --sysfs`: a root for mdevctl comes and goes with the daemon.

mod process;

use std::fs;
use std::path::Path;

use process::{Daemon, bad, until, vfiod};
use rustix::process::Signal;

const UUID: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";

/// A configuration with a parent, whose definitions are kept.
fn configuration(directory: &Path) -> String {
    let path = directory.join("config.toml");
    let (sockets, definitions) = (directory.join("mdev"), directory.join("definitions"));
    let text = format!(
        "[parent.pins]\nmodel = \"gpio\"\n[mdev]\nsockets = {sockets:?}\n\
         definitions = {definitions:?}\n"
    );
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn can_mount() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !can {
        eprintln!("SKIPPED: only root mounts without help");
    }
    can
}

#[test]
fn a_root_for_mdevctl_comes_and_goes() {
    if !can_mount() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let config = configuration(directory.path());
    let root = directory.path().join("root");
    let start = || {
        let daemon = Daemon::start(vfiod(["serve", &config, "--sysfs", root.to_str().unwrap()]));
        until("the view", || root.join("sys/class/mdev_bus/pins").exists());
        daemon
    };
    let kind = root.join("sys/class/mdev_bus/pins/mdev_supported_types/gpio-16");
    let device = root.join("sys/bus/mdev/devices").join(UUID);
    let socket = directory.path().join("mdev").join(format!("{UUID}.sock"));

    let daemon = start();
    let definitions = fs::canonicalize(root.join("etc/mdevctl.d")).unwrap();
    assert_eq!(definitions, fs::canonicalize(directory.path().join("definitions")).unwrap());
    fs::write(kind.join("create"), UUID).unwrap();
    assert!(device.join("mdev_type").is_dir() && socket.exists());
    fs::write(device.join("inputs"), "7").unwrap();
    assert_eq!(fs::read_to_string(device.join("inputs")).unwrap(), "0x0007\n");

    // Another one, of its own definitions, finds the place taken, and leaves nothing behind.
    let other = tempfile::tempdir().unwrap();
    let said = bad(1, ["serve", &configuration(other.path()), "--sysfs", root.to_str().unwrap()]);
    assert!(said.contains("another vfiod"), "{said}");
    assert!(device.exists(), "the first one's view is as it was");
    drop(daemon);

    // Killed by that: its helper has unmounted.
    let is_empty = || fs::read_dir(root.join("sys")).is_ok_and(|mut files| files.next().is_none());
    until("the end of the mount", is_empty);
    // Without a helper the next daemon does.
    let unconfined = vfiod(["serve", &config, "--no-sandbox", "--sysfs", root.to_str().unwrap()]);
    let daemon = Daemon::start(unconfined);
    until("the view", || root.join("sys/class/mdev_bus/pins").exists());
    drop(daemon);
    assert!(fs::read_dir(root.join("sys")).is_err());
    let daemon = start();
    assert!(!device.exists(), "nobody had defined it");
    fs::write(kind.join("create"), UUID).unwrap();
    let (status, log) = daemon.terminate(Signal::TERM);
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(fs::read_dir(root.join("sys")).unwrap().count(), 0, "unmounted");
    assert!(!socket.exists());
}

#[test]
fn not_over_what_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let config = configuration(directory.path());
    let root = directory.path().join("root");
    fs::create_dir_all(root.join("sys/kernel")).unwrap();
    let said = bad(2, ["serve", &config, "--sysfs", root.to_str().unwrap()]);
    assert!(said.contains("root/sys is not empty"), "{said}");
    let said = bad(2, ["serve", "--device", "edu", "--sysfs", root.to_str().unwrap()]);
    assert!(said.contains("--sysfs"), "{said}");
}
