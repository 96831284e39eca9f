//! The daemon in its sandbox, as its operator sees it: what is refused and with which remedy, and that
//! everything else works.

mod process;

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use process::{Daemon, bad, good, until, vfiod};
use rustix::process::Signal;
use tempfile::TempDir;

/// A user that owns nothing.
const NOBODY: u32 = 65534;

/// A daemon with an edu device and a control socket in a directory of its own.
struct Stage {
    directory: TempDir,
    daemon: Daemon,
}

impl Stage {
    fn start(more: &str) -> Self {
        Self::start_with(more, |_, _| {})
    }

    /// `prepare` may change the directory and the command before the daemon is started.
    fn start_with(more: &str, prepare: impl FnOnce(&Path, &mut Command)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Otherwise a warning says that others may list it.
        let passable = std::os::unix::fs::PermissionsExt::from_mode(0o711);
        std::fs::set_permissions(directory.path(), passable).unwrap();
        let at = |name: &str| directory.path().join(name);
        write(directory.path(), more);
        let mut command = vfiod(["serve"]);
        command.arg(at("vfiod.toml"));
        prepare(directory.path(), &mut command);
        let daemon = Daemon::serving(command, &[&at("control.sock"), &at("edu.sock")]);
        Self { directory, daemon }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn args(&self, args: &[&str]) -> Vec<String> {
        process::at(&self.path("control.sock"), args)
    }

    fn add(&self, name: &str, model: &str, socket: &Path, more: &[&str]) -> Vec<String> {
        let socket = socket.display().to_string();
        let args = ["add", name, "--device", model, "--socket-path", &socket];
        let args: Vec<&str> = args.into_iter().chain(more.iter().copied()).collect();
        self.args(&args)
    }
}

fn write(directory: &Path, more: &str) {
    let at = |name: &str| directory.join(name);
    let text = format!(
        "[device.edu]\nmodel = \"edu\"\nsocket = {:?}\n[control]\nsocket = {:?}\n{more}",
        at("edu.sock"),
        at("control.sock"),
    );
    std::fs::write(at("vfiod.toml"), text).unwrap();
}

/// Reads a register of edu: its identification.
fn identification(socket: &Path) -> u32 {
    let mut client = process::connect(socket).unwrap();
    client.region_write(7, 4, &[2]).unwrap();
    let mut id = [0; 4];
    client.region_read(0, 0, &mut id).unwrap();
    u32::from_le_bytes(id)
}

#[test]
fn device_with_a_socket_outside_is_refused_unless_the_configuration_allows_its_directory() {
    let outside = tempfile::tempdir().unwrap();
    let socket = outside.path().join("x.sock");
    let stage = Stage::start("");
    let said = bad(6, stage.add("x", "edu", &socket, &[]));
    let place = outside.path().display();
    assert!(
        said.contains(&format!(
            "device.x.socket: {place} is outside the daemon's sandbox; add its directory to `paths` \
             under [sandbox] and restart the daemon"
        )),
        "no reason and remedy: {said}"
    );
    assert!(!socket.exists());

    let stage = Stage::start(&format!("[sandbox]\npaths = [{:?}]\n", outside.path()));
    good(stage.add("x", "edu", &socket, &[]));
    assert_eq!(identification(&socket), 0x0100_00ed);
}

#[test]
fn file_that_an_option_names_outside_is_refused_with_the_option() {
    let outside = tempfile::tempdir().unwrap();
    let stage = Stage::start("");
    let control = format!("control={}", outside.path().join("control").display());
    let said = bad(6, stage.add("pins", "gpio", &stage.path("pins"), &["--option", &control]));
    assert!(said.contains("device.pins.options.control: "), "{said}");
    assert!(said.contains("is outside the daemon's sandbox"), "{said}");
    let control = format!("control={}", stage.path("control").display());
    good(stage.add("pins", "gpio", &stage.path("pins"), &["--option", &control]));
}

#[test]
fn reload_that_needs_more_changes_nothing() {
    let outside = tempfile::tempdir().unwrap();
    let stage = Stage::start("");
    let more = format!(
        "[device.two]\nmodel = \"edu\"\nsocket = {:?}\n[device.three]\nmodel = \"edu\"\nsocket = {:?}\n",
        stage.path("two.sock"),
        outside.path().join("three.sock"),
    );
    write(stage.directory.path(), &more);
    let said = bad(6, stage.args(&["reload"]));
    assert!(said.contains("device.three.socket: "), "{said}");
    assert!(!stage.path("two.sock").exists(), "nothing was changed");
    write(stage.directory.path(), "[sandbox]\npaths = [\"/srv\"]\n");
    let said = bad(2, stage.args(&["reload"]));
    assert!(said.contains("sandbox: this cannot change while the daemon runs"), "{said}");
    assert_eq!(identification(&stage.path("edu.sock")), 0x0100_00ed);
}

#[test]
fn model_that_needs_more_is_added_if_the_configuration_names_it() {
    let stage = Stage::start("");
    let said = bad(6, stage.add("tty", "serial", &stage.path("tty.sock"), &[]));
    assert!(
        said.contains(
            "device.tty: model `serial` needs /dev/ptmx, which the daemon's sandbox does not allow; add \
             \"serial\" to `models` under [sandbox] and restart the daemon"
        ),
        "{said}"
    );
    let stage = Stage::start("[sandbox]\nmodels = [\"serial\"]\n");
    let link = format!("link0={}", stage.path("tty").display());
    let options = ["--option", "backend=pty", "--option", &link];
    good(stage.add("tty", "serial", &stage.path("tty.sock"), &options));
    let _client = process::connect(stage.path("tty.sock")).unwrap();
    assert!(std::fs::read_link(stage.path("tty")).unwrap().starts_with("/dev/pts"));
}

#[test]
fn mode_of_an_added_socket_is_set_or_refused() {
    let stage = Stage::start("");
    let added = stage.add("x", "edu", &stage.path("x.sock"), &["--socket-mode", "0600"]);
    if rustix::process::geteuid().is_root() {
        // Landlock does not restrict changes of mode, and root owns files that are none of our business.
        let said = bad(6, added);
        assert!(said.contains("allows only the modes that sockets had when it started"), "{said}");
    } else {
        good(added);
        let mode = std::fs::metadata(stage.path("x.sock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

#[test]
fn directories_that_are_missing_are_made() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("run/vfiod/edu.sock");
    let mut command = vfiod(["serve", "--device", "edu", "--socket-path"]);
    command.arg(&socket);
    let _daemon = Daemon::serving(command, &[&socket]);
    assert_eq!(identification(&socket), 0x0100_00ed);
}

#[test]
fn unprivileged_user_serves_creates_and_reloads_in_the_sandbox() {
    if !rustix::process::geteuid().is_root() {
        eprintln!(
            "SKIPPED: only root can be another user; every other test here runs unprivileged"
        );
        return;
    }
    let stage = Stage::start_with("", |directory, command| {
        let more = format!(
            "[parent.pins]\nmodel = \"gpio\"\n[mdev]\nsockets = {:?}\ndefinitions = {:?}\n",
            directory.join("run/mdev"),
            directory.join("lib/definitions"),
        );
        write(directory, &more);
        chown(directory, Some(NOBODY), Some(NOBODY)).unwrap();
        command.uid(NOBODY).gid(NOBODY);
        let program = directory.join("vfiod");
        process::copy_program(&program);
        let mut other = Command::new(program);
        other.args(command.get_args()).uid(NOBODY).gid(NOBODY);
        *command = other;
    });
    assert_eq!(identification(&stage.path("edu.sock")), 0x0100_00ed);
    good(stage.add("x", "edu", &stage.path("x.sock"), &["--socket-mode", "0666"]));
    let uuid = good(stage.args(&["create", "pins", "gpio-16"]));
    let socket = stage.path("run/mdev").join(format!("{}.sock", uuid.trim()));
    process::connect(&socket).unwrap();
    good(stage.args(&["define", "--uuid", uuid.trim()]));
    good(stage.args(&["reload"]));
    good(stage.args(&["del", "x"]));
    let (status, log) = stage.daemon.terminate(Signal::TERM);
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("sandbox entered") && !log.contains("WARN"), "{log}");
}

#[test]
fn socket_left_by_a_killed_daemon_is_replaced() {
    let stage = Stage::start("");
    stage.daemon.signal(Signal::KILL);
    let Stage { directory, mut daemon } = stage;
    daemon.end();
    assert!(directory.path().join("edu.sock").exists());
    let mut command = vfiod(["serve"]);
    command.arg(directory.path().join("vfiod.toml"));
    let _daemon = Daemon::serving(command, &[&directory.path().join("edu.sock")]);
    until("its device", || process::connect(directory.path().join("edu.sock")).is_ok());
}
