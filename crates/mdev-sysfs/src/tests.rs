//! A bus with real instances, mounted, and used with a program's ordinary calls.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use tempfile::TempDir;
use uuid::Uuid;
use vfiod_core::{
    Context, Description, Device, DeviceFlags, Errno, Error, Owner, RegionIndex, Registry,
    ResetCause, Result,
};
use vfiod_mdev::{
    AttributeInfo, Attributes, Bus, Capacity, Create, Instance, NewInstance, NoEndpoint, Parent,
    ParentRegistration, ParentSpec, Removal, TypeInfo, TypeStatus,
};

use crate::{MdevBus, View};

impl MdevBus for Bus {
    fn parents(&self) -> Vec<String> {
        self.parent_names()
    }

    fn types(&self, parent: &str) -> Option<Vec<TypeStatus>> {
        self.types(parent)
    }

    fn instances(&self) -> Vec<Instance> {
        self.instances()
    }

    fn instance(&self, uuid: Uuid) -> Option<Instance> {
        self.instance(uuid)
    }

    fn create(&self, parent: &str, type_id: &str, uuid: Uuid) -> Result<()> {
        self.create(&Create::new(parent, type_id, uuid), |_| Ok(Box::new(NoEndpoint))).map(drop)
    }

    fn remove(&self, uuid: Uuid) -> Result<()> {
        self.remove(uuid, Removal::Refuse)
    }

    fn set_attribute(&self, uuid: Uuid, name: &str, value: &str) -> Result<()> {
        let instance = self.instance(uuid);
        instance.ok_or_else(|| Error::new(Errno::NODEV, "gone"))?.set_attribute(name, value)
    }
}

struct Nothing;

impl Device for Nothing {
    fn persistence(&mut self) -> vfiod_core::Persistence<'_> {
        vfiod_core::Persistence::Stateless
    }

    fn describe(&self) -> Description {
        Description { flags: DeviceFlags::RESET, regions: vec![], irqs: vec![] }
    }
    fn init(&mut self, _: &Context) -> Result<()> {
        Ok(())
    }
    fn open_device(&mut self) -> Result<()> {
        Ok(())
    }
    fn close_device(&mut self) {}
    fn read(&mut self, _: RegionIndex, _: u64, _: &mut [u8]) -> Result<()> {
        Ok(())
    }
    fn write(&mut self, _: RegionIndex, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn reset(&mut self, _: ResetCause) -> Result<()> {
        Ok(())
    }
}

/// A wall that whoever reads or sets `slow` runs into.
#[derive(Default)]
struct Wall {
    up: Mutex<(bool, usize)>,
    changed: Condvar,
}

impl Wall {
    fn raise(&self, up: bool) {
        self.up.lock().unwrap().0 = up;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut state = self.up.lock().unwrap();
        state.1 += 1;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |(up, _)| *up).unwrap());
    }

    fn await_somebody(&self) {
        drop(self.changed.wait_while(self.up.lock().unwrap(), |(_, there)| *there == 0).unwrap());
    }
}

struct Knobs {
    values: Mutex<BTreeMap<String, String>>,
    wall: Arc<Wall>,
}

impl Attributes for Knobs {
    fn get(&self, name: &str) -> Result<String> {
        if name == "slow" {
            self.wall.pass();
        }
        Ok(self.values.lock().unwrap().get(name).cloned().unwrap_or_default())
    }

    fn set(&self, name: &str, value: &str) -> Result<()> {
        if value.parse::<u16>().is_err() {
            return Err(Error::new(Errno::INVAL, "a number from 0 to 65535"));
        }
        self.values.lock().unwrap().insert(name.into(), value.into());
        Ok(())
    }
}

struct Shelf {
    wall: Arc<Wall>,
}

impl Parent for Shelf {
    fn check_attribute(&self, _: &str, _: &str, _: &str) -> Result<()> {
        Ok(())
    }

    fn create(&self, _: &str, uuid: Uuid) -> Result<NewInstance> {
        let values = [("serial".to_owned(), uuid.to_string()), ("baud".into(), "9600".into())];
        let knobs = Knobs { values: Mutex::new(values.into()), wall: self.wall.clone() };
        Ok(NewInstance { device: Box::new(Nothing), attributes: Some(Arc::new(knobs)) })
    }
}

