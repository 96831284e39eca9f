//! Disks that come and change while the daemon runs: what an `add` or a `reload` names is looked at as a start does
//! it, before anything is changed, and a change that fails all the same leaves what was there.

mod process;

use std::fs::{self, File};
use std::path::PathBuf;

use process::nvme::connect;
use process::{Daemon, bad, good, until, vfiod};
use rustix::fs::FlockOperation;
use vfiod_nvme_driver::{Controller, Data, Waiting};

const MIB: u64 = 1 << 20;

/// Names and numbers of devices.
type Served = Vec<(String, Option<u64>)>;

/// A daemon with a configuration file, and images beside that.
struct Stage {
    directory: tempfile::TempDir,
    _daemon: Daemon,
}

impl Stage {
    /// Starts it with these disks, in whose options `@` is the directory. Images: `1.img` to `3.img` are whole,
    /// `bad.img` has beside it what cannot be used.
    fn start(disks: &[(&str, &str)]) -> Self {
        Self::start_with(disks, "")
    }

    /// The same with more in the file.
    fn start_with(disks: &[(&str, &str)], rest: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["1.img", "2.img", "3.img", "bad.img"] {
            File::create(path(name)).unwrap().set_len(MIB).unwrap();
        }
        fs::write(path("bad.img.vfiod"), "garbage").unwrap();
        write(&directory, disks, rest);
        let mut command = vfiod(["serve"]);
        command.arg(path("c.toml"));
        let daemon = Daemon::serving(command, &[&path("control.sock")]);
        Self { directory, _daemon: daemon }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, disks: &[(&str, &str)]) {
        self.write_with(disks, "");
    }

    fn write_with(&self, disks: &[(&str, &str)], rest: &str) {
        write(&self.directory, disks, rest);
    }

    fn args(&self, args: &[&str]) -> Vec<String> {
        process::at(&self.path("control.sock"), args)
    }

    fn good(&self, args: &[&str]) -> String {
        good(self.args(args))
    }

    fn bad(&self, code: i32, args: &[&str]) -> String {
        bad(code, self.args(args))
    }

    /// Arguments that add a disk with an image.
    fn add(&self, name: &str, options: &[String]) -> Vec<String> {
        let socket = self.path(name).display().to_string();
        let mut args = vec!["add", name, "--device", "nvme", "--socket-path", &socket];
        args.extend(options.iter().flat_map(|option| ["--option", option]));
        self.args(&args)
    }

    fn file(&self, image: &str) -> String {
        format!("file={}", self.path(image).display())
    }

    /// What is served, with the numbers of the devices that are no instances: one that was removed and made again has
    /// another.
    fn served(&self) -> Served {
        let json = |args: &[&str]| -> serde_json::Value {
            serde_json::from_str(&self.good(args)).unwrap()
        };
        let number = |device: &serde_json::Value| {
            let name = device["name"].as_str().unwrap();
            (name.to_owned(), json(&["show", name, "--json"])["number"].as_u64())
        };
        json(&["list", "--json"]).as_array().unwrap().iter().map(number).collect()
    }

    /// What may not change where nothing was changed: what is served, the configuration, and names of files.
    fn all(&self) -> (Served, String, Vec<PathBuf>) {
        let entries = fs::read_dir(&self.directory).unwrap();
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        (self.served(), self.good(&["config"]), files)
    }
}

/// Writes a configuration file of these disks.
fn write(directory: &tempfile::TempDir, disks: &[(&str, &str)], rest: &str) {
    let here = directory.path().display().to_string();
    let disk = |(name, options): &(&str, &str)| {
        let (options, socket) = (options.replace('@', &here), directory.path().join(name));
        format!(
            "[device.{name}]\nmodel = \"nvme\"\nsocket = {socket:?}\noptions = {{ {options} }}\n"
        )
    };
    let control = directory.path().join("control.sock");
    let disks = disks.iter().map(disk).collect::<String>();
    let text = format!("{disks}{}[control]\nsocket = {control:?}\n", rest.replace('@', &here));
    fs::write(directory.path().join("c.toml"), text).unwrap();
}

