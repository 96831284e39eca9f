//! The parent of disks: what becomes of images, and how many there can be.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use vfiod_config::{Models, Options};
use vfiod_core::Registry;
use vfiod_mdev::{Bus, Create, Instance, NoEndpoint, ParentRegistration, Removal};

use super::*;

const SIZE: u64 = 1 << 20;

/// A bus with a parent called `p`, as a daemon has it.
struct Rig {
    bus: Bus,
    _registration: ParentRegistration,
}

fn options(directory: &Path, more: Value) -> Options {
    let mut options = json!({
        "directory": directory,
        "capacity": 3 * SIZE,
        "types": [
            { "name": "small", "size": SIZE },
            { "name": "large", "size": 2 * SIZE, "iops": 100, "bandwidth": 1_000_000 },
            { "name": "scratch", "size": SIZE, "on_remove": "delete", "allocation": "full" },
        ],
    });
    let all = options.as_object_mut().unwrap();
    all.extend(more.as_object().unwrap().clone());
    all.clone()
}

fn start(directory: &Path) -> Result<Rig> {
    let models = Models::new().parent::<Disks>("nvme");
    let (spec, parent) = models.build_parent("nvme", "p", &options(directory, json!({}))).unwrap();
    let bus = Bus::new(Registry::new());
    let registration = bus.register(spec, parent)?;
    Ok(Rig { bus, _registration: registration })
}

fn uuid(n: u128) -> Uuid {
    Uuid::from_u128(n << 64)
}

fn image(directory: &TempDir, n: u128) -> std::path::PathBuf {
    directory.path().join(format!("{}.img", uuid(n)))
}

/// The names in a directory that begin with a UUID.
fn files(directory: &TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

impl Rig {
    fn create_with(&self, kind: &str, n: u128, attributes: &[(&str, &str)]) -> Result<Instance> {
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let attributes = attributes.iter().map(pair).collect();
        let create = Create { attributes, ..Create::new("p", kind, uuid(n)) };
        self.bus.create(&create, |_| Ok(Box::new(NoEndpoint)))
    }

    fn create(&self, kind: &str, n: u128) -> Result<Instance> {
        self.create_with(kind, n, &[])
    }

    fn remove(&self, n: u128) {
        self.bus.remove(uuid(n), Removal::Refuse).unwrap();
    }

    fn available(&self) -> (u32, u32) {
        let of = |kind| self.bus.available("p", kind).unwrap();
        (of("small"), of("large"))
    }

    fn refusal(&self, n: u128) -> String {
        self.create("small", n).unwrap_err().to_string()
    }
}

fn names(instance: &Instance) -> [String; 2] {
    ["serial", "disk_uuid"].map(|name| instance.attribute(name).unwrap())
}

#[test]
fn image_is_made_with_its_instance_and_kept_or_deleted_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let rig = start(directory.path()).unwrap();
    let kept = rig.create("small", 1).unwrap();
    let metadata = std::fs::metadata(image(&directory, 1)).unwrap();
    assert_eq!((metadata.len(), metadata.mode() & 0o777), (SIZE, 0o600));
    assert!(metadata.blocks() * 512 < SIZE, "it is sparse");
    assert_eq!(kept.attribute("size").unwrap(), SIZE.to_string());
    assert_eq!(kept.attribute("image").unwrap(), image(&directory, 1).display().to_string());
    let before = names(&kept);
    rig.create("scratch", 2).unwrap();
    let metadata = std::fs::metadata(image(&directory, 2)).unwrap();
    assert!(metadata.blocks() * 512 >= SIZE, "all has its space");
    rig.remove(1);
    rig.remove(2);
    assert!(image(&directory, 1).exists());
    let left = [format!("{}.img", uuid(1)), format!("{}.img.vfiod", uuid(1))];
    assert_eq!(files(&directory), left);
    // The same disk; then it is to be deleted.
    let again = rig.create("small", 1).unwrap();
    assert_eq!(names(&again), before);
    again.set_attribute("on_remove", "delete").unwrap();
    rig.remove(1);
    assert_eq!(files(&directory), [""; 0]);
    // Another disk, for whose instance's UUID there was one.
    assert_ne!(names(&rig.create("small", 1).unwrap()), before);
}

#[test]
fn end_of_the_parent_deletes_nothing_and_the_next_one_finds_the_disks() {
    let directory = tempfile::tempdir().unwrap();
    let before = {
        let rig = start(directory.path()).unwrap();
        [names(&rig.create("scratch", 1).unwrap()), names(&rig.create("small", 2).unwrap())]
    };
    let rig = start(directory.path()).unwrap();
    assert_eq!(rig.available(), (3, 2), "room for a small one, and two that are there");
    let after =
        [names(&rig.create("scratch", 1).unwrap()), names(&rig.create("small", 2).unwrap())];
    assert_eq!(after, before);
    assert_ne!(before[0], before[1]);
    assert_eq!(rig.available(), (1, 0));
}