fn mdev_type(id: &str, takes: u32) -> TypeInfo {
    let attribute = |name: &str, writable| AttributeInfo {
        name: name.into(),
        values: "a number".into(),
        summary: "a knob".into(),
        writable,
    };
    // The last ones cannot be shown: a name that is taken, and one that is none.
    let attributes =
        [("baud", true), ("serial", false), ("slow", true), ("remove", true), ("a/b", true)];
    TypeInfo {
        id: id.into(),
        name: format!("Shelf {id}"),
        description: if takes == 1 { "one unit\nof the shelf".into() } else { String::new() },
        device_api: "vfio-pci".into(),
        takes,
        attributes: attributes.map(|(name, writable)| attribute(name, writable)).into(),
    }
}

/// A bus with two parents.
fn shelves(capacity: u32) -> (Bus, Arc<Wall>, Vec<ParentRegistration>) {
    let bus = Bus::new(Registry::new());
    let wall = Arc::new(Wall::default());
    let shelves = ["shelf", "0000:00:03.0"].map(|name| {
        let types = vec![mdev_type("one", 1), mdev_type("two", 2)];
        let spec = ParentSpec { name: name.into(), types, capacity: Capacity::Shared(capacity) };
        bus.register(spec, Box::new(Shelf { wall: wall.clone() })).unwrap()
    });
    (bus, wall, shelves.into())
}

struct Place {
    view: Option<View>,
    root: TempDir,
    bus: Bus,
    wall: Arc<Wall>,
    shelves: Vec<ParentRegistration>,
}

const A: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
const B: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1002";

