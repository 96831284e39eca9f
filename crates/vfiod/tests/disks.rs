//! Disks as mediated devices, from `examples/disks.toml`: they are made, used, limited, found again after the
//! daemon was killed, and kept or deleted.

mod process;

use std::fs::{File, set_permissions, write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use process::nvme::connect;
use process::random::Random;
use process::{Daemon, bad, good, run, until, vfiod, where_little_fits};
use rustix::process::Signal;
use vfiod_nvme_driver::{Controller, Data, Waiting, opcode};

const UUID: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
const OTHER: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1002";
/// An account without rights.
const NOBODY: u32 = 65534;
/// How often the daemon is killed while it makes a disk.
const KILLS: u32 = 10;

struct Rig {
    directory: tempfile::TempDir,
}

impl Rig {
    /// The example, in a directory of its own, changed.
    fn new(change: impl FnOnce(String) -> String) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let example = std::fs::read_to_string(process::workspace("examples/disks.toml")).unwrap();
        let place = directory.path().join("vfiod").display().to_string();
        let text = change(example.replace("/tmp/vfiod", &place));
        std::fs::write(directory.path().join("disks.toml"), text).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("vfiod").join(name)
    }

    fn config(&self) -> PathBuf {
        self.directory.path().join("disks.toml")
    }

    fn serve(&self) -> Daemon {
        let config = self.config();
        let command = vfiod(["--log", "error", "serve", config.to_str().unwrap()]);
        Daemon::serving(command, &[&self.path("control.sock")])
    }

    /// The daemon, run by somebody whom modes of directories bind: by them root is not.
    fn serve_bound_by_modes(&self) -> Daemon {
        let (config, mut command) = (self.config(), vfiod(["--log", "error", "serve"]));
        command.arg(&config);
        if rustix::process::geteuid().is_root() {
            let program = self.directory.path().join("program");
            process::copy_program(&program);
            for path in [self.directory.path(), &config] {
                std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
            let mut other = Command::new(program);
            other.args(command.get_args()).uid(NOBODY).gid(NOBODY);
            command = other;
        }
        Daemon::serving(command, &[&self.path("control.sock")])
    }

    fn args(&self, args: &[&str]) -> Vec<String> {
        process::at(&self.path("control.sock"), args)
    }

    fn good(&self, args: &[&str]) -> String {
        good(self.args(args))
    }

    fn bad(&self, code: i32, args: &[&str]) -> String {
        bad(code, self.args(args))
    }

    fn connect(&self, uuid: &str) -> Controller {
        connect(&self.path("mdev").join(format!("{uuid}.sock")))
    }

    /// Removes an instance whose client has gone.
    fn remove(&self, uuid: &str) {
        self.good(&["remove", uuid, "--deadline", "60s"]);
        until("the end of the instance", || !self.good(&["list", "instances"]).contains(uuid));
    }

    /// The names of the files of disks.
    fn files(&self) -> Vec<String> {
        names(&self.path("disks"))
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Serial number, and the identifiers of the namespace.
fn who(controller: &mut Controller) -> (String, Vec<u8>) {
    let serial = controller.info().serial.clone();
    assert_eq!(controller.namespaces().unwrap(), [1]);
    (serial, controller.identify(3, 1).unwrap())
}

#[test]
fn defined_disk_is_the_same_after_a_kill_and_goes_when_it_is_to() {
    let rig = Rig::new(|text| text);
    let daemon = rig.serve();
    let types = rig.good(&["types"]);
    for (name, available) in [("small", 20), ("large", 2), ("scratch", 20)] {
        let line = types.lines().find(|line| line.contains(&format!(" {name} "))).unwrap();
        assert!(line.contains(&format!(" {available} ")), "{line}");
    }
    rig.good(&["define", "disks", "small", "--auto", "--uuid", UUID]);
    assert_eq!(rig.files(), [""; 0], "a definition has no disk before it is started");
    rig.good(&["start", UUID]);
    let (image, pattern) = (rig.path("disks").join(format!("{UUID}.img")), vec![0x5a; 4096]);
    assert_eq!(std::fs::metadata(&image).unwrap().len(), 1 << 30);
    let mut controller = rig.connect(UUID);
    let before = who(&mut controller);
    let disk = controller.namespace(1).unwrap();
    let mut queue = controller.create_queue(8, Waiting::Polling).unwrap();
    let buffer = controller.memory().allocate(4096).unwrap();
    buffer.write(0, &pattern);
    queue.write(&disk, 8, Data::of(&buffer)).unwrap();
    drop((queue, controller));

    let (status, said) = daemon.terminate(Signal::KILL);
    assert!(!status.success() && said.is_empty(), "{said}");
    let daemon = rig.serve();
    let mut controller = rig.connect(UUID);
    assert_eq!(who(&mut controller), before);
    let mut queue = controller.create_queue(8, Waiting::Polling).unwrap();
    let buffer = controller.memory().allocate(4096).unwrap();
    queue.read(&disk, 8, Data::of(&buffer)).unwrap();
    let mut found = vec![0; 4096];
    buffer.read(0, &mut found);
    assert_eq!(found, pattern);
    let shown = rig.good(&["show", UUID]);
    for line in [&format!("serial: {}", before.0), "iops: 500", "on remove: keep"] {
        assert!(shown.contains(line), "{shown}");
    }
    drop((queue, controller));

    rig.remove(UUID);
    assert!(image.exists());
    rig.good(&["start", UUID]);
    assert_eq!(who(&mut rig.connect(UUID)), before);
    rig.good(&["modify", UUID, "--live", "-a", "on_remove=delete"]);
    rig.remove(UUID);
    assert_eq!(rig.files(), [""; 0]);
    // Another disk is made where the definition had one.
    rig.good(&["start", UUID]);
    assert_ne!(who(&mut rig.connect(UUID)).0, before.0);

    // What ends with the daemon is not removed.
    rig.good(&["create", "disks", "scratch", "--uuid", OTHER]);
    let (status, said) = daemon.terminate(Signal::TERM);
    assert!(status.success(), "{said}");
    assert!(rig.files().contains(&format!("{OTHER}.img")));
    let _daemon = rig.serve();
    rig.good(&["create", "disks", "scratch", "--uuid", OTHER]);
    rig.remove(OTHER);
    let left = [format!("{UUID}.img"), format!("{UUID}.img.vfiod")];
    assert_eq!(rig.files(), left);
}

/// A limit that lets the next command begin in an hour: what waits for that is let go by another limit.
#[test]
fn limits_change_while_commands_wait_for_them() {
    let rig = Rig::new(|text| text);
    let _daemon = rig.serve();
    rig.good(&["create", "disks", "scratch", "--uuid", UUID, "-a", "bandwidth=1"]);
    let mut controller = rig.connect(UUID);
    let disk = controller.namespace(1).unwrap();
    let buffers: Vec<_> = (0..3).map(|_| controller.memory().allocate(4096).unwrap()).collect();
    let mut queues: Vec<_> =
        (0..3).map(|_| controller.create_queue(8, Waiting::Polling).unwrap()).collect();
    for (queue, buffer) in queues.iter_mut().zip(&buffers) {
        let data = Data::of(buffer);
        let read = disk.transfer(opcode::READ, 0, &data).unwrap();
        queue.submit(read, Some(data)).unwrap();
        queue.ring().unwrap();
    }
    let mut done = 0;
    let mut poll = |queues: &mut [vfiod_nvme_driver::Queue]| {
        for queue in queues {
            if let Some(end) = queue.poll().unwrap() {
                assert!(end.status.is_success());
                done += 1;
            }
        }
        done
    };
    until("the first one", || poll(&mut queues) > 0);
    // The others stay where they are, and delay nothing else.
    for _ in 0..20 {
        assert_eq!(controller.namespaces().unwrap(), [1]);
        assert_eq!(poll(&mut queues), 1);
    }
    let said = rig.bad(2, &["modify", UUID, "--live", "-a", "iops=many"]);
    assert!(said.contains("must be a number from 0 to 2^64 - 1"), "{said}");
    rig.good(&["modify", UUID, "--live", "-a", "bandwidth=0"]);
    until("all", || poll(&mut queues) == 3);
}

/// Kills the daemon while it makes a disk: whatever it leaves, the disk can be made afterwards.
#[test]
fn daemon_killed_while_it_makes_a_disk_leaves_nothing_in_the_way() {
    let rig = Rig::new(|text| text);
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut left = Vec::new();
    for _ in 0..KILLS {
        let daemon = rig.serve();
        let mut create = vfiod(rig.args(&["create", "disks", "scratch", "--uuid", UUID]));
        let mut create = create.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Somewhere between before and after.
        let (socket, mut looks) =
            (rig.path("mdev").join(format!("{UUID}.sock")), random.below(400));
        while !socket.exists() && (looks > 0 || rig.files().is_empty()) {
            looks = looks.saturating_sub(u64::from(!rig.files().is_empty()));
        }
        daemon.terminate(Signal::KILL);
        create.wait().unwrap();
        left.push(rig.files().len());
        let daemon = rig.serve();
        rig.good(&["create", "disks", "scratch", "--uuid", UUID]);
        let disk = rig.connect(UUID);
        drop(disk);
        rig.remove(UUID);
        assert_eq!(rig.files(), [""; 0]);
        drop(daemon);
    }
    assert!(left.iter().any(|files| *files > 0), "{left:?}: it was never amid it");
}

/// No space for all of a disk: that is the reason that is told, and nothing is left.
#[test]
fn disk_that_does_not_fit_is_refused_and_leaves_nothing() {
    let probe = tempfile::tempdir().unwrap();
    if where_little_fits(probe.path(), "size=8m,mode=0700").is_none() {
        return;
    }
    let rig = Rig::new(|text| text);
    let disks = rig.path("disks");
    std::fs::create_dir_all(&disks).unwrap();
    let mut command: Command = where_little_fits(&disks, "size=8m,mode=0700").unwrap();
    command.arg(env!("CARGO_BIN_EXE_vfiod")).args(["--log", "error", "serve"]).arg(rig.config());
    let daemon = Daemon::serving(command, &[&rig.path("control.sock")]);
    let seen = || names(&PathBuf::from(format!("/proc/{}/root{}", daemon.pid(), disks.display())));
    let full = ["create", "disks", "scratch", "--uuid", UUID, "-a", "allocation=full"];
    for _ in 0..2 {
        let Output { status, stderr, .. } = run(rig.args(&full));
        let said = String::from_utf8(stderr).unwrap();
        assert!(!status.success() && said.contains("(ENOSPC)"), "{said}");
        assert!(said.contains("cannot be made with 1073741824 bytes"), "{said}");
        assert_eq!(seen(), [""; 0]);
    }
    rig.good(&["create", "disks", "scratch", "--uuid", UUID]);
    assert_eq!(seen().len(), 2);
}

/// What is the last to fail is the socket: the image is open by then.
#[test]
fn disk_that_is_not_created_leaves_no_image_and_nothing_beside_one() {
    let rig = Rig::new(|text| text);
    let _daemon = rig.serve();
    let socket = rig.path("mdev").join(format!("{UUID}.sock"));
    let image = format!("{UUID}.img");
    write(&socket, "in the way").unwrap();
    rig.good(&["define", "disks", "small", "--uuid", OTHER]);
    let other = rig.path("mdev").join(format!("{OTHER}.sock"));
    write(&other, "in the way").unwrap();
    let refused = |args: &[&str]| {
        let said = rig.bad(4, args);
        assert!(said.contains(".sock exists and is not a socket"), "{said}");
    };
    let create = ["create", "disks", "small", "--uuid", UUID];
    refused(&create);
    refused(&["start", OTHER]);
    assert_eq!(rig.files(), [""; 0]);
    // An image that was there stays as it was, without names.
    for uuid in [UUID, OTHER] {
        let path = rig.path("disks").join(format!("{uuid}.img"));
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
    }
    refused(&create);
    refused(&["start", OTHER]);
    assert_eq!(rig.files(), [image.clone(), format!("{OTHER}.img")]);
    assert!(rig.good(&["list", "definitions"]).contains(&format!("not started: {OTHER}: ")));
    std::fs::remove_file(&socket).unwrap();
    rig.good(&create);
    let before = who(&mut rig.connect(UUID));
    rig.remove(UUID);
    // With names, it keeps them.
    write(&socket, "in the way").unwrap();
    refused(&create);
    std::fs::remove_file(&socket).unwrap();
    rig.good(&create);
    assert_eq!(who(&mut rig.connect(UUID)), before);
}

/// A directory whose names cannot be made to last: an image that has got its name goes with the creation.
#[test]
fn disk_whose_name_does_not_last_is_refused_and_leaves_nothing() {
    let rig = Rig::new(|text| text);
    let _daemon = rig.serve_bound_by_modes();
    let disks = rig.path("disks");
    let mode = |mode| set_permissions(&disks, PermissionsExt::from_mode(mode)).unwrap();
    // Names can be made there, and it cannot be opened.
    mode(0o300);
    let said = rig.bad(6, &["create", "disks", "small", "--uuid", UUID]);
    mode(0o700);
    assert!(said.contains("the name of an image in it cannot be made to last"), "{said}");
    assert_eq!(rig.files(), [""; 0]);
    rig.good(&["create", "disks", "small", "--uuid", UUID]);
}

/// The remedy that is named is one that a disk of a parent has.
#[test]
fn disk_whose_names_are_damaged_is_refused_with_a_remedy_until_they_are_removed() {
    let rig = Rig::new(|text| text);
    let daemon = rig.serve();
    let names = rig.path("disks").join(format!("{UUID}.img.vfiod"));
    let image = names.with_extension("");
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let remedy = format!("remove {}, and it is a new disk for its guest", names.display());
    let wrong = |said: &str, why: &str| {
        let has_none = said.contains("it has none of the options that are named here");
        assert!(has_none && said.contains(&remedy) && said.contains(why), "{said}");
        assert_eq!(rig.files().len(), 2, "{said}");
    };
    let create = ["create", "disks", "small", "--uuid", UUID];
    write(&names, "garbage").unwrap();
    wrong(&rig.bad(1, &create), "damaged");
    std::fs::remove_file(&names).unwrap();
    std::os::unix::fs::symlink("elsewhere", &names).unwrap();
    wrong(&rig.bad(1, &create), "it is a link");
    // The same of a definition that starts by itself.
    rig.good(&["define", "disks", "small", "--auto", "--uuid", UUID]);
    daemon.terminate(Signal::TERM);
    let _daemon = rig.serve();
    wrong(&rig.good(&["list", "definitions"]), "it is a link");
    std::fs::remove_file(&names).unwrap();
    rig.good(&["start", UUID]);
    who(&mut rig.connect(UUID));
}
