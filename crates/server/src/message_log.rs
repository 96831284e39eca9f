//! Messages in the log, at the level `trace`: what each asked for, what became of it, and how long
//! that took.
//!
//! Each is one event with the target [`TARGET`], within a span `message` with the fields `device` and
//! `connection`, so that a filter can name one device: `[message{device=edu0}]=trace`. While nobody
//! has asked for that level, a message costs one relaxed load.
//!
//! Of data, at most [`MAX_VALUE`] bytes are logged: what a register holds, but not a guest's memory.
//! Tokens are not logged.

use std::fmt;
use std::time::Instant;

use rustix::io::Errno;
use tracing::Span;
use tracing::level_filters::LevelFilter;
use tracing::span::EnteredSpan;
use vfiod_core::Error;
use vfiod_protocol::{Access, Call, IrqData, Refusal, Request};
use vfiod_wire::payload::RegionAccess;
use vfiod_wire::{Command, FeatureOp, IrqAction, UnmapScope};

use crate::descriptor::Output;
use crate::limits::Clipped;

/// The target of these events, and of their span.
pub(crate) const TARGET: &str = "vfiod_server::messages";

/// The command of a message that has none.
const UNKNOWN: &str = "message";

/// Data of more bytes than this is not logged.
const MAX_VALUE: usize = 8;

/// Data of a few bytes, little-endian.
#[derive(Clone, Copy)]
struct Value {
    bytes: [u8; MAX_VALUE],
    len: usize,
}

impl Value {
    fn of(data: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_VALUE];
        bytes.get_mut(..data.len())?.copy_from_slice(data);
        (!data.is_empty()).then_some(Self { bytes, len: data.len() })
    }
}

/// As a number of as many digits as there are bytes.
impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, digits) = (u64::from_le_bytes(self.bytes), self.len * 2);
        write!(f, "0x{number:0digits$x}")
    }
}

/// A number in hexadecimal.
#[derive(Clone, Copy)]
struct Hex(u64);

impl fmt::Debug for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What a message is about; each command has a part of it.
#[derive(Default)]
struct Subject {
    /// Size of the request with its header, bytes.
    size: Option<u64>,
    posted: Option<bool>,
    region: Option<u32>,
    offset: Option<Hex>,
    iova: Option<Hex>,
    /// How many bytes, vectors, or writes.
    count: Option<u64>,
    value: Option<Value>,
    index: Option<u32>,
    start: Option<u32>,
    action: Option<&'static str>,
    with: Option<&'static str>,
}

/// A message that will be logged.
pub(crate) struct Entry {
    span: Span,
    begun: Instant,
    device: String,
    connection: u64,
    command: &'static str,
    subject: Subject,
    failure: Option<(nix::errno::Errno, String)>,
    /// Where its reply begins in the output.
    output_position: Option<u64>,
}

/// What is to be logged of a message: nothing, unless somebody asked for it.
#[derive(Default)]
pub(crate) struct Message(Option<Box<Entry>>);

/// The kernel's name of an errno.
pub(crate) fn errno_name(errno: Errno) -> nix::errno::Errno {
    nix::errno::Errno::from_raw(errno.raw_os_error())
}

fn end_of(output: &Output) -> u64 {
    output.position() + output.len() as u64
}

/// Whether anything is logged at the level `trace`.
#[inline]
pub(crate) fn may_log() -> bool {
    LevelFilter::current() == LevelFilter::TRACE
}

impl Message {
    /// A message of a connection begins to be handled. Its reply will go into the output.
    #[inline]
    pub(crate) fn begin(device: &str, connection: u64, output: &Output) -> Self {
        match may_log() {
            true => Self::begin_logged(device, connection, Some(end_of(output))),
            false => Self(None),
        }
    }

    /// The server is about to send a DMA message, or a few of them for one transfer.
    #[inline]
    pub(crate) fn begin_transfer(
        device: &str,
        connection: u64,
        command: Command,
        iova: u64,
        len: usize,
        data: &[u8],
    ) -> Self {
        if !may_log() {
            return Self(None);
        }
        let mut message = Self::begin_logged(device, connection, None);
        if let Some(entry) = &mut message.0 {
            entry.command = command.name();
            entry.subject = Subject {
                iova: Some(Hex(iova)),
                count: Some(len as u64),
                value: Value::of(data),
                ..Subject::default()
            };
        }
        message
    }

    #[cold]
    fn begin_logged(device: &str, connection: u64, output_position: Option<u64>) -> Self {
        let span = tracing::trace_span!(target: TARGET, "message", device, connection);
        if span.is_disabled() {
            return Self(None);
        }
        Self(Some(Box::new(Entry {
            span,
            begun: Instant::now(),
            device: device.to_owned(),
            connection,
            command: UNKNOWN,
            subject: Subject::default(),
            failure: None,
            output_position,
        })))
    }

    /// Its reply is what is put into the output from now on.
    #[inline]
    pub(crate) fn replies_from(&mut self, output: &Output) {
        if let Some(entry) = &mut self.0 {
            entry.output_position = Some(end_of(output));
        }
    }

    /// What is logged while the guard lives belongs to the message.
    #[inline]
    pub(crate) fn enter(&self) -> Option<EnteredSpan> {
        self.0.as_ref().map(|entry| entry.span.clone().entered())
    }

    /// The message is a region access.
    #[inline]
    pub(crate) fn access<D>(&mut self, access: &Access<'_, D>) {
        let Some(entry) = &mut self.0 else { return };
        let Access { access, data, reply } = access;
        let command = if data.is_some() { Command::RegionWrite } else { Command::RegionRead };
        let size = vfiod_wire::HEADER_LEN + RegionAccess::LEN + data.map_or(0, <[u8]>::len);
        entry.command = command.name();
        entry.subject = Subject {
            size: Some(size as u64),
            posted: Some(reply.is_posted()),
            value: data.and_then(Value::of),
            ..Subject::of_access(access)
        };
    }

