//! What only a start showed once: images that cannot be served, and disks that are not to be one another's, are
//! found by `serve --check` and by the start, with the option, the value and a remedy.

mod process;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use process::{Daemon, bad, good, vfiod};
use rustix::fs::{FileType, FlockOperation};
use rustix::process::Signal;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A directory with images, and a configuration that names them.
struct Rig(TempDir);

impl Rig {
    fn new() -> Self {
        let rig = Self(tempfile::tempdir().unwrap());
        rig.image("good.img", MIB);
        rig
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn image(&self, name: &str, bytes: u64) {
        File::create(self.at(name)).unwrap().set_len(bytes).unwrap();
    }

    /// Writes a configuration of disks with these options, in which `@` is the directory.
    fn configure(&self, disks: &[(&str, &str)]) -> PathBuf {
        let here = self.0.path().display().to_string();
        let disk = |(name, options): &(&str, &str)| {
            let options = options.replace('@', &here);
            format!(
                "[device.{name}]\nmodel = \"nvme\"\nsocket = {:?}\noptions = {{ {options} }}\n",
                self.at(name)
            )
        };
        let text = disks.iter().map(disk).collect::<String>();
        let path = self.at("c.toml");
        fs::write(&path, text).unwrap();
        path
    }

    /// What is there, and when it was changed last.
    fn contents(&self) -> Vec<(PathBuf, Option<std::time::SystemTime>)> {
        let entries = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap());
        let mut all: Vec<_> = entries
            .map(|entry| (entry.path(), entry.metadata().and_then(|found| found.modified()).ok()))
            .collect();
        all.sort();
        all
    }

    /// What `--check` and a start say of a configuration that both refuse, leaving all as it is.
    fn refused(&self, disks: &[(&str, &str)]) -> String {
        let config = self.configure(disks);
        let before = self.contents();
        let checked = bad(2, [Path::new("serve"), Path::new("--check"), &config]);
        assert_eq!(self.contents(), before, "{checked}");
        let started = bad(2, [Path::new("serve"), &config]);
        assert_eq!(started, checked);
        assert_eq!(self.contents(), before, "{checked}");
        checked
    }

    /// Both options are accepted.
    fn accepted(&self, disks: &[(&str, &str)]) -> String {
        let config = self.configure(disks);
        let before = self.contents();
        let said = good([Path::new("serve"), Path::new("--check"), &config]);
        assert_eq!(self.contents(), before, "{said}");
        said
    }

    fn serve(&self, disks: &[(&str, &str)]) -> Daemon {
        let config = self.configure(disks);
        let sockets: Vec<_> = disks.iter().map(|(name, _)| self.at(name)).collect();
        let sockets: Vec<_> = sockets.iter().map(PathBuf::as_path).collect();
        Daemon::serving(vfiod([Path::new("serve"), &config]), &sockets)
    }
}

#[test]
fn image_that_is_no_disk_is_refused_with_its_option_value_and_remedy() {
    let rig = Rig::new();
    rig.image("empty.img", 0);
    rig.image("odd.img", 1000);
    rig.image("small.img", 512);
    fs::create_dir(rig.at("directory")).unwrap();
    symlink("nowhere", rig.at("dangling")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, rig.at("pipe"), FileType::Fifo, 0o600.into(), 0).unwrap();
    let remedy = "make it first, or correct the path";
    for (options, key, expected, remedy) in [
        ("file = '@/none.img'", "file", "none.img is not there", remedy),
        ("file = '@/dangling'", "file", "dangling is not there", remedy),
        ("file = '@/directory'", "file", "is a directory, and not a file", "choose another path"),
        ("file = '@/pipe'", "file", "is a fifo, and not a file", "choose another path"),
        ("file = '@/empty.img'", "file", "empty.img: it is empty", "`truncate -s 10G` gives it"),
        ("file = '@/odd.img'", "file", "its size of 1000 bytes", "`truncate -s 1024` makes it one"),
        (
            "file = '@/small.img', block_size = 4096",
            "file",
            "no multiple of the block size, 4096",
            "`truncate -s 4096` makes it one",
        ),
        (
            "file = '@/good.img', files = ['@/good2.img', '@/odd.img']",
            "files",
            "odd.img: its size of 1000 bytes",
            "`truncate -s 1024` makes it one",
        ),
    ] {
        rig.image("good2.img", MIB);
        let said = rig.refused(&[("disk", options)]);
        let key = format!("device.disk.options.{key}: ");
        assert!(said.contains(&key) && said.contains("c.toml:4:"), "{options}: {said}");
        assert!(said.contains(expected) && said.contains(remedy), "{options}: {said}");
    }
}

