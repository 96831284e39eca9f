//! The loop.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use vfiod_journal::link::{self, Wait};
use vfiod_journal::message::{Death, ToWorker};

use crate::handover::Handover;
use crate::listeners::FIRST;
use crate::replace;
use crate::state::{Effect, State};
use crate::worker::{Program, Worker, reap};

const LINK: u64 = 0;
const PIDFD: u64 = 1;
const REQUESTS: u64 = 2;
/// How often a dying worker is looked at.
const GLANCE: Duration = Duration::from_millis(1);
/// How long the last worker is waited for, to learn how it has ended.
const LAST_GRACE: Duration = Duration::from_secs(1);
/// How often listening sockets without room are looked at, and workers that do not end.
const CROWDED: Duration = Duration::from_millis(100);

/// What a holder is to do.
#[derive(Debug)]
pub struct Options {
    /// The name of the program, its first argument.
    pub name: OsString,
    /// What a worker is started with.
    pub worker: Vec<OsString>,
    /// What the next holder is started with: it is to call [`take_over`] with its descriptor 0.
    pub successor: Vec<OsString>,
    /// A pipe from which requests are read, each a byte: see [`Request`].
    pub requests: Option<OwnedFd>,
    /// How long the next holder may take; then it is killed.
    pub successor_limit: Duration,
    /// Where to log: one line an event.
    pub log: fn(&str),
}

/// What a byte of the pipe of requests asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// End the worker by SIGTERM, and then the holder.
    Terminate = b'T' as isize,
    /// Let another holder take over.
    Replace = b'R' as isize,
}

/// Why a holder has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its worker has ended as it was to, or at its first start: with this status.
    Worker(u8),
    /// Another holder has taken over.
    Replaced,
}

struct Holder {
    options: Options,
    program: Program,
    state: State,
    worker: Option<(Worker, Handover)>,
    /// Workers that have no memory any more, but are not gone.
    dying: Vec<OwnedFd>,
    death: Death,
    /// Deaths in a row.
    row: usize,
    next_start: Instant,
    was_ever_ready: bool,
    is_last: bool,
    replace: bool,
}

/// Starts workers of this program one after the other until the last one ends.
///
/// # Errors
/// The kernel refuses what a holder needs to begin.
pub fn run(options: Options) -> io::Result<End> {
    Holder::new(options, State::new()?, Death::First)?.run()
}

/// Takes over from another holder, which has started this process with a link as its descriptor 0.
///
/// # Errors
/// As [`run`]; the other holder sent something else than what this one knows.
pub fn take_over(options: Options) -> io::Result<End> {
    let state = replace::receive_all(link::of_worker())?;
    // The worker's death must not look like the first start's.
    Holder::new(options, state, Death::Replaced)?.run()
}

