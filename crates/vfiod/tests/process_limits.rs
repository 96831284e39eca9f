//! Limits of the process (`ulimit`) that the kernel enforces by a signal, which ends a process by default.

mod process;

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use process::{Daemon, until, vfiod};
use rustix::io::Errno;
use rustix::process::Signal;

/// The program with arguments, whose files may have so many KiB.
fn limited<S: AsRef<std::ffi::OsStr>>(kib: u64, args: impl IntoIterator<Item = S>) -> Command {
    let program = vfiod(args);
    let mut command = Command::new("bash");
    command.args(["-c", &format!("ulimit -f {kib} && exec \"$0\" \"$@\"")]);
    command.arg(program.get_program()).args(program.get_args());
    command
}

fn configure(directory: &Path) -> String {
    let mut text = String::new();
    for (name, model) in [("large", "bench"), ("small", "edu")] {
        let socket = directory.join(name);
        text += &format!("[device.{name}]\nmodel = \"{model}\"\nsocket = {socket:?}\n");
    }
    let path = directory.join("c.toml");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn memory_of_a_device_that_is_longer_than_a_file_may_be_is_an_errno() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let config = configure(directory.path());
    // The bench device shares 2 MiB.
    let command = limited(1024, ["serve", &config, "--log", "warn"]);
    let daemon = Daemon::serving(command, &[&at("large"), &at("small")]);
    let mut client = process::connect(at("large")).unwrap();
    let refused = client.region_info(0).unwrap_err().remote_errno();
    let file_too_large = Some(Errno::FBIG.raw_os_error() as u32);
    assert_eq!(refused, file_too_large, "no reply, as where SIGXFSZ has ended the daemon");
    client.device_info().unwrap();
    process::connect(at("small")).unwrap().device_info().unwrap();
    drop(client);
    let (status, said) = daemon.terminate(Signal::TERM);
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("RLIMIT_FSIZE") && said.contains("2097152 bytes"), "{said}");
}

#[test]
fn capture_that_is_longer_than_a_file_may_be_ends_with_a_message() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let config = configure(directory.path());
    let daemon = Daemon::serving(vfiod(["serve", &config]), &[&at("small")]);
    let (socket, file, listen) = (at("small"), at("file"), at("listen"));
    let args = [&socket, &file].map(|path| path.to_str().unwrap());
    let args = ["capture", args[0], args[1], "--listen", listen.to_str().unwrap()];
    let mut capture = Daemon::start(limited(4, args));
    until("the socket", || listen.exists());
    let mut client = process::connect(&listen).unwrap();
    // Until the file is full.
    until("the end", || client.region_read(0, 0, &mut [0; 4]).is_err());
    let status = capture.end();
    let said = capture.said();
    assert_eq!(status.code(), Some(1), "{status}: {said}");
    assert!(said.contains(&*file.to_string_lossy()), "it names no file: {said}");
    assert!(said.contains("File too large"), "{said}");
    let (status, said) = daemon.terminate(Signal::TERM);
    assert_eq!(status.code(), Some(0), "{said}");
}

#[test]
fn output_that_is_longer_than_a_file_may_be_ends_with_a_message() {
    let directory = tempfile::tempdir().unwrap();
    let file = File::create(directory.path().join("out")).unwrap();
    let mut command = limited(1, ["openapi"]);
    let output = command.stdout(file).stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{}: {said}", output.status);
    assert!(said.contains("cannot write to standard output: File too large"), "{said}");
}

#[test]
fn processor_time_beyond_its_limit_is_a_request_to_finish() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let config = configure(directory.path());
    let command = vfiod(["serve", &config]);
    let daemon = Daemon::serving(command, &[&at("large"), &at("small")]);
    // As the kernel does it for each further second.
    daemon.signal(Signal::XCPU);
    daemon.signal(Signal::XCPU);
    let (status, said) = daemon.finish();
    assert_eq!(status.code(), Some(0), "{status}: {said}");
    assert!(said.contains("SIGXCPU") && said.contains("finished"), "{said}");
    assert!(!at("small").exists(), "the sockets are removed");
}

#[test]
fn process_that_may_open_too_few_descriptors_is_refused_by_check_and_start() {
    let directory = tempfile::tempdir().unwrap();
    let config = configure(directory.path());
    let start = |descriptors: u64, args: &[&str]| {
        let program = vfiod(args);
        let mut command = Command::new("bash");
        command.args(["-c", &format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"")]);
        command.arg(program.get_program()).args(program.get_args());
        command
    };
    for args in [&["serve", "--check", &config][..], &["serve", &config]] {
        let output = start(65, args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.contains(
                "may open 65 descriptors (RLIMIT_NOFILE): too few for itself and 2 devices"
            ),
            "{said}"
        );
    }
    let output = start(66, &["serve", "--check", &config]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let sockets = [directory.path().join("large"), directory.path().join("small")];
    let command = start(66, &["serve", &config, "--log", "warn"]);
    let daemon = Daemon::serving(command, &[&sockets[0], &sockets[1]]);
    let (status, log) = daemon.terminate(Signal::TERM);
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("a device lacks some of its share"), "{log}");
}
