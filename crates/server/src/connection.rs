//! One client's connection, from accept to release.
//!
//! It is served by one thread at a time ([`crate::serving`]), which has the protocol's state
//! locked meanwhile. Where a request may have to wait until the client answers DMA messages, that
//! thread lets go of the state, and others take in what arrives: the replies are delivered, the
//! requests wait their turn. The file is released when the last thread lets go of the connection.

mod negotiation;
mod polling;
mod waiting;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use rustix::io::Errno;
use vfiod_core::dma::AcceptedFiles;
use vfiod_core::{Error, Owner, Token};
use vfiod_protocol::limits::MAX_STRAY_REPLIES;
use vfiod_protocol::{Call, Event, Request};
use vfiod_quota::{Exceeded, Payer, User};
use vfiod_sync::{Mutex, MutexGuard, lock};
use vfiod_tasks::{Keeper, hand_over};
use vfiod_wire::Command;

use crate::abandoned::{Bereaved, PeerProcess};
use crate::clients::{Client, Clients, ConnectionInfo, Counted, Counters, Place, count};
use crate::clock::now;
use crate::connection_log::ConnectionLog;
use crate::descriptor::{self, Descriptor, Descriptors, State};
use crate::direct::{self, DirectWrite};
use crate::dispatch::{self, Refused, Target, Waiting};
use crate::dma_channel::Blocked;
use crate::end::End;
use crate::gate::Gate;
use crate::held_memory::HeldMemory;
use crate::hot_reset;
use crate::limits::{BUSY_STREAK, CHUNK, CROWDED_TURN, REPLY_BATCH, SMALL_CHUNK};
use crate::message_log::Message;
use crate::outgoing::Outgoing;
use crate::pace::DebtPause;
use crate::peer;
use crate::pending_open::PendingOpen;
use crate::pool::{Interest, LINGER, Residence, Source, Watch, Worker};
use crate::progress::{Handled, Step, Turn, Unanswered};
use crate::serving::{self, Guarded, Next, Serving};
use crate::session::{Link, Session};
use crate::task_runs::TaskRuns;
use crate::transport::{Lent, Received, Socket, Wait};
use crate::unread::DENIED;

pub(crate) struct Connection {
    /// Never used twice by one process.
    number: u64,
    state: Mutex<State>,
    serving: Serving,
    outgoing: Arc<Outgoing>,
    watch: Watch,
    clients: Arc<Clients>,
    owner: Owner,
    session: OnceLock<Session>,
    direct: DirectWrite,
    /// VERSION, while it waits for another client of the device.
    waiting_open: Mutex<Option<PendingOpen>>,
    /// A request, while it waits for other clients of the set.
    parked: Mutex<Option<waiting::Parked>>,
    counters: Arc<Counters>,
    log: ConnectionLog,
    /// It has sent a descriptor that cannot be closed at once, and the device had too many of them.
    unwelcome: AtomicBool,
    process: PeerProcess,
    itself: Weak<Self>,
    held: HeldMemory,
    /// Its place among the connections; another one may have it once this is being ended.
    place: Mutex<Option<Place>>,
    pause: DebtPause,
    task_runs: TaskRuns,
    /// Last, so that the connection counts until its file is released.
    counted: Arc<Counted>,
}

impl Connection {
    /// Makes a connection of a socket, to be watched with `watch`; or says why its user may not have
    /// another one.
    pub(crate) fn new(
        socket: OwnedFd,
        clients: &Arc<Clients>,
        watch: Watch,
    ) -> Result<Result<Arc<Self>, Exceeded>, Errno> {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let socket = Socket::new(socket, LINGER, clients.closer.clone())?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let outgoing = Arc::new(Outgoing::new(socket));
        let owner = peer::owner(&outgoing, vfiod_core::ConnectionId(number))?;
        let payer = clients.payer(peer::user(&owner, number));
        outgoing.socket().set_payer(&payer);
        let place = match clients.place(&payer) {
            Ok(place) => place,
            Err(full) => return Ok(Err(full)),
        };
        let connection = Arc::new_cyclic(|itself| Self {
            number,
            log: ConnectionLog::new(clients.clone(), number, payer.clone()),
            held: HeldMemory::new(payer),
            place: Mutex::new(Some(place)),
            pause: DebtPause::default(),
            task_runs: TaskRuns::default(),
            counted: Arc::new(Counted::new(clients, number)),
            state: Mutex::default(),
            serving: Serving::default(),
            outgoing,
            watch,
            clients: clients.clone(),
            owner,
            session: OnceLock::new(),
            direct: DirectWrite::default(),
            waiting_open: Mutex::default(),
            parked: Mutex::default(),
            counters: Arc::default(),
            unwelcome: AtomicBool::new(false),
            process: PeerProcess::default(),
            itself: itself.clone(),
        });
        let client: Arc<dyn Client> = connection.clone();
        clients.add(number, &client, &connection.counters);
        Ok(Ok(connection))
    }

