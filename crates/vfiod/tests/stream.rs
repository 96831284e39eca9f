//! Clients that use their socket as no client does, against the program itself: out-of-band bytes, one
//! direction shut down, descriptors anywhere in a message. Each gets a reply or is disconnected; nothing
//! of it is kept, no thread spins, and its neighbour is served.

mod process;

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use process::{Daemon, until, vfiod};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, send, sendmsg};
use vfiod_wire::payload::{DmaMap, RegionAccess};
use vfiod_wire::{Command, Header, Kind};
use zerocopy::IntoBytes;

/// A daemon with two devices: the attacked one, which takes one client, and its neighbour.
struct Stage {
    directory: tempfile::TempDir,
    daemon: Daemon,
}

impl Stage {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let text = ["attacked", "neighbour"]
            .map(|name| format!("[device.{name}]\nmodel = \"edu\"\nsocket = {:?}\n", at(name)));
        std::fs::write(at("vfiod.toml"), text.concat()).unwrap();
        let mut command = vfiod(["serve"]);
        command.arg(at("vfiod.toml"));
        let daemon = Daemon::serving(command, &[&at("attacked"), &at("neighbour")]);
        let stage = Self { directory, daemon };
        // What the first client makes the daemon keep is no leak, nor what its first descriptors do.
        let mut stream = stage.negotiated();
        assert!(send_with(&stream, &read_numbers(2), &[memory()]));
        assert_eq!(reply(&mut stream).map(|header| header.id), Some(2));
        assert!(send_with(&stream, &map(3), &[memory()]));
        assert_eq!(reply(&mut stream).map(|header| header.id), Some(3));
        drop(stream);
        stage.assert_sound();
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A connection that has negotiated its version.
    fn negotiated(&self) -> UnixStream {
        let mut stream = UnixStream::connect(self.path("attacked")).unwrap();
        // A reply that does not come fails the test.
        stream.set_read_timeout(Some(process::PATIENCE)).unwrap();
        let version = [&[0, 0, 1, 0][..], b"{}\0"].concat();
        stream.write_all(&message(1, Command::Version, &version)).unwrap();
        assert_eq!(reply(&mut stream).unwrap().kind(), Kind::Reply(Ok(())));
        stream
    }

    /// The attacked device can be opened and works, and so does its neighbour.
    fn assert_sound(&self) {
        self.assert_serves("attacked");
        self.assert_serves("neighbour");
    }

    fn assert_serves(&self, name: &str) {
        // The device is free once its last client has been noticed to be gone.
        let mut client = None;
        until("the end of the last client", || {
            client = process::connect(self.path(name)).ok();
            client.is_some()
        });
        let mut client = client.unwrap();
        client.region_write(7, 4, &[2]).unwrap();
        let mut id = [0; 4];
        client.region_read(0, 0, &mut id).unwrap();
        assert_eq!(u32::from_le_bytes(id), 0x0100_00ed);
    }

    /// Waits until the daemon has as many descriptors as before.
    fn assert_nothing_kept(&self, before: usize) {
        until("the end of what a client has sent", || self.daemon.descriptors() <= before);
    }

    fn descriptors(&self) -> usize {
        // The last client's end is noticed a moment later.
        let mut last = usize::MAX;
        until("a constant number of descriptors", || {
            let now = self.daemon.descriptors();
            std::mem::replace(&mut last, now) == now
        });
        last
    }
}

fn message(id: u16, command: Command, payload: &[u8]) -> Vec<u8> {
    let header = Header::command(id, command, payload.len(), false);
    [header.as_bytes(), payload].concat()
}

/// A read of edu's identification in its vendor and device number.
fn read_numbers(id: u16) -> Vec<u8> {
    let access = RegionAccess { offset: 0, region: 7, count: 4 };
    message(id, Command::RegionRead, access.as_bytes())
}

fn map(id: u16) -> Vec<u8> {
    let map = DmaMap { argsz: 32, flags: 3, offset: 0, address: 0x1000, size: 0x1000 };
    message(id, Command::DmaMap, map.as_bytes())
}

/// The header of the next reply; `None`: the connection has ended.
fn reply(stream: &mut UnixStream) -> Option<Header> {
    let mut header = [0; 16];
    match stream.read_exact(&mut header) {
        Ok(()) => {}
        Err(error)
            if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) =>
        {
            return None;
        }
        Err(error) => panic!("neither a reply nor the end of the connection: {error}"),
    }
    let header = Header::parse(&header).unwrap();
    stream.read_exact(&mut vec![0; header.size as usize - 16]).unwrap();
    Some(header)
}

fn memory() -> OwnedFd {
    let fd = memfd_create("stream", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, 0x1000).unwrap();
    fd
}

/// Sends bytes with descriptors. Returns whether anybody took them.
fn send_with(stream: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) -> bool {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    match sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
        Ok(count) => {
            assert_eq!(count, bytes.len());
            true
        }
        Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => false,
        Err(errno) => panic!("{errno}"),
    }
}

