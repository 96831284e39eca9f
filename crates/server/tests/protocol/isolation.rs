//! What one client or one device does to the others: nothing.

use std::os::fd::AsFd;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vfiod_client::Error;
use vfiod_core::{DeviceSpec, OpenPolicy};
use vfiod_server::quota::{Limit, Resource as Limited, Share, Size};
use vfiod_server::{Listener, Server, ServerOptions};
use vfiod_wire::payload::{DmaMap, RegionAccess};
use vfiod_wire::{Command, Header, Kind};
use zerocopy::IntoBytes;

use crate::rig::*;

#[test]
fn many_clients_of_a_stalled_device_do_not_take_all_threads() {
    let options = ServerOptions { max_threads: 8, ..server_options() };
    let stalled = Rig::with(OpenPolicy::Multi, options);
    let other = Rig::new();
    let path = other.path.with_extension("second");
    let listener = Listener::bind(&path, Default::default()).unwrap();
    let device = other.registration.as_ref().unwrap().device().clone();
    let _served = stalled.server.serve(listener, device).unwrap();

    let mut waiting: Vec<_> = (0..40).map(|_| stalled.client()).collect();
    let stall = Stall::new();
    let stalling = waiting[0].submit(Command::RegionWrite, &stall.payload(), &[]).unwrap();
    stall.await_begin();
    let read = RegionAccess { offset: 0, region: PLAIN, count: 4 };
    let behind: Vec<_> = waiting[1..]
        .iter_mut()
        .map(|client| client.submit(Command::RegionRead, read.as_bytes(), &[]).unwrap())
        .collect();
    let mut client = connect(&path).unwrap();
    for _ in 0..100 {
        write_u64(&mut client, PLAIN, 0, 1);
    }
    // The stalled one has not answered yet, so the other was served meanwhile.
    let mut fds = [rustix::event::PollFd::new(waiting[0].socket(), rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut fds, Some(&now)), Ok(0));
    // And those that waited get their turn.
    drop(stall);
    waiting[0].complete(stalling).unwrap();
    for (client, id) in waiting[1..].iter_mut().zip(behind) {
        client.complete(id).unwrap();
    }
}

/// Eight devices stall, each with eight clients of one user.
#[test]
fn clients_of_stalled_devices_leave_a_thread_to_a_stranger() {
    const STALLED: usize = 8;
    let directory = tempfile::tempdir().unwrap();
    let (registry, _workers) = registry();
    let server = Server::new(ServerOptions { max_threads: 32, ..server_options() }).unwrap();
    let at = |number: usize| directory.path().join(number.to_string());
    let devices: Vec<_> = (0..=STALLED)
        .map(|number| {
            let (name, open) = (format!("rack{number}"), OpenPolicy::Multi);
            serve(&registry, &server, DeviceSpec { name, open, ..Default::default() }, &at(number))
        })
        .collect();
    let connect = |number| connect(at(number)).unwrap();
    let mut clients: Vec<Vec<_>> =
        (0..STALLED).map(|number| (0..8).map(|_| connect(number)).collect()).collect();
    let mut stranger = connect(STALLED);
    let stalls: Vec<_> = (0..STALLED).map(|_| Stall::new()).collect();
    let read = RegionAccess { offset: 0, region: PLAIN, count: 4 };
    for (stall, clients) in stalls.iter().zip(&mut clients) {
        clients[0].submit(Command::RegionWrite, &stall.payload(), &[]).unwrap();
        stall.await_begin();
        for client in &mut clients[1..] {
            client.submit(Command::RegionRead, read.as_bytes(), &[]).unwrap();
        }
    }
    // Two for each device, and half of what is common.
    let used = || {
        let own: u64 = devices.iter().map(|(_, served)| served.usage(Limited::Threads).used).sum();
        own + server.usage(Limited::Threads).used
    };
    eventually("they take what they may have", || used() >= 2 * STALLED as u64 + 16);
    for _ in 0..100 {
        write_u64(&mut stranger, PLAIN, 0, 1);
    }
    assert_eq!(server.usage(Limited::Threads).used, 16);
    drop(stalls);
}

