//! The servers that are measured: a daemon of our own, and others that run already.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal};
use vfiod_nvme_driver::{Controller, Doorbells, Error, Options};

use super::job::{Job, Round};
use super::play::{connect, play};
use crate::bench::arguments::Bench;
use crate::bench::{Process, floor, pin};

/// Bytes of the disk that is nothing.
const NULL: u64 = 1 << 40;

/// A server that is measured.
pub(super) struct Target {
    /// `None`: our own daemon.
    pub(super) name: Option<String>,
    /// Of each of its controllers.
    sockets: Vec<PathBuf>,
    pid: u32,
    /// How another server learns of commands: by mapped doorbells, if it has them.
    doorbells: Option<Doorbells>,
    /// Another server runs only while it is measured: if it polls, it would take the processor from the
    /// others.
    _stopped: Option<Stopped>,
    _own: Option<Process>,
}

/// A foreign process that is stopped, but for a while now and then. It goes on when this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        rustix::process::kill_process(self.0, signal).with_context(|| {
            format!("cannot stop the server {} while others are measured", self.0.as_raw_nonzero())
        })
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        _ = self.signal(Signal::CONT);
    }
}

impl Target {
    /// Starts a daemon with so many controllers, whose disks are nothing or, of the first one, the image.
    pub(super) fn own(
        directory: &Path,
        args: &Bench,
        poll: Option<Duration>,
        controllers: usize,
    ) -> anyhow::Result<Self> {
        let sockets: Vec<_> =
            (0..controllers).map(|n| directory.join(format!("nvme{n}.sock"))).collect();
        let mut config = String::new();
        if let Some(poll) = poll {
            _ = writeln!(config, "poll = \"{}us\"", poll.as_micros());
        }
        for (n, socket) in sockets.iter().enumerate() {
            _ = writeln!(config, "{}", device(n, socket, args));
        }
        let file = directory.join(format!("nvme{controllers}.toml"));
        std::fs::write(&file, config).context("cannot write a configuration")?;
        pin(args.server_cpu.or(args.cpu))?;
        let server = Process::configured(&file)?;
        pin(args.cpu)?;
        // They are started in the order of the file.
        floor::wait_for(&sockets[controllers - 1])?;
        Ok(Self {
            name: None,
            sockets,
            pid: server.id(),
            doorbells: None,
            _stopped: None,
            _own: Some(server),
        })
    }

    /// Another server, with one controller. It stands still from now on, but while it is measured.
    pub(super) fn other(name: &str, socket: &Path) -> anyhow::Result<Self> {
        let (controller, doorbells) = connect_mapped(socket)
            .with_context(|| format!("cannot drive the controller at {}", socket.display()))?;
        let pid = controller.server_process()?;
        controller.close()?;
        let stopped = Stopped(pid);
        stopped.signal(Signal::STOP)?;
        Ok(Self {
            name: Some(name.to_owned()),
            sockets: vec![socket.to_owned()],
            pid: pid.as_raw_nonzero().get() as u32,
            doorbells: Some(doorbells),
            _stopped: Some(stopped),
            _own: None,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    /// Plays one round of a job, if it has the controllers for it. Other servers need not have shadow doorbells.
    pub(super) fn play(&self, job: Job, budget: Duration) -> anyhow::Result<Option<Round>> {
        let is_foreign = self.name.is_some();
        if job.controllers > self.sockets.len()
            || (is_foreign && job.doorbells == Doorbells::Shadow)
        {
            return Ok(None);
        }
        let job = Job { doorbells: self.doorbells.unwrap_or(job.doorbells), ..job };
        let Some(stopped) = &self._stopped else {
            return play(&self.sockets, self.pid, job, budget).map(Some);
        };
        stopped.signal(Signal::CONT)?;
        let round = play(&self.sockets, self.pid, job, budget);
        stopped.signal(Signal::STOP)?;
        round.map(Some)
    }
}

/// Connects by mapped doorbells, or by messages where there are none.
fn connect_mapped(socket: &Path) -> anyhow::Result<(Controller, Doorbells)> {
    let mut options = Options::default();
    options.doorbells = Doorbells::Mapped;
    match Controller::connect(socket, &options) {
        Ok(controller) => Ok((controller, Doorbells::Mapped)),
        Err(Error::Unsupported(_)) => {
            Ok((connect(socket, Doorbells::Registers)?, Doorbells::Registers))
        }
        Err(error) => Err(error.into()),
    }
}

/// The configuration of controller `n`.
fn device(n: usize, socket: &Path, args: &Bench) -> String {
    let text = |path: &Path| toml::Value::String(path.display().to_string());
    let disk = match (&args.file, n) {
        // An image that is only read is locked for others that read as well.
        (Some(file), 0) => format!("file = {}\nreadonly = true", text(file)),
        _ => format!("null = {NULL}"),
    };
    let socket = text(socket);
    format!(
        "[device.nvme{n}]\nmodel = \"nvme\"\nsocket = {socket}\n[device.nvme{n}.options]\n{disk}"
    )
}
