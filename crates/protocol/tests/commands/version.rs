//! VERSION, and nothing before it.

use vfiod_protocol::End;
use vfiod_protocol::limits::{MAX_FIRST_MESSAGE, MAX_VERSION_REPLY};
use vfiod_protocol::wire::{Capabilities, Command, Header, TwinSocket, Version};
use zerocopy::IntoBytes;

use crate::driver::*;

fn refused(driver: &Driver) -> bool {
    matches!(driver.end, Some(End::Refused(_)))
}

#[test]
fn reply_is_0_0_and_fits_qemu() {
    let proposed = Capabilities {
        max_msg_fds: Some(16),
        max_dma_maps: Some(65535),
        pgsizes: Some(4096),
        max_data_xfer_size: Some(1 << 20),
        write_multiple: Some(true),
        ..Capabilities::default()
    };
    let mut driver = Driver::fresh();
    driver.feed(&version(proposed), &[]);
    let reply = driver.take_sent().remove(0);
    assert!(reply.header.size as usize <= MAX_VERSION_REPLY);
    let decoded = Version::decode(&reply.payload).unwrap();
    assert_eq!((decoded.major, decoded.minor), (0, 0));
    assert_eq!(decoded.capabilities.write_multiple, Some(true));
    assert_eq!(decoded.capabilities.max_dma_maps, None, "no such number is a limit here");
    assert!(driver.connection.is_ready());
}

#[test]
fn second_socket_comes_with_the_reply() {
    let twin = Some(TwinSocket { supported: true, fd_index: None });
    let mut driver = Driver::fresh();
    driver.feed(&version(Capabilities { twin_socket: twin, ..Capabilities::default() }), &[]);
    let reply = driver.take_sent().remove(0);
    assert_eq!(reply.fds, [99]);
    let twin = Version::decode(&reply.payload).unwrap().capabilities.twin_socket.unwrap();
    assert_eq!((twin.supported, twin.fd_index), (true, Some(0)));
}

#[test]
fn anything_else_first_is_refused_and_ends_it() {
    for command in Command::ALL.iter().filter(|command| **command != Command::Version) {
        let mut driver = Driver::fresh();
        driver.feed(&message(0, *command, &[0; 32]), &[]);
        assert_eq!(driver.take_sent()[0].errno(), Some(EINVAL), "{command:?}");
        assert!(refused(&driver));
        assert!(driver.log.is_empty());
    }
}

#[test]
fn posted_first_message_gets_no_reply() {
    let mut driver = Driver::fresh();
    driver.feed(&posted(0, Command::Version, &[0; 4]), &[]);
    assert_eq!(driver.take_sent(), []);
    assert!(refused(&driver));
}

#[test]
fn other_major_and_bad_json_are_refused() {
    for payload in [&[1, 0, 0, 0][..], &[0; 3], b"\0\0\0\0{\"capabilities\":[]}"] {
        let mut driver = Driver::fresh();
        driver.feed(&message(0, Command::Version, payload), &[]);
        assert_eq!(driver.take_sent()[0].errno(), Some(EINVAL));
        assert!(refused(&driver));
    }
}

#[test]
fn first_message_is_short() {
    let mut driver = Driver::fresh();
    let header = Header::command(0, Command::Version, MAX_FIRST_MESSAGE, false);
    driver.feed(header.as_bytes(), &[]);
    assert!(matches!(driver.end, Some(End::Stream(_))));
}

#[test]
fn second_version_is_refused_and_the_connection_lives() {
    let mut driver = Driver::negotiated();
    driver.feed(&version(Capabilities::default()), &[]);
    assert_eq!(driver.take_sent()[0].errno(), Some(EINVAL));
    assert_eq!(driver.end, None);
}

#[test]
fn reply_before_it_counts_as_nothing() {
    let mut driver = Driver::fresh();
    let stray = Header::command(1, Command::DmaRead, 0, false).reply(0);
    driver.feed(&[stray.as_bytes(), &version(Capabilities::default())].concat(), &[]);
    assert_eq!((driver.take_sent().len(), &driver.end), (1, &None));
}