/// A client has hung up while the device is busy with what it sent, and the device takes no second
/// client. Those who come next wait for it without a thread each.
#[test]
fn newcomers_that_wait_for_a_departing_client_take_no_threads() {
    const NEWCOMERS: usize = 300;
    let options =
        ServerOptions { max_threads: 64, max_connections: NEWCOMERS + 10, ..server_options() };
    let rig = Rig::with(OpenPolicy::Single, options);
    let other = Rig::new();
    let path = other.path.with_extension("second");
    let listener = Listener::bind(&path, Default::default()).unwrap();
    let device = other.registration.as_ref().unwrap().device().clone();
    let _served = rig.server.serve(listener, device).unwrap();
    let mut neighbour = connect(&path).unwrap();

    let stall = Stall::new();
    let mut departing = rig.client();
    departing.submit(Command::RegionWrite, &stall.payload(), &[]).unwrap();
    stall.await_begin();
    drop(departing);
    let newcomers: Vec<_> = (0..NEWCOMERS)
        .map(|_| {
            let newcomer = rig.socket();
            newcomer.send(&version_message(), &[]).unwrap();
            newcomer
        })
        .collect();
    eventually("every VERSION was received", || {
        let clients = rig.served.as_ref().unwrap().clients();
        clients.iter().filter(|client| client.messages > 0).count() > NEWCOMERS
    });
    for round in 0..200 {
        write_u64(&mut neighbour, PLAIN, 0, round);
        let threads = rig.server.threads();
        assert!(threads <= 24, "{threads} threads");
    }
    drop(stall);
    // One of them may have the device; each has a reply.
    let outcome =
        |newcomer: &vfiod_client::Socket| newcomer.receive_message().unwrap().header.kind();
    let outcomes: Vec<_> = newcomers.iter().map(outcome).collect();
    // EBUSY: its time was over while the device's set was still marked by the release.
    let refused = [EINVAL, EBUSY].map(|errno| Kind::Reply(Err(errno)));
    let refused = outcomes.iter().filter(|kind| refused.contains(kind)).count();
    let opened = outcomes.iter().filter(|kind| **kind == Kind::Reply(Ok(()))).count();
    assert_eq!((opened <= 1, opened + refused), (true, NEWCOMERS), "{outcomes:?}");
}

/// Ends the floods of clients, also those of a test that fails, which waits for them.
struct Flooders<'a>(&'a [vfiod_client::Socket]);

impl Drop for Flooders<'_> {
    fn drop(&mut self) {
        for flooder in self.0 {
            let _ = rustix::net::shutdown(flooder, rustix::net::Shutdown::Both);
        }
    }
}

/// As many clients as threads may be with a device have each sent 40 messages at once, which take it 5 ms
/// each.
#[test]
fn newcomer_has_its_turn_among_busy_clients() {
    const BUSY: usize = 8;
    const MESSAGES: usize = 40;
    let rig = Rig::with(OpenPolicy::Multi, server_options());
    let busy: Vec<_> = (0..BUSY).map(|_| negotiated(&rig)).collect();
    let handled = || {
        let clients = rig.served.as_ref().unwrap().clients();
        clients.iter().map(|client| client.messages).collect::<Vec<_>>()
    };
    let before: Vec<_> = handled();
    let access = RegionAccess { offset: STALL_MS, region: KNOBS, count: 8 };
    let payload = [access.as_bytes(), &5u64.to_ne_bytes()].concat();
    let post = Header::command(1, Command::RegionWrite, payload.len(), true);
    let messages = [post.as_bytes(), &payload].concat().repeat(MESSAGES);
    for client in &busy {
        client.send(&messages, &[]).unwrap();
    }
    eventually("each has a thread", || {
        handled().iter().zip(&before).all(|(now, before)| now > before)
    });
    let _newcomer = rig.client();
    let sum = |messages: Vec<u64>| messages.iter().sum::<u64>() as usize;
    let handled = sum(handled()) - sum(before);
    assert!(handled < BUSY * MESSAGES / 2, "{handled} messages were handled before its VERSION");
}

#[test]
fn clients_that_flood_a_device_leave_threads_to_others() {
    let options = ServerOptions { max_threads: 2, ..server_options() };
    let rig = Rig::with(OpenPolicy::Multi, options);
    let write = RegionAccess { offset: 0, region: PLAIN, count: 8 };
    let payload = [write.as_bytes(), &[0; 8]].concat();
    let post = Header::command(1, Command::RegionWrite, payload.len(), true);
    let flood = [post.as_bytes(), &payload].concat().repeat(1000);
    let flooders: Vec<_> = (0..4).map(|_| negotiated(&rig)).collect();
    std::thread::scope(|scope| {
        let _end = Flooders(&flooders);
        for flooder in &flooders {
            let flood = &flood;
            scope.spawn(move || while flooder.send(flood, &[]).is_ok() {});
        }
        let mut client = rig.client();
        for round in 0..50 {
            write_u64(&mut client, PLAIN, 8, round);
        }
    });
}

