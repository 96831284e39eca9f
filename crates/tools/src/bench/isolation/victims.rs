//! Clients that nobody attacks: each has a device of its own, asks, waits for the reply, and pauses.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde::Serialize;
use vfiod_wire::payload::RegionAccess;
use vfiod_wire::{Command, HEADER_LEN, Header, Kind};
use zerocopy::IntoBytes;

use super::super::random::Random;
use super::super::session::Session;
use super::stage::{self, Stage};

/// A reply that has not come by then does not come.
const PATIENCE: Duration = Duration::from_secs(30);
/// A victim pauses up to so long after a reply.
const PAUSE: Duration = Duration::from_millis(8);
/// What a client gets back from this register of edu is the inverse of what it has written.
const INVERTED: u64 = 4;
/// A reply to a read of 4 bytes.
const REPLY: usize = HEADER_LEN + RegionAccess::LEN + 4;

/// What victims waited.
#[derive(Debug, Serialize)]
pub(crate) struct Waits {
    pub(super) requests: usize,
    /// As many, or the measurement fails.
    pub(super) replies: usize,
    /// Milliseconds.
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

struct Victim {
    session: Session,
    /// What it reads.
    number: u32,
    id: u16,
    /// When it has asked.
    asked: Option<Instant>,
    /// When it asks next.
    next: Instant,
}

/// The victims of one daemon.
pub(super) struct Victims {
    victims: Vec<Victim>,
    /// Milliseconds.
    waits: Vec<f64>,
    /// Those of the last turn begin there.
    turn: usize,
    requests: usize,
    random: Random,
}

impl Victim {
    fn connect(stage: &Stage, number: u32) -> anyhow::Result<Self> {
        let mut session = Session::connect(&stage.socket(&stage::victim(number)), false)?;
        // Memory on.
        let mut enable = super::super::session::access(7, 4, 1, true, false);
        *enable.last_mut().context("an empty message")? = 2;
        session.call(&enable, None)?;
        let mut write = super::super::session::access(0, INVERTED, 4, true, false);
        let at = write.len() - 4;
        write[at..].copy_from_slice(&number.to_le_bytes());
        session.call(&write, None)?;
        Ok(Self { session, number: !number, id: 0, asked: None, next: Instant::now() })
    }

    fn ask(&mut self) -> anyhow::Result<()> {
        self.id = self.id.wrapping_add(1);
        let access = RegionAccess { offset: INVERTED, region: 0, count: 4 };
        let header = Header::command(self.id, Command::RegionRead, RegionAccess::LEN, false);
        self.asked = Some(Instant::now());
        self.session.send(&[header.as_bytes(), access.as_bytes()].concat())
    }

    /// Takes its reply.
    fn take(&mut self) -> anyhow::Result<()> {
        let id = self.id;
        let reply = self.session.receive(REPLY)?;
        let header = Header::parse(&reply[..HEADER_LEN]).context("a short reply")?;
        ensure!(
            header.id == id && header.kind() == Kind::Reply(Ok(())),
            "not a reply to its question: {header:?}"
        );
        ensure!(reply.ends_with(&self.number.to_le_bytes()), "another value than its own");
        Ok(())
    }
}

impl Victims {
    /// Connects a client to each of the victims' devices.
    pub(super) fn connect(stage: &Stage, count: u32) -> anyhow::Result<Self> {
        let victims: anyhow::Result<Vec<_>> =
            (0..count).map(|number| Victim::connect(stage, number)).collect();
        Ok(Self {
            victims: victims?,
            waits: Vec::new(),
            turn: 0,
            requests: 0,
            random: Random::of_now(),
        })
    }

    pub(super) fn forget_waits(&mut self) {
        self.waits.clear();
        (self.turn, self.requests) = (0, 0);
    }

    /// Has each of them ask for about as long as `budget`, and wait for every reply.
    pub(super) fn run(&mut self, budget: Duration) -> anyhow::Result<()> {
        self.turn = self.waits.len();
        let end = Instant::now() + budget;
        for victim in &mut self.victims {
            victim.next = Instant::now() + pause(&mut self.random);
        }
        loop {
            let now = Instant::now();
            let mut wake = now + PATIENCE;
            for (number, victim) in self.victims.iter_mut().enumerate() {
                match victim.asked {
                    Some(asked) if now > asked + PATIENCE => {
                        bail!("victim {number} got no reply within {PATIENCE:?}");
                    }
                    Some(_) => {}
                    None if victim.next >= end => {}
                    None if victim.next <= now => {
                        victim.ask().with_context(|| format!("victim {number}"))?;
                        self.requests += 1;
                    }
                    None => wake = wake.min(victim.next),
                }
            }
            let waiting = |(number, victim): (usize, &Victim)| victim.asked.map(|_| number);
            let waiting: Vec<_> = self.victims.iter().enumerate().filter_map(waiting).collect();
            if waiting.is_empty() && wake >= end {
                return Ok(());
            }
            for number in self.ready(&waiting, wake)? {
                let victim = &mut self.victims[number];
                victim.take().with_context(|| format!("victim {number}"))?;
                let now = Instant::now();
                if let Some(asked) = victim.asked.take() {
                    self.waits.push((now - asked).as_secs_f64() * 1e3);
                }
                victim.next = now + pause(&mut self.random);
            }
        }
    }

    /// Waits until one of these has something to read, or until a time: which.
    fn ready(&self, waiting: &[usize], until: Instant) -> anyhow::Result<Vec<usize>> {
        let polled = |number: &usize| {
            PollFd::from_borrowed_fd(self.victims[*number].session.fd(), PollFlags::IN)
        };
        let mut polled: Vec<_> = waiting.iter().map(polled).collect();
        let left = until.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match rustix::event::poll(&mut polled, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).context("cannot wait for replies"),
        }
        let ready = waiting.iter().zip(&polled).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(ready.map(|(number, _)| *number).collect())
    }

    /// p99 of the last turn, milliseconds.
    pub(super) fn last_p99(&self) -> f64 {
        let mut waits = self.waits[self.turn..].to_vec();
        waits.sort_by(f64::total_cmp);
        share_of(&waits, 0.99)
    }

    /// All that was measured.
    pub(super) fn waits(mut self) -> Waits {
        self.waits.sort_by(f64::total_cmp);
        Waits {
            requests: self.requests,
            replies: self.waits.len(),
            p50: share_of(&self.waits, 0.5),
            p99: share_of(&self.waits, 0.99),
            max: share_of(&self.waits, 1.0),
        }
    }
}

fn pause(random: &mut Random) -> Duration {
    Duration::from_micros(random.below(PAUSE.as_micros() as u64))
}

/// The value that this share of sorted values does not exceed.
pub(super) fn share_of(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share) as usize;
    sorted.get(place.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
