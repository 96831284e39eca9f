//! A daemon with a model that tries what the sandbox forbids.
//!
//! This program is both the daemon, which has to be a process of its own with its first thread, and the
//! tests of it. So it has no test harness, and runs the tests in order by itself.

mod attempts;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use attempts::{ATTEMPTS, CONNECTING, IF_ROOT, Intruder, OUTSIDE};
use vfiod_client::Client;
use vfiod_daemon::Daemon;

const TESTS: &[(&str, fn())] = &[
    ("every_attempt_is_refused_and_the_daemon_lives", every_attempt_is_refused),
    ("without_the_sandbox_the_attempts_get_through", without_the_sandbox),
    ("every_thread_is_in_the_sandbox", every_thread_is_in_the_sandbox),
    ("turning_the_sandbox_off_is_logged", turning_it_off_is_logged),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "serve" || first == "sandbox-helper") {
        return Daemon::new().model::<Intruder>("intruder").run();
    }
    if arguments.iter().any(|argument| argument == "--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let filters: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| {
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    };
    let chosen: Vec<_> = TESTS.iter().filter(|(name, _)| wanted(name)).collect();
    let plural = if chosen.len() == 1 { "" } else { "s" };
    println!("running {} test{plural}", chosen.len());
    for (name, test) in chosen {
        // A test that fails panics, which ends the program.
        test();
        println!("test {name} ... ok");
    }
    ExitCode::SUCCESS
}

/// A daemon with its directory. Killed when dropped.
struct Served {
    child: Child,
    directory: tempfile::TempDir,
    outside: tempfile::TempDir,
    _outside: std::os::unix::net::UnixListener,
}

impl Served {
    /// Serves an intruder. `more` is added to the configuration.
    fn start(more: &str, arguments: &[&str]) -> Self {
        let (directory, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        // Otherwise a warning says that others may list it.
        let passable = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(directory.path(), passable).unwrap();
        let at = |name: &str| directory.path().join(name);
        let text = format!(
            "[device.intruder]\nmodel = \"intruder\"\nsocket = {:?}\n{more}",
            at("intruder.sock")
        );
        std::fs::write(at("config.toml"), text).unwrap();
        let secret = outside.path().join("secret");
        std::fs::write(&secret, "secret").unwrap();
        let listener = std::os::unix::net::UnixListener::bind(outside.path().join("socket"));
        let log = std::fs::File::create(at("log")).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .arg("serve")
            .arg(at("config.toml"))
            .args(arguments)
            .env(OUTSIDE, &secret)
            .env_remove("VFIOD_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut served = Self { child, directory, outside, _outside: listener.unwrap() };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !served.log().contains(" ready ") {
            let ended = served.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "{}", served.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        served
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("intruder.sock")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }

    /// Makes every attempt; the errno of each.
    fn attempt_all(&self) -> Vec<i32> {
        let mut client = Client::connect(self.socket()).unwrap();
        // Memory space is decoded from here on.
        client.region_write(7, 4, &[2]).unwrap();
        let mut errnos = Vec::new();
        for place in 0..u32::try_from(ATTEMPTS.len()).unwrap() {
            client.region_write(0, 0, &place.to_le_bytes()).unwrap();
            let mut errno = [0; 4];
            client.region_read(0, 4, &mut errno).unwrap();
            errnos.push(i32::from_le_bytes(errno));
        }
        errnos
    }

    fn secret(&self) -> Option<String> {
        std::fs::read_to_string(self.outside.path().join("secret")).ok()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn every_attempt_is_refused() {
    let served = Served::start("", &[]);
    let errnos = served.attempt_all();
    let privileged = rustix::process::geteuid().is_root();
    for ((name, _, expected), errno) in ATTEMPTS.iter().zip(&errnos) {
        if *name == CONNECTING {
            assert!([libc::EPERM, libc::EACCES].contains(errno), "{name}: {errno}");
        } else if privileged || !IF_ROOT.contains(name) {
            assert_eq!(errno, expected, "{name}");
        }
    }
    assert_eq!(served.secret().as_deref(), Some("secret"));
    // It serves on.
    assert_eq!(served.attempt_all(), errnos);
}

/// So that the attempts show something.
fn without_the_sandbox() {
    let served = Served::start("", &["--no-sandbox"]);
    let errnos = served.attempt_all();
    let privileged = rustix::process::geteuid().is_root();
    for ((name, _, refused), errno) in ATTEMPTS.iter().zip(&errnos) {
        // Without privileges the kernel itself answers some of them with EPERM.
        if *refused != 0 && (privileged || *refused != libc::EPERM) {
            assert_ne!(errno, refused, "{name}");
        }
    }
    assert_eq!(served.secret(), None, "it was removed");
}

fn every_thread_is_in_the_sandbox() {
    let served = Served::start("", &[]);
    // Some threads are started for a client.
    let _client = Client::connect(served.socket()).unwrap();
    let tasks = std::fs::read_dir(format!("/proc/{}/task", served.child.id())).unwrap();
    let mut count = 0;
    for task in tasks {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let value = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.trim_start_matches(':').trim().to_owned()
        };
        assert_eq!((value("Seccomp"), value("NoNewPrivs")), ("2".into(), "1".into()), "{status}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(value(set), "0000000000000000", "{status}");
        }
        count += 1;
    }
    assert!(count > 2, "{count} threads");
    let log = served.log();
    assert!(log.contains("sandbox entered") && log.contains("capabilities=\"none\""), "{log}");
    assert!(!log.contains("WARN"), "{log}");
}

fn turning_it_off_is_logged() {
    for (more, arguments, reason) in [
        ("[sandbox]\nenabled = false\n", &[][..], "by `enabled` under [sandbox]"),
        ("", &["--no-sandbox"][..], "by --no-sandbox"),
    ] {
        let served = Served::start(more, arguments);
        let log = served.log();
        let line = log.lines().find(|line| line.contains("WARN")).unwrap_or_default();
        let is_told = line.contains("the sandbox is turned off") && line.contains(reason);
        assert!(is_told, "no warning that the sandbox is turned off {reason}: {log}");
        let status = Path::new("/proc").join(served.child.id().to_string()).join("status");
        let status = std::fs::read_to_string(status).unwrap();
        assert!(status.lines().any(|line| line == "NoNewPrivs:\t0"), "{status}");
    }
}
