//! The first message of a connection: VERSION, and the open of the device.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vfiod_core::{File, Token};
use vfiod_wire::{Capabilities, Command, HEADER_LEN, Header, Kind, TwinSocket, Version};
use zerocopy::IntoBytes;

use crate::connection::{Connection, End, Session};
use crate::dialect::{Dialect, MAX_VERSION_REPLY};
use crate::dma_channel::DmaChannel;
use crate::eventfds::EventFds;
use crate::limits::{MAX_DATA, MAX_DMA_MAPS, MAX_FDS};
use crate::link::Link;
use crate::outbox::Replies;
use crate::pool::LINGER;
use crate::transport::{Socket, Wait};

/// Handles the first message. Anything but a VERSION that leads to an open device ends the
/// connection, after an answer that says why.
pub(crate) fn first_message(
    connection: &Arc<Connection>,
    command: Option<Command>,
    header: &Header,
    payload: &[u8],
    replies: &mut Replies,
) -> Result<(), End> {
    if header.kind() == Kind::Posted {
        // Nothing may be answered, and without the answer there is no negotiation.
        return Err(End::Refused("a first message that wants no answer".to_owned()));
    }
    let negotiated = if command == Some(Command::Version) && header.kind() == Kind::Command {
        negotiate(connection, header, payload)
    } else {
        Err((Errno::INVAL, format!("message {} before VERSION", header.command)))
    };
    negotiated.map_err(|(errno, what)| {
        connection.refuse(header, command, errno, &what, replies);
        // Best effort: the connection ends in any case.
        let _ = connection.send(replies, Wait::Linger);
        End::Refused(what)
    })
}

/// How long a client is made to wait for the one before it to be let go of.
const DEPARTURE: Duration = Duration::from_secs(2);

/// Opens the device. Where it is taken by a client that has hung up already, waits for that one
/// to be let go of: whoever starts again at once after a crash shall find the device free.
fn open(connection: &Connection, token: Option<Token>) -> vfiod_core::Result<File> {
    let shared = connection.shared();
    let deadline = Instant::now() + DEPARTURE;
    let mut departing = true;
    loop {
        match shared.device.open_with(connection.owner().clone(), token) {
            Err(error) if matches!(error.errno(), Errno::INVAL | Errno::BUSY) && departing => {
                // Nobody departing any more means that it is worth one more attempt.
                departing = shared.gate.step_out(|| shared.await_departure(connection, deadline));
            }
            opened => return opened,
        }
    }
}

fn negotiate(
    connection: &Arc<Connection>,
    header: &Header,
    payload: &[u8],
) -> Result<(), (Errno, String)> {
    let version = Version::decode(payload).map_err(|error| (Errno::INVAL, error.to_string()))?;
    if version.major != 0 {
        return Err((Errno::INVAL, format!("version {}.{}", version.major, version.minor)));
    }
    let proposed = &version.capabilities;
    let token = proposed.token().map_err(|error| (Errno::INVAL, error.to_string()))?.map(Token);
    let file = open(connection, token).map_err(|error| (error.errno(), error.to_string()))?;

    let socket = |errno| (errno, "cannot make the second socket".to_owned());
    let (twin, link) = if proposed.wants_twin_socket() {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(socket)?;
        let ours = Socket::new(ours, LINGER).map_err(socket)?;
        (Some(theirs), Arc::new(Link::new(ours)))
    } else {
        (None, connection.link().clone())
    };

    let reply = Version {
        // QEMU knows 0.0 only, and the specification nothing above it.
        major: 0,
        minor: 0,
        capabilities: Capabilities {
            max_msg_fds: Some(MAX_FDS),
            max_data_xfer_size: Some(MAX_DATA as u64),
            max_dma_maps: proposed.max_dma_maps.map(|_| MAX_DMA_MAPS),
            pgsizes: proposed.pgsizes.map(|_| 4096),
            twin_socket: twin.as_ref().map(|_| TwinSocket { supported: true, fd_index: Some(0) }),
            write_multiple: proposed.write_multiple.filter(|&wanted| wanted),
            migration: None,
            vf_token: None,
        },
    };
    let session = Session {
        file,
        dialect: Dialect::of(proposed),
        client_fds: proposed.fd_limit() as usize,
        dma: Arc::new(DmaChannel::new(link, twin.is_some(), proposed.data_limit())),
        eventfds: EventFds::default(),
    };
    let device = connection.shared().device.name();
    tracing::info!(device, owner = ?connection.owner(), dialect = ?session.dialect, "connection opened");
    connection.begin(session).map_err(|end| (Errno::INVAL, end.to_string()))?;

    let payload = reply.encode();
    debug_assert!(HEADER_LEN + payload.len() <= MAX_VERSION_REPLY);
    let mut message = header.reply(payload.len()).as_bytes().to_vec();
    message.extend_from_slice(&payload);
    let fds: Vec<OwnedFd> = twin.into_iter().collect();
    let sent = connection.send_with_fds(&message, &fds);
    sent.map_err(|errno| (errno, "cannot answer VERSION".to_owned()))
}
