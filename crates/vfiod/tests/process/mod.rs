//! The program itself, run as people run it.
#![allow(dead_code)] // each test file uses a part

pub(crate) mod api;
pub(crate) mod nvme;
pub(crate) mod random;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, setrlimit};
use vfiod_client::{Client, Options};

/// Nothing here takes that long, unless it hangs: also on a machine that stands still for seconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The program with arguments, free of the environment's settings.
pub(crate) fn vfiod<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vfiod"));
    for variable in [
        "VFIOD_LOG",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "NOTIFY_SOCKET",
        "VFIOD_CONTROL",
    ] {
        command.env_remove(variable);
    }
    command.args(args);
    command
}

/// Runs it to its end.
pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    vfiod(args).stdin(Stdio::null()).output().unwrap()
}

/// Runs it to its end, which must be good; what it printed.
pub(crate) fn good<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> String {
    let output = run(args);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs it to its end, which must be this exit code; what it said about that.
pub(crate) fn bad<S: AsRef<std::ffi::OsStr>>(
    code: i32,
    args: impl IntoIterator<Item = S>,
) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Arguments of a command for the daemon that has this control socket.
pub(crate) fn at(control: &Path, args: &[&str]) -> Vec<String> {
    let control = control.display().to_string();
    let args = args.iter().map(|arg| (*arg).to_owned());
    args.chain(["--control".to_owned(), control]).collect()
}

/// Copies the program to where others than root can run it: a build may be in a directory of root's own.
///
/// Another process copies it. A descriptor of this one to write to the copy could be inherited by what
/// another test starts meanwhile, and would keep the copy from being run (`ETXTBSY`).
pub(crate) fn copy_program(to: &Path) {
    let program = Path::new(env!("CARGO_BIN_EXE_vfiod"));
    assert!(Command::new("cp").args([program, to]).status().unwrap().success());
}

/// Options of a client that waits for a reply as long as [`PATIENCE`] lets it.
pub(crate) fn options() -> Options {
    Options { timeout: PATIENCE, ..Options::default() }
}

/// Connects to a device with [`options`].
pub(crate) fn connect(socket: impl AsRef<Path>) -> vfiod_client::Result<Client> {
    Client::connect_with(socket, options())
}

/// Lets this process, and what it starts, have as many descriptors as it may, and says how many: a login often
/// has 1,024 of half a million.
pub(crate) fn raise_descriptor_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    limit.maximum.map_or(usize::MAX, |most| most as usize)
}

/// A file of the workspace.
pub(crate) fn workspace(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// A daemon at work. Killed when dropped.
pub(crate) struct Daemon(Child);

impl Daemon {
    /// Starts it, with its log kept for [`Daemon::terminate`].
    pub(crate) fn start(mut command: Command) -> Self {
        Self(command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Starts it and waits until these sockets are there.
    pub(crate) fn serving(command: Command, sockets: &[&Path]) -> Self {
        let mut daemon = Self::start(command);
        until("the sockets", || {
            if let Some(status) = daemon.0.try_wait().unwrap() {
                panic!("vfiod ended with {status}: {}", daemon.said());
            }
            sockets.iter().all(|socket| std::os::unix::net::UnixStream::connect(socket).is_ok())
        });
        daemon
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// Sends a signal and waits for the end: how it ended, what it logged.
    pub(crate) fn terminate(mut self, signal: Signal) -> (ExitStatus, String) {
        self.signal(signal);
        let status = self.end();
        (status, self.said())
    }

    /// Waits for its end: how it ended, what it logged.
    pub(crate) fn finish(mut self) -> (ExitStatus, String) {
        let status = self.end();
        (status, self.said())
    }

    /// Whether its main thread has ended. Other threads may be left in the kernel.
    pub(crate) fn has_ended(&self) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        status.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
    }

    /// Waits for the end.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let mut status = None;
        until("the end of vfiod", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// What it logged, up to its end.
    pub(crate) fn said(&mut self) -> String {
        let mut text = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// How many threads it has.
    pub(crate) fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap().count()
    }

    /// Whether none of its threads runs or is ready to.
    pub(crate) fn is_asleep(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0.id())).unwrap();
        let state = |task: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
            // Behind the name, which may have anything in it.
            stat.rsplit(") ").next()?.chars().next()
        };
        tasks.flatten().filter_map(state).all(|state| state != 'R')
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// A file of the kernel about it.
    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.0.id())).unwrap()
    }

    /// How many descriptors it has.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.0.id())).unwrap().count()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A command that runs another one where a file system in memory with these options is mounted on a
/// directory. `None`: mounting is not allowed here.
pub(crate) fn where_little_fits(directory: &Path, options: &str) -> Option<Command> {
    let unshare = || {
        let mut command = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command.args(["--mount", "sh", "-c"]);
        command.arg("mount -t tmpfs -o \"$1\" none \"$2\" && shift 2 && exec \"$@\"");
        command.arg("sh").arg(options).arg(directory);
        command
    };
    let tried = unshare().arg("true").output();
    if !tried.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: no file system can be mounted here: {tried:?}");
        return None;
    }
    Some(unshare())
}

/// Waits for something that must come.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not come");
        thread::sleep(Duration::from_millis(5));
    }
}
