//! A connection: bytes in, requests out, replies in, bytes out.

use std::borrow::Cow;
use std::ops::Range;

use serde::{Deserialize, Serialize, Serializer};
use vfiod_buffer::NoMemory;
use vfiod_wire::payload::RegionAccess;
use vfiod_wire::{Command, DecodeError, EINVAL, HEADER_LEN, Header, Kind};
use zerocopy::FromBytes;

use crate::dialect::Dialect;
use crate::input::{Behind, Descriptors, Frame, Input};
use crate::limits::{
    LARGE_WRITE, MAX_DATA, MAX_FIRST_MESSAGE, MAX_MESSAGE, MAX_WAITING, MAX_WAITING_FDS,
};
use crate::output::{Output, ReplyBuffer};
use crate::reply::Reply;
use crate::request::Request;
use crate::session::{Dropped, End, Outside, Pending, Phase, Session};
use crate::time::Time;

/// `ENOSYS`.
const ENOSYS: u32 = 38;
/// `ENOMEM`.
const ENOMEM: u32 = 12;
/// `ETIMEDOUT`.
const ETIMEDOUT: u32 = 110;

/// The server's side of one vfio-user connection. `D` names a descriptor: whatever the driver
/// likes, such as an `OwnedFd` or a number. Descriptors that no message asked for are dropped.
///
/// The driver receives into [`Connection::room`], reports with [`Connection::received`], takes
/// events from [`Connection::next`] until there is none, and sends [`Connection::output`]. A
/// request that is not answered at once holds up those behind it, but not the replies to DMA
/// messages ([`Connection::next_dma_reply`]).
#[derive(Debug)]
pub struct Connection<D> {
    pub(crate) input: Input<D>,
    pub(crate) output: Output<D>,
    pub(crate) session: Session,
}

impl<D> Default for Connection<D> {
    fn default() -> Self {
        Self { input: Input::default(), output: Output::default(), session: Session::default() }
    }
}

/// What has arrived.
#[derive(Debug)]
pub enum Event<'a, D> {
    /// A request to be carried out.
    Call(Call<'a, D>),
    /// The reply to a DMA message: for [`crate::DmaRequests::complete`].
    DmaReply(DmaReply<'a>),
    /// A message that was refused; its reply is in the output.
    Refused(Refusal),
}

/// A request with all that belongs to it.
#[derive(Debug)]
pub struct Call<'a, D> {
    /// What is asked for.
    pub request: Request<'a, D>,
    /// The right to answer.
    pub reply: Reply<'a, D>,
    /// The message's positions in the input. The first identifies the request.
    pub bytes: Range<u64>,
    /// When it must be answered.
    pub deadline: Time,
}

/// A reply to a DMA message.
#[derive(Clone, Copy, Debug)]
pub struct DmaReply<'a> {
    /// Its header, of [`Kind::Reply`].
    pub header: Header,
    /// What is behind the header.
    pub payload: &'a [u8],
    /// Position of its first byte in the input.
    pub position: u64,
}

/// A message that was refused without asking the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Its command, if there is one of this number.
    pub command: Option<Command>,
    /// The errno in the reply.
    pub errno: u32,
    /// What is wrong with it.
    pub what: Cow<'static, str>,
    /// The message's positions in the input.
    pub bytes: Range<u64>,
    /// The reply's positions in the output; empty if the message wanted none.
    pub reply: Range<u64>,
}

/// A REGION_WRITE with much data, of which part has arrived.
#[derive(Debug)]
pub struct LargeWrite<'a> {
    /// What is to be written.
    pub access: RegionAccess,
    /// The data that has arrived.
    pub arrived: &'a [u8],
}

#[derive(Serialize, Deserialize)]
struct Saved<I, O> {
    phase: Phase,
    dialect: Dialect,
    client_fds: u32,
    client_data: u64,
    /// A request was handed out and has no reply yet.
    pending: bool,
    outside: Option<Outside>,
    #[serde(default)]
    dropped: Option<Dropped>,
    input: I,
    output: O,
}