#[test]
fn what_is_kept_beside_an_image_and_cannot_be_used_is_refused() {
    let rig = Rig::new();
    let kept = rig.at("good.img.vfiod");
    let disk = [("disk", "file = '@/good.img'")];
    drop(rig.serve(&disk));
    let whole = fs::read_to_string(&kept).unwrap();
    let said = rig.refused(&[("disk", "file = '@/good.img', block_size = 4096")]);
    assert!(
        said.contains("formatted with blocks of 512 bytes, not 4096; leave the option out"),
        "{said}"
    );
    for (text, expected, remedy) in [
        (&whole[..whole.len() / 2], "its checksum is another one", "`identity = new`"),
        ("", "damaged, or of another version", "`identity = new`"),
        (
            &whole.replacen(" 1 ", " 2 ", 1),
            "of version 2, and this program knows version 1",
            "use one",
        ),
    ] {
        fs::write(&kept, text).unwrap();
        let said = rig.refused(&disk);
        assert!(said.contains(expected) && said.contains(remedy), "{said}");
    }
    fs::remove_file(&kept).unwrap();
    symlink("elsewhere", &kept).unwrap();
    let said = rig.refused(&disk);
    assert!(said.contains("it is a link, which is not followed; `metadata = FILE`"), "{said}");
    fs::remove_file(&kept).unwrap();
    // What the message names as a remedy is one.
    fs::write(&kept, "garbage").unwrap();
    rig.refused(&disk);
    drop(rig.serve(&[("disk", "file = '@/good.img', identity = 'new'")]));
    drop(rig.serve(&disk));
}

#[test]
fn image_that_another_program_has_is_refused_with_its_process() {
    let rig = Rig::new();
    let file = File::options().read(true).write(true).open(rig.at("good.img")).unwrap();
    rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockShared).unwrap();
    let said = rig.refused(&[("disk", "file = '@/good.img'")]);
    let holder = format!("in use: process {} (", std::process::id());
    assert!(said.contains("device.disk.options.file: ") && said.contains(&holder), "{said}");
    // What lets two controllers of one daemon have it is none here.
    assert!(!said.contains("shared"), "{said}");
    drop(file);
    rig.accepted(&[("disk", "file = '@/good.img'")]);
}

/// A block device of an image, or `None`, and said so, where none can be made.
struct Loop(PathBuf);

