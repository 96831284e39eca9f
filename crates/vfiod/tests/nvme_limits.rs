//! Limits of an NVMe controller that change while it runs, by `vfiod limit`: of a disk of the configuration, and of
//! a mediated one.

mod process;

use std::path::PathBuf;

use process::nvme::connect;
use process::{Daemon, at, bad, good, until, vfiod};
use serde_json::{Value, json};
use tempfile::TempDir;
use vfiod_nvme_driver::{Data, Waiting, opcode};

const MIB: u64 = 1 << 20;
const UUID: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";

struct Rig {
    directory: TempDir,
    _daemon: Daemon,
}

impl Rig {
    /// A disk that has one byte in a second, and a parent of disks with room for 3 MiB.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::File::create(at("disk.img")).unwrap().set_len(MIB).unwrap();
        let text = format!(
            "[device.disk]\nmodel = \"nvme\"\nsocket = {:?}\n\
             options = {{ file = {:?}, bandwidth = 1 }}\n\
             [device.edu]\nmodel = \"edu\"\nsocket = {:?}\n\
             [parent.disks]\nmodel = \"nvme\"\n\
             options = {{ directory = {:?}, capacity = 3145728, \
             types = [{{ name = \"small\", size = 1048576, iops = 100, iops_burst = 7 }}] }}\n\
             [mdev]\nsockets = {:?}\n[control]\nsocket = {:?}\n",
            at("disk"),
            at("disk.img"),
            at("edu"),
            at("disks"),
            at("mdev"),
            at("control"),
        );
        std::fs::write(at("c.toml"), text).unwrap();
        let command = vfiod(["--log", "warn", "serve", at("c.toml").to_str().unwrap()]);
        let daemon = Daemon::serving(command, &[&at("disk"), &at("control")]);
        Self { directory, _daemon: daemon }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, args: &[&str]) -> String {
        good(at(&self.at("control"), args))
    }

    fn refused(&self, code: i32, args: &[&str]) -> String {
        bad(code, at(&self.at("control"), args))
    }

    /// What a device's controller says of its limits.
    fn limits(&self, device: &str) -> Value {
        let shown =
            process::api::ask(&self.at("control"), "GET", &format!("devices/{device}"), None);
        shown.unwrap().1["model_status"]["limits"].take()
    }

    /// How many disks there can still be.
    fn available(&self) -> String {
        let types = self.command(&["types"]);
        let line = types.lines().find(|line| line.contains(" small ")).unwrap();
        line.split_whitespace().nth(2).unwrap().to_owned()
    }
}

/// With the limit of the configuration they would take an hour.
#[test]
fn commands_that_wait_go_on_when_the_limit_is_taken_away() {
    let rig = Rig::new();
    let mut controller = connect(&rig.at("disk"));
    let mut queue = controller.create_queue(16, Waiting::Interrupts).unwrap();
    let disk = controller.namespace(1).unwrap();
    let buffer = controller.memory().allocate(512).unwrap();
    for _ in 0..8 {
        let data = Data::of(&buffer);
        let read = disk.transfer(opcode::READ, 0, &data).unwrap();
        queue.submit(read, Some(data)).unwrap();
    }
    assert!(queue.wait().unwrap().status.is_success());
    let waits = |queues: u64| {
        json!({
            "iops": null, "iops_burst": null, "bandwidth": 1, "bandwidth_burst": 1, "waiting_queues": queues,
        })
    };
    until("a queue that waits", || rig.limits("disk") == waits(1));
    // It delays nothing else.
    controller.identify(1, 0).unwrap();
    assert_eq!(queue.in_flight(), 7);
    assert!(rig.command(&["config"]).contains("bandwidth = 1"));
    let set = rig.command(&["limit", "disk", "--bandwidth", "0"]);
    assert_eq!(set, "iops: no limit\nbandwidth: no limit\n");
    for _ in 0..7 {
        assert!(queue.wait().unwrap().status.is_success());
    }
    assert_eq!(rig.limits("disk")["waiting_queues"], 0);
    assert!(!rig.command(&["config"]).contains("bandwidth = 1"));
    // It stays so when the file is read again, which says nothing new.
    rig.command(&["reload"]);
    assert_eq!(rig.limits("disk")["bandwidth"], Value::Null);
    // And back: it holds for the next command.
    let set =
        rig.command(&["limit", "disk", "--bandwidth", "1", "--iops", "500", "--iops-burst", "3"]);
    assert_eq!(
        set,
        "iops: 500 commands a second, 3 at once\nbandwidth: 1 bytes a second, 1 at once\n"
    );
    for _ in 0..3 {
        let data = Data::of(&buffer);
        let read = disk.transfer(opcode::READ, 0, &data).unwrap();
        queue.submit(read, Some(data)).unwrap();
    }
    assert!(queue.wait().unwrap().status.is_success());
    until("a queue that waits", || rig.limits("disk")["waiting_queues"] == 1);
    rig.command(&["limit", "disk", "--bandwidth", "1G"]);
    assert!(queue.wait().unwrap().status.is_success());
    assert!(queue.wait().unwrap().status.is_success());
    let config = rig.command(&["config"]);
    for line in ["iops = 500", "iops_burst = 3", "bandwidth = 1073741824"] {
        assert!(config.contains(line), "{config}");
    }
}

