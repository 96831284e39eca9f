//! Users of one device, of which one connects as often as it can.

mod process;

use std::collections::VecDeque;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use process::{Daemon, until, vfiod};
use rustix::process::{Signal, Uid, getuid};
use rustix::thread::set_thread_res_uid;
use vfiod_wire::{Command, Header};
use zerocopy::IntoBytes;

/// Accounts that have no other process.
const GREEDY: u32 = 48_216;
const STRANGER: u32 = 48_217;
const FLOODERS: usize = 32;
/// How often the other user connects.
const TIMES: usize = 12;

/// Runs `work` on this thread as another account.
fn become_user(uid: u32) {
    let uid = Uid::from_raw(uid);
    set_thread_res_uid(uid, uid, uid).unwrap();
}

fn serve(directory: &Path, limits: &str) -> (Daemon, PathBuf) {
    let socket = directory.join("edu");
    let text = format!(
        "[limits]\n{limits}\n[device.edu]\nmodel = \"edu\"\nopen = \"multi\"\n\
         socket = {{ path = {socket:?}, mode = \"0666\" }}\n"
    );
    let config = directory.join("c.toml");
    std::fs::write(&config, text).unwrap();
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    let command = vfiod(["serve", config.to_str().unwrap(), "--log", "error"]);
    (Daemon::serving(command, &[&socket]), socket)
}

/// One user connects as fast as it can, and keeps so many connections for each thread; each time that the
/// other one connects, it is to have the device.
fn stranger_gets_in(limits: &str, kept: usize, says: &[u8]) {
    if !getuid().is_root() {
        eprintln!("SKIPPED: only root can be several users");
        return;
    }
    // Half for each of the tests that keep any, and some for the rest.
    let kept = kept.min(process::raise_descriptor_limit() / 4 / FLOODERS);
    let directory = tempfile::tempdir().unwrap();
    let (daemon, socket) = serve(directory.path(), limits);
    let (done, connected) = (AtomicBool::new(false), AtomicUsize::new(0));
    let refused = thread::scope(|scope| {
        for _ in 0..FLOODERS {
            scope.spawn(|| {
                become_user(GREEDY);
                let mut connections = VecDeque::new();
                while !done.load(Ordering::Relaxed) {
                    // Fails where it is not accepted soon enough.
                    let Ok(mut connection) = UnixStream::connect(&socket) else { continue };
                    let _ = connection.write_all(says);
                    connected.fetch_add(1, Ordering::Relaxed);
                    connections.push_back(connection);
                    if connections.len() > kept {
                        connections.pop_front();
                    }
                }
            });
        }
        let stranger = scope.spawn(|| {
            become_user(STRANGER);
            let mut refused = Vec::new();
            for _ in 0..TIMES {
                let before = connected.load(Ordering::Relaxed);
                until("the flood", || connected.load(Ordering::Relaxed) >= before + FLOODERS);
                let client = process::connect(&socket);
                refused.extend(client.and_then(|mut client| client.device_info()).err());
            }
            refused
        });
        let refused = stranger.join();
        done.store(true, Ordering::Relaxed);
        refused.unwrap()
    });
    assert!(refused.is_empty(), "{} of {TIMES} times: {refused:?}", refused.len());
    let (status, said) = daemon.terminate(Signal::TERM);
    assert_eq!(status.code(), Some(0), "{said}");
}

#[test]
fn user_that_connects_and_disconnects_keeps_no_other_from_its_device() {
    stranger_gets_in("", 0, &[]);
}

#[test]
fn user_that_connects_and_says_nothing_keeps_no_other_from_its_device() {
    stranger_gets_in("", 100, &[]);
}

/// Of the places that all devices share, the user has as many as one user may have.
#[test]
fn user_without_a_place_takes_none_of_another() {
    stranger_gets_in("common_connections = 20\nreserved_connections = 2", 100, &[]);
}

#[test]
fn user_that_opens_the_device_and_disconnects_keeps_no_other_from_it() {
    let payload = b"\0\0\0\0{}\0";
    let header = Header::command(1, Command::Version, payload.len(), false);
    stranger_gets_in("", 0, &[header.as_bytes(), payload].concat());
}