impl Holder {
    fn new(options: Options, state: State, death: Death) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let file = rustix::fs::open("/proc/self/exe", flags, Mode::empty())?;
        let program = Program { file, name: options.name.clone() };
        if let Some(requests) = &options.requests {
            rustix::io::ioctl_fionbio(requests, true)?;
            let data = epoll::EventData::new_u64(REQUESTS);
            epoll::add(&state.listeners.epoll, requests, data, epoll::EventFlags::IN)?;
        }
        let was_ever_ready = death != Death::First;
        Ok(Self {
            options,
            program,
            state,
            worker: None,
            dying: Vec::new(),
            death,
            row: 0,
            next_start: Instant::now(),
            was_ever_ready,
            is_last: false,
            replace: false,
        })
    }

    fn log(&self, line: &str) {
        (self.options.log)(line);
    }

    fn run(mut self) -> io::Result<End> {
        let mut events = Vec::with_capacity(64);
        loop {
            if self.worker.is_none() {
                if self.is_last {
                    return Ok(End::Worker(0));
                }
                if self.replace && self.hand_over() {
                    return Ok(End::Replaced);
                }
                if self.next_start <= Instant::now() {
                    self.start();
                }
            }
            let timeout = self.timeout();
            events.clear();
            match epoll::wait(
                &self.state.listeners.epoll,
                spare_capacity(&mut events),
                timeout.as_ref(),
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            for event in &events {
                match event.data.u64() {
                    LINK => self.serve_link(),
                    PIDFD => {}
                    REQUESTS => self.read_requests(),
                    number if number >= FIRST => {
                        let crowded = self.state.accept(number);
                        if let (Some(key), Some((_, handover))) = (crowded, &mut self.worker) {
                            handover.answer(ToWorker::Crowded { key });
                        }
                    }
                    _ => {}
                }
            }
            self.state.watch_crowded();
            self.dying.retain(|pidfd| reap(pidfd).is_none());
            if let Some(end) = self.look_after_worker() {
                return Ok(end);
            }
        }
    }

    fn timeout(&self) -> Option<Timespec> {
        let now = Instant::now();
        let start = self.worker.is_none().then(|| self.next_start.saturating_duration_since(now));
        let crowded = self.state.listeners.is_crowded().then_some(CROWDED);
        let dying = match &self.worker {
            Some((worker, _)) if worker.is_ending() => Some(GLANCE),
            _ => (!self.dying.is_empty()).then_some(CROWDED),
        };
        let least = [start, crowded, dying].into_iter().flatten().min()?;
        Some(Timespec { tv_sec: least.as_secs() as _, tv_nsec: least.subsec_nanos() as _ })
    }

    fn start(&mut self) {
        match Worker::start(&self.program, &self.options.worker) {
            Ok(worker) => {
                let epoll = &self.state.listeners.epoll;
                let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT;
                let link = epoll::EventData::new_u64(LINK);
                let pidfd = epoll::EventData::new_u64(PIDFD);
                let watched = epoll::add(epoll, &worker.link, link, flags)
                    .and_then(|()| epoll::add(epoll, &worker.pidfd, pidfd, epoll::EventFlags::IN));
                if let Err(errno) = watched {
                    self.log(&format!("ERROR the worker cannot be watched error={errno}"));
                }
                self.log(&format!("INFO worker started pid={}", worker.pid()));
                self.worker = Some((worker, Handover::new(self.death, self.state.starts)));
                self.state.starts += 1;
            }
            Err(error) => {
                self.log(&format!("ERROR the worker cannot be started error={error}"));
                self.delay_start(false);
            }
        }
    }

    /// Reads from the worker, and sends what there is for it.
    fn serve_link(&mut self) {
        let Some((worker, handover)) = &mut self.worker else { return };
        while handover.is_complete() && handover.has_room() {
            // The link's end is found where its death is looked for.
            let Ok(Some(received)) = link::receive(&worker.link, Wait::No) else { break };
            match self.state.carry_out(received) {
                Effect::Nothing => {}
                Effect::Answer(answer) => handover.answer(answer),
                Effect::Ready => {
                    worker.is_ready = true;
                    self.was_ever_ready = true;
                }
                Effect::Finish => self.is_last = true,
            }
        }
    }

    /// Sends what the worker has yet to know, and finds its death.
    fn look_after_worker(&mut self) -> Option<End> {
        let (worker, handover) = self.worker.as_mut()?;
        let all = handover.send(&worker.link, &self.state).unwrap_or(true);
        if worker.wants_out == all {
            worker.wants_out = !all;
            let out = if all { epoll::EventFlags::empty() } else { epoll::EventFlags::OUT };
            // While answers wait, input does, too.
            let flags = if all { epoll::EventFlags::IN } else { out };
            let data = epoll::EventData::new_u64(LINK);
            let _ = epoll::modify(&self.state.listeners.epoll, &worker.link, data, flags);
        }
        let death = worker.death();
        if worker.is_ending() {
            // Its end is reported again and again.
            let _ = epoll::delete(&self.state.listeners.epoll, &worker.link);
        }
        self.bury(death?)
    }

    /// Carries out what a dead worker has sent, and decides what comes next.
    fn bury(&mut self, death: Death) -> Option<End> {
        let (worker, _) = self.worker.take()?;
        while let Ok(Some(received)) = link::receive(&worker.link, Wait::No) {
            match self.state.carry_out(received) {
                Effect::Finish => self.is_last = true,
                Effect::Ready => self.was_ever_ready = true,
                Effect::Nothing | Effect::Answer(_) => {}
            }
        }
        let epoll = &self.state.listeners.epoll;
        let _ = epoll::delete(epoll, &worker.link);
        let _ = epoll::delete(epoll, &worker.pidfd);
        let pid = worker.pid();
        self.log(&format!("WARN worker ended pid={pid} how={death:?}"));
        self.death = if self.replace { Death::Replaced } else { death };
        if self.is_last || (!self.was_ever_ready && !self.replace) {
            // The holder ends with its status, for which it can wait longer.
            let death = match death {
                Death::LinkClosed => worker.await_end(LAST_GRACE).unwrap_or(death),
                death => death,
            };
            let status = match death {
                Death::Exit(status) => u8::try_from(status).unwrap_or(1),
                _ => 1,
            };
            return Some(End::Worker(status));
        }
        let stable = Duration::from_millis(self.state.settings.stable_ms.into());
        self.delay_start(worker.started.elapsed() >= stable);
        if death == Death::LinkClosed {
            self.dying.push(worker.pidfd);
        }
        None
    }

    fn delay_start(&mut self, was_stable: bool) {
        self.row = if was_stable { 0 } else { self.row };
        let delays = self.state.settings.backoff_ms;
        let delay = delays[self.row.min(delays.len() - 1)];
        self.row += 1;
        self.next_start = Instant::now() + Duration::from_millis(delay.into());
    }

    fn read_requests(&mut self) {
        let Some(requests) = &self.options.requests else { return };
        let mut bytes = [0; 16];
        match rustix::io::read(requests, &mut bytes) {
            Ok(0) => {
                let _ = epoll::delete(&self.state.listeners.epoll, requests.as_fd());
            }
            Ok(read) => bytes[..read].iter().for_each(|byte| self.request(*byte)),
            Err(_) => {}
        }
    }

    fn request(&mut self, byte: u8) {
        if byte == Request::Terminate as u8 {
            self.is_last = true;
            if let Some((worker, _)) = &self.worker {
                worker.terminate();
            }
        } else if byte == Request::Replace as u8 {
            self.replace = true;
            if let Some((worker, _)) = &mut self.worker {
                worker.kill();
            }
        } else {
            self.log(&format!("WARN unknown request byte={byte}"));
        }
    }

    /// Whether another holder has taken over.
    fn hand_over(&mut self) -> bool {
        self.replace = false;
        // The program that has the name now: it may have been replaced.
        let program = std::env::current_exe().and_then(|path| {
            let path = OsStr::from_bytes(without_suffix(path.as_os_str().as_bytes()));
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let file = rustix::fs::open(path, flags, Mode::empty())?;
            Ok(Program { file, name: self.options.name.clone() })
        });
        let Options { successor, successor_limit, .. } = &self.options;
        let done = program.and_then(|program| {
            replace::hand_over(&program, successor, *successor_limit, &self.state)
        });
        match done {
            Ok(()) => true,
            Err(error) => {
                self.log(&format!("ERROR the holder cannot be replaced; it goes on error={error}"));
                false
            }
        }
    }
}

/// The path of a program that is running. The kernel marks one whose file was replaced.
fn without_suffix(path: &[u8]) -> &[u8] {
    path.strip_suffix(b" (deleted)").unwrap_or(path)
}
