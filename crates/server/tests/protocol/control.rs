//! What whoever runs a server can see and do.

use std::time::Duration;

use vfiod_client::Error;
use vfiod_core::OpenPolicy;
use vfiod_server::{Dialect, ServerOptions};
use vfiod_wire::Command;

use crate::rig::*;

#[test]
fn connections_are_listed_with_owner_and_counters() {
    let rig = Rig::new();
    let served = rig.served.as_ref().unwrap();
    assert!(served.clients().is_empty());
    let silent = rig.socket();
    eventually("it is accepted", || served.connections() == 1);
    assert_eq!(served.clients()[0].dialect, None);
    drop(silent);
    rig.wait_idle();

    let mut client = rig.client();
    client.device_info().unwrap();
    refused(client.region_read(99, 0, &mut [0; 4]));
    let clients = served.clients();
    assert_eq!(clients.len(), 1);
    let info = &clients[0];
    let pid = std::process::id() as i32;
    assert_eq!(info.owner.credentials().map(|peer| peer.pid), Some(pid), "{info:?}");
    assert_eq!(info.dialect, Some(Dialect::Standard));
    assert_eq!((info.messages, info.errors), (3, 1));
    let version = client.server().encode().len() as u64;
    assert_eq!(info.bytes_sent, 16 + version + 32 + 16);
    assert!(info.bytes_received > 3 * 16);
}

#[test]
fn connections_outlive_their_listener() {
    let mut rig = Rig::new();
    let mut client = rig.client();
    rig.served.as_mut().unwrap().stop_listening();
    assert!(!rig.path.exists(), "the socket is removed");
    assert!(connect(&rig.path).is_err());
    client.device_info().unwrap();
}

#[test]
fn finish_releases_every_file() {
    let mut rig = Rig::new();
    let mut clients: Vec<_> = (0..10).map(|_| rig.client()).collect();
    assert!(rig.served.take().unwrap().finish(PATIENCE));
    let device = rig.registration.as_ref().unwrap().device();
    assert!(device.status().files.is_empty());
    for client in &mut clients {
        assert!(matches!(client.device_info(), Err(Error::Closed)));
    }
}

#[test]
fn finish_gives_up_on_a_stalled_device() {
    let mut rig = Rig::new();
    let mut client = rig.client();
    let stall = Stall::new();
    client.post(Command::RegionWrite, &stall.payload(), &[]).unwrap();
    stall.await_begin();
    assert!(!rig.served.take().unwrap().finish(Duration::from_millis(50)));
}

/// Threads that stay with a busy client come back when the server goes.
#[test]
fn server_that_is_dropped_ends_the_connections_of_busy_clients() {
    for poll in [Duration::ZERO, Duration::from_millis(5)] {
        let rig = Rig::with(OpenPolicy::Multi, ServerOptions { poll, ..server_options() });
        let mut clients: Vec<_> = (0..3).map(|_| rig.client()).collect();
        for round in 0..200 {
            clients.iter_mut().for_each(|client| write_u64(client, PLAIN, 0, round));
        }
        let Rig { served, server, registration, .. } = rig;
        drop(server);
        for client in &mut clients {
            assert!(matches!(client.device_info(), Err(Error::Closed)));
        }
        drop(served);
        let device = registration.as_ref().unwrap().device();
        assert!(device.status().files.is_empty());
    }
}
