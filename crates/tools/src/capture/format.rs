//! The file of a captured session.
//!
//! ```text
//! vfiod capture 1: contains guest data\n
//! record …
//!
//! record: kind (1 byte), number of descriptors (1), 0 (2), length (4), time in ns (8), bytes
//! ```
//!
//! All numbers are in the byte order of the machine that captured, as in the messages. A capture
//! that was not ended by its client has no [`Event::End`].

use std::io::{self, Read, Write};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a file begins with.
const MAGIC: &[u8] = b"vfiod capture 1: contains guest data\n";
/// Longest record that is read: the longest message, with room.
const MAX_LEN: u32 = 16 << 20;

/// What happened, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A message that the server got, and how many eventfds came with it.
    Client { message: Vec<u8>, eventfds: u8 },
    /// A message that the client got, or a DMA message that was answered for it.
    Server { message: Vec<u8> },
    /// The server signalled a vector.
    Signal(Signal),
    /// The client signalled an unmasking eventfd.
    Unmask(Signal),
    /// Input that the device got from outside since the last time: a [`vfiod_wire::input::InputLog`].
    Inputs(Vec<u8>),
    /// The client closed the connection.
    End,
}

/// An eventfd was signalled.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub(crate) struct Signal {
    pub(crate) index: u32,
    pub(crate) vector: u32,
    /// How often since the last time.
    pub(crate) count: u64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Head {
    kind: u8,
    fds: u8,
    zero: u16,
    len: u32,
    time: u64,
}

/// Why no further event was read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The file ends in the middle, or without the end of the session.
    #[error("the capture is truncated")]
    Truncated,
    #[error("not a capture, which begins with \"vfiod capture 1\"")]
    OtherFile,
    #[error("a capture of version {0}; this program reads version 1")]
    OtherVersion(String),
    #[error("a damaged record: kind {0}, {1} bytes")]
    Damaged(u8, u32),
    #[error("cannot read the capture")]
    Io(#[from] io::Error),
}

/// Writes a file.
pub(crate) struct Writer<W> {
    file: W,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(mut file: W) -> io::Result<Self> {
        file.write_all(MAGIC)?;
        Ok(Self { file })
    }

    /// Appends an event that happened `time` nanoseconds after the beginning.
    pub(crate) fn write(&mut self, event: &Event, time: u64) -> io::Result<()> {
        let (kind, fds, bytes) = match event {
            Event::Client { message, eventfds } => (1, *eventfds, &message[..]),
            Event::Server { message } => (2, 0, &message[..]),
            Event::Signal(signal) => (3, 0, signal.as_bytes()),
            Event::Unmask(signal) => (4, 0, signal.as_bytes()),
            Event::End => (5, 0, &[][..]),
            Event::Inputs(log) => (6, 0, &log[..]),
        };
        let head = Head { kind, fds, zero: 0, len: bytes.len() as u32, time };
        self.file.write_all(head.as_bytes())?;
        self.file.write_all(bytes)?;
        // So that what the program's end cuts off is little.
        self.file.flush()
    }
}

/// Reads a file, which may come from anybody.
pub(crate) struct Reader<R> {
    file: R,
}

/// Fills `bytes`; an end of the file before is [`ReadError::Truncated`].
fn fill(file: &mut impl Read, bytes: &mut [u8]) -> Result<(), ReadError> {
    file.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ReadError::Truncated,
        _ => ReadError::Io(error),
    })
}

/// What a file is that begins with other bytes.
fn other_file(bytes: &[u8]) -> ReadError {
    let rest = bytes.strip_prefix(b"vfiod capture ").unwrap_or_default();
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let version = String::from_utf8_lossy(&rest[..digits]).into_owned();
    if version.is_empty() || version == "1" {
        ReadError::OtherFile
    } else {
        ReadError::OtherVersion(version)
    }
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(mut file: R) -> Result<Self, ReadError> {
        let mut magic = Vec::new();
        (&mut file).take(MAGIC.len() as u64).read_to_end(&mut magic)?;
        if magic == MAGIC { Ok(Self { file }) } else { Err(other_file(&magic)) }
    }

    /// The next event.
    pub(crate) fn read(&mut self) -> Result<Event, ReadError> {
        let mut head = [0; size_of::<Head>()];
        fill(&mut self.file, &mut head)?;
        let Head { kind, fds, zero, len, .. } = zerocopy::transmute!(head);
        let damaged = ReadError::Damaged(kind, len);
        if zero != 0 || len > MAX_LEN {
            return Err(damaged);
        }
        // Grows with what is there, not with what the record claims.
        let mut bytes = Vec::new();
        (&mut self.file).take(len.into()).read_to_end(&mut bytes)?;
        if bytes.len() < len as usize {
            return Err(ReadError::Truncated);
        }
        let signal = Signal::read_from_bytes(&bytes).ok();
        match (kind, signal) {
            (1, _) => Ok(Event::Client { message: bytes, eventfds: fds }),
            (2, _) => Ok(Event::Server { message: bytes }),
            (3, Some(signal)) => Ok(Event::Signal(signal)),
            (4, Some(signal)) => Ok(Event::Unmask(signal)),
            (5, _) if bytes.is_empty() => Ok(Event::End),
            (6, _) => Ok(Event::Inputs(bytes)),
            _ => Err(damaged),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events() -> Vec<Event> {
        let signal = Signal { index: 2, vector: 3, count: 1 };
        vec![
            Event::Client { message: vec![1; 20], eventfds: 2 },
            Event::Server { message: vec![2; 30] },
            Event::Signal(signal),
            Event::Unmask(signal),
            Event::Inputs(vec![3; 16]),
            Event::End,
        ]
    }

    fn file() -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes).unwrap();
        events().iter().for_each(|event| writer.write(event, 7).unwrap());
        bytes
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = file();
        let mut reader = Reader::new(&bytes[..]).unwrap();
        let read: Vec<_> = (0..6).map(|_| reader.read().unwrap()).collect();
        assert_eq!(read, events());
    }

    #[test]
    fn every_cut_is_noticed() {
        let bytes = file();
        for end in 0..bytes.len() {
            match Reader::new(&bytes[..end]) {
                Err(error) => assert!(end < MAGIC.len(), "{error}"),
                Ok(mut reader) => loop {
                    match reader.read() {
                        Ok(event) => assert_ne!(event, Event::End),
                        Err(ReadError::Truncated) => break,
                        Err(error) => panic!("{error}"),
                    }
                },
            }
        }
    }

    #[test]
    fn damaged_records_are_refused() {
        let mut bytes = file();
        bytes[MAGIC.len()] = 9;
        assert!(matches!(Reader::new(&bytes[..]).unwrap().read(), Err(ReadError::Damaged(9, 20))));
        bytes[MAGIC.len()] = 1;
        bytes[MAGIC.len() + 4..MAGIC.len() + 8].fill(0xff);
        let read = Reader::new(&bytes[..]).unwrap().read();
        assert!(matches!(read, Err(ReadError::Damaged(1, u32::MAX))));
        for other in
            [&b""[..], b"other", b"vfiod capture 1", b"vfiod capture x: contains guest data\n"]
        {
            assert!(matches!(Reader::new(other), Err(ReadError::OtherFile)));
        }
        let other = b"vfiod capture 12: contains guest data\n";
        let error = Reader::new(&other[..]).err().unwrap();
        assert_eq!(error.to_string(), "a capture of version 12; this program reads version 1");
    }
}