#[test]
fn no_two_instances_are_one_disk() {
    let directory = tempfile::tempdir().unwrap();
    let rig = start(directory.path()).unwrap();
    let first = names(&rig.create("small", 1).unwrap());
    rig.remove(1);
    let metadata = |n| format!("{}.vfiod", image(&directory, n).display());
    // A copy with everything beside it.
    std::fs::copy(image(&directory, 1), image(&directory, 2)).unwrap();
    std::fs::copy(metadata(1), metadata(2)).unwrap();
    let [one, two] = [1, 2].map(|n| names(&rig.create("small", n).unwrap()));
    assert_eq!(one, first);
    assert!(one[0] != two[0] && one[1] != two[1], "{one:?} {two:?}");
    // A disk that goes to another instance takes its names along.
    rig.remove(1);
    rig.remove(2);
    std::fs::remove_file(image(&directory, 2)).unwrap();
    std::fs::rename(image(&directory, 1), image(&directory, 2)).unwrap();
    std::fs::rename(metadata(1), metadata(2)).unwrap();
    assert_eq!(names(&rig.create("small", 2).unwrap()), first);
    assert_ne!(names(&rig.create("small", 1).unwrap()), first);
}

#[test]
fn instance_that_cannot_be_created_leaves_nothing_that_was_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let rig = start(directory.path()).unwrap();
    let nowhere = |n| {
        let create = Create::new("p", "large", uuid(n));
        let failed = rig.bus.create(&create, |_| Err(Error::new(Errno::MFILE, "no endpoint")));
        assert_eq!(failed.unwrap_err().errno(), Errno::MFILE);
    };
    nowhere(1);
    let wrong = rig.create_with("large", 1, &[("allocation", "dense")]).unwrap_err();
    assert!(wrong.to_string().contains("must be sparse or full"), "{wrong}");
    assert_eq!((files(&directory), rig.available()), (vec![], (3, 1)));
    rig.create("large", 1).unwrap();
    rig.remove(1);
    nowhere(1);
    assert!(image(&directory, 1).exists(), "it was there before");
    rig.create("large", 1).unwrap();
}

#[test]
fn disks_fit_into_the_capacity_with_those_that_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let rig = start(directory.path()).unwrap();
    assert_eq!(rig.available(), (3, 1));
    rig.create("large", 1).unwrap();
    assert_eq!(rig.available(), (1, 0));
    rig.create("small", 2).unwrap();
    assert_eq!(rig.available(), (0, 0));
    let full = rig.create("small", 3).unwrap_err();
    assert_eq!(full.errno(), Errno::USERS);
    assert!(full.to_string().contains("3145728 of 3145728 bytes; 0 of them"), "{full}");
    rig.remove(1);
    assert_eq!(rig.available(), (1, 1), "the one that is kept");
    assert!(rig.refusal(3).contains("1 of them have no instance"));
    rig.create("large", 1).unwrap();
    rig.remove(1);
    // Somebody deletes it.
    std::fs::remove_file(image(&directory, 1)).unwrap();
    rig.create("small", 3).unwrap();
    rig.create("small", 1).unwrap();
    assert_eq!(rig.available(), (0, 0));
}

#[test]
fn what_is_in_the_place_of_an_image_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let victim = elsewhere.path().join("victim");
    std::fs::write(&victim, vec![7; 4096]).unwrap();
    let rig = start(directory.path()).unwrap();
    let at = image(&directory, 1);
    std::os::unix::fs::symlink(&victim, &at).unwrap();
    assert!(rig.refusal(1).contains("not a regular file"), "a link");
    std::fs::remove_file(&at).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &at, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert!(rig.refusal(1).contains("not a regular file"), "a pipe");
    std::fs::remove_file(&at).unwrap();
    std::fs::create_dir(&at).unwrap();
    assert!(rig.refusal(1).contains("not a regular file"), "a directory");
    std::fs::remove_dir(&at).unwrap();
    std::fs::hard_link(&victim, &at).unwrap();
    assert!(rig.refusal(1).contains("it has 2 names"), "{}", rig.refusal(1));
    std::fs::remove_file(&at).unwrap();
    if rustix::process::geteuid().is_root() {
        std::fs::write(&at, vec![7; 4096]).unwrap();
        std::os::unix::fs::chown(&at, Some(1), None).unwrap();
        assert!(rig.refusal(1).contains("it belongs to user 1"));
        std::fs::remove_file(&at).unwrap();
    }
    // A link where the image is made.
    std::os::unix::fs::symlink(&victim, directory.path().join(format!("{}.img.new", uuid(1))))
        .unwrap();
    rig.create("small", 1).unwrap();
    assert_eq!(std::fs::read(&victim).unwrap(), vec![7; 4096]);
    assert_eq!(std::fs::metadata(&at).unwrap().len(), SIZE);
}

