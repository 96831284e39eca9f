//! What managing many mediated devices costs: a daemon for each number of them, asked through its
//! control API.
//!
//! The daemons run at the same time and are measured in turn, round by round, so that whatever
//! else the machine does meets all alike.

use std::collections::VecDeque;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use hyper::Method;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::figures::Spread;
use super::idle::{Taken, taken};
use super::{Process, floor};
use vfiod_control::client::{Client, Failure, path};

/// More threads than without instances that may have something else to do.
const OTHER_THREADS: u64 = 16;
/// More descriptors than those of the instances.
const OTHER_DESCRIPTORS: u64 = 64;
/// How long a closed instance may take to be free.
const HANDOVER: Duration = Duration::from_secs(5);

/// What was found with a number of instances.
#[derive(Debug, Serialize)]
pub(super) struct Many {
    instances: u64,
    /// Nanoseconds to create one more.
    create: Spread,
    /// Nanoseconds to look at one.
    show: Spread,
    /// Nanoseconds to connect to one, negotiate, ask for its device info, and close.
    open: Spread,
    /// Nanoseconds to remove one.
    remove: Spread,
    /// Nanoseconds to list all.
    list: Spread,
    /// Bytes of the list.
    list_bytes: usize,
    /// The daemon before there were any.
    before: Taken,
    /// The daemon with all of them there and idle.
    idle: Taken,
    /// For each instance.
    descriptors_each: f64,
    /// For each instance, resident memory in KiB.
    resident_kib_each: f64,
}

/// A table in Markdown.
pub(super) fn text(figures: &[Many]) -> String {
    let mut text = String::from(
        "| instances | create/s | show/s | open/s | remove/s | list | each | threads | \
         descriptors each | KiB each |\n\
         | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for many in figures {
        let second = |spread: Spread| 1e9 / spread.median;
        let _ = writeln!(
            text,
            "| {} | {:.0} | {:.0} | {:.0} | {:.0} | {:.2} ms, {} bytes | {:.2} µs | {} | {:.2} | \
             {:.1} |",
            many.instances,
            second(many.create),
            second(many.show),
            second(many.open),
            second(many.remove),
            many.list.median / 1e6,
            many.list_bytes,
            many.list.median / 1e3 / many.instances as f64,
            many.idle.threads,
            many.descriptors_each,
            many.resident_kib_each,
        );
    }
    text
}

/// Starts a daemon for each number, gives it so many instances, and measures.
pub(super) fn measure(
    directory: &Path,
    numbers: &[u64],
    rounds: u32,
    budget: Duration,
) -> anyhow::Result<Vec<Many>> {
    let most = numbers.iter().max().copied().unwrap_or_default();
    let limit = getrlimit(Resource::Nofile).maximum;
    ensure!(
        limit.is_none_or(|limit| limit >= most + OTHER_DESCRIPTORS),
        "{most} instances need {} descriptors, and the hard limit is {} (ulimit -Hn)",
        most + OTHER_DESCRIPTORS,
        limit.unwrap_or_default()
    );
    let mut levels = Vec::new();
    for (at, instances) in numbers.iter().enumerate() {
        let directory = directory.join(at.to_string());
        levels.push(Level::start(directory, *instances)?);
    }
    for _ in 0..rounds {
        levels.iter_mut().try_for_each(|level| level.round(budget))?;
    }
    levels.into_iter().map(Level::figures).collect()
}

/// A daemon with a number of instances, which it has before and after each round.
struct Level {
    directory: PathBuf,
    client: Client,
    // Dropped after the client, which holds a file of it.
    server: Process,
    /// The oldest first.
    instances: VecDeque<Uuid>,
    before: Taken,
    idle: Taken,
    create: Vec<f64>,
    show: Vec<f64>,
    open: Vec<f64>,
    remove: Vec<f64>,
    list: Vec<f64>,
    list_bytes: usize,
}

impl Level {
    fn start(directory: PathBuf, instances: u64) -> anyhow::Result<Self> {
        fs::create_dir(&directory)?;
        let quoted = |name: &str| toml::Value::String(directory.join(name).display().to_string());
        let config = format!(
            "[parent.pins]\nmodel = \"gpio\"\noptions = {{ instances = {} }}\n\
             [mdev]\nsockets = {}\n[control]\nsocket = {}\n",
            instances + 1,
            quoted("mdev"),
            quoted("control"),
        );
        let file = directory.join("many.toml");
        fs::write(&file, config).context("cannot write a configuration")?;
        let server = Process::configured(&file)?;
        let control = directory.join("control");
        floor::wait_for(&control)?;
        let mut level = Self {
            client: Client::connect(&control)?,
            directory,
            before: taken(server.id())?,
            idle: Taken::default(),
            server,
            instances: VecDeque::new(),
            create: Vec::new(),
            show: Vec::new(),
            open: Vec::new(),
            remove: Vec::new(),
            list: Vec::new(),
            list_bytes: 0,
        };
        // What a first instance takes is not what each takes.
        level.create()?;
        level.open(0)?;
        level.remove()?;
        level.before = taken(level.server.id())?;
        for _ in 0..instances {
            level.create()?;
        }
        level.idle = taken(level.server.id())?;
        let (before, idle) = (level.before.threads, level.idle.threads);
        ensure!(
            idle <= before + OTHER_THREADS,
            "{instances} idle instances take {idle} threads, none takes {before}"
        );
        Ok(level)
    }

