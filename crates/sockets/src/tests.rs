use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::AtomicBool;
use std::thread;

use super::*;
use crate::{remove_if_stale, remove_leftovers};

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn bind(path: &Path) -> Result<NamedSocket> {
    NamedSocket::bind(path, SocketAccess::default())
}

fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
    result.unwrap_err().errno()
}

#[test]
fn a_name_that_is_there_accepts_connections_with_its_mode() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let (done, seen) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                match UnixStream::connect(&path) {
                    Ok(_) => {
                        seen.fetch_add(1, Ordering::Relaxed);
                        // The name may be another socket's by now, but never has another mode.
                        let there = identity(&path);
                        while there.is_ok() && identity(&path) == there {
                            if let Ok(file) = fs::symlink_metadata(&path) {
                                assert_eq!(file.permissions().mode() & 0o777, 0o640);
                            }
                        }
                    }
                    Err(error) => {
                        assert_ne!(Errno::from_io_error(&error), Some(Errno::CONNREFUSED));
                    }
                }
            }
        });
        // None is closed before the end: that would refuse a client that has found its name.
        let mut sockets = Vec::new();
        for round in 0..200 {
            let access = SocketAccess { mode: Some(0o640), ..SocketAccess::default() };
            // The client may see the name before this thread knows that it is there.
            let before = seen.load(Ordering::Relaxed);
            let socket = NamedSocket::bind(&path, access).unwrap();
            while round % 20 == 0 && seen.load(Ordering::Relaxed) == before {
                assert!(!client.is_finished(), "the client failed");
                thread::yield_now();
            }
            fs::remove_file(&path).unwrap();
            sockets.push(socket);
        }
        done.store(true, Ordering::Relaxed);
        sockets
    });
    assert_eq!(names(directory.path()), Vec::<String>::new());
}

#[test]
fn prepared_socket_has_no_name_but_all_else_and_leaves_nothing_when_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let access = SocketAccess { mode: Some(0o640), ..SocketAccess::default() };
    let mut socket = NamedSocket::prepare(&path, access, Site::Free).unwrap();
    assert!(!path.exists());
    let [first] = &names(directory.path())[..] else { panic!("one first name") };
    assert!(first.starts_with(".s.") && first.ends_with(".new"), "{first}");
    // Whoever finds the name finds a socket that can be used.
    let first = directory.path().join(first);
    UnixStream::connect(&first).unwrap();
    assert_eq!(fs::metadata(&first).unwrap().permissions().mode() & 0o777, 0o640);
    socket.publish().unwrap();
    assert_eq!(names(directory.path()), ["s"]);
    socket.publish().unwrap();
    drop(socket);
    drop(NamedSocket::prepare(&path, SocketAccess::default(), Site::Free).unwrap());
    assert_eq!(names(directory.path()), Vec::<String>::new());
}

#[test]
fn stale_socket_is_replaced_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "left behind");
    let socket = bind(&path).unwrap();
    assert_eq!(errno(bind(&path)), Errno::ADDRINUSE);
    UnixStream::connect(&path).unwrap();
    drop(socket);
    assert!(!path.exists());
    fs::write(&path, "data").unwrap();
    assert_eq!(errno(bind(&path)), Errno::EXIST);
    assert_eq!(fs::read(&path).unwrap(), b"data");
    // Also if it comes between the two steps.
    let other = directory.path().join("o");
    let mut late = NamedSocket::prepare(&other, SocketAccess::default(), Site::Free).unwrap();
    let winner = UnixListener::bind(&other).unwrap();
    assert_eq!(errno(late.publish()), Errno::ADDRINUSE);
    drop(late);
    UnixStream::connect(&other).unwrap();
    drop(winner);
}

#[test]
fn of_many_that_replace_a_stale_socket_one_wins() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..50 {
        let path = directory.path().join(format!("s{round}"));
        drop(UnixListener::bind(&path).unwrap());
        let won: Vec<_> = thread::scope(|scope| {
            let all: Vec<_> = (0..4).map(|_| scope.spawn(|| bind(&path))).collect();
            all.into_iter().filter_map(|one| one.join().unwrap().ok()).collect()
        });
        assert_eq!(won.len(), 1, "round {round}");
        UnixStream::connect(&path).unwrap();
    }
}

