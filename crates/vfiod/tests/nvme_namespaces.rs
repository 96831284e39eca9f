//! Namespaces of a controller that come, go and change their sizes by `vfiod namespace`, while a driver uses it.

mod process;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use process::nvme::connect;
use process::{Daemon, at, bad, good, vfiod};
use rustix::process::Signal;
use tempfile::TempDir;
use vfiod_nvme_driver::{
    Command, Controller, Data, Error, Memory, Namespace, Queue, Waiting, opcode,
};

const MIB: u64 = 1 << 20;
const BLOCK: usize = 512;
/// Namespace Attribute Changed: a notice that log page 4 has more of.
const CHANGED: u32 = 4 << 16 | 2;
/// Statuses: Invalid Field in Command, as for each namespace that is not active; LBA Out of Range.
const INACTIVE: u16 = 0x02;
const OUT_OF_RANGE: u16 = 0x80;

/// A daemon whose controller `disk` has the image `1.img`.
struct Rig {
    directory: TempDir,
    daemon: Daemon,
}

fn path(directory: &TempDir, name: &str) -> PathBuf {
    directory.path().join(name)
}

impl Rig {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for n in 1..=4_u8 {
            std::fs::write(path(&directory, &format!("{n}.img")), vec![n; MIB as usize]).unwrap();
        }
        let text = format!(
            "[device.disk]\nmodel = \"nvme\"\nsocket = {:?}\n\
             options = {{ file = {:?}, namespaces = 4 }}\n[control]\nsocket = {:?}\n",
            path(&directory, "disk"),
            path(&directory, "1.img"),
            path(&directory, "control")
        );
        std::fs::write(path(&directory, "c.toml"), text).unwrap();
        Self::serving(directory)
    }

    fn serving(directory: TempDir) -> Self {
        let at = |name: &str| path(&directory, name);
        let command = vfiod(["--log", "warn", "serve", at("c.toml").to_str().unwrap()]);
        let daemon = Daemon::serving(command, &[&at("disk"), &at("control")]);
        Self { directory, daemon }
    }

    fn at(&self, name: &str) -> PathBuf {
        path(&self.directory, name)
    }

    fn image(&self, n: u8) -> String {
        self.at(&format!("{n}.img")).display().to_string()
    }

    /// What a command prints, which must succeed.
    fn command(&self, args: &[&str]) -> String {
        good(at(&self.at("control"), args)).trim_end().to_owned()
    }

    fn namespace(&self, args: &[&str]) -> String {
        self.command(&[&["namespace"], args].concat())
    }

    /// What is said of an operation that is refused with this exit code.
    fn refused(&self, code: i32, args: &[&str]) -> String {
        bad(code, at(&self.at("control"), &[&["namespace"], args].concat()))
    }

    fn connect(&self) -> Host {
        Host(connect(&self.at("disk")))
    }
}

/// A driver that wants to be told of namespaces.
struct Host(Controller);

impl Host {
    /// Asks for an event, which does not come at once.
    fn request(&mut self) -> u16 {
        let configure = Command::new(opcode::SET_FEATURES).dword(10, 0x0b).dword(11, 1 << 8);
        self.0.admin(configure, None).unwrap();
        self.0.begin_admin(Command::new(opcode::ASYNCHRONOUS_EVENT_REQUEST), None).unwrap()
    }

    /// The event that was asked for is there, and this is what has changed.
    fn event(&mut self, request: u16) -> Vec<u32> {
        let event = self.0.finish_admin(request).unwrap();
        assert!(event.status.is_success() && event.result == CHANGED, "{event:?}");
        self.changed()
    }

    /// What has changed since the last time.
    fn changed(&mut self) -> Vec<u32> {
        let buffer = self.0.memory().allocate(4096).unwrap();
        let command =
            Command::new(opcode::GET_LOG_PAGE).namespace(u32::MAX).dword(10, 4 | 1023 << 16);
        self.0.admin(command, Some(Data::of(&buffer))).unwrap();
        let mut bytes = vec![0; 4096];
        buffer.read(0, &mut bytes);
        let ids = bytes.chunks_exact(4).map(|id| u32::from_le_bytes(id.try_into().unwrap()));
        ids.take_while(|id| *id != 0).collect()
    }

