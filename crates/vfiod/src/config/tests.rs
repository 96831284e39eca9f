//! Whole files, right and wrong; the wrong ones with every word of what is said about them.

use std::time::Duration;

use vfiod_core::{OpenPolicy, StatePolicy};
use vfiod_pci::{BusKind, ResetScope};
use vfiod_server::SocketAccess;

use super::*;
use crate::models;

fn parse(text: &str) -> Result<Config, String> {
    read("c.toml", text, &models::all()).map_err(|problems| problems.to_string())
}

/// What is said about a file.
fn complaint(text: &str) -> String {
    match parse(text) {
        Err(complaint) => complaint,
        Ok(config) => panic!("accepted: {config:?}"),
    }
}

#[test]
fn everything_that_can_be_said() {
    let config = parse(
        r#"
        poll = "50us"
        threads = 8
        log = { level = "debug", format = "json" }
        bus.b = { segment = 1, number = 2, reset = "bus" }
        slot.s = { bus = "b", number = 3 }
        [device.z]
        model = "edu"
        slot = "s"
        socket = { path = "/run/z", mode = 0o640, owner = "root", group = 0 }
        open = "multi"
        state = "retain"
        options.dma_mask = 0xffff
        [device.a]
        model = "gpio"
        slot = "s"
        function = 7
        socket.activated = "lines"
        "#,
    )
    .unwrap();
    assert_eq!(config.poll, Some(Duration::from_micros(50)));
    assert_eq!(config.threads, Some(8));
    assert_eq!((config.log.as_deref(), config.log_format), (Some("debug"), Some(Format::Json)));
    let bus = &config.buses[0];
    assert_eq!((bus.segment, bus.number, bus.kind), (1, 2, BusKind::Bridged(ResetScope::Bus)));
    assert_eq!((config.slots[0].bus, config.slots[0].number), (0, 3));
    let [z, a] = &config.devices[..] else { panic!("in the order of the file") };
    assert_eq!((z.name.as_str(), z.model.as_str(), z.place), ("z", "edu", Some((0, 0))));
    assert_eq!((z.open, z.state), (OpenPolicy::Multi, StatePolicy::Retain));
    assert_eq!(z.options[0].value, serde_json::json!(0xffff));
    let access = SocketAccess { mode: Some(0o640), uid: Some(0), gid: Some(0) };
    assert_eq!(z.socket, SocketConfig::Path("/run/z".into(), access));
    assert_eq!((a.name.as_str(), a.place), ("a", Some((0, 7))));
    assert_eq!((a.open, a.state), (OpenPolicy::Single, StatePolicy::Reset));
    assert_eq!(a.socket, SocketConfig::Activated(Some("lines".into())));
}

#[test]
fn a_mistyped_key() {
    let text = "[device.edu]\nmodel = \"edu\"\nsokcet = \"/tmp/s\"\nsocket = \"/tmp/t\"\n";
    assert_eq!(
        complaint(text),
        "\
error: c.toml:3:1: device.edu.sokcet: there is no such key
  |
3 | sokcet = \"/tmp/s\"
  | ^^^^^^
  = help: did you mean `socket`? (keys: model, slot, function, open, state, options, socket)
"
    );
}

