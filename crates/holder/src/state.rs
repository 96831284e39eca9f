//! What is kept, and what the worker's messages do to it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use vfiod_journal::layout::{JOURNAL_BYTES, OUTBOX_BYTES};
use vfiod_journal::link::{self, Received, Wait};
use vfiod_journal::memory::create_file;
use vfiod_journal::message::{Class, Death, Deaths, Key, Settings, ToHolder, ToWorker};

use crate::closer::Closer;
use crate::listeners::Listeners;

/// A descriptor that is kept.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) fd: OwnedFd,
    pub(crate) class: Class,
}

/// A descriptor that a holder keeps from its beginning on.
#[derive(Debug)]
pub struct Initial {
    /// Its name.
    pub key: Key,
    /// What it is.
    pub class: Class,
    /// The descriptor.
    pub fd: OwnedFd,
}

/// The files that a connection has beside its socket.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) journal: OwnedFd,
    pub(crate) outbox: OwnedFd,
}

impl Files {
    pub(crate) fn new() -> Result<Self, Errno> {
        let journal = create_file("vfiod-journal", JOURNAL_BYTES)?;
        Ok(Self { journal, outbox: create_file("vfiod-outbox", OUTBOX_BYTES)? })
    }
}

/// A connection of a client.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) socket: OwnedFd,
    pub(crate) files: Files,
    pub(crate) origin: Key,
    /// Position of the last reply whose head was sent here, plus one.
    pub(crate) sent: u64,
}

/// What a message asks the loop to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Nothing,
    Answer(ToWorker),
    Ready,
    Finish,
}

pub(crate) struct State {
    pub(crate) settings: Settings,
    pub(crate) kept: BTreeMap<Key, Kept>,
    pub(crate) connections: BTreeMap<u64, Connection>,
    pub(crate) next_connection: u64,
    pub(crate) starts: u64,
    /// When the last death was seen: nanoseconds of CLOCK_MONOTONIC.
    pub(crate) died: u64,
    pub(crate) deaths: Deaths,
    pub(crate) listeners: Listeners,
    pub(crate) closer: Closer,
}

