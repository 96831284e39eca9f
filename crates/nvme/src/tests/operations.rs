//! Namespaces that come, go and change their sizes while the controller runs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};

use vfiod_config::{ConfiguredModel, Ending, Operated, OperatedModel};
use vfiod_core::{DescriptorTable, DeviceSpec, Errno, Registry, Result};
use vfiod_pci::{Function, ModelRef};
use vfiod_testing::{Driver, eventually};

use super::rig::{BASE, Command, DATA, Held, Host, namespace, pattern, with_common};
use crate::common::Common;
use crate::controller::Nvme;
use crate::namespace::Neighbour;
use crate::operations::NvmeOperation;
use crate::options::NvmeOptions;

const READ: u8 = 2;
const WRITE: u8 = 1;
/// Namespace Attribute Changed: a notice that log page 4 has more of.
const CHANGED: u32 = 4 << 16 | 2;
const MIB: u64 = 1 << 20;

/// Images in a directory of their own.
struct Images(tempfile::TempDir);

impl Images {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// An image whose bytes are all this.
    fn image(&self, n: u8) -> PathBuf {
        let path = self.0.path().join(format!("disk-{n}.img"));
        if !path.exists() {
            std::fs::write(&path, vec![n; MIB as usize]).unwrap();
        }
        path
    }

    fn options(&self) -> NvmeOptions {
        NvmeOptions { file: Some(self.image(1)), namespaces: Some(4), ..NvmeOptions::default() }
    }

    fn host(&self) -> Host {
        let mut host = Host::new(Nvme::configured(self.options()).unwrap());
        host.create_pair(1, 64, 1);
        host
    }
}

/// As the manager does it.
pub(super) fn operate_on(device: &Driver, mut operation: NvmeOperation) -> Result<Operated> {
    let device = ModelRef::<Nvme>::of(device.device()).expect("an NVMe controller");
    let mut options = device.step(|nvme, _| nvme.options())?;
    Nvme::plan(&mut operation, &mut options)?;
    let operated = Nvme::operate(&device, operation)?;
    let in_json = |options: &NvmeOptions| serde_json::to_value(options).unwrap();
    assert_eq!(device.step(|nvme, _| in_json(&nvme.options()))?, in_json(&options), "as planned");
    Ok(operated)
}

/// The options that make what there is.
fn options(host: &Host) -> NvmeOptions {
    let device = ModelRef::<Nvme>::of(host.device.device()).expect("an NVMe controller");
    device.step(|nvme, _| nvme.options()).unwrap()
}

fn has_ended(ending: &mut Ending) -> bool {
    match ending.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        std::task::Poll::Ready(ended) => {
            ended.unwrap();
            true
        }
        std::task::Poll::Pending => false,
    }
}

/// Carries an operation out, and waits for its end.
fn operate(host: &Host, operation: NvmeOperation) -> serde_json::Value {
    let operated = operate_on(&host.device, operation).unwrap();
    if let Some(mut ending) = operated.ending {
        eventually("the end of an operation", || has_ended(&mut ending));
    }
    operated.result
}

fn refused(host: &Host, operation: NvmeOperation) -> (Errno, String) {
    let error = operate_on(&host.device, operation).expect_err("refused");
    let mut text = error.message().to_owned();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    (error.errno(), text)
}

fn add(file: &Path) -> NvmeOperation {
    NvmeOperation::AddNamespace { file: file.to_owned(), nsid: None }
}

fn remove(nsid: u32) -> NvmeOperation {
    NvmeOperation::RemoveNamespace { nsid }
}

fn resize(nsid: u32, size: Option<u64>, force: bool) -> NvmeOperation {
    NvmeOperation::ResizeNamespace { nsid, size, force }
}

/// I/O commands and bytes per second, each with its burst.
pub(super) fn limits(limits: [Option<u64>; 4]) -> NvmeOperation {
    let [iops, iops_burst, bandwidth, bandwidth_burst] = limits;
    NvmeOperation::SetLimits { iops, iops_burst, bandwidth, bandwidth_burst }
}

fn io(opcode: u8, nsid: u32, first: u64) -> Command {
    Command::io(opcode, first, 1, (DATA, 0)).namespace(nsid)
}

/// The host wants to be told of namespaces.
fn configure(host: &mut Host) {
    assert_eq!(host.admin(Command::new(9).set(10, 0x0b).set(11, 1 << 8)), Ok(0));
}

/// Asks for an event, which does not come at once.
fn request(host: &mut Host) -> u16 {
    let id = host.submit(0, Command::new(12));
    quiet(host);
    id
}