impl Place {
    /// `None`: nothing can be mounted here.
    fn new(capacity: u32) -> Option<Self> {
        let (bus, wall, shelves) = shelves(capacity);
        let root = TempDir::new().unwrap();
        match View::mount(root.path(), None, Arc::new(bus.clone())) {
            Ok(view) => Some(Self { view: Some(view), root, bus, wall, shelves }),
            Err(error) if matches!(error.errno(), Errno::NODEV | Errno::PERM | Errno::ACCESS) => {
                eprintln!("SKIPPED: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join("sys").join(path)
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn write(&self, path: &str, text: &str) -> std::result::Result<(), Errno> {
        fs::write(self.path(path), text).map_err(|error| Errno::from_io_error(&error).unwrap())
    }

    fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn errno<T>(result: std::io::Result<T>) -> Errno {
        Errno::from_io_error(&result.err().expect("it was to fail")).unwrap()
    }
}

const TYPE: &str = "class/mdev_bus/shelf/mdev_supported_types/one";

#[test]
fn the_tree_that_mdevctl_reads() {
    let Some(place) = Place::new(4) else { return };
    assert_eq!(place.names(""), ["bus", "class", "devices", "kernel"]);
    assert_eq!(place.names("class/mdev_bus"), ["0000:00:03.0", "shelf"]);
    assert_eq!(place.names("bus/mdev/devices"), [""; 0]);
    let parent = ["mdev_supported_types", "subsystem", "uevent"];
    assert_eq!(place.names("class/mdev_bus/shelf"), parent);
    assert_eq!(place.names("class/mdev_bus/shelf/mdev_supported_types"), ["one", "two"]);
    let all = ["available_instances", "create", "description", "device_api", "devices", "name"];
    assert_eq!(place.names(TYPE), all);
    assert!(!place.path(&TYPE.replace("one", "two")).join("description").exists());
    assert_eq!(place.read(&format!("{TYPE}/name")), "Shelf one\n");
    assert_eq!(place.read(&format!("{TYPE}/description")), "one unit\nof the shelf\n");
    assert_eq!(place.read(&format!("{TYPE}/device_api")), "vfio-pci\n");
    assert_eq!(place.read(&format!("{TYPE}/available_instances")), "4\n");

    place.write(&format!("{TYPE}/create"), A).unwrap();
    assert_eq!(place.names("bus/mdev/devices"), [A]);
    assert_eq!(place.names(&format!("{TYPE}/devices")), [A]);
    assert_eq!(place.names("class/mdev_bus/shelf"), [&[A], &parent[..]].concat());
    assert_eq!(place.read(&format!("{TYPE}/available_instances")), "3\n");
    let device = format!("bus/mdev/devices/{A}");
    let files =
        ["baud", "iommu_group", "mdev_type", "remove", "serial", "slow", "subsystem", "uevent"];
    assert_eq!(place.names(&device), files);

    let canonical = |path: &str| fs::canonicalize(place.path(path)).unwrap();
    let directory = canonical(&device);
    assert_eq!(directory, canonical(&format!("class/mdev_bus/shelf/{A}")));
    assert_eq!(directory, canonical(&format!("{TYPE}/devices/{A}")));
    assert_eq!(directory, canonical(&format!("devices/virtual/vfiod/shelf/{A}")));
    assert_eq!(directory.parent().unwrap().file_name().unwrap(), "shelf");
    assert_eq!(canonical(&format!("{device}/mdev_type")), canonical(TYPE));
    assert_eq!(canonical(&format!("{device}/subsystem")), canonical("bus/mdev"));

    place.write(&format!("{device}/remove"), "1\n").unwrap();
    assert!(!place.path(&device).exists() && !directory.exists());
    assert_eq!(place.names(&format!("{TYPE}/devices")), [""; 0]);
    assert_eq!(place.read(&format!("{TYPE}/available_instances")), "4\n");
    assert!(place.bus.instances().is_empty());
}

/// libudev takes a directory beneath `devices` for a device if it has `uevent` and its `subsystem` is
/// known; libvirt lists an instance if its `iommu_group` leads somewhere.
#[test]
fn instance_has_what_libvirt_reads_until_it_is_removed() {
    let Some(place) = Place::new(4) else { return };
    let canonical = |path: &str| fs::canonicalize(place.path(path)).unwrap();
    assert_eq!(canonical("class/vfiod/shelf"), canonical("class/mdev_bus/shelf"));
    assert_eq!(canonical("class/vfiod/shelf/subsystem"), canonical("class/vfiod"));
    assert_eq!(place.read("class/vfiod/shelf/uevent"), "");
    assert_eq!(place.names("kernel/iommu_groups"), [""; 0]);

    let groups = [A, B].map(|uuid| {
        place.write(&format!("{TYPE}/create"), uuid).unwrap();
        let device = format!("bus/mdev/devices/{uuid}");
        assert_eq!(place.read(&format!("{device}/uevent")), "");
        assert_eq!(place.write(&format!("{device}/uevent"), "add"), Err(Errno::ACCESS));
        let group = canonical(&format!("{device}/iommu_group"));
        assert_eq!(group.parent().unwrap(), canonical("kernel/iommu_groups"));
        let number = group.file_name().unwrap().to_str().unwrap().to_owned();
        number.parse::<u64>().unwrap();
        let members = format!("kernel/iommu_groups/{number}/devices");
        assert_eq!(place.names(&members), [uuid]);
        assert_eq!(canonical(&format!("{members}/{uuid}")), canonical(&device));
        number
    });
    assert_ne!(groups[0], groups[1], "a group has one instance");
    for name in [format!("0{}", groups[0]), "4711".to_owned(), "devices".to_owned()] {
        assert!(!place.path(&format!("kernel/iommu_groups/{name}")).exists(), "{name}");
    }
    assert!(!place.path(&format!("kernel/iommu_groups/{}/devices/{B}", groups[0])).exists());

    place.write(&format!("bus/mdev/devices/{A}/remove"), "1").unwrap();
    assert_eq!(place.names("kernel/iommu_groups"), [groups[1].clone()]);
    assert!(!place.path(&format!("kernel/iommu_groups/{}", groups[0])).exists());
}

#[test]
fn what_the_bus_says_is_what_the_writer_gets() {
    let Some(place) = Place::new(3) else { return };
    let create = format!("{TYPE}/create");
    for rubbish in
        ["", "\n", "1", &A[1..], &format!("{A}xx"), &format!("{A}\n\n"), &A.replace('a', "g")]
    {
        // An empty write is none, and succeeds as it does in sysfs.
        let expected = if rubbish.is_empty() { Ok(()) } else { Err(Errno::INVAL) };
        assert_eq!(place.write(&create, rubbish), expected, "{rubbish:?}");
    }
    assert_eq!(place.write(&create, &"x".repeat(5000)), Err(Errno::INVAL));
    assert_eq!(place.write(&create, &Uuid::nil().to_string()), Err(Errno::INVAL));
    assert_eq!(Place::errno(fs::write(place.path(&create), [0xff; 36])), Errno::INVAL);
    assert!(place.bus.instances().is_empty(), "nothing half created");

    // Upper case, and one byte more, whatever it is, as in the kernel.
    place.write(&create, &format!("{}x", A.to_uppercase())).unwrap();
    assert_eq!(place.write(&create, A), Err(Errno::EXIST));
    let two = TYPE.replace("one", "two");
    assert_eq!(place.write(&format!("{two}/create"), A), Err(Errno::EXIST));
    assert_eq!(place.write(&create.replace("shelf", "0000:00:03.0"), A), Err(Errno::EXIST));
    place.write(&format!("{two}/create"), B).unwrap();
    let third = B.replace("1002", "1003");
    assert_eq!(place.write(&create, &third), Err(Errno::USERS));
    assert_eq!(place.write(&create.replace("shelf", "none"), &third), Err(Errno::NOENT));

    let device = format!("bus/mdev/devices/{A}");
    let remove = format!("{device}/remove");
    for rubbish in ["\n", "yes", "-1", "1 2"] {
        assert_eq!(place.write(&remove, rubbish), Err(Errno::INVAL), "{rubbish:?}");
    }
    for nothing in ["0", "0\0more"] {
        place.write(&remove, nothing).unwrap();
    }
    let uuid: Uuid = A.parse().unwrap();
    let instance = place.bus.instance(uuid).unwrap();
    let file = instance.device().open(Owner::in_process("test")).unwrap();
    assert_eq!(place.write(&remove, "1"), Err(Errno::BUSY));
    drop(file);

    // Open files of what goes away.
    let mut stale = OpenOptions::new().write(true).open(place.path(&remove)).unwrap();
    let mut baud = fs::File::open(place.path(&format!("{device}/baud"))).unwrap();
    place.write(&remove, "1").unwrap();
    assert_eq!(Place::errno(stale.write(b"1")), Errno::NODEV);
    assert_eq!(Place::errno(baud.read(&mut [0; 8])), Errno::NODEV);
    assert_eq!(place.write(&remove, "1"), Err(Errno::NOENT));
}

#[test]
fn attributes() {
    let Some(place) = Place::new(3) else { return };
    place.write(&format!("{TYPE}/create"), A).unwrap();
    let device = format!("bus/mdev/devices/{A}");
    let baud = format!("{device}/baud");
    assert_eq!(place.read(&baud), "9600\n");
    place.write(&baud, "115").unwrap();
    assert_eq!(place.read(&baud), "115\n");
    place.write(&baud, "300\n").unwrap();
    assert_eq!(place.read(&baud), "300\n", "one line's end is not part of the value");
    assert_eq!(place.write(&baud, "fast"), Err(Errno::INVAL));
    assert_eq!(place.read(&baud), "300\n");
    assert_eq!(place.read(&format!("{device}/serial")), format!("{A}\n"));
    assert_eq!(place.write(&format!("{device}/serial"), "1"), Err(Errno::ACCESS), "root too");

    // One open file sees what others do when it starts again, and not in between.
    let mut file = OpenOptions::new().read(true).write(true).open(place.path(&baud)).unwrap();
    let mut byte = [0];
    file.read_exact(&mut byte).unwrap();
    place.write(&baud, "4711").unwrap();
    let mut rest = String::new();
    file.read_to_string(&mut rest).unwrap();
    assert_eq!((byte, &*rest), ([b'3'], "00\n"));
    file.rewind().unwrap();
    rest.clear();
    file.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "4711\n");
    // Wherever in the file: the whole value.
    file.write_all(b"12").unwrap();
    assert_eq!(place.read(&baud), "12\n");
}

#[test]
fn modes_and_refusals_are_those_of_sysfs() {
    let Some(place) = Place::new(3) else { return };
    place.write(&format!("{TYPE}/create"), A).unwrap();
    let device = format!("bus/mdev/devices/{A}");
    let mode = |path: &str| {
        let metadata = fs::symlink_metadata(place.path(path)).unwrap();
        assert_eq!(metadata.uid(), rustix::process::geteuid().as_raw());
        metadata.permissions().mode()
    };
    assert_eq!(mode(""), 0o40755);
    assert_eq!(mode(&device), 0o120777);
    assert_eq!(mode(&format!("{TYPE}/create")), 0o100200);
    assert_eq!(mode(&format!("{TYPE}/name")), 0o100444);
    assert_eq!(mode(&format!("{device}/remove")), 0o100200);
    assert_eq!(mode(&format!("{device}/baud")), 0o100644);
    assert_eq!(mode(&format!("{device}/serial")), 0o100444);

    let open = |path: &str| fs::File::open(place.path(path));
    assert_eq!(Place::errno(open(&format!("{TYPE}/create"))), Errno::ACCESS);
    assert_eq!(Place::errno(open(&format!("{device}/remove"))), Errno::ACCESS);
    assert_eq!(place.write(&format!("{device}/unknown"), "1"), Err(Errno::ACCESS));
    assert_eq!(Place::errno(fs::create_dir(place.path("x"))), Errno::PERM);
    assert_eq!(Place::errno(fs::remove_file(place.path(&device))), Errno::PERM);
    assert_eq!(Place::errno(fs::remove_dir(place.path("bus/mdev/devices"))), Errno::PERM);
    let baud = place.path(&format!("{device}/baud"));
    assert_eq!(Place::errno(fs::rename(&baud, place.path("x"))), Errno::PERM);
    assert_eq!(Place::errno(fs::hard_link(&baud, place.path("x"))), Errno::PERM);
    assert_eq!(Place::errno(std::os::unix::fs::symlink("x", place.path("x"))), Errno::PERM);
    let permissions = fs::Permissions::from_mode(0o666);
    assert_eq!(Place::errno(fs::set_permissions(&baud, permissions)), Errno::PERM);
    for path in ["x", "bus/x", "class/mdev_bus/x", "bus/mdev/devices/x", "class/mdev_bus/shelf/x"] {
        assert_eq!(Place::errno(fs::symlink_metadata(place.path(path))), Errno::NOENT, "{path}");
    }
    let upper = place.path(&format!("bus/mdev/devices/{}", A.to_uppercase()));
    assert_eq!(Place::errno(fs::symlink_metadata(upper)), Errno::NOENT);
    assert!(!fs::metadata(baud).unwrap().file_type().is_fifo());
}

#[test]
fn what_happens_on_the_bus_is_seen_at_once() {
    let Some(mut place) = Place::new(9) else { return };
    let uuid: Uuid = A.parse().unwrap();
    let link = place.path(&format!("bus/mdev/devices/{A}"));
    for round in 0..20 {
        let (parent, id) = if round % 2 == 0 { ("shelf", "one") } else { ("0000:00:03.0", "two") };
        assert!(!link.exists());
        MdevBus::create(&place.bus, parent, id, uuid).unwrap();
        let directory = fs::canonicalize(&link).unwrap();
        assert_eq!(directory.parent().unwrap().file_name().unwrap(), parent);
        assert_eq!(fs::canonicalize(link.join("mdev_type")).unwrap().file_name().unwrap(), id);
        MdevBus::remove(&place.bus, uuid).unwrap();
    }
    assert!(!link.exists());
    place.shelves.remove(0).unregister(None);
    assert_eq!(place.names("class/mdev_bus"), ["0000:00:03.0"]);
    let types = place.path("class/mdev_bus/shelf/mdev_supported_types");
    assert_eq!(Place::errno(fs::metadata(types)), Errno::NOENT);
}

#[test]
fn a_slow_device_keeps_nobody_else_waiting() {
    let Some(place) = Place::new(3) else { return };
    place.write(&format!("{TYPE}/create"), A).unwrap();
    place.write(&format!("{TYPE}/create"), B).unwrap();
    place.wall.raise(true);
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| place.read(&format!("bus/mdev/devices/{A}/slow")));
        place.wall.await_somebody();
        assert_eq!(place.read(&format!("bus/mdev/devices/{A}/baud")), "9600\n");
        place.write(&format!("bus/mdev/devices/{B}/remove"), "1").unwrap();
        assert_eq!(place.names("bus/mdev/devices"), [A]);
        place.wall.raise(false);
        assert_eq!(slow.join().unwrap(), "\n");
    });
}

