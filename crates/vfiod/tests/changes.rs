//! Devices that come and go while the daemon runs: `add`, `del`, `reload`, SIGHUP, `config`.

mod process;

use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};

use process::{Daemon, bad, good, until, vfiod};
use rustix::process::Signal;

/// A daemon with a configuration file in a directory of its own.
struct Stage {
    directory: tempfile::TempDir,
    daemon: Daemon,
}

const HEAD: &str = "\
# What operators write between the lines stays.
bus.b = { number = 1 }
slot.s = { bus = \"b\", number = 2 }
";

impl Stage {
    fn start(devices: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let stage = |name: &str| directory.path().join(name);
        write(directory.path(), devices);
        let mut command = vfiod(["serve"]);
        command.arg(stage("vfiod.toml"));
        let daemon = Daemon::serving(command, &[&stage("control.sock")]);
        Self { directory, daemon }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, devices: &str) {
        write(self.directory.path(), devices);
    }

    fn args(&self, args: &[&str]) -> Vec<String> {
        process::at(&self.path("control.sock"), args)
    }

    fn good(&self, args: &[&str]) -> String {
        good(self.args(args))
    }

    fn bad(&self, code: i32, args: &[&str]) -> String {
        bad(code, self.args(args))
    }

    fn add(&self, name: &str, model: &str, more: &[&str]) -> Vec<String> {
        let socket = self.path(name).display().to_string();
        let args = ["add", name, "--device", model, "--socket-path", &socket];
        let args: Vec<&str> = args.into_iter().chain(more.iter().copied()).collect();
        self.args(&args)
    }

    fn names(&self) -> Vec<String> {
        let list: serde_json::Value =
            serde_json::from_str(&self.good(&["list", "--json"])).unwrap();
        let names = list.as_array().unwrap().iter().map(|device| {
            format!("{} ({})", device["name"].as_str().unwrap(), device["origin"].as_str().unwrap())
        });
        names.collect()
    }
}

fn write(directory: &Path, devices: &str) {
    let control = directory.join("control.sock");
    let text = format!("{HEAD}{}\n[control]\nsocket = {control:?}\n", at(directory, devices));
    std::fs::write(directory.join("vfiod.toml"), text).unwrap();
}

/// Sockets named `@NAME` are in the directory.
fn at(directory: &Path, text: &str) -> String {
    text.replace('@', &format!("{}/", directory.display()))
}

fn device(name: &str, rest: &str) -> String {
    format!("\n[device.{name}]\nmodel = \"edu\"\nsocket = \"@{name}\"\n{rest}")
}

#[test]
fn an_added_device_is_served_and_a_deleted_one_is_not() {
    let stage = Stage::start(&device("first", ""));
    assert_eq!(
        good(stage.add("second", "gpio", &["--option", "inputs=3"])),
        "added: second\nuntouched: 1\n"
    );
    let client = process::connect(stage.path("second")).unwrap();
    assert_eq!(stage.names(), ["first (file)", "second (added)"]);
    drop(client);
    until("the last close", || stage.good(&["show", "second", "--json"]).contains("\"idle\""));
    assert_eq!(stage.good(&["del", "second"]), "removed: second\nuntouched: 1\n");
    assert!(!stage.path("second").exists());
    assert_eq!(stage.good(&["del", "first"]), "removed: first\nuntouched: 0\n");
    assert_eq!(stage.names(), [""; 0]);
    let (status, log) = stage.daemon.terminate(Signal::TERM);
    assert!(status.success(), "{log}");
}

#[test]
fn a_daemon_that_starts_without_devices_gets_its_first_one_by_add() {
    let stage = Stage::start("");
    assert_eq!(stage.names(), [""; 0]);
    good(stage.add("first", "edu", &[]));
    assert_eq!(stage.names(), ["first (added)"]);
    // Without a device again, what runs is still a file that makes it again.
    stage.good(&["del", "first"]);
    let file = stage.path("again.toml");
    std::fs::write(&file, stage.good(&["config"])).unwrap();
    let file = file.display().to_string();
    let checked = good(["serve", "--check", &file].map(str::to_owned));
    assert_eq!(checked, "the configuration is right: 0 devices\n");
}

#[test]
fn a_device_in_use_is_deleted_only_with_a_deadline() {
    let stage = Stage::start(&device("first", ""));
    let mut client = process::connect(stage.path("first")).unwrap();
    let said = stage.bad(4, &["del", "first"]);
    assert!(said.contains("in use: first by pid "), "{said}");
    assert!(said.contains("--deadline 5s"), "{said}");
    client.device_info().expect("nothing was changed");
    stage.good(&["del", "first", "--deadline", "0"]);
    assert!(client.device_info().is_err());
    assert_eq!(stage.names(), [""; 0]);
}

#[test]
fn del_that_waits_removes_the_device_once_its_user_has_closed_it() {
    let stage = Stage::start(&device("first", "open = \"multi\"\n"));
    let client = process::connect(stage.path("first")).unwrap();
    let said = stage.bad(4, &["del", "first", "--wait", "--timeout", "10ms"]);
    assert!(said.contains("in use: first by pid "), "{said}");
    let arguments = stage.args(&["del", "first", "--wait"]);
    let waiting = std::thread::spawn(|| good(arguments));
    until("opens are refused", || process::connect(stage.path("first")).is_err());
    assert!(!waiting.is_finished());
    assert_eq!(stage.names(), ["first (file)"]);
    drop(client);
    assert_eq!(waiting.join().unwrap(), "removed: first\nuntouched: 0\n");
    assert_eq!(stage.names(), [""; 0]);
}

#[test]
fn device_can_be_opened_again_after_a_del_that_gave_up_waiting() {
    let stage = Stage::start(&device("first", "open = \"multi\"\n"));
    let client = process::connect(stage.path("first")).unwrap();
    stage.bad(4, &["del", "first", "--wait", "--timeout", "10ms"]);
    drop(client);
    drop(process::connect(stage.path("first")).unwrap());
}

#[test]
fn a_wrong_device_is_refused_with_key_and_remedy() {
    let stage = Stage::start(&device("first", ""));
    for (args, expected) in [
        (
            stage.add("x", "edo", &[]),
            "device.x.model: there is no model `edo`; did you mean `edu`?",
        ),
        (
            stage.add("x", "gpio", &["--option", "inputs=70000"]),
            "device.x.options.inputs: invalid value: integer `70000`, expected u16; write a number \
             from 0 to 65535",
        ),
        (stage.add("x", "edu", &["--slot", "t"]), "device.x.slot: there is no slot `t`"),
        (
            stage.add("x", "edu", &["--slot", "s", "--function", "1"]),
            "slot.s: no device is function 0 of this slot",
        ),
    ] {
        let said = bad(2, args);
        assert!(said.contains(expected), "{said}");
    }
    let said = bad(4, stage.add("first", "edu", &[]));
    assert!(said.contains("device.first: there is a device of this name already"), "{said}");
    let socket = stage.path("first").display().to_string();
    let args = ["add", "x", "--device", "edu", "--socket-path", &socket];
    let said = stage.bad(2, &args);
    assert!(said.contains("device.x.socket: this socket is `device.first`"), "{said}");
    let socket = format!("{socket}.new/");
    let said = stage.bad(2, &["add", "x", "--device", "edu", "--socket-path", &socket]);
    assert!(said.contains("cannot use as a socket's path"), "{said}");
    let said = stage.bad(2, &["add", "\u{1b}[31mx", "--device", "edu", "--socket-path", "/x"]);
    assert!(said.contains("is no name for a device"), "{said}");
    assert_eq!(stage.names(), ["first (file)"]);
}

#[test]
fn a_reload_changes_what_differs_and_leaves_the_rest() {
    let stage = Stage::start(&(device("same", "") + &device("other", "") + &device("gone", "")));
    good(stage.add("extra", "edu", &[]));
    let mut client = process::connect(stage.path("same")).unwrap();
    let other = device("other", "options.dma_mask = 0xffff\n");
    stage.write(&(device("same", "") + &other + &device("new", "")));
    let said = stage.good(&["reload"]);
    assert_eq!(said, "added: new\nremoved: gone\nchanged: other\nuntouched: 2\n");
    client.device_info().expect("it was not touched");
    assert_eq!(stage.names(), ["same (file)", "extra (added)", "new (file)", "other (file)"],);
    UnixStream::connect(stage.path("new")).unwrap();
    assert!(!stage.path("gone").exists());
    assert_eq!(stage.good(&["reload"]), "untouched: 4\n");
}

/// The service manager's end of `NOTIFY_SOCKET`.
struct Notified(UnixDatagram);

impl Notified {
    fn listen(path: &Path) -> Self {
        Self(UnixDatagram::bind(path).unwrap())
    }

    /// Waits for a message that begins like this.
    fn wait(&self, beginning: &str) {
        let mut message = [0; 256];
        loop {
            let len = self.0.recv(&mut message).unwrap();
            if message[..len].starts_with(beginning.as_bytes()) {
                return;
            }
        }
    }
}

#[test]
fn sighup_reloads_and_notifies_the_service_manager() {
    let directory = tempfile::tempdir().unwrap();
    let notify = directory.path().join("notify");
    let notified = Notified::listen(&notify);
    write(directory.path(), &device("first", ""));
    let mut command = vfiod(["serve"]);
    command.arg(directory.path().join("vfiod.toml")).env("NOTIFY_SOCKET", &notify);
    let daemon = Daemon::start(command);
    notified.wait("READY=1");

    write(directory.path(), &(device("first", "") + &device("second", "")));
    daemon.signal(Signal::HUP);
    notified.wait("RELOADING=1\nMONOTONIC_USEC=");
    notified.wait("READY=1\nSTATUS=serving 2 devices");
    UnixStream::connect(directory.path().join("second")).unwrap();

    write(directory.path(), "nonsense");
    daemon.signal(Signal::HUP);
    notified.wait("RELOADING=1");
    notified.wait("READY=1\nSTATUS=serving 2 devices");
    let (status, log) = daemon.terminate(Signal::TERM);
    assert!(status.success(), "{log}");
    assert!(log.contains("the configuration was not reloaded"), "{log}");
}

#[test]
fn a_wrong_file_is_refused_whole_with_place_and_remedy() {
    let stage = Stage::start(&device("first", ""));
    stage.write(&(device("second", "open = \"double\"\n")));
    let said = stage.bad(2, &["reload"]);
    assert!(said.contains("vfiod.toml:8:8: device.second.open: `double` is not"), "{said}");
    assert!(said.contains("help: values: single, multi"), "{said}");
    assert_eq!(stage.names(), ["first (file)"]);

    stage
        .write("\n[device.first]\nmodel = \"gpio\"\nsocket = \"@first\"\noptions.inputs = 70000\n");
    let said = stage.bad(2, &["reload"]);
    assert!(said.contains("vfiod.toml:8:18: device.first.options.inputs: "), "{said}");

    stage.write(&format!("threads = 7\n{}", device("first", "")));
    let said = stage.bad(2, &["reload"]);
    assert!(said.contains("vfiod.toml:4:11: threads: this cannot change while"), "{said}");
    assert!(said.contains("help: restart the daemon, or put back what was there"), "{said}");
}

#[test]
fn a_reload_names_what_is_in_use_and_changes_nothing() {
    let stage = Stage::start(&(device("busy", "") + &device("idle", "")));
    let _client = process::connect(stage.path("busy")).unwrap();
    stage.write(&device("new", ""));
    let said = stage.bad(4, &["reload"]);
    assert!(said.contains("in use: busy by pid "), "{said}");
    assert!(said.contains("nothing was changed"), "{said}");
    assert_eq!(stage.names(), ["busy (file)", "idle (file)"]);
    stage.good(&["reload", "--deadline", "0"]);
    assert_eq!(stage.names(), ["new (file)"]);
}

#[test]
fn a_device_that_is_renamed_counts_as_removed_and_added() {
    let stage = Stage::start(&device("old", ""));
    stage.write("\n[device.new]\nmodel = \"edu\"\nsocket = \"@old\"\n");
    assert_eq!(
        stage.good(&["reload"]),
        "added: new\nremoved: old\nuntouched: 0\n\
         note: new has a socket of old: old was removed and new added\n"
    );
    process::connect(stage.path("old")).unwrap();
}

#[test]
fn a_name_that_was_added_and_comes_with_the_file_is_refused() {
    let stage = Stage::start(&device("first", ""));
    good(stage.add("second", "edu", &[]));
    stage.write(&(device("first", "") + &device("second", "")));
    let said = stage.bad(2, &["reload"]);
    assert!(said.contains("device.second: a device of this name was added while"), "{said}");
    assert!(said.contains("remove it first (`del second`)"), "{said}");
}

#[test]
fn a_function_that_would_change_its_neighbour_is_refused() {
    let stage = Stage::start(&device("first", "slot = \"s\"\n"));
    let said = bad(4, stage.add("second", "edu", &["--slot", "s", "--function", "1"]));
    assert!(said.contains("adding second would remove and add again: first"), "{said}");
    // Through the file it goes, as the operator has seen it.
    stage.write(
        &(device("first", "slot = \"s\"\n") + &device("second", "slot = \"s\"\nfunction = 1\n")),
    );
    assert_eq!(stage.good(&["reload"]), "added: second\nchanged: first\nuntouched: 0\n");
    assert_eq!(stage.good(&["del", "second"]), "removed: second\nuntouched: 1\n");
}

#[test]
fn what_config_prints_makes_the_same_again() {
    let stage = Stage::start(&(device("first", "") + &device("second", "")));
    good(stage.add("third", "gpio", &["--option", "inputs=3", "--open", "multi"]));
    stage.good(&["del", "first"]);
    let text = stage.good(&["config"]);
    assert!(text.starts_with("# What operators write between the lines stays.\n"), "{text}");
    assert!(!text.contains("[device.first]"), "{text}");
    assert!(
        text.contains("# Added while the daemon ran.\n[device.third]\nmodel = \"gpio\"\n"),
        "{text}"
    );
    let copy = stage.path("copy.toml");
    std::fs::write(&copy, &text).unwrap();
    let said = good(["serve", "--check", copy.to_str().unwrap()]);
    assert_eq!(said, "the configuration is right: 2 devices\n");
}

#[test]
fn parents_come_and_go_with_a_reload() {
    let parent = "\n[parent.cards]\nmodel = \"edu\"\n";
    let stage = Stage::start(&device("first", ""));
    stage.write(&(device("first", "") + parent));
    assert_eq!(stage.good(&["reload"]), "added: cards\nuntouched: 1\n");
    let uuid = stage.good(&["create", "cards", "edu-1"]);
    stage.write(&device("first", ""));
    let said = stage.bad(4, &["reload"]);
    assert!(said.contains("in use: parent cards, which has 1 instances"), "{said}");
    stage.good(&["remove", uuid.trim()]);
    assert_eq!(stage.good(&["reload"]), "removed: cards\nuntouched: 1\n");
}

#[test]
fn a_daemon_without_a_file_refuses_to_reload() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, notify) = (directory.path().join("edu.sock"), directory.path().join("notify"));
    let notified = Notified::listen(&notify);
    let mut command = vfiod(["serve", "--device", "edu", "--socket-path"]);
    command.arg(&socket).env("NOTIFY_SOCKET", &notify);
    let daemon = Daemon::start(command);
    notified.wait("READY=1");
    daemon.signal(Signal::HUP);
    notified.wait("RELOADING=1");
    notified.wait("READY=1");
    let (status, log) = daemon.terminate(Signal::TERM);
    assert!(status.success(), "{log}");
    assert!(log.contains("started without a configuration file"), "{log}");
}

