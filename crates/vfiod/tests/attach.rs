//! `attach` and `detach`, against a monitor that says what a test lets it say. `e2e/scenarios/hotplug.sh` has
//! them with QEMU.

mod process;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread::JoinHandle;

use process::{Daemon, bad, good, run, vfiod};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A daemon with a device that has MSI-X, one that has not, and a monitor.
struct Rig {
    directory: TempDir,
    _daemon: Daemon,
    monitor: JoinHandle<Vec<Value>>,
}

/// A machine with two root ports: something is behind the first one.
fn buses() -> Value {
    let port = |id: &str, behind: Value| {
        json!({ "class_info": { "class": 0x0604 }, "qdev_id": id,
                "pci_bridge": { "bus": {}, "devices": behind } })
    };
    let disk = json!({ "class_info": { "class": 0x0108 }, "qdev_id": "" });
    json!([{ "bus": 0, "devices": [disk, port("port0", json!([disk])), port("port1", json!([]))] }])
}

impl Rig {
    /// `reply` says what a command comes to.
    fn new(reply: impl Fn(&Value) -> Value + Send + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let text = format!(
            "[device.disk]\nmodel = \"nvme\"\nsocket = {:?}\n[device.lines]\nmodel = \"edu\"\n\
             socket = {:?}\n[control]\nsocket = {:?}\n",
            at("disk"),
            at("lines"),
            at("control"),
        );
        std::fs::write(at("c.toml"), text).unwrap();
        let command = vfiod(["serve", at("c.toml").to_str().unwrap()]);
        let daemon = Daemon::serving(command, &[&at("control")]);
        let listener = UnixListener::bind(at("qmp")).unwrap();
        let monitor = std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            let mut commands = Vec::new();
            writeln!(peer, "{}", json!({ "QMP": { "version": {}, "capabilities": [] } })).unwrap();
            let lines = BufReader::new(peer.try_clone().unwrap()).lines();
            for line in lines.map_while(Result::ok) {
                let mut command: Value = serde_json::from_str(&line).unwrap();
                let mut answer = match command["execute"].as_str().unwrap() {
                    "qmp_capabilities" => json!({ "return": {} }),
                    "query-pci" => json!({ "return": buses() }),
                    _ => reply(&command),
                };
                answer["id"] = command["id"].take();
                writeln!(peer, "{answer}").unwrap();
                commands.push(command);
            }
            commands
        });
        Self { directory, _daemon: daemon, monitor }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn args(&self, args: &[&str]) -> Vec<String> {
        let (control, qmp) = (self.path("control"), self.path("qmp"));
        let common = ["--control".into(), control, "--qmp".into(), qmp];
        let common = common.map(|word| word.to_str().unwrap().to_owned());
        args.iter().map(|arg| (*arg).to_owned()).chain(common).collect()
    }

    /// The commands of this name that the monitor was sent.
    fn sent(self, name: &str) -> Vec<Value> {
        let mut sent = self.monitor.join().unwrap();
        sent.retain(|command| command["execute"] == name);
        sent
    }
}

fn refuses(why: &'static str) -> impl Fn(&Value) -> Value {
    move |_| json!({ "error": { "class": "GenericError", "desc": why } })
}

#[test]
fn device_is_attached_at_the_first_port_that_is_free() {
    let rig = Rig::new(|_| json!({ "return": {} }));
    let said = good(rig.args(&["attach", "disk"]));
    assert_eq!(said, "disk: attached as `disk` at `port1`\n");
    let socket = json!({ "type": "unix", "path": rig.path("disk") });
    let added = rig.sent("device_add");
    let arguments =
        json!({ "driver": "vfio-user-pci", "id": "disk", "bus": "port1", "socket": socket });
    assert_eq!(added, [json!({ "execute": "device_add", "id": null, "arguments": arguments })]);
}

#[test]
fn socket_is_attached_as_and_where_it_is_said() {
    let rig = Rig::new(|_| json!({ "return": {} }));
    let socket = rig.path("a socket");
    let args = ["attach", socket.to_str().unwrap(), "--id", "x1", "--bus", "pci.0", "--json"];
    let said: Value = serde_json::from_str(&good(rig.args(&args))).unwrap();
    assert_eq!((&said["id"], &said["bus"]), (&json!("x1"), &json!("pci.0")));
    let added = rig.sent("device_add");
    assert_eq!(added[0]["arguments"]["socket"]["path"], json!(socket));
}

