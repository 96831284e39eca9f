//! What is sent on a socket, by whichever thread.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use vfiod_core::Error;
use vfiod_core::memory::SharedMemory;
use vfiod_quota::Payer;
use vfiod_sync::{Mutex, lock};

use crate::descriptor::{Descriptor, Output};
use crate::interest::Interest;
use crate::transport::{Socket, Wait};

/// A socket, and what its peer has not taken yet.
pub(crate) struct Outgoing {
    socket: Socket,
    backlog: Mutex<Backlog>,
    ended: AtomicBool,
}

#[derive(Default)]
struct Backlog {
    output: Output,
    /// The peer did not take it when asked last.
    blocked: bool,
    /// Bytes that were kept and that the peer has taken since.
    taken: u64,
}

impl Backlog {
    fn flush(&mut self, socket: &Socket, wait: Wait) -> Result<(), Errno> {
        let before = self.output.len();
        self.blocked = send_all(&mut self.output, socket, wait)?;
        self.taken += (before - self.output.len()) as u64;
        if !self.blocked {
            self.output.trim();
        }
        Ok(())
    }
}

/// Sends until everything is gone, or the peer does not take more in time (`true`).
fn send_all(output: &mut Output, socket: &Socket, wait: Wait) -> Result<bool, Errno> {
    while let Some(chunk) = output.chunk_with_whole_headers(socket.buffer().whole()) {
        match socket.send(chunk.bytes, chunk.fds, wait) {
            Ok(0) => return Ok(true),
            Ok(sent) => {
                let fds = output.sent(sent);
                if !fds.is_empty() {
                    socket.unread().sent(fds.into_iter().filter_map(Descriptor::into_passed));
                }
            }
            // Another process of this user has passed as many as the kernel lets it, and nobody reads them.
            Err(Errno::TOOMANYREFS) if !chunk.fds.is_empty() => {
                let errno = Errno::TOOMANYREFS.raw_os_error().unsigned_abs();
                let command = output.refuse_descriptors(errno).ok_or(Errno::TOOMANYREFS)?;
                socket.unread().denied(command);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

impl Outgoing {
    pub(crate) fn new(socket: Socket) -> Self {
        Self { socket, backlog: Mutex::default(), ended: AtomicBool::new(false) }
    }

    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Makes the descriptors of one reply, for which `payer` pays until they are known to be read.
    ///
    /// # Errors
    /// `EBUSY`: the peer has not read those of earlier replies; `EMFILE`: more than its user may have.
    pub(crate) fn pass(&self, fds: Vec<OwnedFd>, payer: &Payer) -> Result<Vec<Descriptor>, Error> {
        let passed = self.socket.pass(fds.len(), payer)?;
        Ok(fds.into_iter().zip(passed).map(|(fd, passed)| Descriptor::passed(fd, passed)).collect())
    }

    /// Sends all of `output`, or keeps what the peer does not take in time. Returns whether
    /// something is kept.
    pub(crate) fn send(&self, output: &mut Output, wait: Wait) -> Result<bool, Errno> {
        let mut backlog = lock(&self.backlog);
        if !backlog.output.is_empty() {
            // Sent as one where copying is cheaper than a system call.
            if output.len() <= 4096 {
                self.keep(&mut backlog, output)?;
            }
            backlog.flush(&self.socket, wait)?;
        }
        if !backlog.blocked && !output.is_empty() {
            backlog.blocked = send_all(output, &self.socket, wait)?;
        }
        if !output.is_empty() {
            self.keep(&mut backlog, output)?;
        }
        Ok(backlog.blocked)
    }

    /// Keeps what the peer does not take.
    ///
    /// # Errors
    /// `ENOMEM`: there is no memory for it. The connection has ended, as a part of a message may be sent.
    fn keep(&self, backlog: &mut Backlog, output: &mut Output) -> Result<(), Errno> {
        backlog.output.append(output).map_err(|_| {
            self.end();
            Errno::NOMEM
        })
    }

    /// Sends `head`, the end of which is the beginning of a message, and then its rest: `len` bytes of `memory`
    /// at `offset`. Keeps what the peer does not take in time, zeros if the memory is gone then: nothing else
    /// may come in between. Returns whether it has: not if other messages in `head` are so long that a header
    /// might be sent in part, nor while something else waits for the peer.
    ///
    /// # Errors
    /// Those of `sendmsg`, if nothing was sent. `ENOMEM`: there is no memory for the rest, and the connection
    /// has ended.
    pub(crate) fn send_memory(
        &self,
        head: &[u8],
        memory: &SharedMemory,
        offset: u64,
        len: usize,
        wait: Wait,
    ) -> Result<bool, Errno> {
        let mut backlog = lock(&self.backlog);
        if !backlog.output.is_empty() || head.len() > self.socket.buffer().whole() {
            return Ok(false);
        }
        let all = head.len() + len;
        let mut done = 0;
        while done < all {
            let (before, of_data) = (done.min(head.len()), done.saturating_sub(head.len()));
            let (head, from) = (&head[before..], offset + of_data as u64);
            match self.socket.send_memory(head, memory, from, len - of_data, wait) {
                Ok(0) if done == 0 => return Ok(false),
                Ok(0) => break,
                Ok(sent) => done += sent,
                // What was sent before counts; whoever sends next finds the error.
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        if done < all {
            let of_head = &head[done.min(head.len())..];
            let rest = backlog.output.rest(all - done).map_err(|_| {
                self.end();
                Errno::NOMEM
            })?;
            let (rest_of_head, data) = rest.split_at_mut(of_head.len());
            rest_of_head.copy_from_slice(of_head);
            if memory.read(offset + (len - data.len()) as u64, data).is_err() {
                data.fill(0);
            }
            backlog.blocked = true;
        }
        Ok(true)
    }

    /// Tries to send what the peer did not take. Returns whether something is still kept.
    pub(crate) fn flush(&self, wait: Wait) -> Result<bool, Errno> {
        let mut backlog = lock(&self.backlog);
        backlog.flush(&self.socket, wait)?;
        Ok(backlog.blocked)
    }

    /// Bytes that the peer did not take at first, and has taken since.
    pub(crate) fn taken(&self) -> u64 {
        lock(&self.backlog).taken
    }

    /// Memory of what waits for the peer to take it, in bytes.
    pub(crate) fn held(&self) -> usize {
        lock(&self.backlog).output.memory()
    }

    /// Whether something waits for the peer to take it.
    pub(crate) fn is_blocked(&self) -> bool {
        lock(&self.backlog).blocked
    }

    /// What an idle connection waits for. Replies to DMA messages are taken in also from a client that
    /// takes no replies.
    pub(crate) fn interest(&self, idle: Interest) -> Interest {
        match idle {
            Interest::Read if self.is_blocked() => Interest::Both,
            idle => idle,
        }
    }

    /// Marks the end, and tells the peer.
    pub(crate) fn end(&self) {
        if !self.ended.swap(true, Ordering::AcqRel) {
            self.socket.shutdown();
        }
    }

    /// Marks the end where the peer itself has closed the connection.
    pub(crate) fn closed_by_peer(&self) {
        self.ended.store(true, Ordering::Release);
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use rustix::net::{RecvFlags, recv};
    use vfiod_protocol::{DmaRequests, Time};
    use vfiod_wire::{Command, HEADER_LEN, Header};
    use zerocopy::IntoBytes;

    use super::*;
    use crate::send_buffer::{SIZES, most_of};
    use crate::transport::testing::socket;

    /// A client that takes a header of which only a part is there for the end of the stream, as QEMU does.
    #[derive(Default)]
    struct Reader {
        /// Bytes of a message that have not come yet.
        left: usize,
        headers: usize,
    }

    impl Reader {
        /// Reads what is kept, too.
        fn read_rest(&mut self, outgoing: &Outgoing, socket: &UnixStream) {
            while outgoing.flush(Wait::No).unwrap() {
                self.read_all(socket);
            }
            self.read_all(socket);
        }

        fn read_all(&mut self, socket: &UnixStream) {
            let mut buffer = [0; 4096];
            loop {
                let within = self.left > 0;
                let room = if within { self.left.min(buffer.len()) } else { HEADER_LEN };
                match recv(socket, &mut buffer[..room], RecvFlags::DONTWAIT) {
                    Ok((_, read)) if within => self.left -= read,
                    Ok((_, read)) => {
                        assert_eq!(read, HEADER_LEN, "a part of a header");
                        let header = Header::parse(&buffer).unwrap();
                        self.left = header.size as usize - HEADER_LEN;
                        self.headers += 1;
                    }
                    Err(errno) => {
                        assert_eq!(errno, Errno::AGAIN);
                        return;
                    }
                }
            }
        }
    }

    fn write(requests: &mut DmaRequests, len: usize) -> Output {
        let mut output = Output::default();
        requests.write(0, vec![0; len], Time(0), Duration::ZERO, &mut output).unwrap();
        output
    }

    /// In a buffer that cannot grow, with messages of lengths that let every byte of a header come to lie at the
    /// end of what the kernel takes at once.
    #[test]
    fn header_is_never_sent_in_part() {
        for len in 2190..2212 {
            let (socket, theirs, _payer) = socket(2 * most_of(SIZES[0]));
            let outgoing = Outgoing::new(socket);
            let mut requests = DmaRequests::new(1 << 20);
            let mut reader = Reader::default();
            for _ in 0..20 {
                outgoing.send(&mut write(&mut requests, len), Wait::No).unwrap();
            }
            reader.read_rest(&outgoing, &theirs);
            assert_eq!((reader.headers, reader.left), (20, 0));
        }
    }

    #[test]
    fn message_comes_behind_one_whose_memory_was_sent_in_part() {
        let (socket, theirs, _payer) = socket(2 * most_of(SIZES[0]));
        let outgoing = Outgoing::new(socket);
        let memory = SharedMemory::new("memory", 1 << 20).unwrap();
        let head = Header::command(0, Command::RegionRead, 1 << 20, false);
        assert!(outgoing.send_memory(head.as_bytes(), &memory, 0, 1 << 20, Wait::No).unwrap());
        let mut requests = DmaRequests::new(1 << 20);
        // By another thread, before this one is done with the reply.
        assert!(outgoing.send(&mut write(&mut requests, 100), Wait::No).unwrap());
        let mut reader = Reader::default();
        reader.read_rest(&outgoing, &theirs);
        assert_eq!((reader.headers, reader.left), (2, 0), "a message within another");
    }
}