/// While users are waited for, other changes are made, and what is being removed says so.
#[test]
fn changes_that_wait_for_users_hold_up_no_others() {
    let names = ["a", "b", "c", "d", "e", "f"];
    let multi = "open = \"multi\"\n";
    let all: String = names.iter().map(|name| device(name, multi)).collect();
    let stage = Stage::start(&all);
    let connect = |name: &&str| process::connect(stage.path(name)).unwrap();
    let mut clients: Vec<_> = names.iter().map(connect).collect();
    // One after the other, as more changes than four are not begun at the same time.
    let waiting = names.map(|name| {
        let arguments = stage.args(&["del", name, "--deadline", "3600s"]);
        let waiting = std::thread::spawn(|| good(arguments));
        until("opens are refused", || process::connect(stage.path(name)).is_err());
        waiting
    });
    good(stage.add("new", "edu", &[]));
    assert_eq!(stage.good(&["reload"]), "untouched: 7\n");
    stage.good(&["del", "new"]);
    let refused = |args: Vec<String>| {
        let said = bad(4, args);
        let is_claimed = said.contains("a is being removed: its users are asked to close it");
        assert!(is_claimed, "not refused as one that is being removed: {said}");
        assert!(said.contains("nothing was changed"), "{said}");
    };
    refused(stage.args(&["del", "a"]));
    refused(stage.args(&["del", "a", "--deadline", "0"]));
    refused(stage.add("a", "edu", &[]));
    stage.write(&all.replacen(multi, "", 1));
    refused(stage.args(&["reload"]));
    refused(stage.args(&["reload", "--deadline", "3600s"]));
    for client in &mut clients {
        client.device_info().expect("nothing was changed");
    }
    // Who does not want to wait takes it from its user.
    stage.good(&["revoke", "a"]);
    clients.truncate(1);
    for one in waiting {
        let said = one.join().unwrap();
        assert!(said.starts_with("removed: "), "{said}");
    }
    assert_eq!(stage.names(), [""; 0]);
}

#[test]
fn reload_that_waits_for_users_holds_up_no_other_change() {
    let stage = Stage::start(&(device("busy", "open = \"multi\"\n") + &device("idle", "")));
    let client = process::connect(stage.path("busy")).unwrap();
    stage.write(&(device("new", "") + &device("idle", "")));
    let arguments = stage.args(&["reload", "--deadline", "3600s"]);
    let waiting = std::thread::spawn(|| good(arguments));
    until("opens are refused", || process::connect(stage.path("busy")).is_err());
    good(stage.add("added", "edu", &[]));
    drop(client);
    assert_eq!(waiting.join().unwrap(), "added: new\nremoved: busy\nuntouched: 2\n");
    assert_eq!(stage.names(), ["idle (file)", "added (added)", "new (file)"]);
}
