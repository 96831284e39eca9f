//! A program that has a serial card's pseudo-terminal open and is amid a read of it which never returns: into
//! a page whose fault does not.
#![allow(unsafe_code)]

mod process;
#[path = "process/stalling.rs"]
mod stalling;

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use process::{Daemon, at, connect, good, until, vfiod};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap};
use rustix::process::Signal;
use stalling::Stalling;

const PORT: u32 = 0;
const DATA: u64 = 0;

fn serve(directory: &Path) -> Daemon {
    let path = |name: &str| directory.join(name);
    let text = format!(
        "[control]\nsocket = {:?}\n\
         [device.neighbour]\nmodel = \"edu\"\nsocket = {:?}\n\
         [device.card]\nmodel = \"serial\"\nsocket = {:?}\noptions = {{ backend = \"pty\", link0 = {:?} }}\n",
        path("control"),
        path("neighbour"),
        path("card"),
        path("terminal"),
    );
    std::fs::write(path("vfiod.toml"), text).unwrap();
    let file = path("vfiod.toml");
    let command = vfiod(["serve", file.to_str().unwrap(), "--log", "warn"]);
    Daemon::serving(command, &[&path("control")])
}

/// Set for a process that is to be amid a read: for [`process_that_reads_the_terminal`].
const READS: &str = "VFIOD_TEST_READS";

/// Starts a process that reads `terminal` into a page of `file`, which cannot be read. It is one of its own:
/// whatever looks at its memory may wait for that page, too.
fn start_reader(terminal: File, file: &File) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "process_that_reads_the_terminal"])
        .env(READS, "")
        .stdin(file.try_clone().unwrap())
        .stdout(Stdio::null())
        .stderr(terminal)
        .spawn()
        .unwrap()
}

/// What a process does that [`start_reader`] has started; otherwise nothing.
#[test]
fn process_that_reads_the_terminal() {
    if std::env::var_os(READS).is_none() {
        return;
    }
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
    // SAFETY: a new mapping at an address of the kernel's choice, which stays until the process ends.
    let page = unsafe { mmap(std::ptr::null_mut(), 1, access, flags, std::io::stdin(), 0) };
    // SAFETY: mapped as above. Nobody but the kernel looks at it.
    let bytes = unsafe { std::slice::from_raw_parts_mut(page.unwrap().cast::<u8>(), 1) };
    let read = rustix::io::read(std::io::stderr(), bytes);
    std::process::exit(if read == Err(Errno::FAULT) { 0 } else { 1 });
}

#[test]
fn card_whose_terminal_a_program_does_not_let_close_is_closed_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let daemon = serve(directory.path());
    // Dropped before the daemon, whose end may wait for it.
    let Some(stalling) = Stalling::mount_unreadable(&path("stalling")) else { return };
    let control = path("control");

    let mut client = connect(path("card")).unwrap();
    let terminal = File::open(path("terminal")).unwrap();
    let file = stalling.open();
    let mut reader = start_reader(terminal, &file);
    until("the program is amid its read", || {
        client.region_write(PORT, DATA, b"x").unwrap();
        stalling.waiting() > 0
    });
    drop(client);

    // Closed, and opened again with a terminal of its own.
    drop(connect(path("card")).expect("the card can be opened again"));
    good(at(&control, &["del", "card", "--deadline", "1s"]));
    connect(path("neighbour")).unwrap().device_info().unwrap();
    assert!(reader.try_wait().unwrap().is_none(), "the read went on all the time");
    daemon.signal(Signal::TERM);
    until("the main thread has ended", || daemon.has_ended());
    drop((file, stalling));
    let (status, said) = daemon.finish();
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(reader.wait().unwrap().success());
}