/// Keeps an image as another program does.
fn used_by_us(path: PathBuf) -> File {
    let file = File::options().read(true).write(true).open(path).unwrap();
    rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockShared).unwrap();
    file
}

fn serial(controller: &Controller) -> String {
    controller.info().serial.clone()
}

/// Writes to the first blocks of a disk, or reads them.
fn first_blocks(controller: &mut Controller, write: Option<&[u8; 4096]>) -> Vec<u8> {
    let disk = controller.namespace(1).unwrap();
    let mut queue = controller.create_queue(8, Waiting::Polling).unwrap();
    let buffer = controller.memory().allocate(4096).unwrap();
    if let Some(bytes) = write {
        buffer.write(0, bytes);
        queue.write(&disk, 0, Data::of(&buffer)).unwrap();
        queue.flush(&disk).unwrap();
    } else {
        queue.read(&disk, 0, Data::of(&buffer)).unwrap();
    }
    let mut found = vec![0; 4096];
    buffer.read(0, &mut found);
    found
}

/// Options of a second disk that no daemon with `left` on `1.img` can serve; the code that the command ends with, and
/// what it says.
fn refusals() -> Vec<(&'static [&'static str], i32, String)> {
    // By whom, the daemon's sandbox hides.
    let used = "3.img: in use: a process".to_owned();
    vec![
        (&["file=\"@/1.img\""], 2, "1.img is `device.left.options.file` already".to_owned()),
        (&["file=\"@/3.img\""], 4, used),
        (&["file=\"@/bad.img\""], 2, "`identity = new`".to_owned()),
        (&["file=\"@/none.img\""], 2, "none.img is not there".to_owned()),
        (&["file=\"@/2.img\"", "files=[\"@/2.img\"]"], 2, "name it once".to_owned()),
        (&["file=\"@/2.img\"", "block_size=1024"], 2, "must be 512 or 4096".to_owned()),
    ]
}

#[test]
fn disk_that_is_added_is_looked_at_before_anything_is_made() {
    let stage = Stage::start(&[("left", "file = '@/1.img'")]);
    let _used = used_by_us(stage.path("3.img"));
    let before = stage.all();
    for (options, code, expected) in refusals() {
        let here = stage.directory.path().display().to_string();
        let arguments: Vec<_> = options.iter().map(|option| option.replace('@', &here)).collect();
        let said = bad(code, stage.add("right", &arguments));
        assert!(said.contains("device.right") && said.contains(&expected), "{options:?}: {said}");
        assert_eq!(stage.all(), before, "{options:?}");
    }
    good(stage.add("right", &[stage.file("2.img")]));
    assert_eq!(stage.served().len(), 2);
}

/// A change that cannot be made takes nothing away: what is served stays as it is, with its client.
#[test]
fn disks_of_a_reload_are_looked_at_before_anything_is_changed() {
    let left = ("left", "file = '@/1.img'");
    let stage = Stage::start(&[left]);
    let _used = used_by_us(stage.path("3.img"));
    let before = stage.all();
    for (options, code, expected) in refusals() {
        let options = options.join(", ");
        let options = options.as_str();
        stage.write(&[left, ("right", options)]);
        let said = stage.bad(code, &["reload"]);
        assert!(said.contains("device.right") && said.contains(&expected), "{options}: {said}");
        assert!(said.contains("c.toml:5:") || said.contains("c.toml:8:"), "{options}: {said}");
        assert_eq!(stage.all(), before, "{options}");
        // Nor does one that would take the place of what is there.
        if !options.contains("1.img") {
            stage.write(&[("left", options)]);
            let said = stage.bad(code, &["reload"]);
            assert!(said.contains("device.left") && said.contains(&expected), "{options}: {said}");
            assert_eq!(stage.all(), before, "{options}");
        }
    }
    // Of an image that this daemon has itself, too.
    stage.write(&[("left", "file = '@/1.img', block_size = 4096, torn_writes = true")]);
    let said = stage.bad(2, &["reload"]);
    assert!(said.contains("formatted with blocks of 512 bytes, not 4096"), "{said}");
    assert_eq!(stage.all(), before);
    // Nobody is asked to close a device for a change that cannot be made.
    let mut client = connect(&stage.path("left"));
    let said = stage.bad(2, &["reload", "--deadline", "0"]);
    assert!(said.contains("formatted with blocks"), "{said}");
    first_blocks(&mut client, None);
}

