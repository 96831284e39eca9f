//! Bytes on their way out, and the descriptors that go with them.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize, Serializer};
use vfiod_buffer::{NoMemory, grow};
use vfiod_wire::{Command, HEADER_LEN, Header};
use zerocopy::{Immutable, IntoBytes};

/// Memory from which more is given back than kept.
const LARGE: usize = 64 << 10;
/// Bytes that every message may take without their having been reserved.
const ROOM: usize = 4096;

/// Messages that are to be sent, in order.
///
/// The driver sends [`Output::chunk`] and reports with [`Output::sent`] how much of it went.
#[derive(Debug, Deserialize)]
#[serde(try_from = "SavedOutput<D>", bound(deserialize = "D: Deserialize<'de>"))]
pub struct Output<D> {
    /// All of it initialised once, so that room for a reply need not be cleared each time.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// From here on the buffer is all zeros.
    dirty: usize,
    /// Position of `buffer[start]` in everything that was ever put in here.
    position: u64,
    /// Position behind the message of which a part was sent; not beyond `position` where none was.
    begun: u64,
    /// Descriptors, and the position of the byte that they go with.
    fds: VecDeque<(u64, Vec<D>)>,
}

#[derive(Serialize, Deserialize)]
struct SavedOutput<D> {
    position: u64,
    #[serde(default)]
    begun: u64,
    bytes: Vec<u8>,
    fds: VecDeque<(u64, Vec<D>)>,
}

#[derive(Serialize)]
struct SavedOutputRef<'a, D> {
    position: u64,
    begun: u64,
    bytes: &'a [u8],
    fds: &'a VecDeque<(u64, Vec<D>)>,
}

impl<D: Serialize> Serialize for Output<D> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { position, begun, fds, .. } = self;
        let (position, begun) = (*position, *begun);
        SavedOutputRef { position, begun, bytes: self.bytes(), fds }.serialize(serializer)
    }
}

impl<D> TryFrom<SavedOutput<D>> for Output<D> {
    type Error = &'static str;

    fn try_from(saved: SavedOutput<D>) -> Result<Self, Self::Error> {
        let SavedOutput { position, begun, bytes, fds } = saved;
        let end = position.checked_add(bytes.len() as u64).ok_or("output beyond 2^64 bytes")?;
        if !fds.iter().is_sorted_by_key(|(at, _)| *at)
            || fds.iter().any(|(at, _)| *at < position || *at >= end)
        {
            return Err("descriptors outside the output that they go with");
        }
        let end = bytes.len();
        Ok(Self { buffer: bytes, start: 0, end, dirty: end, position, begun, fds })
    }
}

impl<D> Default for Output<D> {
    fn default() -> Self {
        let (buffer, fds) = (Vec::new(), VecDeque::new());
        Self { buffer, start: 0, end: 0, dirty: 0, position: 0, begun: 0, fds }
    }
}

/// What to send next: the descriptors go with the first byte.
#[derive(Debug)]
pub struct Chunk<'a, D> {
    /// The bytes; may be sent in part.
    pub bytes: &'a [u8],
    /// The descriptors, all with whichever part is sent first.
    pub fds: &'a [D],
}

/// A buffer that outputs borrow in turn; see [`Output::attach`].
#[derive(Debug, Default)]
pub struct ReplyBuffer {
    memory: Vec<u8>,
    dirty: usize,
    user: u64,
}

impl ReplyBuffer {
    /// Whether it holds memory that only large replies need.
    pub fn is_large(&self) -> bool {
        self.memory.len() > LARGE
    }

    /// Gives memory back that only large replies need.
    pub fn trim(&mut self) {
        if self.is_large() {
            *self = Self::default();
        }
    }
}

impl<D> Output<D> {
    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// How many bytes there are to send.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// How much memory what is to be sent takes, in bytes.
    pub fn memory(&self) -> usize {
        if self.is_empty() { 0 } else { self.buffer.len() }
    }

    /// Position of the next byte to be sent, in all that was ever put in here.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Position behind the last byte.
    pub(crate) fn end_position(&self) -> u64 {
        self.position + self.len() as u64
    }

