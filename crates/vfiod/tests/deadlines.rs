//! A client that answers slowly, lets eventfds block, or has died holds up nobody: removal, revoke,
//! hot reset and SIGTERM keep their deadlines.

mod process;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use process::api::ask;
use process::{Daemon, until, vfiod};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use vfiod_client::{Client, IrqAction, IrqData, RawMessage, Socket};
use vfiod_wire::payload::DmaAccess;
use vfiod_wire::{Command as Message, HEADER_LEN, Kind};
use zerocopy::IntoBytes;

const INSTANCE: &str = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001";
const INTX: u32 = 0;
const MSI: u32 = 1;
const MSIX: u32 = 2;
const ERR: u32 = 3;
const REQ: u32 = 4;

/// A daemon: a slot with two functions, a benchmark device, a parent.
struct Rig {
    directory: TempDir,
    daemon: Daemon,
}

impl Rig {
    fn new() -> Self {
        Self::with("")
    }

    /// `mdev` has more keys of `[mdev]`.
    fn with(mdev: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let text = format!(
            "[bus.b]\nnumber = 1\n[slot.s]\nbus = \"b\"\nnumber = 2\n\
             [device.lines]\nmodel = \"gpio\"\nslot = \"s\"\nsocket = {:?}\n\
             [device.teacher]\nmodel = \"edu\"\nslot = \"s\"\nfunction = 1\nsocket = {:?}\n\
             [device.keeper]\nmodel = \"edu\"\nstate = \"retain\"\nsocket = {:?}\n\
             [device.board]\nmodel = \"bench\"\nsocket = {:?}\n\
             [parent.school]\nmodel = \"edu\"\noptions = {{ instances = 4 }}\n\
             [parent.ports]\nmodel = \"serial\"\n\
             [control]\nsocket = {:?}\n[mdev]\nsockets = {:?}\n{mdev}",
            at("lines"),
            at("teacher"),
            at("keeper"),
            at("board"),
            at("control"),
            at("mdev"),
        );
        std::fs::write(at("c.toml"), text).unwrap();
        let command = vfiod(["serve", at("c.toml").to_str().unwrap()]);
        let daemon = Daemon::serving(command, &[&at("control")]);
        Self { directory, daemon }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn connect(&self, device: &str) -> Client {
        process::connect(self.path(device)).unwrap()
    }

    fn ask(&self, method: &str, path: &str, body: Option<&str>) -> (u16, Value) {
        ask(&self.path("control"), method, path, body).unwrap()
    }

    #[track_caller]
    fn good(&self, method: &str, path: &str, body: Option<&str>) -> Value {
        let (status, answer) = self.ask(method, path, body);
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    }

    /// Makes an instance. Its socket.
    fn create(&self) -> PathBuf {
        self.create_of("school", "edu-1")
    }

    fn create_of(&self, parent: &str, kind: &str) -> PathBuf {
        let body = json!({ "parent": parent, "type": kind, "uuid": INSTANCE }).to_string();
        self.good("POST", "instances", Some(&body));
        self.path("mdev").join(format!("{INSTANCE}.sock"))
    }

    /// Whether a device has files.
    fn is_open(&self, device: &str) -> bool {
        let files = self.good("GET", "files", None);
        files.as_array().unwrap().iter().any(|file| file["device"] == device)
    }

    /// Resets the set of a device, though it is in use.
    fn hot_reset(&self, device: &str) {
        self.good("POST", &format!("sets/{}/reset?in_use=reset", self.set_of(device)), None);
    }

    /// The name of a device's set, as it stands in a path.
    fn set_of(&self, device: &str) -> String {
        let device = self.good("GET", &format!("devices/{device}"), None);
        device["set"].as_str().unwrap().replace(' ', "%20")
    }

    /// The file of a device.
    fn file(&self, device: &str) -> u64 {
        let files = self.good("GET", "files", None);
        let mut files = files.as_array().unwrap().iter();
        files.find(|file| file["device"] == device).unwrap()["number"].as_u64().unwrap()
    }
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn set_up(client: &mut Client, index: u32, fd: &OwnedFd) {
    let fds = [fd.as_fd()];
    client.set_irqs(index, 0, 1, IrqAction::Trigger, IrqData::EventFds(&fds)).unwrap();
}

fn is_readable(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).unwrap() > 0
}

/// Fills the counter and makes the eventfd blocking: a write blocks now.
fn block(fd: impl AsFd) {
    fcntl_setfl(&fd, OFlags::NONBLOCK).unwrap();
    // Also where something is in it already.
    let _ = rustix::io::read(&fd, &mut [0; 8]);
    rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    fcntl_setfl(&fd, OFlags::empty()).unwrap();
}

/// A second process of this program that has a device open; see [`holder`].
struct Holder {
    process: Child,
    /// Its descriptor of the region that can be mapped, if it was to ask for one.
    memory: Option<u32>,
}

impl Holder {
    fn new(socket: &Path, region: Option<u32>) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "holder", "--nocapture"])
            .env("HOLD_SOCKET", socket)
            .env("HOLD_REGION", region.map_or(String::new(), |region| region.to_string()))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let held = |line: &String| line.starts_with("holding ");
        let line = lines.map(Result::unwrap).find(held).expect("it has the device open");
        let memory = line.strip_prefix("holding ").and_then(|number| number.parse().ok());
        Self { process, memory }
    }

    /// A descriptor of the memory that it was given.
    fn memory(&self) -> File {
        let path = format!("/proc/{}/fd/{}", self.process.id(), self.memory.unwrap());
        File::options().read(true).write(true).open(path).unwrap()
    }

    /// Ends it by SIGKILL. It is dead when this returns.
    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// No test: what a [`Holder`] runs.