/// What the daemon itself has is no obstacle to a disk that has it afterwards.
#[test]
fn image_goes_from_one_disk_to_another_and_is_shared_by_a_reload() {
    let stage = Stage::start(&[("left", "file = '@/1.img'")]);
    let pattern = [0x5a; 4096];
    let mut controller = connect(&stage.path("left"));
    first_blocks(&mut controller, Some(&pattern));
    let before = serial(&controller);
    drop(controller);
    until("the last close", || stage.good(&["show", "left", "--json"]).contains("\"idle\""));
    let check = |name: &str| {
        let mut controller = connect(&stage.path(name));
        assert_eq!(
            (serial(&controller), first_blocks(&mut controller, None)),
            (before.clone(), pattern.to_vec())
        );
        drop(controller);
        until("the last close", || stage.good(&["show", name, "--json"]).contains("\"idle\""));
    };
    let reload = |disks: &[(&str, &str)], expected: &str| {
        stage.write(disks);
        assert_eq!(stage.good(&["reload"]), expected);
    };
    reload(&[("left", "file = '@/1.img', iops = 1000000")], "changed: left\nuntouched: 0\n");
    check("left");
    reload(&[("other", "file = '@/1.img'")], "added: other\nremoved: left\nuntouched: 0\n");
    check("other");
    let shared = "file = '@/1.img', shared = true";
    reload(&[("other", shared)], "changed: other\nuntouched: 0\n");
    reload(&[("other", shared), ("more", shared)], "added: more\nuntouched: 1\n");
    check("more");
    // Each of two has the image of the other one from then on.
    reload(
        &[("one", "file = '@/1.img'"), ("two", "file = '@/2.img'")],
        "added: one, two\nremoved: more, other\nuntouched: 0\n",
    );
    reload(
        &[("one", "file = '@/2.img'"), ("two", "file = '@/1.img'")],
        "changed: one, two\nuntouched: 0\n",
    );
    check("two");
}

/// A host that has two disks with one identity refuses one of them.
#[test]
fn disks_with_one_identity_are_refused_by_check_start_add_and_reload() {
    let left = ("left", "file = '@/1.img'");
    let stage = Stage::start(&[left]);
    // A copy with everything, which says that it is the same disk.
    fs::copy(stage.path("1.img"), stage.path("2.img")).unwrap();
    fs::copy(stage.path("1.img.vfiod"), stage.path("2.img.vfiod")).unwrap();
    let before = stage.all();
    let keep = stage.add("right", &[stage.file("2.img"), "identity=keep".to_owned()]);
    let said = bad(2, keep);
    let is_told = |said: &str| {
        said.contains("device.right.options.file: ")
            && said.contains("2.img is `device.left.options.file` already")
            && said.contains("with `identity = new` it gets an identity of its own")
    };
    assert!(is_told(&said), "{said}");
    stage.write(&[left, ("right", "file = '@/2.img', identity = 'keep'")]);
    let said = stage.bad(2, &["reload"]);
    assert!(is_told(&said), "{said}");
    assert_eq!(stage.all(), before);
    let config = stage.path("c.toml").display().to_string();
    let said = bad(2, ["serve", "--check", &config]);
    assert!(is_told(&said), "{said}");
    // By its UUID alone.
    let uuid = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
    let named = format!("memory = 1048576, uuid = '{uuid}'");
    stage.write(&[left, ("right", &named), ("third", &named)]);
    let said = stage.bad(2, &["reload"]);
    assert!(
        said.contains(&format!("the disk {uuid} is `device.right.options.uuid` already")),
        "{said}"
    );
    assert_eq!(stage.all(), before);
    // A copy that does not say so is somebody else, and so is one with names of its own.
    good(stage.add("right", &[stage.file("2.img")]));
    let before = serial(&connect(&stage.path("left")));
    assert_ne!(serial(&connect(&stage.path("right"))), before);
}