impl State {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            settings: Settings::default(),
            kept: BTreeMap::new(),
            connections: BTreeMap::new(),
            next_connection: Key::FIRST_CONNECTION,
            starts: 0,
            died: 0,
            deaths: Deaths::default(),
            listeners: Listeners::new()?,
            closer: Closer::default(),
        })
    }

    /// Whether there may be another connection.
    pub(crate) fn has_room(&self) -> bool {
        self.connections.len() + self.closer.count() < self.settings.connections as usize
    }

    /// Gives a connection its number.
    pub(crate) fn add_connection(&mut self, socket: OwnedFd, files: Files, origin: Key) -> u64 {
        // An urgent byte counts as any other, or peeking and receiving would disagree. The kernel may be one
        // without urgent bytes on such sockets.
        let _ = rustix::net::sockopt::set_socket_oobinline(&socket, true);
        let number = self.next_connection;
        self.next_connection += 1;
        self.connections.insert(number, Connection { socket, files, origin, sent: 0 });
        number
    }

    pub(crate) fn count_death(&mut self, death: Death) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        self.died = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        self.deaths.add(death);
    }

    /// Keeps what whoever starts the holder gives it.
    pub(crate) fn keep_initial(&mut self, initial: Initial) -> Result<(), Errno> {
        self.keep(initial.key, initial.class, initial.fd)
    }

    /// Carries out a message of the worker. Descriptors that are not kept are closed by another thread: a
    /// worker that a client has taken over may send one whose close never returns.
    pub(crate) fn carry_out(&mut self, mut received: Received) -> Effect {
        let effect = self.carry_out_with(&mut received);
        received.fds.drain(..).for_each(|fd| self.closer.close(fd));
        effect
    }

    fn carry_out_with(&mut self, received: &mut Received) -> Effect {
        let Ok(message) = ToHolder::decode(received.bytes()) else {
            return refused(0, Key::default(), Errno::BADMSG);
        };
        let number = message.number();
        let (key, result) = match message {
            ToHolder::Hello { .. } => return Effect::Nothing,
            ToHolder::Ready => return Effect::Ready,
            ToHolder::Finish => return Effect::Finish,
            ToHolder::Keep { key, class } => {
                let fd = received.only_fd().ok_or(Errno::BADF);
                (key, fd.and_then(|fd| self.keep(key, class, fd)))
            }
            ToHolder::Drop { key } => (key, self.drop_kept(key)),
            ToHolder::DropOwner { owner } => {
                self.drop_owner(owner);
                return Effect::Nothing;
            }
            ToHolder::Listen { key, on } => (key, self.listen(key, on)),
            ToHolder::Set(settings) => {
                self.settings = settings;
                self.listeners.forgive();
                return Effect::Nothing;
            }
            ToHolder::SendHead { connection, position, head } => {
                let errno = match self.send_head(connection, position, head.bytes(), received) {
                    Ok(()) => 0,
                    Err(errno) => errno.raw_os_error().unsigned_abs(),
                };
                return Effect::Answer(ToWorker::Sent { connection, position, errno });
            }
        };
        match result {
            Ok(()) => Effect::Nothing,
            Err(errno) => refused(number, key, errno),
        }
    }

    fn keep(&mut self, key: Key, class: Class, fd: OwnedFd) -> Result<(), Errno> {
        let checked = self.check_kept(key, class, &fd);
        if checked.is_err() {
            self.closer.close(fd);
            return checked;
        }
        if class == Class::Connected {
            return self.keep_connected(key, fd);
        }
        // One that is replaced is not watched any more.
        self.listeners.unwatch(key, self.kept.get(&key).map(|kept| kept.fd.as_fd()));
        if let Some(replaced) = self.kept.insert(key, Kept { fd, class }) {
            self.close_kept(replaced);
        }
        Ok(())
    }

    fn close_kept(&mut self, kept: Kept) {
        match kept.class {
            // Its close returns, and needs no thread.
            Class::Plain => drop(kept),
            _ => self.closer.close(kept.fd),
        }
    }

    /// Whether a descriptor may be kept. What is plain must be memory, whose close always returns.
    fn check_kept(&self, key: Key, class: Class, fd: &OwnedFd) -> Result<(), Errno> {
        if class == Class::Connected {
            return Ok(());
        }
        if key.owner >= Key::FIRST_CONNECTION && !self.connections.contains_key(&key.owner) {
            return Err(Errno::NOENT);
        }
        let count = self.kept.len() + self.closer.count();
        if !self.kept.contains_key(&key) && count >= self.settings.kept as usize {
            return Err(Errno::MFILE);
        }
        match class {
            Class::Listener if !rustix::net::sockopt::socket_acceptconn(fd)? => Err(Errno::INVAL),
            Class::Plain => rustix::fs::fcntl_get_seals(fd).map(drop),
            _ => Ok(()),
        }
    }

    /// Makes a connection of a socket that is one; once for each key.
    fn keep_connected(&mut self, key: Key, fd: OwnedFd) -> Result<(), Errno> {
        if self.kept.contains_key(&key) {
            return Err(Errno::EXIST);
        }
        if self.connections.values().any(|connection| connection.origin == key) {
            return Ok(());
        }
        if !self.has_room() {
            return Err(Errno::MFILE);
        }
        let files = Files::new()?;
        self.add_connection(fd, files, key);
        Ok(())
    }

    fn drop_kept(&mut self, key: Key) -> Result<(), Errno> {
        let kept = self.kept.remove(&key).ok_or(Errno::NOENT)?;
        self.listeners.unwatch(key, Some(kept.fd.as_fd()));
        self.close_kept(kept);
        Ok(())
    }

    fn drop_owner(&mut self, owner: u64) {
        let keys = Key { owner, token: 0 }..=Key { owner, token: u64::MAX };
        let keys: Vec<_> = self.kept.range(keys).map(|(key, _)| *key).collect();
        for key in keys {
            let _ = self.drop_kept(key);
        }
        if let Some(connection) = self.connections.remove(&owner) {
            self.closer.close(connection.socket);
            self.listeners.forgive();
        }
    }

    fn listen(&mut self, key: Key, on: bool) -> Result<(), Errno> {
        let kept = self.kept.get(&key).ok_or(Errno::NOENT)?;
        match (on, kept.class) {
            (false, _) => {
                self.listeners.unwatch(key, Some(kept.fd.as_fd()));
                Ok(())
            }
            (true, Class::Listener) => self.listeners.watch(key, kept.fd.as_fd()),
            (true, _) => Err(Errno::INVAL),
        }
    }

    /// Sends the head of a reply with its descriptors, and moves the outbox behind it; once for a position. A
    /// head is so short that the kernel takes all of it or nothing.
    fn send_head(
        &mut self,
        number: u64,
        position: u64,
        head: &[u8],
        received: &Received,
    ) -> Result<(), Errno> {
        let connection = self.connections.get_mut(&number).ok_or(Errno::NOENT)?;
        let next = position.checked_add(1).ok_or(Errno::INVAL)?;
        if connection.sent >= next {
            return Ok(());
        }
        if received.is_truncated {
            return Err(Errno::MFILE);
        }
        let fds: Vec<_> = received.fds.iter().map(AsFd::as_fd).collect();
        let sent = link::send_bytes(&connection.socket, head, &fds, Wait::No)?;
        connection.sent = next;
        if sent != head.len() {
            return Err(Errno::IO);
        }
        rustix::fs::seek(&connection.files.outbox, SeekFrom::Current(sent as i64)).map(|_| ())
    }
}