#[test]
fn holder() {
    let Some(socket) = std::env::var_os("HOLD_SOCKET") else { return };
    let mut client = process::connect(&socket).unwrap();
    let region = std::env::var("HOLD_REGION").unwrap().parse::<u32>().ok();
    let fd = region.map(|region| client.region_info(region).unwrap().fd.unwrap());
    println!("\nholding {}", fd.as_ref().map_or(String::new(), |fd| fd.as_raw_fd().to_string()));
    loop {
        thread::park();
    }
}

#[test]
fn sigterm_asks_the_users_of_all_devices_before_it_revokes_one() {
    let rig = Rig::new();
    let mut clients = ["lines", "teacher", "keeper"].map(|device| rig.connect(device));
    let socket = rig.create();
    let mut instance = process::connect(&socket).unwrap();
    let requests: Vec<_> = clients
        .iter_mut()
        .chain([&mut instance])
        .map(|client| {
            let request = event();
            set_up(client, REQ, &request);
            request
        })
        .collect();
    let Rig { daemon, .. } = rig;
    daemon.signal(Signal::TERM);
    until("the requests", || requests.iter().all(is_readable));
    let mut daemon = daemon;
    let status = daemon.end();
    let log = daemon.said();
    assert_eq!(status.code(), Some(0), "{log}");
    drop((clients, instance));
    let revoked = log.find("file revoked").unwrap_or_else(|| panic!("none was revoked: {log}"));
    for device in ["lines", "teacher", "keeper", INSTANCE] {
        let asked = format!("asking users to close the device device=\"{device}\"");
        let asked = log.find(&asked).unwrap_or_else(|| panic!("{device} was not asked: {log}"));
        assert!(asked < revoked, "{device} was asked too late: {log}");
    }
}

#[test]
fn signals_to_finish_within_a_second_are_one_request() {
    let rig = Rig::new();
    // Keeps the daemon for its grace.
    let _client = rig.connect("teacher");
    let mut daemon = rig.daemon;
    // Both wait when it goes on, however long this process may stand still between the two. Two, as the
    // kernel merges signals of one number.
    for signal in [Signal::STOP, Signal::TERM, Signal::INT, Signal::CONT] {
        daemon.signal(signal);
    }
    let status = daemon.end();
    let log = daemon.said();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(log.contains("finished"), "{log}");
}

#[test]
fn process_that_has_died_is_no_user_of_an_instance() {
    let rig = Rig::new();
    for round in 0..500 {
        let socket = rig.create();
        let mut holder = Holder::new(&socket, None);
        if round == 0 {
            let (status, _) = rig.ask("DELETE", &format!("instances/{INSTANCE}"), None);
            assert_eq!(status, 409, "it lives, and has the device open");
        }
        holder.kill();
        let (status, answer) = rig.ask("DELETE", &format!("instances/{INSTANCE}"), None);
        assert_eq!(status, 204, "round {round}: {answer}");
    }
}