/// No device may have polled doorbells, which only shows when one is registered.
const NONE_POLLED: &str = "[limits]\npolled_devices = 0\n";
const CANNOT: &str = "`doorbells` cannot be \"mapped\"";
const UUID: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";

/// What cannot be seen beforehand: the disk that was removed for it is there again, and has lost nothing.
#[test]
fn disk_that_a_reload_cannot_replace_is_there_again() {
    let (left, kept) = (("left", "file = '@/1.img'"), ("kept", "file = '@/3.img'"));
    let stage = Stage::start_with(&[left, kept], NONE_POLLED);
    let pattern = [0x5a; 4096];
    let mut controller = connect(&stage.path("left"));
    first_blocks(&mut controller, Some(&pattern));
    let who = serial(&controller);
    drop(controller);
    until("the last close", || stage.good(&["show", "left", "--json"]).contains("\"idle\""));
    let (before, config) = (stage.served(), stage.good(&["config"]));
    let mapped = "file = '@/1.img', doorbells = 'mapped'";
    for changed in [
        // Another one takes its image, alone and among others that could be made; another one takes its name.
        vec![("left", mapped), kept],
        vec![("first", "memory = 1048576"), ("other", mapped), kept, ("last", "file = '@/2.img'")],
        vec![("left", "file = '@/2.img'"), ("other", mapped), kept],
    ] {
        stage.write_with(&changed, NONE_POLLED);
        let said = stage.bad(4, &["reload"]);
        assert!(said.contains(CANNOT), "{said}");
        let outcome = "the configuration is as it was: left had been removed, and began anew";
        assert!(said.contains(outcome), "{said}");
        assert_eq!(stage.good(&["config"]), config);
        let mut now = stage.served();
        now.sort();
        let names: Vec<_> = now.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["kept", "left"], "{said}");
        assert_eq!(now[0], before[1], "what stays in the file was touched");
        let mut controller = connect(&stage.path("left"));
        assert_eq!(serial(&controller), who);
        assert_eq!(first_blocks(&mut controller, None), pattern);
        drop(controller);
        until("the last close", || stage.good(&["show", "left", "--json"]).contains("\"idle\""));
    }
    // Nothing of what was tried is in the way.
    stage.write_with(&[("first", "memory = 1048576"), ("other", "file = '@/1.img'")], NONE_POLLED);
    assert_eq!(stage.good(&["reload"]), "added: first, other\nremoved: kept, left\nuntouched: 0\n");
    assert_eq!(serial(&connect(&stage.path("other"))), who);
}

/// What can be made while the old is there is made first.
#[test]
fn new_disk_that_cannot_be_made_costs_no_other_anything() {
    let parent = "[parent.cards]\nmodel = \"edu\"\n";
    let left = ("left", "file = '@/1.img'");
    let stage = Stage::start_with(&[left], parent);
    stage.good(&["create", "cards", "edu-1", "--uuid", UUID]);
    let before = stage.all();
    // It has the name of an instance. Another one would change, and a third one be added.
    for changed in [
        vec![left, ("added", "file = '@/3.img'"), (UUID, "file = '@/2.img'")],
        vec![("left", "file = '@/1.img', iops = 1000"), (UUID, "file = '@/2.img'")],
    ] {
        stage.write_with(&changed, parent);
        let said = stage.bad(4, &["reload"]);
        assert!(said.contains(UUID) && said.contains("nothing was changed"), "{said}");
        assert_eq!((stage.served(), stage.good(&["config"])), (before.0.clone(), before.1.clone()));
        assert!(!stage.path("added").exists(), "a socket is left");
    }
    let said = bad(4, stage.add(UUID, &[stage.file("2.img")]));
    assert!(said.contains("nothing was changed"), "{said}");
    assert_eq!((stage.served(), stage.good(&["config"])), (before.0, before.1));
}