fn refused(message: u32, key: Key, errno: Errno) -> Effect {
    let errno = errno.raw_os_error().unsigned_abs();
    Effect::Answer(ToWorker::Refused { message, key, errno })
}

#[cfg(test)]
mod tests {
    use std::io::{IoSliceMut, Read};
    use std::mem::MaybeUninit;
    use std::os::unix::net::{UnixListener, UnixStream};

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
    use vfiod_journal::message::Head;

    use super::*;

    const LISTENER: Key = Key { owner: 0, token: 7 };

    fn message(message: ToHolder, fds: Vec<OwnedFd>) -> Received {
        let (ours, theirs) = link::pair().unwrap();
        let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        link::send(&theirs, &message.encode(), &borrowed, Wait::No).unwrap();
        link::receive(&ours, Wait::No).unwrap().unwrap()
    }

    fn file() -> OwnedFd {
        create_file("file", 8).unwrap()
    }

    fn apply(state: &mut State, what: ToHolder, fds: Vec<OwnedFd>) -> Result<(), Errno> {
        match state.carry_out(message(what, fds)) {
            Effect::Nothing => Ok(()),
            Effect::Answer(
                ToWorker::Refused { errno, .. } | ToWorker::Sent { errno: errno @ 1.., .. },
            ) => Err(Errno::from_raw_os_error(errno as i32)),
            Effect::Answer(ToWorker::Sent { errno: 0, .. }) => Ok(()),
            other => panic!("{other:?}"),
        }
    }

    fn keep(state: &mut State, key: Key) -> Result<(), Errno> {
        apply(state, ToHolder::Keep { key, class: Class::Plain }, vec![file()])
    }

    #[test]
    fn descriptor_is_kept_replaced_and_dropped() {
        let mut state = State::new().unwrap();
        let key = Key { owner: 3, token: 1 };
        keep(&mut state, key).unwrap();
        keep(&mut state, key).unwrap();
        keep(&mut state, Key { owner: 4, token: 1 }).unwrap();
        assert_eq!(state.kept.len(), 2);
        apply(&mut state, ToHolder::DropOwner { owner: 4 }, vec![]).unwrap();
        apply(&mut state, ToHolder::Drop { key }, vec![]).unwrap();
        assert!(state.kept.is_empty());
        assert_eq!(apply(&mut state, ToHolder::Drop { key }, vec![]), Err(Errno::NOENT));
    }