impl Loop {
    fn new(image: &Path) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(image).output();
        let made = made.ok().filter(|output| output.status.success());
        if made.is_none() {
            eprintln!("SKIPPED: loop devices cannot be made here");
        }
        Some(Self(String::from_utf8(made?.stdout).unwrap().trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}

/// What `qemu-img` says when it is to change the size of an image; `None`, and said so, where it is not there.
fn resized_by_qemu(path: &Path) -> Option<Result<(), String>> {
    let mut command = Command::new("qemu-img");
    let Ok(output) = command.args(["resize", "-f", "raw"]).arg(path).arg("2M").output() else {
        eprintln!("SKIPPED: no qemu-img");
        return None;
    };
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    Some(if output.status.success() { Ok(()) } else { Err(said()) })
}

#[test]
fn disk_of_a_daemon_is_refused_to_others_until_the_daemon_is_killed() {
    let rig = Rig::new();
    rig.image("behind.img", MIB);
    let device = Loop::new(&rig.at("behind.img"));
    let metadata = rig.at("kept");
    let paths = [Some(rig.at("good.img")), device.as_ref().map(|device| device.0.clone())];
    for path in paths.into_iter().flatten() {
        let options = format!("file = {path:?}, metadata = {metadata:?}");
        let disk = [("disk", options.as_str())];
        let daemon = rig.serve(&disk);
        let file = format!("file={}", path.display());
        let other = ["serve", "--device", "nvme", "--socket-path", "x", "--option", &file];
        let kept = format!("metadata={}", rig.at("other").display());
        let said = bad(2, other.into_iter().chain(["--option", &kept]));
        assert!(said.contains("--option file: ") && said.contains("in use: "), "{said}");
        let is_file = path.ends_with("good.img");
        if is_file && let Some(resized) = resized_by_qemu(&path) {
            assert!(resized.unwrap_err().contains("lock"));
        }
        let (status, said) = daemon.terminate(Signal::KILL);
        assert!(!status.success(), "{said}");
        // Its locks end with it, and nobody else's are in the way.
        if is_file && let Some(resized) = resized_by_qemu(&path) {
            resized.unwrap();
        }
        drop(rig.serve(&disk));
        fs::remove_file(&metadata).unwrap();
    }
}

/// A configuration can be checked while it is served.
#[test]
fn image_that_the_daemon_serves_already_is_told_and_no_mistake() {
    let rig = Rig::new();
    let disk = [("disk", "file = '@/good.img'")];
    let daemon = rig.serve(&disk);
    let config = rig.configure(&disk);
    let checked = process::run([Path::new("serve"), Path::new("--check"), &config]);
    let said = String::from_utf8(checked.stderr).unwrap();
    assert!(checked.status.success(), "{said}");
    assert!(said.contains("in use now, as if it were served already: "), "{said}");
    assert!(said.contains(&format!("in use: process {} (vfiod)", daemon.pid())), "{said}");
    // Another one cannot start.
    let said = bad(
        2,
        ["serve", "--device", "nvme", "--socket-path", "x", "--option"]
            .map(str::to_owned)
            .into_iter()
            .chain([format!("file={}", rig.at("good.img").display())]),
    );
    assert!(said.contains("--option file: ") && said.contains(&daemon.pid().to_string()), "{said}");
}

#[test]
fn disks_that_would_be_one_are_refused_with_both_names() {
    let rig = Rig::new();
    rig.image("other.img", MIB);
    fs::hard_link(rig.at("good.img"), rig.at("hard.img")).unwrap();
    symlink("good.img", rig.at("soft.img")).unwrap();
    let one = "file = '@/good.img'";
    for other in
        [one, "file = '@/hard.img'", "file = '@/soft.img'", "file = '@/good.img', shared = true"]
    {
        let said = rig.refused(&[("left", one), ("right", other)]);
        assert!(said.contains("c.toml:8:"), "{said}");
        assert!(said.contains("device.right.options.file: "), "{said}");
        assert!(said.contains("is `device.left.options.file` already"), "{said}");
        assert!(said.contains("`shared = true` in the options of both"), "{said}");
    }
    let said = rig.refused(&[("disk", "file = '@/good.img', files = ['@/hard.img']")]);
    assert!(said.contains("is `device.disk.options.file` already"), "{said}");
    assert!(said.contains("name it once"), "{said}");
    let said = rig.refused(&[
        ("left", "file = '@/good.img', metadata = '@/kept'"),
        ("right", "file = '@/other.img', metadata = '@/kept'"),
    ]);
    assert!(said.contains("kept is `device.left.options.file` already"), "{said}");
    let said = rig.refused(&[
        ("left", "file = '@/good.img', shared = true"),
        ("right", "file = '@/good.img', shared = true, direct = false"),
    ]);
    assert!(
        said.contains(
            "device.right.options.direct: `direct` is another one than that of `device.left`"
        ),
        "{said}"
    );
    let said = rig.refused(&[
        ("left", "file = '@/good.img', shared = true"),
        ("right", "file = '@/good.img', files = ['@/other.img'], shared = true"),
    ]);
    assert!(said.contains("`files` is another one than that of `device.left`"), "{said}");
    rig.accepted(&[
        ("left", "file = '@/good.img', shared = true"),
        ("right", "file = '@/soft.img', shared = true"),
    ]);
    rig.accepted(&[
        ("left", "file = '@/good.img', readonly = true"),
        ("right", "file = '@/hard.img', readonly = true"),
    ]);
}

#[test]
fn options_that_contradict_each_other_are_refused_with_their_names() {
    let rig = Rig::new();
    for (options, expected) in [
        ("file = '@/good.img', memory = 4096", "`file`, `memory` and `null` name several disks"),
        ("memory = 0", "`memory` is 0; must be a multiple of 512, and not 0"),
        ("null = 1000", "`null` is 1000; must be a multiple of 512, and not 0"),
        ("null = 512, block_size = 4096", "`null` is 512; must be a multiple of 4096, and not 0"),
        ("block_size = 1024", "`block_size` is 1024; must be 512 or 4096"),
        ("readonly = true", "`file` names it"),
        (
            "file = '@/good.img', readonly = true, identity = 'new'",
            "leave `metadata` and `identity` out",
        ),
        ("file = '@/good.img', metadata = '@/good.img'", "`metadata` names an image"),
        ("files = ['@/good.img']", "`file` names the first one"),
        ("iops_burst = 5", "`iops` sets it"),
    ] {
        let said = rig.refused(&[("disk", options)]);
        assert!(said.contains("device.disk") && said.contains(expected), "{options}: {said}");
    }
}
