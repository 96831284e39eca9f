//! `vfiod bench`: a server's figures, each with what its bytes alone cost.
//!
//! The floor is a process that answers requests of the same lengths with replies of the same
//! lengths over a socket of the same kind. Both are measured in slices of a few milliseconds, in
//! random order, and compared pair by pair ([`interleave`]). On one CPU (`--cpu`) the figures are those of the
//! programs; on two idle ones mostly that of waking a CPU up.

pub(crate) mod arguments;
mod busy;
mod figures;
mod floor;
mod idle;
mod interleave;
mod isolation;
mod many;
mod measures;
mod nvme;
mod random;
mod raw;
mod session;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal};
use rustix::thread::CpuSet;

use self::arguments::Bench;
use self::figures::Figure;
pub(crate) use self::floor::run as run_floor;
use self::isolation::Attack;
pub(crate) use self::isolation::run_attacker;
use self::measures::{Measure, Target};
use vfiod_config::UsageError;
use vfiod_config::time_argument;
use vfiod_daemon::output;

/// Runs `vfiod bench`.
pub(crate) fn run(args: &Bench) -> anyhow::Result<()> {
    let directory = tempfile::Builder::new().prefix("vfiod-bench-").tempdir()?;
    if args.nvme {
        return nvme::run(directory.path(), args, poll_argument(args)?);
    }
    if let Some(devices) = args.idle {
        if let Some(clients) = args.clients {
            let connected = idle::measure_clients(directory.path(), devices, clients)?;
            let text = || connected.text();
            return if args.json { output::print_json(&connected) } else { output::print(&text()) };
        }
        let idle = idle::measure(directory.path(), devices)?;
        return if args.json { output::print_json(&idle) } else { output::print(&idle.text()) };
    }
    if let Some(numbers) = &args.instances {
        let budget = Duration::from_millis(args.time_ms);
        let many = many::measure(directory.path(), numbers, args.rounds, budget)?;
        return if args.json {
            output::print_json(&many)
        } else {
            output::print(&many::text(&many))
        };
    }
    if args.isolation {
        return measure_isolation(directory.path(), args);
    }
    let floor_socket = directory.path().join("floor.sock");
    let poll = poll_argument(args)?;

    // Children keep the CPU that they were started on.
    pin(args.server_cpu.or(args.cpu))?;
    let _floor = Process::floor(&floor_socket, args.spin)?;
    let (socket, _server) = match &args.socket {
        Some(socket) => (socket.clone(), None),
        None => {
            let socket = directory.path().join("server.sock");
            let server = Process::server(&socket, poll)?;
            (socket, Some(server))
        }
    };
    if args.server_cpu.is_some() && args.cpu.is_none() {
        bail!(UsageError("--server-cpu needs --cpu for the other end".into()));
    }
    pin(args.cpu)?;
    floor::wait_for(&floor_socket)?;
    if args.serve {
        floor::wait_for(&socket)?;
    }
    if let Some(clients) = args.busy {
        let sockets = std::iter::once((None, &socket))
            .chain(args.against.iter().map(|(name, socket)| (Some(name.as_str()), socket)));
        let budget = Duration::from_millis(args.time_ms);
        let waits = busy::measure(sockets.collect(), clients, args.rounds, budget)?;
        return if args.json {
            output::print_json(&waits)
        } else {
            output::print(&busy::text(&waits))
        };
    }
    let region = args.region.map(|region| (region, args.offset));
    let look = |socket| {
        Target::look(socket, args.spin, region)
            .with_context(|| format!("cannot measure {}", socket.display()))
    };
    let mut targets = vec![(None, look(&socket)?)];
    for (name, socket) in &args.against {
        targets.push((Some(name.clone()), look(socket)?));
    }
    let figures = measure(args, &targets, &floor_socket)?;
    if args.json {
        output::print_json(&figures)?;
    }
    let failed = figures.iter().filter(|figure| figure.error.is_some()).count();
    if failed > 0 {
        bail!("{failed} measures failed");
    }
    Ok(())
}

fn poll_argument(args: &Bench) -> anyhow::Result<Option<Duration>> {
    Ok(args.poll.as_deref().map(|poll| time_argument("--poll", poll)).transpose()?)
}

fn measure_isolation(directory: &Path, args: &Bench) -> anyhow::Result<()> {
    if args.list {
        return output::print(&isolation::list());
    }
    let attacks = if args.attack.is_empty() { Attack::all().to_vec() } else { args.attack.clone() };
    let time = Duration::from_secs(args.seconds);
    if !args.json {
        output::print(&isolation::head(args.victims))?;
    }
    let mut findings = Vec::new();
    for attack in attacks {
        let finding = isolation::measure(directory, attack, args.victims, time)?;
        if !args.json {
            output::print(&finding.line())?;
        }
        findings.push(finding);
    }
    if args.json { output::print_json(&findings) } else { Ok(()) }
}

