//! From bytes to messages: framing, and which descriptors belong to which message.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize, Serializer};
use vfiod_buffer::{NoMemory, SMALL, grow};
use vfiod_wire::{HEADER_LEN, Header};

use crate::limits::{MAX_HELD_FDS, MAX_MESSAGE};
use crate::time::Time;

/// Leftovers up to this many bytes are copied when a buffer is given back; larger ones keep the
/// buffer that they are in.
const COPIED: usize = 16 << 10;

/// Bytes that arrived within this many nanoseconds count as having arrived together.
const MERGED: u64 = 1_000_000;
/// How many times of arrival are kept, so that a client cannot take memory by sending bytes one
/// by one.
const MAX_ARRIVALS: usize = 256;

/// A message of a size that no message can have: the byte stream has lost its meaning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("message of {size} bytes, allowed are 16 to {limit}")]
pub struct BadSize {
    /// What its header says.
    pub size: u32,
    /// The longest allowed.
    pub limit: usize,
}

/// Descriptors that came with a receive.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Descriptors<D> {
    /// The driver's names for them.
    pub fds: Vec<D>,
    /// Some are missing: there were more than the receive had room for, or the driver did not take
    /// them.
    pub truncated: bool,
}

impl<D> Default for Descriptors<D> {
    fn default() -> Self {
        Self { fds: Vec::new(), truncated: false }
    }
}

impl<D> Descriptors<D> {
    /// Whether there are none, and none was lost.
    pub fn is_empty(&self) -> bool {
        self.fds.is_empty() && !self.truncated
    }
}

/// Bytes that have arrived and are not used up.
///
/// A stream socket hands over descriptors with the receive whose last bytes they were sent
/// with: Linux ends a receive behind data that carries some. So they belong to the message that
/// holds the last byte of that receive.
#[derive(Debug, Deserialize)]
#[serde(try_from = "SavedInput<D>", bound(deserialize = "D: Deserialize<'de>"))]
pub(crate) struct Input<D> {
    /// Grows with what arrives, never with what a header claims.
    data: Vec<u8>,
    /// `data[start..end]` is unused.
    start: usize,
    end: usize,
    /// Position of `data[start]` in the stream.
    position: u64,
    /// Descriptors, and the position in the stream behind the receive that brought them.
    descriptors: Vec<(u64, Descriptors<D>)>,
    /// When the bytes from a position on arrived. The first entry covers `position`.
    arrivals: VecDeque<(u64, Time)>,
    /// Positions of whole messages that were used out of turn.
    overtaken: VecDeque<u64>,
    /// Up to here messages have been looked at out of turn.
    scanned: u64,
}

/// The form in which [`Input`] is saved.
#[derive(Serialize, Deserialize)]
struct SavedInput<D> {
    position: u64,
    bytes: Vec<u8>,
    descriptors: Vec<(u64, Descriptors<D>)>,
    arrivals: VecDeque<(u64, Time)>,
    overtaken: VecDeque<u64>,
    scanned: u64,
}

#[derive(Serialize)]
struct SavedInputRef<'a, D> {
    position: u64,
    bytes: &'a [u8],
    descriptors: &'a [(u64, Descriptors<D>)],
    arrivals: VecDeque<(u64, Time)>,
    overtaken: &'a VecDeque<u64>,
    scanned: u64,
}

/// An input without the message at its front, which is used up though it was not moved out.
pub(crate) struct Behind<'a, D> {
    pub(crate) input: &'a Input<D>,
    /// How many bytes of the message are in the buffer.
    pub(crate) inside: usize,
    /// Its size in the stream.
    pub(crate) size: u32,
}

impl<D: Serialize> Serialize for Behind<'_, D> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { input, inside, size } = self;
        let bytes = input.unused().get(*inside..).unwrap_or_default();
        let position = input.position + u64::from(*size);
        let mut arrivals = input.arrivals.clone();
        while arrivals.get(1).is_some_and(|(at, _)| *at <= position) {
            arrivals.pop_front();
        }
        if bytes.is_empty() {
            arrivals.clear();
        }
        SavedInputRef {
            position,
            bytes,
            descriptors: &input.descriptors,
            arrivals,
            overtaken: &input.overtaken,
            scanned: input.scanned.max(position),
        }
        .serialize(serializer)
    }
}

