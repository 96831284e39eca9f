//! Sockets that another process made: `--fd`, socket activation.

mod process;

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};

use process::{Daemon, vfiod};
use rustix::process::Signal;
use vfiod_client::{Client, Socket};

#[test]
fn a_listening_descriptor() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let mut command = vfiod(["serve", "--device", "edu", "--fd", "0"]);
    command.stdin(Stdio::from(OwnedFd::from(listener)));
    let daemon = Daemon::start(command);
    for _ in 0..2 {
        // Single-open: the next one gets in once the last one is gone.
        let mut attached = None;
        process::until("the release", || {
            attached = process::connect(&path).ok();
            attached.is_some()
        });
        let mut id = [0; 4];
        attached.unwrap().region_read(0, 0, &mut id).unwrap();
        assert_eq!(u32::from_le_bytes(id), 0x0100_00ed);
    }
    let (status, log) = daemon.terminate(Signal::TERM);
    assert!(status.success(), "{log}");
    assert!(path.exists(), "the path is not ours to remove");
}

#[test]
fn a_connected_descriptor_is_the_only_client() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut command = vfiod(["serve", "--device", "edu", "--fd", "0"]);
    command.stdin(Stdio::from(OwnedFd::from(theirs)));
    let mut daemon = Daemon::start(command);
    let options = process::options();
    let socket = Socket::from_fd(ours.into(), options.timeout).unwrap();
    let mut client = Client::with_socket(socket, options).unwrap();
    assert_eq!(client.device_info().unwrap().num_regions, 9);
    drop(client);
    assert_eq!(daemon.end().code(), Some(0), "{}", daemon.said());
}

#[test]
fn a_descriptor_that_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(directory.path().join("f")).unwrap();
    for (fd, stdin, expected) in [
        ("77", Stdio::null(), "descriptor 77 is not open"),
        ("0", Stdio::null(), "descriptor 0 is not a socket"),
        ("0", Stdio::from(file), "descriptor 0 is not a socket"),
    ] {
        let output = vfiod(["serve", "--device", "edu", "--fd", fd]).stdin(stdin).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}

/// Runs vfiod as systemd does: the sockets from descriptor 3 on, told in the environment.
fn activated(listener: UnixListener, names: &str, pid: &str, args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    let script = format!("exec 3<&0 </dev/null; export LISTEN_PID={pid}; exec \"$@\"");
    command
        .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_vfiod")])
        .args(args)
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", names)
        .stdin(Stdio::from(OwnedFd::from(listener)));
    command
}

#[test]
fn socket_activation_of_a_device() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let daemon =
        Daemon::start(activated(listener, "whatever", "$$", &["serve", "--device", "edu"]));
    assert_eq!(process::connect(&path).unwrap().device_info().unwrap().num_irqs, 5);
    let (status, log) = daemon.terminate(Signal::TERM);
    assert!(status.success(), "{log}");
}

#[test]
fn socket_activation_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("c.toml");
    std::fs::write(&config, "[device.e]\nmodel = \"edu\"\nsocket.activated = \"e.sock\"\n")
        .unwrap();
    let config = config.to_str().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let spare = listener.try_clone().unwrap();
    let daemon = Daemon::start(activated(listener, "e.sock", "$$", &["serve", config]));
    assert_eq!(process::connect(&path).unwrap().device_info().unwrap().num_irqs, 5);
    drop(daemon);

    let mut wrong = activated(spare, "other", "$$", &["serve", config]);
    let output = wrong.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("no socket named `e.sock`") && said.contains("passed: other"), "{said}");
}

#[test]
fn sockets_for_another_process_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("s")).unwrap();
    let output = activated(listener, "e", "1", &["serve", "--device", "edu"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("no socket: give --socket-path or --fd"), "{said}");
    assert!(said.contains("LISTEN_PID does not name this process"), "{said}");
}

#[test]
fn descriptors_that_the_program_opened_itself_are_not_taken_for_passed_ones() {
    // Whatever numbers it gives: none of these is open at its start.
    let run = |script: &str, args: &[&str]| {
        let script = format!("exec 3<&- 4<&- 5<&- 6<&- 7<&- 8<&- 9<&-; {script} exec \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_vfiod")]);
        command.args(["serve", "--device", "edu"]).args(args).stdin(Stdio::null());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        said
    };
    for fd in 3..10 {
        let fd = fd.to_string();
        let said = run("", &["--fd", &fd]);
        assert!(said.contains(&format!("descriptor {fd} is not open")), "{said}");
    }
    for count in [1, 3] {
        let said = run(&format!("export LISTEN_PID=$$ LISTEN_FDS={count};"), &[]);
        assert!(said.contains("descriptor 3 is not open"), "{said}");
    }
}

#[test]
fn bound_socket_that_does_not_listen_is_a_mistake() {
    let directory = tempfile::tempdir().unwrap();
    let address = rustix::net::SocketAddrUnix::new(directory.path().join("s")).unwrap();
    for bound in [true, false] {
        let (family, kind) = (rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM);
        let socket = rustix::net::socket(family, kind, None).unwrap();
        if bound {
            rustix::net::bind(&socket, &address).unwrap();
        }
        let mut command = vfiod(["serve", "--device", "edu", "--fd", "0"]);
        let output = command.stdin(Stdio::from(socket)).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "it is served as a connection: {said}");
        assert!(said.contains("neither listens nor is connected; call listen()"), "{said}");
    }
}

/// Connects as long as anything of the daemon listens there.
#[test]
fn passed_socket_refuses_clients_once_its_device_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let (path, control) = (directory.path().join("s"), directory.path().join("control"));
    let config = directory.path().join("c.toml");
    let text = format!(
        "[device.e]\nmodel = \"edu\"\nsocket.activated = \"e.sock\"\n\
         [control]\nsocket = {control:?}\n"
    );
    std::fs::write(&config, text).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let args = ["serve", config.to_str().unwrap()];
    let daemon = Daemon::serving(activated(listener, "e.sock", "$$", &args), &[&control]);
    drop(process::connect(&path).unwrap());
    process::good(["del", "e", "--wait", "--control", control.to_str().unwrap()]);
    // A thread that was accepting clients closes it a moment later. A connect that waits would never
    // return where the socket listens on and nobody accepts.
    let address = rustix::net::SocketAddrUnix::new(&path).unwrap();
    process::until("the end of its socket", || {
        let (family, kind) = (rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM);
        let flags = rustix::net::SocketFlags::NONBLOCK | rustix::net::SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, kind, flags, None).unwrap();
        rustix::net::connect(&socket, &address) == Err(rustix::io::Errno::CONNREFUSED)
    });
    drop(daemon);
}
