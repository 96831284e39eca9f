//! Descriptors in replies that a client does not read. The kernel counts them for the daemon's user, and
//! lets it send no more than `RLIMIT_NOFILE`.

mod process;

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command as Process;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use process::api::ask;
use process::{Daemon, good, until, vfiod};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::process::{Signal, Uid, getuid};
use rustix::thread::set_thread_res_uid;
use tempfile::TempDir;
use vfiod_client::{Client, Options, Socket};
use vfiod_wire::payload::{RegionAccess, RegionInfo};
use vfiod_wire::{Command, Header, Kind};
use zerocopy::IntoBytes;

/// The bench device's memory, and its registers with their doorbells.
const MEMORY: u32 = 0;
const REGISTERS: u32 = 2;
/// What the documentation says that a connection may have.
const MOST: usize = 32;
/// Accounts that have no other process.
const GREEDY: u32 = 48_218;
const STRANGER: u32 = 48_219;
const TIMEOUT: Duration = Duration::from_secs(60);

/// A daemon with multi-open devices `d0`, `d1`, … of the model bench, and with so many descriptors.
struct Rig {
    directory: TempDir,
    daemon: Daemon,
}

impl Rig {
    fn new(devices: usize, descriptors: u64) -> Self {
        Self::with(devices, descriptors, "")
    }

