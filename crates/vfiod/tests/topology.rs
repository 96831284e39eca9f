//! Buses, slots and virtual functions from a configuration, through a daemon's sockets.

mod process;

use std::path::{Path, PathBuf};

use vfiod_client::Client;

use crate::process::{Daemon, vfiod};

const TOKEN: &str = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3";
const EACCES: Option<u32> = Some(13);
const EINVAL: Option<u32> = Some(22);

struct Tree {
    directory: tempfile::TempDir,
    _daemon: Daemon,
}

impl Tree {
    fn new(virtual_token: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let device = |name: &str, rest: &str| {
            let socket = directory.path().join(name);
            format!(
                "[device.{name}]\nmodel = \"edu\"\nopen = \"multi\"\nsocket = {socket:?}\n{rest}\n"
            )
        };
        let text = [
            "bus.root = { number = 0, reset = \"none\" }\n\
             bus.slots = { number = 1, bridge = \"root/01.0\", reset = \"slot\" }\n\
             bus.whole = { number = 2, bridge = \"root/02.0\", reset = \"bus\" }\n\
             slot.r = { bus = \"root\", number = 3 }\n\
             slot.s = { bus = \"slots\", number = 3 }\n\
             slot.t = { bus = \"slots\", number = 4 }\n\
             slot.u = { bus = \"whole\", number = 5 }\n\
             slot.v = { bus = \"whole\", number = 6 }\n"
                .to_owned(),
            device("r0", "slot = \"r\""),
            device("r1", "slot = \"r\"\nfunction = 1"),
            device("s0", "slot = \"s\""),
            device("s1", "slot = \"s\"\nfunction = 1"),
            device("t0", "slot = \"t\""),
            device("u0", "slot = \"u\"\nvirtual_functions = 2"),
            device("v0", "slot = \"v\""),
            device("vf0", "physical_function = \"u0\""),
            device("vf1", &format!("physical_function = \"u0\"\nfunction = 1\n{virtual_token}")),
        ]
        .concat();
        let path = directory.path().join("tree.toml");
        std::fs::write(&path, text).unwrap();
        let last = directory.path().join("vf1");
        let daemon = Daemon::serving(vfiod(["serve", path.to_str().unwrap()]), &[&last]);
        Self { directory, _daemon: daemon }
    }

    fn path(&self, device: &str) -> PathBuf {
        self.directory.path().join(device)
    }

    fn open(&self, device: &str) -> vfiod_client::Result<Client> {
        process::connect(self.path(device))
    }

    fn open_with(&self, device: &str, token: &str) -> vfiod_client::Result<Client> {
        Client::connect_with(self.path(device), process::options().vf_token(token))
    }
}

fn members(client: &mut Client) -> Vec<String> {
    let member = |member: vfiod_client::wire::set::SetMember| {
        format!("{} {}", member.location.unwrap_or_default(), member.name)
    };
    client.hot_reset_info().unwrap().members.into_iter().map(member).collect()
}

/// Each PCI row of the table of set ids.
#[test]
fn who_is_reset_together() {
    let tree = Tree::new("");
    for (device, expected) in [
        ("r0", &["0000:00:03.0 r0"][..]),
        ("r1", &["0000:00:03.1 r1"]),
        ("s0", &["0000:01:03.0 s0", "0000:01:03.1 s1"]),
        ("s1", &["0000:01:03.0 s0", "0000:01:03.1 s1"]),
        ("t0", &["0000:01:04.0 t0"]),
        ("u0", &["0000:02:05.0 u0", "0000:02:06.0 v0"]),
        ("v0", &["0000:02:05.0 u0", "0000:02:06.0 v0"]),
    ] {
        assert_eq!(members(&mut tree.open(device).unwrap()), expected, "{device}");
    }
    let _physical = tree.open_with("u0", TOKEN).unwrap();
    let mut virtual_one = tree.open_with("vf0", TOKEN).unwrap();
    assert_eq!(members(&mut virtual_one), ["0000:02:15.0 vf0"]);
    assert_eq!(probed(&tree.path("s1")), "\t\t0000:01:03.0 s0\n\t\t0000:01:03.1 s1 (this)\n");
    assert_eq!(probed(&tree.path("t0")), "", "alone");
}

