//! One round of a job, by the driver in user space.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::time::{ClockId, clock_gettime};
use vfiod_nvme_driver::{Buffer, Controller, Data, Doorbells, Namespace, Options, Queue, opcode};

use super::job::{Job, Reads, Round};
use crate::bench::figures::Spread;
use crate::bench::random::Random;

/// Bytes of memory of a controller's driver.
const MEMORY: u64 = 16 << 20;

/// How long a read may take.
const LONGEST: Duration = Duration::from_secs(30);

/// A queue, and what each of its commands reads into.
struct Reader {
    queue: Queue,
    disk: Namespace,
    reads: Reads,
    /// The next of reads that follow each other.
    next: u64,
    buffers: Vec<Arc<Buffer>>,
    /// By command identifier: which buffer, and when it was submitted.
    in_flight: Vec<(usize, Instant)>,
}

impl Reader {
    fn new(controller: &mut Controller, disk: Namespace, job: Job) -> anyhow::Result<Self> {
        let queue = controller.create_queue(job.depth as u32 + 1, job.waiting)?;
        let len = job.reads.bytes() as usize;
        let buffers = (0..job.depth).map(|_| controller.memory().allocate(len));
        let buffers = buffers.collect::<Result<_, _>>()?;
        let in_flight = vec![(0, Instant::now()); job.depth];
        Ok(Self { queue, disk, reads: job.reads, next: 0, buffers, in_flight })
    }

    fn submit(&mut self, buffer: usize, random: &mut Random) -> anyhow::Result<()> {
        let blocks = self.reads.bytes() / u64::from(self.disk.block_size);
        let all = self.disk.blocks / blocks;
        let at = match self.reads {
            Reads::Random => random.below(all.min(1 << 32)),
            Reads::Sequential => {
                let at = self.next % all;
                self.next = at + 1;
                at
            }
        };
        let data = Data::of(&self.buffers[buffer]);
        let read = self.disk.transfer(opcode::READ, at * blocks, &data)?;
        let id = usize::from(self.queue.submit(read, Some(data))?);
        self.in_flight[id] = (buffer, Instant::now());
        Ok(())
    }
}

/// The controllers of a job, and their queues.
struct Driven {
    controllers: Vec<Controller>,
    readers: Vec<Reader>,
    random: Random,
    commands: u64,
    /// Microseconds.
    latencies: Vec<f64>,
}

impl Driven {
    fn connect(sockets: &[PathBuf], job: Job) -> anyhow::Result<Self> {
        let (mut controllers, mut readers) = (Vec::new(), Vec::new());
        for socket in &sockets[..job.controllers] {
            let mut controller = connect(socket, job.doorbells)?;
            let disk = controller.namespace(1)?;
            let (bytes, len) = (disk.blocks * u64::from(disk.block_size), job.reads.bytes());
            ensure!(bytes >= len, "a disk of {bytes} bytes is too small for reads of {len}");
            for _ in 0..job.queues {
                readers.push(Reader::new(&mut controller, disk, job)?);
            }
            controllers.push(controller);
        }
        let (random, latencies) = (Random::of_now(), Vec::new());
        Ok(Self { controllers, readers, random, commands: 0, latencies })
    }

    /// Keeps every queue full for a while, and until some command has ended.
    fn flood(&mut self, budget: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        for reader in &mut self.readers {
            for buffer in 0..reader.buffers.len() {
                reader.submit(buffer, &mut self.random)?;
            }
            reader.queue.ring()?;
        }
        let is_one = self.readers.len() == 1;
        let mut ended = Vec::new();
        while start.elapsed() < budget || self.commands == 0 {
            ensure!(start.elapsed() < budget + LONGEST, "no read ends within {LONGEST:?}");
            for reader in &mut self.readers {
                // One queue may wait. Several are looked at in turn.
                let mut next =
                    if is_one { Some(reader.queue.wait()?) } else { reader.queue.poll()? };
                while let Some(completion) = next {
                    let status = completion.status;
                    ensure!(status.is_success(), "a read ended with {status}");
                    let (buffer, submitted) = reader.in_flight[usize::from(completion.id)];
                    self.latencies.push(submitted.elapsed().as_nanos() as f64 / 1e3);
                    self.commands += 1;
                    ended.push(buffer);
                    next = reader.queue.poll()?;
                }
                // One doorbell for all of them.
                for buffer in ended.drain(..) {
                    reader.submit(buffer, &mut self.random)?;
                }
                reader.queue.ring()?;
            }
        }
        Ok(())
    }

    /// Reads `rate` times a second, one read at a time and at least once, and sleeps in between.
    fn trickle(&mut self, budget: Duration, rate: u32) -> anyhow::Result<()> {
        if rate == 0 {
            std::thread::sleep(budget);
            return Ok(());
        }
        let (start, pause) = (Instant::now(), Duration::from_secs(1) / rate);
        let reader = &mut self.readers[0];
        while start.elapsed() < budget || self.commands == 0 {
            let due = start + pause * self.commands as u32;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let submitted = Instant::now();
            reader.submit(0, &mut self.random)?;
            let status = reader.queue.wait()?.status;
            ensure!(status.is_success(), "a read ended with {status}");
            self.latencies.push(submitted.elapsed().as_nanos() as f64 / 1e3);
            self.commands += 1;
        }
        Ok(())
    }

    fn close(self) -> anyhow::Result<()> {
        for mut reader in self.readers {
            while reader.queue.in_flight() > 0 {
                reader.queue.wait()?;
            }
        }
        self.controllers.into_iter().try_for_each(|controller| Ok(controller.close()?))
    }
}

/// Plays one round of a job at a server, with connections of its own.
pub(super) fn play(
    sockets: &[PathBuf],
    server: u32,
    job: Job,
    budget: Duration,
) -> anyhow::Result<Round> {
    let mut driven = Driven::connect(sockets, job)?;
    let (server_before, client_before) = (server_time(server)?, client_time());
    let start = Instant::now();
    match job.rate {
        None => driven.flood(budget)?,
        Some(rate) => driven.trickle(budget, rate)?,
    }
    let seconds = start.elapsed().as_secs_f64();
    let client = client_time() - client_before;
    let server = server_time(server)? - server_before;
    let round = Round {
        commands: driven.commands,
        seconds,
        latency: Spread::of(&driven.latencies).map(|spread| spread.median),
        server: Some(server),
        client,
    };
    driven.close()?;
    Ok(round)
}

/// Connects as soon as the connection before has ended.
pub(super) fn connect(socket: &Path, doorbells: Doorbells) -> anyhow::Result<Controller> {
    let start = Instant::now();
    let mut options = Options::default();
    (options.memory, options.doorbells) = (MEMORY, doorbells);
    loop {
        match Controller::connect(socket, &options) {
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
pub(super) fn server_time(pid: u32) -> anyhow::Result<f64> {
    // utime and stime are the 14th and 15th field.
    stat_time(&std::fs::read_to_string(format!("/proc/{pid}/stat"))?, [11, 12])
}

/// Nanoseconds of two times of a process, by their places behind its name.
pub(super) fn stat_time(stat: &str, times: [usize; 2]) -> anyhow::Result<f64> {
    // The name may have any characters, and ends with the last parenthesis.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace());
    let fields: Vec<&str> = fields.context("a stat without a name")?.collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    let ticks = ticks(times[0]).zip(ticks(times[1])).map(|(user, system)| user + system);
    let second = rustix::param::clock_ticks_per_second() as f64;
    Ok(ticks.context("a stat without times")? / second * 1e9)
}