#[test]
fn everybody_at_once() {
    let Some(place) = Place::new(6) else { return };
    let uuid = |at: u64| Uuid::from_u128(u128::from(at) + 1);
    std::thread::scope(|scope| {
        for mut random in 1..=8_u64 {
            let (place, uuid) = (&place, &uuid);
            scope.spawn(move || {
                for _ in 0..150 {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let uuid = uuid(random >> 60);
                    let parent = ["shelf", "0000:00:03.0"][(random >> 59 & 1) as usize];
                    let mdev_type = format!("class/mdev_bus/{parent}/mdev_supported_types/one");
                    let device = format!("bus/mdev/devices/{uuid}");
                    let done = match random >> 56 & 7 {
                        0..=2 => place.write(&format!("{mdev_type}/create"), &uuid.to_string()),
                        3 | 4 => place.write(&format!("{device}/remove"), "1"),
                        5 => place.write(&format!("{device}/baud"), "1200"),
                        6 => {
                            assert!(place.names("bus/mdev/devices").len() <= 12);
                            Ok(())
                        }
                        _ => match fs::read_to_string(place.path(&format!("{device}/serial"))) {
                            Ok(text) => {
                                assert_eq!(text, format!("{uuid}\n"));
                                Ok(())
                            }
                            Err(error) => Err(Errno::from_io_error(&error).unwrap()),
                        },
                    };
                    let known = [Errno::EXIST, Errno::USERS, Errno::NOENT, Errno::NODEV];
                    // Two who remove; a creation that is not over yet.
                    let known = [&known[..], &[Errno::BUSY, Errno::ACCESS, Errno::STALE]].concat();
                    assert!(done.is_ok() || done.is_err_and(|e| known.contains(&e)), "{done:?}");
                }
            });
        }
    });
    for parent in ["shelf", "0000:00:03.0"] {
        let mdev_type = format!("class/mdev_bus/{parent}/mdev_supported_types/one");
        let left: usize =
            place.read(&format!("{mdev_type}/available_instances")).trim().parse().unwrap();
        assert_eq!(place.names(&format!("{mdev_type}/devices")).len() + left, 6);
    }
    for name in place.names("bus/mdev/devices") {
        place.write(&format!("bus/mdev/devices/{name}/remove"), "1").unwrap();
    }
    assert!(place.bus.instances().is_empty());
}

