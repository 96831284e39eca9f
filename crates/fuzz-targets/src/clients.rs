//! `clients`: up to four clients of two owners at the devices of a daemon. They send messages, whole or
//! in pieces, with descriptors of all kinds, reply to DMA well or badly, go on using what they have sent,
//! and leave in every way. An operator resets sets and revokes files meanwhile.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown,
};
use vfiod_core::InUse;
use vfiod_wire::payload::DmaAccess;
use vfiod_wire::{Command, HEADER_LEN, Header, Kind as MessageKind};
use zerocopy::{FromBytes, IntoBytes};

use crate::descriptors::{Kept, Sent};
use crate::drivers::Drive;
use crate::messages::{Message, VfToken};
use crate::world::{Touched, World, connect, with_world};

/// Most clients at a time.
const CLIENTS: usize = 4;
/// Most steps of an input.
const STEPS: usize = 64;
/// Most bytes that a server may send in one message: a transfer of 1 MiB and what is before it.
const LARGEST: u32 = (1 << 20) + 4096;
/// How long a client waits for a reply before it does something else.
const REPLY: Duration = Duration::from_millis(20);
/// Descriptors that Linux passes with one call.
const PASSED: usize = 253;

#[derive(Arbitrary, Debug)]
enum Step {
    Connect { device: u8, stranger: bool, dma: Dma, opens: bool, twin_socket: bool, wrong: bool },
    Send { client: u8, message: Message, fds: Vec<Sent>, cut: Cut },
    SendBytes { client: u8, bytes: Vec<u8>, fds: Vec<Sent> },
    Receive { client: u8 },
    Use { which: u8, how: Use },
    ShutDown { client: u8, how: u8 },
    Close { client: u8 },
    Operate { device: u8, what: Operate },
    Drive { client: u8, what: Drive },
}

/// How a client replies to DMA messages.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Dma {
    Well,
    WithAnError(u8),
    TooShort,
    Never,
}

/// Where a message is cut into pieces, and with which of them the descriptors go.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Cut {
    Nowhere,
    Into {
        pieces_of: u8,
        descriptors_with: u8,
    },
    /// Only the beginning is sent.
    Short(u8),
}

/// What a client does with a descriptor that the server may have, too.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Use {
    Write(u64),
    Read,
    Block(bool),
    Truncate(u8),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Operate {
    Reset { in_use: bool },
    Revoke,
}

struct Client {
    socket: OwnedFd,
    /// The second socket, for the server's commands.
    twin: Option<OwnedFd>,
    input: Vec<u8>,
    twin_input: Vec<u8>,
    dma: Dma,
    next_id: u16,
    wants_twin: bool,
}

struct Clients<'w> {
    world: &'w World,
    clients: [Option<Client>; CLIENTS],
    next: usize,
    kept: Kept,
    touched: Touched,
}

impl<'w> Clients<'w> {
    fn new(world: &'w World) -> Self {
        Self {
            world,
            clients: Default::default(),
            next: 0,
            kept: Kept::default(),
            touched: Touched::default(),
        }
    }
}

/// Has every device work, so that what the process makes at the first use is made.
pub(crate) fn use_each(world: &World) {
    let mut clients = Clients::new(world);
    for device in 0..world.devices.len() {
        let (device, dma) = (device as u8, Dma::Well);
        let (stranger, opens, twin_socket, wrong) = (false, true, false, false);
        let client = clients.next as u8;
        clients.step(Step::Connect { device, stranger, dma, opens, twin_socket, wrong });
        for what in Drive::each() {
            clients.step(Step::Drive { client, what });
        }
    }
}

pub(crate) fn play(input: &[u8]) {
    with_world(use_each, |world| {
        let mut clients = Clients::new(world);
        let mut input = Unstructured::new(input);
        for _ in 0..STEPS {
            if input.is_empty() {
                break;
            }
            // What is missing at the end of the input reads as zeros.
            if let Ok(step) = Step::arbitrary(&mut input) {
                clients.step(step);
            }
        }
        clients.touched
    });
}

