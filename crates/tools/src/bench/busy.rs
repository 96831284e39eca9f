//! How long clients wait that are busy at the same time.
//!
//! Each client has one read of 4 bytes under way at any time, and all of them are driven by one
//! thread: what is measured is in which order, and how soon, a server comes to each of them. With
//! several servers, each has its turn in each round, in random order.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags};
use serde::Serialize;

use super::random::Random;
use super::session::{self, Session};

/// The region that is read, which every server must have, at offset 0.
const REGION: u32 = 0;
/// A reply to a read of 4 bytes.
const REPLY: usize = 36;

/// What the clients of one server waited.
#[derive(Debug, Serialize)]
pub(super) struct Waits {
    /// The server's name, but for the first.
    name: Option<String>,
    clients: u32,
    reads: usize,
    /// Reads in a second, of all clients.
    rate: f64,
    /// Milliseconds that a client waited for a reply.
    median: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

/// The clients of a server.
struct Crowd {
    sessions: Vec<Session>,
    waits: Vec<Duration>,
    spent: Duration,
}

impl Crowd {
    fn connect(socket: &Path, clients: u32) -> anyhow::Result<Self> {
        let path =
            |n: u32| PathBuf::from(socket.display().to_string().replace("{}", &n.to_string()));
        let sessions: anyhow::Result<Vec<_>> =
            (0..clients).map(|n| Session::connect(&path(n), false)).collect();
        let sessions = sessions.with_context(|| format!("cannot use {}", socket.display()))?;
        Ok(Self { sessions, waits: Vec::new(), spent: Duration::ZERO })
    }

    /// Keeps every client busy for about as long as `budget`.
    fn run(&mut self, budget: Duration) -> anyhow::Result<()> {
        let read = session::access(REGION, 0, 4, false, false);
        let start = Instant::now();
        let mut asked = Vec::with_capacity(self.sessions.len());
        for session in &self.sessions {
            session.send(&read)?;
            asked.push(Instant::now());
        }
        let mut under_way = self.sessions.len();
        while under_way > 0 {
            let ready: Vec<usize> = {
                let mut polled: Vec<_> = self
                    .sessions
                    .iter()
                    .map(|session| PollFd::from_borrowed_fd(session.fd(), PollFlags::IN))
                    .collect();
                rustix::event::poll(&mut polled, None)?;
                let is_ready = |(_, polled): &(usize, &PollFd<'_>)| !polled.revents().is_empty();
                polled.iter().enumerate().filter(is_ready).map(|(number, _)| number).collect()
            };
            for number in ready {
                let session = &mut self.sessions[number];
                session.replies(1, REPLY)?;
                let now = Instant::now();
                self.waits.push(now - asked[number]);
                if now - start < budget {
                    session.send(&read)?;
                    asked[number] = now;
                } else {
                    under_way -= 1;
                }
            }
        }
        self.spent += start.elapsed();
        Ok(())
    }

    fn waits(mut self, name: Option<&str>, clients: u32) -> Waits {
        self.waits.sort();
        let at = |share: f64| {
            let place = ((self.waits.len() as f64 * share) as usize).min(self.waits.len() - 1);
            self.waits[place].as_secs_f64() * 1e3
        };
        Waits {
            name: name.map(str::to_owned),
            clients,
            reads: self.waits.len(),
            rate: self.waits.len() as f64 / self.spent.as_secs_f64(),
            median: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
        }
    }
}

/// Measures each server in `rounds` turns of about `budget`.
///
/// # Errors
/// A server refuses a client or a read.
pub(super) fn measure(
    servers: Vec<(Option<&str>, &PathBuf)>,
    clients: u32,
    rounds: u32,
    budget: Duration,
) -> anyhow::Result<Vec<Waits>> {
    let mut crowds = Vec::new();
    for (name, socket) in servers {
        crowds.push((name, Crowd::connect(socket, clients)?));
    }
    let mut random = Random::of_now();
    let mut order: Vec<usize> = (0..crowds.len()).collect();
    for _ in 0..rounds {
        for last in (1..order.len()).rev() {
            order.swap(last, random.below(last as u64 + 1) as usize);
        }
        for number in &order {
            crowds[*number].1.run(budget)?;
        }
    }
    Ok(crowds.into_iter().map(|(name, crowd)| crowd.waits(name, clients)).collect())
}

/// For people.
pub(super) fn text(waits: &[Waits]) -> String {
    let mut text = format!(
        "{:<20}{:>10}{:>12}{:>12}{:>12}{:>12}{:>12}\n",
        "busy clients", "clients", "reads/s", "median", "p99", "p99.9", "max"
    );
    for Waits { name, clients, rate, median, p99, p999, max, .. } in waits {
        let name = name.as_deref().unwrap_or("server");
        let _ = writeln!(
            text,
            "{name:<20}{clients:>10}{rate:>12.0}{median:>9.2} ms{p99:>9.2} ms{p999:>9.2} ms{max:>9.2} ms"
        );
    }
    text
}