    #[test]
    fn message_with_another_number_of_descriptors_is_refused() {
        let mut state = State::new().unwrap();
        let keep = ToHolder::Keep { key: LISTENER, class: Class::Plain };
        assert_eq!(apply(&mut state, keep, vec![]), Err(Errno::BADF));
        assert_eq!(apply(&mut state, keep, vec![file(), file()]), Err(Errno::BADF));
        assert!(state.kept.is_empty());
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let mut state = State::new().unwrap();
        let (ours, theirs) = link::pair().unwrap();
        link::send_bytes(&theirs, &[77; 30], &[file().as_fd()], Wait::No).unwrap();
        let received = link::receive(&ours, Wait::No).unwrap().unwrap();
        let refused = refused(0, Key::default(), Errno::BADMSG);
        assert_eq!(state.carry_out(received), refused);
    }

    #[test]
    fn limit_of_kept_descriptors_holds_for_new_keys_only() {
        let mut state = State::new().unwrap();
        let settings = Settings { kept: 2, ..Settings::default() };
        apply(&mut state, ToHolder::Set(settings), vec![]).unwrap();
        keep(&mut state, Key { owner: 0, token: 1 }).unwrap();
        keep(&mut state, Key { owner: 0, token: 2 }).unwrap();
        assert_eq!(keep(&mut state, Key { owner: 0, token: 3 }), Err(Errno::MFILE));
        keep(&mut state, Key { owner: 0, token: 2 }).unwrap();
    }

    #[test]
    fn descriptor_of_a_connection_that_does_not_exist_is_refused() {
        let mut state = State::new().unwrap();
        let key = Key { owner: Key::FIRST_CONNECTION, token: 0 };
        assert_eq!(keep(&mut state, key), Err(Errno::NOENT));
    }

    fn connected(state: &mut State, token: u64) -> (u64, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let keep = ToHolder::Keep { key: Key { owner: 1, token }, class: Class::Connected };
        apply(state, keep, vec![ours.into()]).unwrap();
        (*state.connections.keys().last().unwrap(), theirs)
    }

    #[test]
    fn connected_socket_becomes_one_connection_however_often_it_is_kept() {
        let mut state = State::new().unwrap();
        let (number, _theirs) = connected(&mut state, 5);
        assert_eq!(connected(&mut state, 5).0, number);
        let (other, _theirs) = connected(&mut state, 6);
        assert_eq!((state.connections.len(), other), (2, number + 1));
        keep(&mut state, Key { owner: number, token: 1 }).unwrap();
        apply(&mut state, ToHolder::DropOwner { owner: number }, vec![]).unwrap();
        assert_eq!((state.connections.len(), state.kept.len()), (1, 0));
        // Its number is not given again.
        assert_eq!(connected(&mut state, 7).0, number + 2);
    }

    #[test]
    fn only_memory_is_kept_as_a_plain_descriptor() {
        let mut state = State::new().unwrap();
        let keep = ToHolder::Keep { key: LISTENER, class: Class::Plain };
        let (stream, _other) = UnixStream::pair().unwrap();
        assert_eq!(apply(&mut state, keep, vec![stream.into()]), Err(Errno::INVAL));
        let file = std::fs::File::open("/proc/self/status").unwrap();
        assert_eq!(apply(&mut state, keep, vec![file.into()]), Err(Errno::INVAL));
        assert!(state.kept.is_empty());
    }