/// A command that follows completes, and it alone.
fn quiet(host: &mut Host) {
    assert!(host.identify(1, 0).is_ok());
    assert!(host.peek(0).is_none());
}

fn event(host: &mut Host, id: u16) {
    let entry = host.wait(0);
    assert_eq!((entry.id, entry.status, entry.result), (id, 0, CHANGED));
}

/// Those that a list of namespaces has.
fn ids(list: &[u8]) -> Vec<u32> {
    let ids = list.chunks_exact(4).map(|id| u32::from_le_bytes(id.try_into().unwrap()));
    ids.take_while(|id| *id != 0).collect()
}

fn changed(host: &mut Host) -> Vec<u32> {
    ids(&host.log(4, 4096).unwrap())
}

fn active(host: &mut Host) -> Vec<u32> {
    ids(&host.identify(2, 0).unwrap())
}

/// Blocks of a namespace.
fn blocks(host: &mut Host, nsid: u32) -> u64 {
    u64::from_le_bytes(host.identify(0, nsid).unwrap()[..8].try_into().unwrap())
}

#[test]
fn namespaces_come_and_go_thrice_under_io() {
    let images = Images::new();
    let mut host = images.host();
    configure(&mut host);
    let mut names = Vec::new();
    for round in 0..3_u8 {
        let asked = request(&mut host);
        let reads: Vec<u16> = (0..32).map(|n| host.put(1, io(READ, 1, n))).collect();
        host.ring(1);
        let added = operate(&host, add(&images.image(2)));
        assert_eq!(added, serde_json::json!({"nsid": 2, "size": MIB}));
        event(&mut host, asked);
        assert_eq!((active(&mut host), changed(&mut host)), (vec![1, 2], vec![2]));
        assert_eq!(changed(&mut host), [0; 0], "read");
        names.push(host.identify(3, 2).unwrap());
        for _ in &reads {
            assert_eq!(host.wait(1).status, 0);
        }
        host.memory.put(DATA - BASE, &pattern(round.into(), 512));
        assert_eq!(host.perform(1, io(WRITE, 2, 7)), Ok(0));

        let asked = request(&mut host);
        operate(&host, remove(2));
        event(&mut host, asked);
        assert_eq!((active(&mut host), changed(&mut host)), (vec![1], vec![2]));
        assert_eq!(host.perform(1, io(READ, 2, 7)), Err(0x02), "not active");
        assert_eq!(host.identify(0, 2), Ok(vec![0; 4096]));
        // Whoever has the image next has it at once, with what was written.
        let next = NvmeOptions { file: Some(images.image(2)), ..NvmeOptions::default() };
        let mut next = Host::new(Nvme::configured(next).unwrap());
        next.create_pair(1, 64, 1);
        assert_eq!(next.perform(1, io(READ, 1, 7)), Ok(0));
        assert_eq!(next.memory.get(DATA - BASE, 512), pattern(round.into(), 512));
    }
    assert!(names.iter().all(|name| *name == names[0]), "who it is stays");
    assert_eq!(host.identify(1, 0).unwrap()[516..520], 4_u32.to_le_bytes(), "NN");
}

/// What changes while the host has not read the list is in the list; what changes afterwards is told again.
#[test]
fn event_comes_again_after_the_list_was_read() {
    let images = Images::new();
    let mut host = images.host();
    configure(&mut host);
    let asked = request(&mut host);
    operate(&host, add(&images.image(2)));
    event(&mut host, asked);
    let asked = request(&mut host);
    operate(&host, add(&images.image(3)));
    quiet(&mut host);
    let retained = Command::new(2).prps(DATA, 0).set(10, 4 | 1 << 15 | 15 << 16);
    assert_eq!(host.admin(retained), Ok(0));
    quiet(&mut host);
    assert_eq!(changed(&mut host), [2, 3], "also after it was read and kept");
    quiet(&mut host);
    operate(&host, remove(3));
    event(&mut host, asked);
    assert_eq!(changed(&mut host), [3]);
    // All of them are changes that the host has seen.
    request(&mut host);
}

