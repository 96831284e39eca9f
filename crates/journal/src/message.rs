//! Messages between the worker and the holder.
//!
//! Each is one packet of a `SOCK_SEQPACKET` socket: its number, then its fields, all little-endian and of
//! fixed size. Both sides read them as hostile: the worker may have been taken over by a client, and the
//! holder's memory is nothing that a worker should have to trust more than needed.

/// Which protocol this is. A holder and a worker of different versions of a program meet at every upgrade.
pub const PROTOCOL: u32 = 1;
/// Bytes of the longest message.
pub const MAX_LEN: usize = 128;
/// Bytes that a reply with descriptors may begin with.
pub const MAX_HEAD: usize = 64;
/// Descriptors that a reply may have.
pub const MAX_REPLY_FDS: usize = 16;

/// Names a kept descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Whose it is: a connection's number, or what the worker likes below [`Key::FIRST_CONNECTION`].
    pub owner: u64,
    /// Which of them. For what a client sent: where in the input it came.
    pub token: u64,
}

impl Key {
    /// The number of the first connection. Owners with a smaller number are no connections.
    pub const FIRST_CONNECTION: u64 = 1 << 32;
}

/// What a kept descriptor is to the holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Only kept.
    Plain,
    /// A listening socket, from which the holder accepts while it is told to.
    Listener,
    /// A socket that is a connection already: it becomes one of its own.
    Connected,
}

/// What the worker decides about the holder's behaviour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Most connections at a time; more stay in the queue of their listening socket.
    pub connections: u32,
    /// Most other descriptors that are kept.
    pub kept: u32,
    /// Milliseconds before the worker is started again, after so many deaths in a row; the last one counts
    /// for all that follow.
    pub backoff_ms: [u32; 8],
    /// Milliseconds that a worker must have run for its death to be the first in a row.
    pub stable_ms: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connections: 1024,
            kept: 1 << 16,
            backoff_ms: [0, 0, 0, 100, 500, 1000, 2000, 5000],
            stable_ms: 60_000,
        }
    }
}

/// Why the worker before this one has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// There was none.
    First,
    /// It exited with this status.
    Exit(i32),
    /// This signal ended it.
    Signal(i32),
    /// The holder killed it, as it had closed its link.
    LinkClosed,
    /// It was stopped for another holder to take over.
    Replaced,
    /// The kernel did not say.
    Unknown,
}

impl std::fmt::Display for Death {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::First => f.write_str("not started before"),
            Self::Exit(status) => write!(f, "exit status {status}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::LinkClosed => f.write_str("killed, as it had closed its link with the holder"),
            Self::Replaced => f.write_str("stopped for another holder"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// How often workers have ended against the holder's will, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deaths {
    /// By a signal, such as SIGSEGV, or SIGKILL where memory ran out.
    pub signal: u64,
    /// By `exit`.
    pub exit: u64,
    /// They had closed their link, and were killed.
    pub link: u64,
    /// The kernel did not say.
    pub unknown: u64,
}

impl Deaths {
    /// Counts a death.
    pub fn add(&mut self, death: Death) {
        let count = match death {
            Death::First | Death::Replaced => return,
            Death::Signal(_) => &mut self.signal,
            Death::Exit(_) => &mut self.exit,
            Death::LinkClosed => &mut self.link,
            Death::Unknown => &mut self.unknown,
        };
        *count += 1;
    }
}

/// What a worker asks of the holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToHolder {
    /// Which protocol the worker speaks. The first message.
    Hello {
        /// [`PROTOCOL`].
        protocol: u32,
    },
    /// Keep the descriptor that comes with this. One that is kept under the key already is replaced, but not
    /// a connected one.
    Keep {
        /// Its name.
        key: Key,
        /// What it is.
        class: Class,
    },
    /// Close what is kept under a key.
    Drop {
        /// Its name.
        key: Key,
    },
    /// Close everything of an owner; of a connection its socket, journal and outbox, too.
    DropOwner {
        /// Whose.
        owner: u64,
    },
    /// Accept from a listening socket, or do not.
    Listen {
        /// Its name.
        key: Key,
        /// Whether to accept.
        on: bool,
    },
    /// What the holder does from now on.
    Set(Settings),
    /// Send the beginning of a reply with the descriptors that come with this, and move the outbox behind
    /// it. It is done once for each position: to repeat it does nothing.
    SendHead {
        /// Which connection.
        connection: u64,
        /// Where in the output the reply begins.
        position: u64,
        /// The bytes.
        head: Head,
    },
    /// Everything is recovered; the worker serves.
    Ready,
    /// The next end of the worker is the holder's, too.
    Finish,
}

/// The beginning of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    len: u8,
    bytes: [u8; MAX_HEAD],
}

