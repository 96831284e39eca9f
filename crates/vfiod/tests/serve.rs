//! Serving: devices on sockets, signals, the service manager.

mod process;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use process::{Daemon, bad, good, vfiod};
use rustix::process::Signal;

fn slot(directory: &Path) -> (String, [std::path::PathBuf; 2]) {
    let sockets = [directory.join("lines.sock"), directory.join("teacher.sock")];
    let text = format!(
        "[bus.b]\nnumber = 1\n[slot.s]\nbus = \"b\"\nnumber = 2\n\
         [device.lines]\nmodel = \"gpio\"\nslot = \"s\"\nsocket = {{ path = {:?}, mode = \"0600\" }}\n\
         [device.teacher]\nmodel = \"edu\"\nslot = \"s\"\nfunction = 1\nopen = \"multi\"\nsocket = {:?}\n",
        sockets[0], sockets[1]
    );
    let path = directory.join("slot.toml");
    std::fs::write(&path, text).unwrap();
    (path.to_str().unwrap().to_owned(), sockets)
}

#[test]
fn a_configuration_is_served_and_closed_in_order_at_sigterm() {
    let directory = tempfile::tempdir().unwrap();
    let (config, sockets) = slot(directory.path());
    let command = vfiod(["serve", &config, "--log", "debug"]);
    let daemon = Daemon::serving(command, &[&sockets[0], &sockets[1]]);
    assert_eq!(std::fs::metadata(&sockets[0]).unwrap().permissions().mode() & 0o777, 0o600);

    let mut lines = process::connect(&sockets[0]).unwrap();
    let mut teacher = process::connect(&sockets[1]).unwrap();
    let mut again = process::connect(&sockets[1]).unwrap();
    assert_eq!(process::connect(&sockets[0]).unwrap_err().remote_errno(), Some(22));
    let mut header = [0; 64];
    for (client, id) in [(&mut lines, 0x494f), (&mut teacher, 0x1234), (&mut again, 0x1234)] {
        client.region_read(7, 0, &mut header).unwrap();
        assert_eq!(u16::from_le_bytes([header[0], header[1]]), id);
        assert_eq!(header[0x0e], 0x80, "one of several functions");
    }

    let (status, log) = daemon.terminate(Signal::TERM);
    assert_eq!(status.code(), Some(0), "{log}");
    let place = |what: &str| log.find(what).unwrap_or_else(|| panic!("no `{what}` in {log}"));
    assert!(place("SIGTERM") < place("closed device=\"teacher\""), "{log}");
    assert!(place("closed device=\"teacher\"") < place("closed device=\"lines\""), "{log}");
    assert!(place("last close device=\"lines\"") < place("finished"), "{log}");
    assert!(lines.device_info().is_err(), "the connection is gone");
    assert!(!sockets[0].exists() && !sockets[1].exists(), "the sockets are gone");
}

#[test]
fn sigint_does_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let command = vfiod(["serve", "--device", "edu", "--socket-path", socket.to_str().unwrap()]);
    let (status, log) = Daemon::serving(command, &[&socket]).terminate(Signal::INT);
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn logs_can_be_json() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let path = socket.to_str().unwrap();
    let args = ["serve", "--device", "edu", "--socket-path", path, "--log-format", "json"];
    let (_, log) = Daemon::serving(vfiod(args), &[&socket]).terminate(Signal::TERM);
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert!(lines.iter().any(|line| line["message"] == "ready"), "{log}");
}

#[test]
fn the_service_manager_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let (config, sockets) = slot(directory.path());
    let manager = UnixDatagram::bind(directory.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(process::PATIENCE)).unwrap();
    let heard = || {
        let mut buffer = [0; 256];
        let len = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    };
    let mut command = vfiod(["serve", &config]);
    command.env("NOTIFY_SOCKET", directory.path().join("notify"));
    let daemon = Daemon::serving(command, &[&sockets[0]]);
    assert_eq!(heard(), "READY=1\nSTATUS=serving 2 devices");
    let (status, log) = daemon.terminate(Signal::TERM);
    assert!(status.success(), "{log}");
    assert_eq!(heard(), "STOPPING=1");
}