#[test]
fn a_model_that_is_not_there() {
    let complaint = complaint("[device.x]\n  model = \"gipo\"\n  socket = \"/tmp/s\"\n");
    assert!(
        complaint.starts_with(
            "\
error: c.toml:2:11: device.x.model: there is no model `gipo`
  |
2 |   model = \"gipo\"
  |           ^^^^^^
  = help: did you mean `gpio`? (models: template, gpio, edu"
        ),
        "{complaint}"
    );
}

#[test]
fn two_functions_in_one_place() {
    let text = r#"
[bus.b]
[slot.s]
bus = "b"
[device.one]
model = "edu"
slot = "s"
socket = "/tmp/1"
[device.two]
model = "edu"
slot = "s"
function = 0
socket = "/tmp/2"
"#;
    assert_eq!(
        complaint(text),
        "\
error: c.toml:12:12: device.two.function: function 0 of slot `s` is `device.one` (line 7) already
   |
12 | function = 0
   |            ^
   = help: give each device of a slot its own `function`, 0 to 7
"
    );
}

#[test]
fn a_slot_on_a_bus_that_is_not_there() {
    let text =
        "[bus.main]\n[slot.s]\nbus = \"mian\"\n[device.e]\nmodel = \"edu\"\nsocket = \"s\"\n";
    assert_eq!(
        complaint(text),
        "\
error: c.toml:3:7: slot.s.bus: there is no bus `mian`
  |
3 | bus = \"mian\"
  |       ^^^^^^
  = help: did you mean `main`? (buses: main)
"
    );
}

#[test]
fn one_socket_for_two_devices() {
    let text = "[device.a]\nmodel = \"edu\"\nsocket = \"/tmp/s\"\n\
                [device.b]\nmodel = \"edu\"\nsocket = { path = \"/tmp/s\" }\n";
    assert_eq!(
        complaint(text),
        "\
error: c.toml:6:19: device.b.socket: this socket is `device.a` (line 3) already
  |
6 | socket = { path = \"/tmp/s\" }
  |                   ^^^^^^^^
  = help: give each device a socket of its own
"
    );
}

#[test]
fn one_name_for_two_devices() {
    let text = "[device.a]\nmodel = \"edu\"\nsocket = \"/tmp/s\"\n[device.a]\n";
    let complaint = complaint(text);
    assert!(complaint.starts_with("error: c.toml:4:9: duplicate key"), "{complaint}");
}

#[test]
fn what_is_no_toml_is_placed() {
    let complaint = complaint("[device.a]\nmodel = edu\n");
    assert!(complaint.starts_with("error: c.toml:2:9: "), "{complaint}");
    assert!(complaint.contains("2 | model = edu\n"), "{complaint}");
}

#[test]
fn every_mistake_is_told_at_once_in_the_order_of_the_file() {
    let text = r#"
poll = "fast"
threads = 1
log.level = "nosiy=yes=no"
log.format = "xml"
[bus.b]
number = 256
[bus.c]
reset = "sometimes"
[bus.d]
[slot.s]
number = 32
bus = "d"
[slot.t]
[device.x]
model = 5
slot = "u"
function = 8
open = "both"
state = "keep"
socket = { path = "", mode = "rw-", owner = "no such user", colour = 1 }
[device.y]
model = "gpio"
function = 1
options = { inputs = 1.5, lines = 3 }
socket = { path = "/a", activated = "b" }
[device.z]
extra = 1
[divice.q]
"#;
    let complaint = complaint(text);
    let first_lines: Vec<_> =
        complaint.lines().filter_map(|line| line.strip_prefix("error: c.toml:")).collect();
    let expected = [
        "2:8: poll: `fast` is not a time",
        "3:11: threads: this number is out of range",
        "4:13: log.level: `nosiy=yes=no` is no log filter: ",
        "5:14: log.format: `xml` is not one of its values",
        "7:10: bus.b.number: this number is out of range",
        "9:9: bus.c.reset: `sometimes` is not one of its values",
        "10:6: bus.d.number: bus 0000:00 is `bus.c` (line 8) already",
        "12:10: slot.s.number: this number is out of range",
        "14:7: slot.t: `bus` is missing",
        "16:9: device.x.model: this is the number 5, not a string",
        "17:8: device.x.slot: there is no slot `u`",
        "18:12: device.x.function: this number is out of range",
        "19:8: device.x.open: `both` is not one of its values",
        "20:9: device.x.state: `keep` is not one of its values",
        "21:19: device.x.socket.path: the path is empty",
        "21:30: device.x.socket.mode: `rw-` are no permission bits",
        "21:45: device.x.socket.owner: there is no user `no such user`",
        "21:61: device.x.socket.colour: there is no such key",
        "24:12: device.y.function: a function number needs a slot",
        "25:22: device.y.options.inputs: an option cannot be this",
        "25:27: device.y.options.lines: model `gpio` has no such option",
        "26:37: device.y.socket.activated: a socket has either a path or is passed",
        "27:9: device.z: `model` is missing",
        "27:9: device.z: `socket` is missing",
        "28:1: device.z.extra: there is no such key",
        "29:2: divice: there is no such key",
    ];
    for (line, expected) in first_lines.iter().zip(&expected) {
        assert!(line.starts_with(expected), "{line}\nis not\n{expected}");
    }
    assert_eq!(first_lines.len(), expected.len(), "{complaint}");
}

#[test]
fn a_slot_needs_a_first_function() {
    let text = "bus.b = {}\nslot.s.bus = \"b\"\n[device.e]\nmodel = \"edu\"\nslot = \"s\"\n\
                function = 1\nsocket = \"/tmp/s\"\n";
    let complaint = complaint(text);
    assert!(
        complaint.starts_with("error: c.toml:2:6: slot.s: no device is function 0"),
        "{complaint}"
    );
}

#[test]
fn an_empty_file_wants_a_device() {
    let complaint = complaint("");
    assert!(complaint.starts_with("error: c.toml:1:1: `device` is missing\n"), "{complaint}");
    assert!(complaint.contains("help: name at least one device: [device.NAME]"), "{complaint}");
}

#[test]
fn columns_are_characters_and_marks_keep_tabs() {
    let text = "[device.\"höhe\"]\n\tmodel = \"édu\"\n\tsocket = \"/tmp/s\"\n";
    let complaint = complaint(text);
    assert!(complaint.starts_with("error: c.toml:2:10: device.höhe.model: "), "{complaint}");
    assert!(complaint.contains("\n  | \t        ^^^^^\n"), "{complaint}");
}

#[test]
fn a_path_too_long_for_a_socket() {
    let text = format!("[device.e]\nmodel = \"edu\"\nsocket = \"/{}\"\n", "x".repeat(107));
    let complaint = complaint(&text);
    assert!(complaint.contains("this is no path of a socket (108 bytes)"), "{complaint}");
}