impl<D: Serialize> Serialize for Connection<D> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { input, output, session } = self;
        let Session { phase, dialect, client_fds, client_data, pending, outside, dropped } =
            session;
        // A message that has its reply is moved out only by the next call.
        let replied = pending.filter(|pending| pending.replied).map(|pending| pending.frame);
        let inside = session.inside();
        let (inside, size, outside, dropped) = match replied {
            Some(frame) => {
                (inside.unwrap_or(frame.header.size as usize), frame.header.size, None, None)
            }
            None => (0, 0, *outside, *dropped),
        };
        Saved {
            phase: phase.clone(),
            dialect: *dialect,
            client_fds: *client_fds,
            client_data: *client_data,
            pending: pending.is_some_and(|pending| !pending.replied),
            outside,
            dropped,
            input: Behind { input, inside, size },
            output,
        }
        .serialize(serializer)
    }
}

impl<'de, D: Deserialize<'de>> Deserialize<'de> for Connection<D> {
    fn deserialize<S: serde::Deserializer<'de>>(deserializer: S) -> Result<Self, S::Error> {
        let saved: Saved<Input<D>, Output<D>> = Saved::deserialize(deserializer)?;
        Self::restore(saved).map_err(serde::de::Error::custom)
    }
}

impl<D> Connection<D> {
    fn restore(saved: Saved<Input<D>, Output<D>>) -> Result<Self, &'static str> {
        let Saved { phase, dialect, client_fds, client_data, .. } = saved;
        let Saved { pending, outside, dropped, input, output, .. } = saved;
        let session =
            Session { phase, dialect, client_fds, client_data, pending: None, outside, dropped };
        let mut this = Self { input, output, session };
        if let Some(Dropped { received }) = dropped {
            let size = this.input.front_header().map_or(0, |header| header.size as usize);
            let fits = (HEADER_LEN..=MAX_MESSAGE).contains(&size) && received <= size - HEADER_LEN;
            if !fits || this.input.len() != HEADER_LEN || pending || outside.is_some() {
                return Err("a message to be dropped that is none");
            }
        }
        if let Some(Outside { received }) = outside {
            let size = this.large_write_size().ok_or("a large write that is none")?;
            if received > size || this.input.len() != HEADER_LEN + RegionAccess::LEN {
                return Err("a large write of which more arrived than there is");
            }
        }
        if pending {
            let frame = match outside {
                Some(_) => this.outside_frame(),
                None => this.input.front(this.limit()).ok().flatten(),
            };
            let frame = frame.ok_or("a request without its message")?;
            if !matches!(frame.header.kind(), Kind::Command | Kind::Posted) {
                return Err("a request that is a reply");
            }
            this.session.pending = Some(this.pending_for(frame));
        }
        Ok(this)
    }

    fn limit(&self) -> usize {
        match self.session.phase {
            Phase::AwaitsVersion => MAX_FIRST_MESSAGE,
            Phase::Ready | Phase::Ended(_) => MAX_MESSAGE,
        }
    }

    /// What is to be sent. DMA messages on the same socket go in here, too.
    pub fn output(&mut self) -> &mut Output<D> {
        &mut self.output
    }

    /// The deviations that the client needs; known once negotiated.
    pub fn dialect(&self) -> Dialect {
        self.session.dialect
    }

    /// Whether the negotiation succeeded.
    pub fn is_ready(&self) -> bool {
        self.session.phase == Phase::Ready
    }

    /// Most bytes of data that the client takes in one message; known once negotiated.
    pub fn client_data_limit(&self) -> u64 {
        self.session.client_data
    }

    /// Whether the input ends between two messages.
    pub fn is_between_messages(&self) -> bool {
        self.input.is_empty()
    }

    /// Position in the input of the first byte that is not used up.
    pub fn input_position(&self) -> u64 {
        self.input.position()
    }

    /// Whether the driver may receive more. Not while much waits behind a request without a reply.
    pub fn wants_input(&self) -> bool {
        self.input.len() < MAX_WAITING && self.input.held_fds() < MAX_WAITING_FDS
    }

    /// Room to receive into, at least `least` bytes where there is memory for them, and not none. If
    /// memory is needed for that, it is `chunk` bytes at least.
    ///
    /// A message that is too long for the memory that there is, is refused with `ENOMEM`: what comes of it
    /// is dropped.
    ///
    /// # Errors
    /// There is no memory, and the message at the front cannot be refused: it is there in whole and waits
    /// for its reply, so that there may be memory after that.
    pub fn room(&mut self, least: usize, chunk: usize) -> Result<&mut [u8], NoMemory> {
        self.finish_replied();
        if self.session.dropped.is_none() {
            let made = self.input.make_room(least, chunk);
            if made.is_ok() || !self.drop_front() {
                return made.map(|()| self.input.room());
            }
        }
        let left = self.dropped_left();
        // The buffer may be another one than that in which there was no room.
        self.input.make_room(1, chunk)?;
        let room = self.input.room();
        let len = room.len().min(left);
        if len == 0 { Err(NoMemory { bytes: left }) } else { Ok(&mut room[..len]) }
    }

    /// The first `bytes` bytes of [`Connection::room`] were received, and descriptors with them.
    pub fn received(&mut self, bytes: usize, descriptors: Descriptors<D>, now: Time) {
        match &mut self.session.dropped {
            Some(dropped) => dropped.received += bytes,
            None => self.input.received(bytes, descriptors, now),
        }
    }

    /// Receives bytes by copying them.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn receive(
        &mut self,
        mut bytes: &[u8],
        mut descriptors: Descriptors<D>,
        now: Time,
    ) -> Result<(), NoMemory> {
        loop {
            let room = self.room(bytes.len(), bytes.len())?;
            let len = room.len().min(bytes.len());
            room[..len].copy_from_slice(&bytes[..len]);
            bytes = &bytes[len..];
            // They belong to the last byte.
            let with = if bytes.is_empty() {
                std::mem::take(&mut descriptors)
            } else {
                Default::default()
            };
            self.received(len, with, now);
            if bytes.is_empty() {
                return Ok(());
            }
        }
    }

    /// Begins to drop the message at the front, if not all of it has arrived.
    fn drop_front(&mut self) -> bool {
        let Session { phase, pending, outside, dropped, .. } = &mut self.session;
        if *phase != Phase::Ready || pending.is_some() || outside.is_some() {
            return false;
        }
        let size = self.input.front_header().map_or(0, |header| header.size as usize);
        if size > MAX_MESSAGE || self.input.len() >= size {
            return false;
        }
        *dropped = Some(Dropped { received: self.input.cut_front(HEADER_LEN) });
        self.input.drop_descriptors();
        true
    }

    /// How much is still to come of the message that is dropped.
    fn dropped_left(&self) -> usize {
        let size = self.input.front_header().map_or(0, |header| header.size as usize);
        let received = self.session.dropped.map_or(0, |dropped| dropped.received);
        size.saturating_sub(HEADER_LEN + received)
    }

    /// Borrows a thread's buffers; see [`Connection::detach`]. `user` is a number of this
    /// connection that no other one in the process has.
    pub fn attach(&mut self, input: &mut Vec<u8>, replies: &mut ReplyBuffer, user: u64) {
        self.input.attach(input);
        self.output.attach(replies, user);
    }

    /// Gives the buffers back. What is left over is kept in memory that is not much more.
    pub fn detach(&mut self, input: &mut Vec<u8>, replies: &mut ReplyBuffer) {
        self.finish_replied();
        self.input.detach(input);
        self.output.detach(replies);
    }

    /// How much memory the input and the output that are left over take, in bytes.
    pub fn held(&self) -> usize {
        self.input.len() + self.output.memory()
    }

    /// Moves out the message of a request that has its reply.
    #[inline]
    pub(crate) fn finish_replied(&mut self) {
        if let Some(Pending { frame, replied: true, .. }) = self.session.pending {
            self.session.pending = None;
            match self.session.inside() {
                Some(inside) => self.input.consume_outside(inside, frame.header.size),
                None => self.input.consume(&frame),
            }
            (self.session.outside, self.session.dropped) = (None, None);
        }
    }

    fn pending_for(&self, frame: Frame) -> Pending {
        Pending::new(&self.input, frame)
    }

    /// The next event; `None` while there is no whole message, or while a request waits for its
    /// reply.
    ///
    /// # Errors
    /// The connection has ended. The same is returned again.
    #[inline]
    #[allow(clippy::should_implement_trait)] // Its items borrow from it.
    pub fn next(&mut self) -> Result<Option<Event<'_, D>>, End> {
        self.finish_replied();
        if let Phase::Ended(end) = &self.session.phase {
            return Err(end.clone());
        }
        if self.session.pending.is_some() {
            return Ok(None);
        }
        if self.session.outside.is_some() {
            return Ok(self.next_outside());
        }
        if self.session.dropped.is_some() {
            return Ok(self.next_dropped());
        }
        let frame = match self.input.front(self.limit()) {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(None),
            Err(bad) => return Err(self.end(bad.into())),
        };
        let descriptors = self.input.claim(&frame);
        let kind = frame.header.kind();
        if self.session.phase == Phase::AwaitsVersion && !matches!(kind, Kind::Reply(_)) {
            return self.first_message(frame, kind).map(Some);
        }
        match kind {
            Kind::Command | Kind::Posted => {}
            Kind::Reply(_) => {
                self.input.consume(&frame);
                return Ok(Some(Event::DmaReply(DmaReply {
                    header: frame.header,
                    payload: self.input.consumed_payload(&frame),
                    position: frame.position,
                })));
            }
            Kind::Unknown => return Ok(Some(self.refuse(frame, EINVAL, "unknown message type"))),
        }
        let Some(command) = Session::command(&frame.header) else {
            let what = format!("unknown command {}", frame.header.command);
            return Ok(Some(self.refuse(frame, ENOSYS, what)));
        };
        let pending = self.pending_for(frame);
        let Self { input, output, session } = self;
        let payload = input.payload(&frame);
        session.pending = Some(pending);
        let request = Request::decode(command, payload, descriptors).and_then(|request| {
            // Nothing takes effect whose reply cannot be given.
            let reserved = output.reserve(request.largest_reply(payload));
            reserved.map_err(|_| DecodeError::new(ENOMEM, "no memory for its reply"))?;
            Ok(request)
        });
        let reply = Reply { header: frame.header, payload, output, session };
        Ok(Some(match request {
            Ok(request) => Event::Call(Call {
                request,
                reply,
                bytes: frame.position..frame.end(),
                deadline: pending.deadline,
            }),
            Err(error) => {
                let what = source_too(&error);
                Event::Refused(refuse(reply, &frame, error.errno, what))
            }
        }))
    }

    /// Anything but a VERSION ends the connection, after a reply that says why.
    fn first_message(&mut self, frame: Frame, kind: Kind) -> Result<Event<'_, D>, End> {
        if kind == Kind::Posted {
            // Nothing may be answered, and without the answer there is no negotiation.
            let what = "a first message that wants no answer".to_owned();
            return Err(self.end(End::Refused(what)));
        }
        let version = Session::command(&frame.header) == Some(Command::Version);
        let decoded = match version && kind == Kind::Command {
            true => Request::decode_version(self.input.payload(&frame))
                .map_err(|error| (error.errno, source_too(&error))),
            false => {
                Err((EINVAL, format!("message {} before VERSION", frame.header.command).into()))
            }
        };
        match decoded {
            Ok(request) => {
                let pending = self.pending_for(frame);
                self.session.pending = Some(pending);
                Ok(Event::Call(Call {
                    request,
                    bytes: frame.position..frame.end(),
                    deadline: pending.deadline,
                    reply: Reply {
                        header: frame.header,
                        payload: self.input.payload(&frame),
                        output: &mut self.output,
                        session: &mut self.session,
                    },
                }))
            }
            Err((errno, what)) => {
                self.session.phase = Phase::Ended(End::Refused(what.clone().into_owned()));
                Ok(self.refuse(frame, errno, what))
            }
        }
    }

    fn end(&mut self, end: End) -> End {
        self.session.phase = Phase::Ended(end.clone());
        end
    }

    fn refuse(
        &mut self,
        frame: Frame,
        errno: u32,
        what: impl Into<Cow<'static, str>>,
    ) -> Event<'_, D> {
        self.session.pending = Some(self.pending_for(frame));
        let reply = Reply {
            header: frame.header,
            payload: self.input.payload(&frame),
            output: &mut self.output,
            session: &mut self.session,
        };
        Event::Refused(refuse(reply, &frame, errno, what.into()))
    }

    /// The request that waits for its reply: its positions in the input, and its deadline.
    pub fn pending(&self) -> Option<(Range<u64>, Time)> {
        let pending = self.session.pending.filter(|pending| !pending.replied)?;
        Some((pending.frame.position..pending.frame.end(), pending.deadline))
    }

    /// Answers the request that waits for its reply. `request` is the first position that
    /// [`Call::bytes`] had; `None` if another one waits, or none, because its time was up.
    pub fn pending_reply(&mut self, request: u64) -> Option<Reply<'_, D>> {
        let pending = self.session.pending.filter(|pending| !pending.replied)?;
        if pending.frame.position != request {
            return None;
        }
        let payload = match self.session.outside {
            Some(_) => self.input.front_payload(),
            None => self.input.payload(&pending.frame),
        };
        Some(Reply {
            header: pending.frame.header,
            payload,
            output: &mut self.output,
            session: &mut self.session,
        })
    }

    /// Once a request's deadline has passed, answers it with `ETIMEDOUT`. Returns what there was.
    pub fn expire(&mut self, now: Time) -> Option<Refusal> {
        let (bytes, deadline) = self.pending()?;
        if now < deadline {
            return None;
        }
        let reply = self.pending_reply(bytes.start)?;
        let command = reply.command();
        let reply = reply.refuse(ETIMEDOUT);
        let what = Cow::Borrowed("no reply within its deadline");
        Some(Refusal { command, errno: ETIMEDOUT, what, bytes, reply })
    }

    /// The next reply to a DMA message, also from behind requests that wait for their turn.
    pub fn next_dma_reply(&mut self) -> Option<DmaReply<'_>> {
        if !self.is_ready() || self.session.inside().is_some() {
            return None;
        }
        let is_reply = |header: &Header| matches!(header.kind(), Kind::Reply(_));
        let frame = self.input.overtake(MAX_MESSAGE, is_reply)?;
        drop(self.input.claim(&frame));
        let payload = self.input.payload(&frame);
        Some(DmaReply { header: frame.header, payload, position: frame.position })
    }

    /// Size of the data of the REGION_WRITE at the front of the input, if it may be received
    /// outside the buffer.
    fn large_write_size(&self) -> Option<usize> {
        let header = self.input.front_header().filter(|_| self.is_ready())?;
        let (access, _) = RegionAccess::read_from_prefix(self.input.front_payload()).ok()?;
        let size = (header.size as usize).checked_sub(HEADER_LEN + RegionAccess::LEN)?;
        let write = matches!(header.kind(), Kind::Command | Kind::Posted)
            && Session::command(&header) == Some(Command::RegionWrite)
            && access.count as usize == size
            && (LARGE_WRITE..=MAX_DATA).contains(&size);
        write.then_some(size)
    }

    /// Part of a large REGION_WRITE, if it is next and not all of it has arrived. A driver that
    /// can receive the rest where it belongs puts `arrived` there, and calls
    /// [`Connection::receive_outside`].
    pub fn large_write(&mut self) -> Option<LargeWrite<'_>> {
        self.finish_replied();
        if self.session.pending.is_some() || self.session.inside().is_some() {
            return None;
        }
        let size = self.large_write_size()?;
        let arrived = &self.input.front_payload()[RegionAccess::LEN..];
        if arrived.len() >= size {
            return None;
        }
        let (access, _) = RegionAccess::read_from_prefix(self.input.front_payload()).ok()?;
        Some(LargeWrite { access, arrived })
    }

    /// From now on, the data of the write that [`Connection::large_write`] returned is received
    /// by the driver elsewhere. Returns how many bytes are still to come; see
    /// [`Connection::received_outside`].
    pub fn receive_outside(&mut self) -> usize {
        let Some(size) = self.large_write_size() else { return 0 };
        let received = self.input.cut_front(HEADER_LEN + RegionAccess::LEN);
        self.input.drop_descriptors();
        self.session.outside = Some(Outside { received });
        size - received
    }

    /// Whether [`Connection::receive_outside`] was called for the message that is next.
    #[inline]
    pub fn is_receiving_outside(&self) -> bool {
        self.session.outside.is_some() && self.outside_left() > 0
    }

    /// How many bytes are still to be received elsewhere: not with [`Connection::room`].
    pub fn outside_left(&self) -> usize {
        match (self.session.outside, self.large_write_size()) {
            (Some(Outside { received }), Some(size)) => size.saturating_sub(received),
            _ => 0,
        }
    }

    /// The access whose data is received elsewhere, and how much of it has arrived.
    pub fn outside(&self) -> Option<(RegionAccess, usize)> {
        let Outside { received } = self.session.outside?;
        let (access, _) = RegionAccess::read_from_prefix(self.input.front_payload()).ok()?;
        Some((access, received))
    }

    /// That many bytes more were received elsewhere. With the last one,
    /// [`Request::RegionWritten`] is next.
    pub fn received_outside(&mut self, bytes: usize) {
        if let Some(outside) = &mut self.session.outside {
            outside.received += bytes;
        }
    }

    fn outside_frame(&self) -> Option<Frame> {
        let header = self.input.front_header()?;
        Some(Frame { header, position: self.input.position() })
    }

    /// Refuses the message that was dropped, once all of it has come.
    fn next_dropped(&mut self) -> Option<Event<'_, D>> {
        if self.dropped_left() > 0 {
            return None;
        }
        let frame = self.outside_frame()?;
        if matches!(frame.header.kind(), Kind::Reply(_)) {
            self.session.dropped = None;
            self.input.consume_outside(HEADER_LEN, frame.header.size);
            // As if the client had refused: its data are not there.
            let header = frame.header.error(ENOMEM, 0);
            return Some(Event::DmaReply(DmaReply {
                header,
                payload: &[],
                position: frame.position,
            }));
        }
        self.session.pending = Some(self.pending_for(frame));
        let Self { input, output, session } = self;
        let reply = Reply { header: frame.header, payload: input.front_payload(), output, session };
        let what = NoMemory { bytes: frame.header.size as usize }.to_string();
        Some(Event::Refused(refuse(reply, &frame, ENOMEM, what.into())))
    }

    fn next_outside(&mut self) -> Option<Event<'_, D>> {
        if self.outside_left() > 0 {
            return None;
        }
        let frame = self.outside_frame()?;
        let pending = self.pending_for(frame);
        let payload = self.input.front_payload();
        let (access, _) = RegionAccess::read_from_prefix(payload).ok()?;
        self.session.pending = Some(pending);
        Some(Event::Call(Call {
            request: Request::RegionWritten(access),
            bytes: frame.position..frame.end(),
            deadline: pending.deadline,
            reply: Reply {
                header: frame.header,
                payload: self.input.front_payload(),
                output: &mut self.output,
                session: &mut self.session,
            },
        }))
    }
}

fn refuse<D>(reply: Reply<'_, D>, frame: &Frame, errno: u32, what: Cow<'static, str>) -> Refusal {
    let command = Session::command(&frame.header);
    let bytes = frame.position..frame.end();
    Refusal { command, errno, what, bytes, reply: reply.refuse(errno) }
}

fn source_too(error: &vfiod_wire::DecodeError) -> Cow<'static, str> {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}").into(),
        None => error.what.into(),
    }
}