/// A list that could not be sent was not read.
#[test]
fn list_that_the_host_did_not_get_is_kept_and_told_of() {
    let images = Images::new();
    let mut host = images.host();
    configure(&mut host);
    let asked = request(&mut host);
    operate(&host, add(&images.image(2)));
    event(&mut host, asked);
    let asked = request(&mut host);
    operate(&host, add(&images.image(3)));
    let nowhere = Command::new(2).prps(1 << 60, 0).set(10, 4 | 15 << 16);
    assert_eq!(host.admin(nowhere), Err(0x04));
    let behind = Command::new(2).prps(DATA, 0).set(10, 4 | 15 << 16).set(12, 4096);
    assert_eq!(host.admin(behind), Err(0x02));
    quiet(&mut host);
    assert_eq!(changed(&mut host), [2, 3]);
    operate(&host, remove(2));
    event(&mut host, asked);
}

/// spdk#2067: no event without its bit.
#[test]
fn event_comes_only_if_it_was_asked_for() {
    let images = Images::new();
    let mut host = images.host();
    request(&mut host);
    operate(&host, add(&images.image(2)));
    quiet(&mut host);
    configure(&mut host);
    quiet(&mut host);
    assert_eq!((active(&mut host), changed(&mut host)), (vec![1, 2], vec![2]));
}

/// A controller with namespaces 1 and 3 whose disks hold their requests back.
fn held() -> (Host, [Arc<Held>; 2]) {
    let disks = [Held::new(), Held::new()];
    let namespaces = vec![namespace(1, disks[0].clone()), namespace(3, disks[1].clone())];
    let mut nvme = with_common(Common::new(16, namespaces));
    nvme.running = NvmeOptions {
        file: Some("/one".into()),
        files: vec!["/three".into()],
        numbers: vec![3],
        ..NvmeOptions::default()
    };
    let mut host = Host::new(nvme);
    host.create_pair(1, 64, 1);
    (host, disks)
}

#[test]
fn removal_waits_for_what_is_under_way_and_then_gives_the_image_up() {
    let (mut host, [_, disk]) = held();
    disk.hold(true);
    let read = host.submit(1, io(READ, 3, 1));
    eventually("a read that is held", || disk.waiting() == 1);
    let removed = operate_on(&host.device, remove(3)).unwrap();
    let mut ending = removed.ending.expect("it waits");
    assert!(!has_ended(&mut ending));
    assert_eq!(host.perform(1, io(READ, 3, 1)), Err(0x02), "a command that comes later");
    assert_eq!(host.perform(1, io(READ, 1, 1)), Ok(0), "another namespace goes on");
    assert_eq!(active(&mut host), [1]);
    assert!(!has_ended(&mut ending));
    assert!(!disk.seen().contains(&"released".to_owned()));
    disk.release();
    let entry = host.wait(1);
    assert_eq!((entry.id, entry.status), (read, 0));
    eventually("the end of a removal", || has_ended(&mut ending));
    assert_eq!(disk.seen(), ["released"]);
}

/// A command that nobody waits for any more is under way all the same.
#[test]
fn removal_waits_for_what_a_disabled_controller_has_begun() {
    let (mut host, [_, disk]) = held();
    disk.hold(true);
    host.submit(1, io(WRITE, 3, 1));
    eventually("a write that is held", || disk.waiting() == 1);
    host.device.write32(0, 0x14, super::rig::ENABLE & !1);
    let mut ending = operate_on(&host.device, remove(3)).unwrap().ending.unwrap();
    assert!(!has_ended(&mut ending));
    disk.release();
    eventually("the end of a removal", || has_ended(&mut ending));
}

#[test]
fn format_of_a_namespace_that_is_removed_ends() {
    let (mut host, [_, disk]) = held();
    disk.hold(true);
    let format = host.submit(0, Command::new(0x80).namespace(3));
    eventually("a request that is held", || disk.waiting() == 1);
    let mut ending = operate_on(&host.device, remove(3)).unwrap().ending.unwrap();
    assert!(!has_ended(&mut ending));
    disk.hold(false);
    disk.release();
    assert_eq!(host.wait(0).id, format);
    eventually("the end of a removal", || has_ended(&mut ending));
}