#[test]
fn silent_connections_are_closed_in_favour_of_new_clients() {
    let options = ServerOptions { max_connections: 8, ..server_options() };
    let rig = Rig::with(OpenPolicy::Multi, options);
    let silent: Vec<_> = (0..50).map(|_| rig.socket()).collect();
    let mut client = rig.client();
    client.device_info().unwrap();
    drop(silent);
    client.device_info().unwrap();
    // Those that are being served are not put out.
    eventually("the silent ones are gone", || rig.connections() == 1);
    let mut more: Vec<_> = (0..7).map(|_| rig.client()).collect();
    assert!(matches!(connect(&rig.path), Err(Error::Closed)));
    more.iter_mut().chain([&mut client]).for_each(|client| _ = client.device_info().unwrap());
}

/// A device that does not fill its answer gives nobody the answers of others.
#[test]
fn reply_that_a_device_leaves_unfilled_has_no_data_of_others() {
    // Two threads, so that buffers are used by everybody in turn.
    let options = ServerOptions { max_threads: 2, ..server_options() };
    let rig = Rig::with(OpenPolicy::Multi, options);
    for round in 0..20 {
        let mut secret = vec![0; PLAIN_SIZE as usize];
        let mut client = rig.client();
        client.region_write(PLAIN, 0, &vec![0xa7; PLAIN_SIZE as usize]).unwrap();
        client.region_read(PLAIN, 0, &mut secret).unwrap();
        let mut other = rig.client();
        let mut data = vec![0; PLAIN_SIZE as usize];
        other.region_read(LAZY, 0, &mut data).unwrap();
        assert!(!data.contains(&0xa7), "round {round}");
    }
}

#[test]
fn descriptors_of_an_unfinished_message_are_bounded() {
    if !alone("isolation::descriptors_of_an_unfinished_message_are_bounded") {
        return;
    }
    let rig = Rig::new();
    let socket = negotiated(&rig);
    let event = event();
    let before = open_descriptors();
    let map = DmaMap { argsz: 32, flags: 3, offset: 0, address: 0, size: 0x1000 };
    let bytes = message(1, Command::DmaMap, map.as_bytes());
    let fds = vec![event.as_fd(); 60];
    let (last, first) = bytes.split_last().unwrap();
    for byte in first {
        socket.send(std::slice::from_ref(byte), &fds).unwrap();
    }
    eventually("all is received", || {
        rig.served.as_ref().unwrap().clients()[0].bytes_received as usize
            >= version_message().len() + first.len()
    });
    assert!(open_descriptors() <= before + 253, "{} more", open_descriptors() - before);
    socket.send(&[*last], &[]).unwrap();
    assert_eq!(reply_errno(&socket.receive_message().unwrap()), EINVAL);
    eventually("all are closed", || open_descriptors() <= before);
}

#[test]
fn clients_are_rejected_and_others_served_while_descriptors_are_exhausted() {
    if !alone("isolation::clients_are_rejected_and_others_served_while_descriptors_are_exhausted") {
        return;
    }
    let rig = Rig::new();
    let mut client = rig.client();
    client.device_info().unwrap();
    // The client's sockets are there before, as this process is both.
    let socket = || {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
        socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap()
    };
    let waiting: Vec<_> = (0..5).map(|_| socket()).collect();
    let limit = getrlimit(Resource::Nofile);
    let used = open_descriptors() as u64;
    setrlimit(Resource::Nofile, Rlimit { current: Some(used), maximum: limit.maximum }).unwrap();
    let mut filling = Vec::new();
    while let Ok(fd) = rustix::io::dup(&waiting[0]) {
        filling.push(fd);
    }
    let address = rustix::net::SocketAddrUnix::new(&rig.path).unwrap();
    for fd in &waiting {
        rustix::net::connect(fd, &address).unwrap();
    }
    // All keep their places to the end: in one that was given back, the next client would be served.
    let mut turned_away = Vec::new();
    for fd in waiting {
        let socket = vfiod_client::Socket::from_fd(fd, PATIENCE).unwrap();
        assert_closed(&socket);
        client.device_info().unwrap();
        turned_away.push(socket);
    }
    // A message with a descriptor that cannot be received is refused, not misread.
    let map = DmaMap { argsz: 32, flags: 3, offset: 0, address: 0, size: 0x1000 };
    let sent = client.call(Command::DmaMap, map.as_bytes(), &[filling[0].as_fd()]);
    assert_eq!(refused(sent), EINVAL);
    drop((filling, turned_away));
    setrlimit(Resource::Nofile, limit).unwrap();
    rig.assert_alive();
}