#[test]
fn out_of_band_bytes_are_bytes_of_the_stream_like_others() {
    let stage = Stage::start();
    let before = stage.descriptors();
    let mut stream = stage.negotiated();
    for whole in [read_numbers(2), read_numbers(3)] {
        // The first byte of a message, one of its header, and one of its payload.
        for at in [0, 7, 20] {
            stream.write_all(&whole[..at]).unwrap();
            match send(&stream, &whole[at..=at], SendFlags::OOB | SendFlags::NOSIGNAL) {
                Err(rustix::io::Errno::OPNOTSUPP) => {
                    eprintln!("SKIPPED: this kernel has no out-of-band bytes on UNIX sockets");
                    return;
                }
                sent => assert_eq!(sent, Ok(1)),
            }
            stream.write_all(&whole[at + 1..]).unwrap();
            let header = reply(&mut stream).expect("the connection has ended in place of a reply");
            assert_eq!(header.kind(), Kind::Reply(Ok(())), "byte {at}");
        }
    }
    // As the last byte, with nothing behind it: a message that never ends.
    send(&stream, b"!", SendFlags::OOB | SendFlags::NOSIGNAL).unwrap();
    until("every thread to sleep", || stage.daemon.is_asleep());
    drop(stream);
    stage.assert_sound();
    stage.assert_nothing_kept(before);
}

#[test]
fn connection_ends_with_the_stream_of_its_client_and_lives_without_a_reader() {
    let stage = Stage::start();
    let before = stage.descriptors();
    // Nothing comes any more: what was asked before is answered, then the connection ends.
    let mut stream = stage.negotiated();
    stream.write_all(&read_numbers(2)).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(reply(&mut stream).map(|header| header.id), Some(2));
    assert!(reply(&mut stream).is_none());
    stage.assert_sound();
    drop(stream);
    // In the middle of a message.
    let mut stream = stage.negotiated();
    stream.write_all(&read_numbers(3)[..9]).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert!(reply(&mut stream).is_none());
    stage.assert_sound();
    drop(stream);
    // Replies cannot be sent any more: they are dropped, and the device stays the client's until that
    // closes the connection, as that of one that asks for nothing.
    let mut stream = stage.negotiated();
    stream.shutdown(Shutdown::Read).unwrap();
    // Whichever of these is the first that a connection does not take which has ended.
    let mut ask = |id| stream.write_all(&read_numbers(id)).expect("the connection lives");
    (4..100).for_each(&mut ask);
    stage.assert_serves("neighbour");
    until("every thread to sleep", || stage.daemon.is_asleep());
    ask(100);
    let second = process::connect(stage.path("attacked"));
    assert!(second.is_err(), "the connection lives no longer than its client: the device is free");
    drop(stream);
    stage.assert_sound();
    stage.assert_nothing_kept(before);
}

#[test]
fn descriptors_in_the_middle_of_a_message_are_used_or_closed() {
    let stage = Stage::start();
    let before = stage.descriptors();
    // With any byte of the message that asks for one: it belongs to that message.
    let whole = map(2);
    for cut in [1, 15, 16, 17, whole.len() - 1] {
        let mut stream = stage.negotiated();
        stream.write_all(&whole[..cut]).unwrap();
        assert!(send_with(&stream, &whole[cut..], &[memory()]));
        assert_eq!(reply(&mut stream).unwrap().kind(), Kind::Reply(Ok(())), "cut at {cut}");
        let is_mapped = stage.daemon.read("maps").contains("memfd:stream");
        assert!(is_mapped, "the descriptor was not used, cut at {cut}");
        drop(stream);
        stage.assert_nothing_kept(before + 1);
    }
    // In a message that asks for none: closed, and the message is answered.
    let whole = read_numbers(3);
    let mut stream = stage.negotiated();
    stream.write_all(&whole[..10]).unwrap();
    assert!(send_with(&stream, &whole[10..20], &[memory(), memory(), memory()]));
    stream.write_all(&whole[20..]).unwrap();
    assert_eq!(reply(&mut stream).unwrap().id, 3);
    stream.write_all(&read_numbers(4)).unwrap();
    assert_eq!(reply(&mut stream).unwrap().kind(), Kind::Reply(Ok(())));
    drop(stream);
    stage.assert_sound();
    stage.assert_nothing_kept(before);
}

#[test]
fn message_in_pieces_of_a_byte_with_descriptors_in_each_leaves_nothing_behind() {
    let stage = Stage::start();
    let before = stage.descriptors();
    for per_byte in [1, 16] {
        let mut stream = stage.negotiated();
        let fds: Vec<_> = (0..per_byte).map(|_| memory()).collect();
        let whole = map(2);
        // Whoever sends too many may be disconnected in the middle.
        let taken = whole.iter().all(|byte| send_with(&stream, &[*byte], &fds));
        if taken && let Some(header) = reply(&mut stream) {
            assert_eq!(header.id, 2);
            assert_ne!(header.kind(), Kind::Reply(Ok(())), "more than it can use");
        }
        drop(stream);
        stage.assert_sound();
        stage.assert_nothing_kept(before);
    }
}
