//! What a connection has once its VERSION was accepted: the file, and what serves it.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vfiod_core::dma::DmaPeer;
use vfiod_core::{Error, File, RegionIndex};
use vfiod_protocol::Dialect;
use vfiod_quota::Payer;
use vfiod_wire::Capabilities;

use crate::clients::{Clients, Counted, Counters};
use crate::descriptor::Descriptor;
use crate::dispatch::ClientLink;
use crate::dma_channel::{Blocked, DmaChannel};
use crate::eventfds::EventFds;
use crate::limits::Quiet;
use crate::opened::Opened;
use crate::outgoing::Outgoing;
use crate::pool::{LINGER, Pool};
use crate::transport::Socket;

/// What negotiation settled.
pub(crate) struct Session {
    pub(crate) opened: Arc<Opened>,
    pub(crate) dialect: Dialect,
    pub(crate) dma: Arc<DmaChannel>,
    pub(crate) eventfds: EventFds,
}

/// A session, for carrying out its requests.
pub(crate) struct Link<'a> {
    pub(crate) session: &'a Session,
    pub(crate) outgoing: &'a Outgoing,
    pub(crate) pool: &'a Pool,
}

impl ClientLink for Link<'_> {
    type Fd = Descriptor;

    fn name(&self, fds: Vec<OwnedFd>) -> Result<Vec<Descriptor>, Error> {
        self.outgoing.pass(fds, &self.session.opened.payer)
    }

    fn dma_peer(&self) -> Result<Arc<dyn DmaPeer>, Error> {
        self.session.dma.set_used()?;
        Ok(self.session.dma.clone())
    }

    fn doorbells(&self, region: RegionIndex) -> Result<Vec<OwnedFd>, Error> {
        self.session.eventfds.doorbells(&self.session.opened, self.pool, region.0)
    }

    fn follow_unmask(&self) -> Result<(), Error> {
        self.session.eventfds.follow_unmask(&self.session.opened, self.pool)
    }
}

/// What a session takes of its connection.
pub(crate) struct Parts<'a> {
    pub(crate) clients: &'a Clients,
    pub(crate) outgoing: &'a Arc<Outgoing>,
    /// To be told that messages wait for the client.
    pub(crate) blocked: Weak<dyn Blocked>,
    pub(crate) pool: &'a Pool,
    pub(crate) counters: &'a Arc<Counters>,
    pub(crate) counted: &'a Arc<Counted>,
    /// The connection's number.
    pub(crate) number: u64,
    pub(crate) payer: &'a Payer,
}

impl Session {
    /// The session of a file, and the end of the second socket that is the client's, if it wants one.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`, `ENOSPC`: the second socket cannot be made or watched, or the payer's
    /// user has as many descriptors, or as much memory, as it may have.
    pub(crate) fn new(
        file: File,
        proposed: &Capabilities,
        connection: Parts<'_>,
    ) -> Result<(Self, Option<Descriptor>), Error> {
        let Parts { clients, outgoing, blocked, pool, counters, counted, number, payer } =
            connection;
        let failed = |errno| Error::new(errno, "cannot make the second socket");
        outgoing.socket().buffer().pay(payer)?;
        let (ours, theirs) = if proposed.wants_twin_socket() {
            let (ours, theirs) =
                socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                    .map_err(failed)?;
            let socket = Socket::new(ours, LINGER, clients.closer.clone()).map_err(failed)?;
            socket.set_payer(payer);
            socket.buffer().pay(payer)?;
            let theirs = outgoing.pass(vec![theirs], payer)?.pop();
            (Some(socket), theirs)
        } else {
            (None, None)
        };
        let limit = proposed.data_limit();
        let client = (clients.device.name(), number, payer);
        let dma = DmaChannel::new(client, outgoing, ours, blocked, limit, pool, counters);
        dma.watch_twin().map_err(failed)?;
        let link: Weak<DmaChannel> = Arc::downgrade(&dma);
        file.set_link(link);
        file.set_payer(payer.clone());
        let session = Self {
            opened: Arc::new(Opened {
                file,
                gate: clients.gate.clone(),
                payer: payer.clone(),
                quiet: Quiet::default(),
                _outgoing: outgoing.clone(),
                _counted: counted.clone(),
            }),
            dialect: Dialect::of(proposed),
            dma,
            eventfds: EventFds::new(payer.clone()),
        };
        Ok((session, theirs))
    }
}