#[test]
fn unsolicited_replies_end_the_connection_only_at_their_limit() {
    let rig = Rig::new();
    let socket = negotiated(&rig);
    let stray = Header::command(5, Command::DmaRead, 0, false).reply(0);
    socket.send(&stray.as_bytes().repeat(5000), &[]).unwrap();
    socket.send(&message(3, Command::DeviceReset, &[]), &[]).unwrap();
    let reply = socket.receive_message().unwrap();
    assert_eq!((reply.header.id, reply.header.kind()), (3, Kind::Reply(Ok(()))));
    for _ in 0..10 {
        if socket.send(&stray.as_bytes().repeat(5000), &[]).is_err() {
            break;
        }
    }
    assert_closed(&socket);
    rig.assert_alive();
}

/// Descriptors that this process has watched by `epoll`.
fn watched() -> usize {
    let fds = std::fs::read_dir("/proc/self/fdinfo").unwrap();
    // One that is gone again has nothing.
    let texts = fds.map(|fd| std::fs::read_to_string(fd.unwrap().path()).unwrap_or_default());
    texts.map(|text| text.lines().filter(|line| line.starts_with("tfd:")).count()).sum()
}

/// Where the kernel watches no more, a client is refused, and does not lose what it has opened.
#[test]
fn connection_is_watched_before_it_is_served() {
    if !alone("isolation::connection_is_watched_before_it_is_served") {
        return;
    }
    let rig = Rig::new();
    rig.assert_alive();
    rig.wait_idle();
    let before = watched();
    let (socket, stall) = (rig.socket(), Stall::new());
    let stalling = message(1, Command::RegionWrite, &stall.payload());
    socket.send(&[version_message(), stalling].concat(), &[]).unwrap();
    // The thread that has accepted it has not come back yet.
    stall.await_begin();
    assert_eq!(watched(), before + 1);
    drop(stall);
    (0..2).for_each(|_| drop(socket.receive_message().unwrap()));
    drop(socket);
    rig.wait_idle();
    eventually("it is watched no more", || watched() == before);
}

/// The clients of one device are all of one user, who has half of what is common.
#[test]
fn connections_that_a_user_takes_leave_a_share_to_each_device() {
    const SHARE: usize = 3;
    const COMMON: usize = 10;
    let mut options = server_options();
    let limit = Limit::new(Size::Common(COMMON as u64), Share::Demanded(SHARE as u64));
    options.limits.set(Limited::Connections, limit);
    let rig = Rig::with(OpenPolicy::Multi, options);
    let other = Rig::new();
    let path = other.path.with_extension("second");
    let listener = Listener::bind(&path, Default::default()).unwrap();
    let device = other.registration.as_ref().unwrap().device().clone();
    let served = rig.server.serve(listener, device).unwrap();

    let mut clients: Vec<_> = (0..SHARE + COMMON / 2).map(|_| rig.client()).collect();
    assert!(matches!(connect(&rig.path), Err(Error::Closed)));
    assert_eq!(rig.server.usage(Limited::Connections).used, COMMON as u64 / 2);
    // The other device has its share all the same, and only that.
    let mut neighbours: Vec<_> = (0..SHARE).map(|_| connect(&path).unwrap()).collect();
    assert!(matches!(connect(&path), Err(Error::Closed)));
    neighbours.iter_mut().for_each(|client| _ = client.device_info().unwrap());
    drop(neighbours);
    // Who says nothing gives its place to one that does.
    eventually("its clients are gone", || served.connections() == 0);
    let socket = || vfiod_client::Socket::connect(&path, PATIENCE).unwrap();
    let _silent: Vec<_> = (0..20).map(|_| socket()).collect();
    let mut neighbour = connect(&path).unwrap();
    neighbour.device_info().unwrap();
    // What is returned can be taken again.
    drop(clients.split_off(1));
    eventually("the clients are gone", || rig.connections() == 1);
    clients.extend((0..SHARE + COMMON / 2 - 1).map(|_| rig.client()));
    clients.iter_mut().for_each(|client| _ = client.device_info().unwrap());
}
