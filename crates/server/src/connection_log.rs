//! What the log says of one connection, and how often.

use std::fmt::Display;
use std::sync::Arc;

use rustix::io::Errno;
use vfiod_quota::{Exceeded, Payer};
use vfiod_wire::Command;

use crate::clients::{Clients, ConnectionInfo};
use crate::end::End;
use crate::limits::{Clipped, Quiet};
use crate::message_log::errno_name;

pub(crate) struct ConnectionLog {
    clients: Arc<Clients>,
    connection: u64,
    payer: Payer,
    quiet: Quiet,
}

impl ConnectionLog {
    pub(crate) fn new(clients: Arc<Clients>, connection: u64, payer: Payer) -> Self {
        Self { clients, connection, payer, quiet: Quiet::default() }
    }

    /// A message was refused; logged at most once a second. Connections that have not opened the device
    /// share their limit, as a client can have any number of those, one after the other.
    pub(crate) fn refused(
        &self,
        has_session: bool,
        command: Option<Command>,
        errno: Errno,
        error: &dyn Display,
    ) {
        self.limit(has_session).warn_of(&self.payer, |suppressed| {
            let (device, connection) = (self.clients.device.name(), self.connection);
            let command = command.map_or("message", Command::name);
            let (errno, error) = (errno_name(errno), Clipped(error));
            tracing::warn!(device, connection, command, ?errno, %error, suppressed, "refused");
        });
    }

    /// A reply came that no command waits for; logged as a refusal.
    pub(crate) fn stray_reply(&self, has_session: bool) {
        self.limit(has_session).warn_of(&self.payer, |suppressed| {
            let (device, connection) = (self.clients.device.name(), self.connection);
            tracing::warn!(device, connection, suppressed, "reply to no command");
        });
    }

    /// More waits than its user may have kept.
    pub(crate) fn keeps_too_much(&self, exceeded: &Exceeded) {
        self.quiet.warn_of(&self.payer, |suppressed| {
            let device = self.clients.device.name();
            tracing::warn!(device, suppressed, "a connection is ended: {exceeded}");
        });
    }

    /// It has ended. Says how many refusals nothing was said of.
    pub(crate) fn ended(&self, end: &End, info: &ConnectionInfo) {
        let refusals = self.quiet.take_suppressed();
        // Whoever connects again and again must not fill the log.
        self.clients.ends.warn_of(&self.payer, |suppressed| {
            end.log(self.clients.device.name(), self.connection, info, refusals, suppressed);
        });
    }

    fn limit(&self, has_session: bool) -> &Quiet {
        if has_session { &self.quiet } else { &self.clients.refusals }
    }
}
