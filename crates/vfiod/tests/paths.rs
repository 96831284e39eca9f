//! Paths of a configuration that are in each other's way, or in whose way something is: `serve --check`,
//! `serve`, `add` and `reload` refuse them alike.

mod process;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use process::api::ask;
use process::{Daemon, bad, run, vfiod};
use serde_json::json;

const UUID: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";

/// A directory with everything that may be in the way.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("file"), "in the way").unwrap();
    fs::create_dir_all(at("dir/sys/kernel")).unwrap();
    fs::create_dir_all(at("root/etc/mdevctl.d/others")).unwrap();
    fs::create_dir(at("empty")).unwrap();
    symlink("nothing", at("dangling")).unwrap();
    symlink("circle", at("circle")).unwrap();
    symlink(".", at("here")).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(at("fifo")).status().unwrap();
    assert!(fifo.success());
    directory
}

/// A section of a device; `rest` has its other keys.
fn device(name: &str, model: &str, socket: &Path, rest: &str) -> String {
    format!("[device.{name}]\nmodel = \"{model}\"\nsocket = {socket:?}\n{rest}\n")
}

/// What is in a directory, how old it is, and so whether anything has changed.
fn contents(directory: &Path) -> Vec<(String, u64, i64, i64)> {
    let mut found: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let status = fs::symlink_metadata(entry.path()).unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, status.ino(), status.mtime(), status.mtime_nsec())
        })
        .filter(|(name, ..)| name != "c.toml")
        .collect();
    found.sort();
    found
}

#[test]
fn path_that_is_taken_or_of_another_kind_is_refused_by_check_and_serve_in_the_same_words() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    let edu = |path: &Path| device("a", "edu", path, "");
    let gpio = |name: &str, control: &str| {
        let control = format!("options.control = {:?}", at(control));
        device(name, "gpio", &at(name), &control)
    };
    let links = |first: &str, second: &str| {
        let links = format!("options = {{ link0 = {:?}, link1 = {:?} }}", at(first), at(second));
        device("s", "serial", &at("s"), &links)
    };
    let disk = |path: &Path| device("b", "bench", &at("b"), &format!("options.disk = {path:?}"));
    let mdev = |key: &str, path: &Path| format!("{}[mdev]\n{key} = {path:?}\n", edu(&at("a")));
    let definitions = format!("definitions = {:?}\nsysfs = {:?}\n", at("definitions"), at("root"));
    let cases = [
        // Something of another kind is there.
        (edu(&at("file")), "device.a.socket: ", "file is a file, and not a socket"),
        (edu(&at("dir")), "device.a.socket: ", "dir is a directory, and not a socket"),
        (edu(&at("fifo")), "device.a.socket: ", "fifo is a fifo, and not a socket"),
        (edu(&at("dangling")), "device.a.socket: ", "dangling is a link, and not a socket"),
        (edu(&at("file/x/s")), "device.a.socket: ", "file, which is a file"),
        (edu(&at("dangling/s")), "device.a.socket: ", "dangling, a link to nothing"),
        (edu(&at("circle/s")), "device.a.socket: ", "circle, where links lead in a circle"),
        (edu(Path::new("/proc/s")), "device.a.socket: ", "where the kernel makes all files"),
        (edu(Path::new("/sys/nn/s")), "device.a.socket: ", "where the kernel makes all files"),
        (gpio("g", "dir"), "device.g.options.control: ", "and not a socket"),
        (links("file", "l"), "device.s.options.link0: ", "file is a file, and not a link"),
        (disk(&at("dir")), "device.b.options.disk: ", "and not a file or a block device"),
        (disk(&at("fifo")), "device.b.options.disk: ", "and not a file or a block device"),
        (disk(Path::new("/dev/null")), "device.b.options.disk: ", "is a device, and not a file"),
        (disk(&at("nothing")), "device.b.options.disk: ", "nothing is not there"),
        (mdev("sockets", &at("file")), "mdev.sockets: ", "file is a file, and not a directory"),
        (mdev("definitions", &at("fifo")), "mdev.definitions: ", "and not a directory"),
        (mdev("definitions", &at("dangling")), "mdev.definitions: ", "and not a directory"),
        (mdev("definitions", &at("circle/d")), "mdev.definitions: ", "lead in a circle"),
        (mdev("sysfs", Path::new("/")), "mdev.sysfs: ", "/sys is not empty"),
        (mdev("sysfs", &at("dir")), "mdev.sysfs: ", "dir/sys is not empty"),
        (mdev("sysfs", &at("file")), "mdev.sysfs: ", "file, which is a file"),
        (edu(&at("a")) + "[mdev]\n" + &definitions, "mdev.sysfs: ", "mdevctl.d is in the way"),
        (
            edu(&at("a")) + &format!("[sandbox]\npaths = [{:?}]\n", at("nothing")),
            "sandbox.paths: ",
            "nothing is not there",
        ),
        (
            edu(&at("a")) + "[metrics]\nlisten = \"203.0.113.7:9477\"\n",
            "metrics.listen: ",
            "this machine does not have the address 203.0.113.7:9477",
        ),
        // Two keys want the same path, or one beneath the other.
        (mdev("sockets", &at("a")), "mdev.sockets: ", "a is `device.a.socket` already"),
        (gpio("g", "g"), "device.g.options.control: ", "g is `device.g.socket` already"),
        (gpio("g", "here/g"), "device.g.options.control: ", "g is `device.g.socket` already"),
        (gpio("g", "g/c"), "device.g.options.control: ", "g/c is beneath `device.g.socket`"),
        (
            gpio("g", "c") + &gpio("h", "c"),
            "device.h.options.control: ",
            "c is `device.g.options.control` already",
        ),
        (
            gpio("g", "c") + &format!("[control]\nsocket = {:?}\n", at("c")),
            "device.g.options.control: ",
            "c is `control.socket` already",
        ),
        (links("l", "l"), "device.s.options.link1: ", "l is `device.s.options.link0` already"),
        (links("s", "l"), "device.s.options.link0: ", "s is `device.s.socket` already"),
        (
            mdev("sockets", directory.path())
                + &device("b", "edu", &at(&format!("{UUID}.sock")), ""),
            "device.b.socket: ",
            "is kept for an instance",
        ),
        (
            mdev("sysfs", &at("empty")) + &device("b", "edu", &at("empty/sys/b"), ""),
            "device.b.socket: ",
            "which is the sysfs view",
        ),
    ];
    let before = contents(directory.path());
    for (text, key, expected) in cases {
        let config = at("c.toml");
        fs::write(&config, &text).unwrap();
        let config = config.to_str().unwrap();
        let checked = bad(2, ["serve", "--check", config]);
        assert!(checked.contains(key) && checked.contains(expected), "{text}\n{checked}");
        assert_eq!(bad(2, ["serve", config]), checked, "{text}");
        assert_eq!(contents(directory.path()), before, "{text}");
    }
}

