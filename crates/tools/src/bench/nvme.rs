//! `vfiod bench --nvme`: reads of 4 KiB through an NVMe controller, by the driver in user space.
//!
//! Server and client are processes of their own, and the processor time of each is told apart. With a file
//! behind the controller, fio reads the same file with io_uring in the same rounds.

use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use serde_json::Value;
use vfiod_daemon::output;
use vfiod_nvme_driver::{Buffer, Controller, Data, Namespace, Options, Queue, Waiting, opcode};

use super::arguments::Bench;
use super::figures::Spread;
use super::random::Random;
use super::{Process, floor, pin};

/// Bytes of a read.
const READ: u64 = 4096;
/// Bytes of the disk that is nothing.
const NULL: u64 = 1 << 40;

/// What is measured.
#[derive(Clone, Copy, Debug)]
struct Job {
    queues: usize,
    depth: usize,
    waiting: Waiting,
}

const JOBS: [Job; 4] = [
    Job { queues: 1, depth: 1, waiting: Waiting::Polling },
    Job { queues: 1, depth: 1, waiting: Waiting::Interrupts },
    Job { queues: 1, depth: 32, waiting: Waiting::Polling },
    Job { queues: 8, depth: 32, waiting: Waiting::Polling },
];

impl Job {
    fn name(self) -> String {
        let Self { queues, depth, waiting } = self;
        let waiting = match waiting {
            Waiting::Polling => "polling",
            Waiting::Interrupts => "interrupts",
        };
        format!("{queues} × depth {depth}, {waiting}")
    }
}

/// One round of a job.
#[derive(Clone, Copy, Debug)]
struct Round {
    commands: u64,
    seconds: f64,
    /// Microseconds from submission to completion, the median.
    latency: f64,
    /// Processor time, nanoseconds for a command.
    server: Option<f64>,
    client: f64,
}

/// The rounds of a job, summed up.
#[derive(Debug, Serialize)]
struct Figures {
    job: String,
    /// Commands in a second.
    iops: Spread,
    /// Microseconds; the median of a round.
    latency: Spread,
    /// Nanoseconds of processor time for a command.
    #[serde(skip_serializing_if = "Option::is_none")]
    server_cpu: Option<Spread>,
    client_cpu: Spread,
}

impl Figures {
    fn new(job: String, rounds: &[Round]) -> Option<Self> {
        let spread = |of: fn(&Round) -> f64| Spread::of(&rounds.iter().map(of).collect::<Vec<_>>());
        let server: Vec<f64> = rounds.iter().filter_map(|round| round.server).collect();
        Some(Self {
            job,
            iops: spread(|round| round.commands as f64 / round.seconds)?,
            latency: spread(|round| round.latency)?,
            server_cpu: Spread::of(&server),
            client_cpu: spread(|round| round.client)?,
        })
    }

    fn line(&self) -> String {
        let Self { job, iops, latency, server_cpu, client_cpu } = self;
        let server =
            server_cpu.map_or("–".to_owned(), |server| format!("{:.0} ns", server.median));
        format!(
            "{job:<28}{:>10.0}{:>12.2} µs{server:>12}{:>12.0} ns   {:.0} … {:.0}\n",
            iops.median, latency.median, client_cpu.median, iops.min, iops.max
        )
    }
}

fn text(figures: &[Figures]) -> String {
    let mut text = format!(
        "{:<28}{:>10}{:>15}{:>12}{:>15}   {}\n",
        "reads of 4 KiB", "a second", "latency", "server CPU", "client CPU", "a second, min … max"
    );
    for of_job in figures {
        let _ = write!(text, "{}", of_job.line());
    }
    text
}

/// Measures all jobs in turns, `--rounds` times for `--time-ms` each.
pub(super) fn measure(
    directory: &Path,
    args: &Bench,
    poll: Option<Duration>,
) -> anyhow::Result<()> {
    let socket = directory.join("nvme.sock");
    let disk = match &args.file {
        None => format!("null={NULL}"),
        Some(file) => format!("file={}", file.display()),
    };
    // An image that is only read is locked for others that read as well.
    let read_only = if args.file.is_some() { &["--option", "readonly=true"][..] } else { &[] };
    let device = [&["nvme", "--option", disk.as_str()], read_only].concat();
    pin(args.server_cpu.or(args.cpu))?;
    let server = Process::device(&socket, poll, &device)?;
    pin(args.cpu)?;
    floor::wait_for(&socket)?;
    let budget = Duration::from_millis(args.time_ms);
    let mut rounds = vec![Vec::new(); JOBS.len()];
    let mut beside = vec![Vec::new(); JOBS.len()];
    for _ in 0..args.rounds {
        for (at, job) in JOBS.into_iter().enumerate() {
            rounds[at].push(play(&socket, server.id(), job, budget)?);
            if let Some(file) = &args.file
                && job.waiting == Waiting::Polling
            {
                beside[at].extend(fio(file, job, budget)?);
            }
        }
    }
    let mut figures = Vec::new();
    for (at, job) in JOBS.into_iter().enumerate() {
        figures.extend(Figures::new(job.name(), &rounds[at]));
        figures.extend(Figures::new("  fio, io_uring".to_owned(), &beside[at]));
    }
    if args.json { output::print_json(&figures) } else { output::print(&text(&figures)) }
}

/// A queue, and what each of its commands reads into.
struct Reader {
    queue: Queue,
    buffers: Vec<std::sync::Arc<Buffer>>,
    /// By command identifier: which buffer, and when it was submitted.
    in_flight: Vec<(usize, Instant)>,
}

