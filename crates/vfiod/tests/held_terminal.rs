//! A program that has a serial card's pseudo-terminal open and is amid a read of it which never returns: into
//! a page whose fault does not.
#![allow(unsafe_code)]

mod process;
#[path = "process/stalling.rs"]
mod stalling;

use std::fs::File;
use std::path::Path;
use std::thread;

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

#[test]
fn card_whose_terminal_a_program_does_not_let_close_is_closed_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let daemon = serve(directory.path());
    // Dropped before the daemon, whose end may wait for it.
    let Some(stalling) = Stalling::mount(&path("stalling")) else { return };
    let control = path("control");

    let mut client = connect(path("card")).unwrap();
    let terminal = File::open(path("terminal")).unwrap();
    // SAFETY: a new mapping at an address of the kernel's choice, which stays until the process ends.
    let page = unsafe {
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        mmap(std::ptr::null_mut(), 1, flags, MapFlags::SHARED, stalling.open(), 0).unwrap()
    };
    let page = page.expose_provenance();
    let reader = thread::spawn(move || {
        let page = std::ptr::with_exposed_provenance_mut::<u8>(page);
        // SAFETY: mapped as above. Nobody but the kernel looks at it.
        let bytes = unsafe { std::slice::from_raw_parts_mut(page, 1) };
        rustix::io::read(&terminal, bytes)
    });
    until("the program is amid its read", || {
        client.region_write(PORT, DATA, b"x").unwrap();
        stalling.waiting() > 0
    });
    drop(client);

    // Closed, and opened again with a terminal of its own.
    let client = connect(path("card"));
    drop(client.unwrap());
    good(at(&control, &["del", "card", "--deadline", "1s"]));
    connect(path("neighbour")).unwrap().device_info().unwrap();
    assert!(!reader.is_finished(), "the read went on all the time");
    daemon.signal(Signal::TERM);
    until("the main thread has ended", || daemon.has_ended());
    drop(stalling);
    let (status, said) = daemon.finish();
    assert_eq!(status.code(), Some(0), "{said}");
    assert_eq!(reader.join().unwrap(), Err(Errno::FAULT));
}
