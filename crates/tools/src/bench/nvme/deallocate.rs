//! How long reads of one queue wait while another one deallocates the whole disk.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;
use vfiod_nvme_driver::{
    Buffer, Command, Completion, Controller, Data, Doorbells, Namespace, Queue, Waiting, opcode,
};

use super::play::connect;
use crate::bench::arguments::Bench;
use crate::bench::figures::Spread;
use crate::bench::random::Random;
use crate::bench::{Process, floor, pin};

/// Bytes of a read.
const READ: usize = 4096;
/// Bytes of a write, and how many are under way.
const WRITE: usize = 128 << 10;
const WRITES: usize = 32;
/// Dataset Management: the ranges are to be deallocated.
const DEALLOCATE: u32 = 1 << 2;

/// What reads have waited, in microseconds.
#[derive(Debug, Serialize)]
struct Waits {
    reads: usize,
    median: f64,
    p99: f64,
    longest: f64,
}

impl Waits {
    fn of(mut waits: Vec<f64>) -> anyhow::Result<Self> {
        waits.sort_by(f64::total_cmp);
        let spread = Spread::of(&waits).context("no read was made")?;
        let p99 = waits[(waits.len() - 1) * 99 / 100];
        Ok(Self { reads: waits.len(), median: spread.median, p99, longest: spread.max })
    }

    fn line(&self, name: &str) -> String {
        let Self { reads, median, p99, longest } = self;
        format!("{name:<28}{reads:>10}{median:>12.1} µs{p99:>12.1} µs{longest:>12.1} µs\n")
    }
}

/// One round: before, and while the disk was deallocated.
#[derive(Debug, Serialize)]
pub(super) struct Delays {
    bytes: u64,
    /// How long deallocating took, in milliseconds.
    took: f64,
    before: Waits,
    meanwhile: Waits,
}

impl Delays {
    /// For people.
    pub(super) fn text(&self) -> String {
        format!(
            "{:<28}{:>10}{:>15}{:>15}{:>15}\n{}{}{} MiB were deallocated in {:.1} ms\n",
            "reads of another queue",
            "reads",
            "median",
            "p99",
            "longest",
            self.before.line("before"),
            self.meanwhile.line("while it is deallocated"),
            self.bytes >> 20,
            self.took,
        )
    }
}

/// Makes an image, fills it, and measures `--rounds` times. The image is removed.
pub(super) fn measure(
    directory: &Path,
    args: &Bench,
    poll: Option<Duration>,
    image: &Path,
) -> anyhow::Result<Vec<Delays>> {
    let file = std::fs::OpenOptions::new().write(true).create_new(true).open(image);
    let file = file.with_context(|| format!("cannot make the image {}", image.display()))?;
    let remove = Remove(image);
    file.set_len(args.size_mib << 20).context("cannot set the size of the image")?;
    let socket = directory.join("deallocate.sock");
    let option = format!("file={}", image.display());
    pin(args.server_cpu.or(args.cpu))?;
    let server = Process::device(&socket, poll, &["nvme", "--option", &option])?;
    pin(args.cpu)?;
    floor::wait_for(&socket)?;
    let mut rounds = Vec::new();
    for _ in 0..args.rounds {
        rounds.push(round(&socket, Duration::from_millis(args.time_ms))?);
    }
    drop((server, remove));
    Ok(rounds)
}

/// The image, and what the daemon keeps beside it, are there no longer.
struct Remove<'a>(&'a Path);

impl Drop for Remove<'_> {
    fn drop(&mut self) {
        _ = std::fs::remove_file(self.0);
        let mut beside = self.0.as_os_str().to_owned();
        beside.push(".vfiod");
        _ = std::fs::remove_file(beside);
    }
}

fn round(socket: &Path, before: Duration) -> anyhow::Result<Delays> {
    let mut controller = connect(socket, Doorbells::Registers)?;
    let disk = controller.namespace(1)?;
    let mut others = controller.create_queue(WRITES as u32 + 1, Waiting::Polling)?;
    fill(&controller, &mut others, &disk)?;
    let mut reads = Reads {
        buffer: controller.memory().allocate(READ)?,
        queue: controller.create_queue(3, Waiting::Polling)?,
        random: Random::of_now(),
        disk,
    };
    let start = Instant::now();
    let mut waits = Vec::new();
    while waits.is_empty() || start.elapsed() < before {
        waits.push(reads.next()?);
    }
    let before = Waits::of(waits)?;

    let ranges = controller.memory().allocate(4096)?;
    let count = write_ranges(&ranges, disk.blocks)?;
    let start = Instant::now();
    let command = Command::new(opcode::DATASET_MANAGEMENT)
        .namespace(disk.id)
        .dword(10, count - 1)
        .dword(11, DEALLOCATE);
    others.submit(command, Some(Data::of(&ranges)))?;
    others.ring()?;
    let mut waits = Vec::new();
    let completion = loop {
        waits.push(reads.next()?);
        if let Some(completion) = others.poll()? {
            break completion;
        }
    };
    let took = start.elapsed().as_nanos() as f64 / 1e6;
    ensure_success("deallocating", completion)?;
    let meanwhile = Waits::of(waits)?;
    drop((reads, others));
    controller.close()?;
    let bytes = disk.blocks * u64::from(disk.block_size);
    Ok(Delays { bytes, took, before, meanwhile })
}

fn ensure_success(what: &str, completion: Completion) -> anyhow::Result<()> {
    ensure!(completion.status.is_success(), "{what} ended with {}", completion.status);
    Ok(())
}

/// Ranges that have all blocks of the disk; returns how many.
fn write_ranges(buffer: &Buffer, blocks: u64) -> anyhow::Result<u32> {
    let (mut first, mut count) = (0, 0);
    while first < blocks {
        let len = (blocks - first).min(u32::MAX.into());
        let at = 16 * count as usize;
        ensure!(at + 16 <= buffer.len(), "a disk of {blocks} blocks is too large");
        buffer.write(at, &0_u32.to_le_bytes());
        buffer.write(at + 4, &(len as u32).to_le_bytes());
        buffer.write(at + 8, &first.to_le_bytes());
        (first, count) = (first + len, count + 1);
    }
    Ok(count)
}

/// Writes the whole disk, and flushes it.
fn fill(controller: &Controller, queue: &mut Queue, disk: &Namespace) -> anyhow::Result<()> {
    let buffer = controller.memory().allocate(WRITE)?;
    buffer.write(0, &[0x5a; WRITE]);
    let blocks = (WRITE / disk.block_size as usize) as u64;
    let mut under_way = 0;
    for at in 0..disk.blocks / blocks {
        if under_way == WRITES {
            ensure_success("a write", queue.wait()?)?;
            under_way -= 1;
        }
        let data = Data::of(&buffer);
        queue.submit(disk.transfer(opcode::WRITE, at * blocks, &data)?, Some(data))?;
        under_way += 1;
    }
    for _ in 0..under_way {
        ensure_success("a write", queue.wait()?)?;
    }
    Ok(queue.flush(disk)?)
}

/// One read at a time.
struct Reads {
    queue: Queue,
    buffer: Arc<Buffer>,
    random: Random,
    disk: Namespace,
}

impl Reads {
    /// How long the next read takes, in microseconds.
    fn next(&mut self) -> anyhow::Result<f64> {
        let blocks = (READ / self.disk.block_size as usize) as u64;
        let first = self.random.below((self.disk.blocks / blocks).min(1 << 32)) * blocks;
        let start = Instant::now();
        self.queue.read(&self.disk, first, Data::of(&self.buffer))?;
        Ok(start.elapsed().as_nanos() as f64 / 1e3)
    }
}