impl Reader {
    fn submit(
        &mut self,
        disk: &Namespace,
        buffer: usize,
        random: &mut Random,
    ) -> anyhow::Result<()> {
        let blocks = READ / u64::from(disk.block_size);
        let first = random.below((disk.blocks / blocks).min(1 << 32)) * blocks;
        let data = Data::of(&self.buffers[buffer]);
        let read = disk.transfer(opcode::READ, first, &data)?;
        let id = usize::from(self.queue.submit(read, Some(data))?);
        self.in_flight[id] = (buffer, Instant::now());
        Ok(())
    }
}

/// Plays one round of a job, with a connection of its own.
fn play(socket: &Path, server: u32, job: Job, budget: Duration) -> anyhow::Result<Round> {
    let mut controller = connect(socket)?;
    let disk = controller.namespace(1)?;
    ensure!(disk.blocks * u64::from(disk.block_size) >= READ, "a disk of less than 4 KiB");
    let mut random = Random::of_now();
    let mut readers = Vec::new();
    for _ in 0..job.queues {
        let queue = controller.create_queue(job.depth as u32 + 1, job.waiting)?;
        let buffers = (0..job.depth).map(|_| controller.memory().allocate(READ as usize));
        let buffers = buffers.collect::<Result<_, _>>()?;
        readers.push(Reader { queue, buffers, in_flight: vec![(0, Instant::now()); job.depth] });
    }
    let mut latencies = Vec::new();
    let (server_before, client_before) = (server_time(server)?, client_time());
    let start = Instant::now();
    for reader in &mut readers {
        for buffer in 0..job.depth {
            reader.submit(&disk, buffer, &mut random)?;
        }
        reader.queue.ring()?;
    }
    let mut commands = 0;
    while start.elapsed() < budget {
        for reader in &mut readers {
            // One queue may wait. Several are looked at in turn.
            let mut next = match job.queues {
                1 => Some(reader.queue.wait()?),
                _ => reader.queue.poll()?,
            };
            while let Some(completion) = next {
                ensure!(completion.status.is_success(), "a read ended with {}", completion.status);
                let (buffer, submitted) = reader.in_flight[usize::from(completion.id)];
                latencies.push(submitted.elapsed().as_nanos() as f64 / 1e3);
                commands += 1;
                reader.submit(&disk, buffer, &mut random)?;
                next = reader.queue.poll()?;
            }
            reader.queue.ring()?;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let each = |time: f64| time / commands.max(1) as f64;
    let client = each(client_time() - client_before);
    let server = Some(each(server_time(server)? - server_before));
    let latency = Spread::of(&latencies).context("no read has completed in a round")?.median;
    for mut reader in readers {
        while reader.queue.in_flight() > 0 {
            reader.queue.wait()?;
        }
    }
    controller.close()?;
    Ok(Round { commands, seconds, latency, server, client })
}

/// Connects as soon as the connection before has ended.
fn connect(socket: &Path) -> anyhow::Result<Controller> {
    let start = Instant::now();
    loop {
        match Controller::connect(socket, &Options::default()) {
            Ok(controller) => return Ok(controller),
            Err(error) if start.elapsed() > Duration::from_secs(10) => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Nanoseconds of processor time that this process has used.
fn client_time() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// Nanoseconds of processor time that a process has used, those of threads that have ended included. The
/// kernel tells it in steps of 10 ms.
fn server_time(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, which may have any characters, ends with the last parenthesis; utime and stime are the 14th
    // and 15th field.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace());
    let fields: Vec<&str> = fields.context("a stat without a name")?.collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    let ticks = ticks(11).zip(ticks(12)).map(|(user, system)| user + system);
    let second = rustix::param::clock_ticks_per_second() as f64;
    Ok(ticks.context("a stat without times")? / second * 1e9)
}

/// Lets fio read the file as the job does; `None`: it is not installed.
fn fio(file: &Path, job: Job, budget: Duration) -> anyhow::Result<Option<Round>> {
    let milliseconds = budget.as_millis();
    let mut command = Command::new("fio");
    command
        .args(["--name=read", "--ioengine=io_uring", "--rw=randread", "--bs=4k", "--time_based"])
        .args(["--readonly", "--group_reporting", "--output-format=json", "--direct=1"])
        .args(["--norandommap", "--randrepeat=0", "--thread"])
        .arg(format!("--filename={}", file.display()))
        .arg(format!("--iodepth={}", job.depth))
        .arg(format!("--numjobs={}", job.queues))
        .arg(format!("--runtime={milliseconds}ms"));
    let done = match command.stdin(Stdio::null()).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        done => done.context("cannot run fio")?,
    };
    ensure!(done.status.success(), "fio: {}", String::from_utf8_lossy(&done.stderr).trim());
    let json: Value = serde_json::from_slice(&done.stdout).context("what fio has printed")?;
    let job = &json["jobs"][0];
    let number = |value: &Value| value.as_f64().context("a figure that fio has not printed");
    let (commands, seconds) =
        (number(&job["read"]["total_ios"])?, number(&job["read"]["runtime"])? / 1e3);
    let busy = (number(&job["usr_cpu"])? + number(&job["sys_cpu"])?) / 100.0;
    let seconds_of_jobs = number(&job["job_runtime"])? / 1e3;
    Ok(Some(Round {
        commands: commands as u64,
        seconds,
        latency: number(&job["read"]["clat_ns"]["percentile"]["50.000000"])? / 1e3,
        server: None,
        client: busy * seconds_of_jobs * 1e9 / commands.max(1.0),
    }))
}