    /// All that is to be sent, without regard to descriptors.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// What to send next; `None` if there is nothing.
    pub fn chunk(&self) -> Option<Chunk<'_, D>> {
        self.chunk_of(self.len())
    }

    /// What to send next on a socket of which the kernel takes `whole` bytes together or not at all, so that no
    /// header is sent in part: either so many bytes at most, or bytes of one message. `None` if there is
    /// nothing.
    ///
    /// QEMU reads a header with one call that does not wait, and takes one of which only a part is there for
    /// the end of the stream.
    pub fn chunk_with_whole_headers(&self, whole: usize) -> Option<Chunk<'_, D>> {
        let bytes = self.bytes();
        let mut len = self.left_of_begun();
        if len == 0 {
            len = message_len(bytes);
        }
        while len < bytes.len() {
            let next = len.saturating_add(message_len(&bytes[len..]));
            if next > whole {
                break;
            }
            len = next;
        }
        self.chunk_of(len.min(bytes.len()))
    }

    fn chunk_of(&self, mut len: usize) -> Option<Chunk<'_, D>> {
        if self.is_empty() {
            return None;
        }
        let mut fds: &[D] = &[];
        for (at, with) in &self.fds {
            if *at == self.position {
                fds = with;
            } else {
                len = len.min((*at - self.position) as usize);
                break;
            }
        }
        Some(Chunk { bytes: &self.buffer[self.start..self.start + len], fds })
    }

    /// How many bytes from the first one on belong to a message of which a part was sent.
    fn left_of_begun(&self) -> usize {
        usize::try_from(self.begun.saturating_sub(self.position)).unwrap_or(usize::MAX)
    }

    /// Notes where the message ends of which the first `bytes` bytes contain a part.
    fn begin(&mut self, bytes: usize) {
        let mut end = self.left_of_begun();
        if bytes == self.len() {
            end = bytes;
        }
        while end < bytes {
            end = end.saturating_add(message_len(&self.bytes()[end..]));
        }
        self.begun = self.position.saturating_add(end as u64);
    }

    /// The first `bytes` bytes of [`Output::chunk`] were sent, or all of it if that is more, and with them its
    /// descriptors. Returns those, as they are no longer needed here.
    pub fn sent(&mut self, bytes: usize) -> Vec<D> {
        let of_chunk = self.chunk().map_or(0, |chunk| chunk.bytes.len());
        // Not past the descriptors of the next one.
        let bytes = bytes.min(of_chunk);
        if bytes == 0 {
            return Vec::new();
        }
        let fds = match self.fds.front() {
            Some((at, _)) if *at == self.position => self.fds.pop_front(),
            _ => None,
        };
        self.begin(bytes);
        self.start += bytes;
        self.position += bytes as u64;
        if self.is_empty() {
            self.start = 0;
            self.end = 0;
        }
        fds.map(|(_, fds)| fds).unwrap_or_default()
    }

    /// The descriptors of the next message cannot be sent: makes it a reply of the same size that reports
    /// `errno`, and drops them. Returns the number of its command; `None`: there is no such message.
    pub fn refuse_descriptors(&mut self, errno: u32) -> Option<u16> {
        let (at, _) = self.fds.front()?;
        let message = &mut self.buffer[self.start..self.end];
        let header = Header::parse(message).filter(|_| *at == self.position)?;
        let message = message.get_mut(..header.size as usize)?;
        let (head, payload) = message.split_at_mut_checked(HEADER_LEN)?;
        head.copy_from_slice(header.error(errno, payload.len()).as_bytes());
        payload.fill(0);
        self.fds.pop_front();
        Some(header.command)
    }

    /// Moves everything out of `other` behind what is here.
    ///
    /// # Errors
    /// There is no memory for it; both are as before.
    pub fn append(&mut self, other: &mut Self) -> Result<(), NoMemory> {
        self.reserve(other.len())?;
        let base = self.end_position();
        if self.is_empty() {
            self.begun = base.saturating_add(other.left_of_begun() as u64);
        }
        self.put(other.bytes());
        let from = other.position;
        self.fds.extend(other.fds.drain(..).map(|(at, fds)| (at - from + base, fds)));
        other.position += other.len() as u64;
        other.start = 0;
        other.end = 0;
        Ok(())
    }

    /// Makes room for a message of `bytes` bytes, and for a refusal instead of it. What a peer has chosen
    /// the size of is put in here only after that.
    ///
    /// # Errors
    /// There is no memory for it. What is in here may have to be sent first.
    #[inline]
    pub fn reserve(&mut self, bytes: usize) -> Result<(), NoMemory> {
        let end = self.end + bytes + ROOM;
        if self.buffer.len() >= end { Ok(()) } else { self.grow(end) }
    }

    /// Gives back memory that was needed for a peer that was slow. For an output of its own.
    pub fn trim(&mut self) {
        if self.is_empty() && self.buffer.capacity() > 1024 {
            self.buffer = Vec::new();
            self.dirty = 0;
        }
    }

    /// Uses `buffer` from now on, if there is nothing to send. What the output of another `user`
    /// left behind in it is cleared, so that a device that does not fill its answer cannot give
    /// one client's data to another.
    pub fn attach(&mut self, buffer: &mut ReplyBuffer, user: u64) {
        if !self.is_empty() {
            return;
        }
        if std::mem::replace(&mut buffer.user, user) != user {
            buffer.memory[..buffer.dirty].fill(0);
            buffer.dirty = 0;
        }
        self.buffer = std::mem::take(&mut buffer.memory);
        self.dirty = buffer.dirty;
    }

    /// Gives the buffer back, if there is nothing to send.
    pub fn detach(&mut self, buffer: &mut ReplyBuffer) {
        if self.is_empty() && self.buffer.len() >= buffer.memory.len() {
            buffer.memory = std::mem::take(&mut self.buffer);
            buffer.dirty = std::mem::take(&mut self.dirty);
        }
    }

    /// Room for `len` bytes more, with what the same user left there before.
    #[inline]
    pub(crate) fn extend(&mut self, len: usize) -> &mut [u8] {
        let start = self.end;
        self.end += len;
        if self.buffer.len() < self.end {
            self.grow_by_little();
        }
        self.dirty = self.dirty.max(self.end);
        &mut self.buffer[start..self.end]
    }

    #[cold]
    fn grow(&mut self, end: usize) -> Result<(), NoMemory> {
        grow(&mut self.buffer, end.next_power_of_two()).or_else(|_| grow(&mut self.buffer, end))
    }

    /// For what is small or was not reserved: a driver that sends what is in here, when
    /// [`Output::reserve`] fails, never needs much.
    #[cold]
    fn grow_by_little(&mut self) {
        if self.grow(self.end).is_err() {
            self.buffer.resize(self.end, 0);
        }
    }

    #[inline]
    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.extend(bytes.len()).copy_from_slice(bytes);
    }

    /// Whether descriptors are to be sent.
    pub(crate) fn has_fds(&self) -> bool {
        !self.fds.is_empty()
    }

    /// That many bytes were sent which were never in here. There must be nothing to send.
    pub(crate) fn skip(&mut self, bytes: usize) {
        debug_assert!(bytes == 0 || self.is_empty());
        self.position += bytes as u64;
    }

    /// What is in here is the rest of a message if its beginning, at `from`, was sent.
    pub(crate) fn begun_at(&mut self, from: u64) {
        if self.position > from {
            self.begun = self.end_position();
        }
    }

    /// Adds the last `len` bytes of a message whose beginning was sent from elsewhere: all zeros, to be
    /// filled. There must be nothing to send.
    ///
    /// # Errors
    /// There is no memory for them.
    pub fn rest(&mut self, len: usize) -> Result<&mut [u8], NoMemory> {
        debug_assert!(self.is_empty());
        self.reserve(len)?;
        self.begun = self.end_position() + len as u64;
        let rest = self.extend(len);
        rest.fill(0);
        Ok(rest)
    }

    /// Takes back what is behind a position.
    pub(crate) fn truncate(&mut self, position: u64) {
        self.end = self.start + position.saturating_sub(self.position) as usize;
    }

    /// Adds a reply of two pieces.
    #[inline]
    pub(crate) fn reply(&mut self, request: &Header, fixed: &[u8], rest: &[u8]) {
        self.put(request.reply(fixed.len() + rest.len()).as_bytes());
        self.put(fixed);
        if !rest.is_empty() {
            self.put(rest);
        }
    }

    /// Adds a reply with descriptors.
    pub(crate) fn reply_with_fds(&mut self, request: &Header, payload: &[u8], fds: Vec<D>) {
        if !fds.is_empty() {
            self.fds.push_back((self.end_position(), fds));
        }
        self.reply(request, payload, &[]);
    }

    /// Adds a reply that reports an errno, padded with zeros for clients that wait for more
    /// than the header.
    pub(crate) fn error(&mut self, request: &Header, errno: u32, padding: usize) {
        self.put(request.error(errno, padding).as_bytes());
        self.extend(padding).fill(0);
    }

    /// Adds a reply whose `len` bytes behind the fixed part are written in place by `fill`: all
    /// of them, as nothing clears them before. Where `fill` fails, the reply is taken back.
    #[inline]
    pub(crate) fn reply_with<T: IntoBytes + Immutable, E>(
        &mut self,
        request: &Header,
        fixed: &T,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let before = self.end;
        let head = HEADER_LEN + size_of::<T>();
        let room = self.extend(head + len);
        room[..HEADER_LEN].copy_from_slice(request.reply(size_of::<T>() + len).as_bytes());
        room[HEADER_LEN..head].copy_from_slice(fixed.as_bytes());
        let filled = fill(&mut room[head..]);
        if filled.is_err() {
            self.end = before;
        }
        filled
    }

    /// Adds a command to the client.
    pub(crate) fn command(&mut self, id: u16, command: Command, fixed: &[u8], data: &[u8]) {
        let header = Header::command(id, command, fixed.len() + data.len(), false);
        self.put(header.as_bytes());
        self.put(fixed);
        self.put(data);
    }
}

