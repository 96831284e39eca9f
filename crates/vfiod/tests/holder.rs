//! `vfiod holder -- serve …`: the server is killed, crashes, or fails to start, and its sockets are there all the
//! time.

mod process;

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use process::api::ask;
use process::{Daemon, bad, connect, until, vfiod};
use rustix::process::{Pid, Signal};
use serde_json::Value;

/// A directory with a configuration.
struct Place(tempfile::TempDir);

impl Place {
    /// An edu device, a control socket, and what `more` says.
    fn new(more: &str) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let [edu, control] = [place.at("edu"), place.at("control")];
        let text = format!(
            "[device.edu]\nmodel = \"edu\"\nsocket = {edu:?}\n[control]\nsocket = {control:?}\n{more}"
        );
        std::fs::write(place.at("c.toml"), text).unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What `holder` is run with.
    fn arguments(&self) -> Vec<String> {
        let config = self.at("c.toml").display().to_string();
        ["holder", "--", "serve"].map(str::to_owned).into_iter().chain([config]).collect()
    }

    /// A holder whose server is ready.
    fn held(&self) -> Daemon {
        let daemon = Daemon::start(vfiod(self.arguments()));
        self.await_ready();
        daemon
    }

    fn await_ready(&self) {
        until("a server", || self.daemon().is_ok_and(|daemon| !daemon["restarts"].is_null()));
    }

    /// What the server says of itself.
    fn daemon(&self) -> io::Result<Value> {
        ask(&self.at("control"), "GET", "daemon", None).map(|(_, answer)| answer)
    }

    /// The server's process.
    fn server(&self) -> Pid {
        pid(&self.daemon().unwrap()["pid"])
    }

