//! Requests that wait: with a thread for the client that made them, and without one for another client.

use std::sync::{Arc, Weak};

use rustix::io::Errno;
use vfiod_core::File;
use vfiod_sync::{MutexGuard, lock};

use super::Connection;
use crate::clients::{Client, Departure, count};
use crate::descriptor::State;
use crate::dispatch::Refused;
use crate::end::End;
use crate::holders::Holders;
use crate::limits::SMALL_CHUNK;
use crate::patience::Patience;
use crate::pool::{Interest, Source};
use crate::progress::{Step, Unanswered};
use crate::session::Session;
use crate::transport::{Received, Wait};

/// A hot reset that other owners bar who have all hung up.
pub(super) struct Parked {
    unanswered: Unanswered,
    holders: Holders,
    patience: Patience,
}

impl Parked {
    /// Whether it is to be tried again.
    fn is_due(&self) -> bool {
        self.holders.have_changed() || self.patience.is_over()
    }
}

/// What became of a request.
enum Outcome {
    Done(Result<Vec<u8>, vfiod_core::Error>),
    Barred(Holders),
}

impl Connection {
    /// Carries out a request that may wait for the client. Others take in what arrives meanwhile.
    pub(super) fn wait_for<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        mut unanswered: Unanswered,
    ) -> MutexGuard<'a, State> {
        let Some(session) = self.session.get() else { return state };
        // Those that were received together with the request make no event.
        self.complete_dma(&mut state, session);
        self.serving.wait();
        drop(state);
        let _ = self.watch.rearm(self, Interest::Read);
        let entered = unanswered.message.enter();
        let outcome = self.attempt(&session.opened.file, &mut unanswered);
        drop(entered);
        let mut state = lock(&self.state);
        self.serving.resume();
        let outcome = match outcome {
            Outcome::Done(outcome) => outcome,
            Outcome::Barred(holders) => {
                self.park(unanswered, holders);
                return state;
            }
        };
        let Unanswered { what, request, mut message, .. } = unanswered;
        message.replies_from(state.output());
        if let Some(reply) = state.pending_reply(request)
            && let Err(Refused { command, error }) = what.reply(reply, outcome)
        {
            self.refused(command, error.errno(), &error, &mut message);
        }
        message.end(state.output());
        state
    }

    /// Carries out a request. A hot reset that others bar is tried again where one of them has hung up and
    /// its file was released meanwhile.
    fn attempt(&self, file: &File, unanswered: &mut Unanswered) -> Outcome {
        let Unanswered { what, deadline, patience, .. } = unanswered;
        if !what.is_hot_reset() {
            return Outcome::Done(what.run(file, *deadline));
        }
        let itself: Weak<dyn Client> = self.itself.clone();
        let patience = patience.get_or_insert_with(Patience::new);
        loop {
            let holders = Holders::of(file, &self.clients.served);
            let outcome = what.run(file, *deadline);
            let is_barred = outcome.as_ref().is_err_and(|error| error.errno() == Errno::INVAL);
            if !is_barred || patience.is_over() {
                return Outcome::Done(outcome);
            }
            match holders.await_departure(self.number, &itself) {
                Departure::None => return Outcome::Done(outcome),
                Departure::UnderWay => return Outcome::Barred(holders),
                Departure::Over => {}
            }
        }
    }

    fn park(&self, mut unanswered: Unanswered, holders: Holders) {
        let mut patience = unanswered.patience.take().unwrap_or_else(Patience::new);
        if let Some(this) = self.itself.upgrade() {
            let source: Arc<dyn Source> = this;
            patience.wake_at_deadline(&self.watch, &source);
        }
        *lock(&self.parked) = Some(Parked { unanswered, holders, patience });
    }

    /// Looks at the request that has no reply yet, before which none of those behind it is handled.
    pub(super) fn step_parked(&self) -> Result<Step, End> {
        let Some(parked) = lock(&self.parked).take() else { return Ok(Step::Idle) };
        // Nobody is left who waits; and the end of the stream would wake it again at once.
        if self.outgoing.socket().peer_has_closed() {
            return Err(End::Closed);
        }
        if parked.is_due() {
            let Parked { mut unanswered, patience, .. } = parked;
            unanswered.patience = Some(patience);
            return Ok(Step::Waits(unanswered));
        }
        *lock(&self.parked) = Some(parked);
        Ok(Step::Parked)
    }

    /// Takes in what must not wait until a parked request has its reply: replies to DMA messages. What to
    /// wait for then.
    pub(super) fn take_while_parked(&self, state: &mut State) -> Result<Interest, End> {
        let shares_socket = |session: &&Session| session.dma.shares_socket();
        let Some(session) = self.session.get().filter(shares_socket) else {
            return Ok(Interest::HangUp);
        };
        if state.wants_input() {
            match self.fill(state, SMALL_CHUNK, Wait::No) {
                Ok(Received::Bytes(bytes)) => count(&self.counters.received, bytes),
                Ok(Received::Nothing) => {}
                Ok(Received::Eof) => return Err(End::Closed),
                // The rest waits for the request's reply. Until then it would wake a thread at once.
                Err(Errno::NOMEM) => return Ok(Interest::HangUp),
                Err(error) => return Err(error.into()),
            }
        }
        self.complete_dma(state, session);
        Ok(if state.wants_input() { Interest::Read } else { Interest::HangUp })
    }
}