#[test]
fn image_that_has_grown_grows_without_a_reset() {
    let images = Images::new();
    let mut host = images.host();
    configure(&mut host);
    let asked = request(&mut host);
    assert_eq!(host.perform(1, io(WRITE, 1, 2048)), Err(0x80));
    let image = std::fs::File::options().write(true).open(images.image(1)).unwrap();
    image.set_len(2 * MIB).unwrap();
    assert_eq!(blocks(&mut host, 1), 2048, "nobody has said so");
    let resized = operate(&host, resize(1, None, false));
    assert_eq!(resized, serde_json::json!({"nsid": 1, "size": 2 * MIB}));
    event(&mut host, asked);
    assert_eq!((blocks(&mut host, 1), changed(&mut host)), (4096, vec![1]));
    assert_eq!(host.perform(1, io(WRITE, 1, 4095)), Ok(0));
    // By us.
    operate(&host, resize(1, Some(3 * MIB), false));
    assert_eq!(blocks(&mut host, 1), 6144);
    assert_eq!(image.metadata().unwrap().len(), 3 * MIB);
    assert_eq!(host.perform(1, io(WRITE, 1, 6143)), Ok(0));
    assert_eq!(changed(&mut host), [1]);
    // The same again changes nothing.
    operate(&host, resize(1, None, false));
    assert_eq!(changed(&mut host), [0; 0]);
}

#[test]
fn image_becomes_smaller_by_force_only() {
    let images = Images::new();
    let mut host = images.host();
    let (errno, what) = refused(&host, resize(1, Some(MIB / 2), false));
    assert!(errno == Errno::BUSY && what.contains("`force`"), "{errno:?} {what}");
    assert_eq!(blocks(&mut host, 1), 2048);
    operate(&host, resize(1, Some(MIB / 2), true));
    assert_eq!((blocks(&mut host, 1), changed(&mut host)), (1024, vec![1]));
    assert_eq!(std::fs::metadata(images.image(1)).unwrap().len(), MIB / 2);
    for (first, status) in [(1023, Ok(0)), (1024, Err(0x80)), (2047, Err(0x80))] {
        assert_eq!(host.perform(1, io(WRITE, 1, first)), status, "block {first}");
    }
    assert_eq!(std::fs::metadata(images.image(1)).unwrap().len(), MIB / 2, "it has stayed so");
    // Somebody else has cut it off.
    let image = std::fs::File::options().write(true).open(images.image(1)).unwrap();
    image.set_len(MIB / 4).unwrap();
    assert_eq!(refused(&host, resize(1, None, false)).0, Errno::BUSY);
    operate(&host, resize(1, None, true));
    assert_eq!(blocks(&mut host, 1), 512);
}

/// A write that is under way behind the new end would make the file longer again.
#[test]
fn nothing_is_cut_off_before_what_is_under_way_there_has_ended() {
    let (mut host, [_, disk]) = held();
    disk.hold(true);
    let write = host.submit(1, io(WRITE, 3, 4096));
    eventually("a write that is held", || disk.waiting() == 1);
    disk.seen();
    let mut ending = operate_on(&host.device, resize(3, Some(MIB), true)).unwrap().ending.unwrap();
    assert!(!has_ended(&mut ending));
    assert_eq!(host.perform(1, io(WRITE, 3, 4096)), Err(0x80));
    let (errno, what) = refused(&host, resize(3, Some(2 * MIB), true));
    assert!(errno == Errno::BUSY && what.contains("another size"), "{what}");
    let mut removal = operate_on(&host.device, remove(3)).unwrap().ending.unwrap();
    assert!(!has_ended(&mut removal), "not before it is cut off");
    assert_eq!(disk.seen(), [""; 0]);
    disk.release();
    assert_eq!((host.wait(1).id, host.peek(1)), (write, None));
    eventually("the end of a resize", || has_ended(&mut ending));
    eventually("the end of a removal", || has_ended(&mut removal));
    assert_eq!(disk.seen(), [format!("size {MIB}"), "released".to_owned()]);
}