#[test]
fn limits_that_cannot_be_are_refused_and_change_nothing() {
    let rig = Rig::new();
    let before = rig.limits("disk");
    for (code, args, expected) in [
        (2, vec!["limit", "disk"], "--iops <N>"),
        (2, vec!["limit", "disk", "--iops-burst", "5"], "`iops` sets it"),
        (
            2,
            vec!["limit", "disk", "--bandwidth", "0", "--bandwidth-burst", "5"],
            "`bandwidth` sets it",
        ),
        (2, vec!["limit", "disk", "--bandwidth", "much"], "such as 20G"),
        (2, vec!["operate", "disk", "set-limits"], "no limit is given; `iops`"),
        (2, vec!["operate", "disk", "set-limits", "iops=-1"], "-1"),
        (3, vec!["limit", "desk", "--iops", "5"], "desk"),
    ] {
        let said = rig.refused(code, &args);
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    let said = bad(1, at(&rig.at("control"), &["limit", "edu", "--iops", "5"]));
    assert!(said.contains("of a model that has no operations"), "{said}");
    assert_eq!(rig.limits("disk"), before);
}

/// A limit by the operation and one by the attribute are one limit.
#[test]
fn mediated_disk_has_one_limit_by_both_ways() {
    let rig = Rig::new();
    rig.command(&["create", "disks", "small", "--uuid", UUID]);
    let attribute = |name: &str| {
        let path = format!("instances/{UUID}");
        let (_, shown) = process::api::ask(&rig.at("control"), "GET", &path, None).unwrap();
        shown["attributes"][name].as_str().unwrap_or_else(|| panic!("{shown}")).to_owned()
    };
    assert_eq!(
        (attribute("iops"), rig.limits(UUID)["iops_burst"].clone()),
        ("100".to_owned(), json!(7))
    );
    rig.command(&["limit", UUID, "--iops", "200", "--bandwidth", "1M"]);
    assert_eq!((attribute("iops"), attribute("bandwidth")), ("200".to_owned(), MIB.to_string()));
    rig.command(&["modify", UUID, "--live", "-a", "iops=300"]);
    let limits = rig.limits(UUID);
    assert_eq!(
        (&limits["iops"], &limits["iops_burst"], &limits["bandwidth"]),
        (&json!(300), &json!(7), &json!(MIB))
    );
    rig.command(&["limit", UUID, "--iops-burst", "9"]);
    assert_eq!(
        (attribute("iops"), rig.limits(UUID)["iops_burst"].clone()),
        ("300".to_owned(), json!(9))
    );
    rig.command(&["limit", UUID, "--iops", "0", "--bandwidth", "0"]);
    assert_eq!((attribute("iops"), attribute("bandwidth")), ("0".to_owned(), "0".to_owned()));
}

/// What a disk has grown by is of its parent's capacity.
#[test]
fn mediated_disk_grows_within_the_capacity_of_its_parent() {
    let rig = Rig::new();
    rig.command(&["create", "disks", "small", "--uuid", UUID]);
    assert_eq!(rig.available(), "2");
    let said = rig.refused(4, &["namespace", "resize", UUID, "1", "--size", "4M"]);
    assert!(
        said.contains("3145728 bytes more do not fit in: images have 1048576 of 3145728"),
        "{said}"
    );
    let image = rig.at("disks").join(format!("{UUID}.img"));
    assert_eq!(std::fs::metadata(&image).unwrap().len(), MIB);
    rig.command(&["namespace", "resize", UUID, "1", "--size", "3M"]);
    assert_eq!(
        (rig.available(), std::fs::metadata(&image).unwrap().len()),
        ("0".to_owned(), 3 * MIB)
    );
    let said = rig.refused(4, &["create", "disks", "small"]);
    assert!(said.contains("3145728 of 3145728"), "{said}");
    rig.command(&["namespace", "resize", UUID, "1", "--size", "2M", "--force"]);
    assert_eq!(rig.available(), "1");
    rig.command(&["create", "disks", "small"]);
    assert_eq!(rig.available(), "0");
    // By others.
    std::fs::File::options().write(true).open(&image).unwrap().set_len(3 * MIB).unwrap();
    let said = rig.refused(4, &["namespace", "resize", UUID, "1"]);
    assert!(said.contains("do not fit in"), "{said}");
}
