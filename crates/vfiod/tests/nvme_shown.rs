//! What a running daemon shows of an NVMe controller, in `vfiod show` and in the API.

mod process;

use std::path::{Path, PathBuf};

use process::api::ask;
use process::{Daemon, PATIENCE, good, until, vfiod};
use serde_json::{Value, json};
use tempfile::TempDir;
use vfiod_nvme_driver::{Controller, Data, Options, Waiting};

/// A daemon with a disk in a file and one in memory.
struct Rig {
    directory: TempDir,
    _daemon: Daemon,
}

impl Rig {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::File::create(at("disk.img")).unwrap().set_len(1 << 20).unwrap();
        let text = format!(
            "[device.disk]\nmodel = \"nvme\"\nsocket = {:?}\n\
             options = {{ file = {:?}, direct = false }}\n\
             [device.ram]\nmodel = \"nvme\"\nsocket = {:?}\n[control]\nsocket = {:?}\n",
            at("disk.sock"),
            at("disk.img"),
            at("ram.sock"),
            at("control"),
        );
        std::fs::write(at("c.toml"), text).unwrap();
        let mut command = vfiod(["--log", "error", "serve"]);
        command.arg(at("c.toml"));
        let daemon = Daemon::serving(command, &[&at("control"), &at("disk.sock"), &at("ram.sock")]);
        Self { directory, _daemon: daemon }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn connect(&self, socket: &str) -> Controller {
        let mut options = Options::default();
        options.timeout = PATIENCE;
        Controller::connect(self.at(socket), &options).unwrap()
    }

    /// What the API says of a device's model.
    fn status(&self, device: &str) -> Value {
        let (status, mut answer) =
            ask(&self.at("control"), "GET", &format!("devices/{device}"), None).unwrap();
        assert_eq!(status, 200, "{answer}");
        answer["model_status"].take()
    }

    /// `vfiod show`.
    fn show(&self, device: &str) -> String {
        let control = self.at("control");
        let arguments: [&Path; 4] =
            [Path::new("show"), Path::new(device), Path::new("--control"), &control];
        good(arguments)
    }
}

#[test]
fn controller_is_shown_with_queues_and_namespaces() {
    let rig = Rig::new();
    assert_eq!(rig.status("disk")["controller"], "disabled");
    let mut controller = rig.connect("disk.sock");
    let mut queue = controller.create_queue(32, Waiting::Interrupts).unwrap();
    let disk = controller.namespace(1).unwrap();
    let buffer = controller.memory().allocate(4096).unwrap();
    queue.write(&disk, 0, Data::of(&buffer)).unwrap();

    let status = rig.status("disk");
    assert_eq!(status["controller"], "enabled");
    assert_eq!(status["serial"], controller.info().serial.as_str());
    let numbers = status["submission_queues"].as_array().unwrap().iter();
    assert_eq!(numbers.map(|queue| &queue["number"]).collect::<Vec<_>>(), [0, 1]);
    let namespace = &status["namespaces"][0];
    assert_eq!(namespace["path"], rig.at("disk.img").to_str().unwrap());
    assert_eq!(namespace["io"], "buffered");
    assert_eq!((&namespace["locked"], &namespace["block_size"]), (&json!(true), &json!(512)));
    let engine = namespace["engine"].as_str().unwrap();
    assert!(["io_uring", "threads"].contains(&engine), "{engine}");
    let memory = rig.status("ram");
    assert_eq!(memory["controller"], "disabled");
    assert_eq!(memory["namespaces"][0]["backend"], "memory");
    assert_eq!(memory["namespaces"][0]["path"], Value::Null);

    let tree = rig.show("disk");
    for line in [
        "└─ model status",
        "   ├─ controller: enabled",
        &format!("   ├─ serial: {}", controller.info().serial),
        "      └─ 1: uuid ",
        "backend file, path ",
        "io buffered, engine ",
        "capacity 1048576, read only no",
    ] {
        assert!(tree.contains(line), "{line} is not in:\n{tree}");
    }
    // Who has it open.
    assert!(tree.contains(&format!("owner pid {},", std::process::id())), "{tree}");
    controller.close().unwrap();
    until("the end of the queues", || rig.status("disk")["controller"] != "enabled");
}