    #[test]
    fn head_of_a_reply_is_sent_once_with_its_descriptors() {
        let mut state = State::new().unwrap();
        let (connection, mut theirs) = connected(&mut state, 1);
        let send = |position, bytes: &[u8]| ToHolder::SendHead {
            connection,
            position,
            head: Head::new(bytes).unwrap(),
        };
        for _ in 0..2 {
            apply(&mut state, send(0, b"head"), vec![file(), file()]).unwrap();
        }
        apply(&mut state, send(40, b"next"), vec![]).unwrap();
        let outbox = &state.connections[&connection].files.outbox;
        assert_eq!(rustix::fs::seek(outbox, SeekFrom::Current(0)), Ok(8));
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; 16];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let got = rustix::net::recvmsg(&theirs, &mut parts, &mut control, flags).unwrap();
        let Some(RecvAncillaryMessage::ScmRights(fds)) = control.drain().next() else {
            panic!("no descriptors")
        };
        assert_eq!((got.bytes, fds.count()), (4, 2));
        theirs.set_nonblocking(true).unwrap();
        assert_eq!(theirs.read(&mut bytes).unwrap(), 4);
        assert!(theirs.read(&mut bytes).is_err());
        let gone =
            ToHolder::SendHead { connection: 1, position: 0, head: Head::new(b"x").unwrap() };
        assert_eq!(apply(&mut state, gone, vec![]), Err(Errno::NOENT));
    }

    #[test]
    fn head_that_the_peer_does_not_take_is_not_counted() {
        let mut state = State::new().unwrap();
        let (connection, _theirs) = connected(&mut state, 1);
        let head = Head::new(&[1; 64]).unwrap();
        let mut position = 0;
        let refused = loop {
            let send = ToHolder::SendHead { connection, position, head };
            match apply(&mut state, send, vec![]) {
                Ok(()) => position += 64,
                Err(errno) => break errno,
            }
        };
        assert_eq!(refused, Errno::AGAIN);
        let outbox = &state.connections[&connection].files.outbox;
        assert_eq!(rustix::fs::seek(outbox, SeekFrom::Current(0)), Ok(position));
    }

    #[test]
    fn only_a_listening_socket_is_listened_to() {
        let mut state = State::new().unwrap();
        keep(&mut state, LISTENER).unwrap();
        let listen = |on| ToHolder::Listen { key: LISTENER, on };
        assert_eq!(apply(&mut state, listen(true), vec![]), Err(Errno::INVAL));
        let keep = ToHolder::Keep { key: LISTENER, class: Class::Listener };
        let (stream, _other) = UnixStream::pair().unwrap();
        assert_eq!(apply(&mut state, keep, vec![stream.into()]), Err(Errno::INVAL));
        apply(&mut state, ToHolder::Drop { key: LISTENER }, vec![]).unwrap();
        assert_eq!(apply(&mut state, listen(true), vec![]), Err(Errno::NOENT));
    }

    #[test]
    fn connections_beyond_the_limit_wait_until_there_is_room() {
        let directory = std::env::temp_dir().join(format!("vfiod-holder-{}", std::process::id()));
        let _ = std::fs::remove_file(&directory);
        let mut state = State::new().unwrap();
        let listener = UnixListener::bind(&directory).unwrap();
        let keep = ToHolder::Keep { key: LISTENER, class: Class::Listener };
        apply(&mut state, keep, vec![listener.into()]).unwrap();
        apply(&mut state, ToHolder::Listen { key: LISTENER, on: true }, vec![]).unwrap();
        state.settings.connections = 2;
        let number = state.listeners.number(LISTENER).unwrap();
        let clients: Vec<_> = (0..3).map(|_| UnixStream::connect(&directory).unwrap()).collect();
        assert_eq!(state.accept(number), Some(LISTENER));
        assert_eq!((state.connections.len(), state.listeners.number(LISTENER)), (2, None));
        state.watch_crowded();
        assert!(state.listeners.is_crowded() && state.listeners.is_on(LISTENER));
        let first = *state.connections.keys().next().unwrap();
        apply(&mut state, ToHolder::DropOwner { owner: first }, vec![]).unwrap();
        // Its socket is closed by another thread.
        while state.listeners.is_crowded() {
            std::thread::yield_now();
            state.watch_crowded();
        }
        let number = state.listeners.number(LISTENER).unwrap();
        state.accept(number);
        assert_eq!(state.connections.len(), 2);
        assert_eq!(state.connections.values().next().unwrap().origin, LISTENER);
        drop(clients);
        std::fs::remove_file(&directory).unwrap();
    }
}