    fn create(&mut self) -> anyhow::Result<Duration> {
        let uuid = Uuid::new_v4();
        let body = json!({"parent": "pins", "type": "gpio-16", "uuid": uuid});
        let start = Instant::now();
        self.client.call::<Value>(Method::POST, &path(["instances"]), Some(&body))?;
        let time = start.elapsed();
        self.instances.push_back(uuid);
        Ok(time)
    }

    fn show(&mut self, at: usize) -> anyhow::Result<Duration> {
        let resource = path(["instances", &self.instances[at].to_string()]);
        let start = Instant::now();
        self.client.get::<Value>(&resource)?;
        Ok(start.elapsed())
    }

    fn open(&mut self, at: usize) -> anyhow::Result<Duration> {
        let socket = self.directory.join(format!("mdev/{}.sock", self.instances[at]));
        let start = Instant::now();
        let mut client = vfiod_client::Client::connect(&socket)?;
        client.device_info()?;
        drop(client);
        Ok(start.elapsed())
    }

    /// Removes the oldest.
    fn remove(&mut self) -> anyhow::Result<Duration> {
        let uuid = self.instances.pop_front().context("there is none to remove")?;
        let resource = path(["instances", &uuid.to_string()]);
        let deadline = Instant::now() + HANDOVER;
        loop {
            let start = Instant::now();
            match self.client.send(Method::DELETE, &resource) {
                Ok(()) => return Ok(start.elapsed()),
                // The daemon may not have noticed yet that it was closed.
                Err(error) if is_busy(&error) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn list(&mut self) -> anyhow::Result<Duration> {
        let start = Instant::now();
        let bytes = self.client.fetch(&path(["instances"]))?;
        let time = start.elapsed();
        if self.list_bytes == 0 {
            let list: Vec<Value> = serde_json::from_slice(&bytes)?;
            if list.len() != self.instances.len() {
                bail!(
                    "{} instances are listed, and {} are there",
                    list.len(),
                    self.instances.len()
                );
            }
        }
        self.list_bytes = bytes.len();
        Ok(time)
    }

    fn round(&mut self, budget: Duration) -> anyhow::Result<()> {
        let list = mean(budget, |_| self.list())?;
        self.list.push(list);
        let count = self.instances.len();
        // A step that reaches them all if `count` and it have nothing in common.
        let somewhere = |turn: usize| turn.wrapping_mul(7919) % count;
        let show = mean(budget, |turn| self.show(somewhere(turn)))?;
        self.show.push(show);
        let open = mean(budget, |turn| self.open(somewhere(turn)))?;
        self.open.push(open);
        // One more, one less: the number stays.
        let (mut create, mut remove, mut turns) = (Duration::ZERO, Duration::ZERO, 0);
        while turns < 10 || create + remove < budget * 2 {
            create += self.create()?;
            remove += self.remove()?;
            turns += 1;
        }
        self.create.push(each(create, turns));
        self.remove.push(each(remove, turns));
        Ok(())
    }

    fn figures(self) -> anyhow::Result<Many> {
        let Self { before, idle, list_bytes, .. } = self;
        let instances = self.instances.len() as u64;
        let spread = |values: &[f64]| Spread::of(values).context("there was no round");
        let each =
            |of: fn(&Taken) -> u64| (of(&idle) as f64 - of(&before) as f64) / instances as f64;
        Ok(Many {
            instances,
            create: spread(&self.create)?,
            show: spread(&self.show)?,
            open: spread(&self.open)?,
            remove: spread(&self.remove)?,
            list: spread(&self.list)?,
            list_bytes,
            before,
            idle,
            descriptors_each: each(|taken| taken.descriptors),
            resident_kib_each: each(|taken| taken.resident_kib),
        })
    }
}

fn is_busy(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Failure>().is_some_and(|failure| failure.exit_code() == 4)
}

/// Does something again and again for a time, at least three times: nanoseconds for each.
fn mean(
    budget: Duration,
    mut once: impl FnMut(usize) -> anyhow::Result<Duration>,
) -> anyhow::Result<f64> {
    let (mut total, mut turns) = (Duration::ZERO, 0);
    while turns < 3 || total < budget {
        total += once(turns)?;
        turns += 1;
    }
    Ok(each(total, turns))
}

fn each(total: Duration, turns: usize) -> f64 {
    total.as_nanos() as f64 / turns as f64
}