impl Head {
    /// `None` for none or too many bytes.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut this = Self { len: u8::try_from(bytes.len()).ok()?, bytes: [0; MAX_HEAD] };
        this.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        (!bytes.is_empty()).then_some(this)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&[])
    }
}

/// What the holder tells a worker, or the holder that takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToWorker {
    /// The first message.
    Begin {
        /// [`PROTOCOL`] of the holder.
        protocol: u32,
        /// How many workers were started before.
        starts: u64,
        /// The number that the next connection gets.
        next_connection: u64,
        /// How the one before ended.
        death: Death,
        /// When that was seen: nanoseconds of CLOCK_MONOTONIC; 0 if there was none.
        died: u64,
        /// How all of them ended.
        deaths: Deaths,
    },
    /// What the holder was told to do.
    Settings(Settings),
    /// A descriptor that is kept; it comes with this.
    Kept {
        /// Its name.
        key: Key,
        /// What it is.
        class: Class,
        /// Whether connections are accepted from it.
        listening: bool,
    },
    /// A connection. Its socket, journal and outbox come with this.
    Connection {
        /// Its number, which is never given to another one.
        number: u64,
        /// The listening socket it came from, or the key it was kept under.
        origin: Key,
        /// Where in the output the last reply began that the holder has sent descriptors with, plus one; 0: none.
        sent: u64,
    },
    /// Everything that was kept is handed over. What follows is new.
    Complete,
    /// The most connections are there; those of this listening socket wait.
    Crowded {
        /// Its name.
        key: Key,
    },
    /// The result of [`ToHolder::SendHead`]: 0, or an errno. `EAGAIN`: the peer takes nothing for now.
    Sent {
        /// Which connection.
        connection: u64,
        /// Where in the output the reply begins.
        position: u64,
        /// The errno.
        errno: u32,
    },
    /// Something was not done.
    Refused {
        /// The number of the message; 0 if it could not be read.
        message: u32,
        /// Its key, or owner.
        key: Key,
        /// Why.
        errno: u32,
    },
}

/// A message that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message {number} of {len} bytes is malformed")]
pub struct Malformed {
    /// Its number; 0 if it has none.
    pub number: u32,
    /// Its length.
    pub len: usize,
}

/// A message as bytes.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    len: usize,
    bytes: [u8; MAX_LEN],
}

impl Packet {
    fn new(number: u32) -> Self {
        let mut this = Self { len: 0, bytes: [0; MAX_LEN] };
        this.put(&number.to_le_bytes());
        this
    }

    fn put(&mut self, bytes: &[u8]) {
        // Every message fits: `every_message_survives_the_way` has the longest.
        if let Some(room) = self.bytes.get_mut(self.len..self.len + bytes.len()) {
            room.copy_from_slice(bytes);
            self.len += bytes.len();
        }
    }

