//! How a connection gets its session: VERSION, which opens the device.

use std::sync::{Arc, Weak};

use vfiod_sync::lock;
use vfiod_wire::Command;

use super::Connection;
use crate::clients::Client;
use crate::descriptor::State;
use crate::end::End;
use crate::pending_open::{Attempt, PendingOpen};
use crate::pool::Source;
use crate::progress::Step;
use crate::session::{Parts, Session};

impl Connection {
    /// Handles VERSION.
    pub(super) fn negotiate(&self, state: &mut State, mut open: PendingOpen) -> Result<Step, End> {
        let itself: Weak<dyn Client> = self.itself.clone();
        let attempt = open.attempt(&self.clients, &self.owner, self.number, &itself);
        let (outcome, _opening) = match attempt {
            Attempt::Opened(file, opening) => {
                (Session::new(file, &open.proposed, self.parts()), Some(opening))
            }
            Attempt::Failed(error) => (Err(error), None),
            // Nobody is left who waits; and the end of the stream would wake it again at once.
            Attempt::Parked if self.outgoing.socket().peer_has_closed() => return Err(End::Closed),
            Attempt::Parked => {
                if let Some(this) = self.itself.upgrade() {
                    let source: Arc<dyn Source> = this;
                    open.patience.wake_at_deadline(&self.watch, &source);
                }
                *lock(&self.waiting_open) = Some(open);
                return Ok(Step::Parked);
            }
        };
        let Some(reply) = state.pending_reply(open.request) else { return Ok(Step::Done) };
        let (session, twin) = match outcome {
            Ok(made) => made,
            Err(error) => {
                reply.refuse(error.errno().raw_os_error().unsigned_abs());
                self.refused(Some(Command::Version), error.errno(), &error, &mut open.message);
                open.message.end(state.output());
                return Ok(Step::Done);
            }
        };
        let (device, connection) = (self.clients.device.name(), self.number);
        let dialect = session.dialect.name();
        tracing::debug!(device, connection, owner = %self.owner, dialect, "connection opened");
        if self.session.set(session).is_ok() {
            reply.negotiated(twin);
        }
        open.message.end(state.output());
        Ok(Step::Done)
    }

    /// What a session takes of this.
    fn parts(&self) -> Parts<'_> {
        Parts {
            clients: &self.clients,
            outgoing: &self.outgoing,
            blocked: self.itself.clone(),
            pool: self.watch.pool(),
            counters: &self.counters,
            counted: &self.counted,
            number: self.number,
            payer: self.held.payer(),
        }
    }
}
