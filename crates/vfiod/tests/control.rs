//! A running daemon, asked through its API and by the commands that use it.

mod process;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use process::api::{ask, raw};
use process::{Daemon, until, vfiod};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use vfiod_client::Client;

const UUID: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
const OTHER: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1002";

/// A daemon with two functions in a slot and two parents.
struct Rig {
    directory: TempDir,
    daemon: Daemon,
}

impl Rig {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let daemon = serve(directory.path(), "");
        Self { directory, daemon }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs a command against it: exit code, output, complaints.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let mut command = vfiod(args);
        let output = command.env("VFIOD_CONTROL", self.path("control")).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    #[track_caller]
    fn good(&self, args: &[&str]) -> String {
        let (code, out, err) = self.run(args);
        assert_eq!((code, err.as_str()), (0, ""), "{args:?}: {out}");
        out
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.good(&[args, &["--json"]].concat())).unwrap()
    }

    #[track_caller]
    fn bad(&self, code: i32, says: &str, args: &[&str]) {
        let (got, out, err) = self.run(args);
        assert_eq!(got, code, "{args:?}: {out}{err}");
        assert!(err.contains(says), "{args:?}: {err}");
    }

    fn ask(&self, method: &str, path: &str, body: Option<&str>) -> (u16, Value) {
        ask(&self.path("control"), method, path, body).unwrap()
    }

    /// What is refused says so as a problem, with the right status.
    #[track_caller]
    fn refused(&self, status: u16, says: &str, method: &str, path: &str, body: Option<&str>) {
        let (got, answer) = self.ask(method, path, body);
        assert_eq!(got, status, "{method} {path} {body:?}: {answer}");
        let detail = answer["detail"].as_str().unwrap();
        assert!(detail.contains(says), "{method} {path} {body:?}: {detail}");
        assert_eq!(answer["status"], status);
    }

    fn instance_socket(&self, uuid: &str) -> PathBuf {
        self.path("mdev").join(format!("{uuid}.sock"))
    }
}

fn serve(directory: &Path, more: &str) -> Daemon {
    let at = |name: &str| directory.join(name);
    let text = format!(
        "[bus.b]\nnumber = 1\n[slot.s]\nbus = \"b\"\nnumber = 2\n\
         [device.lines]\nmodel = \"gpio\"\nslot = \"s\"\nopen = \"multi\"\nsocket = {:?}\n\
         [device.teacher]\nmodel = \"edu\"\nslot = \"s\"\nfunction = 1\nsocket = {:?}\n\
         [parent.school]\nmodel = \"edu\"\noptions = {{ instances = 2 }}\n\
         [parent.pins]\nmodel = \"gpio\"\n\
         [mdev]\nsockets = {:?}\ndefinitions = {:?}\n\
         [control]\nsocket = {:?}\n{more}",
        at("lines"),
        at("teacher"),
        at("mdev"),
        at("definitions"),
        at("control"),
    );
    std::fs::write(at("c.toml"), text).unwrap();
    let command = vfiod(["serve", at("c.toml").to_str().unwrap()]);
    Daemon::serving(command, &[&at("control")])
}

fn connect(socket: &Path) -> Client {
    process::connect(socket).unwrap()
}