    /// Its place in the pool.
    pub(crate) fn watch(&self) -> &Watch {
        &self.watch
    }

    fn run_until_idle<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        residence: &mut Option<Residence<'a>>,
    ) -> (MutexGuard<'a, State>, Result<Next, End>) {
        let pool = self.watch.pool();
        let mut streak = 0;
        let mut chunk = SMALL_CHUNK;
        loop {
            if pool.is_stopping() || self.outgoing.is_ended() {
                return (state, Err(End::Stopped));
            }
            if self.is_paused() {
                return (state, Ok(Next::Watch(Interest::Closed)));
            }
            let saturated = pool.is_saturated() || self.clients.gate.is_crowded();
            let wait = if saturated { Wait::No } else { Wait::Linger };
            let outcome;
            (state, outcome) = self.turn(state, wait);
            let handled = match outcome {
                Ok(Turn::Handled(handled)) => handled,
                Ok(Turn::Blocked(interest)) => return (state, Ok(Next::Watch(interest))),
                Err(end) => return (state, Err(end)),
            };
            // Only once the client was told so in an answer.
            let revoked = |session: &Session| session.opened.file.is_revoked();
            if handled != Handled::Nothing && self.session.get().is_some_and(revoked) {
                return (state, Err(End::Revoked));
            }
            // Others who wait for a thread shall have their turn.
            let crowded = self.clients.gate.is_crowded();
            match handled {
                Handled::Part if crowded => return (state, Ok(Next::Again)),
                Handled::Part => continue,
                Handled::All if saturated || crowded => {
                    return (state, Ok(Next::Watch(Interest::Read)));
                }
                Handled::All | Handled::Nothing => {}
            }
            if let Some(session) = self.session.get() {
                self.direct.begin(&mut state, &session.opened.file);
            }
            if streak == BUSY_STREAK && residence.is_none() && self.clients.gate.has_room() {
                *residence = self.itself.upgrade().and_then(|this| self.watch.settle(this));
                if residence.is_some() {
                    // Saves the kernel a timer for each round trip.
                    if let Err(error) = self.outgoing.socket().bound_receive(false) {
                        return (state, Err(error.into()));
                    }
                }
            }
            if self.session.get().is_none() && self.clients.closer.is_saturated() {
                return (state, Err(End::Descriptors));
            }
            let received = self.receive(&mut state, chunk, wait, residence.is_some());
            if self.unwelcome.load(Ordering::Relaxed) {
                return (state, Err(End::Descriptors));
            }
            match received {
                Ok(Received::Bytes(bytes)) => {
                    count(&self.counters.received, bytes);
                    streak += 1;
                    if bytes >= SMALL_CHUNK / 2 {
                        chunk = CHUNK;
                    }
                }
                Ok(Received::Nothing) => return (state, Ok(Next::Watch(Interest::Read))),
                Ok(Received::Eof) => {
                    self.outgoing.closed_by_peer();
                    let whole = state.is_between_messages();
                    let end = if whole { End::Closed } else { End::Truncated };
                    return (state, Err(end));
                }
                Err(error) => return (state, Err(error.into())),
            }
        }
    }

    /// Whether it is not served now, as its user is in debt. One that has no session may have the turn
    /// to open the device, which others wait for.
    fn is_paused(&self) -> bool {
        self.session.get().is_some()
            && self.held.payer().debt().pause().is_some_and(|pause| {
                // To whom nothing can be sent costs nothing, and others may wait for its file.
                !self.outgoing.socket().is_closed()
                    && self.pause.begin(pause, &self.watch, self.itself.clone())
            })
    }

    fn fill(&self, state: &mut State, chunk: usize, wait: Wait) -> Result<Received, Errno> {
        let mut lent = Lent::default();
        if state.is_receiving_outside()
            && let Some(session) = self.session.get()
        {
            let (file, socket) = (&session.opened.file, self.outgoing.socket());
            let received = self.direct.receive(state, file, socket, &mut lent, wait)?;
            // They came in the middle of data.
            self.close_unasked(lent);
            return Ok(received);
        }
        let room = state.room(chunk / 2, chunk).map_err(|_| Errno::NOMEM)?;
        let received = self.outgoing.socket().receive(room, &mut lent, wait)?;
        if let Received::Bytes(bytes) = received {
            let descriptors =
                if lent.is_empty() { Descriptors::default() } else { self.judge(lent) };
            state.received(bytes, descriptors, now());
        }
        Ok(received)
    }

    /// Takes of a client's descriptors what a command can ask for.
    fn judge(&self, lent: Lent) -> Descriptors {
        let Lent { fds, truncated } = lent;
        let Some(session) = self.session.get() else {
            // None is held before negotiation. A command that came together with VERSION finds that
            // its descriptors are missing.
            self.close_unasked(Lent { fds, truncated });
            return Descriptors { fds: Vec::new(), truncated: true };
        };
        let closer = &self.clients.closer;
        let space = session.opened.file.space();
        let accepts_files = space.is_ok_and(|space| space.accepted_files() == AcceptedFiles::Any);
        let judge = |fd| Descriptor::judge(fd, closer, accepts_files, self.held.payer());
        let fds: Vec<_> = fds.into_iter().map(judge).collect();
        if fds.iter().any(Descriptor::is_refused) && closer.is_saturated() {
            self.unwelcome.store(true, Ordering::Relaxed);
        }
        Descriptors { fds, truncated }
    }

    fn close_unasked(&self, lent: Lent) {
        if !self.clients.closer.close_all(lent.fds, self.held.payer()) {
            self.unwelcome.store(true, Ordering::Relaxed);
        }
    }

    /// Sends what waits, handles every whole message that has arrived, and sends the replies.
    fn turn<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        wait: Wait,
    ) -> (MutexGuard<'a, State>, Result<Turn, End>) {
        if self.outgoing.is_blocked() {
            let flushed = self.outgoing.flush(wait);
            self.log_denied();
            match flushed {
                Ok(true) => {
                    let blocked = self.take_while_blocked(&mut state).map(Turn::Blocked);
                    return (state, blocked);
                }
                Ok(false) => {}
                Err(error) => return (state, Err(error.into())),
            }
        }
        // Not where others need the thread.
        let keeper = match self.session.get() {
            Some(session) if wait == Wait::Linger && self.task_runs.are_short() => {
                session.opened.file.keeper()
            }
            _ => None,
        };
        let mut handled = Handled::Nothing;
        // Since when others are known to wait.
        let mut crowded = None;
        let outcome = loop {
            match self.step(&mut state, wait) {
                Ok(Step::Idle) => break Ok(()),
                Ok(Step::Done) => handled = Handled::All,
                Ok(Step::Parked) => {
                    let sent = self.send(&mut state, Wait::No);
                    let interest = sent.and_then(|_| self.take_while_parked(&mut state));
                    return (state, interest.map(Turn::Blocked));
                }
                Ok(Step::Waits(unanswered)) => {
                    handled = Handled::All;
                    if let Err(end) = self.send(&mut state, wait) {
                        return (state, Err(end));
                    }
                    state = self.wait_for(state, unanswered);
                }
                Err(end) => break Err(end),
            }
            if self.clients.gate.is_crowded()
                && crowded.get_or_insert_with(Instant::now).elapsed() >= CROWDED_TURN
            {
                handled = Handled::Part;
                break Ok(());
            }
            // Where there is no memory for one more, too.
            if state.output().len() >= REPLY_BATCH || state.output().reserve(0).is_err() {
                hand_over();
                match self.send(&mut state, wait) {
                    Ok(true) => {
                        handled = Handled::Part;
                        break Ok(());
                    }
                    Ok(false) => {}
                    Err(end) => return (state, Err(end)),
                }
            }
        };
        // A task that is kept waits for no client.
        let holds = keeper.as_ref().is_some_and(Keeper::holds);
        let sent = self.send(&mut state, if holds { Wait::No } else { wait });
        let outcome = outcome.and(sent);
        if let Some(keeper) = keeper.filter(|_| holds && outcome.is_ok()) {
            self.run_kept(&keeper);
        }
        (state, outcome.map(|_| Turn::Handled(handled)))
    }

    /// Takes in what must not wait until a client takes what was sent: replies to DMA messages, and
    /// everything where its process has died. What to wait for then.
    fn take_while_blocked(&self, state: &mut State) -> Result<Interest, End> {
        let dma = self.session.get().map(|session| &session.dma);
        let dma = dma.filter(|dma| dma.shares_socket());
        if dma.is_none() && !self.process_is_dead() {
            return Ok(Interest::Write);
        }
        let mut has_memory = true;
        if state.wants_input() {
            match self.fill(state, SMALL_CHUNK, Wait::No) {
                Ok(Received::Bytes(bytes)) => count(&self.counters.received, bytes),
                Ok(Received::Nothing) => {}
                // It may still take what is for it.
                Ok(Received::Eof) => return Ok(Interest::Write),
                Err(Errno::NOMEM) => has_memory = false,
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(dma) = dma {
            while let Some(reply) = state.next_dma_reply() {
                if !dma.complete(&reply)? {
                    self.stray_reply();
                }
            }
        }
        if has_memory && state.wants_input() {
            return Ok(Interest::Both);
        }
        if self.is_abandoned() { Err(End::Abandoned) } else { Ok(Interest::Write) }
    }

    /// Whether the process that has connected is dead. If not, the connection is woken when it dies.
    fn process_is_dead(&self) -> bool {
        self.process.watch(self.fd(), self.itself.clone(), self.watch.pool());
        self.process.has_died()
    }

    /// Whether the connection, for whose input there is no room, has to end, as nobody is left at
    /// the other end. If not yet, it is woken when that may be so.
    fn is_abandoned(&self) -> bool {
        let Some(this) = self.itself.upgrade().filter(|_| self.process_is_dead()) else {
            return false;
        };
        let moved = self.counters.received.load(Ordering::Relaxed) + self.outgoing.taken();
        let source: Arc<dyn Source> = this;
        let alarm = |delay| self.watch.pool().wake_after(delay, &self.watch, &source);
        self.process.is_abandoned(moved, alarm)
    }

    /// Handles one event.
    #[inline]
    fn step(&self, state: &mut State, wait: Wait) -> Result<Step, End> {
        let mut message = Message::begin(self.clients.device.name(), self.number, state.output());
        if let Some(session) = self.session.get()
            && let Some(access) = state.next_access()
        {
            count(&self.counters.accesses, 1);
            message.access(&access);
            let entered = message.enter();
            let file = &session.opened.file;
            let outcome = if direct::is_large_read(&access) {
                hand_over();
                let (outcome, sent) = direct::read(file, access, &self.outgoing, wait);
                count(&self.counters.sent, sent);
                outcome
            } else {
                dispatch::access(file, access, &mut message)
            };
            if let Err(Refused { command, error }) = outcome {
                self.refused(command, error.errno(), &error, &mut message);
            }
            drop(entered);
            message.end(state.output());
            return Ok(Step::Done);
        }
        self.step_any(state, message)
    }

    /// Handles one event, whatever it is.
    fn step_any(&self, state: &mut State, mut message: Message) -> Result<Step, End> {
        if self.session.get().is_none() {
            let waiting = lock(&self.waiting_open).take();
            if let Some(open) = waiting {
                return self.negotiate(state, open);
            }
        } else if state.pending().is_some() {
            hand_over();
            return self.step_parked();
        }
        let Some(event) = state.next()? else { return Ok(Step::Idle) };
        // It may wait for the task.
        hand_over();
        let is_access = match &event {
            Event::Call(call) => {
                matches!(call.request, Request::RegionWritten(_) | Request::RegionWriteMulti(_))
            }
            Event::DmaReply(_) | Event::Refused(_) => false,
        };
        count(if is_access { &self.counters.accesses } else { &self.counters.others }, 1);
        let call = match event {
            Event::Call(call) => call,
            Event::DmaReply(reply) => {
                let expected = match self.session.get() {
                    Some(session) => session.dma.complete(&reply)?,
                    None => {
                        count(&self.counters.early_replies, 1);
                        let early = self.counters.early_replies.load(Ordering::Relaxed);
                        if early > MAX_STRAY_REPLIES {
                            return Err(vfiod_protocol::End::StrayReplies.into());
                        }
                        false
                    }
                };
                if !expected {
                    self.stray_reply();
                }
                return Ok(Step::Done);
            }
            Event::Refused(refusal) => {
                let errno = Errno::from_raw_os_error(refusal.errno as i32);
                message.refusal(&refusal);
                self.refused(refusal.command, errno, &refusal.what, &mut message);
                message.end(state.output());
                return Ok(Step::Done);
            }
        };
        message.call(&call);
        let Some(session) = self.session.get() else {
            let Request::Version { proposed, token } = call.request else { return Ok(Step::Done) };
            let open = PendingOpen::new(call.bytes.start, proposed, token.map(Token), message);
            return self.negotiate(state, open);
        };
        let Call { request, reply, bytes, deadline } = call;
        let waiting = match session.dma.shares_socket() || hot_reset::is_asked_by(&request) {
            true => Waiting::of(&request, &reply),
            false => Ok(None),
        };
        if let Ok(Some(what)) = waiting {
            let (request, patience) = (bytes.start, None);
            return Ok(Step::Waits(Unanswered { what, request, deadline, message, patience }));
        }
        let entered = message.enter();
        let link = Link { session, outgoing: &self.outgoing, pool: self.watch.pool() };
        let target = Target { file: &session.opened.file, link: &link };
        let request = waiting.map_err(Error::from).and_then(|_| descriptor::of_request(request));
        let outcome = match request {
            Ok(request) => target.carry_out_logged(request, reply, deadline, &mut message),
            Err(error) => dispatch::refuse(reply, error),
        };
        if let Err(Refused { command, error }) = outcome {
            self.refused(command, error.errno(), &error, &mut message);
        }
        drop(entered);
        message.end(state.output());
        Ok(Step::Done)
    }

    /// Takes in the replies to DMA requests that have been received, from behind other messages,
    /// too. Ends the connection if one is malformed.
    fn complete_dma(&self, state: &mut State, session: &Session) {
        while let Some(reply) = state.next_dma_reply() {
            match session.dma.complete(&reply) {
                Ok(true) => {}
                Ok(false) => self.stray_reply(),
                Err(_) => return self.outgoing.end(),
            }
        }
    }

    fn stray_reply(&self) {
        self.log.stray_reply(self.has_session());
    }

    /// Sends the replies collected. Returns whether the client does not take them.
    fn send(&self, state: &mut State, wait: Wait) -> Result<bool, End> {
        let output = state.output();
        if output.is_empty() {
            return Ok(false);
        }
        if !self.outgoing.socket().buffer().is_paid() {
            // A session has paid.
            let paid = self.outgoing.socket().buffer().pay_spare(self.held.payer());
            paid.map_err(End::Unsendable)?;
        }
        count(&self.counters.sent, output.len());
        let sent = self.outgoing.send(output, wait);
        self.log_denied();
        match sent {
            // The end of the stream tells of a client that has gone; to send to it is no error.
            Err(Errno::PIPE | Errno::CONNRESET) => {
                let len = output.len();
                while !output.is_empty() {
                    drop(output.sent(len));
                }
                Ok(false)
            }
            sent => Ok(sent?),
        }
    }

    /// Counts and logs replies that could not have their descriptors. Without the second socket that it
    /// was told of, a client cannot go on.
    fn log_denied(&self) {
        for command in self.outgoing.socket().unread().take_denied() {
            self.refused(Some(command), Errno::TOOMANYREFS, &DENIED, &mut Message::default());
            if command == Command::Version {
                Client::end(self);
            }
        }
    }

    /// Counts a refusal, and logs it.
    fn refused(
        &self,
        command: Option<Command>,
        errno: Errno,
        error: &dyn std::fmt::Display,
        message: &mut Message,
    ) {
        message.failed(errno, error);
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
        self.log.refused(self.has_session(), command, errno, error);
    }

    /// Charges the user for what is kept while no thread serves the connection.
    fn charge_held(&self, state: &State) -> Result<(), Exceeded> {
        self.held.charge(state.held() + self.outgoing.held())
    }
}

impl Client for Connection {
    fn user(&self) -> User {
        self.held.payer().user().or_unnamed()
    }

    fn has_session(&self) -> bool {
        self.session.get().is_some()
    }

    fn is_departing(&self) -> bool {
        self.outgoing.is_ended() || self.outgoing.socket().peer_has_closed()
    }

    fn end(&self) {
        self.outgoing.end();
        if let Some(session) = self.session.get() {
            session.dma.end();
        }
    }

    fn wake(&self) {
        // Where there is no room yet, as a client does not take replies, it waits for that anyway.
        serving::wake(self, &self.watch, Interest::Both);
    }

    fn give_place(&self, payer: &Payer) -> Option<Place> {
        lock(&self.place).take_if(|place| place.transfer(self.held.payer(), payer).is_ok())
    }

    fn info(&self) -> ConnectionInfo {
        let totals = self.counters.totals();
        ConnectionInfo {
            owner: self.owner.clone(),
            dialect: self.session.get().map(|session| session.dialect),
            messages: totals.messages,
            bytes_received: totals.bytes_received,
            bytes_sent: totals.bytes_sent,
            errors: totals.errors,
        }
    }
}

impl Bereaved for Connection {
    fn process_has_died(&self) {
        self.process.set_died();
        Client::wake(self);
    }
}

impl Blocked for Connection {
    fn blocked(&self) {
        // The thread that serves it looks again, and watches it for room.
        serving::wake(self, &self.watch, Interest::Both);
    }
}

impl Guarded for Connection {
    type End = End;

    fn serving(&self) -> &Serving {
        &self.serving
    }

    fn gate(&self) -> &Arc<Gate> {
        &self.clients.gate
    }

    fn payer(&self) -> Option<&Payer> {
        Some(self.held.payer())
    }

    fn run(&self, worker: &mut Worker) -> Result<Next, End> {
        let mut state = lock(&self.state);
        state.attach(&mut worker.input, &mut worker.replies, self.number);
        let mut residence = None;
        let (mut state, outcome) = self.run_until_idle(state, &mut residence);
        state.detach(&mut worker.input, &mut worker.replies);
        self.outgoing.socket().settle();
        let held = self.charge_held(&state);
        drop(state);
        held?;
        if outcome.is_ok() && residence.is_some() {
            self.outgoing.socket().bound_receive(true)?;
        }
        outcome.map(|next| match next {
            Next::Watch(idle) => Next::Watch(self.outgoing.interest(idle)),
            Next::Again => Next::Again,
        })
    }

    /// Takes in what has arrived, for a thread that waits in a request.
    fn pump(&self) {
        let mut state = lock(&self.state);
        if !self.serving.is_waiting() {
            // It has come back: what has arrived is for it.
            return;
        }
        let Some(session) = self.session.get() else { return };
        let blocked = self.outgoing.flush(Wait::No).unwrap_or(false);
        let mut has_memory = true;
        match self.fill(&mut state, SMALL_CHUNK, Wait::No) {
            Ok(Received::Bytes(bytes)) => count(&self.counters.received, bytes),
            Ok(Received::Nothing) => {}
            // The rest waits for the request's reply. Until then it would wake a thread again at once.
            Err(Errno::NOMEM) => has_memory = false,
            Ok(Received::Eof) | Err(_) => {
                // The thread that waits finds it, too. Nobody is to wait for this client.
                self.outgoing.closed_by_peer();
                session.dma.end();
                return;
            }
        }
        self.complete_dma(&mut state, session);
        if let Err(exceeded) = self.charge_held(&state) {
            // The thread that waits finds the end.
            self.log.keeps_too_much(&exceeded);
            self.end();
            return;
        }
        if !state.wants_input() && self.is_abandoned() {
            // The thread that waits finds it.
            self.end();
            return;
        }
        if has_memory && state.wants_input() && !self.outgoing.is_ended() {
            let interest = if blocked { Interest::Both } else { Interest::Read };
            // Fails only when the connection is forgotten.
            let _ = self.watch.rearm(self, interest);
        }
    }

    fn ended(&self, end: &End) {
        self.end();
        self.log.ended(end, &self.info());
    }
}

impl Source for Connection {
    fn fd(&self) -> BorrowedFd<'_> {
        self.outgoing.socket().as_fd()
    }

    fn serve(self: Arc<Self>, watch: &Watch, worker: &mut Worker) {
        serving::serve(self, watch, worker);
    }

    fn interrupt(&self) {
        self.end();
    }

    fn wake(&self, _watch: &Watch) {
        Client::wake(self);
    }
}
