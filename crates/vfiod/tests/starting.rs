//! Starting is all or nothing, and `--check` refuses what `serve` refuses.

mod process;

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use process::{Daemon, bad, good, until, vfiod};
use rustix::process::Signal;

fn write(directory: &Path, text: &str) -> String {
    let path = directory.join("c.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn names(directory: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.unwrap().file_name().into_string().unwrap()
    };
    let mut names: Vec<_> = std::fs::read_dir(directory).unwrap().map(name).collect();
    names.sort();
    names
}

/// A socket of every kind in a directory of its own, none of which is there.
fn every_kind(directory: &Path) -> (String, Vec<std::path::PathBuf>) {
    let path = |rest: &str| directory.join("run").join(rest);
    let (device, object) = (path("d/edu.sock"), path("c/dpmcp.sock"));
    let (container, control, lines) =
        (path("c/dprc.sock"), path("api/control.sock"), path("g/lines.control"));
    let text = format!(
        "[device.e]\nmodel = \"edu\"\nsocket = {device:?}\n\
         [device.g]\nmodel = \"gpio\"\nsocket = {:?}\noptions.control = {lines:?}\n\
         [container.c]\nid = 1\nsocket = {container:?}\n\
         [container.c.object.o]\nkind = \"dpmcp\"\nid = 1\nsocket = {object:?}\n\
         [parent.p]\nmodel = \"gpio\"\n[mdev]\nsockets = {:?}\ndefinitions = {:?}\n\
         [control]\nsocket = {control:?}\n",
        path("d/gpio.sock"),
        path("mdev"),
        path("definitions")
    );
    (text, vec![device, object, container, control, lines])
}

#[test]
fn missing_directories_are_made_for_every_kind_of_socket_and_a_check_makes_none() {
    let directory = tempfile::tempdir().unwrap();
    let (text, sockets) = every_kind(directory.path());
    let config = write(directory.path(), &text);
    let said = good(["serve", "--check", &config]);
    assert_eq!(said, "the configuration is right: 2 devices, 1 container, 1 parent\n");
    assert_eq!(names(directory.path()), ["c.toml"]);
    let sockets: Vec<&Path> = sockets.iter().map(|path| path.as_path()).collect();
    let daemon = Daemon::serving(vfiod(["serve", &config]), &sockets);
    let control = sockets[3].to_str().unwrap();
    let uuid = good(["create", "p", "gpio-16", "--control", control]);
    let instance = directory.path().join(format!("run/mdev/{}.sock", uuid.trim()));
    UnixStream::connect(&instance).unwrap();
    // The daemon runs whose configuration is checked.
    let output = process::run(["serve", "--check", &config]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("in use now"), "{output:?}");
    let (status, log) = daemon.terminate(Signal::TERM);
    assert!(status.success(), "{log}");
    for name in ["d", "c", "api", "g", "mdev"] {
        let left = names(&directory.path().join("run").join(name));
        assert_eq!(left, Vec::<String>::new(), "{name}");
    }
}

#[test]
fn what_serve_refuses_a_check_refuses_in_the_same_words() {
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(".", directory.path().join("link")).unwrap();
    let path = |rest: &str| format!("{:?}", directory.path().join(rest));
    let edu =
        |name: &str, socket: &str| format!("[device.{name}]\nmodel = \"edu\"\nsocket = {socket}\n");
    let good_one = edu("a", &path("a"));
    // What is at the paths is looked at in `paths.rs`.
    let cases = [
        (edu("a", &path("socket/")), "cannot use as a socket's path"),
        (good_one.clone() + &edu("b", &path("link/a")), "this socket is `device.a`"),
        (edu("\"\"", &path("a")), "a name is empty"),
        (good_one + "[log]\nlevel = \"inof\"\n", "did you mean `info`?"),
        ("[parent.\"two words\"]\nmodel = \"edu\"\n".to_owned(), "is no name for a parent"),
    ];
    for (text, expected) in cases {
        let config = write(directory.path(), &text);
        let checked = bad(2, ["serve", "--check", &config]);
        assert!(checked.contains(expected), "{text}\n{checked}");
        let served = bad(2, ["serve", "--no-sandbox", &config]);
        assert!(served.contains(expected), "{text}\n{served}");
        assert_eq!(names(directory.path()), ["c.toml", "link"], "{text}");
    }
    for (name, value) in [("--log", "inof"), ("--log", "warn,vfiod_server")] {
        let config = write(directory.path(), &edu("a", &path("a")));
        let said = bad(2, ["serve", "--check", &config, name, value]);
        assert!(said.contains("is no level"), "{said}");
    }
}

#[test]
fn configuration_that_is_no_file_is_refused_and_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (fifo, right) = (path("fifo"), write(directory.path(), "[parent.p]\nmodel = \"edu\"\n"));
    let mode = rustix::fs::Mode::RWXU;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    for (name, what) in [("/dev/zero", "device"), ("/", "directory"), (&*fifo, "pipe (FIFO)")] {
        let said = bad(2, ["serve", "--check", name]);
        let is_refused = said.contains(&format!("{name}: it is a {what}, not a file"));
        assert!(is_refused, "{name} is not refused for what it is: {said}");
    }
    assert!(good(["serve", "--check", &right]).starts_with("the configuration is right"));
}

