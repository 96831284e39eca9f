//! Whatever the clients of some devices take of what all devices share, the others have their part.

mod process;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use process::api::ask;
use process::{Daemon, bad, good, vfiod};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, fstat, ftruncate, memfd_create};
use rustix::io::{Errno, ioctl_fionread, pwrite};
use rustix::process::Signal;
use tempfile::TempDir;
use vfiod_client::{Client, IrqAction, IrqData};
use vfiod_wire::dirty::{DMA_LOGGING_REPORT, DMA_LOGGING_START, DMA_LOGGING_STOP};
use vfiod_wire::payload::{DmaLoggingControl, DmaLoggingRange, DmaLoggingReport, RegionAccess};
use vfiod_wire::{Command, Header};
use zerocopy::IntoBytes;

const MSI: u32 = 1;
const PAGE: u64 = 0x1000;
/// Devices whose clients take what they get. One more is a stranger's.
const GREEDY: usize = 8;
/// Memory that a connection is charged for what the kernel may keep for it.
const SOCKET: u64 = 11_123;

const EDU: &str = "model = \"edu\"";

/// A daemon with multi-open devices `d0`, `d1`, …
struct Rig {
    directory: TempDir,
    daemon: Daemon,
}

impl Rig {
    /// With so many edu devices, and limits.
    fn new(devices: usize, limits: &str) -> Self {
        Self::with(&format!("[limits]\n{limits}\n"), &vec![EDU; devices])
    }