impl Clients<'_> {
    fn step(&mut self, step: Step) {
        match step {
            Step::Connect { device, stranger, dma, opens, twin_socket, wrong } => {
                let device = usize::from(device) % self.world.devices.len();
                self.touched.devices.insert(device);
                let served = &self.world.devices[device];
                let Some(socket) = connect(self.world, &served.socket, stranger) else { return };
                let at = self.next;
                self.next = (at + 1) % CLIENTS;
                self.clients[at] = Some(Client {
                    socket,
                    twin: None,
                    input: Vec::new(),
                    twin_input: Vec::new(),
                    dma,
                    next_id: 0,
                    wants_twin: twin_socket,
                });
                if opens {
                    let token = match (served.vf_token.is_some(), wrong) {
                        (true, false) => VfToken::Right,
                        (true, true) => VfToken::Wrong,
                        (false, _) => VfToken::None,
                    };
                    let opening = Message::opening(twin_socket, token);
                    self.send(at, &opening, Vec::new(), Cut::Nowhere);
                }
            }
            Step::Send { client, message, fds, cut } => {
                let at = usize::from(client) % CLIENTS;
                let Some(client) = &self.clients[at] else { return };
                self.touched.own_ends |= fds.iter().any(Sent::is_own_end);
                let fds = self.kept.make(&fds, client.socket.as_fd());
                self.send(at, &message, fds, cut);
            }
            Step::SendBytes { client, bytes, fds } => {
                let Some(client) = &self.clients[usize::from(client) % CLIENTS] else { return };
                self.touched.own_ends |= fds.iter().any(Sent::is_own_end);
                let fds = self.kept.make(&fds, client.socket.as_fd());
                send_piece(&client.socket, &bytes, &fds);
            }
            Step::Receive { client } => self.receive(usize::from(client) % CLIENTS, None),
            Step::Use { which, how } => self.use_descriptor(which, how),
            Step::ShutDown { client, how } => {
                let Some(client) = &self.clients[usize::from(client) % CLIENTS] else { return };
                let how = [Shutdown::Read, Shutdown::Write, Shutdown::Both][usize::from(how) % 3];
                // Fails where the server has closed it.
                let _ = rustix::net::shutdown(&client.socket, how);
            }
            Step::Close { client } => self.clients[usize::from(client) % CLIENTS] = None,
            Step::Drive { client, what } => {
                let at = usize::from(client) % CLIENTS;
                let (messages, mut memory) = what.messages();
                for message in messages {
                    let fds = memory.take();
                    self.send(at, &message, fds.into_iter().collect(), Cut::Nowhere);
                }
            }
            Step::Operate { device, what } => {
                let device = usize::from(device) % self.world.devices.len();
                self.touched.devices.insert(device);
                let name = &self.world.devices[device].name;
                let manager = &self.world.manager;
                let device = manager.find(name).expect("the devices stay");
                match what {
                    // Refused where a member is in use, or stays busy.
                    Operate::Reset { in_use: false } => _ = device.reset_set(InUse::Refuse),
                    Operate::Reset { in_use: true } => _ = device.reset_set(InUse::Reset),
                    Operate::Revoke => _ = device.revoke_all(),
                }
            }
        }
    }

    /// Sends a message, and waits a moment for its reply if there must be one.
    fn send(&mut self, at: usize, message: &Message, fds: Vec<OwnedFd>, cut: Cut) {
        let Some(client) = &mut self.clients[at] else { return };
        let id = client.next_id;
        client.next_id = id.wrapping_add(1);
        let (bytes, replied) = message.encode(id);
        let whole = match cut {
            Cut::Nowhere => send_piece(&client.socket, &bytes, &fds),
            Cut::Short(len) => {
                let len = usize::from(len).min(bytes.len());
                send_piece(&client.socket, &bytes[..len], &fds);
                len == bytes.len()
            }
            Cut::Into { pieces_of, descriptors_with } => {
                // Not too many: each is a system call.
                let size = usize::from(pieces_of).max(bytes.len() / 64).max(1);
                let pieces = bytes.chunks(size).enumerate();
                let with = usize::from(descriptors_with) % bytes.len().div_ceil(size).max(1);
                pieces.fold(true, |whole, (number, piece)| {
                    let fds = if number == with { &fds[..] } else { &[] };
                    whole && send_piece(&client.socket, piece, fds)
                })
            }
        };
        drop(fds);
        if whole && replied {
            self.receive(at, Some(id));
        }
    }

    /// Receives what is there. With an id it waits for that reply, for a moment.
    fn receive(&mut self, at: usize, awaited: Option<u16>) {
        let Some(client) = &mut self.clients[at] else { return };
        let deadline = Instant::now() + REPLY;
        loop {
            let mut fds = Vec::new();
            let open = receive(&client.socket, &mut client.input, &mut fds);
            if client.wants_twin && client.twin.is_none() && !fds.is_empty() {
                client.twin = Some(fds.remove(0));
            }
            fds.into_iter().for_each(|fd| self.kept.keep(fd));
            let found = take_messages(&mut client.input, client.dma, &client.socket, awaited);
            if let Some(twin) = &client.twin {
                let mut fds = Vec::new();
                receive(twin, &mut client.twin_input, &mut fds);
                take_messages(&mut client.twin_input, client.dma, twin, None);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if found || !open || awaited.is_none() || left.is_zero() {
                return;
            }
            let mut sources = vec![PollFd::new(&client.socket, PollFlags::IN)];
            sources.extend(client.twin.as_ref().map(|twin| PollFd::new(twin, PollFlags::IN)));
            let left = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
            let _ = rustix::event::poll(&mut sources, Some(&left));
        }
    }

    fn use_descriptor(&self, which: u8, how: Use) {
        let Some(fd) = self.kept.get(which) else { return };
        // Whatever it is: what cannot be done with it fails.
        let Ok(flags) = rustix::fs::fcntl_getfl(fd) else { return };
        let nonblocking = flags.contains(OFlags::NONBLOCK);
        match how {
            // The fuzzer itself must not block.
            Use::Write(value) if nonblocking && !is_pipe(fd) => {
                let bytes = value.to_ne_bytes();
                let sent = rustix::net::send(fd, &bytes, SendFlags::NOSIGNAL);
                if sent == Err(Errno::NOTSOCK) {
                    let _ = rustix::io::write(fd, &bytes);
                }
            }
            Use::Read if nonblocking => _ = rustix::io::read(fd, &mut [0; 8]),
            Use::Write(_) | Use::Read => {}
            Use::Block(blocks) => {
                let flags =
                    if blocks { flags - OFlags::NONBLOCK } else { flags | OFlags::NONBLOCK };
                let _ = rustix::fs::fcntl_setfl(fd, flags);
            }
            Use::Truncate(pages) => _ = rustix::fs::ftruncate(fd, u64::from(pages) << 12),
        }
    }
}