    /// Kills the server, and waits for the next one.
    fn kill(&self, signal: Signal) -> Value {
        let before = self.server();
        rustix::process::kill_process(before, signal).unwrap();
        let mut next = Value::Null;
        until("the next server", || {
            UnixStream::connect(self.at("control")).expect("somebody listens");
            next = self.daemon().unwrap_or_default();
            !next["restarts"].is_null() && pid(&next["pid"]) != before
        });
        next
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn pid(number: &Value) -> Pid {
    Pid::from_raw(number.as_i64().unwrap() as i32).unwrap()
}

/// The server that a holder has started, if there is one now.
fn child(holder: &Daemon) -> Option<Pid> {
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", holder.pid()));
    Pid::from_raw(children.unwrap().trim().parse().ok()?)
}

/// Ends another thread's loop, also when the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a server answers to a request for its metrics.
fn metrics(control: &Path) -> String {
    let mut stream = UnixStream::connect(control).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: vfiod\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Whether a process is there and no zombie.
fn is_alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z')))
}

#[test]
fn server_that_dies_is_started_again_and_no_client_is_refused() {
    let place = Place::new("");
    let holder = place.held();
    assert_eq!(place.daemon().unwrap()["restarts"]["last"], Value::Null);
    let over = AtomicBool::new(false);
    let next = thread::scope(|scope| {
        let at_end = Over(&over);
        let connecting = scope.spawn(|| {
            let mut count = 0;
            while !over.load(Ordering::Relaxed) {
                UnixStream::connect(place.at("edu")).expect("somebody listens");
                count += 1;
                thread::sleep(Duration::from_millis(1));
            }
            count
        });
        place.kill(Signal::KILL);
        place.kill(Signal::ABORT);
        let next = place.kill(Signal::ILL);
        drop(at_end);
        assert!(connecting.join().unwrap() > 0);
        next
    });
    let restarts = &next["restarts"];
    assert_eq!((&restarts["signal"], &restarts["exit"]), (&3.into(), &0.into()), "{next}");
    assert_eq!(restarts["last"], "signal 4", "{next}");
    assert_eq!(restarts["holder"], holder.pid(), "{next}");
    connect(place.at("edu")).unwrap();
    assert!(restarts["blackout_ms"].is_u64(), "{next}");
    let metrics = metrics(&place.at("control"));
    assert!(metrics.contains("vfiod_restarts_total{cause=\"signal\"} 3"), "{metrics}");
    let server = place.server();
    let comm = std::fs::read_to_string(format!("/proc/{}/comm", server.as_raw_nonzero())).unwrap();
    assert_eq!(comm, "vfiod\n");
    let (status, said) = holder.terminate(Signal::TERM);
    assert!(status.success(), "{status} {said}");
    assert!(said.contains("server ended; it is started again"), "{said}");
    assert!(said.contains("closing every device"), "{said}");
    assert!(!is_alive(server));
    // The server has removed the names of its sockets.
    assert_eq!(place.names(), ["c.toml"]);
}

#[test]
fn clients_wait_for_a_server_that_fails_to_start_again_and_again() {
    let place = Place(tempfile::tempdir().unwrap());
    let [disk, image, control] = ["disk", "image", "control"].map(|name| place.at(name));
    std::fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let text = format!(
        "[device.disk]\nmodel = \"nvme\"\nsocket = {disk:?}\noptions.file = {image:?}\n\
         [control]\nsocket = {control:?}\n"
    );
    std::fs::write(place.at("c.toml"), text).unwrap();
    let holder = place.held();
    let before = place.server();
    std::fs::rename(&image, place.at("elsewhere")).unwrap();
    rustix::process::kill_process(before, Signal::KILL).unwrap();
    // A thread of it may live, and accept, until the holder has seen its end.
    until("the end of the server", || child(&holder) != Some(before));
    thread::scope(|scope| {
        let waiting = scope.spawn(|| connect(&disk).unwrap());
        let asking = scope.spawn(|| place.daemon().unwrap());
        let mut seen = HashSet::new();
        until("two that fail", || {
            seen.extend(child(&holder).filter(|pid| *pid != before));
            seen.len() > 2
        });
        assert!(!waiting.is_finished() && !asking.is_finished());
        std::fs::rename(place.at("elsewhere"), &image).unwrap();
        waiting.join().unwrap();
        asking.join().unwrap();
    });
    place.await_ready();
    let restarts = place.daemon().unwrap()["restarts"].clone();
    assert!(restarts["exit"].as_u64() >= Some(2), "{restarts}");
    assert_eq!(restarts["last"], "exit status 2", "{restarts}");
    let (status, said) = holder.terminate(Signal::TERM);
    assert!(status.success(), "{status} {said}");
    assert_eq!(place.names().iter().filter(|name| *name == "disk").count(), 0);
}

#[test]
fn server_ends_in_order_when_its_holder_is_killed() {
    let place = Place::new("");
    let mut holder = place.held();
    let server = place.server();
    holder.signal(Signal::KILL);
    holder.end();
    until("the end of the server", || !is_alive(server));
    assert_eq!(place.names(), ["c.toml"]);
}

#[test]
fn server_that_is_terminated_ends_its_holder() {
    let place = Place::new("");
    let holder = place.held();
    rustix::process::kill_process(place.server(), Signal::TERM).unwrap();
    let (status, said) = holder.finish();
    assert!(status.success(), "{status} {said}");
    assert_eq!(place.names(), ["c.toml"]);
}

#[test]
fn next_server_is_the_same_program_though_its_file_was_replaced() {
    let place = Place::new("");
    let program = place.at("program");
    process::copy_program(&program);
    let mut command = Command::new(&program);
    command.args(place.arguments());
    let holder = Daemon::start(command);
    place.await_ready();
    std::fs::write(place.at("new"), "#!/bin/false\n").unwrap();
    std::fs::rename(place.at("new"), &program).unwrap();
    place.kill(Signal::KILL);
    connect(place.at("edu")).unwrap();
    let (status, said) = holder.terminate(Signal::INT);
    assert!(status.success(), "{status} {said}");
}

#[test]
fn signal_to_the_holder_reloads_the_configuration() {
    let place = Place::new("");
    let holder = place.held();
    let more = format!("[device.more]\nmodel = \"edu\"\nsocket = {:?}\n", place.at("more"));
    let text = std::fs::read_to_string(place.at("c.toml")).unwrap() + &more;
    std::fs::write(place.at("c.toml"), text).unwrap();
    holder.signal(Signal::HUP);
    until("the device", || place.at("more").exists());
    connect(place.at("more")).unwrap();
    place.kill(Signal::KILL);
    connect(place.at("more")).unwrap();
}

#[test]
fn sockets_of_the_service_manager_are_there_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("edu");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut command = Command::new("sh");
    command
        .args(["-c", "exec 3<&0 </dev/null; export LISTEN_PID=$$; exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_vfiod"))
        .args(["holder", "--", "serve", "--device", "edu"])
        .env("LISTEN_FDS", "1")
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)));
    let holder = Daemon::start(command);
    connect(&path).unwrap();
    let before = child(&holder).unwrap();
    rustix::process::kill_process(before, Signal::KILL).unwrap();
    // A thread of it may live, and accept, until the holder has seen its end.
    until("the end of the server", || child(&holder) != Some(before));
    connect(&path).unwrap();
}

#[test]
fn first_server_that_fails_ends_the_holder_with_its_status() {
    let place = Place::new("nonsense = 1\n");
    let held: Vec<_> = place.arguments();
    let alone = bad(2, &held[2..]);
    let said = bad(2, &held);
    let cause = alone.lines().next().unwrap();
    assert!(said.contains(cause), "{said} has no {cause}");
}

#[test]
fn what_cannot_be_held_is_refused_with_the_reason() {
    for (wrong, reason) in [
        (&["devices"][..], "only `serve` can be held"),
        (&["serve", "--check", "c.toml"], "`serve --check` ends at once"),
        (&["serve", "--device", "edu", "--fd", "0"], "`--fd` cannot be held"),
        (&["serve", "--devise", "edu"], "unexpected argument '--devise'"),
    ] {
        let said = bad(2, [&["holder", "--"][..], wrong].concat());
        assert!(said.contains(reason), "{said}");
    }
}