#[test]
fn mistakes_are_refused_with_a_remedy_and_change_nothing() {
    let images = Images::new();
    let mut host = images.host();
    operate(&host, NvmeOperation::AddNamespace { file: images.image(3), nsid: Some(3) });
    let (short, copied) = (images.0.path().join("short"), images.0.path().join("copy"));
    std::fs::write(&short, [1; 100]).unwrap();
    std::fs::write(&copied, [3; MIB as usize]).unwrap();
    let numbered = |nsid| NvmeOperation::AddNamespace { file: images.image(2), nsid: Some(nsid) };
    for (operation, errno, what) in [
        (numbered(1), Errno::EXIST, "there is a namespace 1 already"),
        (numbered(3), Errno::EXIST, "leave the number out"),
        (numbered(0), Errno::INVAL, "`namespaces` allows 1 to 4"),
        (numbered(5), Errno::INVAL, "`namespaces` allows 1 to 4"),
        (add(&images.image(1)), Errno::BUSY, "in use: process"),
        (add(&images.0.path().join("none")), Errno::NOENT, "cannot be opened"),
        (add(images.0.path()), Errno::INVAL, "neither a regular file nor a block device"),
        (add(&short), Errno::INVAL, "makes it one"),
        (remove(1), Errno::INVAL, "Remove the device"),
        (remove(2), Errno::NOENT, "there is no namespace 2"),
        (remove(0), Errno::NOENT, "there is no namespace 0"),
        (remove(u32::MAX), Errno::NOENT, "there is no namespace 4294967295"),
        (resize(2, None, false), Errno::NOENT, "there is no namespace 2"),
        (resize(1, Some(0), true), Errno::INVAL, "the next larger size is 512"),
        (resize(1, Some(1000), true), Errno::INVAL, "the next larger size is 1024"),
        (limits([None; 4]), Errno::INVAL, "no limit is given; `iops`"),
        (limits([None, Some(1), None, None]), Errno::INVAL, "`iops` sets it"),
        (limits([Some(0), Some(1), Some(5), None]), Errno::INVAL, "`iops` sets it"),
    ] {
        let (is, message) = refused(&host, operation.clone());
        assert!(is == errno && message.contains(what), "{operation:?}: {is:?} {message}");
    }
    assert_eq!((active(&mut host), changed(&mut host)), (vec![1, 3], vec![3]));
    operate(&host, add(&images.image(2)));
    operate(&host, add(&images.image(4)));
    let (errno, what) = refused(&host, add(&copied));
    assert!(errno == Errno::USERS && what.contains("there are 4 namespaces"), "{what}");
    // A copy with who it is beside it, where that is to count.
    let keeps = NvmeOptions { identity: crate::IdentityOption::Keep, ..images.options() };
    drop(host);
    let host = Host::new(Nvme::configured(keeps).unwrap());
    operate(&host, add(&images.image(3)));
    std::fs::copy(images.0.path().join("disk-3.img.vfiod"), images.0.path().join("copy.vfiod"))
        .unwrap();
    let (errno, what) = refused(&host, add(&copied));
    assert!(errno == Errno::INVAL && what.contains("identifiers of namespace 2"), "{what}");
}

/// One who has no image cannot say what it has.
#[test]
fn controller_without_an_image_gets_no_namespace() {
    let images = Images::new();
    let host = Host::new(super::rig::nvme());
    let (errno, what) = refused(&host, add(&images.image(2)));
    assert!(errno == Errno::INVAL && what.contains("option `file`"), "{what}");
}

/// The options that an operation leads to make what there is: numbers stay.
#[test]
fn numbers_are_the_same_after_a_restart() {
    let images = Images::new();
    let mut host = images.host();
    for n in 2..=4 {
        operate(&host, add(&images.image(n)));
    }
    operate(&host, remove(3));
    let name = host.identify(3, 4).unwrap();
    let options = options(&host);
    assert_eq!(
        (&options.files, &options.numbers),
        (&vec![images.image(2), images.image(4)], &vec![2, 4])
    );
    drop(host);
    let mut host = Host::new(Nvme::configured(options).unwrap());
    assert_eq!((active(&mut host), host.identify(3, 4)), (vec![1, 2, 4], Ok(name)));
    host.create_pair(1, 64, 1);
    assert_eq!(host.perform(1, io(READ, 4, 0)), Ok(0));
    assert_eq!(host.memory.get(DATA - BASE, 512), [4; 512]);
    // The gap is filled, and what is usual needs not be said.
    operate(&host, add(&images.image(3)));
    assert_eq!(active(&mut host), [1, 2, 3, 4]);
    assert!(self::options(&host).numbers.is_empty());
}

/// Another controller that has the namespace.
#[derive(Debug, Default)]
struct Other(Mutex<Vec<u32>>);

impl Neighbour for Other {
    fn sync_failed(&self) {}

    fn namespace_changed(&self, id: u32) {
        self.0.lock().unwrap().push(id);
    }
}

/// The controller that was asked knows.
#[test]
fn format_tells_the_other_controllers() {
    let (mut host, _) = held();
    configure(&mut host);
    let other = Arc::new(Other::default());
    let device = ModelRef::<Nvme>::of(host.device.device()).unwrap();
    let find = |nvme: &mut Nvme, _: &vfiod_pci::Cx<Nvme>| nvme.common.namespaces.get(3).unwrap();
    let neighbour: Arc<dyn Neighbour> = other.clone();
    device.step(find).unwrap().tell(&neighbour);
    let asked = request(&mut host);
    assert_eq!(host.admin(Command::new(0x80).namespace(3)), Ok(0));
    quiet(&mut host);
    assert_eq!(*other.0.lock().unwrap(), [3]);
    assert_eq!(changed(&mut host), [0; 0]);
    operate(&host, resize(3, Some(MIB), true));
    event(&mut host, asked);
    assert_eq!((other.0.lock().unwrap().clone(), changed(&mut host)), (vec![3, 3], vec![3]));
}

