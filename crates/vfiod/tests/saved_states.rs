//! `save` and `restore`: the state of a device in a file, from one daemon to the next.

mod process;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use process::api::ask;
use process::{Daemon, at, bad, good, until, vfiod};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use vfiod_client::Client;
use vfiod_nvme_driver::{Data, Waiting};

const UUID: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
/// One of each.
const DEVICES: [&str; 8] = ["edu", "pins", "card", "copy", "bench", "fabric", "pool", UUID];

/// A daemon with a device of each model.
struct Rig {
    directory: TempDir,
    daemon: Daemon,
}

impl Rig {
    fn new() -> Self {
        Self::with("", "")
    }

    /// With options of the edu device, and more lines.
    fn with(edu: &str, more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("disk.img"), vec![0; 1 << 20]).unwrap();
        let daemon = serve(directory.path(), edu, more);
        let rig = Self { directory, daemon };
        rig.good(&["create", "school", "edu-1", "--uuid", UUID]);
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn file(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn good(&self, args: &[&str]) -> String {
        good(at(&self.path("control"), args))
    }

    fn bad(&self, code: i32, args: &[&str]) -> String {
        bad(code, at(&self.path("control"), args))
    }

    fn socket(&self, device: &str) -> PathBuf {
        if device == UUID {
            self.path("mdev").join(format!("{UUID}.sock"))
        } else {
            self.path(device)
        }
    }

    /// Opens a device once its last client is gone.
    fn connect(&self, device: &str) -> Client {
        let mut client = None;
        until("the device", || {
            client = process::connect(self.socket(device)).ok();
            client.is_some()
        });
        client.unwrap()
    }

    /// The state of a device, as the daemon sends it.
    fn state(&self, device: &str) -> Value {
        let (status, state) =
            ask(&self.path("control"), "GET", &format!("devices/{device}/state"), None).unwrap();
        assert_eq!(status, 200, "{state}");
        state
    }

    /// Tries to restore a state: the status, and what is said about it.
    fn put(&self, device: &str, state: &str) -> (u16, String) {
        let path = format!("devices/{device}/state");
        let (status, said) = ask(&self.path("control"), "PUT", &path, Some(state)).unwrap();
        (status, said["detail"].as_str().unwrap_or_default().to_owned())
    }
}

fn serve(directory: &Path, edu: &str, more: &str) -> Daemon {
    let text = format!(
        r#"
device.edu = {{ model = "edu", options = {{ {edu} }}, socket = "DIR/edu" }}
device.pins = {{ model = "gpio", socket = "DIR/pins" }}
device.card = {{ model = "serial", options = {{ ports = 2, backend = "none" }}, socket = "DIR/card" }}
device.copy = {{ model = "template", socket = "DIR/copy" }}
device.bench = {{ model = "bench", socket = "DIR/bench" }}
device.disk = {{ model = "nvme", options = {{ file = "DIR/disk.img" }}, socket = "DIR/disk" }}
container.fabric = {{ id = 2, socket = "DIR/fabric" }}
container.fabric.object.pool = {{ kind = "dpbp", id = 1, socket = "DIR/pool" }}
parent.school = {{ model = "edu" }}
mdev.sockets = "DIR/mdev"
control.socket = "DIR/control"
{more}"#
    );
    // A TOML inline table cannot be added to.
    let text = text.replace(
        "container.fabric = { id = 2, socket = \"DIR/fabric\" }",
        "container.fabric.id = 2\ncontainer.fabric.socket = \"DIR/fabric\"",
    );
    let text = text.replace("DIR", directory.to_str().unwrap());
    std::fs::write(directory.join("c.toml"), text).unwrap();
    let config = directory.join("c.toml");
    let command = vfiod(["--log", "error", "serve", config.to_str().unwrap()]);
    Daemon::serving(command, &[&directory.join("control")])
}

/// Where a device has something that a client can write, and reads again: region, offset, bytes.
fn place(device: &str) -> (u32, u64, &'static [u8]) {
    match device {
        // The source of a transfer.
        "edu" | UUID => (0, 0x80, &[0x78, 0x56, 0x34, 0x12]),
        // The outputs.
        "pins" => (2, 0, &[0xa5]),
        // The scratch register of the second port.
        "card" => (1, 7, &[0x5a]),
        "copy" => (0, 4, &[1, 2, 3, 4]),
        // Memory that clients map.
        "bench" => (0, 0x1008, &[9, 8, 7, 6]),
        // A parameter of a command, in the portal.
        "fabric" => (0, 8, &[1, 2, 3, 4, 5, 6, 7, 8]),
        // Where the bus has put its BAR: an object of this kind has no region.
        other => panic!("{other}"),
    }
}

fn write(client: &mut Client, device: &str) {
    let (region, offset, bytes) = place(device);
    client.region_write(region, offset, bytes).unwrap();
}

fn read(client: &mut Client, device: &str) -> Vec<u8> {
    let (region, offset, bytes) = place(device);
    let mut found = vec![0; bytes.len()];
    client.region_read(region, offset, &mut found).unwrap();
    found
}

fn has_place(device: &str) -> bool {
    device != "pool"
}

/// Every model: saved while a client has the device open, which goes on; restored by another daemon, whose next
/// client finds it, and the one after that does not.
#[test]
fn next_client_of_another_daemon_finds_what_was_saved() {
    let rig = Rig::new();
    let mut clients: Vec<_> = DEVICES.iter().map(|device| rig.connect(device)).collect();
    for (client, device) in clients.iter_mut().zip(DEVICES).filter(|(_, name)| has_place(name)) {
        write(client, device);
    }
    for device in DEVICES {
        rig.good(&["save", device, &rig.file(&format!("{device}.json"))]);
    }
    for (client, device) in clients.iter_mut().zip(DEVICES).filter(|(_, name)| has_place(name)) {
        assert_eq!(read(client, device), place(device).2, "{device} goes on");
    }
    drop(clients);

    let other = Rig::new();
    for device in DEVICES {
        other.good(&["restore", device, &rig.file(&format!("{device}.json"))]);
        let waits =
            |device| other.good(&["show", device, "--kind", "devices"]).contains("restored: yes");
        assert!(waits(device), "{device}");
        if has_place(device) {
            let mut client = other.connect(device);
            assert_eq!(read(&mut client, device), place(device).2, "{device}");
            assert!(!waits(device), "{device}");
            drop(client);
            assert_ne!(
                read(&mut other.connect(device), device),
                place(device).2,
                "{device}, reset"
            );
        }
    }
    let said = rig.daemon.terminate(Signal::TERM).1 + &other.daemon.terminate(Signal::TERM).1;
    assert_eq!(said, "");
}

/// An NVMe controller is found enabled, with the addresses of its queues, and reaches no memory; the disk must be
/// the same one.
#[test]
fn nvme_controller_is_found_as_it_was_with_the_same_disk_only() {
    let mut rig = Rig::new();
    let mut controller = process::nvme::connect(&rig.path("disk"));
    let disk = controller.namespace(1).unwrap();
    let mut queue = controller.create_queue(8, Waiting::Polling).unwrap();
    let buffer = controller.memory().allocate(4096).unwrap();
    buffer.write(0, &[0x5a; 4096]);
    queue.write(&disk, 8, Data::of(&buffer)).unwrap();
    let file = rig.file("disk.json");
    rig.good(&["save", "disk", &file]);
    // It goes on.
    buffer.write(0, &[0; 4096]);
    queue.read(&disk, 8, Data::of(&buffer)).unwrap();
    let mut bytes = [0; 4096];
    buffer.read(0, &mut bytes);
    assert_eq!(bytes, [0x5a; 4096]);
    drop((queue, controller));
    rig.good(&["del", "edu"]);
    assert!(rig.good(&["list"]).contains("disk"));

    let other = Rig::new();
    let said = other.bad(2, &["restore", "disk", &file]);
    assert!(said.contains("the state is of other images"), "{said}");

    // The same disk, and another process.
    let directory = rig.directory.path().to_owned();
    let ended = std::mem::replace(&mut rig.daemon, serve_nothing(&directory));
    ended.terminate(Signal::TERM);
    rig.daemon = serve(&directory, "", "");
    rig.good(&["restore", "disk", &file]);
    let registers = |client: &mut Client| {
        let mut word = |offset| {
            let mut bytes = [0; 4];
            client.region_read(0, offset, &mut bytes).unwrap();
            u32::from_le_bytes(bytes)
        };
        // CC.EN, CSTS, AQA.
        (word(0x14) & 1, word(0x1c), word(0x24) != 0)
    };
    let mut client = rig.connect("disk");
    assert_eq!(registers(&mut client), (1, 1, true));
    let mut command = [0; 2];
    client.region_read(7, 4, &mut command).unwrap();
    assert_eq!(command[0] & 4, 0, "bus mastering is off");
    drop(client);
    assert_eq!(registers(&mut rig.connect("disk")), (0, 0, false), "reset");
}

/// A daemon that is there in place of another one.
fn serve_nothing(directory: &Path) -> Daemon {
    let socket = directory.join("nothing");
    let args = ["--log", "error", "serve", "--device", "template", "--socket-path"];
    let args = args.map(str::to_owned).into_iter().chain([socket.display().to_string()]);
    Daemon::serving(vfiod(args), &[&socket])
}

#[test]
fn file_is_whole_private_and_not_replaced_unless_told_so() {
    let rig = Rig::new();
    let path = rig.path("state");
    let file = rig.file("state");
    assert_eq!(rig.good(&["save", "edu", &file]), "");
    let mode = path.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let first = std::fs::read_to_string(&path).unwrap();
    let said = rig.bad(2, &["save", "pins", &file]);
    assert!(said.contains("is there already; --force replaces it"), "{said}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), first);
    rig.good(&["save", "pins", &file, "--force"]);
    let state: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!((&state["name"], &state["model"]), (&json!("pins"), &json!("gpio")));
    // A link that leads nowhere is there, too.
    std::os::unix::fs::symlink("nowhere", rig.path("link")).unwrap();
    rig.bad(2, &["save", "edu", &rig.file("link")]);
    let said = rig.bad(1, &["save", "edu", &rig.file("no/where")]);
    assert!(said.contains("cannot write") && said.contains("No such file"), "{said}");
    let said = rig.bad(3, &["save", "nobody", &rig.file("nobody")]);
    assert!(said.contains("there is no device `nobody`"), "{said}");
    let mut names: Vec<_> = std::fs::read_dir(rig.directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('.') || name.contains("nobody"))
        .collect();
    names.sort();
    assert_eq!(names, [""; 0], "nothing is left of what failed");

    // From one to the other, without a file.
    let state = rig.good(&["save", "pins", "-"]);
    let mut restore = vfiod(at(&rig.path("control"), &["restore", "pins", "-"]));
    let mut restore = restore.stdin(Stdio::piped()).spawn().unwrap();
    restore.stdin.take().unwrap().write_all(state.as_bytes()).unwrap();
    assert!(restore.wait().unwrap().success());
}

#[test]
fn state_that_does_not_fit_is_refused_and_says_why() {
    let rig = Rig::with("dma_mask = 0xfff", "");
    let mut client = rig.connect("edu");
    write(&mut client, "edu");
    let file = rig.file("edu.json");
    rig.good(&["save", "edu", &file]);
    let said = rig.bad(4, &["restore", "edu", &file]);
    assert!(said.contains("cannot restore edu: in use by process"), "{said}");
    drop(client);
    let said = rig.bad(2, &["restore", "pins", &file]);
    assert!(
        said.contains("cannot restore pins: the state is of the model `edu`, not `gpio`"),
        "{said}"
    );
    let said = rig.bad(2, &["restore", UUID, &file]);
    assert!(said.contains("the model `edu`, not `edu/edu-1`"), "{said}");
    let other = Rig::new();
    let said = other.bad(2, &["restore", "edu", &file]);
    let why =
        "the state is of a device with other options: `dma_mask` is 4095 there and 268435455 here";
    assert!(said.contains(why), "{said}");
    let said = rig.bad(3, &["restore", "nobody", &file]);
    assert!(said.contains("there is no device `nobody`"), "{said}");
    // A device that a client has broken has no state.
    let said = rig.bad(1, &["restore", "edu", "/dev/null"]);
    assert!(said.contains("it is a device, not a file"), "{said}");
    for (text, says) in [
        ("", "damaged: EOF while parsing"),
        ("[]", "this is not a saved state"),
        ("{}", "this is not the saved state of a device"),
        (r#"{"format": "vfiod-disk"}"#, "this is \"vfiod-disk\", not the saved state of a device"),
        (r#"{"format": "vfiod device state"}"#, "does not say its version"),
        (
            r#"{"format": "vfiod device state", "version": 2}"#,
            "has version 2 of the format; this program reads version 1",
        ),
        (r#"{"format": "vfiod device state", "version": 1}"#, "has no checksum"),
    ] {
        std::fs::write(rig.path("bad"), text).unwrap();
        let said = rig.bad(2, &["restore", "edu", &rig.file("bad")]);
        assert!(said.contains(says), "{text}: {said}");
    }
    std::fs::write(rig.path("bad"), vec![b' '; (4 << 20) + 1]).unwrap();
    let said = rig.bad(2, &["restore", "edu", &rig.file("bad")]);
    assert!(said.contains("larger than any"), "{said}");
    let large = format!("{{\"x\": \"{}\"}}", "x".repeat(1 << 20));
    let (status, said) = rig.put("edu", &large);
    assert_eq!((status, said.as_str()), (413, "the body has more than 1024 KiB"));
}

/// Truncated anywhere, or with any field changed or left out, a file is refused, and the device has the state that
/// it had; changes of its layout alone do not matter.
#[test]
fn damaged_file_is_refused_and_changes_nothing() {
    let rig = Rig::new();
    let state = rig.state("pins");
    let before = |state: &Value| (state["state"].clone(), state["options"].clone());
    let text = state.to_string();
    for end in 0..text.len() {
        let (status, said) = rig.put("pins", &text[..end]);
        assert_eq!(status, 400, "{end}: {said}");
    }
    let mut places = Vec::new();
    list_places(&state, String::new(), &mut places);
    assert!(places.len() > 15, "{places:?}");
    for place in &places {
        let (parent, key) = place.rsplit_once('/').unwrap();
        let mut changed = state.clone();
        let value = changed.pointer_mut(place).unwrap();
        *value = match &*value {
            Value::String(text) => json!(format!("{text}0")),
            Value::Number(number) => json!(number.as_u64().unwrap() ^ 1),
            Value::Bool(value) => json!(!value),
            Value::Null => json!(0),
            Value::Array(_) | Value::Object(_) => json!(null),
        };
        let mut without = state.clone();
        match without.pointer_mut(parent).unwrap() {
            Value::Object(fields) => _ = fields.shift_remove(key),
            Value::Array(values) => _ = values.remove(key.parse().unwrap()),
            _ => unreachable!("it has places"),
        }
        for damaged in [&changed, &without] {
            let (status, said) = rig.put("pins", &damaged.to_string());
            assert_eq!(status, 422, "{place}: {said}");
        }
    }
    assert_eq!(before(&rig.state("pins")), before(&state));
    let mut sorted = state.clone();
    sorted.sort_all_objects();
    assert_eq!(rig.put("pins", &serde_json::to_string_pretty(&sorted).unwrap()).0, 204);
}

/// Every value within a document, by its place.
fn list_places(value: &Value, at: String, places: &mut Vec<String>) {
    let within: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), value)).collect(),
        Value::Array(values) => {
            values.iter().enumerate().map(|(n, value)| (n.to_string(), value)).collect()
        }
        _ => Vec::new(),
    };
    for (name, value) in within {
        let place = format!("{at}/{name}");
        places.push(place.clone());
        list_places(value, place, places);
    }
}