/// What is removed gives back what the new ones need.
#[test]
fn new_disk_has_the_place_of_one_that_goes() {
    let limits = "[limits]\npolled_devices = 1\n";
    let stage = Stage::start_with(&[("old", "file = '@/1.img', doorbells = 'mapped'")], limits);
    stage.write_with(&[("new", "file = '@/2.img', doorbells = 'mapped'")], limits);
    assert_eq!(stage.good(&["reload"]), "added: new\nremoved: old\nuntouched: 0\n");
    stage.write_with(&[("more", "memory = 4096, doorbells = 'mapped'")], limits);
    assert_eq!(stage.good(&["reload"]), "added: more\nremoved: new\nuntouched: 0\n");
}

/// If the old disk cannot be made again either, that is told, and the next reload makes what the file says.
#[test]
fn disk_that_cannot_be_made_again_is_told_and_comes_with_the_next_reload() {
    let (left, kept) = (("left", "file = '@/1.img'"), ("kept", "file = '@/3.img'"));
    let stage = Stage::start_with(&[left, kept], NONE_POLLED);
    let image = File::options().write(true).open(stage.path("1.img")).unwrap();
    image.set_len(0).unwrap();
    stage.write_with(&[("left", "file = '@/2.img', doorbells = 'mapped'"), kept], NONE_POLLED);
    let said = stage.bad(1, &["reload"]);
    assert!(said.contains(CANNOT), "{said}");
    assert!(said.contains("could not be made again, and is left out: device left"), "{said}");
    assert!(said.contains("1.img: it is empty"), "{said}");
    assert_eq!(stage.served().len(), 1, "{said}");
    assert!(!stage.good(&["config"]).contains("[device.left]"));
    image.set_len(MIB).unwrap();
    stage.write_with(&[left, kept], NONE_POLLED);
    assert_eq!(stage.good(&["reload"]), "added: left\nuntouched: 1\n");
}

/// A parent whose directory others may write to is refused when it is registered.
#[test]
fn parent_that_a_reload_cannot_replace_is_there_again() {
    use std::os::unix::fs::PermissionsExt;

    let parent = |directory: &str| {
        format!(
            "[parent.disks]\nmodel = \"nvme\"\noptions = {{ directory = '@/{directory}', capacity = 10485760, \
             types = [{{ name = \"small\", size = 1048576 }}] }}\n"
        )
    };
    let left = ("left", "file = '@/1.img'");
    let stage = Stage::start_with(&[left], &parent("disks"));
    fs::create_dir(stage.path("open")).unwrap();
    fs::set_permissions(stage.path("open"), PermissionsExt::from_mode(0o777)).unwrap();
    let before = stage.all();
    for disks in [vec![left], vec![left, ("more", "file = '@/2.img'")]] {
        stage.write_with(&disks, &parent("open"));
        let said = stage.bad(6, &["reload"]);
        assert!(said.contains("others may write to it; chmod go-w"), "{said}");
        assert!(said.contains("disks had been removed, and began anew"), "{said}");
        assert_eq!((stage.served(), stage.good(&["config"])), (before.0.clone(), before.1.clone()));
        assert!(!stage.path("more").exists(), "a socket is left");
        let uuid = stage.good(&["create", "disks", "small"]);
        assert!(stage.path("disks").join(format!("{}.img", uuid.trim())).exists());
        stage.good(&["remove", uuid.trim()]);
    }
}
