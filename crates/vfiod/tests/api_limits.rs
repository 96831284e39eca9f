//! The control API of a daemon that has no thread left, or many idle connections.

mod process;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use process::api::ask;
use process::{Daemon, until, vfiod};
use rustix::process::{Uid, getuid};
use rustix::thread::set_thread_res_uid;
use uuid::Uuid;
use vfiod_client::Client;

/// An account that has no other process.
const ACCOUNT: u32 = 48_213;
/// Accounts that may use the API.
const GREEDY: u32 = 48_214;
const STRANGER: u32 = 48_215;

struct Served {
    daemon: Daemon,
    control: PathBuf,
    edu: PathBuf,
    _directory: tempfile::TempDir,
}

impl Served {
    /// Sets the limit for its user's threads. Returns what it was; `None` without the tool for that.
    fn limit_threads(&self, limit: &str) -> Option<String> {
        let run = |arguments: &[&str]| {
            let pid = self.daemon.pid().to_string();
            let mut command = Command::new("prlimit");
            command.args(["--pid", &pid]).args(arguments);
            if getuid().is_root() {
                command.uid(ACCOUNT).gid(ACCOUNT);
            }
            let output = command.output().ok()?;
            assert!(output.status.success(), "{output:?}");
            Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
        };
        let Some(before) = run(&["--nproc", "--output", "SOFT", "--noheadings"]) else {
            eprintln!("SKIPPED: there is no prlimit here");
            return None;
        };
        run(&[&format!("--nproc={limit}:")]);
        Some(before)
    }
}

/// Serves a device, as another user if this one is root: the kernel does not limit root's threads.
fn serve() -> Served {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let text = format!(
        "[control]\nsocket = {{ path = {:?}, mode = \"0666\" }}\nusers = [{}, {GREEDY}, {STRANGER}]\n\
         [device.edu]\nmodel = \"edu\"\nsocket = {:?}\n[parent.p]\nmodel = \"edu\"\n\
         options = {{ instances = 60 }}\n[mdev]\nsockets = {:?}\n",
        at("run/control"),
        getuid().as_raw(),
        at("run/edu"),
        at("run/mdev"),
    );
    std::fs::create_dir(at("run")).unwrap();
    std::fs::write(at("vfiod.toml"), text).unwrap();
    let mut command = vfiod(["serve", at("vfiod.toml").to_str().unwrap()]);
    if getuid().is_root() {
        let program = at("vfiod");
        process::copy_program(&program);
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        command = Command::new(program);
        command.args(arguments).uid(ACCOUNT).gid(ACCOUNT).env_remove("VFIOD_LOG");
        std::os::unix::fs::chown(at("run"), Some(ACCOUNT), Some(ACCOUNT)).unwrap();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open).unwrap();
    }
    let (control, edu) = (at("run/control"), at("run/edu"));
    let daemon = Daemon::serving(command, &[&control, &edu]);
    Served { daemon, control, edu, _directory: directory }
}

