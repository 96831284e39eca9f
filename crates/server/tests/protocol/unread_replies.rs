//! Replies that a client does not read: the kernel's memory for them is charged to it, for as long as it does
//! not.

use std::os::fd::AsFd;

use rustix::io::ioctl_fionread;
use vfiod_client::Socket;
use vfiod_core::OpenPolicy;
use vfiod_server::quota::{Limit, Resource, Share, Size};
use vfiod_wire::Command;
use vfiod_wire::payload::RegionAccess;
use zerocopy::IntoBytes;

use crate::rig::*;

const MIB: u32 = 1 << 20;

/// A multi-open device without a share, and so much memory for one user.
fn rig(memory: u64) -> Rig {
    let mut options = server_options();
    let common = |size| Limit::new(Size::Common(2 * size), Share::Demanded(0));
    options.limits.set(Resource::Memory, common(memory));
    options.limits.set(Resource::Descriptors, common(1000));
    Rig::with(OpenPolicy::Multi, options)
}

/// Descriptors and bytes of memory that are charged.
fn charged(rig: &Rig) -> [u64; 2] {
    [Resource::Descriptors, Resource::Memory].map(|resource| rig.server.usage(resource).used)
}

fn read(id: u16) -> Vec<u8> {
    let access = RegionAccess { offset: 0, region: MEMORY, count: MIB };
    message(id, Command::RegionRead, access.as_bytes())
}

/// Bytes that lie in the kernel for a client.
fn unread(socket: &Socket) -> u64 {
    ioctl_fionread(socket.as_fd()).unwrap()
}

#[test]
fn what_clients_do_not_read_is_charged_also_after_the_end_of_their_connections() {
    const CLIENTS: usize = 20;
    let mut rig = rig(256 << 20);
    let clients: Vec<_> = (0..CLIENTS).map(|_| negotiated(&rig)).collect();
    clients.iter().for_each(|client| client.send(&read(1), &[]).unwrap());
    eventually("each has a part", || clients.iter().all(|client| unread(client) > 0));
    assert!(rig.served.take().unwrap().finish(PATIENCE), "a connection has not ended");
    let lies: u64 = clients.iter().map(unread).sum();
    let [descriptors, memory] = charged(&rig);
    assert!(memory >= lies, "{memory} bytes are charged for {lies}");
    assert_eq!(descriptors, CLIENTS as u64, "the sockets stay");
    let mut bytes = vec![0; MIB as usize];
    let (read, unread) = clients.split_at(CLIENTS / 2);
    for socket in read {
        while rustix::net::recv(socket, &mut *bytes, rustix::net::RecvFlags::empty()).unwrap().0 > 0
        {
        }
    }
    eventually("what was read is given back", || charged(&rig)[0] == unread.len() as u64);
    assert!(charged(&rig)[1] <= memory * 3 / 4);
    drop(clients);
    eventually("all is given back", || charged(&rig) == [0, 0]);
}

#[test]
fn device_that_is_gone_leaves_its_share_to_others_though_a_client_has_not_read_all() {
    const TOTAL: u64 = 1000;
    let mut options = server_options();
    let shared = Limit::new(Size::Total(TOTAL), Share::Demanded(400));
    options.limits.set(Resource::Descriptors, shared);
    let mut rig = Rig::with(OpenPolicy::Multi, options);
    let common = |rig: &Rig| rig.server.usage(Resource::Descriptors).limit;
    assert_eq!(common(&rig), TOTAL - 400);
    let client = negotiated(&rig);
    client.send(&read(1), &[]).unwrap();
    eventually("a part lies there", || unread(&client) > 0);
    assert!(rig.served.take().unwrap().finish(PATIENCE), "the connection has not ended");
    eventually("the share is there for others", || common(&rig) == TOTAL - 1);
    drop(client);
    eventually("all is", || common(&rig) == TOTAL);
}

#[test]
fn who_has_no_memory_to_spare_is_served_through_a_small_buffer() {
    const CLIENTS: usize = 30;
    let rig = rig(8 << 20);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| rig.client()).collect();
    let [_, idle] = charged(&rig);
    let mut most = 0;
    let mut data = vec![0; MIB as usize];
    for round in 1..3 {
        for client in &mut clients {
            client.region_write(MEMORY, 0, &[round; 7]).unwrap();
            client.region_read(MEMORY, 0, &mut data).unwrap();
            assert_eq!((&data[..7], data[7..].iter().max()), (&[round; 7][..], Some(&0)));
            most = most.max(charged(&rig)[1]);
        }
    }
    // Replies are charged as well while they wait, but half is kept from larger buffers.
    eventually("no reply waits", || charged(&rig)[1] <= idle.max(4 << 20));
    assert!(most > idle, "no buffer was made larger");
    drop(clients);
    eventually("all is given back", || charged(&rig) == [0, 0]);
}

#[test]
fn client_without_the_device_open_gets_a_reply_only_if_it_is_charged() {
    let malformed = message(1, Command::Version, &[]);
    for (memory, is_charged) in [(1 << 20, true), (1, false)] {
        let rig = rig(memory);
        let socket = rig.socket();
        socket.send(&malformed, &[]).unwrap();
        if is_charged {
            eventually("a reply lies there", || unread(&socket) > 0);
            rig.wait_idle();
            let [descriptors, memory] = charged(&rig);
            assert!(descriptors == 1 && memory > 0, "{descriptors}, {memory}");
            assert_eq!(reply_errno(&socket.receive_message().unwrap()), EINVAL);
        }
        assert_closed(&socket);
        eventually("all is given back", || charged(&rig) == [0, 0]);
    }
}