impl<D: Serialize> Serialize for Input<D> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Behind { input: self, inside: 0, size: 0 }.serialize(serializer)
    }
}

impl<D> TryFrom<SavedInput<D>> for Input<D> {
    type Error = &'static str;

    fn try_from(saved: SavedInput<D>) -> Result<Self, Self::Error> {
        let SavedInput { position, bytes, descriptors, arrivals, overtaken, scanned } = saved;
        let end = position.checked_add(bytes.len() as u64).ok_or("input beyond 2^64 bytes")?;
        if !descriptors.is_sorted_by_key(|(place, _)| *place)
            || descriptors.iter().any(|(place, _)| *place <= position || *place > end)
        {
            return Err("descriptors outside the input that they came with");
        }
        if !overtaken.iter().is_sorted() || overtaken.iter().any(|at| *at < position || *at >= end)
        {
            return Err("messages used out of turn that are not in the input");
        }
        if !arrivals.iter().is_sorted_by_key(|(at, _)| *at)
            || arrivals.back().is_some_and(|(at, _)| *at >= end)
            || (!bytes.is_empty() && arrivals.front().is_none_or(|(at, _)| *at > position))
        {
            return Err("input whose times of arrival do not fit it");
        }
        if scanned > end {
            return Err("input looked at beyond its end");
        }
        let end = bytes.len();
        Ok(Self { data: bytes, start: 0, end, position, descriptors, arrivals, overtaken, scanned })
    }
}

impl<D> Default for Input<D> {
    fn default() -> Self {
        Self {
            data: Vec::new(),
            start: 0,
            end: 0,
            position: 0,
            descriptors: Vec::new(),
            arrivals: VecDeque::new(),
            overtaken: VecDeque::new(),
            scanned: 0,
        }
    }
}

/// A whole message at the front of the input or behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) header: Header,
    /// Position of its first byte in the stream.
    pub(crate) position: u64,
}

impl Frame {
    pub(crate) fn end(&self) -> u64 {
        self.position + u64::from(self.header.size)
    }
}

impl<D> Input<D> {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    fn unused(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }

    /// Makes room to receive into, at least `least` bytes where there is memory for them, and not none. If
    /// memory is needed for that, it is `chunk` bytes at least.
    ///
    /// # Errors
    /// There is no memory, and no room left without it.
    pub(crate) fn make_room(&mut self, least: usize, chunk: usize) -> Result<(), NoMemory> {
        if self.is_empty() {
            self.start = 0;
            self.end = 0;
        }
        if self.data.len() - self.end < least {
            if self.start > 0 {
                self.data.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            }
            if self.data.len() - self.end < least {
                self.grow(least, chunk.max(1))?;
            }
        }
        Ok(())
    }

