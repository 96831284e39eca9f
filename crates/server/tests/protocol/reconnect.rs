//! Clients that crash and come back at once.

use std::time::Duration;

use vfiod_client::{Client, Options};
use vfiod_core::OpenPolicy;
use vfiod_server::ServerOptions;
use vfiod_wire::{Command, Kind};

use crate::rig::*;

fn single() -> Rig {
    Rig::with(OpenPolicy::Single, server_options())
}

#[test]
fn single_open_device_accepts_the_next_client_after_a_disconnect() {
    let rig = single();
    for _ in 0..300 {
        // Gone, but perhaps not let go of, when the next one comes.
        drop(rig.client());
    }
}

#[test]
fn reconnect_waits_until_a_busy_device_is_released() {
    let rig = single();
    let mut crashed = rig.client();
    // It does not see that its client is gone while it is busy with this.
    crashed.region_post(KNOBS, STALL_MS, &300u64.to_ne_bytes()).unwrap();
    crashed.region_post(PLAIN, 0, &[1; 8]).unwrap();
    drop(crashed);
    let mut next = rig.client();
    assert_eq!(read_u64(&mut next, PLAIN, 0), 0, "what the other had written is gone");
}

#[test]
fn reconnect_waits_for_a_slow_release() {
    let rig = single();
    let mut crashed = rig.client();
    write_u64(&mut crashed, KNOBS, SLOW_CLOSE_MS, 300);
    drop(crashed);
    rig.client().device_info().unwrap();
}

#[test]
fn single_open_device_accepts_reconnects_with_two_threads() {
    let options = ServerOptions { max_threads: 2, ..server_options() };
    let rig = Rig::with(OpenPolicy::Single, options);
    for _ in 0..100 {
        drop(rig.client());
    }
}

/// The connection that waits is served again at the end of its time, although nothing happens.
#[test]
fn wait_for_a_departing_client_ends_with_a_refusal() {
    let rig = single();
    let stall = Stall::new();
    let mut departing = rig.client();
    departing.submit(Command::RegionWrite, &stall.payload(), &[]).unwrap();
    stall.await_begin();
    drop(departing);
    let refused = connect(&rig.path).unwrap_err();
    assert_eq!(refused.remote_errno(), Some(EINVAL));
    drop(stall);
    rig.client().device_info().unwrap();
}

/// The device is slow to open for the first client, which hangs up meanwhile.
#[test]
fn client_that_hangs_up_while_the_device_opens_leaves_it_to_the_next() {
    let rig = single();
    let mut first = rig.client();
    write_u64(&mut first, KNOBS, SLOW_RESET_MS, 300);
    drop(first);
    rig.wait_idle();
    let second = rig.socket();
    second.send(&version_message(), &[]).unwrap();
    eventually("its VERSION is received", || {
        rig.served.as_ref().unwrap().clients().iter().any(|client| client.messages > 0)
    });
    drop(second);
    let third = rig.socket();
    third.send(&version_message(), &[]).unwrap();
    assert_eq!(third.receive_message().unwrap().header.kind(), Kind::Reply(Ok(())));
}

#[test]
fn open_does_not_wait_for_a_client_that_is_connected() {
    let rig = single();
    let _there = rig.client();
    // One that waited would be refused after two seconds, every time. A machine that stands still for so
    // long looks the same, but not again and again.
    eventually("a refusal without a wait", || {
        let options = Options { timeout: Duration::from_millis(1500), ..Options::default() };
        let error = Client::connect_with(&rig.path, options).unwrap_err();
        assert!(matches!(error.remote_errno(), Some(EINVAL) | None), "{error}");
        error.remote_errno() == Some(EINVAL)
    });
}
