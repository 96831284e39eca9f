//! What a device costs that nobody uses: one process that serves many of them.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;

use super::session::Session;
use super::{Process, floor};

/// How long a process may take to come to rest.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a process takes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Taken {
    pub(super) threads: u64,
    pub(super) descriptors: u64,
    /// Resident memory in KiB.
    pub(super) resident_kib: u64,
}

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct Idle {
    devices: u64,
    one_device: Taken,
    all_devices: Taken,
    /// For each further device.
    descriptors_each: f64,
    /// For each further device, resident memory in KiB.
    resident_kib_each: f64,
}

impl Idle {
    /// For people.
    pub(super) fn text(&self) -> String {
        let Self { devices, one_device: one, all_devices: all, .. } = self;
        format!(
            "{:<20}{:>12}{:>14}{:>12}\n\
             {:<20}{:>12}{:>14}{:>12}\n{:<20}{:>12}{:>14}{:>12}\n{:<20}{:>12}{:>14.2}{:>12.2}\n",
            "idle devices",
            "threads",
            "descriptors",
            "KiB",
            1,
            one.threads,
            one.descriptors,
            one.resident_kib,
            devices,
            all.threads,
            all.descriptors,
            all.resident_kib,
            "each further",
            "0",
            self.descriptors_each,
            self.resident_kib_each,
        )
    }
}

/// Serves one device in a process and `devices` in another, and looks at what that takes.
pub(super) fn measure(directory: &Path, devices: u64) -> anyhow::Result<Idle> {
    let place = directory.join("one");
    fs::create_dir(&place).context("cannot make a directory")?;
    let one_server = start(&place, 1, "")?;
    let all_server = start(directory, devices, "")?;
    // A thread that has given a socket its name may be there for a while yet, in either.
    let deadline = Instant::now() + PATIENCE;
    let (one, all) = loop {
        let (one, all) = (taken_at_rest(one_server.id())?, taken_at_rest(all_server.id())?);
        if one.threads == all.threads || Instant::now() > deadline {
            break (one, all);
        }
    };
    let each = |of: fn(&Taken) -> u64| {
        (of(&all) as f64 - of(&one) as f64) / (devices.saturating_sub(1)).max(1) as f64
    };
    ensure!(
        all.threads == one.threads,
        "{devices} idle devices take {} threads, one takes {}",
        all.threads,
        one.threads
    );
    Ok(Idle {
        devices,
        one_device: one,
        all_devices: all,
        descriptors_each: each(|taken| taken.descriptors),
        resident_kib_each: each(|taken| taken.resident_kib),
    })
}

fn socket(directory: &Path, n: u64) -> PathBuf {
    directory.join(format!("{n}.sock"))
}

fn start(directory: &Path, devices: u64, options: &str) -> anyhow::Result<Process> {
    let mut config = String::new();
    for n in 0..devices {
        let path = toml::Value::String(socket(directory, n).display().to_string());
        let _ = writeln!(config, "[device.d{n}]\nmodel = \"template\"\nsocket = {path}\n{options}");
    }
    let file = directory.join("idle.toml");
    fs::write(&file, config).context("cannot write a configuration")?;
    let server = Process::configured(&file)?;
    // They are started in the order of the file.
    floor::wait_for(&socket(directory, devices - 1))?;
    Ok(server)
}

/// What a process takes now.
pub(super) fn taken(pid: u32) -> anyhow::Result<Taken> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.with_context(|| format!("/proc/{pid}/status has no {name}"))
    };
    Ok(Taken {
        threads: field("Threads:")?,
        descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64,
        resident_kib: field("VmRSS:")?,
    })
}

/// What a process takes when nothing changes and none of its threads runs: what its start has begun is over.
fn taken_at_rest(pid: u32) -> anyhow::Result<Taken> {
    let deadline = Instant::now() + PATIENCE;
    let mut last = taken(pid)?;
    loop {
        std::thread::sleep(Duration::from_millis(10));
        let now = taken(pid)?;
        let is_same = (now.threads, now.descriptors) == (last.threads, last.descriptors);
        if is_same && is_asleep(pid)? {
            return Ok(now);
        }
        ensure!(Instant::now() < deadline, "process {pid} does not come to rest");
        last = now;
    }
}

/// Whether no thread of a process runs, waits for a processor, or waits for a disk.
fn is_asleep(pid: u32) -> anyhow::Result<bool> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // One that has ended meanwhile.
        let Ok(stat) = fs::read_to_string(task?.path().join("stat")) else { continue };
        // Behind the name, which may have any characters.
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        if matches!(state, Some('R' | 'D')) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What connected clients take that say nothing.
#[derive(Debug, Serialize)]
pub(super) struct Connected {
    devices: u64,
    clients: u64,
    before: Taken,
    /// When the last one has connected.
    connected: Taken,
    /// Most threads while they connected.
    most_threads: u64,
    /// For each client, resident memory in KiB.
    resident_kib_each: f64,
}

impl Connected {
    /// For people.
    pub(super) fn text(&self) -> String {
        let Self { clients, before, connected, most_threads, resident_kib_each, .. } = self;
        format!(
            "{:<20}{:>12}{:>14}{:>12}\n{:<20}{:>12}{:>14}{:>12}\n\
             {clients:<20}{:>12}{:>14}{:>12}\nmost threads {most_threads}; \
             {resident_kib_each:.2} KiB each\n",
            "idle clients",
            "threads",
            "descriptors",
            "KiB",
            0,
            before.threads,
            before.descriptors,
            before.resident_kib,
            connected.threads,
            connected.descriptors,
            connected.resident_kib,
        )
    }
}

/// Serves `devices` in one process, connects `clients` to them, and looks at what that takes.
pub(super) fn measure_clients(
    directory: &Path,
    devices: u64,
    clients: u64,
) -> anyhow::Result<Connected> {
    let server = start(directory, devices, "open = \"multi\"\n")?;
    let connect = |n: u64| Session::connect(&socket(directory, n % devices), false);
    // The first ones start threads, and touch memory that later ones use as well.
    let first: anyhow::Result<Vec<_>> = (0..devices.min(16)).map(connect).collect();
    let _first = first?;
    let before = taken(server.id())?;
    let (mut sessions, mut most_threads) = (Vec::new(), before.threads);
    for n in 0..clients {
        sessions.push(connect(n)?);
        if n % 50 == 0 {
            most_threads = most_threads.max(taken(server.id())?.threads);
        }
    }
    let connected = taken(server.id())?;
    let more = connected.resident_kib as f64 - before.resident_kib as f64;
    Ok(Connected {
        devices,
        clients,
        before,
        connected,
        most_threads: most_threads.max(connected.threads),
        resident_kib_each: more / clients as f64,
    })
}