#[test]
fn process_that_has_died_is_no_user_of_a_set_or_a_configured_device() {
    let rig = Rig::new();
    for round in 0..50 {
        let mut holder = Holder::new(&rig.path("teacher"), None);
        holder.kill();
        let set = rig.set_of("teacher");
        let (status, answer) = rig.ask("POST", &format!("sets/{set}/reset"), None);
        assert_eq!(status, 204, "round {round}: {answer}");
    }
    let mut holder = Holder::new(&rig.path("keeper"), None);
    holder.kill();
    rig.good("DELETE", "devices/keeper", None);
}

/// An attribute that changes only while nobody has the card open.
#[test]
fn process_that_has_died_does_not_keep_an_attribute_from_being_changed() {
    let rig = Rig::new();
    let socket = rig.create_of("ports", "mtty-1");
    let path = format!("instances/{INSTANCE}");
    for round in 0..50 {
        let mut holder = Holder::new(&socket, None);
        let body = json!({ "attributes": [{ "name": "backend", "value": "none" }] }).to_string();
        if round == 0 {
            let (status, answer) = rig.ask("PATCH", &path, Some(&body));
            assert_eq!(status, 409, "it lives, and has the card open: {answer}");
        }
        holder.kill();
        let (status, answer) = rig.ask("PATCH", &path, Some(&body));
        assert_eq!(status, 200, "round {round}: {answer}");
    }
}

/// The same for writes into the view for mdevctl.
#[test]
fn process_that_has_died_is_no_user_in_the_view() {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("SKIPPED: only root mounts without help");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let rig = Rig::with(&format!("sysfs = {root:?}\n"));
    let instance = root.join("sys/bus/mdev/devices").join(INSTANCE);
    for round in 0..50 {
        let socket = rig.create_of("ports", "mtty-1");
        let mut holder = Holder::new(&socket, None);
        holder.kill();
        let set = std::fs::write(instance.join("backend"), "none");
        assert!(set.is_ok(), "round {round}: {set:?}");
        let mut holder = Holder::new(&socket, None);
        if round == 0 {
            let busy = std::fs::write(instance.join("remove"), "1").unwrap_err();
            assert_eq!(busy.raw_os_error(), Some(16), "it lives, and has the card open");
        }
        holder.kill();
        let removed = std::fs::write(instance.join("remove"), "1");
        assert!(removed.is_ok(), "round {round}: {removed:?}");
    }
}

/// Every eventfd that a client can give, filled and blocking, before or after it is set up.
#[test]
fn eventfds_that_block_hold_up_nothing() {
    let rig = Rig::new();
    let socket = rig.create();
    for device in [rig.path("teacher"), socket.clone()] {
        for early in [true, false] {
            let mut client = process::connect(&device).unwrap();
            client.region_write(7, 4, &[6, 0]).unwrap();
            let fds: Vec<_> = [INTX, ERR, REQ].iter().map(|_| event()).collect();
            let prepare = |now: bool| now.then(|| fds.iter().for_each(block));
            prepare(early);
            for (index, fd) in [INTX, ERR, REQ].into_iter().zip(&fds) {
                set_up(&mut client, index, fd);
            }
            let unmask = event();
            let data = [unmask.as_fd()];
            client.set_irqs(INTX, 0, 1, IrqAction::Unmask, IrqData::EventFds(&data)).unwrap();
            prepare(!early);
            // In a callback; by a task: a factorial is computed, with an interrupt.
            client.region_write(0, 0x60, &1u32.to_le_bytes()).unwrap();
            client.region_write(0, 0x20, &0x80u32.to_le_bytes()).unwrap();
            client.region_write(0, 0x08, &5u32.to_le_bytes()).unwrap();
            // By the client itself, and by the unmasking eventfd, which stays readable.
            for index in [INTX, ERR, REQ] {
                let loopback = client.set_irqs(index, 0, 1, IrqAction::Trigger, IrqData::None);
                assert!(loopback.is_ok() || loopback.unwrap_err().remote_errno() == Some(22));
            }
            block(&unmask);
            client.reset().unwrap();
            client.region_write(0, 0x60, &1u32.to_le_bytes()).unwrap();
            client.device_info().unwrap();
            let by_msi = event();
            block(&by_msi);
            set_up(&mut client, MSI, &by_msi);
            client.region_write(0, 0x60, &1u32.to_le_bytes()).unwrap();
            if device == socket {
                if !early {
                    let path = format!("instances/{INSTANCE}?policy=deadline&deadline=1s");
                    rig.good("DELETE", &path, None);
                    until("the removal", || !socket.exists() && !rig.is_open(INSTANCE));
                }
            } else {
                rig.hot_reset("teacher");
                client.device_info().unwrap();
                rig.good("DELETE", &format!("files/{}", rig.file("teacher")), None);
                until("the revoke", || !rig.is_open("teacher"));
            }
        }
    }
    // Doorbells and a whole batch of vectors; at the end of the daemon.
    let mut client = rig.connect("board");
    client.region_write(7, 4, &[6, 0]).unwrap();
    let vectors: Vec<_> = (0..8).map(|_| event()).collect();
    let fds: Vec<BorrowedFd<'_>> = vectors.iter().map(AsFd::as_fd).collect();
    client.set_irqs(MSIX, 0, 8, IrqAction::Trigger, IrqData::EventFds(&fds)).unwrap();
    let (_, bells) = client.region_io_fds(2).unwrap();
    assert!(!bells.is_empty());
    vectors.iter().for_each(block);
    bells.iter().for_each(block);
    // Thousands of interrupts, each of which would block.
    for (offset, value) in [(0x08, 10_000u64), (0x00, 5)] {
        client.region_write(2, offset, &value.to_le_bytes()).unwrap();
    }
    rig.hot_reset("board");
    bells.iter().for_each(block);
    vectors.iter().for_each(block);
    let (status, log) = rig.daemon.terminate(Signal::TERM);
    assert_eq!(status.code(), Some(0), "{log}");
}