/// Whether it is a pipe: a write to one that nobody reads ends a program that is not Rust's from its
/// beginning.
fn is_pipe(fd: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(fd).is_ok_and(|status| FileType::from_raw_mode(status.st_mode).is_fifo())
}

/// Sends bytes and descriptors with one call. Returns whether all went.
fn send_piece(socket: &OwnedFd, bytes: &[u8], fds: &[OwnedFd]) -> bool {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PASSED + 1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags);
    sent == Ok(bytes.len())
}

/// Receives all that is there. Returns whether the connection is open.
fn receive(socket: &OwnedFd, input: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> bool {
    let mut buffer = [0; 1 << 16];
    loop {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PASSED))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let buffers = &mut [IoSliceMut::new(&mut buffer)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        match rustix::net::recvmsg(socket, buffers, &mut control, flags) {
            Ok(message) => {
                for item in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(received) = item {
                        fds.extend(received);
                    }
                }
                if message.bytes == 0 {
                    return false;
                }
                input.extend_from_slice(&buffer[..message.bytes]);
            }
            Err(Errno::AGAIN) => return true,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Takes the messages that have arrived, and replies to DMA. Returns whether the awaited reply was among
/// them.
///
/// # Panics
/// If the server has sent what is no message.
fn take_messages(input: &mut Vec<u8>, dma: Dma, socket: &OwnedFd, awaited: Option<u16>) -> bool {
    let mut found = false;
    let mut at = 0;
    while let Some(header) = Header::parse(&input[at..]) {
        let size = header.size as usize;
        assert!(
            size >= HEADER_LEN && header.size <= LARGEST,
            "the server sent a message of {size} bytes: {header:?}"
        );
        let Some(payload) = input[at..].get(HEADER_LEN..size) else { break };
        match header.kind() {
            MessageKind::Reply(_) => found |= awaited == Some(header.id),
            MessageKind::Command => reply_to_dma(header, payload, dma, socket),
            kind => panic!("the server sent {kind:?}: {header:?}"),
        }
        at += size;
    }
    input.drain(..at);
    found
}

fn reply_to_dma(header: Header, payload: &[u8], dma: Dma, socket: &OwnedFd) {
    let command = Command::from_number(header.command);
    let is_read = command == Some(Command::DmaRead);
    assert!(is_read || command == Some(Command::DmaWrite), "the server sent {header:?}");
    let access = DmaAccess::read_from_prefix(payload);
    let (access, data) = access.unwrap_or_else(|_| panic!("the server sent {header:?}"));
    assert!(is_read || data.len() as u64 == access.count, "the server sent {header:?}");
    assert!(access.count <= u64::from(LARGEST), "the server sent {access:?}");
    let count = if is_read { access.count as usize } else { 0 };
    let reply = match dma {
        Dma::Well => [access.as_bytes(), &vec![0x5a; count]].concat(),
        Dma::TooShort => access.as_bytes()[..8].to_vec(),
        Dma::WithAnError(_) => Vec::new(),
        Dma::Never => return,
    };
    let header = match dma {
        Dma::WithAnError(errno) => header.error(errno.into(), reply.len()),
        _ => header.reply(reply.len()),
    };
    send_piece(socket, &[header.as_bytes(), &reply].concat(), &[]);
}
