//! Somebody who may list a directory, and holds its lock: by `getdents64` into a page whose fault never
//! returns. No signal ends a call that waits for that lock.
#![allow(unsafe_code)]

mod process;
#[path = "process/stalling.rs"]
mod stalling;

use std::fs::File;
use std::mem::MaybeUninit;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use process::{Daemon, at, good, run, until, vfiod};
use rustix::fs::{Mode, OFlags, RawDir};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use rustix::process::Signal;
use stalling::Stalling;

const PAGE: usize = 4096;
const UUID: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
/// The directory that [`process_that_holds_the_lock`] is to list.
const LISTED: &str = "VFIOD_TEST_LISTED";

/// A directory whose lock another process holds: whatever looks at that one's memory may wait, too.
struct Held {
    holder: Child,
    stalling: Option<Stalling>,
}

impl Held {
    /// `None` where no FUSE file system can be mounted.
    fn new(directory: &Path, mount: &Path) -> Option<Self> {
        let stalling = Stalling::mount_unreadable(mount)?;
        let file: File = stalling.open();
        let holder = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "process_that_holds_the_lock"])
            .env(LISTED, directory)
            .stdin(file)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        until("the lock is held", || stalling.waiting() > 0);
        Some(Self { holder, stalling: Some(stalling) })
    }

    fn release(mut self) {
        assert!(self.holder.try_wait().unwrap().is_none(), "the lock was held all the time");
        drop(self.stalling.take());
        assert!(self.holder.wait().unwrap().success());
    }
}

/// What a process does that [`Held::new`] has started; otherwise nothing.
#[test]
fn process_that_holds_the_lock() {
    let Ok(directory) = std::env::var(LISTED) else { return };
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: a new mapping at an address of the kernel's choice, which stays until the process ends.
    let page = unsafe { mmap(std::ptr::null_mut(), PAGE, access, flags, std::io::stdin(), 0) };
    let page = page.unwrap().cast::<MaybeUninit<u8>>();
    // SAFETY: mapped as above. Nobody but the kernel looks at it.
    let bytes = unsafe { std::slice::from_raw_parts_mut(page, PAGE) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let directory = rustix::fs::open(directory, flags, Mode::empty()).unwrap();
    let mut entries = RawDir::new(directory, bytes);
    let listed = entries.next().unwrap().is_err();
    std::process::exit(if listed { 0 } else { 1 });
}

/// Two devices and a parent. The control socket is in a directory of its own. Sockets may also be made
/// above those of the devices.
fn serve(sockets: &Path, others: &Path) -> Daemon {
    let mut text = format!("[control]\nsocket = {:?}\n", others.join("control"));
    for name in ["stays", "goes"] {
        let socket = sockets.join(name);
        text += &format!("[device.{name}]\nmodel = \"edu\"\nsocket = {socket:?}\n");
    }
    text += &format!("[mdev]\nsockets = {sockets:?}\n[parent.p]\nmodel = \"edu\"\n");
    text += &format!("[sandbox]\npaths = [{:?}, {others:?}]\n", sockets.parent().unwrap());
    let path = others.join("vfiod.toml");
    std::fs::write(&path, text).unwrap();
    let command = vfiod(["serve", path.to_str().unwrap(), "--log", "info"]);
    Daemon::serving(command, &[&sockets.join("stays"), &others.join("control")])
}

fn add(control: &Path, name: &str, socket: &Path) -> Output {
    let socket = socket.to_str().unwrap();
    run(at(control, &["add", name, "--device", "edu", "--socket-path", socket]))
}

fn refused(output: &Output, directory: &Path) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{output:?}");
    assert!(said.contains(&format!("{} is held up", directory.display())), "{said}");
}

/// Asks the daemon to finish, which it does while the lock is held. What the kernel keeps of it then waits
/// for the lock.
fn finish(daemon: Daemon, held: Held) -> String {
    daemon.signal(Signal::TERM);
    until("the main thread has ended", || daemon.has_ended());
    held.release();
    let (status, log) = daemon.finish();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("finished"), "{log}");
    log
}

#[test]
fn sockets_directory_that_somebody_holds_up_keeps_only_what_is_new_from_being_made() {
    let (sockets, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (sockets, others) = (sockets.path(), others.path());
    let daemon = serve(sockets, others);
    let control = others.join("control");
    let Some(held) = Held::new(sockets, &others.join("mount")) else { return };
    for name in ["first", "second"] {
        refused(&add(&control, name, &sockets.join(name)), sockets);
        refused(&run(at(&control, &["create", "p", "edu-1", "--uuid", UUID])), sockets);
    }
    // What needs no new name goes on, and what is removed is gone but for its name.
    process::connect(sockets.join("stays")).unwrap().device_info().unwrap();
    good(at(&control, &["reset", "stays"]));
    good(at(&control, &["del", "goes"]));
    assert!(!good(at(&control, &["list"])).contains("goes"));
    assert!(process::connect(sockets.join("goes")).is_err(), "nobody listens");
    assert!(add(&control, "elsewhere", &others.join("elsewhere")).status.success());
    held.release();

    until("what was made late, or was to be removed, is gone", || {
        let names = std::fs::read_dir(sockets).unwrap();
        names.map(|name| name.unwrap().file_name()).eq(["stays"])
    });
    assert!(add(&control, "third", &sockets.join("third")).status.success());
    good(at(&control, &["create", "p", "edu-1", "--uuid", UUID]));
    let held = Held::new(sockets, &others.join("another")).unwrap();
    finish(daemon, held);
}

#[test]
fn directory_above_that_somebody_holds_up_matters_only_to_what_is_missing_in_it() {
    let (above, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (above, others) = (above.path(), others.path());
    let sockets = above.join("sockets");
    let daemon = serve(&sockets, others);
    let control = others.join("control");
    let Some(held) = Held::new(above, &others.join("mount")) else { return };
    assert!(add(&control, "new", &sockets.join("new")).status.success());
    good(at(&control, &["create", "p", "edu-1", "--uuid", UUID]));
    good(at(&control, &["remove", UUID]));
    good(at(&control, &["reload"]));
    good(at(&control, &["del", "goes"]));
    assert!(!sockets.join("goes").exists());
    let missing = above.join("missing");
    refused(&add(&control, "missing", &missing.join("socket")), &missing);
    process::connect(sockets.join("stays")).unwrap().device_info().unwrap();
    finish(daemon, held);
}

#[test]
fn directory_of_sockets_that_others_may_list_is_named_by_check_and_log() {
    use std::os::unix::fs::PermissionsExt;
    let (sockets, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (sockets, others) = (sockets.path(), others.path());
    let warning = format!("others may list {}", sockets.display());
    std::fs::set_permissions(others, PermissionsExt::from_mode(0o711)).unwrap();
    for (mode, warned) in [(0o711, false), (0o755, true)] {
        std::fs::set_permissions(sockets, PermissionsExt::from_mode(mode)).unwrap();
        let (status, log) = serve(sockets, others).terminate(Signal::TERM);
        assert_eq!(status.code(), Some(0), "{log}");
        assert_eq!(log.contains("others may list this directory"), warned, "{mode:o}: {log}");
        let file = others.join("vfiod.toml");
        let checked = run(["serve", "--check", file.to_str().unwrap()]);
        assert!(checked.status.success(), "{checked:?}");
        let said = String::from_utf8_lossy(&checked.stderr);
        assert_eq!(said.contains(&warning), warned, "{mode:o}: {said}");
    }
}