/// Another daemon may be the one whose configuration is checked.
#[test]
fn socket_of_an_option_that_is_in_use_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let _taken = UnixListener::bind(at("control")).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap();
    let control = format!("options.control = {:?}", at("control"));
    let text =
        device("g", "gpio", &at("g"), &control) + &format!("[metrics]\nlisten = \"{address}\"\n");
    fs::write(at("c.toml"), text).unwrap();
    let output = run(["serve", "--check", at("c.toml").to_str().unwrap()]);
    let said = String::from_utf8(output.stderr).unwrap();
    let in_use =
        format!("in use now, as if it were served already: {}, {address}", at("control").display());
    assert!(output.status.success() && said.contains(&in_use), "{said}");
}

#[test]
fn command_line_names_its_argument() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name).display().to_string();
    let serve = ["serve", "--device", "gpio", "--socket-path"];
    let said = bad(2, serve.into_iter().chain([&*at("fifo")]));
    assert!(said.contains("--socket-path: ") && said.contains("and not a socket"), "{said}");
    let control = format!("control={}", at("g"));
    let said = bad(2, serve.into_iter().chain([&*at("g"), "--option", &control]));
    assert!(said.contains("--option control: ") && said.contains("already"), "{said}");
}

/// What is at the paths of other devices does not matter to a change.
#[test]
fn change_of_a_running_daemon_is_refused_for_its_own_paths_only() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("disk"), [0; 4096]).unwrap();
    let bench = device("b", "bench", &at("b"), &format!("options.disk = {:?}", at("disk")));
    let text = bench + &format!("[control]\nsocket = {:?}\n", at("control"));
    fs::write(at("c.toml"), &text).unwrap();
    let command = vfiod(["serve", at("c.toml").to_str().unwrap(), "--no-sandbox"]);
    let daemon = Daemon::serving(command, &[&at("b"), &at("control")]);
    let add = |name: &str, control: &str| {
        let device = json!({ "name": name, "model": "gpio", "socket": at(name),
            "options": { "control": at(control) } });
        let (status, answer) =
            ask(&at("control"), "POST", "devices", Some(&device.to_string())).unwrap();
        (status, answer["detail"].as_str().unwrap_or_default().to_owned())
    };
    for (control, expected) in [
        ("b", "device.g.options.control: "),
        ("g", "g is `device.g.socket` already"),
        ("control", "is `control.socket` already"),
        ("fifo", "and not a socket"),
    ] {
        let (status, detail) = add("g", control);
        assert!(status == 422 && detail.contains(expected), "{control}: {status} {detail}");
    }
    // A reload says the same, at its place.
    let gpio = device("g", "gpio", &at("g"), &format!("options.control = {:?}", at("b")));
    fs::write(at("c.toml"), text.clone() + &gpio).unwrap();
    let (status, answer) = ask(&at("control"), "POST", "reload", None).unwrap();
    let detail = answer["detail"].as_str().unwrap();
    assert!(status == 422 && detail.contains("c.toml:10:19: "), "{status} {detail}");
    assert!(detail.contains("device.g.options.control: "), "{detail}");
    // The disk has gone, and is the other device's business.
    fs::remove_file(at("disk")).unwrap();
    let (status, detail) = add("h", "h.control");
    assert_eq!(status, 201, "{detail}");
    drop(daemon);
}