    /// The message is this request.
    #[inline]
    pub(crate) fn call<D>(&mut self, call: &Call<'_, D>) {
        if let Some(entry) = &mut self.0 {
            let size = Some(call.bytes.end - call.bytes.start);
            let posted = Some(call.reply.is_posted());
            entry.subject = Subject { size, posted, ..Subject::of(&call.request) };
            entry.command = call.reply.command().map_or(UNKNOWN, Command::name);
        }
    }

    /// The message was refused before it became a request.
    #[inline]
    pub(crate) fn refusal(&mut self, refusal: &Refusal) {
        if let Some(entry) = &mut self.0 {
            let size = Some(refusal.bytes.end - refusal.bytes.start);
            entry.subject = Subject { size, ..Subject::default() };
            entry.command = refusal.command.map_or(UNKNOWN, Command::name);
        }
    }

    /// What was read.
    #[inline]
    pub(crate) fn read(&mut self, data: &[u8]) {
        if let Some(entry) = &mut self.0 {
            entry.subject.value = Value::of(data);
        }
    }

    /// The message failed.
    #[inline]
    pub(crate) fn failed(&mut self, errno: Errno, why: &dyn fmt::Display) {
        if let Some(entry) = &mut self.0 {
            // It may have some of the client's text.
            entry.failure = Some((errno_name(errno), Clipped(why).to_string()));
        }
    }

    /// The message is done with, and its reply is in the output.
    #[inline]
    pub(crate) fn end(self, output: &Output) {
        if let Some(entry) = self.0 {
            let reply = entry.output_position.map(|from| end_of(output) - from);
            entry.log(reply);
        }
    }

    /// A transfer has ended: what was read, or why it failed.
    #[inline]
    pub(crate) fn end_transfer(mut self, outcome: &Result<Vec<u8>, Error>) {
        match outcome {
            Ok(data) if data.is_empty() => {}
            Ok(data) => self.read(data),
            Err(error) => self.failed(error.errno(), error),
        }
        if let Some(entry) = self.0 {
            entry.log(None);
        }
    }
}

impl Entry {
    fn log(self: Box<Self>, reply: Option<u64>) {
        let Self { span, begun, device, connection, command, subject, failure, .. } = *self;
        let Subject {
            size,
            posted,
            region,
            offset,
            iova,
            count,
            value,
            index,
            start,
            action,
            with,
        } = subject;
        let (errno, error) = failure.unzip();
        let micros = begun.elapsed().as_nanos() as f64 / 1e3;
        let _entered = span.enter();
        tracing::trace!(
            target: TARGET,
            device,
            connection,
            command,
            size,
            reply,
            posted = posted.filter(|posted| *posted),
            region,
            offset = offset.map(tracing::field::debug),
            iova = iova.map(tracing::field::debug),
            index,
            start,
            action,
            with,
            count,
            value = value.map(tracing::field::debug),
            errno = errno.map(tracing::field::debug),
            error,
            micros,
            "message"
        );
    }
}

impl Subject {
    fn of_access(access: &RegionAccess) -> Self {
        Self {
            region: Some(access.region),
            offset: Some(Hex(access.offset)),
            count: Some(u64::from(access.count)),
            ..Self::default()
        }
    }

    fn of<D>(request: &Request<'_, D>) -> Self {
        match request {
            Request::Version { .. } | Request::DeviceGetInfo | Request::DeviceReset => {
                Self::default()
            }
            Request::RegionRead(access) | Request::RegionWritten(access) => Self::of_access(access),
            Request::RegionWrite(access, data) => {
                Self { value: Value::of(data), ..Self::of_access(access) }
            }
            Request::RegionWriteMulti(writes) => {
                Self { count: Some(writes.iter().count() as u64), ..Self::default() }
            }
            Request::DmaMap(map, fd) => Self {
                iova: Some(Hex(map.address)),
                count: Some(map.size),
                offset: Some(Hex(map.offset)),
                with: Some(if fd.is_some() { "descriptor" } else { "messages" }),
                ..Self::default()
            },
            Request::DmaUnmap(scope) => match scope {
                UnmapScope::All => Self { with: Some("all"), ..Self::default() },
                UnmapScope::Range { address, size }
                | UnmapScope::Reporting { address, size, .. } => {
                    Self { iova: Some(Hex(*address)), count: Some(*size), ..Self::default() }
                }
            },
            Request::DeviceGetRegionInfo(region) | Request::DeviceGetRegionIoFds(region) => {
                Self { region: Some(*region), ..Self::default() }
            }
            Request::DeviceGetIrqInfo(index) => Self { index: Some(*index), ..Self::default() },
            Request::DeviceSetIrqs { index, start, count, action, data } => Self {
                index: Some(*index),
                start: Some(*start),
                count: Some(u64::from(*count)),
                action: Some(match action {
                    IrqAction::Mask => "mask",
                    IrqAction::Unmask => "unmask",
                    IrqAction::Trigger => "trigger",
                }),
                with: Some(match data {
                    IrqData::None => "nothing",
                    IrqData::Bool(_) => "flags",
                    IrqData::EventFds(fds) if fds.is_empty() => "no eventfds",
                    IrqData::EventFds(_) => "eventfds",
                }),
                ..Self::default()
            },
            Request::DeviceFeature { index, op, data } => Self {
                index: Some(u32::from(*index)),
                action: Some(match op {
                    FeatureOp::Probe { .. } => "probe",
                    FeatureOp::Get => "get",
                    FeatureOp::Set => "set",
                }),
                count: Some(data.len() as u64),
                ..Self::default()
            },
        }
    }
}