/// Answers each DMA message one byte at a time, for ever.
fn drip(socket: &Socket, request: &RawMessage, stop: &AtomicBool, sent: &AtomicUsize) {
    let payload = [&request.payload[..DmaAccess::LEN], &[0; 4096][..]].concat();
    let reply = [request.header.reply(payload.len()).as_bytes(), &payload].concat();
    assert!(reply.len() > HEADER_LEN);
    for byte in reply.chunks(1) {
        if stop.load(Ordering::SeqCst) || socket.send(byte, &[]).is_err() {
            return;
        }
        sent.fetch_add(1, Ordering::SeqCst);
        // Slower than the test is patient, altogether.
        thread::sleep(Duration::from_millis(20));
    }
}

/// Starts a transfer of a page, whose reply never ends.
fn start_slow_transfer(client: &mut Client) {
    client.region_write(7, 4, &[6, 0]).unwrap();
    client.dma_map(0x10_0000, 1 << 20, None).unwrap();
    for (offset, value) in [(0x80, 0x10_0000u64), (0x88, 0x40000), (0x90, 4096)] {
        client.region_write(0, offset, &value.to_le_bytes()).unwrap();
    }
    // Nothing is received while this is sent: the next message is the device's.
    client.region_post(0, 0x98, &1u64.to_le_bytes()).unwrap();
}

