//! What makes the byte stream meaningless ends the connection; all else does not.

use vfiod_protocol::limits::{MAX_MESSAGE, MAX_STRAY_REPLIES};
use vfiod_protocol::wire::{Command, HEADER_LEN, Header};
use vfiod_protocol::{BadSize, End};
use zerocopy::IntoBytes;

use crate::driver::*;

#[test]
fn impossible_size_ends_it() {
    for size in [0, HEADER_LEN as u32 - 1, MAX_MESSAGE as u32 + 1, u32::MAX] {
        let mut driver = Driver::negotiated();
        let header = Header { size, ..Header::command(1, Command::DeviceReset, 0, false) };
        driver.feed(&[&message(0, Command::DeviceReset, &[]), header.as_bytes()].concat(), &[]);
        let end = End::Stream(BadSize { size, limit: MAX_MESSAGE });
        assert_eq!(driver.end, Some(end));
        // What came before has its reply.
        assert_eq!(driver.take_sent().len(), 1);
    }
}

#[test]
fn unknown_command_and_type_are_refused() {
    let mut driver = Driver::negotiated();
    let mut header = Header::command(3, Command::DeviceReset, 0, false);
    header.command = 999;
    driver.feed(header.as_bytes(), &[]);
    assert_eq!(driver.take_sent()[0].errno(), Some(ENOSYS));
    let mut header = Header::command(3, Command::DeviceReset, 0, false);
    header.flags = 2;
    driver.feed(header.as_bytes(), &[]);
    assert_eq!(driver.take_sent()[0].errno(), Some(EINVAL));
    assert_eq!(driver.end, None);
}

#[test]
fn commands_of_the_server_are_refused() {
    let mut driver = Driver::negotiated();
    for command in [Command::DmaRead, Command::DmaWrite] {
        assert_eq!(driver.ask(command, &[0; 16], &[]).unwrap().errno(), Some(EINVAL));
    }
}

#[test]
fn too_many_stray_replies_end_it() {
    let mut driver = Driver::negotiated();
    let stray = Header::command(1, Command::DmaRead, 0, false).reply(0);
    for _ in 0..MAX_STRAY_REPLIES {
        driver.feed(stray.as_bytes(), &[]);
    }
    assert_eq!(driver.end, None);
    driver.feed(stray.as_bytes(), &[]);
    assert_eq!(driver.end, Some(End::StrayReplies));
}