#[test]
fn what_there_is_is_listed_and_shown() {
    let rig = Rig::new();
    let devices = rig.good(&["list"]);
    let lines: Vec<_> = devices.lines().collect();
    assert!(lines[0].starts_with("NAME") && lines.len() == 3, "{devices}");
    assert!(lines[1].starts_with("lines    gpio   slot 0000:01:02  idle"), "{devices}");
    let types = rig.good(&["types"]);
    assert!(types.contains("school  edu-1    2          vfio-pci"), "{types}");

    // Both functions of the slot are one set, and the tree shows who is in it.
    let mut client = connect(&rig.path("lines"));
    client.device_info().unwrap();
    let set = rig.good(&["show", "slot 0000:01:02"]);
    assert!(set.starts_with("slot 0000:01:02\n") && set.contains("├─ open: 1\n"), "{set}");
    assert!(set.contains("├─ lines\n") && set.contains("└─ teacher: model edu, "), "{set}");
    assert!(set.contains(&format!("owner pid {}, uid", std::process::id())), "{set}");
    let device = rig.json(&["show", "lines"]);
    assert_eq!(device["set"], "slot 0000:01:02");
    assert_eq!(device["state"], "open");
    assert_eq!(device["files"][0]["owner"]["pid"], std::process::id());
    assert_eq!(device["connections"][0]["errors"], 0);
    assert_eq!(
        device["regions"][0],
        json!({
            "index": 2, "name": "BAR 2", "size": 8, "access": "rw", "mappable": 0,
        })
    );

    let files = rig.json(&["list", "files"]);
    let number = files[0]["number"].to_string();
    assert!(rig.good(&["show", &number]).contains("device: lines"));
    rig.bad(3, "there is no `gpio`", &["show", "gpio"]);
    rig.bad(3, "among the instances, definitions", &["show", UUID]);
    let about = rig.json(&["show"]);
    assert_eq!(about["devices"], 2);
    assert!(rig.good(&["show", "edu-1", "--kind", "types"]).contains("available: 2"));
}

#[test]
fn the_shell_completes_what_the_daemon_has() {
    let rig = Rig::new();
    rig.good(&["create", "pins", "gpio-16", "--uuid", UUID]);
    let ask = |words: &[&str]| {
        let mut command = vfiod(["--"].iter().chain(words));
        command.env("COMPLETE", "bash").env("_CLAP_IFS", "\n").env("_CLAP_COMPLETE_COMP_TYPE", "9");
        command.env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string());
        let output = command.env("VFIOD_CONTROL", rig.path("control")).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(ask(&["vfiod", "remove", ""]).contains(UUID));
    assert!(ask(&["vfiod", "show", "l"]).contains("lines"));
    assert!(ask(&["vfiod", "reset", "--set", ""]).contains("slot 0000:01:02"));
    assert!(ask(&["vfiod", "create", "s"]).contains("school"));
}

#[test]
fn a_file_is_taken_from_its_user() {
    let rig = Rig::new();
    let (mut first, mut second) = (connect(&rig.path("lines")), connect(&rig.path("lines")));
    for client in [&mut first, &mut second] {
        client.region_read(7, 0, &mut [0; 4]).unwrap();
    }
    let number = rig.json(&["list", "files"])[0]["number"].to_string();
    rig.good(&["revoke", &number]);
    assert_eq!(first.region_read(7, 0, &mut [0; 4]).unwrap_err().remote_errno(), Some(19));
    second.region_read(7, 0, &mut [0; 4]).unwrap();
    rig.bad(3, "there is no file", &["revoke", &number]);
    assert_eq!(rig.good(&["revoke", "lines"]), "1\n");
    assert_eq!(second.region_read(7, 0, &mut [0; 4]).unwrap_err().remote_errno(), Some(19));
    rig.bad(3, "there is no device `line`", &["revoke", "line"]);
}

#[test]
fn a_set_is_reset_if_nobody_minds() {
    let rig = Rig::new();
    let mut client = connect(&rig.path("lines"));
    client.region_write(2, 0, &[0x55]).unwrap();
    // Also by way of the other member.
    rig.bad(4, "is in use by process", &["reset", "teacher"]);
    rig.bad(4, "is in use by process", &["reset", "--set", "slot 0000:01:02"]);
    let mut outputs = [0];
    client.region_read(2, 0, &mut outputs).unwrap();
    assert_eq!(outputs, [0x55]);
    rig.good(&["reset", "teacher", "--force"]);
    client.region_read(2, 0, &mut outputs).unwrap();
    assert_eq!(outputs, [0]);
    drop(client);
    until("the release", || rig.json(&["list", "files"]) == json!([]));
    rig.good(&["reset", "--set", "slot 0000:01:02"]);
    rig.bad(3, "no device set `slot`", &["reset", "--set", "slot"]);
}