#[test]
fn client_that_replies_to_dma_byte_by_byte_holds_up_nothing() {
    let rig = Rig::new();
    for way in ["revoke", "remove", "hot reset", "sigterm"] {
        let device = if way == "remove" { rig.create() } else { rig.path("teacher") };
        let mut client = process::connect(&device).unwrap();
        start_slow_transfer(&mut client);
        let request = client.socket().receive_message().unwrap();
        assert_eq!(request.header.kind(), Kind::Command);
        assert_eq!(request.header.command, Message::DmaRead as u16);
        let (stop, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
        let done = thread::scope(|scope| {
            scope.spawn(|| drip(client.socket(), &request, &stop, &sent));
            until("the first bytes", || sent.load(Ordering::SeqCst) > 3);
            match way {
                "revoke" => {
                    rig.good("DELETE", &format!("files/{}", rig.file("teacher")), None);
                }
                "remove" => {
                    let path = format!("instances/{INSTANCE}?policy=deadline&deadline=1s");
                    rig.good("DELETE", &path, None);
                    until("the removal", || !device.exists() && !rig.is_open(INSTANCE));
                }
                "hot reset" => {
                    // The transfer is dropped by the reset: its reply is waited for by nobody.
                    rig.hot_reset("teacher");
                }
                _ => {
                    rig.daemon.signal(Signal::TERM);
                    until("the end", || !rig.path("control").exists());
                }
            }
            // The client was still at it: nothing had waited for its reply.
            let done = sent.load(Ordering::SeqCst);
            stop.store(true, Ordering::SeqCst);
            done
        });
        assert!(done < 4096, "{way}: {done} bytes");
        drop(client);
        if way != "sigterm" {
            until("the release", || !rig.is_open("teacher"));
        }
    }
    let mut daemon = rig.daemon;
    let status = daemon.end();
    assert_eq!(status.code(), Some(0), "{}", daemon.said());
}

/// The transfer fails, and the device is told so, while the client goes on sending.
#[test]
fn transfer_on_the_second_socket_ends_at_its_deadline() {
    let rig = Rig::new();
    let socket = rig.path("teacher");
    let mut client = Client::connect_with(&socket, process::options().twin_socket()).unwrap();
    start_slow_transfer(&mut client);
    let twin = client.twin().unwrap().as_fd().try_clone_to_owned().unwrap();
    let twin = Socket::from_fd(twin, process::PATIENCE).unwrap();
    let request = twin.receive_message().unwrap();
    let (stop, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| drip(&twin, &request, &stop, &sent));
        until("the end of the transfer", || {
            let mut command = [0; 4];
            client.region_read(0, 0x98, &mut command).unwrap();
            u32::from_le_bytes(command) & 1 == 0
        });
        assert!(sent.load(Ordering::SeqCst) < 4096);
        stop.store(true, Ordering::SeqCst);
    });
}

/// How a client leaves.
#[derive(Clone, Copy, Debug)]
enum Way {
    Disconnects,
    IsKilled,
    IsRevoked,
}

/// What it had mapped was handed to this process, which keeps it.
#[test]
fn memory_that_a_departed_client_has_mapped_is_no_longer_the_devices() {
    const REGION: u32 = 0;
    let rig = Rig::new();
    let socket = rig.path("board");
    for way in [Way::Disconnects, Way::IsKilled, Way::IsRevoked] {
        let memory = match way {
            Way::Disconnects => {
                let mut client = rig.connect("board");
                File::from(client.region_info(REGION).unwrap().fd.unwrap())
            }
            Way::IsKilled => {
                let mut holder = Holder::new(&socket, Some(REGION));
                let memory = holder.memory();
                holder.kill();
                memory
            }
            Way::IsRevoked => {
                let holder = Holder::new(&socket, Some(REGION));
                let memory = holder.memory();
                rig.good("DELETE", &format!("files/{}", rig.file("board")), None);
                memory
            }
        };
        until("the release", || !rig.is_open("board"));
        // The device's other regions are behind this one.
        let offset = 0x800;
        memory.write_all_at(b"evil", offset).unwrap();
        let mut client = rig.connect("board");
        let mut data = [0xff; 4];
        client.region_read(REGION, 0x800, &mut data).unwrap();
        assert_eq!(data, [0; 4], "{way:?}: the next client's device has what the last one stored");
        client.region_write(REGION, 0x800, b"mine").unwrap();
        memory.read_exact_at(&mut data, offset).unwrap();
        assert_eq!(&data, b"evil", "{way:?}: the last client sees what the next one stores");
        let mut again = [0; 4];
        client.region_read(REGION, 0x800, &mut again).unwrap();
        assert_eq!(&again, b"mine");
        drop(client);
        until("the release", || !rig.is_open("board"));
    }
}

/// Also on a device that retains its state: registers are there again, bus mastering is off.
#[test]
fn client_that_comes_back_finds_its_registers_and_no_bus_mastering() {
    let rig = Rig::new();
    let mut client = rig.connect("keeper");
    client.region_write(7, 4, &[6, 0]).unwrap();
    client.region_write(0, 0x04, &0x1234_5678u32.to_le_bytes()).unwrap();
    drop(client);
    until("the release", || !rig.is_open("keeper"));
    let mut client = rig.connect("keeper");
    let (mut liveness, mut command) = ([0; 4], [0; 2]);
    client.region_read(0, 0x04, &mut liveness).unwrap();
    client.region_read(7, 4, &mut command).unwrap();
    assert_eq!(u32::from_le_bytes(liveness), !0x1234_5678);
    assert_eq!(u16::from_le_bytes(command), 2, "memory space is on, bus mastering off");
}
