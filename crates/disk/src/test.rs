//! A disk for tests: each request can be held, failed, done in part, and finished in any order; what was
//! written is lost by a power cut unless it was synced.

use std::fmt;
use std::sync::Arc;

use vfiod_dma::{Completion, Errno, Error, Result};
use vfiod_sync::{Mutex, lock};
use vfiod_tasks::{Runtime, Waiters};

use crate::backend::{Backend, Channel};
use crate::failure::Failure;
use crate::limits::Limits;
use crate::pending::Pending;
use crate::request::{Buffer, Done, Request};

/// What a power cut leaves whole: the old or the new bytes of each.
pub const SECTOR: usize = 512;

/// Kinds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Read,
    Write,
    Flush,
    Zero,
    Deallocate,
}

impl Kind {
    fn of(request: &Request) -> Self {
        match request {
            Request::Read { .. } => Self::Read,
            Request::Write { .. } => Self::Write,
            Request::Flush => Self::Flush,
            Request::Zero { .. } => Self::Zero,
            Request::Deallocate { .. } => Self::Deallocate,
        }
    }
}

/// A request that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its number: requests are numbered as they start, from 0.
    pub id: u64,
    /// What it is.
    pub kind: Kind,
    /// Where its range begins, in bytes; 0 for a flush.
    pub offset: u64,
    /// The length of its range; 0 for a flush.
    pub len: u64,
}

/// A disk in memory whose requests do what a test says.
pub struct TestDisk {
    limits: Mutex<Limits>,
    state: Mutex<State>,
    changed: Waiters,
}

#[derive(Default)]
struct State {
    /// What reads see.
    now: Vec<u8>,
    /// What a power cut leaves for sure, but for what was written over it since.
    durable: Vec<u8>,
    /// What was written since, in its order.
    unsynced: Vec<Written>,
    /// What a failed sync was to make durable: no later one does.
    lost: Vec<Written>,
    started: u64,
    holding: bool,
    held: Vec<HeldRequest>,
    failures: Vec<(Kind, Errno, usize)>,
}

struct Written {
    offset: usize,
    bytes: Vec<u8>,
    /// How many requests had started when it completed.
    at: u64,
}

struct HeldRequest {
    id: u64,
    request: Request,
    completion: Completion<Done>,
}

impl TestDisk {
    /// A disk of zeroes, which are durable. It holds nothing and fails nothing.
    pub fn new(capacity: usize) -> Arc<Self> {
        Self::with_image(vec![0; capacity])
    }

    /// A disk that has these bytes: what a power cut has left, for example.
    pub fn with_image(image: Vec<u8>) -> Arc<Self> {
        let limits = Limits {
            capacity: image.len() as u64,
            block: SECTOR as u32,
            atomic_write: SECTOR as u32,
            preferred_write: 4096,
            read_only: false,
            volatile: true,
            deallocate: Some(4096),
            deallocated_reads_zero: true,
            max_range: image.len() as u64,
        };
        let state = State { durable: image.clone(), now: image, ..State::default() };
        let (limits, state) = (Mutex::new(limits), Mutex::new(state));
        Arc::new(Self { limits, state, changed: Waiters::new() })
    }

    /// Changes what the disk says of itself; a capacity that is larger than its memory makes requests
    /// beyond that fail.
    pub fn set_limits(&self, change: impl FnOnce(&mut Limits)) {
        change(&mut lock(&self.limits));
    }

    /// Holds what starts from now on, or not. What is held stays so.
    pub fn hold(&self, on: bool) {
        lock(&self.state).holding = on;
    }

    /// What is held, in the order in which it started.
    pub fn held(&self) -> Vec<Held> {
        lock(&self.state).held.iter().map(|held| describe(held.id, &held.request)).collect()
    }

    /// Waits until at least so many requests are held, and returns them.
    pub async fn holds(&self, count: usize) -> Vec<Held> {
        let held = || Some(self.held()).filter(|held| held.len() >= count);
        self.changed.wait_for(held).await
    }