#[test]
fn an_instance_is_created_used_changed_and_removed() {
    let rig = Rig::new();
    let made = rig.good(&["create", "pins", "gpio-16", "--uuid", UUID, "-a", "inputs=0x0102"]);
    assert_eq!(made, format!("{UUID}\n"));
    let socket = rig.instance_socket(UUID);
    let mut client = connect(&socket);
    let mut inputs = [0];
    client.region_read(2, 1, &mut inputs).unwrap();
    assert_eq!(inputs, [2]);
    rig.good(&["modify", UUID, "--live", "-a", "inputs=7"]);
    client.region_read(2, 1, &mut inputs).unwrap();
    assert_eq!(inputs, [7]);
    let instance = rig.json(&["show", UUID]);
    assert_eq!(instance["attributes"]["inputs"], "0x0007");
    assert_eq!((&instance["defined"], &instance["open"]), (&Value::Null, &json!(1)));
    // Its set is its own.
    assert_eq!(instance["device"]["set"], UUID);
    assert_eq!(rig.json(&["show", UUID, "--kind", "sets"])["members"][0]["name"], UUID);

    rig.bad(4, "is in use by process", &["remove", UUID]);
    client.region_read(2, 1, &mut inputs).unwrap();
    drop(client);
    until("the release", || rig.json(&["list", "files"]) == json!([]));
    rig.good(&["remove", UUID]);
    assert!(!socket.exists());
    rig.bad(3, "there is no instance", &["remove", UUID]);
}

#[test]
fn an_instance_in_use_goes_at_its_deadline_or_when_its_user_does() {
    let rig = Rig::new();
    rig.good(&["create", "pins", "gpio-16", "--uuid", UUID]);
    let mut client = connect(&rig.instance_socket(UUID));
    client.device_info().unwrap();
    let mut waiting = vfiod(["remove", UUID, "--wait"])
        .env("VFIOD_CONTROL", rig.path("control"))
        .spawn()
        .unwrap();
    until("it is leaving", || rig.json(&["show", UUID])["state"] == "leaving");
    // The user still has it, and nobody else gets in.
    client.region_read(2, 0, &mut [0]).unwrap();
    assert!(process::connect(rig.instance_socket(UUID)).is_err());
    rig.bad(4, "being removed", &["remove", UUID]);
    assert!(waiting.try_wait().unwrap().is_none());
    drop(client);
    assert!(waiting.wait().unwrap().success());

    rig.good(&["create", "pins", "gpio-16", "--uuid", UUID]);
    let mut client = connect(&rig.instance_socket(UUID));
    client.device_info().unwrap();
    rig.good(&["remove", UUID, "--deadline", "20ms"]);
    assert!(client.device_info().is_err(), "the connection is gone");
    rig.bad(2, "deadline: `soon` is no time", &["remove", OTHER, "--deadline", "soon"]);
}

#[test]
fn parents_give_what_they_have_and_say_why_not() {
    let rig = Rig::new();
    rig.good(&["create", "school", "edu-1", "--uuid", UUID]);
    rig.bad(4, "there is an instance", &["create", "pins", "gpio-16", "--uuid", UUID]);
    rig.good(&["create", "school", "edu-1"]);
    rig.bad(4, "parent school has no edu-1 left", &["create", "school", "edu-1"]);
    rig.bad(3, "no parent `shool`; there is: pins, school", &["create", "shool", "edu-1"]);
    rig.bad(2, "its types: edu-1", &["create", "school", "edu-2"]);
    rig.bad(3, "it has: inputs, outputs", &["create", "pins", "gpio-16", "-a", "input=1"]);
    rig.bad(2, "no number from 0 to 0xffff", &["create", "pins", "gpio-16", "-a", "inputs=red"]);
    rig.bad(6, "can only be read", &["create", "pins", "gpio-16", "-a", "outputs=1"]);
    rig.bad(2, "NAME=VALUE", &["create", "pins", "gpio-16", "-a", "inputs"]);
    rig.bad(2, "invalid", &["create", "pins", "gpio-16", "--uuid", "12"]);
    // Nothing half created.
    assert_eq!(rig.json(&["list", "instances"]).as_array().unwrap().len(), 2);
    assert_eq!(rig.json(&["show", "pins"])["types"][0]["available"], 16);
}

