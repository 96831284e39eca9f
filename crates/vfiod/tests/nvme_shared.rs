//! Two controllers of one daemon on one image, each with a client of its own.

mod process;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use process::nvme::connect;
use process::{Daemon, at, good, run, vfiod};
use rustix::process::Signal;
use tempfile::TempDir;
use vfiod_nvme_driver::{Controller, Data, Queue, Reset, Waiting, opcode};

const BLOCK: usize = 512;

struct Rig {
    directory: TempDir,
    daemon: Daemon,
}

fn path(directory: &TempDir, name: &str) -> PathBuf {
    directory.path().join(name)
}

impl Rig {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::File::create(path(&directory, "disk.img")).unwrap().set_len(1 << 20).unwrap();
        Self::serving(directory, ["left", "right"])
    }

    /// Serves the image by controllers of these names, in this order.
    fn serving(directory: TempDir, names: [&str; 2]) -> Self {
        let at = |name: &str| path(&directory, name);
        let device = |name: &str| {
            format!(
                "[device.{name}]\nmodel = \"nvme\"\nsocket = {:?}\n\
                 options = {{ file = {:?}, shared = true }}\n",
                at(name),
                at("disk.img")
            )
        };
        let text = names.map(device).concat();
        let text = format!("{text}[control]\nsocket = {:?}\n", at("control"));
        std::fs::write(at("c.toml"), text).unwrap();
        let command = vfiod(["--log", "warn", "serve", at("c.toml").to_str().unwrap()]);
        let sockets = ["left", "right", "control"].map(at);
        let daemon = Daemon::serving(command, &sockets.each_ref().map(PathBuf::as_path));
        Self { directory, daemon }
    }

    fn path(&self, name: &str) -> PathBuf {
        path(&self.directory, name)
    }

    fn connect(&self, name: &str) -> Controller {
        connect(&self.path(name))
    }

    /// Runs a command, and says how it ended and what it said.
    fn command(&self, args: &[&str]) -> (bool, String) {
        let output = run(at(&self.path("control"), args));
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.success(), said)
    }

    /// Adds a device of the image with an option, and says what is wrong with it.
    fn add(&self, options: &[&str]) -> String {
        let file = format!("file={}", self.path("disk.img").display());
        let socket = self.path("third");
        let mut args = vec!["add", "third", "--device", "nvme"];
        args.extend(["--socket-path", socket.to_str().unwrap(), "--option", &file]);
        options.iter().for_each(|option| args.extend(["--option", option]));
        let (added, said) = self.command(&args);
        assert!(!added, "{options:?}");
        said
    }
}

/// CNTLID.
fn number(controller: &mut Controller) -> u16 {
    let structure = controller.identify(1, 0).unwrap();
    u16::from_le_bytes([structure[78], structure[79]])
}

/// Serial number, subsystem name, and the identifiers of the namespace.
fn names(controller: &mut Controller) -> Vec<u8> {
    let structure = controller.identify(1, 0).unwrap();
    let ids = controller.identify(3, 1).unwrap();
    [&structure[4..24], &structure[768..1024], &ids[..64]].concat()
}

/// A disk and a queue of it.
struct Disk {
    controller: Controller,
    queue: Queue,
}

impl Disk {
    fn new(mut controller: Controller) -> Self {
        let queue = controller.create_queue(16, Waiting::Interrupts).unwrap();
        Self { controller, queue }
    }

    fn write(&mut self, block: u64, byte: u8) {
        let buffer = self.controller.memory().allocate(BLOCK).unwrap();
        buffer.write(0, &[byte; BLOCK]);
        let namespace = self.controller.namespace(1).unwrap();
        self.queue.write(&namespace, block, Data::of(&buffer)).unwrap();
    }

    fn read(&mut self, block: u64) -> u8 {
        let buffer = self.controller.memory().allocate(BLOCK).unwrap();
        let namespace = self.controller.namespace(1).unwrap();
        self.queue.read(&namespace, block, Data::of(&buffer)).unwrap();
        let mut bytes = [0; BLOCK];
        buffer.read(0, &mut bytes);
        assert_eq!(bytes, [bytes[0]; BLOCK], "a torn block");
        bytes[0]
    }

    fn flush(&mut self) {
        let namespace = self.controller.namespace(1).unwrap();
        self.queue.flush(&namespace).unwrap();
    }
}