    /// With devices of which these are the keys, and what is to be configured besides.
    fn with(besides: &str, devices: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let mut text = format!("{besides}[control]\nsocket = {:?}\n", at("control"));
        for (number, keys) in devices.iter().enumerate() {
            let device = format!("d{number}");
            let socket = at(&device);
            text += &format!("[device.{device}]\n{keys}\nopen = \"multi\"\nsocket = {socket:?}\n");
        }
        std::fs::write(at("c.toml"), text).unwrap();
        let command = vfiod(["serve", at("c.toml").to_str().unwrap()]);
        let daemon = Daemon::serving(command, &[&at("control")]);
        Self { directory, daemon }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn connect(&self, device: usize) -> Client {
        process::connect(self.path(&format!("d{device}"))).unwrap()
    }

    /// How many files there are.
    fn files(&self) -> usize {
        let (_, answer) = ask(&self.path("control"), "GET", "files", None).unwrap();
        answer.as_array().unwrap().len()
    }

    /// What `show` says of a limit of a device: used and limit of its share, and of the common part.
    fn limit(&self, device: usize, name: &str) -> [u64; 4] {
        let path = format!("devices/d{device}");
        let (_, answer) = ask(&self.path("control"), "GET", &path, None).unwrap();
        let limits = answer["limits"].as_array().unwrap();
        let limit = limits.iter().find(|limit| limit["name"] == name).unwrap();
        let keys = ["reserved_used", "reserved", "common_used", "common"];
        keys.map(|key| limit[key].as_u64().unwrap())
    }
}

fn memory() -> OwnedFd {
    let memory = memfd_create("quota", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&memory, PAGE).unwrap();
    memory
}

/// Maps new files until that is refused. How many there are, and the errno.
fn map_all(client: &mut Client, most: u64) -> (u64, Option<Errno>) {
    for number in 0..most {
        match client.dma_map(number * PAGE, PAGE, Some((memory().as_fd(), 0))) {
            Ok(()) => {}
            Err(error) => {
                let errno = error.remote_errno().unwrap();
                return (number, Some(Errno::from_raw_os_error(errno as i32)));
            }
        }
    }
    (most, None)
}

#[test]
fn mappings_that_clients_of_eight_devices_take_leave_a_share_to_a_stranger() {
    const SHARE: u64 = 3;
    let rig = Rig::new(GREEDY + 1, &format!("mappings = 200\nreserved_mappings = {SHARE}"));
    let mut greedy: Vec<_> = (0..GREEDY).map(|device| rig.connect(device)).collect();
    let taken: Vec<_> = greedy.iter_mut().map(|client| map_all(client, 400)).collect();
    assert!(taken.iter().all(|(_, errno)| *errno == Some(Errno::NOSPC)), "{taken:?}");
    // Each device has one mapping itself, of its own memory.
    let common = 200 - (GREEDY as u64 + 1) * (SHARE + 1);
    let all: u64 = taken.iter().map(|(count, _)| count).sum();
    assert_eq!(all, GREEDY as u64 * SHARE + common / 2);
    assert_eq!(rig.limit(0, "mappings"), [SHARE, SHARE, common / 2, common]);

    let mut stranger = rig.connect(GREEDY);
    assert_eq!(map_all(&mut stranger, SHARE), (SHARE, None));
    // A file that is not used any more makes room for the next one.
    for _ in 0..2 * SHARE {
        stranger.dma_unmap(0, PAGE).unwrap();
        stranger.dma_map(0, PAGE, Some((memory().as_fd(), 0))).unwrap();
    }
    assert_eq!(rig.limit(GREEDY, "mappings"), [SHARE, SHARE, common / 2, common]);

    // What a client has taken is given back with its end.
    drop(greedy);
    process::until("the mappings are given back", || rig.limit(0, "mappings")[2] == 0);
    let (_, said) = rig.daemon.terminate(Signal::TERM);
    assert!(said.contains("limits.mappings"), "no line names the limit: {said}");
}

#[test]
fn address_space_that_clients_take_leaves_a_share_to_a_stranger() {
    const SHARE: u64 = 4 * PAGE;
    let limits = format!("address_space = {}\nreserved_address_space = {SHARE}", 100 * PAGE);
    let rig = Rig::new(GREEDY + 1, &limits);
    let mut greedy: Vec<_> = (0..GREEDY).map(|device| rig.connect(device)).collect();
    let taken: Vec<_> = greedy.iter_mut().map(|client| map_all(client, 200)).collect();
    assert!(taken.iter().all(|(_, errno)| *errno == Some(Errno::NOMEM)), "{taken:?}");
    assert_eq!(map_all(&mut rig.connect(GREEDY), 4), (4, None));
}

#[test]
fn descriptors_that_clients_take_leave_a_share_to_a_stranger() {
    const SHARE: u64 = 8;
    let rig = Rig::new(GREEDY + 1, &format!("descriptors = 200\nreserved_descriptors = {SHARE}"));
    let mut greedy: Vec<_> = (0..GREEDY).map(|device| rig.connect(device)).collect();
    let taken: Vec<_> = greedy.iter_mut().map(|client| map_all(client, 400)).collect();
    assert!(taken.iter().all(|(_, errno)| *errno == Some(Errno::MFILE)), "{taken:?}");
    // Another connection of the same user to one of their devices is more than it may have.
    assert!(process::connect(rig.path("d0")).is_err());

    let mut stranger = rig.connect(GREEDY);
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let fds = [event.as_fd()];
    stranger.set_irqs(MSI, 0, 1, IrqAction::Trigger, IrqData::EventFds(&fds)).unwrap();
    // Its connection (two), the eventfd, and one that has arrived and is not carried out yet.
    assert_eq!(map_all(&mut stranger, SHARE - 4), (SHARE - 4, None));
    assert_eq!(rig.limit(GREEDY, "descriptors")[..2], [SHARE - 1, SHARE]);
    drop(stranger);
    process::until("its descriptors are given back", || {
        rig.limit(GREEDY, "descriptors")[..2] == [0, SHARE]
    });
    let (_, said) = rig.daemon.terminate(Signal::TERM);
    assert!(said.contains("limits.descriptors"), "no line names the limit: {said}");
}

/// Each client sends all of a long message but its end.
#[test]
fn memory_that_clients_keep_waiting_leaves_a_share_to_a_stranger() {
    const SHARE: u64 = 100_000;
    let rig = Rig::new(GREEDY + 1, &format!("memory = 4_000_000\nreserved_memory = {SHARE}"));
    let write = |size: usize| {
        let access = RegionAccess { offset: 0, region: 0, count: size as u32 };
        let header = Header::command(7, Command::RegionWrite, RegionAccess::LEN + size, false);
        [header.as_bytes(), access.as_bytes(), &vec![0; size]].concat()
    };
    let clients: Vec<_> = (0..GREEDY).map(|device| rig.connect(device)).collect();
    // One such message is within what a user may have, and two are not.
    let unfinished = &write(1_000_000)[..1_000_000];
    for client in &clients {
        // Fails where the connection is ended amid it.
        let _ = client.socket().send(unfinished, &[]);
    }
    process::until("the others are ended", || rig.files() == 1);
    let stranger = rig.connect(GREEDY);
    let message = write(SHARE as usize / 2);
    let (first, last) = message.split_at(message.len() - 1);
    stranger.socket().send(first, &[]).unwrap();
    process::until("it is kept", || rig.limit(GREEDY, "memory")[0] == SOCKET + first.len() as u64);
    stranger.socket().send(last, &[]).unwrap();
    assert_eq!(stranger.socket().receive_message().unwrap().header.id, 7);
    let (_, said) = rig.daemon.terminate(Signal::TERM);
    assert!(said.contains("limits.memory"), "no line names the limit: {said}");
}

/// Each client begins a long reply on its second socket.
#[test]
fn memory_that_waits_on_second_sockets_leaves_a_share_to_a_stranger() {
    const SHARE: u64 = 100_000;
    let rig = Rig::new(GREEDY + 1, &format!("memory = 4_000_000\nreserved_memory = {SHARE}"));
    let connect = |device| {
        let path = rig.path(&format!("d{device}"));
        Client::connect_with(path, process::options().twin_socket()).unwrap()
    };
    let clients: Vec<_> = (0..GREEDY).map(connect).collect();
    let reply = Header::command(1, Command::DmaRead, 0, false).reply(1_000_000);
    let unfinished = [reply.as_bytes(), &vec![0; 1_000_000 - 1]].concat();
    let send = |client: &Client| _ = client.twin().unwrap().send(&unfinished, &[]);
    clients.iter().for_each(send);
    let ended = |client: &Client| {
        let mut fds = [PollFd::new(client.twin().unwrap(), PollFlags::HUP)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    };
    process::until("the other second sockets are closed", || {
        clients.iter().filter(|client| ended(client)).count() == GREEDY - 1
    });
    let [_, _, used, common] = rig.limit(0, "memory");
    assert!((1_000_000 - SHARE..=common / 2).contains(&used), "{used} of {common}");
    assert_eq!(rig.files(), GREEDY, "the connections themselves live");
    let stranger = connect(GREEDY);
    stranger.twin().unwrap().send(&unfinished[..SHARE as usize / 2], &[]).unwrap();
    process::until("it is kept", || rig.limit(GREEDY, "memory")[0] > SHARE / 2);
    assert!(!ended(&stranger));
    drop((clients, stranger));
    process::until("it is given back", || {
        rig.limit(GREEDY, "memory")[0] == 0 && rig.limit(0, "memory")[2] == 0
    });
}

/// Clients take no replies, and most connections have ended. What lies in the kernel is the daemon's memory.
#[test]
fn replies_that_clients_do_not_read_are_kept_within_the_limit_of_memory() {
    const MEMORY: u64 = 24_000_000;
    const CLIENTS: usize = 150;
    const REPLY: u32 = 200_000;
    let limits = format!("[limits]\nmemory = {MEMORY}\nreserved_memory = 100_000\n");
    let rig = Rig::with(&limits, &["model = \"bench\"", "model = \"bench\""]);
    let read = RegionAccess { offset: 0, region: 0, count: REPLY };
    let header = Header::command(7, Command::RegionRead, RegionAccess::LEN, false);
    let request = [header.as_bytes(), read.as_bytes()].concat();
    // What makes no sense ends a connection once what was sent before it has its reply.
    let nonsense = [0xff; 16];
    let unread = |client: &Client| ioctl_fionread(client.socket().as_fd()).unwrap();
    let has_ended = |client: &Client| {
        let mut fds = [PollFd::new(client.socket(), PollFlags::HUP)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    };
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        // Once its user has all that it may have, a connection ends.
        let Ok(client) = process::connect(rig.path("d0")) else { break };
        let _ = client.socket().send(&[&request[..], &nonsense].concat(), &[]);
        process::until("something lies there", || unread(&client) > 0 || has_ended(&client));
        clients.push(client);
    }
    let kept: u64 = clients.iter().map(unread).sum();
    assert!(kept > 1_000_000 && kept <= MEMORY / 2, "{kept} bytes lie in the kernel");
    // Another device has its share.
    rig.connect(1).device_info().unwrap();
    drop(clients);
    process::until("it is given back", || rig.limit(0, "memory")[0] == 0);
    rig.connect(0).device_info().unwrap();
}

/// Each client maps the same page again and again.
#[test]
fn dma_mappings_that_clients_make_leave_a_share_of_memory_to_a_stranger() {
    const FOR_MAPPINGS: u64 = 1 << 16;
    const SHARE: u64 = SOCKET + FOR_MAPPINGS;
    /// What a mapping is charged as.
    const MAPPING: u64 = 128;
    let rig = Rig::new(GREEDY + 1, &format!("memory = 2_000_000\nreserved_memory = {SHARE}"));
    let map_all = |client: &mut Client, most: u64| {
        let memory = memory();
        (0..most).find_map(|number| {
            let mapped = client.dma_map(number * PAGE, PAGE, Some((memory.as_fd(), 0)));
            mapped.err().map(|error| (number, error.remote_errno().unwrap()))
        })
    };
    let mut greedy: Vec<_> = (0..GREEDY).map(|device| rig.connect(device)).collect();
    let taken: Vec<_> =
        greedy.iter_mut().map(|client| map_all(client, 20_000).expect("a limit")).collect();
    let enomem = Errno::NOMEM.raw_os_error() as u32;
    assert!(taken.iter().all(|(_, errno)| *errno == enomem), "{taken:?}");
    let [_, _, used, common] = rig.limit(0, "memory");
    assert!((common / 2 - 64 * MAPPING..=common / 2).contains(&used), "{used} of {common}");
    // What is unmapped can be mapped again; nobody else notices.
    greedy[0].dma_unmap(0, PAGE).unwrap();
    greedy[0].dma_map(0, PAGE, Some((memory().as_fd(), 0))).unwrap();
    let mut stranger = rig.connect(GREEDY);
    assert_eq!(map_all(&mut stranger, FOR_MAPPINGS / MAPPING), None);
    assert_eq!(rig.limit(GREEDY, "memory")[0], SHARE);
    stranger.dma_unmap_all().unwrap();
    assert_eq!(rig.limit(GREEDY, "memory")[0], SOCKET);
    drop(greedy);
    process::until("it is given back", || rig.limit(0, "memory")[2] == 0);
}

/// The device writes where its client tells it, in places of which each needs a part of its own in the log.
#[test]
fn log_of_written_pages_is_of_its_clients_memory() {
    const SHARE: u64 = SOCKET + 60_000;
    /// What is charged at once: for 64 mappings, and for 64 parts of the log.
    const MAPPINGS: u64 = 64 * 128;
    const LOG: u64 = 64 * 640;
    /// Addresses for which the log has one part.
    const PART: u64 = 16 << 20;
    /// The configuration space, and the registers of edu.
    const CONFIG: u32 = 7;
    const REGISTERS: u32 = 0;
    let edu = "model = \"edu\"\noptions = { dma_mask = 0xff_ffff_ffff }";
    let limits = format!("[limits]\nmemory = {}\nreserved_memory = {SHARE}\n", 2 * SHARE + 10_000);
    let rig = Rig::with(&limits, &[edu, edu]);
    let mut client = rig.connect(0);
    client.region_write(CONFIG, 4, &[6]).unwrap();
    let shared = memory();
    let map = |client: &mut Client, number: u64| {
        client.dma_map(number * PART, PAGE, Some((shared.as_fd(), 0))).unwrap();
    };
    (0..65).for_each(|number| map(&mut client, number));
    let write = |client: &mut Client, number: u64| {
        for (register, value) in [(0x80, 0x40000), (0x88, number * PART), (0x90, 4), (0x98, 3)] {
            client.region_write(REGISTERS, register, &u64::to_le_bytes(value)).unwrap();
        }
        process::until("the device has written", || {
            let mut command = [0; 8];
            client.region_read(REGISTERS, 0x98, &mut command).unwrap();
            command[0] & 1 == 0
        });
    };
    let used = || rig.limit(0, "memory")[0] - SOCKET;
    assert_eq!(used(), 2 * MAPPINGS);
    let range = DmaLoggingRange { iova: 0, length: PAGE };
    let control = DmaLoggingControl { page_size: PAGE, num_ranges: 1, reserved: 0 };
    let start = [control.as_bytes(), range.as_bytes()].concat();
    let asked = DmaLoggingReport { iova: 0, length: 2 * PAGE, page_size: PAGE };
    let report = |client: &mut Client| {
        let reply = client.feature_get(DMA_LOGGING_REPORT, asked.as_bytes());
        reply.map(|reply| reply[asked.as_bytes().len()]).map_err(|error| error.remote_errno())
    };
    let enomem = Some(Errno::NOMEM.raw_os_error() as u32);

    client.feature_set(DMA_LOGGING_START, &start).unwrap();
    assert_eq!(used(), 2 * MAPPINGS + LOG, "the log is charged to nobody");
    (0..64).for_each(|number| write(&mut client, number));
    assert_eq!(report(&mut client), Ok(1));
    // As much again is more than it may have. The device goes on.
    write(&mut client, 64);
    write(&mut client, 0);
    assert_eq!(report(&mut client), Err(enomem));
    client.feature_set(DMA_LOGGING_STOP, &[]).unwrap();
    assert_eq!(used(), 2 * MAPPINGS);
    client.feature_set(DMA_LOGGING_START, &start).unwrap();
    write(&mut client, 0);
    assert_eq!(report(&mut client), Ok(1));

    // A client that has used up its memory starts none; a stranger does.
    client.feature_set(DMA_LOGGING_STOP, &[]).unwrap();
    (65..300).for_each(|number| map(&mut client, number));
    let refused = client.feature_set(DMA_LOGGING_START, &start);
    assert_eq!(refused.map_err(|error| error.remote_errno()), Err(enomem));
    let mut stranger = rig.connect(1);
    stranger.feature_set(DMA_LOGGING_START, &start).unwrap();
    let (_, said) = rig.daemon.terminate(Signal::TERM);
    assert!(said.contains("the log of dirty pages was given up"), "{said}");
}

/// Whoever has the descriptor of what a device shares can fill the file, and keep it when it has left.
#[test]
fn what_a_client_can_fill_of_a_devices_memory_is_what_show_says_is_mappable() {
    let rig =
        Rig::with("", &["model = \"bench\"\nstate = \"retain\"\noptions = { polled = true }"]);
    let mut client = rig.connect(0);
    let regions: Vec<_> = (0..client.device_info().unwrap().num_regions)
        .map(|index| client.region_info(index).unwrap())
        .filter(|region| region.fd.is_some())
        .collect();
    assert_eq!(regions.len(), 2, "the memory, and a page");
    let (_, device) = ask(&rig.path("control"), "GET", "devices/d0", None).unwrap();
    let shown = device["regions"].as_array().unwrap();
    let mappable: u64 = shown.iter().map(|region| region["mappable"].as_u64().unwrap()).sum();
    for region in &regions {
        let file = region.fd.as_ref().unwrap();
        let room = fstat(file).unwrap().st_size as u64;
        assert_eq!(room, mappable, "bytes that a client can fill");
        let fill = |from, len| fallocate(file, FallocateFlags::empty(), from, len);
        assert_eq!(fill(0, room), Ok(()));
        for from in [room, 1 << 40, 16 << 40] {
            assert_eq!(fill(from, PAGE), Err(Errno::PERM), "{from:#x}");
            assert_eq!(pwrite(file, b"x", from), Err(Errno::PERM), "{from:#x}");
        }
    }
    // Each region is its own part of it.
    for (number, region) in (1..).zip(&regions) {
        let info = &region.reply.info;
        let [area] = &region.reply.areas[..] else { panic!("{:?}", region.reply) };
        pwrite(region.fd.as_ref().unwrap(), &[number; 4], info.offset + area.offset).unwrap();
    }
    for (number, region) in (1..).zip(&regions) {
        let mut data = [0; 4];
        client
            .region_read(region.reply.info.index, region.reply.areas[0].offset, &mut data)
            .unwrap();
        assert_eq!(data, [number; 4], "region {}", region.reply.info.index);
    }
}

#[test]
fn show_has_the_limits_and_what_is_in_use() {
    let rig = Rig::new(1, "common_connections = 10\nreserved_connections = 2");
    let _client = rig.connect(0);
    let text = good(["show", "d0", "--control", rig.path("control").to_str().unwrap()]);
    let has = |line: &str| text.lines().any(|shown| shown.contains(line));
    let connections = "connections: reserved 2, reserved used 1, common 10, common used 0";
    assert!(has(connections), "{text}");
    let names = ["threads", "descriptors", "mappings", "address_space", "page_tables", "memory"];
    assert!(names.iter().all(|name| has(&format!("{name}: reserved "))), "{text}");
}

#[test]
fn device_whose_reserved_share_is_not_there_is_refused() {
    let rig = Rig::new(2, "mappings = 100\nreserved_mappings = 40");
    let (control, socket) = (rig.path("control"), rig.path("d2"));
    let add = ["add", "d2", "--device", "edu", "--control", control.to_str().unwrap()];
    let said = bad(1, add.into_iter().chain(["--socket-path", socket.to_str().unwrap()]));
    assert!(said.contains("d2 has 17 of its share of 40 mappings"), "{said}");
    rig.connect(1).device_info().unwrap();
}

#[test]
fn shares_that_devices_cannot_have_together_are_a_mistake_of_the_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let device = |name: &str| format!("[device.{name}]\n{EDU}\nsocket = {:?}\n", path(name));
    let two = device("first") + &device("second");
    let file = path("c.toml").display().to_string();
    let write = |reserved: u32| {
        let limits = format!("[limits]\nmappings = 100\nreserved_mappings = {reserved}\n");
        std::fs::write(&file, limits + &two).unwrap();
    };
    write(60);
    for arguments in [&["serve", "--check", &file][..], &["serve", &file]] {
        let said = bad(2, arguments);
        assert!(said.contains("second has 38 of its share of 60 mappings"), "{said}");
        let remedy = "raise limits.mappings, or lower limits.reserved_mappings";
        assert!(said.contains(remedy), "{said}");
    }
    write(40);
    good(["serve", "--check", &file]);
}

/// Each device has eight clients, whose reads take a minute. At the default of 256 common threads it takes
/// 43 such devices to use up what there are without limits for each of them.
#[test]
fn thirty_two_stalled_devices_leave_a_stranger_every_reply() {
    const STALLED: usize = 32;
    const CLIENTS: usize = 8;
    const COMMON: u64 = 128;
    /// The registers of the bench device.
    const SLOW: u32 = 2;
    // A device that retains its state is not reset by the first open, which would take as long.
    let slow = "model = \"bench\"\nstate = \"retain\"\noptions = { delay_ms = 60_000 }";
    let devices = [vec![slow; STALLED], vec![EDU]].concat();
    let rig = Rig::with(&format!("threads = {COMMON}\n"), &devices);
    let mut stranger = rig.connect(STALLED);
    let mut stalled: Vec<_> =
        (0..STALLED * CLIENTS).map(|number| rig.connect(number % STALLED)).collect();
    let read = RegionAccess { offset: 0, region: SLOW, count: 8 };
    for client in &mut stalled {
        client.submit(Command::RegionRead, read.as_bytes(), &[]).unwrap();
    }
    // Two for each device, and half of what is common.
    let most = STALLED * 2 + COMMON as usize / 2;
    process::until("the devices are stalled", || {
        rig.daemon.threads() >= most && rig.daemon.is_asleep()
    });
    for _ in 0..200 {
        stranger.region_read(0, 0, &mut [0; 4]).expect("a stranger is served");
    }
    process::connect(rig.path(&format!("d{STALLED}"))).unwrap().device_info().unwrap();
    let replied = |client: &&Client| {
        let mut fds = [PollFd::new(client.socket(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    };
    assert_eq!(stalled.iter().filter(replied).count(), 0, "they are stalled no more");
    assert_eq!(rig.limit(STALLED, "threads")[2..], [COMMON / 2, COMMON]);
    // Dropped with a minute's reads inside: the daemon is killed.
}

/// A device that does not quiesce is stopped for two seconds by a hot reset, and an access waits for one
/// second of that. Each device has eight clients that access it meanwhile.
#[test]
fn accesses_to_stopped_devices_leave_a_stranger_every_reply() {
    const STOPPED: usize = 12;
    const CLIENTS: usize = 8;
    /// The configuration space, and the registers of the bench device.
    const CONFIG: u32 = 7;
    const REGISTERS: u32 = 2;
    const IOVA: u64 = 1 << 32;
    let devices = [vec!["model = \"bench\""; STOPPED], vec![EDU]].concat();
    let rig = Rig::with("threads = 32\n", &devices);
    let mut stranger = rig.connect(STOPPED);
    let read = RegionAccess { offset: 0, region: REGISTERS, count: 8 };
    let has_input = |client: &Client| {
        let mut fds = [PollFd::new(client.socket(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    };
    // Whether the stranger is served before an access to a stopped device is answered. On a machine that
    // is busy otherwise this may take several rounds.
    let mut round = || {
        let mut owners: Vec<_> = (0..STOPPED).map(|device| rig.connect(device)).collect();
        let mut others: Vec<_> =
            (0..STOPPED * CLIENTS).map(|number| rig.connect(number % STOPPED)).collect();
        for owner in &mut owners {
            owner.region_write(CONFIG, 4, &[6]).unwrap();
            owner.dma_map(IOVA, PAGE, None).unwrap();
            // The device reads memory by messages, which nobody answers.
            for (register, value) in [(0x08, 1), (0x10, IOVA), (0x20, 1), (0x28, 64), (0x00, 3)] {
                owner.region_post(REGISTERS, register, &u64::to_le_bytes(value)).unwrap();
            }
        }
        process::until("each device waits for its memory", || owners.iter().all(has_input));
        std::thread::scope(|scope| {
            for device in 0..STOPPED {
                let (rig, path) = (&rig, format!("devices/d{device}"));
                scope.spawn(move || {
                    let control = rig.path("control");
                    let (_, device) = ask(&control, "GET", &path, None).unwrap();
                    let set = device["set"].as_str().unwrap().replace(' ', "%20");
                    let path = format!("sets/{set}/reset?in_use=reset");
                    ask(&control, "POST", &path, None).unwrap()
                });
            }
            let mut asked: Vec<Option<u16>> = vec![None; others.len()];
            process::until("each access waits", || {
                let mut all = true;
                for (client, asked) in others.iter_mut().zip(&mut asked) {
                    if let Some(id) = asked.take_if(|_| has_input(client)) {
                        // Answered: the device is not stopped yet, or not any more.
                        let _ = client.complete(id);
                    }
                    all &= asked.is_some();
                    asked.get_or_insert_with(|| {
                        client.submit(Command::RegionRead, read.as_bytes(), &[]).unwrap()
                    });
                }
                all && rig.daemon.is_asleep()
            });
            for _ in 0..20 {
                stranger.region_read(0, 0, &mut [0; 4]).unwrap();
            }
            let is_first = !others.iter().any(has_input);
            for (client, asked) in others.iter_mut().zip(asked) {
                let outcome = client.complete(asked.unwrap());
                let errno = outcome.map_err(|error| error.remote_errno());
                let busy = Some(Errno::BUSY.raw_os_error() as u32);
                assert!(errno.is_ok() || errno.as_ref().is_err_and(|errno| *errno == busy));
            }
            is_first
        })
    };
    assert!((0..5).any(|_| round()), "a stranger waits for devices that are stopped");
}