    fn u32(mut self, value: u32) -> Self {
        self.put(&value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.put(&value.to_le_bytes());
        self
    }

    fn key(self, key: Key) -> Self {
        self.u64(key.owner).u64(key.token)
    }

    fn settings(self, settings: Settings) -> Self {
        let Settings { connections, kept, backoff_ms, stable_ms } = settings;
        let this = self.u32(connections).u32(kept).u32(stable_ms);
        backoff_ms.into_iter().fold(this, Self::u32)
    }

    /// The bytes to be sent.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

/// Reads fields; `None` where there are too few bytes.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&mut self) -> Option<u32> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*first))
    }

    fn u64(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*first))
    }

    fn flag(&mut self) -> Option<bool> {
        match self.u32()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn key(&mut self) -> Option<Key> {
        Some(Key { owner: self.u64()?, token: self.u64()? })
    }

    fn class(&mut self) -> Option<Class> {
        [Class::Plain, Class::Listener, Class::Connected].get(self.u32()? as usize).copied()
    }

    fn settings(&mut self) -> Option<Settings> {
        let (connections, kept, stable_ms) = (self.u32()?, self.u32()?, self.u32()?);
        let mut backoff_ms = [0; 8];
        for delay in &mut backoff_ms {
            *delay = self.u32()?;
        }
        Some(Settings { connections, kept, backoff_ms, stable_ms })
    }

    fn deaths(&mut self) -> Option<Deaths> {
        let (signal, exit) = (self.u64()?, self.u64()?);
        Some(Deaths { signal, exit, link: self.u64()?, unknown: self.u64()? })
    }

    fn death(&mut self) -> Option<Death> {
        let (what, value) = (self.u32()?, self.u32()? as i32);
        Some(match (what, value) {
            (0, 0) => Death::First,
            (1, status) => Death::Exit(status),
            (2, signal) => Death::Signal(signal),
            (3, 0) => Death::LinkClosed,
            (4, 0) => Death::Replaced,
            (5, 0) => Death::Unknown,
            _ => return None,
        })
    }
}

/// Reads a message with `fields`, which must use all of it.
fn decode<T>(
    bytes: &[u8],
    fields: impl FnOnce(u32, &mut Fields<'_>) -> Option<T>,
) -> Result<T, Malformed> {
    let mut rest = Fields(bytes);
    let number = rest.u32().unwrap_or(0);
    let message = fields(number, &mut rest);
    message.filter(|_| rest.0.is_empty()).ok_or(Malformed { number, len: bytes.len() })
}

fn class_number(class: Class) -> u32 {
    match class {
        Class::Plain => 0,
        Class::Listener => 1,
        Class::Connected => 2,
    }
}

impl ToHolder {
    /// The message's number.
    pub fn number(&self) -> u32 {
        match self {
            Self::Hello { .. } => 1,
            Self::Keep { .. } => 2,
            Self::Drop { .. } => 3,
            Self::DropOwner { .. } => 4,
            Self::Listen { .. } => 5,
            Self::Set(_) => 6,
            Self::SendHead { .. } => 7,
            Self::Ready => 8,
            Self::Finish => 9,
        }
    }

    /// The message as bytes.
    pub fn encode(&self) -> Packet {
        let packet = Packet::new(self.number());
        match *self {
            Self::Hello { protocol } => packet.u32(protocol),
            Self::Keep { key, class } => packet.key(key).u32(class_number(class)),
            Self::Drop { key } => packet.key(key),
            Self::DropOwner { owner } => packet.u64(owner),
            Self::Listen { key, on } => packet.key(key).u32(u32::from(on)),
            Self::Set(settings) => packet.settings(settings),
            Self::SendHead { connection, position, head } => {
                let mut packet = packet.u64(connection).u64(position);
                packet.put(head.bytes());
                packet
            }
            Self::Ready | Self::Finish => packet,
        }
    }

    /// Reads a message.
    ///
    /// # Errors
    /// It is of no known number, too short or too long, or has values that mean nothing.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        decode(bytes, |number, fields| {
            Some(match number {
                1 => Self::Hello { protocol: fields.u32()? },
                2 => Self::Keep { key: fields.key()?, class: fields.class()? },
                3 => Self::Drop { key: fields.key()? },
                4 => Self::DropOwner { owner: fields.u64()? },
                5 => Self::Listen { key: fields.key()?, on: fields.flag()? },
                6 => Self::Set(fields.settings()?),
                7 => {
                    let (connection, position) = (fields.u64()?, fields.u64()?);
                    let head = Head::new(std::mem::take(&mut fields.0))?;
                    Self::SendHead { connection, position, head }
                }
                8 => Self::Ready,
                9 => Self::Finish,
                _ => return None,
            })
        })
    }
}