    fn active(&mut self) -> Vec<u32> {
        self.0.namespaces().unwrap()
    }

    fn blocks(&mut self, nsid: u32) -> u64 {
        self.0.namespace(nsid).unwrap().blocks
    }

    fn queue(&mut self) -> Queue {
        self.0.create_queue(64, Waiting::Interrupts).unwrap()
    }
}

/// A block, or the status that the command ended with.
fn read(queue: &mut Queue, memory: &Memory, disk: &Namespace, block: u64) -> Result<u8, u16> {
    let buffer = memory.allocate(BLOCK).unwrap();
    status(queue.read(disk, block, Data::of(&buffer)))?;
    let mut bytes = [0; BLOCK];
    buffer.read(0, &mut bytes);
    assert_eq!(bytes, [bytes[0]; BLOCK], "a torn block");
    Ok(bytes[0])
}

fn write(
    queue: &mut Queue,
    memory: &Memory,
    disk: &Namespace,
    block: u64,
    byte: u8,
) -> Result<(), u16> {
    let buffer = memory.allocate(BLOCK).unwrap();
    buffer.write(0, &[byte; BLOCK]);
    status(queue.write(disk, block, Data::of(&buffer)))
}

fn status(ended: vfiod_nvme_driver::Result<()>) -> Result<(), u16> {
    match ended {
        Ok(()) => Ok(()),
        Err(Error::Status(status)) => Err(status.code()),
        Err(error) => panic!("{error}"),
    }
}

/// Reads and writes on queues of their own, until they end.
struct Load {
    ends: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<[u64; 2]>>,
}

impl Load {
    /// Commands to these namespaces, each by a thread of its own. A command to one that `goes` may end with the
    /// status of a namespace that is not active, and with no other one.
    fn on(host: &mut Host, disks: &[(Namespace, bool)]) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let thread = |(disk, goes): &(Namespace, bool)| {
            let (mut queue, memory) = (host.queue(), host.0.memory().clone());
            let (disk, goes, ends) = (*disk, *goes, ends.clone());
            std::thread::spawn(move || {
                let mut ended = [0; 2];
                while !ends.load(Ordering::SeqCst) {
                    for round in 0..16_u8 {
                        let block = 1000 + u64::from(round);
                        let wrote = write(&mut queue, &memory, &disk, block, round);
                        let read = read(&mut queue, &memory, &disk, block);
                        for outcome in [wrote, read.map(|byte| assert_eq!(byte, round))] {
                            match outcome {
                                Ok(()) => ended[0] += 1,
                                Err(INACTIVE) if goes => ended[1] += 1,
                                Err(status) => panic!("namespace {}: {status:#x}", disk.id),
                            }
                        }
                    }
                }
                ended
            })
        };
        let threads = disks.iter().map(thread).collect();
        Self { ends, threads }
    }

    /// How many commands succeeded, and how many found no namespace, of each.
    fn end(self) -> Vec<[u64; 2]> {
        self.ends.store(true, Ordering::SeqCst);
        self.threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }
}