    /// How many requests have started.
    pub fn started(&self) -> u64 {
        lock(&self.state).started
    }

    /// Lets requests of a kind fail, the next `times` of them, when they end. Nothing of them is done.
    pub fn fail(&self, kind: Kind, errno: Errno, times: usize) {
        lock(&self.state).failures.push((kind, errno, times));
    }

    /// Does a held request now and completes it. `false`: no such request is held.
    pub fn finish(&self, id: u64) -> bool {
        self.end(id, None)
    }

    /// Does the first `part` bytes of a held request, and lets it fail.
    pub fn finish_in_part(&self, id: u64, part: usize, errno: Errno) -> bool {
        self.end(id, Some((part, errno)))
    }

    /// Does all that is held, and holds nothing any more.
    pub fn finish_all(&self) {
        self.hold(false);
        for held in self.held() {
            self.finish(held.id);
        }
    }

    fn end(&self, id: u64, failing: Option<(usize, Errno)>) -> bool {
        let mut state = lock(&self.state);
        let Some(place) = state.held.iter().position(|held| held.id == id) else { return false };
        let HeldRequest { request, completion, .. } = state.held.remove(place);
        let done = state.perform(id, request, failing);
        drop(state);
        self.changed.wake_all();
        completion.complete(Ok(done));
        true
    }

    /// What reads see, without a request.
    pub fn bytes(&self) -> Vec<u8> {
        lock(&self.state).now.clone()
    }

    /// What a power cut at this moment leaves: what was synced, and of each sector that was written
    /// since, also by a request that is held, one of the writes or none. `choose` is given how many there
    /// are to choose from, and returns which; 0 is what was synced.
    pub fn power_cut(&self, mut choose: impl FnMut(usize) -> usize) -> Vec<u8> {
        let state = lock(&self.state);
        let mut image = state.durable.clone();
        let mut writes: Vec<(usize, Vec<u8>)> = state
            .lost
            .iter()
            .chain(&state.unsynced)
            .map(|write| (write.offset, write.bytes.clone()))
            .collect();
        for held in &state.held {
            if let Ok(Some(write)) = written(&held.request) {
                writes.push(write);
            }
        }
        for start in (0..image.len()).step_by(SECTOR) {
            let end = (start + SECTOR).min(image.len());
            let sector = |(offset, bytes): &(usize, Vec<u8>)| {
                let from = start.checked_sub(*offset)?;
                Some(bytes.get(from..from + (end - start))?.to_vec())
            };
            let candidates: Vec<Vec<u8>> = writes.iter().filter_map(sector).collect();
            if !candidates.is_empty()
                && let Some(chosen) = choose(candidates.len() + 1).checked_sub(1)
            {
                image[start..end].copy_from_slice(&candidates[chosen]);
            }
        }
        image
    }
}

fn describe(id: u64, request: &Request) -> Held {
    let (offset, len) = match request {
        Request::Read { offset, buffer } | Request::Write { offset, buffer, .. } => {
            (*offset, buffer.len() as u64)
        }
        Request::Zero { offset, len, .. } | Request::Deallocate { offset, len } => (*offset, *len),
        Request::Flush => (0, 0),
    };
    Held { id, kind: Kind::of(request), offset, len }
}

/// What a request writes, if it does.
fn written(request: &Request) -> Result<Option<(usize, Vec<u8>)>> {
    Ok(match request {
        Request::Write { offset, buffer, .. } => {
            let mut bytes = vec![0; buffer.len()];
            buffer.take(0, &mut bytes)?;
            Some((*offset as usize, bytes))
        }
        Request::Zero { offset, len, .. } | Request::Deallocate { offset, len } => {
            Some((*offset as usize, vec![0; *len as usize]))
        }
        Request::Read { .. } | Request::Flush => None,
    })
}

impl State {
    fn failure(&mut self, kind: Kind) -> Option<Errno> {
        let place = self.failures.iter().position(|(of, ..)| *of == kind)?;
        let (_, errno, left) = &mut self.failures[place];
        let errno = *errno;
        *left = left.saturating_sub(1);
        if *left == 0 {
            self.failures.remove(place);
        }
        Some(errno)
    }