#[test]
fn service_manager_with_a_watchdog_hears_of_the_daemon_again_and_again() {
    let directory = tempfile::tempdir().unwrap();
    let (config, _) = slot(directory.path());
    let manager = UnixDatagram::bind(directory.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(process::PATIENCE)).unwrap();
    let mut command = vfiod(["serve", &config]);
    command.env("NOTIFY_SOCKET", directory.path().join("notify")).env("WATCHDOG_USEC", "20000");
    let _daemon = Daemon::start(command);
    let mut heard = 0;
    while heard < 3 {
        let mut buffer = [0; 256];
        let len = manager.recv(&mut buffer).unwrap();
        heard += usize::from(&buffer[..len] == b"WATCHDOG=1");
    }
}

#[test]
fn a_socket_in_use_is_not_taken_and_a_stale_one_is() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let args = ["serve", "--device", "edu", "--socket-path", socket.to_str().unwrap()];
    let daemon = Daemon::serving(vfiod(args), &[&socket]);
    let said = bad(1, args);
    assert!(said.contains("device edu: ") && said.contains("listening on it already"), "{said}");
    daemon.terminate(Signal::KILL);
    assert!(socket.exists(), "left over");
    Daemon::serving(vfiod(args), &[&socket]).terminate(Signal::TERM);
    assert!(!socket.exists());
}

#[test]
fn nothing_is_left_of_a_start_that_failed() {
    let directory = tempfile::tempdir().unwrap();
    let (config, sockets) = slot(directory.path());
    let _other = std::os::unix::net::UnixListener::bind(&sockets[1]).unwrap();
    let said = bad(1, ["serve", &config]);
    assert!(said.contains("device teacher: ") && said.contains("has a server"), "{said}");
    assert!(!sockets[0].exists(), "the first device's socket is gone again");
}

/// Their log is more than a pipe holds, and nobody reads it: that holds up nobody.
#[test]
fn many_clients_leave_no_descriptor_behind() {
    let directory = tempfile::tempdir().unwrap();
    let (config, sockets) = slot(directory.path());
    let daemon = Daemon::serving(vfiod(["serve", &config]), &[&sockets[0], &sockets[1]]);
    let attach = || process::connect(&sockets[1]).unwrap().device_info().unwrap();
    attach();
    let mut before = 0;
    process::until("rest", || {
        before = daemon.descriptors();
        std::thread::sleep(std::time::Duration::from_millis(20));
        daemon.descriptors() == before
    });
    for _ in 0..300 {
        attach();
    }
    process::until("the same number of descriptors", || daemon.descriptors() <= before);
}

#[test]
fn probing_a_served_device() {
    let directory = tempfile::tempdir().unwrap();
    let (config, sockets) = slot(directory.path());
    let _daemon = Daemon::serving(vfiod(["serve", &config]), &[&sockets[0], &sockets[1]]);
    let text = good(["probe", "--timeout", "60s", sockets[1].to_str().unwrap()]);
    for expected in [
        "[00ff]: Device 1234:11e8 (rev 10)\n",
        "\tInterrupt: pin B routed to IRQ 0\n",
        "\tRegion 0: Memory at <unassigned> (32-bit, non-prefetchable) [size=1M]\n",
        "\tCapabilities: [40] Power Management version 3\n",
        "MSI: Enable- Count=1/1 Maskable+ 64bit+\n",
        "FLReset+",
        "Device Serial Number 00-11-e8-ff-fe-12-34-00\n",
        "\tIRQ 0: INTx, vectors 1, EventFd+ Maskable+ AutoMasked+ NoResize-\n",
    ] {
        assert!(text.contains(expected), "no `{expected}` in\n{text}");
    }
    let json = good(["probe", "--timeout", "60s", "--json", sockets[0].to_str().unwrap()]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["pci"]["vendor_id"], 0x494f);
    assert_eq!(json["pci"]["bars"][0]["kind"], "io");
    assert_eq!(json["config"].as_str().unwrap()[..8], *"4f49c80d");
    let hex = good(["probe", "--timeout", "60s", "-x", sockets[0].to_str().unwrap()]);
    assert!(hex.contains("\n00: 4f 49 c8 0d"), "{hex}");
}

#[test]
fn probing_what_is_no_server() {
    let directory = tempfile::tempdir().unwrap();
    let absent = directory.path().join("absent");
    let said = bad(1, ["probe", absent.to_str().unwrap()]);
    assert!(said.contains("cannot connect to"), "{said}");

    // Accepts, and says nothing.
    let mute = directory.path().join("mute");
    let _listener = std::os::unix::net::UnixListener::bind(&mute).unwrap();
    let said = bad(1, ["probe", "--timeout", "200ms", mute.to_str().unwrap()]);
    assert!(said.contains("did not reply"), "{said}");
}
