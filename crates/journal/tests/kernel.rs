//! The kernel does what the model in `deaths.rs` says of sockets and files. On a kernel for which this fails
//! the protocol is not exact.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::libc;
use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use vfiod_journal::intake::{BrokenIntake, Intake, PeekedStream, WORDS};
use vfiod_journal::memory::{SharedWords, Words, create_file};
use vfiod_journal::outbox::{Outbox, Output, SentFile};

/// `SO_PEEK_OFF`.
#[derive(Clone, Copy)]
struct PeekOffset;
nix::setsockopt_impl!(PeekOffset, libc::SOL_SOCKET, libc::SO_PEEK_OFF, usize, sockopt::SetUsize);
nix::getsockopt_impl!(PeekOffset, libc::SOL_SOCKET, libc::SO_PEEK_OFF, usize, sockopt::GetUsize);

struct Socket(UnixStream);

impl PeekedStream for Socket {
    type Error = nix::Error;

    fn peeked(&self) -> Result<u64, nix::Error> {
        Ok(getsockopt(&self.0, PeekOffset)? as u64)
    }

    fn set_peeked(&self, bytes: u64) -> Result<(), nix::Error> {
        setsockopt(&self.0, PeekOffset, &(bytes as usize))
    }

    fn receive(&self, most: u64) -> Result<u64, nix::Error> {
        let mut buffer = vec![0; most as usize];
        let got = rustix::net::recv(&self.0, &mut *buffer, RecvFlags::DONTWAIT);
        Ok(got.map_or(0, |(bytes, _)| bytes as u64))
    }
}

fn pair() -> (Socket, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    rustix::net::sockopt::set_socket_oobinline(&ours, true).unwrap();
    let ours = Socket(ours);
    ours.set_peeked(0).unwrap();
    (ours, theirs)
}

fn peek(socket: &Socket, most: usize) -> Vec<u8> {
    let mut buffer = vec![0; most];
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let mut control = rustix::net::RecvAncillaryBuffer::default();
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let got = rustix::net::recvmsg(&socket.0, &mut parts, &mut control, flags).unwrap().bytes;
    buffer.truncate(got);
    buffer
}

fn words() -> SharedWords {
    SharedWords::open(SharedWords::create("words", WORDS).unwrap(), WORDS).unwrap()
}

#[test]
fn receive_lowers_the_peek_offset_by_what_it_received() {
    let (ours, mut theirs) = pair();
    theirs.write_all(b"hello ").unwrap();
    theirs.write_all(b"world").unwrap();
    assert_eq!(peek(&ours, 4), b"hell");
    assert_eq!(peek(&ours, 4), b"o wo");
    assert_eq!(ours.peeked().unwrap(), 8);
    assert_eq!(ours.receive(3).unwrap(), 3);
    assert_eq!(ours.peeked().unwrap(), 5);
    assert_eq!(peek(&ours, 10), b"rld");
    assert_eq!(ours.peeked().unwrap(), 8);
}

#[test]
fn take_that_was_cut_is_finished() {
    for cut in 0..=8 {
        let (ours, mut theirs) = pair();
        let words = words();
        theirs.write_all(b"0123456789").unwrap();
        assert_eq!(peek(&ours, 20), b"0123456789");
        Intake::recover(&words, 0, &ours, 0).unwrap();
        assert_eq!(peek(&ours, 9), b"012345678");
        // What a take does before its process dies.
        words.store(2, 9);
        words.publish(1, 8);
        assert_eq!(ours.receive(cut).unwrap(), cut);
        let intake = Intake::recover(&words, 0, &ours, 8).unwrap();
        assert_eq!(intake.base(), 8);
        assert_eq!(peek(&ours, 20), b"89", "{cut}");
    }
}

#[test]
fn input_that_somebody_else_received_is_missed() {
    let (ours, mut theirs) = pair();
    let words = words();
    let mut intake = Intake::recover(&words, 0, &ours, 0).unwrap();
    theirs.write_all(b"0123").unwrap();
    peek(&ours, 4);
    ours.receive(2).unwrap();
    assert!(matches!(intake.take(&ours, 4), Err(BrokenIntake::Missing(_))));
    // Each word of its own may be damaged.
    for (at, value) in [(0, 5), (1, 1), (2, 1), (2, u64::MAX)] {
        let words = self::words();
        words.store(1, 4);
        words.store(2, 4);
        words.store(at, value);
        assert!(Intake::recover(&words, 0, &ours, 0).is_err(), "{at} {value}");
    }
}

