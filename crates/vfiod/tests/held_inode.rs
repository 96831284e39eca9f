//! A client that holds the lock of the inode of the memory which the device shares with it: by a `pwrite` to
//! it from a page whose fault never returns.
#![allow(unsafe_code)]

mod process;
#[path = "process/stalling.rs"]
mod stalling;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use process::api::ask;
use process::{Daemon, at, good, until, vfiod};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use rustix::process::Signal;
use stalling::Stalling;
use vfiod_client::Client;

/// The memory of the bench device. A client can map it.
const MEMORY: u32 = 0;
const PAGE: usize = 4096;

/// Two functions of a slot, which are reset together, and a device of its own.
fn serve(directory: &Path) -> Daemon {
    let mut text = format!("[control]\nsocket = {:?}\n", directory.join("control"));
    text += "[bus.b]\nnumber = 1\n[slot.s]\nbus = \"b\"\n";
    for (name, keys) in [
        ("shared", "model = \"bench\"\nslot = \"s\"\nfunction = 1"),
        ("beside", "model = \"edu\"\nslot = \"s\"\nfunction = 0"),
        ("neighbour", "model = \"edu\""),
    ] {
        text += &format!("[device.{name}]\n{keys}\nsocket = {:?}\n", directory.join(name));
    }
    let path = directory.join("vfiod.toml");
    std::fs::write(&path, text).unwrap();
    let command = vfiod(["serve", path.to_str().unwrap(), "--log", "warn"]);
    Daemon::serving(command, &[&directory.join("control")])
}

/// Where a process that is to hold the lock writes to, and where what it writes is: for
/// [`process_that_holds_the_lock`].
const PLACES: &str = "VFIOD_TEST_PLACES";

/// Starts a process that writes a page to `memory`, from the page at `from` of `file`, which cannot be read.
/// It is one of its own: whatever looks at its memory may wait for that page, too.
fn hold_lock(memory: OwnedFd, offset: u64, file: &File, from: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "process_that_holds_the_lock"])
        .env(PLACES, format!("{offset} {from}"))
        .stdin(file.try_clone().unwrap())
        .stdout(Stdio::null())
        .stderr(memory)
        .spawn()
        .unwrap()
}

/// What a process does that [`hold_lock`] has started; otherwise nothing.
#[test]
fn process_that_holds_the_lock() {
    let Ok(places) = std::env::var(PLACES) else { return };
    let (offset, from) = places.split_once(' ').unwrap();
    let (offset, from) = (offset.parse().unwrap(), from.parse().unwrap());
    let (read, flags) = (ProtFlags::READ, MapFlags::SHARED);
    // SAFETY: a new mapping at an address of the kernel's choice, which stays until the process ends.
    let page = unsafe { mmap(std::ptr::null_mut(), PAGE, read, flags, std::io::stdin(), from) };
    // SAFETY: mapped as above. Nobody but the kernel looks at it.
    let bytes = unsafe { std::slice::from_raw_parts(page.unwrap().cast::<u8>(), PAGE) };
    let written = rustix::io::pwrite(std::io::stderr(), bytes, offset);
    std::process::exit(if written == Err(rustix::io::Errno::FAULT) { 0 } else { 1 });
}

#[test]
fn device_whose_shared_memory_a_client_has_locked_is_reset_revoked_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let daemon = serve(directory.path());
    // Dropped before the daemon, whose end may wait for it.
    let Some(stalling) = Stalling::mount_unreadable(&path("stalling")) else { return };
    let control = path("control");
    let mut holders = Vec::new();
    // Another open would wait for the page that is being read. So does a page that is read with it.
    let file = stalling.open();
    for (how, from) in [("revoke", 0), ("remove", 1 << 19)] {
        let mut client = Client::connect(path("shared")).unwrap();
        let region = client.region_info(MEMORY).unwrap();
        client.region_write(MEMORY, 0, b"secret").unwrap();
        let held = stalling.waiting();
        holders.push(hold_lock(region.fd.unwrap(), region.reply.info.offset, &file, from));
        until("the lock is held", || stalling.waiting() > held);

        client.reset().unwrap();
        let mut bytes = [1; 6];
        client.region_read(MEMORY, 0, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 6]);
        good(at(&control, &["reset", "shared", "--force"]));
        if how == "revoke" {
            good(at(&control, &["revoke", "shared"]));
            until("the device is closed", || {
                let (_, files) = ask(&control, "GET", "files", None).unwrap();
                files.as_array().unwrap().is_empty()
            });
            Client::connect(path("beside")).unwrap().reset().unwrap();
        } else {
            good(at(&control, &["del", "shared", "--deadline", "1s"]));
        }
        Client::connect(path("neighbour")).unwrap().device_info().unwrap();
    }
    let held = holders.iter_mut().all(|holder| holder.try_wait().unwrap().is_none());
    assert!(held, "the lock was held all the time");
    let (status, said) = daemon.terminate(Signal::TERM);
    assert_eq!(status.code(), Some(0), "{said}");
    drop((file, stalling));
    for mut holder in holders {
        assert!(holder.wait().unwrap().success());
    }
}