#[test]
fn definitions_outlast_the_daemon() {
    let rig = Rig::new();
    rig.good(&["define", "pins", "gpio-16", "--uuid", UUID, "--auto", "-a", "inputs=5"]);
    rig.good(&["define", "school", "edu-1", "--uuid", OTHER]);
    assert_eq!(rig.json(&["list", "instances"]), json!([]), "nothing is started");
    rig.good(&["start", OTHER]);
    rig.bad(4, "already", &["start", OTHER]);
    rig.bad(4, "", &["define", "school", "edu-1", "--uuid", OTHER]);
    rig.bad(2, "no type", &["define", "school", "edu-9"]);
    rig.bad(3, "no parent", &["define", "shool", "edu-1"]);

    let Rig { directory, daemon } = rig;
    let (status, log) = daemon.terminate(Signal::TERM);
    assert!(status.success(), "{log}");
    let daemon = serve(directory.path(), "");
    let rig = Rig { directory, daemon };
    let instances = rig.json(&["list", "instances"]);
    assert_eq!(instances.as_array().unwrap().len(), 1, "the other starts when asked for");
    assert_eq!(instances[0]["uuid"], UUID);
    let mut inputs = [0];
    connect(&rig.instance_socket(UUID)).region_read(2, 1, &mut inputs).unwrap();
    assert_eq!(inputs, [5]);
    assert_eq!(rig.json(&["show", UUID])["defined"], "auto");

    rig.good(&["modify", UUID, "--manual", "-a", "inputs=6"]);
    let definition = rig.json(&["show", UUID, "--kind", "definitions"]);
    assert_eq!(definition["start"], "manual");
    assert_eq!(definition["attributes"], json!([{ "name": "inputs", "value": "6" }]));
    rig.good(&["modify", UUID, "--unset", "inputs"]);
    rig.bad(3, "does not set `inputs`", &["modify", UUID, "--unset", "inputs"]);
    rig.good(&["undefine", UUID]);
    rig.bad(3, "is not defined", &["undefine", UUID]);
    // Still there, until it is removed.
    assert_eq!(rig.json(&["show", UUID])["defined"], Value::Null);
    rig.good(&["define", "--uuid", UUID]);
    let definition = rig.json(&["show", UUID, "--kind", "definitions"]);
    assert_eq!(definition["attributes"], json!([{ "name": "inputs", "value": "0x0005" }]));
}

#[test]
fn a_damaged_definition_is_named_and_does_not_stop_the_rest() {
    let rig = Rig::new();
    rig.good(&["define", "pins", "gpio-16", "--uuid", UUID, "--auto"]);
    rig.good(&["define", "pins", "gpio-16", "--uuid", OTHER, "--auto"]);
    let Rig { directory, daemon } = rig;
    daemon.terminate(Signal::TERM);
    let file = directory.path().join("definitions/pins").join(UUID);
    std::fs::write(&file, "{\"mdev_type\": ").unwrap();
    // Not one that is being written just now.
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(60);
    std::fs::File::open(&file).unwrap().set_modified(old).unwrap();
    let daemon = serve(directory.path(), "");
    let rig = Rig { directory, daemon };
    let instances = rig.json(&["list", "instances"]);
    assert_eq!(instances.as_array().unwrap().len(), 1);
    assert_eq!(instances[0]["uuid"], OTHER);
    assert!(!file.exists(), "set aside");
    let Rig { daemon, .. } = rig;
    let (_, log) = daemon.terminate(Signal::TERM);
    assert!(log.contains(file.to_str().unwrap()), "{log}");
}