#[test]
fn nothing_is_kept_of_what_is_over() {
    let Some(place) = Place::new(10) else { return };
    let view = place.view.as_ref().unwrap();
    for _ in 0..50 {
        place.write(&format!("{TYPE}/create"), A).unwrap();
        let mut names = place.names(&format!("bus/mdev/devices/{A}"));
        // It leads to another path for each instance.
        names.retain(|name| name != "iommu_group");
        for name in names {
            let _ = fs::read(place.path(&format!("bus/mdev/devices/{A}/{name}")));
        }
        place.write(&format!("bus/mdev/devices/{A}/remove"), "1").unwrap();
    }
    // The kernel tells of a closed file a moment after that.
    for _ in 0..1000 {
        let (_, directories, texts) = view.files().counts();
        if (directories, texts) == (0, 0) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let (inodes, directories, texts) = view.files().counts();
    assert_eq!((directories, texts), (0, 0));
    assert!(inodes < 50, "{inodes} inodes: as many as there are paths at most");
}

#[test]
fn the_log_has_paths() {
    use crate::tree::{Fixed, Node};
    let (bus, _wall, _shelves) = shelves(3);
    MdevBus::create(&bus, "shelf", "one", A.parse().unwrap()).unwrap();
    fn walk(bus: &Bus, node: &Node, path: &str, seen: &mut usize) {
        assert_eq!(node.to_string(), path);
        *seen += 1;
        for (name, child) in node.children(bus) {
            assert_eq!(child.above(), *node);
            assert_eq!(node.child(&name).as_ref(), Some(&child));
            assert!(child.look(bus).is_some(), "{path}/{name}");
            let path = if path.is_empty() { name } else { format!("{path}/{name}") };
            walk(bus, &child, &path, seen);
        }
    }
    let mut seen = 0;
    walk(&bus, &Node::Fixed(Fixed::Root), "", &mut seen);
    assert!(seen > 40, "{seen}");
}

#[test]
fn numbers_stay_with_their_paths() {
    let Some(place) = Place::new(3) else { return };
    place.write(&format!("{TYPE}/create"), A).unwrap();
    let mut numbers = BTreeMap::new();
    fn walk(directory: &Path, numbers: &mut BTreeMap<u64, PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            use std::os::unix::fs::DirEntryExt;
            let number = entry.ino();
            assert_eq!(number, entry.metadata().unwrap().ino(), "{}", entry.path().display());
            assert_eq!(numbers.insert(number, entry.path()), None);
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), numbers);
            }
        }
    }
    walk(&place.path(""), &mut numbers);
    let mut again = BTreeMap::new();
    walk(&place.path(""), &mut again);
    assert_eq!(numbers, again);
}