impl ToWorker {
    /// The message as bytes.
    pub fn encode(&self) -> Packet {
        match *self {
            Self::Begin { protocol, starts, next_connection, death, died, deaths } => {
                let (what, value) = match death {
                    Death::First => (0, 0),
                    Death::Exit(status) => (1, status),
                    Death::Signal(signal) => (2, signal),
                    Death::LinkClosed => (3, 0),
                    Death::Replaced => (4, 0),
                    Death::Unknown => (5, 0),
                };
                let packet = Packet::new(1).u32(protocol).u64(starts).u64(next_connection);
                let Deaths { signal, exit, link, unknown } = deaths;
                let packet = packet.u32(what).u32(value as u32).u64(died);
                packet.u64(signal).u64(exit).u64(link).u64(unknown)
            }
            Self::Settings(settings) => Packet::new(2).settings(settings),
            Self::Kept { key, class, listening } => {
                Packet::new(3).key(key).u32(class_number(class)).u32(u32::from(listening))
            }
            Self::Connection { number, origin, sent } => {
                Packet::new(4).u64(number).key(origin).u64(sent)
            }
            Self::Complete => Packet::new(5),
            Self::Crowded { key } => Packet::new(6).key(key),
            Self::Sent { connection, position, errno } => {
                Packet::new(7).u64(connection).u64(position).u32(errno)
            }
            Self::Refused { message, key, errno } => {
                Packet::new(8).u32(message).key(key).u32(errno)
            }
        }
    }

    /// Reads a message.
    ///
    /// # Errors
    /// It is of no known number, too short or too long, or has values that mean nothing.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        decode(bytes, |number, fields| {
            Some(match number {
                1 => Self::Begin {
                    protocol: fields.u32()?,
                    starts: fields.u64()?,
                    next_connection: fields.u64()?,
                    death: fields.death()?,
                    died: fields.u64()?,
                    deaths: fields.deaths()?,
                },
                2 => Self::Settings(fields.settings()?),
                3 => Self::Kept {
                    key: fields.key()?,
                    class: fields.class()?,
                    listening: fields.flag()?,
                },
                4 => Self::Connection {
                    number: fields.u64()?,
                    origin: fields.key()?,
                    sent: fields.u64()?,
                },
                5 => Self::Complete,
                6 => Self::Crowded { key: fields.key()? },
                7 => Self::Sent {
                    connection: fields.u64()?,
                    position: fields.u64()?,
                    errno: fields.u32()?,
                },
                8 => Self::Refused {
                    message: fields.u32()?,
                    key: fields.key()?,
                    errno: fields.u32()?,
                },
                _ => return None,
            })
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const KEY: Key = Key { owner: 0x1122_3344_5566_7788, token: u64::MAX };

    fn to_holder() -> Vec<ToHolder> {
        let head = Head::new(&[7; MAX_HEAD]).unwrap();
        vec![
            ToHolder::Hello { protocol: PROTOCOL },
            ToHolder::Keep { key: KEY, class: Class::Plain },
            ToHolder::Keep { key: KEY, class: Class::Listener },
            ToHolder::Keep { key: KEY, class: Class::Connected },
            ToHolder::Drop { key: KEY },
            ToHolder::DropOwner { owner: 5 },
            ToHolder::Listen { key: KEY, on: true },
            ToHolder::Set(Settings::default()),
            ToHolder::SendHead { connection: 1, position: 2, head },
            ToHolder::Ready,
            ToHolder::Finish,
        ]
    }