/// A controller reset keeps the list, which says what has changed since it was read; a device reset is for
/// another user.
#[test]
fn resets_end_events_and_another_user_finds_no_list() {
    let images = Images::new();
    let mut host = images.host();
    operate(&host, add(&images.image(2)));
    host.disable();
    operate(&host, add(&images.image(3)));
    host.enable();
    configure(&mut host);
    request(&mut host);
    assert_eq!((active(&mut host), changed(&mut host)), (vec![1, 2, 3], vec![2, 3]));
    operate(&host, remove(3));
    host.device.reset();
    host.device.enable();
    host.enable();
    assert_eq!((active(&mut host), changed(&mut host)), (vec![1, 2], vec![]));
}

#[test]
fn list_and_event_are_saved_and_other_namespaces_are_refused() {
    let images = Images::new();
    let mut host = images.host();
    configure(&mut host);
    operate(&host, add(&images.image(2)));
    let options = options(&host);
    // The images are open twice for now.
    let unlocked = NvmeOptions { locks: Some(false), ..options.clone() };
    let restore = |options: NvmeOptions| {
        let mut descriptors = DescriptorTable::new();
        let saved = host.device.device().save(&mut descriptors).unwrap();
        Driver::restored(Nvme::configured(options).unwrap(), &saved, None, &mut descriptors)
    };
    for (files, what) in [
        (vec![], "namespaces 1, 2, and the controller has 1;"),
        (vec![images.image(3)], "of other images"),
    ] {
        let other = NvmeOptions { files, ..unlocked.clone() };
        let error = restore(other).err().expect("refused");
        assert!(format!("{error:#?}").contains(what), "{error:?}");
    }
    let new = restore(unlocked).unwrap();
    let mut host = host.moved(new);
    host.device.settle();
    let asked = host.submit(0, Command::new(12));
    host.device.settle();
    event(&mut host, asked);
    host.device.settle();
    let command = Command::new(2).prps(DATA, 0).set(10, 4 | 15 << 16);
    host.submit(0, command);
    host.device.settle();
    assert_eq!(host.wait(0).status, 0);
    assert_eq!(ids(&host.memory.get(DATA - BASE, 64)), [2]);
}

/// A disk whose identifiers another one of the daemon has would be refused by a host that has both.
#[test]
fn no_two_disks_of_a_daemon_have_the_same_identifiers() {
    let images = Images::new();
    let registry = Registry::new();
    let register = |name: &str, options: NvmeOptions| {
        let function = Function::new(Nvme::configured(options).unwrap()).unwrap();
        let spec = DeviceSpec { name: name.to_owned(), ..DeviceSpec::default() };
        registry.register(spec, Box::new(function))
    };
    let first = register("first", images.options()).unwrap();
    // A copy with what is beside it, whose original was moved before anybody looked.
    let copy = images.image(2);
    let kept = |path: &Path| PathBuf::from(format!("{}.vfiod", path.display()));
    std::fs::copy(kept(&images.image(1)), kept(&copy)).unwrap();
    let moved = images.0.path().join("moved");
    std::fs::rename(images.image(1), &moved).unwrap();
    let options = || NvmeOptions { file: Some(copy.clone()), ..NvmeOptions::default() };
    let error = register("second", options()).expect_err("refused");
    let text = error.to_string();
    assert!(text.contains("disk-2.img has the identifiers of a disk of `first`"), "{text}");
    assert!(text.contains("with `identity = new`"), "{text}");
    // What it names is a remedy.
    let renewed = NvmeOptions { identity: crate::IdentityOption::New, ..options() };
    drop(register("second", renewed).unwrap());
    // By the operator, for two disks in memory.
    let uuid = Some("12345678-9abc-def0-1234-56789abcdef0".to_owned());
    let named = || NvmeOptions { uuid: uuid.clone(), ..NvmeOptions::default() };
    let memory = register("memory", named()).unwrap();
    let text = register("other", named()).expect_err("refused").to_string();
    assert!(text.contains("the disk has the identifiers of a disk of `memory`"), "{text}");
    drop(memory);
    drop(register("other", named()).unwrap());
    drop(first);
}