#[test]
fn ten_thousand() {
    let Some(place) = Place::new(10_000) else { return };
    for at in 1..=10_000 {
        MdevBus::create(&place.bus, "shelf", "one", Uuid::from_u128(at)).unwrap();
    }
    assert_eq!(place.read(&format!("{TYPE}/available_instances")), "0\n");
    for directory in ["bus/mdev/devices", &format!("{TYPE}/devices")] {
        assert_eq!(place.names(directory).len(), 10_000);
    }
    for entry in fs::read_dir(place.path("bus/mdev/devices")).unwrap().step_by(10) {
        let path = entry.unwrap().path();
        let directory = fs::canonicalize(&path).unwrap();
        assert_eq!(directory.parent().unwrap().file_name().unwrap(), "shelf");
        assert_eq!(fs::canonicalize(path.join("mdev_type")).unwrap().file_name().unwrap(), "one");
    }
}

#[test]
fn unmounted_with_files_open() {
    let Some(mut place) = Place::new(3) else { return };
    place.write(&format!("{TYPE}/create"), A).unwrap();
    let mut name = fs::File::open(place.path(&format!("{TYPE}/name"))).unwrap();
    let bus: Arc<dyn MdevBus> = Arc::new(place.bus.clone());
    drop(place.view.take());
    assert_eq!(place.names(""), [""; 0], "the directory is there, and empty");
    let refused = Place::errno(name.read(&mut [0; 8]));
    assert!(matches!(refused, Errno::NODEV | Errno::NOTCONN | Errno::STALE), "{refused}");
    // And can be mounted on again.
    place.view = Some(View::mount(place.root.path(), None, bus).unwrap());
    assert_eq!(place.names("bus/mdev/devices"), [A]);
}