/// What a probe says of the members of the set.
fn probed(socket: &Path) -> String {
    let output = vfiod(["probe", "--timeout", "60s", socket.to_str().unwrap()]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let Some((_, rest)) = text.split_once("\tDevice set: 2 members, HotReset+\n") else {
        assert!(!text.contains("Device set"), "{text}");
        return String::new();
    };
    rest.lines()
        .take_while(|line| line.starts_with("\t\t"))
        .map(|line| format!("{line}\n"))
        .collect()
}

#[test]
fn a_probe_tells_of_virtual_functions() {
    let tree = Tree::new("");
    let socket = tree.path("u0");
    let output = vfiod(["probe", "--timeout", "60s", socket.to_str().unwrap()]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for expected in [
        "Single Root I/O Virtualization",
        "\t\tIOVCtl: Enable+ Migration- Interrupt- MSE+ ARIHierarchy-\n",
        "\t\tInitial VFs: 2, Total VFs: 2, Number of VFs: 2\n",
        "\t\tVF offset: 128, stride: 1, Device ID: 11e8\n",
    ] {
        assert!(text.contains(expected), "no `{expected}` in\n{text}");
    }
}

#[test]
fn on_a_root_bus_an_endpoint_is_integrated() {
    let tree = Tree::new("");
    for (device, kind) in [("r0", 9), ("s0", 0)] {
        let mut client = tree.open(device).unwrap();
        let mut config = [0; 256];
        client.region_read(7, 0, &mut config).unwrap();
        let mut at = usize::from(config[0x34]);
        while config[at] != 0x10 {
            at = usize::from(config[at + 1]);
        }
        assert_eq!(config[at + 2] >> 4, kind, "{device}");
    }
}

#[test]
fn virtual_functions_need_the_token() {
    let tree = Tree::new("");
    let errno = |opened: vfiod_client::Result<Client>| opened.unwrap_err().remote_errno();
    assert_eq!(errno(tree.open("vf0")), EACCES);
    assert_eq!(errno(tree.open_with("vf0", TOKEN)), EACCES, "nobody set it");
    assert_eq!(errno(tree.open_with("vf0", "no token")), EINVAL);
    assert_eq!(errno(tree.open_with("s0", TOKEN)), EINVAL, "of no use there");

    let mut physical = tree.open("u0").unwrap();
    physical.feature_probe(0, false, true).unwrap();
    let token = vfiod_client::wire::parse_uuid(TOKEN).unwrap();
    physical.feature_set(0, &token).unwrap();
    let mut virtual_one = tree.open_with("vf0", TOKEN).unwrap();
    assert_eq!(errno(tree.open_with("vf1", &TOKEN.replace('b', "a"))), EACCES);
    let mut id = [0; 4];
    virtual_one.region_read(7, 0, &mut id).unwrap();
    assert_eq!(u32::from_le_bytes(id), 0x11e8_1234);
    // While it is open, the physical one is for those who know the token.
    assert_eq!(errno(tree.open("u0")), EACCES);
    tree.open_with("u0", TOKEN).unwrap();
}

/// A client such as QEMU presents none: the configuration does it for whoever may connect.
#[test]
fn the_configuration_presents_a_token_for_clients_that_cannot() {
    let tree = Tree::new(&format!("vf_token = \"{TOKEN}\""));
    let _physical = tree.open_with("u0", TOKEN).unwrap();
    assert_eq!(tree.open("vf0").unwrap_err().remote_errno(), EACCES);
    tree.open("vf1").unwrap();
}