    fn to_worker() -> Vec<ToWorker> {
        let deaths = Deaths { signal: 5, exit: 6, link: 7, unknown: u64::MAX };
        let begin = |death| ToWorker::Begin {
            protocol: 1,
            starts: 2,
            next_connection: 3,
            death,
            died: 4,
            deaths,
        };
        let all =
            [Death::First, Death::Exit(-1), Death::Signal(9), Death::LinkClosed, Death::Replaced];
        let mut all: Vec<_> = all.into_iter().map(begin).collect();
        all.extend([
            begin(Death::Unknown),
            ToWorker::Settings(Settings::default()),
            ToWorker::Kept { key: KEY, class: Class::Listener, listening: true },
            ToWorker::Connection { number: 4, origin: KEY, sent: 5 },
            ToWorker::Complete,
            ToWorker::Crowded { key: KEY },
            ToWorker::Sent { connection: 6, position: 7, errno: 11 },
            ToWorker::Refused { message: 2, key: KEY, errno: 24 },
        ]);
        all
    }

    #[test]
    fn every_message_survives_the_way() {
        for message in to_holder() {
            assert_eq!(ToHolder::decode(message.encode().bytes()), Ok(message));
        }
        for message in to_worker() {
            assert_eq!(ToWorker::decode(message.encode().bytes()), Ok(message));
        }
    }

    #[test]
    fn message_that_is_cut_or_has_more_is_malformed() {
        let packets = to_holder().into_iter().map(|message| message.encode());
        for packet in packets {
            let bytes = packet.bytes();
            for len in 0..bytes.len() {
                // Only the bytes of a reply have no fixed length.
                let shorter = ToHolder::decode(&bytes[..len]);
                let is_head = matches!(shorter, Ok(ToHolder::SendHead { .. }));
                assert!(shorter.is_err() || (is_head && len > 20), "{shorter:?}");
            }
            assert!(ToHolder::decode(&[bytes, &[0]].concat()).is_err());
        }
        for message in to_worker() {
            let bytes = message.encode().bytes().to_vec();
            assert!((0..bytes.len()).all(|len| ToWorker::decode(&bytes[..len]).is_err()));
            assert!(ToWorker::decode(&[&*bytes, &[0]].concat()).is_err());
        }
    }

    #[test]
    fn values_that_mean_nothing_are_malformed() {
        let class = Packet::new(2).key(KEY).u32(3);
        let flag = Packet::new(5).key(KEY).u32(2);
        let number = Packet::new(99);
        let head = Packet::new(7).u64(1).u64(2);
        for packet in [class, flag, number, head] {
            assert!(ToHolder::decode(packet.bytes()).is_err(), "{packet:?}");
        }
        let death = Packet::new(1).u32(1).u64(2).u64(3).u32(6).u32(0);
        let death = (0..5).fold(death, Packet::u64);
        assert!(ToWorker::decode(death.bytes()).is_err());
        assert_eq!(Head::new(&[]), None);
        assert_eq!(Head::new(&[0; MAX_HEAD + 1]), None);
    }

    /// Any bytes: nothing panics, and what is read is what was written.
    #[test]
    fn bytes_at_random_are_read_as_themselves_or_refused() {
        let mut seed = 0x5eed_u64;
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let mut read = 0;
        for _ in 0..100_000 {
            let mut bytes = vec![(next() % 12) as u8, 0, 0, 0];
            for _ in 0..next() % 22 {
                // Small numbers are read more often.
                bytes.extend(((next() % 3) as u32).to_le_bytes());
            }
            if let Ok(message) = ToHolder::decode(&bytes) {
                assert_eq!(message.encode().bytes(), bytes);
                read += 1;
            }
            if let Ok(message) = ToWorker::decode(&bytes) {
                assert_eq!(message.encode().bytes(), bytes);
                read += 1;
            }
        }
        assert!(read > 1000, "only {read}");
    }
}