#[test]
fn directory_that_others_may_write_to_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let set = |mode| std::fs::set_permissions(&directory, PermissionsExt::from_mode(mode)).unwrap();
    set(0o1777);
    let error = start(directory.path()).err().unwrap().to_string();
    assert!(error.contains("others may write to it; chmod go-w "), "{error}");
    set(0o755);
    assert!(start(directory.path()).is_ok());
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(directory.path(), Some(1), None).unwrap();
        let error = start(directory.path()).err().unwrap().to_string();
        assert!(error.contains("it belongs to user 1"), "{error}");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(start(file.path()).is_err());
    let missing = directory.path().join("a/b");
    assert!(start(&missing).is_ok());
    assert_eq!(std::fs::metadata(missing).unwrap().mode() & 0o777, 0o700);
}

/// What a daemon that is killed amid a creation leaves: an image that has not its name yet, or one without
/// an instance.
#[test]
fn what_a_killed_daemon_leaves_is_in_nobody_s_way() {
    let directory = tempfile::tempdir().unwrap();
    let new = |n| directory.path().join(format!("{}.img.new", uuid(n)));
    std::fs::write(new(1), "half").unwrap();
    let rig = start(directory.path()).unwrap();
    assert!(!new(1).exists());
    std::fs::write(new(1), "half").unwrap();
    rig.create("small", 1).unwrap();
    assert!(!new(1).exists());
    // Whole, and without what is kept beside it; of another size than the type has.
    std::fs::write(image(&directory, 2), vec![0; 1 << 16]).unwrap();
    let found = rig.create("scratch", 2).unwrap();
    assert_eq!(found.attribute("size").unwrap(), (1 << 16).to_string());
    assert_eq!(rig.available(), (1, 0));
    // Names beside an image that is gone are not those of the next one.
    let before = names(&found);
    rig.remove(2);
    std::fs::write(format!("{}.vfiod", image(&directory, 2).display()), "damaged").unwrap();
    assert_ne!(names(&rig.create("small", 2).unwrap()), before);
}

#[test]
fn attributes_say_what_can_be_set() {
    let directory = tempfile::tempdir().unwrap();
    let rig = start(directory.path()).unwrap();
    let disk = rig.create("large", 1).unwrap();
    let get = |name: &str| disk.attribute(name).unwrap();
    assert_eq!((get("iops"), get("bandwidth")), ("100".to_owned(), "1000000".to_owned()));
    for info in &disk.mdev_type().attributes {
        let value = get(&info.name);
        let set = |value: &str| disk.set_attribute(&info.name, value);
        if !info.writable {
            assert_eq!(set(&value).unwrap_err().errno(), Errno::ACCESS);
            continue;
        }
        set(&format!(" {value}\n")).unwrap();
        rig.bus.check_attribute("p", "large", &info.name, &value).unwrap();
        for wrong in ["", "-1", "many", "18446744073709551616"] {
            assert_eq!(set(wrong).unwrap_err().errno(), Errno::INVAL, "{}", info.name);
            let checked = rig.bus.check_attribute("p", "large", &info.name, wrong);
            assert_eq!(checked.unwrap_err().errno(), Errno::INVAL, "{}", info.name);
        }
        assert_eq!(get(&info.name), value);
    }
    let set = disk.set_attribute("allocation", "full").unwrap_err();
    assert_eq!(set.errno(), Errno::BUSY);
    disk.set_attribute("iops", "0").unwrap();
    assert_eq!(get("iops"), "0");
}

#[test]
fn options_that_cannot_be_name_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let models = Models::new().parent::<Disks>("nvme");
    let kind = |more: Value| {
        let mut kind = json!({ "name": "a", "size": 4096 });
        kind.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "types": [kind] })
    };
    for (more, expected) in [
        (json!({ "directory": null }), "`directory` is missing"),
        (json!({ "capacity": null }), "`capacity` is missing"),
        (json!({ "types": [] }), "`types` is empty"),
        (json!({ "types": [{ "name": "a" }] }), "missing field `size`"),
        (kind(json!({ "size": 1000 })), "multiple of 4096"),
        (kind(json!({ "sise": 1000 })), "unknown field `sise`"),
        (kind(json!({ "name": "a b" })), "is no name for a type"),
        (kind(json!({ "iops_burst": 1 })), "`iops` sets it"),
        (kind(json!({ "allocation": "dense" })), "unknown variant `dense`"),
    ] {
        let built = models.build_parent("nvme", "p", &options(directory.path(), more));
        let error = built.err().unwrap();
        let mut error: Option<&dyn std::error::Error> = Some(&error);
        let mut text = String::new();
        while let Some(cause) = error {
            text = format!("{text}{cause}: ");
            error = cause.source();
        }
        assert!(text.contains(expected), "{text}");
    }
}