#[test]
fn refusal_of_qemu_is_told_with_what_is_missing() {
    for (why, remedy) in [
        ("Bus 'pcie.0' does not support hotplugging", "free are: port1; --bus names one"),
        ("'vfio-user-pci' is not a valid device model name", "came with 10.1"),
        ("Duplicate device ID 'disk'", "--id gives it another name"),
        ("Failed to connect to '/x': Permission denied", "`socket = { path, mode, owner, group }`"),
    ] {
        let rig = Rig::new(refuses(why));
        let said = bad(1, rig.args(&["attach", "disk"]));
        assert!(said.contains(&format!("QEMU refuses device_add: {why}; ")), "{said}");
        assert!(said.contains(remedy), "{said}");
    }
    let rig = Rig::new(refuses("an error"));
    let client = process::connect(rig.path("disk")).unwrap();
    let said = bad(1, rig.args(&["attach", "disk"]));
    let by = format!("an error; the device is open already, in process {}\n", std::process::id());
    assert!(said.ends_with(&by), "{said}");
    drop(client);
}

#[test]
fn monitor_moves_no_cursor() {
    let rig = Rig::new(refuses("\u{1b}[2J\u{202e}gone\r"));
    let said = bad(1, rig.args(&["attach", "disk"]));
    assert!(said.contains(r"\u{1b}[2J\u{202e}gone\u{d}"), "{said:?}");
    assert!(!said.contains('\u{1b}'), "{said:?}");
}

#[test]
fn device_without_msix_is_detached_once_it_is_gone() {
    let left = std::sync::atomic::AtomicUsize::new(3);
    let rig = Rig::new(move |command| match command["execute"].as_str().unwrap() {
        "qom-list" => {
            let is_there = left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) > 1;
            let name = if is_there { "lines" } else { "another" };
            json!({ "return": [{ "name": "type", "type": "string" }, { "name": name, "type": "child" }] })
        }
        _ => json!({ "return": {} }),
    });
    assert_eq!(good(rig.args(&["detach", "lines"])), "lines: detached\n");
    assert_eq!(rig.sent("device_del")[0]["arguments"], json!({ "id": "lines" }));
}

#[test]
fn guest_that_keeps_a_device_is_not_waited_for_beyond_the_timeout() {
    let rig = Rig::new(|command| match command["execute"].as_str().unwrap() {
        "qom-list" => json!({ "return": [{ "name": "lines", "type": "child" }] }),
        _ => json!({ "return": {} }),
    });
    let said = bad(1, rig.args(&["detach", "lines", "--timeout", "200ms"]));
    assert!(said.contains("the guest has not given lines back within 0.2 s"), "{said}");
    let rig = Rig::new(|_| json!({ "return": [] }));
    let said = bad(1, rig.args(&["detach", "lines", "--id", "other"]));
    assert!(said.contains("QEMU has no device `other`"), "{said}");
}

#[test]
fn device_with_msix_is_not_detached_and_the_reason_is_told() {
    // Whoever asks it anything finds no monitor.
    let rig = Rig::new(|_| json!({ "return": {} }));
    let mut args = rig.args(&["detach", "disk"]);
    let qmp = args.last_mut().unwrap();
    qmp.push_str("-nowhere");
    let said = bad(1, args);
    assert!(said.contains("disk has MSI-X, and QEMU (11.1, and those before) aborts"), "{said}");
    // Its end.
    _ = std::os::unix::net::UnixStream::connect(rig.path("qmp"));
}

#[test]
fn mistakes_on_the_command_line_are_told_before_qemu_is_asked() {
    let rig = Rig::new(|_| json!({ "return": {} }));
    for (code, args, expected) in [
        (2, &["attach", "disk", "--id", "1x"][..], "--id \"1x\": a letter, then"),
        (3, &["attach", "absent"], "no device `absent`"),
        (2, &["detach", "/tmp/a.sock"], "name the device as the daemon does"),
        (2, &["detach", "lines", "--timeout", "soon"], "--timeout"),
    ] {
        let said = bad(code, rig.args(args));
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    assert_eq!(run(["attach", "disk"]).status.code(), Some(2));
    _ = std::os::unix::net::UnixStream::connect(rig.path("qmp"));
}
