//! From connect to release, and what happens to clients when devices or servers go.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use vfiod_client::{Client, Error};
use vfiod_core::{OpenPolicy, Owner};
use vfiod_server::{Listener, ServerOptions, SocketAccess};
use vfiod_wire::Command;
use vfiod_wire::payload::RegionAccess;
use zerocopy::IntoBytes;

use crate::rig::*;

#[test]
fn next_client_finds_the_device_as_the_first_one_did() {
    let rig = Rig::with(OpenPolicy::Single, server_options());
    for round in 0..20 {
        let mut client = rig.client();
        assert_eq!(read_u64(&mut client, PLAIN, 0), 0, "round {round}");
        write_u64(&mut client, PLAIN, 0, 7);
        drop(client);
        rig.wait_idle();
    }
}

#[test]
fn clients_of_an_unregistered_device_get_enodev() {
    let mut rig = Rig::new();
    let mut client = rig.client();
    client.device_info().unwrap();
    rig.registration.take().unwrap().unregister(Some(Duration::from_millis(50)));
    let mut data = [0; 4];
    assert_eq!(refused(client.region_read(PLAIN, 0, &mut data)), ENODEV);
    assert!(matches!(client.reset(), Err(Error::Closed)), "and then the connection ends");
    rig.wait_idle();
    assert_eq!(connect(&rig.path).unwrap_err().remote_errno(), Some(ENODEV));
}

#[test]
fn a_device_no_longer_served_ends_its_connections() {
    let mut rig = Rig::new();
    let mut client = rig.client();
    client.device_info().unwrap();
    drop(rig.served.take());
    assert!(matches!(client.device_info(), Err(Error::Closed)));
    assert!(!rig.path.exists(), "the socket is removed");
    assert!(connect(&rig.path).is_err());
    // The file is released: another owner can open the device.
    let device = rig.registration.as_ref().unwrap().device().clone();
    eventually("the device is free", || device.open(Owner::in_process("next")).is_ok());
}

#[test]
fn a_hundred_idle_clients_need_few_threads() {
    let rig = Rig::new();
    let clients: Vec<_> = (0..100).map(|_| rig.client()).collect();
    eventually("few threads are left", || rig.server.threads() < 10);
    drop(clients);
    rig.wait_idle();
}

/// All clients have a request under way at the same time, which takes the device a millisecond.
#[test]
fn few_threads_serve_many_busy_clients() {
    const CLIENTS: usize = 100;
    let rig = Rig::with(OpenPolicy::Multi, ServerOptions { max_threads: 256, ..server_options() });
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| rig.client()).collect();
    let access = RegionAccess { offset: STALL_MS, region: KNOBS, count: 8 };
    let stall = [access.as_bytes(), &1u64.to_ne_bytes()].concat();
    let mut most = 0;
    for _ in 0..5 {
        let submit = |client: &mut Client| client.submit(Command::RegionWrite, &stall, &[]);
        let ids: Vec<_> = clients.iter_mut().map(|client| submit(client).unwrap()).collect();
        for (client, id) in clients.iter_mut().zip(ids) {
            client.complete(id).unwrap();
            most = most.max(rig.server.threads());
        }
    }
    // Eight with the device, two that wait, and those that take a client to the gate right now.
    assert!(most <= 30, "{most} threads for {CLIENTS} clients");
}

#[test]
fn clients_are_served_while_threads_poll() {
    let poll = Duration::from_micros(200);
    let rig = Rig::with(OpenPolicy::Multi, ServerOptions { poll, ..server_options() });
    let mut client = rig.client();
    for round in 0..200u64 {
        write_u64(&mut client, PLAIN, 8, round);
        assert_eq!(read_u64(&mut client, PLAIN, 8), round);
    }
    std::thread::sleep(Duration::from_millis(50));
    client.device_info().unwrap();
}

#[test]
fn socket_gets_the_requested_mode_and_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let access = SocketAccess { mode: Some(0o640), ..SocketAccess::default() };
    let listener = Listener::bind(&path, access).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    drop(listener);
    assert!(!path.exists());
}

/// Leaves a socket that nobody listens on. It has never been listened on: a copy of its descriptor that a
/// process inherits which another test starts would keep a listening one alive for a moment.
fn leave_socket(path: &std::path::Path) {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, socket};
    let left = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    bind(&left, &SocketAddrUnix::new(path).unwrap()).unwrap();
}

#[test]
fn a_stale_socket_is_replaced_but_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let bind = || Listener::bind(&path, SocketAccess::default());
    leave_socket(&path);
    assert!(path.exists(), "left over");
    let listener = bind().unwrap();
    let error = bind().unwrap_err();
    assert_eq!(error.errno(), vfiod_core::Errno::ADDRINUSE);
    drop(listener);
    std::fs::write(&path, "precious").unwrap();
    assert_eq!(bind().unwrap_err().errno(), vfiod_core::Errno::EXIST);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let long = dir.path().join("x".repeat(200));
    assert_eq!(
        Listener::bind(long, SocketAccess::default()).unwrap_err().errno(),
        vfiod_core::Errno::NAMETOOLONG
    );
}

#[test]
fn inherited_sockets_are_served() {
    let rig = Rig::new();
    let device = rig.registration.as_ref().unwrap().device().clone();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let served = rig.server.serve_connected(theirs.into(), device).unwrap();
    let socket = vfiod_client::Socket::from_fd(ours.into(), PATIENCE).unwrap();
    let mut client = Client::with_socket(socket, Default::default()).unwrap();
    client.device_info().unwrap();
    drop(served);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("inherited");
    let listening = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let listener = Listener::from_fd(listening.into()).unwrap();
    let device = rig.registration.as_ref().unwrap().device().clone();
    let served = rig.server.serve(listener, device).unwrap();
    connect(&path).unwrap().device_info().unwrap();
    drop(served);
    assert!(path.exists(), "who made it removes it");

    let file = tempfile::tempfile().unwrap();
    assert!(Listener::from_fd(file.into()).is_err());
}