#[test]
fn namespaces_come_and_go_in_a_row_while_a_driver_reads_and_writes() {
    let rig = Rig::new();
    let mut host = rig.connect();
    let asked = host.request();
    assert_eq!(rig.namespace(&["add", "disk", &rig.image(2)]), "2");
    assert_eq!(host.event(asked), [2]);
    assert_eq!(rig.namespace(&["add", "disk", &rig.image(4), "--nsid", "4"]), "4");
    assert_eq!((host.active(), host.changed()), (vec![1, 2, 4], vec![4]));
    let [first, second, fourth] = [1, 2, 4].map(|nsid| host.0.namespace(nsid).unwrap());
    let who = host.0.identify(3, 2).unwrap();
    let (mut queue, memory) = (host.queue(), host.0.memory().clone());
    let load = Load::on(&mut host, &[(first, false), (second, true), (fourth, false)]);
    for round in 0..3 {
        write(&mut queue, &memory, &second, 7, 100 + round).unwrap();
        let asked = host.request();
        assert_eq!(rig.namespace(&["remove", "disk", "2"]), "");
        assert_eq!((host.event(asked), host.active()), (vec![2], vec![1, 4]));
        assert_eq!(read(&mut queue, &memory, &second, 7), Err(INACTIVE));
        // Nobody else's any more: the lock is free.
        let image = std::fs::read(rig.at("2.img")).unwrap();
        assert_eq!(image[7 * BLOCK..8 * BLOCK], [100 + round; BLOCK]);
        let asked = host.request();
        assert_eq!(rig.namespace(&["add", "disk", &rig.image(2)]), "2");
        assert_eq!((host.event(asked), host.active()), (vec![2], vec![1, 2, 4]));
        assert_eq!(read(&mut queue, &memory, &second, 7), Ok(100 + round));
        assert_eq!(host.0.identify(3, 2).unwrap(), who, "who it is stays");
    }
    let [first, second, fourth] = load.end().try_into().unwrap();
    assert!(first[0] > 0 && second[0] > 0 && fourth[0] > 0, "{first:?} {second:?} {fourth:?}");
}

/// What is under way when its image would be somebody else's has ended before.
#[test]
fn image_of_a_namespace_that_was_removed_is_anothers_at_once() {
    let rig = Rig::new();
    let mut host = rig.connect();
    for round in 0..5 {
        rig.namespace(&["add", "disk", &rig.image(2)]);
        let second = host.0.namespace(2).unwrap();
        let load = Load::on(&mut host, &[(second, true)]);
        rig.namespace(&["remove", "disk", "2"]);
        let file = format!("file={}", rig.image(2));
        let socket = rig.at("other");
        let socket = socket.to_str().unwrap();
        rig.command(&[
            "add",
            "other",
            "--device",
            "nvme",
            "--socket-path",
            socket,
            "--option",
            &file,
        ]);
        rig.command(&["del", "other"]);
        load.end();
        assert_eq!(host.active(), [1], "round {round}");
    }
}

#[test]
fn sizes_change_under_load_and_become_smaller_by_force_only() {
    let rig = Rig::new();
    let mut host = rig.connect();
    rig.namespace(&["add", "disk", &rig.image(2)]);
    assert_eq!(host.changed(), [2]);
    let [first, second] = [1, 2].map(|nsid| host.0.namespace(nsid).unwrap());
    let (mut queue, memory) = (host.queue(), host.0.memory().clone());
    let load = Load::on(&mut host, &[(first, false), (second, false)]);
    let size = |n: u8| std::fs::metadata(rig.image(n)).unwrap().len();

    let asked = host.request();
    assert_eq!(rig.namespace(&["resize", "disk", "2", "--size", "3M"]), (3 * MIB).to_string());
    assert_eq!((host.event(asked), host.blocks(2), size(2)), (vec![2], 6144, 3 * MIB));
    write(&mut queue, &memory, &second, 6143, 9).unwrap();
    assert_eq!(write(&mut queue, &memory, &second, 6144, 9), Err(OUT_OF_RANGE));
    // By somebody else.
    let asked = host.request();
    let image = std::fs::File::options().write(true).open(rig.image(1)).unwrap();
    image.set_len(2 * MIB).unwrap();
    assert_eq!(rig.namespace(&["resize", "disk", "1"]), (2 * MIB).to_string());
    assert_eq!((host.event(asked), host.blocks(1)), (vec![1], 4096));

    let said = rig.refused(4, &["resize", "disk", "2", "--size", "1M"]);
    assert!(said.contains("namespace 2 has 3145728 bytes, and would have 1048576"), "{said}");
    assert!(said.contains("with `force` it becomes smaller"), "{said}");
    assert_eq!((host.blocks(2), size(2), host.changed()), (6144, 3 * MIB, vec![]));
    assert_eq!(read(&mut queue, &memory, &second, 6143), Ok(9));
    let asked = host.request();
    rig.namespace(&["resize", "disk", "2", "--size", "1M", "--force"]);
    assert_eq!((host.event(asked), host.blocks(2), size(2)), (vec![2], 2048, MIB));
    assert_eq!(read(&mut queue, &memory, &second, 6143), Err(OUT_OF_RANGE));
    for ended in load.end() {
        assert!(ended[0] > 0);
    }
}

