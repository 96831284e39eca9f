//! Counters and saved features of an NVMe controller last across restarts of the daemon, and a kill.

mod process;

use process::api::ask;
use process::nvme::connect;
use process::{Daemon, until, vfiod};
use rustix::process::Signal;
use vfiod_nvme_driver::{Command, Controller, Data, Waiting, opcode};

/// The feature Error Recovery, and the bit that saves it.
const ERROR_RECOVERY: u32 = 0x05;
const SAVE: u32 = 1 << 31;

struct Rig {
    directory: tempfile::TempDir,
}

impl Rig {
    fn at(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn serve(&self) -> Daemon {
        let text = format!(
            "[device.disk]\nmodel = \"nvme\"\nsocket = {:?}\n\
             options = {{ file = {:?}, torn_writes = true }}\n[control]\nsocket = {:?}\n",
            self.at("disk.sock"),
            self.at("disk.img"),
            self.at("control"),
        );
        std::fs::write(self.at("c.toml"), text).unwrap();
        let mut command = vfiod(["--log", "error", "serve"]);
        command.arg(self.at("c.toml"));
        Daemon::serving(command, &[&self.at("control"), &self.at("disk.sock")])
    }

    /// What is kept beside the image.
    fn kept(&self) -> String {
        std::fs::read_to_string(self.at("disk.img.vfiod")).unwrap_or_default()
    }

    /// Power cycles and unsafe shutdowns, as `show` has them.
    fn shown(&self) -> (u64, u64) {
        let (_, device) = ask(&self.at("control"), "GET", "devices/disk", None).unwrap();
        let life = &device["model_status"]["life"];
        let get = |name: &str| life[name].as_u64().unwrap();
        (get("power_cycles"), get("unsafe_shutdowns"))
    }
}

/// Writes a block, on a queue of its own.
fn write(controller: &mut Controller) {
    let mut queue = controller.create_queue(8, Waiting::Interrupts).unwrap();
    let disk = controller.namespace(1).unwrap();
    let buffer = controller.memory().allocate(4096).unwrap();
    queue.write(&disk, 0, Data::of(&buffer)).unwrap();
}

/// Of the SMART log: data units written, power cycles, unsafe shutdowns.
fn smart(controller: &mut Controller) -> [u64; 3] {
    let buffer = controller.memory().allocate(512).unwrap();
    let command = Command::new(opcode::GET_LOG_PAGE).namespace(u32::MAX).dword(10, 2 | 127 << 16);
    controller.admin(command, Some(Data::of(&buffer))).unwrap();
    [48, 112, 144].map(|at| {
        let mut bytes = [0; 8];
        buffer.read(at, &mut bytes);
        u64::from_le_bytes(bytes)
    })
}

fn error_recovery(controller: &mut Controller) -> u32 {
    let command = Command::new(opcode::GET_FEATURES).namespace(1).dword(10, ERROR_RECOVERY);
    controller.admin(command, None).unwrap()
}

#[test]
fn counters_and_saved_features_survive_restarts_and_a_kill() {
    let rig = Rig { directory: tempfile::tempdir().unwrap() };
    std::fs::File::create(rig.at("disk.img")).unwrap().set_len(1 << 20).unwrap();
    let daemon = rig.serve();
    let mut controller = connect(&rig.at("disk.sock"));
    write(&mut controller);
    let save = Command::new(opcode::SET_FEATURES)
        .namespace(1)
        .dword(10, ERROR_RECOVERY | SAVE)
        .dword(11, 17);
    controller.admin(save, None).unwrap();
    controller.close().unwrap();
    let (status, said) = daemon.terminate(Signal::TERM);
    assert!(status.success(), "{said}");

    let daemon = rig.serve();
    let mut controller = connect(&rig.at("disk.sock"));
    assert_eq!(smart(&mut controller), [1, 2, 0]);
    assert_eq!(rig.shown(), (2, 0));
    assert_eq!(error_recovery(&mut controller), 17);
    write(&mut controller);
    until("the file says that the controller is in use", || rig.kept().contains("in_use\": 1"));
    daemon.terminate(Signal::KILL);
    drop(controller);

    let daemon = rig.serve();
    let mut controller = connect(&rig.at("disk.sock"));
    let [_, cycles, unsafe_shutdowns] = smart(&mut controller);
    assert_eq!((cycles, unsafe_shutdowns), (3, 1), "after a kill");
    assert_eq!(error_recovery(&mut controller), 17);
    // A client that dies has no power any more, either.
    drop(controller);
    until("it is not in use", || rig.kept().contains("in_use\": 0"));
    assert_eq!(rig.shown(), (3, 2));
    drop(daemon);
}
