//! Many requests sent before their replies are read.

use vfiod_core::OpenPolicy;
use vfiod_server::ServerOptions;
use vfiod_wire::payload::RegionAccess;
use vfiod_wire::{Command, Kind};
use zerocopy::IntoBytes;

use crate::rig::*;

const MIB: u32 = 1 << 20;

/// The client does not take its replies at first; when it does, the device has as many threads as
/// it may have. Once there is room, the connection must still wait for room to write: nothing is
/// left to read.
#[test]
fn large_reads_are_all_answered_though_the_device_was_saturated() {
    let options = ServerOptions { max_threads: 8, ..server_options() };
    let rig = Rig::with(OpenPolicy::Multi, options);
    let reader = negotiated(&rig);
    let read = RegionAccess { offset: 0, region: LARGE, count: MIB };
    let reads: Vec<u8> =
        (1..=4).flat_map(|id| message(id, Command::RegionRead, read.as_bytes())).collect();
    reader.send(&reads, &[]).unwrap();
    let clients = || rig.served.as_ref().unwrap().clients();
    eventually("the reader's replies wait", || clients()[0].bytes_sent > u64::from(MIB));

    // Two threads may be with the device: one stalls, and one waits for it.
    let stallers = [negotiated(&rig), negotiated(&rig)];
    let access = RegionAccess { offset: STALL_MS, region: KNOBS, count: 8 };
    let stall = [access.as_bytes(), 400u64.as_bytes()].concat();
    for staller in &stallers {
        staller.send(&message(1, Command::RegionWrite, &stall), &[]).unwrap();
    }
    eventually("the device is saturated", || {
        clients().iter().filter(|c| c.messages >= 2).count() == 3
    });

    for id in 1..=4 {
        let reply = reader.receive_message().unwrap();
        assert_eq!((reply.header.id, reply.header.kind()), (id, Kind::Reply(Ok(()))));
        assert_eq!(reply.payload.len(), 16 + MIB as usize);
    }
}
