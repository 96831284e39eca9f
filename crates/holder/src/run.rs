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
use rustix::process::Signal;
use vfiod_journal::link::{self, Wait};
use vfiod_journal::message::{Death, ToWorker};

use crate::event::Event;
use crate::handover::Handover;
use crate::listeners::FIRST;
use crate::replace;
use crate::state::{Effect, Initial, State};
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
    /// What is kept from the beginning on, under the keys of these owners.
    pub kept: Vec<Initial>,
    /// Where to log.
    pub log: fn(&Event),
}

/// What a byte of the pipe of requests asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// End the worker by SIGTERM, and then the holder.
    Terminate = b'T' as isize,
    /// Send the worker SIGHUP.
    Reload = b'H' as isize,
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
pub fn run(mut options: Options) -> io::Result<End> {
    let mut state = State::new()?;
    for initial in options.kept.drain(..) {
        state.keep_initial(initial)?;
    }
    Holder::new(options, state, Death::First)?.run()
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

    fn log(&self, event: &Event) {
        (self.options.log)(event);
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
        let start = self.worker.is_none().then(|| self.until_start());
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
                    self.log(&Event::CannotWatch(errno.into()));
                }
                self.log(&Event::Started { pid: worker.pid() });
                self.worker = Some((worker, Handover::new(self.death, &self.state)));
                self.state.starts += 1;
            }
            Err(error) => {
                self.delay_start(false);
                self.log(&Event::CannotStart { error, again_in: self.until_start() });
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
        self.death = if self.replace { Death::Replaced } else { death };
        if self.is_last || (!self.was_ever_ready && !self.replace) {
            // The holder ends with its status, for which it can wait longer.
            let death = match death {
                Death::Unknown => worker.await_end(LAST_GRACE).unwrap_or(death),
                death => death,
            };
            let status = match death {
                Death::Exit(status) => u8::try_from(status).unwrap_or(1),
                _ => 1,
            };
            self.log(&Event::LastEnded { pid, death });
            return Some(End::Worker(status));
        }
        if !self.replace {
            self.state.count_death(death);
            let stable = Duration::from_millis(self.state.settings.stable_ms.into());
            self.delay_start(worker.started.elapsed() >= stable);
        }
        self.log(&Event::Ended { pid, death, again_in: self.until_start() });
        // It may not be gone: what it has open may hang.
        self.dying.push(worker.pidfd);
        None
    }

    fn until_start(&self) -> Duration {
        self.next_start.saturating_duration_since(Instant::now())
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
                worker.signal(Signal::TERM);
            }
        } else if byte == Request::Reload as u8 {
            // One that starts reads everything anew.
            if let Some((worker, _)) = self.worker.as_ref().filter(|(worker, _)| worker.is_ready) {
                worker.signal(Signal::HUP);
            }
        } else if byte == Request::Replace as u8 {
            self.replace = true;
            if let Some((worker, _)) = &mut self.worker {
                worker.kill();
            }
        } else {
            self.log(&Event::UnknownRequest { byte });
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
                self.log(&Event::CannotBeReplaced(error));
                false
            }
        }
    }
}

/// The path of a program that is running. The kernel marks one whose file was replaced.
fn without_suffix(path: &[u8]) -> &[u8] {
    path.strip_suffix(b" (deleted)").unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use vfiod_journal::memory::create_file;
    use vfiod_journal::message::{Class, Key, ToHolder};

    use super::*;

    fn holder() -> Holder {
        let options = Options {
            name: "test".into(),
            worker: Vec::new(),
            successor: Vec::new(),
            requests: None,
            successor_limit: Duration::ZERO,
            kept: Vec::new(),
            log: |_| {},
        };
        let mut holder = Holder::new(options, State::new().unwrap(), Death::First).unwrap();
        holder.was_ever_ready = true;
        holder
    }

    /// The loop may learn of a death by the pidfd before it has seen that the link can be read.
    #[test]
    fn what_a_worker_sent_last_is_kept_where_its_death_is_seen_first() {
        let mut holder = holder();
        let (ours, theirs) = link::pair().unwrap();
        let child = Command::new("true").stdin(Stdio::from(theirs.try_clone().unwrap())).spawn();
        let worker = Worker::of_child(&child.unwrap(), ours).unwrap();
        let key = Key { owner: 1, token: 2 };
        let keep = ToHolder::Keep { key, class: Class::Plain }.encode();
        let file = create_file("kept", 8).unwrap();
        link::send(&theirs, &keep, &[file.as_fd()], Wait::No).unwrap();
        drop(theirs);
        let handover = Handover::new(Death::First, &holder.state);
        holder.worker = Some((worker, handover));
        while holder.worker.is_some() {
            assert_eq!(holder.look_after_worker(), None);
            std::thread::yield_now();
        }
        assert!(holder.state.kept.contains_key(&key));
        assert_eq!(holder.state.deaths.exit, 1);
    }

    #[test]
    fn delays_grow_with_deaths_in_a_row_and_begin_again_after_a_worker_that_was_stable() {
        let mut holder = holder();
        holder.state.settings.backoff_ms = [0, 10, 20, 30, 40, 50, 60, 3_600_000];
        let mut delays = |was_stable: &[bool]| {
            let delay = |stable: &bool| {
                holder.delay_start(*stable);
                holder.until_start().as_millis() as u64
            };
            was_stable.iter().map(delay).collect::<Vec<_>>()
        };
        let row = delays(&[false; 10]);
        assert!(row.iter().zip([0, 10, 20, 30, 40, 50, 60]).all(|(delay, most)| *delay <= most));
        // The last one counts for all that follow.
        assert!(row[7..].iter().all(|delay| *delay > 3_000_000), "{row:?}");
        assert_eq!(delays(&[true])[0], 0);
    }
}