#[test]
fn not_on_what_is_used_otherwise() {
    let Some(place) = Place::new(3) else { return };
    let mount =
        |path: &Path| View::mount(path, None, Arc::new(place.bus.clone())).map(drop).unwrap_err();
    let error = mount(place.root.path());
    assert_eq!(error.errno(), Errno::BUSY, "{error}");
    assert!(error.to_string().contains("another vfiod"), "{error}");
    let other = TempDir::new().unwrap();
    fs::create_dir_all(other.path().join("sys/class")).unwrap();
    let error = mount(other.path());
    assert_eq!(error.errno(), Errno::NOTEMPTY, "{error}");
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 1, "nothing was made");
    fs::remove_dir_all(other.path().join("sys")).unwrap();
    fs::write(other.path().join("sys"), "").unwrap();
    let error = mount(other.path());
    assert_eq!(error.errno(), Errno::NOTDIR, "{error}");
    assert_eq!(place.names("class/mdev_bus").len(), 2, "what was mounted works on");
}

const VICTIM: &str = "VFIOD_TEST_SYSFS_VICTIM";

/// Mounts and waits to be killed: run by the test below in a process of its own.
#[test]
#[ignore = "run by another test"]
fn victim() {
    let Some(directory) = std::env::var_os(VICTIM) else { return };
    let (bus, _wall, _shelves) = shelves(3);
    let _view = View::mount(Path::new(&directory), None, Arc::new(bus)).unwrap();
    println!("\nmounted");
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn the_mount_of_the_dead_is_taken_away() {
    let Some(mut place) = Place::new(3) else { return };
    drop(place.view.take());
    let directory = place.path("");
    for _ in 0..2 {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::victim", "--ignored", "--nocapture"])
            .env(VICTIM, place.root.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(victim.stdout.take().unwrap());
        let mut lines = std::io::BufRead::lines(lines);
        assert!(lines.any(|line| line.unwrap() == "mounted"));
        victim.kill().unwrap();
        victim.wait().unwrap();
        assert_eq!(Place::errno(fs::read_dir(&directory)), Errno::NOTCONN);
    }
    place.view = Some(View::mount(place.root.path(), None, Arc::new(place.bus.clone())).unwrap());
    assert_eq!(place.names("class/mdev_bus").len(), 2);
    drop(place.view.take());
    assert_eq!(place.names(""), [""; 0], "no mount is left below");
}