    /// Room to receive into.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.data[self.end..]
    }

    fn grow(&mut self, least: usize, chunk: usize) -> Result<(), NoMemory> {
        let least = self.end + least;
        let wanted = (self.end + chunk).max(self.end * 2).next_multiple_of(chunk).max(least);
        // Where little is left of memory, as much as there is.
        let grown =
            grow(&mut self.data, wanted).or_else(|_| grow(&mut self.data, least.max(SMALL)));
        if grown.is_err() {
            let _ = grow(&mut self.data, SMALL);
        }
        if self.data.len() > self.end { Ok(()) } else { grown }
    }

    /// Takes `bytes` bytes that were put into the beginning of [`Input::room`].
    pub(crate) fn received(&mut self, bytes: usize, descriptors: Descriptors<D>, now: Time) {
        debug_assert!(bytes <= self.data.len() - self.end);
        if bytes > 0 {
            let at = self.position + self.len() as u64;
            let same = |(_, last): &(u64, Time)| now.0.saturating_sub(last.0) < MERGED;
            if !self.arrivals.back().is_some_and(same) {
                if self.arrivals.len() == MAX_ARRIVALS {
                    // What it covered counts as older.
                    self.arrivals.remove(1);
                }
                self.arrivals.push_back((at, now));
            }
        }
        self.end += bytes;
        if !descriptors.is_empty() {
            self.hold(descriptors);
        }
    }

    /// Keeps descriptors for the message that they belong to. A client that sends one message in
    /// many pieces, each with descriptors, must not use up those of the process.
    fn hold(&mut self, mut descriptors: Descriptors<D>) {
        let place = self.position + self.len() as u64;
        // Those of whole messages are bounded by who asks `held_fds`.
        let mut whole = self.position;
        while let Ok(Some(frame)) = self.frame_at(whole, usize::MAX) {
            if frame.end() >= place {
                break;
            }
            whole = frame.end();
        }
        let waiting = self.descriptors.iter().filter(|(place, _)| *place > whole);
        let held = waiting.map(|(_, held)| held.fds.len()).sum::<usize>();
        if held + descriptors.fds.len() > MAX_HELD_FDS {
            descriptors = Descriptors { fds: Vec::new(), truncated: true };
        }
        match self.descriptors.last_mut() {
            Some((last_place, last)) if descriptors.fds.is_empty() && held >= MAX_HELD_FDS => {
                // One mark for all that follow.
                *last_place = place;
                last.truncated = true;
            }
            _ => self.descriptors.push((place, descriptors)),
        }
    }

    /// How many descriptors are kept.
    pub(crate) fn held_fds(&self) -> usize {
        self.descriptors.iter().map(|(_, held)| held.fds.len()).sum()
    }

    /// The header at a position, once it has arrived.
    #[inline]
    fn header_at(&self, position: u64) -> Option<Header> {
        let at = self.start + usize::try_from(position - self.position).ok()?;
        Header::parse(self.data.get(at..self.end)?)
    }

    #[inline]
    fn frame_at(&self, position: u64, limit: usize) -> Result<Option<Frame>, BadSize> {
        let Some(header) = self.header_at(position) else { return Ok(None) };
        let size = header.size as usize;
        if size < HEADER_LEN || size > limit {
            return Err(BadSize { size: header.size, limit });
        }
        let arrived = self.position + self.len() as u64 - position;
        Ok((arrived >= size as u64).then_some(Frame { header, position }))
    }

    /// The whole message at the front, if there is one, without the messages that were used out
    /// of turn.
    #[inline]
    pub(crate) fn front(&mut self, limit: usize) -> Result<Option<Frame>, BadSize> {
        loop {
            let frame = self.frame_at(self.position, limit)?;
            match frame {
                Some(frame)
                    if !self.overtaken.is_empty()
                        && self.overtaken.front() == Some(&frame.position) =>
                {
                    self.overtaken.pop_front();
                    self.consume(&frame);
                }
                frame => return Ok(frame),
            }
        }
    }

    /// Whether descriptors wait, or messages were used out of turn.
    #[inline]
    pub(crate) fn is_irregular(&self) -> bool {
        !self.descriptors.is_empty() || !self.overtaken.is_empty()
    }

    /// The whole message at the front, where [`Input::is_irregular`] is not so. `None` also if it
    /// is too large for a message after negotiation.
    #[inline]
    pub(crate) fn whole_front(&self) -> Option<Frame> {
        self.frame_at(self.position, MAX_MESSAGE).ok().flatten()
    }

    /// The header of the message at the front, whole or not.
    pub(crate) fn front_header(&self) -> Option<Header> {
        self.header_at(self.position)
    }

    /// What has arrived of the message at the front, behind its header.
    pub(crate) fn front_payload(&self) -> &[u8] {
        self.unused().get(HEADER_LEN..).unwrap_or_default()
    }

    /// A message's payload.
    #[inline]
    pub(crate) fn payload(&self, frame: &Frame) -> &[u8] {
        let at = self.start + (frame.position - self.position) as usize;
        &self.data[at + HEADER_LEN..at + frame.header.size as usize]
    }

    /// When the first byte at a position arrived.
    #[inline]
    pub(crate) fn arrived(&self, position: u64) -> Time {
        // The first entry covers the front, and mostly all that has arrived.
        if self.arrivals.get(1).is_none_or(|(at, _)| *at > position) {
            return self.arrivals.front().map_or(Time::default(), |(_, time)| *time);
        }
        let before = self.arrivals.iter().take_while(|(at, _)| *at <= position).last();
        before.map_or(Time::default(), |(_, time)| *time)
    }

    /// Moves the message at the front out. What [`Input::payload`] gave for it stays in place
    /// until the next [`Input::room`].
    #[inline]
    pub(crate) fn consume(&mut self, frame: &Frame) {
        debug_assert_eq!(frame.position, self.position);
        self.advance(frame.header.size as usize);
    }

    #[inline]
    fn advance(&mut self, bytes: usize) {
        self.start += bytes;
        self.position += bytes as u64;
        if self.is_empty() {
            self.arrivals.clear();
        } else {
            while self.arrivals.get(1).is_some_and(|(at, _)| *at <= self.position) {
                self.arrivals.pop_front();
            }
        }
    }

    /// The payload of a message that was consumed, while it is still in place.
    #[inline]
    pub(crate) fn consumed_payload(&self, frame: &Frame) -> &[u8] {
        let end = self.start - (self.position - frame.end()) as usize;
        &self.data[end + HEADER_LEN - frame.header.size as usize..end]
    }

    /// Takes the descriptors of a message.
    #[inline]
    pub(crate) fn claim(&mut self, frame: &Frame) -> Descriptors<D> {
        let mut claimed = Descriptors::default();
        if !self.descriptors.is_empty() {
            let end = frame.end();
            self.descriptors.retain_mut(|(place, descriptors)| {
                // Those of messages in front of it were claimed before.
                let own = *place > frame.position && *place <= end;
                if own {
                    claimed.fds.append(&mut descriptors.fds);
                    claimed.truncated |= descriptors.truncated;
                }
                !own
            });
        }
        claimed
    }

    /// Finds the next whole message for which `wanted` holds, and marks it as used out of turn.
    pub(crate) fn overtake(
        &mut self,
        limit: usize,
        wanted: impl Fn(&Header) -> bool,
    ) -> Option<Frame> {
        if self.scanned < self.position {
            self.scanned = self.position;
        }
        // A bad size is found when its turn comes.
        while let Ok(Some(frame)) = self.frame_at(self.scanned, limit) {
            let known = self.overtaken.contains(&frame.position);
            self.scanned = frame.end();
            if !known && wanted(&frame.header) {
                self.overtaken.push_back(frame.position);
                return Some(frame);
            }
        }
        None
    }

    /// Drops what has arrived of the message at the front behind its first `kept` bytes: the
    /// rest of it does not come through this buffer. Whole messages behind it must not have
    /// arrived. Returns how many bytes were dropped.
    pub(crate) fn cut_front(&mut self, kept: usize) -> usize {
        let dropped = self.len().saturating_sub(kept);
        self.end -= dropped;
        dropped
    }

    /// Moves the message at the front out, of which only the first bytes are in the buffer.
    pub(crate) fn consume_outside(&mut self, inside: usize, size: u32) {
        self.start += inside;
        self.position += u64::from(size);
        self.arrivals.clear();
        self.scanned = self.scanned.max(self.position);
    }

    /// Takes descriptors that came while the message at the front, of `size` bytes, was received
    /// outside the buffer. None has a meaning there.
    pub(crate) fn drop_descriptors(&mut self) {
        self.descriptors.clear();
    }

    /// Uses `buffer` from now on, instead of memory of its own, unless much has been left over.
    pub(crate) fn attach(&mut self, buffer: &mut Vec<u8>) {
        if self.is_empty() {
            self.start = 0;
            self.end = 0;
            std::mem::swap(&mut self.data, buffer);
        } else if self.len() <= COPIED {
            let len = self.len();
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            buffer[..len].copy_from_slice(&self.data[self.start..self.end]);
            std::mem::swap(&mut self.data, buffer);
            self.start = 0;
            self.end = len;
        }
    }

    /// How many bytes its buffer has.
    pub(crate) fn memory(&self) -> usize {
        self.data.len()
    }

    /// Gives its buffer back, where that is large and little is left over.
    pub(crate) fn trim(&mut self) {
        if self.data.len() > COPIED {
            self.detach(&mut Vec::new());
        }
    }

    /// Gives a large buffer back, and keeps what is left over in memory that is not much more
    /// than that.
    pub(crate) fn detach(&mut self, buffer: &mut Vec<u8>) {
        let len = self.len();
        if len <= COPIED {
            let rest = self.unused().to_vec();
            let large = std::mem::replace(&mut self.data, rest);
            if large.len() > buffer.len() {
                *buffer = large;
            }
            self.start = 0;
            self.end = len;
        }
    }
}