    /// As [`Rig::new`], with these keys. Everybody may connect.
    fn with(devices: usize, descriptors: u64, keys: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let everybody = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(directory.path(), everybody).unwrap();
        let at = |name: &str| directory.path().join(name);
        let mut text = format!("{keys}[control]\nsocket = {:?}\n", at("control"));
        for number in 0..devices {
            let device = format!("d{number}");
            let socket = at(&device);
            text += &format!(
                "[device.{device}]\nmodel = \"bench\"\nopen = \"multi\"\n\
                 socket = {{ path = {socket:?}, mode = \"0666\" }}\n"
            );
        }
        std::fs::write(at("c.toml"), text).unwrap();
        let program = vfiod(["serve", at("c.toml").to_str().unwrap(), "--log", "warn"]);
        let mut command = Process::new("sh");
        command.args(["-c", &format!("ulimit -n {descriptors} && exec \"$0\" \"$@\"")]);
        command.arg(program.get_program()).args(program.get_args());
        let daemon = Daemon::serving(command, &[&at("control")]);
        Self { directory, daemon }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn connect(&self, device: usize) -> Client {
        Client::connect(self.path(&format!("d{device}"))).unwrap()
    }

    /// Descriptors of a device's share that are in use, and of the common part.
    fn descriptors(&self, device: usize) -> [u64; 2] {
        let path = format!("devices/d{device}");
        let (_, answer) = ask(&self.path("control"), "GET", &path, None).unwrap();
        let limits = answer["limits"].as_array().unwrap();
        let limit = limits.iter().find(|limit| limit["name"] == "descriptors").unwrap();
        ["reserved_used", "common_used"].map(|key| limit[key].as_u64().unwrap())
    }
}

/// A request for a region's description, its descriptor included.
fn region_info(id: u16) -> Vec<u8> {
    let info = RegionInfo { argsz: 4096, index: MEMORY, ..RegionInfo::default() };
    let header = Header::command(id, Command::DeviceGetRegionInfo, info.as_bytes().len(), false);
    [header.as_bytes(), info.as_bytes()].concat()
}

fn ask_for(socket: &Socket, replies: u16) {
    let requests: Vec<u8> = (0..replies).flat_map(region_info).collect();
    socket.send(&requests, &[]).unwrap();
}

/// Reads so many replies. How many have a descriptor, and the errnos of the others.
fn read(socket: &Socket, replies: u16) -> (usize, Vec<Errno>) {
    let (mut with, mut refused) = (0, Vec::new());
    for id in 0..replies {
        let reply = socket.receive_message().unwrap();
        assert_eq!(reply.header.id, id);
        match reply.header.kind() {
            Kind::Reply(Ok(())) => with += reply.fds.len(),
            Kind::Reply(Err(errno)) => {
                assert!(reply.fds.is_empty());
                refused.push(Errno::from_raw_os_error(errno as i32));
            }
            kind => panic!("{kind:?}"),
        }
    }
    (with, refused)
}

/// A second socket, and descriptors of a region.
fn get_all(rig: &Rig, device: usize) {
    let path = rig.path(&format!("d{device}"));
    let client = Client::connect_with(path, Options::default().twin_socket());
    let mut client = client.expect("another client gets a connection");
    assert!(client.has_twin_socket());
    // More than may be unread: each is read before the next one is asked for.
    for _ in 0..2 * MOST {
        assert!(client.region_info(MEMORY).unwrap().fd.is_some());
    }
}

#[test]
fn descriptors_that_clients_do_not_read_leave_descriptors_to_others() {
    const DEVICES: usize = 8;
    const CONNECTIONS: usize = 3;
    const REQUESTS: u16 = 250;
    let rig = Rig::new(DEVICES + 1, 1024);
    let clients: Vec<_> = (0..DEVICES * CONNECTIONS).map(|n| rig.connect(n % DEVICES)).collect();
    for client in &clients {
        ask_for(client.socket(), REQUESTS);
    }
    let has_reply = |client: &Client| {
        let mut fds = [PollFd::new(client.socket(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    };
    until("everybody has replies", || clients.iter().all(has_reply));
    until("the daemon has nothing to do", || rig.daemon.is_asleep());
    get_all(&rig, DEVICES);

    let mut total = 0;
    for client in &clients {
        let (with, refused) = read(client.socket(), REQUESTS);
        assert!(with <= MOST, "{with} unread descriptors");
        let expected = |errno: &Errno| [Errno::BUSY, Errno::MFILE].contains(errno);
        assert!(refused.iter().all(expected), "{refused:?}");
        total += with;
    }
    assert!((MOST..1024 / 2).contains(&total), "{total} unread descriptors");
    // The connections live, and what was read counts no more.
    for client in clients {
        ask_for(client.socket(), 1);
        assert_eq!(read(client.socket(), 1), (1, vec![]));
        drop(client);
    }
    until("all is given back", || rig.descriptors(0) == [0, 0]);
    let (status, said) = rig.daemon.terminate(Signal::TERM);
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("may not have read 32 of earlier replies"), "{said}");
}

#[test]
fn descriptors_that_an_ended_client_has_not_read_stay_charged_until_it_reads_or_closes() {
    const UNREAD: u16 = 10;
    let rig = Rig::new(2, 1024);
    let control = rig.path("control");
    let control = control.to_str().unwrap();
    for reads in [true, false] {
        let client = rig.connect(0);
        ask_for(client.socket(), UNREAD);
        until("they are charged", || rig.descriptors(0)[0] == 2 + u64::from(UNREAD));
        good(["revoke", "d0", "--control", control]);
        // The connection ends when the client has been told.
        ask_for(client.socket(), 1);
        // The socket stays, too.
        let kept = 1 + u64::from(UNREAD);
        until("only what is unread is charged", || rig.descriptors(0)[0] == kept);
        // Nobody waits for it.
        let mut next = rig.connect(0);
        next.region_info(MEMORY).unwrap();
        drop(next);
        until("the next client's are given back", || rig.descriptors(0)[0] == kept);
        if reads {
            assert_eq!(read(client.socket(), UNREAD), (usize::from(UNREAD), vec![]));
            // That the device was revoked.
            client.socket().receive_message().unwrap();
            until("what was read is given back", || rig.descriptors(0) == [0, 0]);
        } else {
            drop(client);
            until("what was not read is given back", || rig.descriptors(0) == [0, 0]);
        }
    }
    // Neither a removal nor the end of the daemon waits.
    let client = rig.connect(0);
    ask_for(client.socket(), UNREAD);
    until("they are charged", || rig.descriptors(0)[0] == 2 + u64::from(UNREAD));
    good(["del", "d0", "--deadline", "1s", "--control", control]);
    let other = rig.connect(1);
    ask_for(other.socket(), UNREAD);
    until("they are charged", || rig.descriptors(1)[0] == 2 + u64::from(UNREAD));
    let (status, said) = rig.daemon.terminate(Signal::TERM);
    assert_eq!(status.code(), Some(0), "{said}");
}

/// One user has as many connections to a device as it takes to have all that it may have; the device of another
/// one has next to nothing for itself.
#[test]
fn descriptors_that_one_user_does_not_read_leave_those_of_another_user() {
    const DESCRIPTORS: u64 = 400;
    const CONNECTIONS: usize = 16;
    const REQUESTS: u16 = 50;
    if !getuid().is_root() {
        eprintln!("SKIPPED: only root can be several users");
        return;
    }
    let limits = format!("[limits]\ndescriptors = {DESCRIPTORS}\nreserved_descriptors = 2\n");
    let rig = Rig::with(2, 1024, &limits);
    let as_user = |uid, work: &(dyn Fn() + Sync)| {
        let become_user = || {
            let uid = Uid::from_raw(uid);
            set_thread_res_uid(uid, uid, uid).unwrap();
            work();
        };
        thread::scope(|scope| scope.spawn(become_user).join().unwrap());
    };
    let greedy = Mutex::new(Vec::new());
    as_user(GREEDY, &|| {
        let path = rig.path("d0");
        let mut greedy = greedy.lock().unwrap();
        // It may have no further connection either, once what it has not read is all.
        let clients = (0..CONNECTIONS).map_while(|_| {
            let client = Client::connect(&path).ok()?;
            ask_for(client.socket(), REQUESTS);
            Some(client)
        });
        greedy.extend(clients);
    });
    until("the daemon has nothing to do", || rig.daemon.is_asleep());
    // Its half of what is common, but for less than a connection needs.
    let common = DESCRIPTORS - 2 * (2 + 4);
    let [_, used] = rig.descriptors(0);
    assert!((common / 2 - 2..=common / 2).contains(&used), "one user has {used} of {common}");
    as_user(STRANGER, &|| get_all(&rig, 1));
    let (mut unread, mut refused) = (0, Vec::new());
    for client in greedy.into_inner().unwrap() {
        let (with, errnos) = read(client.socket(), REQUESTS);
        assert!(with <= MOST, "{with} unread descriptors");
        unread += with;
        refused.extend(errnos);
    }
    assert!(unread > MOST && refused.contains(&Errno::MFILE), "{unread} unread, {refused:?}");
    until("all is given back", || rig.descriptors(0) == [0, 0]);
}

/// Another process of the daemon's user, here the test, uses up what the kernel allows the user.
#[test]
fn descriptor_that_cannot_be_sent_is_an_errno_in_a_reply() {
    const DESCRIPTORS: u64 = 256;
    let rig = Rig::new(1, DESCRIPTORS);
    let mut client = rig.connect(0);
    let (channel, kept) = UnixStream::pair().unwrap();
    let channel = Socket::from_fd(channel.into(), TIMEOUT).unwrap();
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let fds: Vec<BorrowedFd<'_>> = vec![event.as_fd(); 150];
    channel.send(b"x", &fds).unwrap();
    channel.send(b"x", &fds).unwrap();

    let errno =
        |error: vfiod_client::Error| error.remote_errno().unwrap_or_else(|| panic!("{error}"));
    let refused = Errno::TOOMANYREFS.raw_os_error() as u32;
    assert_eq!(errno(client.region_info(MEMORY).unwrap_err()), refused);
    assert_eq!(errno(client.region_io_fds(REGISTERS).unwrap_err()), refused);
    // In the middle of other replies.
    let read_word = RegionAccess { offset: 0, region: MEMORY, count: 4 };
    let header = Header::command(1, Command::RegionRead, read_word.as_bytes().len(), false);
    let word = [header.as_bytes(), read_word.as_bytes()].concat();
    client.socket().send(&[&word[..], &region_info(2), &word].concat(), &[]).unwrap();
    let replies = [(); 3].map(|()| client.socket().receive_message().unwrap().header);
    assert_eq!(replies.map(|header| header.id), [1, 2, 1]);
    let kinds = replies.map(|header| header.kind());
    assert_eq!(kinds, [Kind::Reply(Ok(())), Kind::Reply(Err(refused)), Kind::Reply(Ok(()))]);
    let with_twin = || Client::connect_with(rig.path("d0"), Options::default().twin_socket());
    assert_eq!(errno(with_twin().unwrap_err()), refused);

    drop((channel, kept));
    until("the kernel has dropped them", || client.region_info(MEMORY).is_ok());
    assert!(!client.region_io_fds(REGISTERS).unwrap().1.is_empty());
    assert!(with_twin().unwrap().has_twin_socket());
    let (status, said) = rig.daemon.terminate(Signal::TERM);
    assert_eq!(status.code(), Some(0), "{said}");
    assert!(said.contains("no descriptor can be sent"), "{said}");
}