#[test]
fn request_for_which_no_thread_can_be_started_is_refused_and_the_next_one_is_not() {
    let served = serve();
    let mut client = process::connect(&served.edu).unwrap();
    let list = || ask(&served.control, "GET", "devices", None).unwrap();
    assert_eq!(list().0, 200);
    let Some(before) = served.limit_threads("1") else { return };
    for _ in 0..10 {
        let (status, problem) = list();
        assert_eq!((status, &problem["errno"]), (503, &"EAGAIN".into()), "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.starts_with("no thread can be started for this; try again: "), "{detail}");
    }
    let (status, _) = ask(&served.control, "DELETE", "devices/edu", None).unwrap();
    assert_eq!(status, 503);
    client.device_info().unwrap();
    served.limit_threads(&before).unwrap();
    assert_eq!(list().0, 200);
}

/// Of the daemon, in bytes.
fn memory(daemon: &Daemon) -> usize {
    let status = daemon.read("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

fn idle(control: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(control).unwrap();
    // It was used, and is kept for another request.
    stream.write_all(b"GET /api/v1/devices HTTP/1.1\r\nhost: vfiod\r\n\r\n").unwrap();
    assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
    stream
}

#[test]
fn idle_connections_are_bounded_and_cost_little() {
    // This user's, who is an operator, if not the only one: 32 and 112.
    const MANY: usize = 140;
    const MOST: usize = 32 << 10;
    let served = serve();
    drop(idle(&served.control));
    let before = memory(&served.daemon);
    let mut held: Vec<_> = (0..MANY).map(|_| idle(&served.control)).collect();
    let each = memory(&served.daemon).saturating_sub(before) / MANY;
    println!("{each} bytes for an idle connection");
    assert!(each < MOST, "an idle connection costs {each} bytes");
    let mut refused = (0, serde_json::Value::Null);
    until("no more are taken", || {
        match ask(&served.control, "GET", "devices", None) {
            // Several, as on a slow machine some of those before are closed for having been idle.
            Ok((200, _)) => {
                held.extend((0..8).map(|_| UnixStream::connect(&served.control).unwrap()));
                false
            }
            Ok(answer) => {
                refused = answer;
                true
            }
            // Of those that are refused, few are told so at a time.
            Err(_) => false,
        }
    });
    assert_eq!(refused.0, 503);
    let detail = refused.1["detail"].as_str().unwrap();
    let user = getuid().as_raw();
    let expected = format!("uid {user} has 112 connections, as many as one user may have");
    assert!(detail.starts_with(&expected), "{detail}");
    drop(held);
    until("there is room", || ask(&served.control, "GET", "devices", None).unwrap().0 == 200);
}

/// Runs something as another user: only on a thread of its own, as the kernel knows users by thread.
fn as_user<T: Send>(uid: u32, run: impl FnOnce() -> T + Send) -> T {
    let as_user = || {
        let uid = Uid::from_raw(uid);
        set_thread_res_uid(uid, uid, uid).unwrap();
        run()
    };
    thread::scope(|scope| scope.spawn(as_user).join()).unwrap()
}

/// Sends a request that has no end. Returns the first line of the reply, and the connection.
fn watch(control: &Path) -> (String, UnixStream) {
    let mut stream = UnixStream::connect(control).unwrap();
    let _ = stream.write_all(b"GET /api/v1/events HTTP/1.1\r\nhost: vfiod\r\n\r\n");
    let mut line = String::new();
    // Empty where the connection is closed without a reply.
    BufReader::new(&stream).read_line(&mut line).unwrap();
    (line, stream)
}

#[test]
fn user_who_takes_all_places_leaves_some_to_others_and_to_operators() {
    if !getuid().is_root() {
        eprintln!("SKIPPED: only root can be several users");
        return;
    }
    let served = serve();
    let control = &served.control;
    let greedy = as_user(GREEDY, || {
        let mut watches = Vec::new();
        loop {
            let (status, stream) = watch(control);
            if !status.contains("200") {
                return (watches, status);
            }
            watches.push(stream);
            assert!(watches.len() <= 300, "this user has all places");
        }
    });
    assert_eq!(greedy.0.len(), 112, "connections of one user");
    assert!(greedy.1.contains("503"), "{}", greedy.1);
    let command = |uid: u32| {
        let mut command = Command::new(served.edu.with_file_name("../vfiod"));
        command.args(["show", "--control"]).arg(control).env_remove("VFIOD_LOG");
        command.uid(uid).gid(uid).output().unwrap()
    };
    let refused = command(GREEDY);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(4), "{said}");
    assert!(
        said.contains(&format!("uid {GREEDY} has 112 connections, as many as one user")),
        "{said}"
    );
    let shown = command(STRANGER);
    assert!(shown.status.success(), "{shown:?}");
    let shown = String::from_utf8(shown.stdout).unwrap();
    for line in ["connections: 113", "max: 256", "operators max: 32", "user max: 112"] {
        assert!(shown.contains(line), "{line} is not in:\n{shown}");
    }
    // Of two users who have all that users can have, an operator notices nothing.
    let stranger = as_user(STRANGER, || {
        let watches = std::iter::repeat_with(|| watch(control));
        watches.take_while(|(status, _)| status.contains("200")).collect::<Vec<_>>()
    });
    assert!(stranger.len() >= 110, "{}", stranger.len());
    for _ in 0..30 {
        assert_eq!(ask(control, "GET", "devices", None).unwrap().0, 200);
    }
    drop(greedy);
    let has_room = || as_user(GREEDY, || ask(control, "GET", "devices", None).unwrap().0) == 200;
    until("there is room", has_room);
}

/// Makes an instance that somebody has open.
fn use_instance(served: &Served, uuid: Uuid) -> Client {
    let body = format!(r#"{{"parent": "p", "type": "edu-1", "uuid": "{uuid}"}}"#);
    let (status, made) = ask(&served.control, "POST", "instances", Some(&body)).unwrap();
    assert_eq!(status, 201, "{made}");
    let socket = served.edu.with_file_name(format!("mdev/{uuid}.sock"));
    let mut user = process::connect(socket).unwrap();
    user.device_info().unwrap();
    user
}

#[track_caller]
fn begin_removal(served: &Served, uuid: Uuid, policy: &str) {
    let path = format!("instances/{uuid}?policy={policy}");
    assert_eq!(ask(&served.control, "DELETE", &path, None).unwrap().0, 202);
}

#[test]
fn removals_that_wait_for_users_take_no_threads() {
    const COUNT: usize = 60;
    let served = serve();
    let uuids: Vec<_> = (1..=COUNT as u128).map(Uuid::from_u128).collect();
    let mut users: Vec<_> = uuids.iter().map(|uuid| use_instance(&served, *uuid)).collect();
    let before = served.daemon.threads();
    uuids.iter().for_each(|uuid| begin_removal(&served, *uuid, "wait"));
    let left = || {
        let (_, instances) = ask(&served.control, "GET", "instances", None).unwrap();
        instances.as_array().unwrap().len()
    };
    assert_eq!(left(), COUNT);
    // Those that ask users end at once.
    until("few threads", || served.daemon.threads() < before + COUNT / 2);
    assert_eq!(left(), COUNT);
    // One goes when its user does, or when a second removal revokes its files.
    let stay = users.split_off(COUNT / 2);
    drop(users);
    until("half of them are removed", || left() == stay.len());
    for uuid in &uuids[COUNT / 2..] {
        begin_removal(&served, *uuid, "deadline&deadline=1ms");
    }
    until("all are removed", || left() == 0);
}

#[test]
fn removal_that_waits_does_not_hold_up_the_end_of_the_daemon() {
    let served = serve();
    let uuid = Uuid::from_u128(1);
    let mut user = use_instance(&served, uuid);
    begin_removal(&served, uuid, "wait");
    user.device_info().unwrap();
    let (status, log) = served.daemon.terminate(rustix::process::Signal::TERM);
    assert!(status.success() && log.contains("finished"), "{log}");
}
