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
    serve_with(sockets, others, None)
}

fn serve_with(sockets: &Path, others: &Path, definitions: Option<&Path>) -> Daemon {
    let mut text = format!("[control]\nsocket = {:?}\n", others.join("control"));
    for name in ["stays", "goes"] {
        let socket = sockets.join(name);
        text += &format!("[device.{name}]\nmodel = \"edu\"\nsocket = {socket:?}\n");
    }
    let definitions = definitions.map(|path| format!("definitions = {path:?}\n"));
    let definitions = definitions.unwrap_or_default();
    text += &format!("[mdev]\nsockets = {sockets:?}\n{definitions}[parent.p]\nmodel = \"edu\"\n");
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
fn directory_that_is_missing_in_one_that_somebody_holds_up_keeps_no_other_change_waiting() {
    let (above, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (above, others) = (above.path(), others.path());
    let daemon = serve(&above.join("sockets"), others);
    let control = others.join("control");
    let Some(held) = Held::new(above, &others.join("mount")) else { return };
    for (name, missing) in [("a", "missing"), ("b", "missing/below"), ("c", "another")] {
        let missing = above.join(missing);
        refused(&add(&control, "missing", &missing.join("socket")), &missing);
        let added = add(&control, name, &others.join(name));
        assert!(added.status.success(), "{added:?}");
    }
    finish(daemon, held);
}

#[test]
fn definitions_that_somebody_holds_up_keep_nothing_else_from_being_managed() {
    let (directory, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (definitions, others) = (directory.path().join("definitions"), others.path());
    let control = others.join("control");
    let text = format!(
        "[control]\nsocket = {control:?}\n[device.d]\nmodel = \"edu\"\nsocket = {:?}\n\
         [mdev]\nsockets = {:?}\ndefinitions = {definitions:?}\n[parent.p]\nmodel = \"edu\"\n",
        others.join("d"),
        others.join("mdev")
    );
    let file = others.join("vfiod.toml");
    std::fs::write(&file, text).unwrap();
    let start = || {
        let command = vfiod(["serve", file.to_str().unwrap(), "--log", "info"]);
        Daemon::serving(command, &[&others.join("d"), &control])
    };
    let daemon = start();
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&definitions).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");

    let Some(held) = Held::new(&definitions, &others.join("mount")) else { return };
    for _ in 0..2 {
        refused(&run(at(&control, &["define", "p", "edu-1", "--uuid", UUID])), &definitions);
    }
    let _ = run(at(&control, &["list", "definitions"]));
    good(at(&control, &["reset", "d"]));
    assert!(add(&control, "e", &others.join("e")).status.success());
    good(at(&control, &["create", "p", "edu-1"]));
    daemon.signal(Signal::TERM);
    until("the main thread has ended", || daemon.has_ended());
    // What is left of it in the kernel keeps nobody from its definitions.
    let next = start();
    held.release();
    let (status, log) = daemon.finish();
    assert_eq!(status.code(), Some(0), "{log}");
    until("what was begun has been done", || {
        run(at(&control, &["define", "p", "edu-1"])).status.success()
    });
    next.terminate(Signal::TERM);
}

#[test]
fn link_and_image_in_a_directory_that_somebody_holds_up_are_refused_in_time() {
    let (files, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (files, others) = (files.path(), others.path());
    let at_others = |name: &str| others.join(name);
    let control = at_others("control");
    let image = files.join("disk.img");
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let text = format!(
        "[control]\nsocket = {control:?}\n[device.d]\nmodel = \"edu\"\nsocket = {:?}\n\
         [device.card]\nmodel = \"serial\"\nsocket = {:?}\n\
         options = {{ backend = \"pty\", link0 = {:?} }}\n[sandbox]\nmodels = [\"nvme\"]\n",
        at_others("d"),
        at_others("card"),
        files.join("link")
    );
    let file = at_others("vfiod.toml");
    std::fs::write(&file, text).unwrap();
    let command = vfiod(["serve", file.to_str().unwrap(), "--log", "info"]);
    let daemon = Daemon::serving(command, &[&at_others("d"), &control]);
    let Some(held) = Held::new(files, &at_others("mount")) else { return };

    for _ in 0..2 {
        let (socket, option) = (at_others("disk"), format!("file={}", image.display()));
        let args = ["add", "disk", "--device", "nvme", "--option", &option, "--socket-path"];
        refused(&run(at(&control, &[&args[..], &[socket.to_str().unwrap()]].concat())), files);
        assert!(!good(at(&control, &["list"])).contains("disk"));
        let opened = process::connect(at_others("card")).map(drop).unwrap_err();
        let timed_out = rustix::io::Errno::TIMEDOUT.raw_os_error().unsigned_abs();
        assert!(
            matches!(opened, vfiod_client::Error::Remote { errno, .. } if errno == timed_out),
            "{opened}"
        );
        good(at(&control, &["reset", "d"]));
    }
    assert!(add(&control, "e", &at_others("e")).status.success());
    held.release();
    until("the link can be made", || process::connect(at_others("card")).is_ok());
    until("the link is gone", || std::fs::symlink_metadata(files.join("link")).is_err());

    let card = process::connect(at_others("card")).unwrap();
    assert!(std::fs::symlink_metadata(files.join("link")).is_ok());
    let held = Held::new(files, &at_others("another")).unwrap();
    drop(card);
    finish(daemon, held);
}

#[test]
fn start_below_a_directory_that_somebody_holds_up_is_refused_with_its_name() {
    let (above, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (above, others) = (above.path(), others.path());
    let missing = above.join("missing");
    let configurations = [
        format!("[device.d]\nmodel = \"edu\"\nsocket = {:?}\n", missing.join("socket")),
        format!(
            "[control]\nsocket = {:?}\n[mdev]\nsysfs = {above:?}\ndefinitions = {missing:?}\n",
            others.join("control")
        ),
    ];
    for (number, text) in configurations.into_iter().enumerate() {
        let file = others.join("vfiod.toml");
        std::fs::write(&file, text).unwrap();
        let mount = others.join(number.to_string());
        // Dropped last: it ends once the lock is free.
        let daemon;
        let Some(held) = Held::new(above, &mount) else { return };
        daemon = Daemon::start(vfiod(["serve", file.to_str().unwrap(), "--log", "info"]));
        until("the main thread has ended", || daemon.has_ended());
        held.release();
        let (status, said) = daemon.finish();
        assert!(!status.success(), "{said}");
        assert!(said.contains("is held up") && said.contains(above.to_str().unwrap()), "{said}");
    }
}

#[test]
fn directory_that_others_may_list_is_named_by_check_and_log() {
    use std::os::unix::fs::PermissionsExt;
    let (sockets, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (sockets, others) = (sockets.path(), others.path());
    let definitions = others.join("definitions");
    let parent = definitions.join("p");
    std::fs::create_dir_all(&parent).unwrap();
    let warnings = [(sockets, "sockets"), (&definitions, "definitions"), (&parent, "definitions")];
    std::fs::set_permissions(others, PermissionsExt::from_mode(0o711)).unwrap();
    for (mode, warned) in [(0o711, false), (0o755, true)] {
        for (directory, _) in warnings {
            std::fs::set_permissions(directory, PermissionsExt::from_mode(mode)).unwrap();
        }
        let (status, log) = serve_with(sockets, others, Some(&definitions)).terminate(Signal::TERM);
        assert_eq!(status.code(), Some(0), "{log}");
        for (directory, holds) in warnings {
            let named = format!("directory={}", directory.display());
            let what = format!("others may list this directory of {holds},");
            let is_it = |line: &str| line.contains(&what) && line.ends_with(&named);
            assert_eq!(log.lines().any(is_it), warned, "{mode:o}: {log}");
        }
        let file = others.join("vfiod.toml");
        let checked = run(["serve", "--check", file.to_str().unwrap()]);
        assert!(checked.status.success(), "{checked:?}");
        let said = String::from_utf8_lossy(&checked.stderr);
        for (directory, holds) in warnings {
            let warning = format!("others may list {}, and so keep {holds}", directory.display());
            assert_eq!(said.contains(&warning), warned, "{mode:o}: {said}");
        }
    }
}