/// The length of the message that these bytes begin with.
fn message_len(bytes: &[u8]) -> usize {
    Header::parse(bytes).map_or(bytes.len(), |header| (header.size as usize).max(HEADER_LEN))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever part of a chunk is sent.
        #[test]
        fn chunk_longer_than_what_is_taken_whole_is_of_one_message(
            messages in prop::collection::vec((0usize..300, any::<bool>()), 1..20),
            cuts in prop::collection::vec(1usize..400, 1..40),
            whole in 16usize..300,
        ) {
            let mut output = Output::default();
            let mut all = Vec::new();
            let mut starts = Vec::new();
            for (number, (len, with_fd)) in messages.into_iter().enumerate() {
                let request = Header::command(number as u16, Command::RegionRead, 0, false);
                let data = vec![number as u8; len];
                starts.push(all.len());
                all.extend_from_slice(request.reply(len).as_bytes());
                all.extend_from_slice(&data);
                output.reply_with_fds(&request, &data, if with_fd { vec![number] } else { vec![] });
            }
            let mut sent = Vec::new();
            for cut in cuts.into_iter().cycle() {
                let Some(chunk) = output.chunk_with_whole_headers(whole) else { break };
                let begins = starts.iter().filter(|start| {
                    **start > sent.len() && **start < sent.len() + chunk.bytes.len()
                });
                prop_assert!(chunk.bytes.len() <= whole || begins.count() == 0);
                let cut = cut.min(chunk.bytes.len());
                sent.extend_from_slice(&chunk.bytes[..cut]);
                output.sent(cut);
                // Saved and restored, and moved to another one.
                let saved = serde_json::to_string(&output).unwrap();
                let mut restored: Output<usize> = serde_json::from_str(&saved).unwrap();
                output = Output::default();
                output.append(&mut restored).unwrap();
            }
            prop_assert_eq!(sent, all);
        }
    }

    #[test]
    fn memory_of_what_waits_is_that_of_its_buffer_until_all_is_sent() {
        let mut output = Output::<()>::default();
        let data = vec![0; 1 << 20];
        output.reply(&Header::command(1, Command::RegionRead, 0, false), &[], &data);
        // A reply that is a little longer than a power of two.
        assert!(output.len() < output.memory() && output.memory() >= output.buffer.capacity());
        output.sent(output.len() - 1);
        assert!(output.memory() > data.len(), "one byte keeps all of it");
        output.sent(1);
        assert_eq!(output.memory(), 0, "the buffer is for others");
    }

    #[test]
    fn what_is_sent_ends_before_the_next_descriptors() {
        let request = Header::command(1, Command::DeviceGetRegionInfo, 0, false);
        let mut output = Output::default();
        for fd in ['a', 'b'] {
            output.reply_with_fds(&request, &[0; 8], vec![fd]);
        }
        let all = output.len();
        assert_eq!(output.sent(all), ['a']);
        let next = output.chunk().map(|chunk| chunk.fds.to_vec());
        assert_eq!(next, Some(vec!['b']), "descriptors of the next reply");
        assert_eq!((output.sent(all), output.is_empty()), (vec!['b'], true));
        output.reply(&request, &[], &[]);
        assert_eq!(output.chunk().map(|chunk| chunk.bytes.len()), Some(HEADER_LEN));
    }
}