#[test]
fn two_clients_see_one_subsystem_and_one_disk() {
    let rig = Rig::new();
    let (mut left, mut right) = (rig.connect("left"), rig.connect("right"));
    assert_eq!((number(&mut left), number(&mut right)), (1, 2));
    assert_eq!(names(&mut left), names(&mut right));
    for controller in [&mut left, &mut right] {
        assert_eq!(controller.identify(1, 0).unwrap()[76], 2, "CMIC");
        assert_eq!(controller.identify(0, 1).unwrap()[30], 1, "NMIC");
        assert_eq!(controller.identify(0x13, 0).unwrap()[..6], [2, 0, 1, 0, 2, 0]);
    }
    for (name, other) in [("left", "right"), ("right", "left")] {
        let shown = good(at(&rig.path("control"), &["show", name, "--json"]));
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        let others = shown.pointer("/model_status/shared_with");
        assert_eq!(others, Some(&serde_json::json!([other])), "{shown:#}");
    }
    let known = names(&mut left);
    let (mut left, mut right) = (Disk::new(left), Disk::new(right));
    for round in 1..50 {
        left.write(7, round);
        assert_eq!(right.read(7), round);
        right.flush();
        right.write(8, round);
        assert_eq!(left.read(8), round);
    }
    drop((left, right));
    // After a restart, in another order, each is who it was.
    let Rig { directory, daemon } = rig;
    let (status, said) = daemon.terminate(Signal::TERM);
    assert!(status.success(), "{said}");
    let rig = Rig::serving(directory, ["right", "left"]);
    let (mut left, mut right) = (rig.connect("left"), rig.connect("right"));
    assert_eq!((number(&mut left), number(&mut right)), (1, 2));
    assert_eq!(names(&mut right), known);
}

#[test]
fn controller_that_does_not_fit_is_refused_with_the_option() {
    let rig = Rig::new();
    let said = rig.add(&[]);
    let taken = "disk.img is `device.left.options.file` already";
    assert!(said.contains(taken) && said.contains("`shared = true`"), "{said}");
    for option in ["readonly=true", "block_size=512", "direct=false", "identity=keep"] {
        let said = rig.add(&["shared=true", option]);
        let (name, _) = option.split_once('=').unwrap();
        let expected = format!("`{name}` is another one than that of `device.left`");
        assert!(said.contains(&expected), "{said}");
    }
    std::fs::File::create(rig.path("other.img")).unwrap().set_len(1 << 20).unwrap();
    let files = format!("files=[{:?}]", rig.path("other.img"));
    let said = rig.add(&["shared=true", &files]);
    assert!(said.contains("`files` is another one"), "{said}");
}

/// The image is locked until the last of them has gone.
#[test]
fn removal_of_one_leaves_the_other_and_that_of_both_the_image() {
    let rig = Rig::new();
    let mut right = Disk::new(rig.connect("right"));
    let (removed, said) = rig.command(&["del", "left"]);
    assert!(removed, "{said}");
    right.write(3, 9);
    right.flush();
    assert_eq!(right.controller.identify(0x13, 0).unwrap()[..4], [1, 0, 2, 0]);
    let alone = |succeeds: bool| {
        let mut command = vfiod(["--log", "error", "serve", "--device", "nvme", "--socket-path"]);
        command.arg(rig.path("alone")).arg("--option");
        command.arg(format!("file={}", rig.path("disk.img").display()));
        if succeeds {
            return Some(Daemon::serving(command, &[&rig.path("alone")]));
        }
        let (status, said) = Daemon::start(command).finish();
        assert!(!status.success() && said.contains("in use"), "{said}");
        None
    };
    assert!(alone(false).is_none());
    drop(right);
    let (removed, said) = rig.command(&["del", "right", "--wait"]);
    assert!(removed, "{said}");
    let _alone = alone(true);
    assert_eq!(Disk::new(rig.connect("alone")).read(3), 9);
}

/// What the client of one does, resets and leaves amid its commands included, is nothing to the other.
#[test]
fn client_that_resets_and_leaves_amid_its_commands_does_not_disturb_the_other() {
    let rig = Rig::new();
    let ends = Arc::new(AtomicBool::new(false));
    let (socket, over) = (rig.path("left"), ends.clone());
    let wild = std::thread::spawn(move || {
        let mut rounds = 0_usize;
        while !over.load(Ordering::SeqCst) {
            let mut disk = Disk::new(connect(&socket));
            let namespace = disk.controller.namespace(1).unwrap();
            let buffer = disk.controller.memory().allocate(8 * BLOCK).unwrap();
            for n in 0..12 {
                let data = Data::of(&buffer);
                let kind = if n % 2 == 0 { opcode::WRITE } else { opcode::READ };
                let command = namespace.transfer(kind, 1000 + n, &data).unwrap();
                disk.queue.submit(command, Some(data)).unwrap();
            }
            disk.queue.ring().unwrap();
            if rounds.is_multiple_of(2) {
                disk.controller.reset(Reset::Controller).unwrap();
            }
            // Otherwise it leaves with what is under way.
            drop(disk);
            rounds += 1;
        }
        rounds
    });
    let mut disk = Disk::new(rig.connect("right"));
    for round in 0..400_u64 {
        let block = round % 64;
        disk.write(block, round as u8);
        if round % 16 == 0 {
            disk.flush();
        }
        assert_eq!(disk.read(block), round as u8);
    }
    ends.store(true, Ordering::SeqCst);
    assert!(wild.join().unwrap() > 1, "the other client did too little");
}
