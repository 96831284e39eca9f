//! A daemon with devices for victims, and others to attack.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use vfiod_client::{Client, GuestMemory, Options};
use vfiod_control::client::Client as Control;

use super::super::idle::{Taken, taken};
use super::super::{Process, floor};

/// What must come comes within that.
const PATIENCE: Duration = Duration::from_secs(60);
/// Threads that may stay for some seconds after there was work for them.
const WAITING_THREADS: u64 = 4;

/// An edu device that any number of clients may open.
pub(super) const MANY: &str = "many";
/// An edu device that takes one client.
pub(super) const ONE: &str = "one";
/// A bench device that any number of clients may open.
pub(super) const BOARD: &str = "board";
/// A bench device whose calls take long.
pub(super) const SLOW: &str = "slow";
/// One that takes one client.
pub(super) const SLOW_ONE: &str = "slow-one";

/// A daemon that was started for a measurement.
pub(super) struct Stage {
    directory: PathBuf,
    process: Process,
}

/// The socket of a device of the daemon in `directory`.
pub(super) fn socket(directory: &Path, device: &str) -> PathBuf {
    directory.join(device)
}

/// The device of a victim.
pub(super) fn victim(number: u32) -> String {
    format!("v{number}")
}

impl Stage {
    pub(super) fn start(directory: &Path, victims: u32) -> anyhow::Result<Self> {
        fs::create_dir_all(directory)?;
        let quoted =
            |name: &str| toml::Value::String(socket(directory, name).display().to_string());
        let mut config = format!("[control]\nsocket = {}\n", quoted("control"));
        let slow = "options = { delay_ms = 20 }";
        for (name, model, open, options) in [
            (MANY, "edu", "multi", ""),
            (ONE, "edu", "single", ""),
            (BOARD, "bench", "multi", ""),
            (SLOW, "bench", "multi", slow),
            (SLOW_ONE, "bench", "single", slow),
        ] {
            let socket = quoted(name);
            let _ = writeln!(
                config,
                "[device.{name}]\nmodel = \"{model}\"\nopen = \"{open}\"\nsocket = {socket}\n{options}"
            );
        }
        for number in 0..victims {
            let name = victim(number);
            let socket = quoted(&name);
            let _ = writeln!(config, "[device.{name}]\nmodel = \"edu\"\nsocket = {socket}");
        }
        let file = directory.join("vfiod.toml");
        fs::write(&file, config).context("cannot write a configuration")?;
        let stage = Self { directory: directory.to_owned(), process: Process::configured(&file)? };
        floor::wait_for(&stage.directory.join("control"))?;
        Ok(stage)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn socket(&self, device: &str) -> PathBuf {
        socket(&self.directory, device)
    }

    fn taken(&self) -> anyhow::Result<Taken> {
        taken(self.process.id()).context("the daemon has ended")
    }

    /// How many connections the daemon counts, of all devices.
    fn connections(&self) -> anyhow::Result<u64> {
        let mut control = Control::connect(&self.directory.join("control"))?;
        let text = control.fetch("/metrics")?;
        let text = String::from_utf8(text.to_vec()).context("metrics")?;
        let counts = text.lines().filter(|line| line.starts_with("vfiod_connections{"));
        Ok(counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
    }

    /// Waits until it has so many connections.
    pub(super) fn await_clients(&self, count: u64) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.connections()?;
            if now == count {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the daemon has {now} connections, not {count}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it takes, once that does not change.
    pub(super) fn settled(&self) -> anyhow::Result<Taken> {
        let deadline = Instant::now() + PATIENCE;
        let mut last = self.taken()?;
        loop {
            std::thread::sleep(Duration::from_millis(50));
            let now = self.taken()?;
            if (now.descriptors, now.threads) == (last.descriptors, last.threads) {
                return Ok(now);
            }
            ensure!(Instant::now() < deadline, "the daemon's descriptors do not settle");
            last = now;
        }
    }

    /// Waits until it takes no more than `before`, and has `clients` connections.
    ///
    /// # Errors
    /// It keeps something.
    pub(super) fn await_level(&self, before: &Taken, clients: u32) -> anyhow::Result<Taken> {
        self.await_clients(clients.into())?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.taken()?;
            if now.descriptors <= before.descriptors
                && now.threads <= before.threads + WAITING_THREADS
            {
                return Ok(now);
            }
            if Instant::now() > deadline {
                bail!(
                    "after the attack the daemon has {} descriptors and {} threads, {} and {} before",
                    now.descriptors,
                    now.threads,
                    before.descriptors,
                    before.threads
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Opens each of the attacked devices once, reads from it and gives it memory.
    pub(super) fn assert_serves(&self) -> anyhow::Result<()> {
        let memory = GuestMemory::new(4096)?;
        for device in [MANY, ONE, BOARD, SLOW, SLOW_ONE] {
            let serves = || -> anyhow::Result<()> {
                let options = Options { timeout: PATIENCE, ..Options::default() };
                let mut client = Client::connect_with(self.socket(device), options)?;
                client.region_write(7, 4, &[6])?;
                client.region_read(0, 0, &mut [0; 4])?;
                client.dma_map(0, 4096, Some((memory.fd(), 0)))?;
                Ok(())
            };
            serves().with_context(|| format!("device `{device}` after the attack"))?;
        }
        Ok(())
    }

    /// Ends it as an operator would.
    ///
    /// # Errors
    /// It does not end, or not as it should.
    pub(super) fn terminate(self) -> anyhow::Result<()> {
        let status = self.process.terminate()?;
        ensure!(status.success(), "the daemon ended with {status}");
        Ok(())
    }
}
