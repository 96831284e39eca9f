//! What a running daemon shows of an NVMe controller, in `vfiod show` and in the API.

mod process;
#[path = "process/stalling.rs"]
mod stalling;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use process::api::ask;
use process::nvme::connect;
use process::{Daemon, good, until, vfiod};
use serde_json::{Value, json};
use stalling::Stalling;
use tempfile::TempDir;
use vfiod_nvme_driver::{Controller, Data, Reset, Waiting, opcode};

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
        connect(&self.at(socket))
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

/// The metrics, a line each.
fn metrics(rig: &Rig) -> Vec<String> {
    let mut stream = UnixStream::connect(rig.at("control")).unwrap();
    let request = "GET /metrics HTTP/1.1\r\nhost: vfiod\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().map(str::to_owned).collect()
}

#[test]
fn commands_and_their_times_are_metrics() {
    let rig = Rig::new();
    let mut controller = rig.connect("disk.sock");
    let mut queue = controller.create_queue(32, Waiting::Interrupts).unwrap();
    let disk = controller.namespace(1).unwrap();
    let buffer = controller.memory().allocate(4096).unwrap();
    queue.write(&disk, 0, Data::of(&buffer)).unwrap();
    (0..3).for_each(|_| queue.read(&disk, 0, Data::of(&buffer)).unwrap());
    let beyond = disk.transfer(opcode::READ, 1 << 30, &Data::of(&buffer)).unwrap();
    queue.perform(beyond, Some(Data::of(&buffer))).unwrap_err();

    let lines = metrics(&rig);
    for line in [
        "# TYPE vfiod_nvme_commands counter",
        "vfiod_nvme_commands_total{device=\"disk\",queue=\"io\",command=\"read\"} 4.0",
        "vfiod_nvme_commands_total{device=\"disk\",queue=\"io\",command=\"write\"} 1.0",
        "vfiod_nvme_errors_total{device=\"disk\",status=\"lba_out_of_range\"} 1.0",
        "vfiod_nvme_read_bytes_total{device=\"disk\"} 12288.0",
        "vfiod_nvme_read_bytes_total{device=\"ram\"} 0.0",
        "vfiod_nvme_state{device=\"disk\",state=\"enabled\"} 1.0",
        "vfiod_nvme_state{device=\"ram\",state=\"disabled\"} 1.0",
        "vfiod_nvme_queues{device=\"disk\"} 2.0",
        "vfiod_nvme_sync_failed{device=\"disk\",namespace=\"1\"} 0.0",
        "# TYPE vfiod_nvme_command_seconds histogram",
        "vfiod_nvme_command_seconds_count{device=\"disk\",command=\"read\"} 4",
        "vfiod_nvme_command_seconds_bucket{le=\"+Inf\",device=\"disk\",command=\"read\"} 4",
    ] {
        assert!(lines.iter().any(|known| known == line), "{line} is not in:\n{}", lines.join("\n"));
    }
    // Families stand together: one help each.
    let helps = lines.iter().filter(|line| line.starts_with("# HELP vfiod_nvme_commands "));
    assert_eq!(helps.count(), 1);
    // Buckets are cumulative.
    let of_reads = lines.iter().filter(|line| {
        line.starts_with("vfiod_nvme_command_seconds_bucket")
            && line.contains("device=\"disk\",command=\"read\"")
    });
    let counts = of_reads.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap());
    let counts: Vec<u64> = counts.collect();
    assert!(counts.len() > 20 && counts.is_sorted() && counts[counts.len() - 1] == 4, "{counts:?}");
}

/// A disk whose image does not answer: what it does is shown, and who reads metrics is not held up.
#[test]
fn stuck_disk_is_shown_and_so_are_the_metrics_of_all() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    // It holds back reads, and nothing else.
    let Some(stalling) = Stalling::mount_unreadable(&at("stalling")) else { return };
    let text = format!(
        "[device.disk]\nmodel = \"nvme\"\nsocket = {:?}\n\
         options = {{ file = {:?}, readonly = true, locks = false, direct = false }}\n\
         [device.ram]\nmodel = \"nvme\"\nsocket = {:?}\n[control]\nsocket = {:?}\n",
        at("disk.sock"),
        at("stalling").join("file"),
        at("ram.sock"),
        at("control"),
    );
    std::fs::write(at("c.toml"), text).unwrap();
    let mut command = vfiod(["--log", "off", "serve"]);
    command.arg(at("c.toml"));
    let daemon = Daemon::serving(command, &[&at("control"), &at("disk.sock"), &at("ram.sock")]);
    let rig = Rig { directory, _daemon: daemon };

    let mut controller = rig.connect("disk.sock");
    let mut queue = controller.create_queue(32, Waiting::Interrupts).unwrap();
    let disk = controller.namespace(1).unwrap();
    let buffer = controller.memory().allocate(4096).unwrap();
    let read = disk.transfer(opcode::READ, 0, &Data::of(&buffer)).unwrap();
    queue.submit(read, Some(Data::of(&buffer))).unwrap();
    queue.ring().unwrap();
    until("the read is shown", || rig.status("disk")["submission_queues"][1]["depth"] == 1);
    assert_eq!(rig.status("disk")["namespaces"][0]["in_flight"], 1);
    assert_eq!(rig.status("disk")["commands"], 1);
    controller.reset(Reset::Device).unwrap_err();
    let shown = rig.show("disk");
    for line in ["state: stuck", "in flight 1", "read only yes"] {
        assert!(shown.contains(line), "{line} is not in:\n{shown}");
    }
    assert!(rig.show("ram").contains("state: idle"));
    let lines = metrics(&rig);
    for line in [
        "vfiod_failed{device=\"disk\"} 1",
        "vfiod_failed{device=\"ram\"} 0",
        "vfiod_nvme_namespace_requests{device=\"disk\",namespace=\"1\"} 1.0",
        "vfiod_nvme_namespace_requests{device=\"ram\",namespace=\"1\"} 0.0",
    ] {
        assert!(lines.iter().any(|known| known == line), "{line} is not in:\n{}", lines.join("\n"));
    }
    // Another disk works.
    let mut other = rig.connect("ram.sock");
    let mut queue = other.create_queue(32, Waiting::Interrupts).unwrap();
    let ram = other.namespace(1).unwrap();
    let buffer = other.memory().allocate(4096).unwrap();
    queue.write(&ram, 0, Data::of(&buffer)).unwrap();
    // The image answers, and a reset ends it.
    drop(stalling);
    until("the end of the read", || rig.status("disk")["namespaces"][0]["in_flight"] == 0);
    until("a reset", || controller.reset(Reset::Device).is_ok());
    assert!(rig.show("disk").contains("state: open"));
}
