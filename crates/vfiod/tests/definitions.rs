//! Definitions and names that can be misunderstood, as their user meets them.

mod process;

use std::path::{Path, PathBuf};
use std::process::Command;

use process::{Daemon, bad, good, vfiod, where_little_fits};

const UUID: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
const OTHER: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1002";

struct Rig {
    directory: tempfile::TempDir,
    _daemon: Daemon,
}

impl Rig {
    /// Starts a daemon; `prepare` is given the directory of definitions before.
    fn new(prepare: impl FnOnce(&Path)) -> Self {
        Self::started(prepare, |config| vfiod(["serve", "--no-sandbox", config.to_str().unwrap()]))
    }

    /// Starts a daemon by a command for its configuration.
    fn started(prepare: impl FnOnce(&Path), command: impl FnOnce(&Path) -> Command) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::create_dir(path("definitions")).unwrap();
        prepare(&path("definitions"));
        let text = format!(
            "[device.e]\nmodel = \"edu\"\nopen = \"multi\"\nsocket = {:?}\n\
             [parent.p]\nmodel = \"gpio\"\n\
             [mdev]\nsockets = {:?}\ndefinitions = {:?}\n[control]\nsocket = {:?}\n",
            path("e"),
            path("mdev"),
            path("definitions"),
            path("control")
        );
        std::fs::write(path("c.toml"), text).unwrap();
        let command = command(&path("c.toml"));
        let daemon = Daemon::serving(command, &[&path("control"), &path("e")]);
        Self { directory, _daemon: daemon }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn args(&self, args: &[&str]) -> Vec<String> {
        process::at(&self.path("control"), args)
    }

    fn good(&self, args: &[&str]) -> String {
        good(self.args(args))
    }

    fn bad(&self, code: i32, args: &[&str]) -> String {
        bad(code, self.args(args))
    }
}

#[test]
fn instance_of_a_defined_uuid_is_started_and_not_created() {
    let rig = Rig::new(|_| {});
    rig.good(&["define", "p", "gpio-16", "--uuid", UUID, "-a", "inputs=7"]);
    let said = rig.bad(4, &["create", "p", "gpio-16", "--uuid", UUID]);
    assert!(said.contains(&format!("is defined under p: start it with `start {UUID}`")), "{said}");
    rig.good(&["start", UUID]);
    rig.good(&["create", "p", "gpio-16", "--uuid", OTHER]);
}

#[test]
fn definition_takes_no_value_that_its_start_would_refuse() {
    let rig = Rig::new(|_| {});
    let said = rig.bad(2, &["define", "p", "gpio-16", "--uuid", UUID, "-a", "inputs=70000"]);
    assert!(said.contains("`70000` is no number from 0 to 0xffff (EINVAL)"), "{said}");
    rig.good(&["define", "p", "gpio-16", "--uuid", UUID, "-a", "inputs=7"]);
    let said = rig.bad(2, &["modify", UUID, "-a", "inputs=many"]);
    assert!(said.contains("`many` is no number"), "{said}");
    rig.good(&["start", UUID]);
}

#[test]
fn list_says_why_a_definition_did_not_start_and_which_files_are_damaged() {
    let definition = |value: &str| {
        format!(
            r#"{{"mdev_type": "gpio-16", "start": "auto", "attrs": [{{"inputs": "{value}"}}]}}"#
        )
    };
    let rig = Rig::new(|definitions| {
        std::fs::create_dir(definitions.join("p")).unwrap();
        std::fs::write(definitions.join("p").join(UUID), definition("70000")).unwrap();
        let damaged = std::fs::File::create(definitions.join("p").join(OTHER)).unwrap();
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
        damaged.set_modified(old).unwrap();
    });
    for _ in 0..2 {
        let list = rig.good(&["list", "definitions"]);
        assert!(list.contains(&format!("not started: {UUID}: `70000` is no number")), "{list}");
        assert!(list.contains(&format!("{OTHER}: it is empty; set aside as ")), "{list}");
    }
    rig.good(&["modify", UUID, "-a", "inputs=7"]);
    rig.good(&["start", UUID]);
    let list = rig.good(&["list", "definitions"]);
    assert!(!list.contains("not started"), "{list}");
}

#[test]
fn number_that_is_a_file_and_a_device_is_not_guessed_at() {
    let rig = Rig::new(|_| {});
    let clients = [(); 2].map(|()| process::connect(rig.path("e")).unwrap());
    let files: serde_json::Value =
        serde_json::from_str(&rig.good(&["list", "files", "--json"])).unwrap();
    let files = files.as_array().unwrap();
    let number = files.last().unwrap()["number"].to_string();
    let absent = "4711";
    for name in [&*number, absent] {
        let socket = rig.path(name).display().to_string();
        rig.good(&["add", name, "--device", "edu", "--socket-path", &socket]);
    }
    for command in ["revoke", "show"] {
        let said = rig.bad(2, &[command, &number]);
        let expected = format!("`{number}` is the number of a file and the name of a device");
        assert!(said.contains(&expected), "{said}");
    }
    assert_eq!(rig.good(&["revoke", absent]), "0\n");
    assert_eq!(rig.good(&["revoke", &number, "--kind", "device"]), "0\n");
    assert_eq!(rig.good(&["revoke", &number, "--kind", "file"]), "");
    // It has no file of this number any more.
    assert_eq!(rig.good(&["revoke", &number]), "0\n");
    drop(clients);
}

#[test]
fn refusal_says_the_cause_and_the_errno() {
    let rig = Rig::new(|_| {});
    std::fs::remove_dir_all(rig.path("definitions")).unwrap();
    std::fs::write(rig.path("definitions"), "in the way").unwrap();
    let said = rig.bad(1, &["define", "p", "gpio-16", "--uuid", UUID]);
    assert!(said.contains("cannot write ") && said.contains("(ENOTDIR)"), "{said}");
    assert!(said.contains("Not a directory") || said.contains("not a directory"), "{said}");
}

#[test]
fn full_disk_is_the_reason_that_a_definition_is_refused_for() {
    let probe = tempfile::tempdir().unwrap();
    if where_little_fits(probe.path(), "size=32k").is_none() {
        return;
    }
    let rig = Rig::started(
        |_| {},
        |config| {
            let mut command =
                where_little_fits(&config.with_file_name("definitions"), "size=32k").unwrap();
            command.arg(env!("CARGO_BIN_EXE_vfiod")).args(["serve", "--no-sandbox"]).arg(config);
            command
        },
    );
    let uuid = |n: usize| format!("83b8f4f2-509f-382f-3c1e-{n:012x}");
    let define = |n| process::run(rig.args(&["define", "p", "gpio-16", "--uuid", &uuid(n)]));
    // Each takes a page at least.
    let full = (0..16).map(define).take_while(|output| output.status.success()).count();
    assert!((1..16).contains(&full), "{full} fit");
    let said = rig.bad(1, &["define", "p", "gpio-16", "--uuid", &uuid(full)]);
    assert!(said.contains("cannot write ") && said.contains("(ENOSPC)"), "{said}");
    assert!(said.contains("No space left on device"), "{said}");
    // What was there is whole, and there is room again.
    rig.good(&["undefine", &uuid(0)]);
    rig.good(&["define", "p", "gpio-16", "--uuid", &uuid(full)]);
    let list = rig.good(&["list", "definitions"]);
    assert_eq!((0..=full).filter(|n| list.contains(&uuid(*n))).count(), full, "{list}");
}
