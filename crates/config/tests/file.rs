//! Whole files, right and wrong; the wrong ones with every word of what is said about them.

use std::time::Duration;

use vfiod_core::dma::AcceptedFiles;
use vfiod_core::{OpenPolicy, StatePolicy};
use vfiod_pci::{BusKind, ResetScope, VirtualFunctions};
use vfiod_quota::Resource;

use vfiod_config::*;
use vfiod_devices::catalogue;

fn parse(text: &str) -> Result<Config, String> {
    read("c.toml", text, &catalogue()).map_err(|problems| problems.to_string())
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
        limits.device_connections = 9
        limits.common_connections = 100
        limits.reserved_connections = 2
        limits.polled_devices = 0
        limits.mappings = 3000
        limits.reserved_mappings = 30
        limits.reserved_address_space = 0x1_0000_0000
        dma_files = "any"
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
    let mut limits = LimitsConfig {
        device_connections: Some(9),
        common_connections: Some(100),
        polled_devices: Some(0),
        ..LimitsConfig::default()
    };
    limits.total[Resource::Mappings] = Some(3000);
    limits.reserved[Resource::Connections] = Some(2);
    limits.reserved[Resource::Mappings] = Some(30);
    limits.reserved[Resource::AddressSpace] = Some(1 << 32);
    assert_eq!(config.limits, limits);
    assert_eq!(config.dma_files, AcceptedFiles::Any);
    assert_eq!((config.log.as_deref(), config.log_format), (Some("debug"), Some(LogFormat::Json)));
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
  = help: did you mean `socket`? (keys: model, slot, function, physical_function, virtual_functions, vf_token, open, state, options, socket)
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
fn one_socket_for_two_devices_by_another_path() {
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(".", directory.path().join("link")).unwrap();
    let path = |rest: &str| format!("{}/{rest}", directory.path().display());
    for other in ["link/s", "./s", "new/../s"] {
        let (one, other) = (path("s"), path(other));
        let text = format!(
            "[device.a]\nmodel = \"edu\"\nsocket = {one:?}\n[device.b]\nmodel = \"edu\"\nsocket = {other:?}\n"
        );
        let said = complaint(&text);
        assert!(
            said.contains("device.b.socket: this socket is `device.a` (line 3) already"),
            "{said}"
        );
    }
}

#[test]
fn things_without_a_name_that_can_be_shown() {
    for kind in ["bus", "slot", "device", "container", "parent"] {
        let said = complaint(&format!("[{kind}.\"\"]\n"));
        assert!(said.contains("a name is empty"), "{kind}: {said}");
        assert!(said.contains(&format!("help: write a name: [{kind}.NAME]")), "{kind}: {said}");
    }
    let said = complaint("[device.\"\\u001b[31mred\"]\nmodel = \"edu\"\nsocket = \"/s\"\n");
    assert!(said.contains("is no name for a device"), "{said}");
}

#[test]
fn a_file_that_is_too_large_or_no_text_is_not_read() {
    use vfiod_config::{Document, LoadError};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.toml");
    let load = |path: &std::path::Path| Document::load(path, &catalogue(), Vec::new()).unwrap_err();
    std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    let is_too_large = matches!(load(&path), LoadError::TooLarge(_, 1_048_576));
    assert!(is_too_large, "a file of 1 MiB and a byte is read");
    for (path, expected) in [("/dev/zero", "a device"), ("/", "a directory")] {
        let LoadError::Unreadable(_, error) = load(path.as_ref()) else { panic!("it is read") };
        assert_eq!(error.to_string(), format!("it is {expected}, not a file"));
    }
    std::fs::write(&path, vec![b'#'; 1 << 20]).unwrap();
    assert!(matches!(load(&path), LoadError::Wrong(_)), "it is read, and has no device");
    std::fs::write(&path, b"\xff").unwrap();
    assert!(matches!(load(&path), LoadError::NotText(_)));
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
dma_files = "all"
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
        "4:13: dma_files: `all` is not one of its values",
        "5:13: log.level: `nosiy=yes=no` is no log filter: ",
        "6:14: log.format: `xml` is not one of its values",
        "8:10: bus.b.number: this number is out of range",
        "10:9: bus.c.reset: `sometimes` is not one of its values",
        "11:6: bus.d.number: bus 0000:00 is `bus.c` (line 9) already",
        "13:10: slot.s.number: this number is out of range",
        "15:7: slot.t: `bus` is missing",
        "17:9: device.x.model: this is the number 5, not a string",
        "18:8: device.x.slot: there is no slot `u`",
        "19:12: device.x.function: this number is out of range",
        "20:8: device.x.open: `both` is not one of its values",
        "21:9: device.x.state: `keep` is not one of its values",
        "22:19: device.x.socket.path: the path is empty",
        "22:30: device.x.socket.mode: `rw-` are no permission bits",
        "22:45: device.x.socket.owner: there is no user `no such user`",
        "22:61: device.x.socket.colour: there is no such key",
        "25:12: device.y.function: a function number needs a slot",
        "26:22: device.y.options.inputs: an option cannot be this",
        "26:27: device.y.options.lines: model `gpio` has no such option",
        "27:37: device.y.socket.activated: a socket has either a path or is passed",
        "28:9: device.z: `model` is missing",
        "28:9: device.z: `socket` is missing",
        "29:1: device.z.extra: there is no such key",
        "30:2: divice: there is no such key",
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

/// Two root ports, a bus behind each, and a device with virtual functions behind the first.
const TREE: &str = r#"
bus.root = { number = 0, reset = "none" }
bus.a = { number = 1, bridge = "root/01.0" }
bus.b = { number = 2, bridge = "root/1f.7", reset = "bus" }
slot.a = { bus = "a", number = 3 }
slot.b = { bus = "b", number = 0 }
[device.pf]
model = "edu"
slot = "a"
virtual_functions = { total = 4, offset = 64, stride = 2 }
vf_token = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3"
socket = "/tmp/pf"
[device.vf]
model = "edu"
physical_function = "pf"
function = 2
socket = "/tmp/vf"
[device.other]
model = "edu"
slot = "b"
socket = "/tmp/other"
"#;

#[test]
fn buses_behind_bridges_and_virtual_functions() {
    let config = parse(TREE).unwrap();
    let bridge = |device, function| Some(BridgeConfig { bus: 0, device, function });
    let bridges: Vec<_> = config.buses.iter().map(|bus| bus.bridge).collect();
    assert_eq!(bridges, [None, bridge(1, 0), bridge(0x1f, 7)]);
    let [pf, vf, other] = &config.devices[..] else { panic!("in the order of the file") };
    let functions = VirtualFunctions { total: 4, count: 3, offset: 64, stride: 2 };
    assert_eq!(pf.sriov, SriovConfig::Physical(functions));
    assert_eq!(vf.sriov, SriovConfig::Virtual { physical: 0, number: 2 });
    assert_eq!((vf.place, pf.token.is_some(), vf.token), (None, true, None));
    let at = |device| config.address(device).map(|address| address.to_string());
    assert_eq!(at(pf).as_deref(), Some("0000:01:03.0"));
    assert_eq!(at(vf).as_deref(), Some("0000:01:0b.4"));
    assert_eq!(at(other).as_deref(), Some("0000:02:00.0"));
    assert_eq!([pf, vf, other].map(|device| config.bus(device)), [Some(1), Some(1), Some(2)]);
    let text = "[device.e]\nmodel = \"edu\"\nsocket = \"s\"\n";
    assert_eq!(parse(text).unwrap().devices[0].sriov, SriovConfig::None);
}

#[test]
fn the_number_alone_says_it_too() {
    let text = TREE.replace("{ total = 4, offset = 64, stride = 2 }", "3");
    let config = parse(&text).unwrap();
    let address = config.address(&config.devices[1]).unwrap();
    assert_eq!(address.to_string(), "0000:01:13.2");
}

/// The first line of what is said about the tree with a change to it.
#[track_caller]
fn tree_complaint(from: &str, to: &str) -> String {
    assert!(TREE.contains(from));
    let complaint = complaint(&TREE.replace(from, to));
    assert_eq!(complaint.matches("error: ").count(), 1, "{complaint}");
    complaint
}

#[test]
fn bridges_that_cannot_be() {
    assert_eq!(
        tree_complaint("\"root/01.0\"", "\"rot/01.0\""),
        "\
error: c.toml:3:32: bus.a.bridge: there is no bus `rot`
  |
3 | bus.a = { number = 1, bridge = \"rot/01.0\" }
  |                                ^^^^^^^^^^
  = help: did you mean `root`? (buses: root, a, b)
"
    );
    for wrong in ["root", "root/1", "root/20.0", "root/01.8", "root/00:01.0", "01.0", ""] {
        let said = tree_complaint("\"root/01.0\"", &format!("\"{wrong}\""));
        assert!(said.contains("is no place of a bridge"), "{said}");
        assert!(said.contains("help: write BUS/DEVICE.FUNCTION"), "{said}");
    }
    let said = tree_complaint("\"root/1f.7\"", "\"root/01.0\"");
    assert!(said.contains("bus.b.bridge: 0000:00:01.0 is `bus.a` (line 3) already"), "{said}");
    let said = tree_complaint("{ number = 1, bridge", "{ segment = 1, number = 1, bridge");
    assert!(said.contains("the bridge is on segment 0000"), "{said}");
    assert!(said.contains("help: write segment = 0"), "{said}");
    let said = tree_complaint("\"root/01.0\"", "\"a/01.0\"");
    assert!(said.contains("this bus is behind itself: a behind a"), "{said}");
}

#[test]
fn buses_in_a_ring() {
    let text = "bus.a = { number = 1, bridge = \"b/1.0\" }\n\
                bus.b = { number = 2, bridge = \"c/1.0\" }\n\
                bus.c = { number = 3, bridge = \"a/1.0\" }\n\
                bus.d = { number = 4, bridge = \"a/2.0\" }\n\
                [device.e]\nmodel = \"edu\"\nsocket = \"s\"\n";
    let complaint = complaint(text);
    let expected = [
        "bus.a.bridge: this bus is behind itself: a behind b behind c behind a",
        "bus.b.bridge: this bus is behind itself: b behind c behind a behind b",
        "bus.c.bridge: this bus is behind itself: c behind a behind b behind c",
    ];
    for expected in expected {
        assert!(complaint.contains(expected), "{complaint}");
    }
    assert_eq!(complaint.matches("error: ").count(), 3, "{complaint}");
}

#[test]
fn a_reset_does_not_reach_past_its_set() {
    // A device beside the bridge, on a bus that is reset as a whole.
    let with = |reset: &str, number| {
        format!(
            "{}\nbus.c = {{ number = 3, bridge = \"a/07.0\" }}\nslot.c = {{ bus = \"c\" }}\n",
            TREE.replace("bus.a = {", &format!("bus.a = {{ reset = \"{reset}\","))
                .replace("number = 3 }", &format!("number = {number} }}"))
        )
    };
    let config = |reset, number| {
        // Tables cannot be added to behind the devices.
        let text = with(reset, number);
        let (head, tail) = text.split_once("[device.pf]").unwrap();
        let (devices, more) = tail.split_once("\nbus.c").unwrap();
        let device = "[device.deep]\nmodel = \"edu\"\nslot = \"c\"\nsocket = \"/tmp/deep\"\n";
        format!("{head}bus.c{more}[device.pf]{devices}{device}")
    };
    let said = complaint(&config("bus", 3));
    assert!(
        said.contains("bus.c.bridge: a reset of `device.pf` and its set would reach"),
        "{said}"
    );
    assert!(said.contains("help: put `reset = \"slot\"` or \"none\" into `bus.a`"), "{said}");
    let said = complaint(&config("slot", 7));
    assert!(said.contains("help: give the bridge a slot of its own"), "{said}");
    parse(&config("slot", 3)).unwrap();
    parse(&config("none", 3)).unwrap();
}

#[test]
fn virtual_functions_that_cannot_be() {
    for (from, to, expected) in [
        (
            "physical_function = \"pf\"",
            "physical_function = \"fp\"",
            "device.vf.physical_function: there is no device `fp`",
        ),
        (
            "physical_function = \"pf\"",
            "physical_function = \"other\"",
            "device.vf.physical_function: device `other` has no virtual functions",
        ),
        ("function = 2\n", "function = 4\n", "device.vf.function: `pf` has 4 virtual functions"),
        ("function = 2\n", "function = 256\n", "device.vf.function: this number is out of range"),
        (
            "function = 2\n",
            "slot = \"a\"\nfunction = 2\n",
            "device.vf.slot: a virtual function is where its physical function puts it",
        ),
        (
            "offset = 64, stride = 2",
            "offset = 230, stride = 2",
            "device.vf.function: virtual function 2 of `pf` would be past the end of its bus",
        ),
        (
            "{ total = 4, offset = 64, stride = 2 }",
            "{ offset = 64 }",
            "device.pf.virtual_functions: `total` is missing",
        ),
        ("total = 4,", "total = 0,", "virtual_functions.total: this number is out of range"),
        ("total = 4,", "totel = 4, total = 4,", "virtual_functions.totel: there is no such key"),
        (
            "vf_token = \"bd8d9d2b-",
            "vf_token = \"bd8d9d2b",
            "device.pf.vf_token: `bd8d9d2b5a5f-4f5a-a211-f591514ba1f3` is no UUID",
        ),
        (
            "slot = \"b\"\nsocket",
            "slot = \"b\"\nvf_token = \"bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3\"\nsocket",
            "device.other.vf_token: only SR-IOV functions have a use for a token",
        ),
        (
            "slot = \"b\"\nsocket",
            "slot = \"b\"\nphysical_function = \"pf\"\nvirtual_functions = 1\nsocket",
            "device.other.virtual_functions: a virtual function has no virtual functions",
        ),
        (
            "model = \"edu\"\nphysical",
            "model = \"gpio\"\nphysical",
            "device.vf.physical_function: `pf` is of another model, edu",
        ),
    ] {
        assert!(TREE.contains(from), "{from}");
        let said = complaint(&TREE.replace(from, to));
        assert!(said.contains(expected), "{said}\n{expected}");
    }
    let alone = "[device.e]\nmodel = \"edu\"\nvirtual_functions = 1\nsocket = \"s\"\n";
    let said = complaint(alone);
    assert!(said.contains("follows from where it is, which is nowhere"), "{said}");
}

#[test]
fn a_virtual_function_in_somebodys_place() {
    // Number 2 is at 03.0 + 64 + 2 * 2 functions, which is 0b.4.
    let text = TREE.replace("slot.b = {", "slot.c = { bus = \"a\", number = 0xb }\nslot.b = {")
        + "[device.here]\nmodel = \"edu\"\nslot = \"c\"\nsocket = \"/tmp/h\"\n\
           [device.there]\nmodel = \"edu\"\nslot = \"c\"\nfunction = 4\nsocket = \"/tmp/t\"\n";
    let said = complaint(&text);
    assert!(said.contains("device.vf: 0000:01:0b.4 is `device.there` (line"), "{said}");
    let text = TREE.to_owned()
        + "[device.again]\nmodel = \"edu\"\nphysical_function = \"pf\"\nfunction = 2\n\
           socket = \"/tmp/again\"\n";
    let said = complaint(&text);
    assert!(
        said.contains("device.again.function: virtual function 2 of `pf` is `device.vf` (line"),
        "{said}"
    );
}

#[test]
fn containers_and_what_is_in_them() {
    let text = "\
[container.fabric]
id = 2
socket = \"/tmp/a\"
[container.fabric.object.portal]
kind = \"dpmcp\"
id = 1
socket = \"/tmp/b\"
";
    let config = read("c.toml", text, &Models::new()).unwrap();
    let [container] = &config.containers[..] else { panic!("{config:?}") };
    assert_eq!((container.id, container.objects.len()), (2, 1));
    assert_eq!(container.objects[0].kind, vfiod_fsl_mc::Kind::Dpmcp);

    let wrong = [
        ("kind = \"dpmcp\"", "kind = \"dpmpc\"", "did you mean `dpmcp`?"),
        ("kind = \"dpmcp\"", "", "`kind` is missing"),
        ("id = 1", "id = -1", "out of range"),
        ("id = 1", "", "`id` is missing"),
        ("/tmp/b", "/tmp/a", "this socket is `container.fabric` (line 3) already"),
        ("object.portal", "object.fabric", "`fabric` is the name of another device already"),
    ];
    for (right, wrong, says) in wrong {
        let complaint = complaint(&text.replacen(right, wrong, 1));
        assert!(complaint.contains(says), "{wrong}: {complaint}");
    }
    let twice = text.to_owned()
        + "[container.fabric.object.other]\nkind = \"dpmcp\"\nid = 1\nsocket = \"/tmp/c\"\n\
           [container.second]\nid = 2\nsocket = \"/tmp/d\"\n";
    let complaint = complaint(&twice);
    assert!(complaint.contains("dpmcp.1 is `container.fabric.object.portal` (line 6) already"));
    assert!(
        complaint.contains("container 2 is `container.fabric` (line 2) already"),
        "{complaint}"
    );
}

#[test]
fn containers_inside_others() {
    let text = "\
[container.fabric]
id = 2
socket = \"/tmp/a\"
[container.inner]
inside = \"fabric\"
id = 3
socket = \"/tmp/b\"
";
    let config = read("c.toml", text, &Models::new()).unwrap();
    let inside: Vec<_> = config.containers.iter().map(|one| one.inside.as_deref()).collect();
    assert_eq!(inside, [None, Some("fabric")]);

    // The order is the file's, not that of the names.
    let renamed = text.replace("fabric", "outer");
    assert!(read("c.toml", &renamed, &Models::new()).is_ok());
    let wrong = [
        ("inside = \"fabric\"", "inside = \"fabrik\"", "there is no container `fabrik`"),
        ("inside = \"fabric\"", "inside = \"fabrik\"", "did you mean `fabric`?"),
        ("inside = \"fabric\"", "inside = \"inner\"", "a container is not inside itself"),
        ("inside = \"fabric\"", "inside = 2", "container.inner.inside"),
        ("id = 2", "id = 2\ninside = \"inner\"", "3:10: container.fabric.inside"),
        ("id = 2", "id = 2\ninside = \"inner\"", "`inner` comes after what is inside it"),
    ];
    for (right, wrong, says) in wrong {
        let complaint = complaint(&text.replacen(right, wrong, 1));
        assert!(complaint.contains(says), "{wrong}: {complaint}");
    }
}

#[test]
fn version_that_is_not_known_is_refused() {
    let device = "[device.e]\nmodel = \"edu\"\nsocket = \"/run/e\"\n";
    parse(&format!("version = 1\n{device}")).unwrap();
    assert_eq!(
        complaint(&format!("version = 2\n{device}")),
        "\
error: c.toml:1:11: version: this is no version of the format that this program knows
  |
1 | version = 2
  |           ^
  = help: write version = 1, or use a newer program
"
    );
}

#[test]
fn more_for_one_device_than_there_is_for_all_is_a_mistake() {
    let text = "\
limits.device_connections = 2
limits.reserved_connections = 9
limits.mappings = 100
limits.reserved_mappings = 101
control.socket = \"/tmp/control\"
";
    assert_eq!(
        complaint(text),
        "\
error: c.toml:2:31: limits.reserved_connections: 9 for each device, but `device_connections` is 2
  |
2 | limits.reserved_connections = 9
  |                               ^
  = help: write at most 2, or a larger `device_connections`

error: c.toml:4:28: limits.reserved_mappings: 101 for each device, but `mappings` is 100
  |
4 | limits.reserved_mappings = 101
  |                            ^^^
  = help: write at most 100, or a larger `mappings`
"
    );
    let above_the_default =
        "limits.reserved_connections = 257\ncontrol.socket = \"/tmp/control\"\n";
    assert!(complaint(above_the_default).contains("but `device_connections` is 256"));
}
