//! Locks of images: this program twice, and with QEMU's tools.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vfiod_disk::{Image, ImageOptions};
use vfiod_dma::Errno;

/// A process that another test starts has the descriptors of all until it executes its program.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn image() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("disk.img");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    (directory, path)
}

fn writer(path: &Path) -> ImageOptions {
    ImageOptions::new(path)
}

fn reader(path: &Path) -> ImageOptions {
    ImageOptions { read_only: true, ..ImageOptions::new(path) }
}

fn refusal(options: &ImageOptions) -> String {
    let error = Image::open(options).unwrap_err();
    assert_eq!(error.errno(), Errno::BUSY, "{error}");
    error.to_string()
}

#[test]
fn image_has_one_writer_or_several_readers() {
    let _alone = alone();
    let (_directory, path) = image();
    let ours = format!("in use: process {} (", std::process::id());
    let image = Image::open(&writer(&path)).unwrap();
    for options in [writer(&path), reader(&path)] {
        let refusal = refusal(&options);
        assert!(refusal.contains(&ours), "{refusal}");
    }
    // By another name, too.
    let link = path.with_file_name("link.img");
    std::fs::hard_link(&path, &link).unwrap();
    refusal(&writer(&link));
    // With the operator's word it is used all the same.
    Image::open(&ImageOptions { unlocked: true, ..writer(&path) }).unwrap();
    drop(image);
    let readers = [Image::open(&reader(&path)).unwrap(), Image::open(&reader(&path)).unwrap()];
    assert!(refusal(&writer(&path)).contains(&ours));
    drop(readers);
    Image::open(&writer(&path)).unwrap();
}

/// QEMU's tools, if they are there.
fn qemu(tool: &str) -> Option<Command> {
    let cache = std::env::var_os("VFIOD_E2E_CACHE").map(PathBuf::from);
    let unpacked = cache.map(|cache| cache.join("rootfs/usr/bin").join(tool));
    for program in unpacked.into_iter().chain([PathBuf::from(tool)]) {
        let found = Command::new(&program).arg("--version").stdout(Stdio::null()).status();
        if found.is_ok_and(|status| status.success()) {
            return Some(Command::new(program));
        }
    }
    eprintln!("SKIPPED: no {tool}");
    None
}

/// qemu-io, which has opened the image.
fn qemu_io(path: &Path, arguments: &[&str]) -> Option<Child> {
    let mut command = qemu("qemu-io")?;
    command.args(arguments).args(["-f", "raw"]).arg(path);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // It answers once the image is open.
    child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
    let mut answer = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut answer).unwrap();
    assert!(answer.contains("1 MiB"), "qemu-io says {answer:?}");
    Some(child)
}

#[test]
fn image_that_qemu_has_is_refused_until_qemu_has_ended() {
    let _alone = alone();
    let (_directory, path) = image();
    let Some(mut child) = qemu_io(&path, &[]) else { return };
    let holder = format!("in use: process {} (qemu-io)", child.id());
    for options in [writer(&path), reader(&path)] {
        let refusal = refusal(&options);
        assert!(refusal.contains(&holder), "{refusal}, not by {holder}");
    }
    // Killed: its locks end with it.
    child.kill().unwrap();
    child.wait().unwrap();
    Image::open(&writer(&path)).unwrap();
}

/// cloud-hypervisor#7553: who reads a snapshot goes on.
#[test]
fn readers_share_an_image_with_qemu() {
    let _alone = alone();
    let (_directory, path) = image();
    let Some(mut child) = qemu_io(&path, &["-r"]) else { return };
    let image = Image::open(&reader(&path)).unwrap();
    refusal(&writer(&path));
    child.kill().unwrap();
    child.wait().unwrap();
    drop(image);
    Image::open(&writer(&path)).unwrap();
}

#[test]
fn qemu_refuses_an_image_that_is_in_use_here() {
    let _alone = alone();
    let (directory, path) = image();
    let run = |tool: &str, arguments: &[&str]| {
        let mut command = qemu(tool)?;
        let output = command.args(arguments).current_dir(directory.path()).output().unwrap();
        Some((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    let write = ["-f", "raw", "-c", "write 0 512", "disk.img"];
    let resize = ["resize", "-f", "raw", "disk.img", "2M"];
    let copy = ["convert", "-f", "raw", "-O", "raw", "disk.img", "copy.img"];
    let look = ["convert", "-U", "-f", "raw", "-O", "raw", "disk.img", "copy.img"];
    let refused = |tool: &str, arguments: &[&str]| {
        let (done, error) = run(tool, arguments).unwrap();
        assert!(!done && error.contains("lock"), "{tool} {arguments:?}: {done}, {error:?}");
    };
    let done = |tool: &str, arguments: &[&str]| {
        let (done, error) = run(tool, arguments).unwrap();
        assert!(done, "{tool} {arguments:?}: {error:?}");
    };
    if qemu("qemu-img").is_none() || qemu("qemu-io").is_none() {
        return;
    }
    let image = Image::open(&writer(&path)).unwrap();
    refused("qemu-io", &write);
    refused("qemu-img", &resize);
    refused("qemu-img", &copy);
    // Who only looks, and says so, is let in: to copy a snapshot, for example.
    done("qemu-img", &look);
    drop(image);
    let image = Image::open(&reader(&path)).unwrap();
    refused("qemu-io", &write);
    refused("qemu-img", &resize);
    done("qemu-img", &copy);
    drop(image);
    done("qemu-io", &write);
    done("qemu-img", &resize);
}