#[test]
fn out_of_band_byte_is_counted_alike_by_peek_and_receive() {
    let (ours, mut theirs) = pair();
    theirs.write_all(b"ab").unwrap();
    if rustix::net::send(&theirs, b"!", SendFlags::OOB) == Err(Errno::OPNOTSUPP) {
        return;
    }
    theirs.write_all(b"cd").unwrap();
    let mut peeked = Vec::new();
    while peeked.len() < 5 {
        peeked.extend(peek(&ours, 8));
    }
    assert_eq!(peeked, b"ab!cd");
    let words = words();
    words.store(2, 5);
    words.publish(1, 5);
    assert_eq!(Intake::recover(&words, 0, &ours, 5).unwrap().base(), 5);
}

struct File {
    socket: UnixStream,
    file: OwnedFd,
}

impl SentFile for File {
    type Error = Errno;

    fn position(&self) -> Result<u64, Errno> {
        rustix::fs::seek(&self.file, SeekFrom::Current(0))
    }

    fn rewind(&self) -> Result<(), Errno> {
        rustix::fs::seek(&self.file, SeekFrom::Start(0)).map(|_| ())
    }

    fn send(&self, most: u64) -> Result<u64, Errno> {
        match rustix::fs::sendfile(&self.socket, &self.file, None, most as usize) {
            Ok(sent) => Ok(sent as u64),
            Err(Errno::AGAIN) => Ok(0),
            Err(errno) => Err(errno),
        }
    }
}

#[test]
fn position_of_the_file_says_what_was_sent() {
    const LEN: u64 = 4 << 20;
    let (socket, mut theirs) = UnixStream::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    let file = File { socket, file: create_file("outbox", LEN).unwrap() };
    let bytes: Vec<u8> = (0..LEN).map(|at| (at / 7) as u8).collect();
    rustix::io::pwritev(&file.file, &[IoSlice::new(&bytes)], 0).unwrap();
    let output = Output { lap: 100, end: 100 + LEN };
    let (mut got, mut buffer) = (Vec::new(), vec![0; 100_000]);
    loop {
        // Another one each time, as after a death; and a duplicate of the same open file.
        let file = File {
            socket: file.socket.try_clone().unwrap(),
            file: file.file.as_fd().try_clone_to_owned().unwrap(),
        };
        let mut outbox = Outbox::recover(&file, output).unwrap();
        assert_eq!(outbox.send(&file, output).unwrap(), outbox.sent() == output.end);
        assert_eq!(file.position().unwrap(), outbox.sent() - output.lap);
        if outbox.sent() == output.end {
            break;
        }
        let read = theirs.read(&mut buffer).unwrap();
        got.extend_from_slice(&buffer[..read]);
    }
    drop(file);
    while let Ok(read) = theirs.read(&mut buffer) {
        if read == 0 {
            break;
        }
        got.extend_from_slice(&buffer[..read]);
    }
    assert!(got == bytes, "{} bytes arrived", got.len());
}

#[test]
fn lap_that_is_committed_empty_begins_at_the_beginning() {
    let (socket, _theirs) = UnixStream::pair().unwrap();
    let file = File { socket, file: create_file("outbox", 4096).unwrap() };
    let output = Output { lap: 0, end: 100 };
    let mut outbox = Outbox::recover(&file, output).unwrap();
    // Not before everything is sent.
    assert!(outbox.restart(&file, output.next_lap()).is_err());
    assert!(outbox.send(&file, output).unwrap());
    assert!(Outbox::recover(&file, Output { lap: 0, end: 99 }).is_err());
    assert!(Outbox::recover(&file, Output { lap: 1, end: 0 }).is_err());
    let outbox = Outbox::recover(&file, output.next_lap()).unwrap();
    assert_eq!((outbox.sent(), file.position().unwrap()), (100, 0));
}