#[test]
fn configuration_that_cannot_be_read_is_a_mistake() {
    let directory = tempfile::tempdir().unwrap();
    let absent = directory.path().join("absent.toml");
    for path in [directory.path(), &absent, &absent.join("beneath")] {
        let path = path.to_str().unwrap();
        for args in [&["serve", path][..], &["serve", "--check", path]] {
            let said = bad(2, args);
            assert!(said.contains(&format!("cannot read the configuration file {path}")), "{said}");
        }
    }
}

/// A daemon that is killed while it makes its sockets leaves them under their first names.
#[test]
fn sockets_that_never_got_their_name_are_removed_by_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    let (text, sockets) = every_kind(directory.path());
    let config = write(directory.path(), &text);
    let leftovers: Vec<_> = [&sockets[0], &sockets[2], &sockets[3]]
        .map(|path| path.with_file_name(".x.1-0.new"))
        .into();
    let hour = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    let since = hour.duration_since(std::time::UNIX_EPOCH).unwrap();
    let time = rustix::fs::Timespec { tv_sec: since.as_secs() as i64, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    for path in &leftovers {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(UnixListener::bind(path).unwrap());
        let (at, flags) = (rustix::fs::CWD, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
        rustix::fs::utimensat(at, path, &times, flags).unwrap();
    }
    let _daemon = Daemon::serving(vfiod(["serve", &config]), &[&sockets[3]]);
    for path in leftovers {
        assert!(!path.exists(), "{} is left", path.display());
    }
}

/// Whoever finds a socket is served: never refused, and never before all that is configured can be.
#[test]
fn socket_that_is_there_refuses_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let socket = |n: usize| directory.path().join(format!("{n}.sock"));
    let device =
        |n| format!("[device.d{n}]\nmodel = \"edu\"\nopen = \"multi\"\nsocket = {:?}\n", socket(n));
    let config = write(directory.path(), &(0..20).map(device).collect::<String>());
    // Odd from before a start until before its end.
    let era = AtomicUsize::new(0);
    let (done, refused, served) =
        (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        let _done = Done(&done);
        for n in [0, 10, 19] {
            let (socket, done, refused, served, era) = (socket(n), &done, &refused, &served, &era);
            scope.spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    let begun = era.load(Ordering::SeqCst);
                    match UnixStream::connect(&socket) {
                        Ok(_) => _ = served.fetch_add(1, Ordering::SeqCst),
                        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                            let alive = begun % 2 == 1 && era.load(Ordering::SeqCst) == begun;
                            refused.fetch_add(usize::from(alive), Ordering::SeqCst);
                        }
                        Err(_) => thread::yield_now(),
                    }
                }
            });
        }
        for _ in 0..5 {
            let before = served.load(Ordering::SeqCst);
            era.fetch_add(1, Ordering::SeqCst);
            let daemon = Daemon::start(vfiod(["serve", &config, "--log", "error"]));
            until("clients", || served.load(Ordering::SeqCst) > before + 3);
            assert_eq!(refused.load(Ordering::SeqCst), 0, "refused by a daemon that runs");
            era.fetch_add(1, Ordering::SeqCst);
            daemon.terminate(Signal::KILL);
            // What a killed daemon leaves does refuse: it must not be there at the next start.
            (0..20).for_each(|n| _ = std::fs::remove_file(socket(n)));
        }
    });
}

/// Ends other threads of a test, also one that fails.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn nobody_is_served_by_a_start_that_fails_later() {
    let directory = tempfile::tempdir().unwrap();
    let first = directory.path().join("first");
    let text = format!(
        "[device.a]\nmodel = \"edu\"\nsocket = {first:?}\n\
         [device.b]\nmodel = \"gpio\"\nsocket = {:?}\noptions.control = {:?}\n",
        directory.path().join("second"),
        directory.path().join("taken"),
    );
    let _taken = UnixListener::bind(directory.path().join("taken")).unwrap();
    let config = write(directory.path(), &text);
    let (done, seen) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if first.exists() {
                    seen.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let _done = Done(&done);
        for _ in 0..5 {
            let said = bad(1, ["serve", &config]);
            assert!(said.contains("device b: "), "{said}");
        }
    });
    assert_eq!(seen.load(Ordering::Relaxed), 0, "the first device's socket was there");
}

#[test]
fn socket_of_an_instance_of_a_killed_daemon_is_removed_by_the_next_one() {
    let directory = tempfile::tempdir().unwrap();
    let (text, sockets) = every_kind(directory.path());
    let config = write(directory.path(), &text);
    let control = sockets[3].to_str().unwrap();
    let daemon = Daemon::serving(vfiod(["serve", &config]), &[&sockets[3]]);
    let uuid = good(["create", "p", "gpio-16", "--control", control]);
    daemon.terminate(Signal::KILL);
    let mdev = directory.path().join("run/mdev");
    assert_eq!(names(&mdev), [format!("{}.sock", uuid.trim())]);
    let _daemon = Daemon::serving(vfiod(["serve", &config]), &[&sockets[3]]);
    assert_eq!(names(&mdev), Vec::<String>::new(), "sockets that the next daemon has left");
}