/// A server to be measured, and its name, but for the first.
type Named<'a> = (Option<String>, Target<'a>);

fn measure(args: &Bench, targets: &[Named<'_>], floor: &Path) -> anyhow::Result<Vec<Figure>> {
    let budget = Duration::from_millis(args.time_ms) * args.rounds;
    let mut figures = Vec::new();
    if !args.json {
        output::print(&(figures::head() + "\n"))?;
    }
    let wanted = |measure: &Measure| {
        args.only.as_ref().is_none_or(|only| measure.name().contains(only.as_str()))
    };
    for measure in Measure::all(&args.windows).into_iter().filter(wanted) {
        let fits = |(_, target): &&Named<'_>| match measure.fits(target) {
            Ok(()) => true,
            Err(why) => {
                tracing::info!(measure = measure.name(), reason = why, "left out");
                false
            }
        };
        let fitting: Vec<_> = targets.iter().filter(fits).collect();
        if fitting.is_empty() {
            continue;
        }
        let floor = measure.floor(floor, args.spin)?;
        let servers = fitting.iter().map(|(_, target)| measure.server(target)).collect();
        let measured = interleave::measure(floor, servers, budget)?;
        for ((name, _), pairs) in fitting.into_iter().zip(measured) {
            let figure = Figure::new(measure.name(), name.clone(), pairs);
            if !args.json {
                output::print(&(figure.line() + "\n"))?;
            }
            figures.push(figure);
        }
    }
    if figures.is_empty() {
        bail!(UsageError("--only: no measure has that in its name".into()));
    }
    Ok(figures)
}

/// Binds this process, and those that it starts from now on, to a CPU.
fn pin(cpu: Option<usize>) -> anyhow::Result<()> {
    let Some(cpu) = cpu else { return Ok(()) };
    if cpu >= CpuSet::MAX_CPU {
        bail!(UsageError(format!("there is no CPU {cpu}")));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set)
        .with_context(|| format!("cannot run on CPU {cpu}"))
}

/// How long a process at the other end may take to end.
const ENDING: Duration = Duration::from_secs(30);

/// A process at the other end. Ended when dropped.
struct Process(Child);

impl Process {
    fn floor(socket: &Path, spin: bool) -> anyhow::Result<Self> {
        let mut command = own()?;
        command.arg("bench-floor").arg(socket);
        if spin {
            command.arg("--spin");
        }
        Self::start(command)
    }

    fn server(socket: &Path, poll: Option<Duration>) -> anyhow::Result<Self> {
        Self::device(socket, poll, &["bench", "--open", "multi"])
    }

    /// Serves the device of these arguments.
    fn device(socket: &Path, poll: Option<Duration>, device: &[&str]) -> anyhow::Result<Self> {
        let mut command = own()?;
        command.args(["--log", "error", "serve", "--device"]).args(device);
        command.arg("--socket-path").arg(socket);
        if let Some(poll) = poll {
            command.args(["--poll", &format!("{}us", poll.as_micros())]);
        }
        Self::start(command)
    }

    fn configured(file: &Path) -> anyhow::Result<Self> {
        let mut command = own()?;
        command.args(["--log", "error", "serve"]).arg(file);
        Self::start(command)
    }

    fn id(&self) -> u32 {
        self.0.id()
    }

    /// Ends it by SIGTERM: how it ended.
    ///
    /// # Errors
    /// It had to be killed.
    fn terminate(mut self) -> anyhow::Result<ExitStatus> {
        self.end()?.with_context(|| format!("the daemon did not end within {ENDING:?} of SIGTERM"))
    }

    /// Sends SIGTERM, and SIGKILL where that does not end it: how it ended, `None`: by SIGKILL.
    fn end(&mut self) -> std::io::Result<Option<ExitStatus>> {
        if let Some(status) = self.0.try_wait()? {
            return Ok(Some(status));
        }
        rustix::process::kill_process(Pid::from_child(&self.0), Signal::TERM)?;
        let deadline = Instant::now() + ENDING;
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.0.kill()?;
        self.0.wait().map(|_| None)
    }

    fn start(mut command: Command) -> anyhow::Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        Ok(Self(child.context("cannot start a process for the other end")?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The server removes its socket; the floor just ends.
        let _ = self.end();
    }
}

fn own() -> anyhow::Result<Command> {
    let program: PathBuf =
        std::env::current_exe().context("cannot find this program's own file")?;
    Ok(Command::new(program))
}