#[test]
fn numbers_are_in_the_configuration_and_the_same_after_a_restart() {
    let rig = Rig::new();
    for n in 2..=4 {
        assert_eq!(rig.namespace(&["add", "disk", &rig.image(n)]), n.to_string());
    }
    rig.namespace(&["remove", "disk", "2"]);
    let mut host = rig.connect();
    let who = [3, 4].map(|nsid| host.0.identify(3, nsid).unwrap());
    drop(host);
    let config = rig.command(&["config"]);
    let Rig { directory, daemon } = rig;
    let (status, said) = daemon.terminate(Signal::TERM);
    assert!(status.success(), "{said}");
    std::fs::write(path(&directory, "c.toml"), config).unwrap();
    let rig = Rig::serving(directory);
    let mut host = rig.connect();
    assert_eq!(host.active(), [1, 3, 4]);
    assert_eq!([3, 4].map(|nsid| host.0.identify(3, nsid).unwrap()), who);
    let (mut queue, memory) = (host.queue(), host.0.memory().clone());
    for nsid in [1, 3, 4] {
        let disk = host.0.namespace(nsid).unwrap();
        assert_eq!(read(&mut queue, &memory, &disk, 0), Ok(nsid as u8));
    }
    // The gap is filled first.
    assert_eq!(rig.namespace(&["add", "disk", &rig.image(2)]), "2");
}

fn sparse(at: &Path, bytes: u64) {
    std::fs::File::create(at).unwrap().set_len(bytes).unwrap();
}

#[test]
fn refusals_name_the_value_and_the_remedy_and_change_nothing() {
    let rig = Rig::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let outside = elsewhere.path().join("5.img");
    sparse(&outside, MIB);
    sparse(&rig.at("empty"), 0);
    sparse(&rig.at("odd"), 1000);
    let mut host = rig.connect();
    rig.namespace(&["add", "disk", &rig.image(3), "--nsid", "3"]);
    let [empty, odd, none] =
        ["empty", "odd", "none"].map(|name| rig.at(name).display().to_string());
    let (one, two, outside) = (rig.image(1), rig.image(2), outside.display().to_string());
    let holder = format!("1.img: in use: process {} (this one)", rig.daemon.pid());
    let before = rig.command(&["config"]);
    for (code, args, expected) in [
        (4, vec!["add", "disk", &two, "--nsid", "3"], "leave the number out for a free one"),
        (2, vec!["add", "disk", &two, "--nsid", "5"], "`namespaces` allows 1 to 4"),
        (2, vec!["add", "disk", &two, "--nsid", "0"], "`namespaces` allows 1 to 4"),
        (4, vec!["add", "disk", &one], &holder),
        (2, vec!["add", "disk", &none], "make it first, or correct the path"),
        (2, vec!["add", "disk", &empty], "truncate -s"),
        (2, vec!["add", "disk", &odd], "`truncate -s 1024` makes it one"),
        (6, vec!["add", "disk", &outside], "`paths` under [sandbox]"),
        (3, vec!["add", "desk", &two], "desk"),
        (2, vec!["remove", "disk", "1"], "Remove the device (`del`)"),
        (3, vec!["remove", "disk", "2"], "there is no namespace 2"),
        (3, vec!["resize", "disk", "2"], "there is no namespace 2"),
        (2, vec!["resize", "disk", "3", "--size", "1000"], "the next larger size is 1024"),
        (2, vec!["resize", "disk", "3", "--size", "0"], "the next larger size is 512"),
    ] {
        let said = rig.refused(code, &args);
        assert!(said.contains(expected), "{args:?}: {said}");
    }
    assert_eq!((host.active(), rig.command(&["config"])), (vec![1, 3], before));
    rig.namespace(&["add", "disk", &two]);
    rig.namespace(&["add", "disk", &rig.image(4)]);
    sparse(&rig.at("more"), MIB);
    let said = rig.refused(4, &["add", "disk", rig.at("more").to_str().unwrap()]);
    assert!(said.contains("there are 4 namespaces, as many as `namespaces` allows"), "{said}");
}