    /// Ends a request: does it, or `failing`'s bytes of it.
    fn perform(&mut self, id: u64, mut request: Request, failing: Option<(usize, Errno)>) -> Done {
        let kind = Kind::of(&request);
        let failing = failing.or_else(|| Some((0, self.failure(kind)?)));
        let part = failing.map_or(usize::MAX, |(part, _)| part);
        let mut result = self.apply(id, &mut request, part, failing.is_some());
        let durable = match &request {
            Request::Write { durable, .. } | Request::Zero { durable, .. } => *durable,
            _ => false,
        };
        if durable && failing.is_none() && result.is_ok() {
            self.sync(self.started);
        }
        if let (Some((_, errno)), Ok(())) = (failing, &result) {
            result = Err(Error::new(errno, format!("a {kind:?} that a test lets fail")));
        }
        let buffer = match request {
            Request::Read { buffer, .. } | Request::Write { buffer, .. } => Some(buffer),
            _ => None,
        };
        Done { result: result.map_err(Failure::from), buffer }
    }

    fn apply(&mut self, id: u64, request: &mut Request, part: usize, fails: bool) -> Result<()> {
        match request {
            Request::Read { offset, buffer } => {
                let range = self.range(*offset, buffer.len().min(part))?;
                buffer.put(0, &self.now[range])
            }
            Request::Flush if fails => {
                let (lost, kept) = std::mem::take(&mut self.unsynced)
                    .into_iter()
                    .partition(|write| write.at <= id);
                self.unsynced = kept;
                let lost: Vec<Written> = lost;
                self.lost.extend(lost);
                Ok(())
            }
            Request::Flush => {
                self.sync(id);
                Ok(())
            }
            _ => {
                let Some((offset, mut bytes)) = written(request)? else { return Ok(()) };
                bytes.truncate(part);
                let range = self.range(offset as u64, bytes.len())?;
                self.now[range].copy_from_slice(&bytes);
                self.unsynced.push(Written { offset, bytes, at: self.started });
                Ok(())
            }
        }
    }

    fn range(&self, offset: u64, len: usize) -> Result<std::ops::Range<usize>> {
        let start = offset as usize;
        match start.checked_add(len).filter(|end| *end <= self.now.len()) {
            Some(end) => Ok(start..end),
            None => Err(Error::new(Errno::NXIO, format!("{len} bytes at {offset:#x}"))),
        }
    }

    /// Makes durable what had completed when the request with this number started.
    fn sync(&mut self, id: u64) {
        let durable = &mut self.durable;
        self.unsynced.retain(|write| {
            let covered = write.at <= id;
            if covered {
                durable[write.offset..write.offset + write.bytes.len()]
                    .copy_from_slice(&write.bytes);
            }
            !covered
        });
    }
}

impl Backend for TestDisk {
    fn limits(&self) -> Limits {
        lock(&self.limits).clone()
    }

    fn connect(self: Arc<Self>, _runtime: &Runtime) -> Result<Arc<dyn Channel>> {
        Ok(self)
    }
}

impl Channel for TestDisk {
    fn start(&self, request: Request) -> Pending {
        let mut state = lock(&self.state);
        let id = state.started;
        state.started += 1;
        if !state.holding {
            let done = state.perform(id, request, None);
            drop(state);
            self.changed.wake_all();
            return Pending::ended(done);
        }
        let (completion, reply) = Completion::new();
        state.held.push(HeldRequest { id, request, completion });
        drop(state);
        self.changed.wake_all();
        Pending::new(async move {
            reply.await.unwrap_or_else(|error| Done { result: Err(error.into()), buffer: None })
        })
    }
}

impl fmt::Debug for TestDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestDisk").field("held", &self.held()).finish_non_exhaustive()
    }
}

/// A buffer of our own with these bytes.
pub fn own(bytes: &[u8]) -> Buffer {
    Buffer::Own(bytes.to_vec())
}