#[test]
fn missing_directories_are_made_and_trials_make_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/b/s");
    let trial = |path: &Path| NamedSocket::prepare(path, SocketAccess::default(), Site::Trial);
    drop(trial(&path).unwrap());
    assert_eq!(names(directory.path()), Vec::<String>::new());
    let socket = bind(&path).unwrap();
    UnixStream::connect(&path).unwrap();
    drop(socket);
    fs::write(directory.path().join("f"), "").unwrap();
    for wrong in ["f/s", "f/b/s"] {
        let path = directory.path().join(wrong);
        assert_eq!(errno(trial(&path)), Errno::NOTDIR, "{wrong}");
        assert_eq!(errno(bind(&path)), Errno::NOTDIR, "{wrong}");
    }
    for wrong in ["s/", "s/.", "s//"] {
        let path = directory.path().join(wrong);
        assert_eq!(errno(trial(&path)), Errno::ISDIR, "{wrong}");
        assert_eq!(errno(bind(&path)), Errno::ISDIR, "{wrong}");
    }
}

#[test]
fn longest_path_can_be_bound() {
    let directory = tempfile::tempdir().unwrap();
    let room = 107 - directory.path().as_os_str().len() - 2;
    let deep = directory.path().join("d".repeat(room - 1));
    for path in [deep.join("s"), directory.path().join("s".repeat(room + 1))] {
        assert_eq!(path.as_os_str().len(), 107);
        let _socket = bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        let long = PathBuf::from(format!("{}x", path.display()));
        assert_eq!(errno(bind(&long)), Errno::NAMETOOLONG);
    }
}

#[test]
fn leftovers_of_killed_programs_are_removed() {
    let directory = tempfile::tempdir().unwrap();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    for name in [".s.1-0.new", ".t.1-0.new", ".u.1-0.new", "s.new", "uuid.sock"] {
        let path = directory.path().join(name);
        drop(UnixListener::bind(&path).unwrap());
        if name != ".u.1-0.new" {
            let times = rustix::fs::Timestamps {
                last_access: timespec(old),
                last_modification: timespec(old),
            };
            rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
        }
    }
    fs::remove_file(directory.path().join(".t.1-0.new")).unwrap();
    fs::write(directory.path().join(".t.1-0.new"), "").unwrap();
    remove_leftovers(directory.path());
    let left = names(directory.path());
    assert_eq!(left, [".t.1-0.new", ".u.1-0.new", "s.new", "uuid.sock"]);
    let used = bind(&directory.path().join("used")).unwrap();
    assert!(remove_if_stale(&directory.path().join("uuid.sock")));
    assert!(
        !remove_if_stale(used.path()) && !remove_if_stale(&directory.path().join(".t.1-0.new"))
    );
    assert!(!remove_if_stale(&directory.path().join("absent")));
}

#[test]
fn file_that_was_put_in_a_sockets_place_is_not_touched() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| directory.path().join(name);
    let opened = rustix::fs::open(directory.path(), OFlags::PATH, Mode::empty()).unwrap();
    let _listening = UnixListener::bind(place("bound")).unwrap();
    let file = open_bound(&opened, "bound").unwrap();
    let found = rustix::fs::fstat(&file).unwrap();
    assert_eq!(identity(&place("bound")), Ok((found.st_dev, found.st_ino)));
    // As the directory's owner may.
    fs::write(place("secret"), "").unwrap();
    std::os::unix::fs::symlink(place("secret"), place("link")).unwrap();
    std::os::unix::fs::symlink(place("bound"), place("link to a socket")).unwrap();
    for name in ["secret", "link", "link to a socket"] {
        assert_eq!(open_bound(&opened, name).unwrap_err(), Errno::PERM, "{name}");
    }
    fs::hard_link(place("bound"), place("second name")).unwrap();
    assert_eq!(open_bound(&opened, "second name").unwrap_err(), Errno::PERM);
}

fn timespec(time: std::time::SystemTime) -> rustix::fs::Timespec {
    let since = time.duration_since(std::time::UNIX_EPOCH).unwrap();
    rustix::fs::Timespec { tv_sec: since.as_secs() as i64, tv_nsec: since.subsec_nanos().into() }
}