#[test]
fn events_come_as_they_happen() {
    let rig = Rig::new();
    let mut watcher = vfiod(["watch", "--json"])
        .env("VFIOD_CONTROL", rig.path("control"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(watcher.stdout.take().unwrap()).lines();
    let mut records = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let mut present = Vec::new();
    let mut last = loop {
        let record = records.next().unwrap();
        match record["event"].as_str().unwrap() {
            "watch-begins" => break record["number"].as_u64().unwrap(),
            kind => present.push(format!("{kind} {}", record["name"].as_str().unwrap())),
        }
    };
    for expected in ["device-present lines", "parent-present pins"] {
        assert!(present.iter().any(|record| record == expected), "{expected}: {present:?}");
    }
    rig.good(&["create", "pins", "gpio-16", "--uuid", UUID]);
    let client = connect(&rig.instance_socket(UUID));
    drop(client);
    until("the release", || rig.json(&["list", "files"]) == json!([]));
    rig.good(&["remove", UUID]);
    let mut seen = Vec::new();
    let mut device = Value::Null;
    for event in records {
        last += 1;
        assert_eq!(event["number"], last, "{event}");
        if event["name"] == UUID {
            if device.is_null() {
                device = event["device"].clone();
            }
            assert!(device.is_u64() && event["device"] == device, "{event}");
            seen.push(event["event"].as_str().unwrap().to_owned());
            if event["event"] == "set-gone" {
                break;
            }
        }
    }
    let expected = [
        "set-created",
        "registered",
        "reset",
        "device-opened",
        "file-opened",
        "file-released",
        "device-closed",
        "unregistered",
        "set-gone",
    ];
    assert_eq!(seen, expected);
    // A watcher does not keep the daemon from ending, and ends with it.
    let (status, log) = rig.daemon.terminate(Signal::TERM);
    assert!(status.success(), "{log}");
    assert!(watcher.wait().unwrap().success());
}

#[test]
fn watch_of_one_device_and_some_kinds_shows_nothing_else() {
    let rig = Rig::new();
    let filter = ["watch", "--json", "--device", "lines", "--event", "reset,file-opened"];
    let mut watcher =
        vfiod(filter).env("VFIOD_CONTROL", rig.path("control")).stdout(Stdio::piped()).spawn();
    let watcher = watcher.as_mut().unwrap();
    let mut lines = BufReader::new(watcher.stdout.take().unwrap()).lines();
    let mut next = || {
        let record: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        format!("{} {}", record["event"].as_str().unwrap(), record["name"].as_str().unwrap())
    };
    assert_eq!(next(), "watch-begins events");
    rig.good(&["create", "pins", "gpio-16", "--uuid", UUID]);
    drop(connect(&rig.instance_socket(UUID)));
    rig.good(&["reset", "lines"]);
    assert_eq!(next(), "reset lines");
    watcher.kill().unwrap();
    watcher.wait().unwrap();
    rig.bad(2, "`opened` is no kind of event", &["watch", "--event", "opened"]);
}

#[test]
fn bodies_of_every_wrong_shape_are_refused_with_what_would_be_right() {
    let rig = Rig::new();
    let post = |status, says: &str, body: &str| {
        rig.refused(status, says, "POST", "instances", Some(body));
    };
    post(400, "the body is not whole", "{\"parent\": ");
    post(400, "the body is not JSON", "rubbish");
    post(422, "the body has no `parent`, which it needs", "{}");
    post(422, "`parent` is the number `1`; it must be a string", r#"{"parent": 1, "type": "x"}"#);
    post(
        422,
        "there is no key `uid`; the keys are",
        r#"{"parent": "pins", "type": "gpio-16", "uid": "1"}"#,
    );
    post(
        422,
        "`uuid` is no UUID, which is",
        r#"{"parent": "pins", "type": "gpio-16", "uuid": "1"}"#,
    );
    let attributes = r#"{"parent": "pins", "type": "gpio-16", "attributes": [{"name": "inputs"}]}"#;
    post(422, "`attributes[0]` has no `value`, which it needs", attributes);
    post(
        422,
        "nil UUID",
        r#"{"parent": "pins", "type": "gpio-16",
        "uuid": "00000000-0000-0000-0000-000000000000"}"#,
    );
    post(404, "no parent", r#"{"parent": "../../etc", "type": "gpio-16"}"#);
    post(400, "the body is empty", "");
    post(400, "something follows the JSON object in the body", r#"{"parent": "p", "type": "t"}x"#);
    post(
        413,
        "the body has more than 64 KiB",
        &format!(r#"{{"parent": "{}"}}"#, "x".repeat(64 << 10)),
    );
    rig.refused(415, "application/json", "POST", "instances", None);
    rig.refused(400, "`1` is no UUID, which is", "GET", "instances/1", None);
    let right = "stands where a number from 0 to 2^64 - 1 must be";
    rig.refused(
        400,
        &format!("the path of the request: `minus` {right}"),
        "DELETE",
        "files/minus",
        None,
    );
    rig.refused(400, &format!("the path of the request: `-1` {right}"), "GET", "files/-1", None);
    rig.refused(400, "what stands for `name` is not UTF-8 text", "GET", "devices/%ff", None);
    rig.refused(404, "no such resource", "GET", "nothing", None);
    rig.refused(405, "not with this method", "PUT", "instances", None);
    let remove = |query: &str| format!("instances/{UUID}?{query}");
    rig.refused(422, "needs a deadline", "DELETE", &remove("policy=deadline"), None);
    rig.refused(422, "is no time", "DELETE", &remove("policy=deadline&deadline=1"), None);
    rig.refused(422, "needs policy=deadline", "DELETE", &remove("deadline=1s"), None);
    rig.refused(400, "`policy` is `gently`; it can be", "DELETE", &remove("policy=gently"), None);
    rig.refused(400, "there is no key `force`", "DELETE", &remove("force=1"), None);
    let wait = "devices/edu?wait=perhaps";
    rig.refused(400, "`wait` must be true or false", "DELETE", wait, None);
    unknown_keys(&rig);
    let reset = "sets/slot%200000:01:02/reset";
    rig.refused(400, "takes no body", "POST", reset, Some(r#"{"in_use": "reset"}"#));
    let define = |body: &str| rig.refused(422, "", "POST", "definitions", Some(body));
    define(r#"{"parent": "pins"}"#);
    define(r#"{"start": "auto"}"#);
    define(r#"{"parent": "pins", "type": "gpio-16", "start": "sometimes"}"#);

    let control = rig.path("control");
    let (status, _) = raw(&control, b"\x00\x01\x02 rubbish\r\n\r\n").unwrap();
    assert_eq!(status, 400);
    // Who says nothing at all does not stall the others.
    let silent: Vec<_> =
        (0..64).map(|_| std::os::unix::net::UnixStream::connect(&control).unwrap()).collect();
    assert_eq!(rig.ask("GET", "daemon", None).0, 200);
    drop(silent);
    assert_eq!(rig.json(&["list", "instances"]), json!([]), "nothing was created");
    assert_eq!(rig.json(&["list", "definitions"])["definitions"], json!([]));
}

/// Asks every operation of the API's own document with a key that none of them has.
fn unknown_keys(rig: &Rig) {
    let (_, document) = rig.ask("GET", "openapi.json", None);
    let mut asked = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        let path = path.strip_prefix("/api/v1/").unwrap().replace("{uuid}", UUID);
        let path = path.replace("{name}", "edu").replace("{number}", "1") + "?nosuch=1";
        let methods = operations.as_object().unwrap().keys();
        for method in methods.map(|method| method.to_uppercase()).filter(|one| one != "PARAMETERS")
        {
            rig.refused(400, "there is no key `nosuch`", &method, &path, None);
            asked += 1;
        }
    }
    assert!(asked > 20, "{asked}");
    rig.refused(400, "there is no key `nosuch`", "GET", "openapi.json?nosuch", None);
}

#[test]
fn a_daemon_without_definitions_or_control_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let text =
        format!("[parent.school]\nmodel = \"edu\"\n[control]\nsocket = {:?}\n", at("control"));
    std::fs::write(at("c.toml"), text).unwrap();
    let command = vfiod(["serve", at("c.toml").to_str().unwrap()]);
    let daemon = Daemon::serving(command, &[&at("control")]);
    let rig = Rig { directory, daemon };
    rig.bad(1, "keeps no definitions", &["list", "definitions"]);
    rig.bad(1, "keeps no definitions", &["define", "school", "edu-1"]);
    // Without a directory for sockets an instance can be there, but has none.
    let uuid = rig.good(&["create", "school", "edu-1"]);
    assert_eq!(rig.json(&["show", uuid.trim()])["socket"], Value::Null);
    let nowhere = rig.path("nowhere");
    rig.bad(5, "no daemon answers at", &["list", "--control", nowhere.to_str().unwrap()]);
}

/// Who is refused, and does not go, takes no more than a few descriptors.
#[test]
fn a_crowd_that_is_refused_is_let_go() {
    use std::os::unix::process::CommandExt;
    if !rustix::process::getuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    let rig = Rig::new();
    for path in [rig.directory.path(), &rig.path("control")] {
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(path, everybody).unwrap();
    }
    // Its socket is there before the descriptors of what serves it.
    assert_eq!(rig.ask("GET", "daemon", None).0, 200);
    let before = rig.daemon.descriptors();
    // Connects a thousand times, says nothing, and stays.
    let script = "import socket, sys, time\n\
        crowd = []\n\
        for _ in range(1000):\n\
        \x20   one = socket.socket(socket.AF_UNIX)\n\
        \x20   one.connect(sys.argv[1])\n\
        \x20   crowd.append(one)\n\
        print('there', flush=True)\n\
        time.sleep(60)\n";
    let crowd = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(rig.path("control"))
        .uid(65534)
        .gid(65534)
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut crowd) = crowd else {
        eprintln!("skipped: no python3 to be the crowd");
        return;
    };
    let mut line = String::new();
    BufReader::new(crowd.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "there\n");
    assert!(rig.daemon.descriptors() <= before + 64 + 8, "{}", rig.daemon.descriptors());
    assert_eq!(rig.ask("GET", "daemon", None).0, 200);
    until("they are let go", || rig.daemon.descriptors() <= before + 2);
    crowd.kill().unwrap();
    crowd.wait().unwrap();
}

/// The commands of a user that the kernel vouches for. Nobody's are refused, as it could be anybody.
#[test]
fn who_may_not_is_refused() {
    use std::os::unix::process::CommandExt;
    if !rustix::process::getuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    // No account of this number needs to exist.
    const OTHER: u32 = 48_216;
    const NOBODY: u32 = 65_534;
    let cases = [
        ("", OTHER, 6, "uid 48216"),
        ("users = [1]\ngroups = [1]", OTHER, 6, "uid 48216"),
        ("users = [48216]", OTHER, 0, ""),
        ("groups = [48216]", OTHER, 0, ""),
        ("groups = [48216]", NOBODY, 6, "uid 65534 (nobody: it has no account here)"),
    ];
    for (allowed, uid, code, says) in cases {
        let directory = tempfile::tempdir().unwrap();
        let daemon = serve(directory.path(), allowed);
        let rig = Rig { directory, daemon };
        for path in [rig.directory.path(), &rig.path("control")] {
            let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            std::fs::set_permissions(path, everybody).unwrap();
        }
        let program = rig.path("vfiod");
        process::copy_program(&program);
        let output = std::process::Command::new(&program)
            .args(["list", "--control", rig.path("control").to_str().unwrap()])
            .uid(uid)
            .gid(OTHER)
            .output()
            .unwrap();
        let err = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "uid {uid} with `{allowed}`: {err}");
        assert!(err.contains(says), "{err}");
    }
}

/// Every row of the table that says who is in a device set with whom: the daemon shows it. That
/// they share a lock is shown by the tests of the core, pci, fsl-mc and mdev.
#[test]
fn every_kind_of_device_set_is_shown() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let text = r#"
bus.root = { number = 0, reset = "none" }
bus.slots = { number = 1, bridge = "root/01.0", reset = "slot" }
bus.whole = { number = 2, bridge = "root/02.0", reset = "bus" }
slot.r = { bus = "root", number = 5 }
slot.s = { bus = "slots", number = 0 }
slot.w0 = { bus = "whole", number = 0 }
slot.w1 = { bus = "whole", number = 1 }
device.r0 = { model = "edu", slot = "r", socket = "DIR/r0" }
device.r1 = { model = "edu", slot = "r", function = 1, socket = "DIR/r1" }
device.s0 = { model = "edu", slot = "s", socket = "DIR/s0", virtual_functions = 2 }
device.s1 = { model = "gpio", slot = "s", function = 1, socket = "DIR/s1" }
device.vf0 = { model = "edu", physical_function = "s0", function = 0, socket = "DIR/vf0" }
device.vf1 = { model = "edu", physical_function = "s0", function = 1, socket = "DIR/vf1" }
device.w0 = { model = "edu", slot = "w0", socket = "DIR/w0" }
device.w1 = { model = "gpio", slot = "w1", socket = "DIR/w1" }
device.alone = { model = "template", socket = "DIR/alone" }
container.fabric.id = 2
container.fabric.socket = "DIR/fabric"
container.inner.inside = "fabric"
container.inner.id = 3
container.inner.socket = "DIR/inner"
container.inner.object.pool = { kind = "dpbp", id = 1, socket = "DIR/pool" }
container.fabric.object.portal = { kind = "dpmcp", id = 1, socket = "DIR/portal" }
parent.pins.model = "gpio"
mdev.sockets = "DIR/mdev"
control.socket = "DIR/control"
"#
    .replace("DIR", directory.path().to_str().unwrap());
    std::fs::write(at("c.toml"), text).unwrap();
    let command = vfiod(["serve", at("c.toml").to_str().unwrap()]);
    let daemon = Daemon::serving(command, &[&at("control")]);
    let rig = Rig { directory, daemon };
    rig.good(&["create", "pins", "gpio-16", "--uuid", UUID]);
    rig.good(&["create", "pins", "gpio-16", "--uuid", OTHER]);
    let expected: &[(&str, &[&str])] = &[
        // PCI root bus: the device itself.
        ("r0", &["r0"]),
        ("r1", &["r1"]),
        // PCI, the slot can be reset: the slot. A virtual function: itself.
        ("slot 0000:01:00", &["s0", "s1"]),
        ("vf0", &["vf0"]),
        ("vf1", &["vf1"]),
        // PCI otherwise: the bus.
        ("bus 0000:02", &["w0", "w1"]),
        // Everything else: the device itself.
        ("alone", &["alone"]),
        // fsl-mc: the container.
        ("container dprc.2", &["fabric", "portal"]),
        ("container dprc.3", &["inner", "pool"]),
        // mdev: the device itself.
        (UUID, &[UUID]),
        (OTHER, &[OTHER]),
    ];
    let sets = rig.json(&["list", "sets"]);
    assert_eq!(sets.as_array().unwrap().len(), expected.len(), "{sets}");
    for (name, members) in expected {
        let set = rig.json(&["show", name, "--kind", "sets"]);
        let names: Vec<_> =
            set["members"].as_array().unwrap().iter().map(|member| &member["name"]).collect();
        assert_eq!(names, *members, "{name}");
        let tree = rig.good(&["show", name, "--kind", "sets"]);
        assert!(members.iter().all(|member| tree.contains(&format!("─ {member}: "))), "{tree}");
    }
    // The kind of device is what its bus makes it.
    assert_eq!(rig.json(&["show", "fabric"])["flags"], json!(["reset", "fsl-mc"]));
    assert_eq!(rig.json(&["show", "inner"])["location"], "dprc.2/dprc.3");
    assert_eq!(rig.json(&["show", "s1"])["location"], "0000:01:00.1");
}
