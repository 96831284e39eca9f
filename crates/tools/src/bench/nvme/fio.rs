//! The same reads by fio, of the file itself.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use vfiod_nvme_driver::{Doorbells, Waiting};

use super::job::{Job, Reads, Round};
use super::play::stat_time;

/// Whether fio can do what a job does.
pub(super) fn can(job: Job) -> bool {
    let is_plain = job.waiting == Waiting::Polling && job.doorbells == Doorbells::Registers;
    is_plain && job.rate.is_none() && job.controllers == 1
}

/// Lets fio read the file as the job does; `None`: it is not installed.
///
/// What fio says of its processor time is that of the threads of its jobs. What the kernel does for it in
/// threads of its own (`iou-wrk`) is most of it, so the time of the whole process counts, less what a process
/// takes that reads once.
pub(super) fn play(file: &Path, job: Job, budget: Duration) -> anyhow::Result<Option<Round>> {
    let Some((_, start)) = run(file, job, &["--number_ios=1".to_owned()])? else {
        return Ok(None);
    };
    let runtime = format!("--runtime={}ms", budget.as_millis());
    let time = ["--time_based".to_owned(), runtime];
    let Some((json, whole)) = run(file, job, &time)? else { return Ok(None) };
    let job = &json["jobs"][0];
    let number = |value: &Value| value.as_f64().context("a figure that fio has not printed");
    let (commands, seconds) =
        (number(&job["read"]["total_ios"])?, number(&job["read"]["runtime"])? / 1e3);
    Ok(Some(Round {
        commands: commands as u64,
        seconds,
        latency: Some(number(&job["read"]["clat_ns"]["percentile"]["50.000000"])? / 1e3),
        server: None,
        client: (whole - start).max(0.0),
    }))
}

/// Runs fio. Returns what it has printed, and nanoseconds of processor time that it took.
fn run(file: &Path, job: Job, how_long: &[String]) -> anyhow::Result<Option<(Value, f64)>> {
    let kind = if job.reads == Reads::Sequential { "read" } else { "randread" };
    let mut command = Command::new("fio");
    command
        .args(["--name=read", "--ioengine=io_uring", "--readonly"])
        .args(["--group_reporting", "--output-format=json", "--direct=1"])
        .args(["--norandommap", "--randrepeat=0", "--thread"])
        .arg(format!("--rw={kind}"))
        .arg(format!("--bs={}", job.reads.bytes()))
        .arg(format!("--filename={}", file.display()))
        .arg(format!("--iodepth={}", job.depth))
        .arg(format!("--numjobs={}", job.queues))
        .args(how_long);
    let before = children_time()?;
    let done = match command.stdin(Stdio::null()).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        done => done.context("cannot run fio")?,
    };
    ensure!(done.status.success(), "fio: {}", String::from_utf8_lossy(&done.stderr).trim());
    let time = children_time()? - before;
    let json = serde_json::from_slice(&done.stdout).context("what fio has printed")?;
    Ok(Some((json, time)))
}

/// Nanoseconds of processor time of the processes that this one has waited for. The kernel tells it in steps of
/// 10 ms.
fn children_time() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // cutime and cstime are the 16th and 17th field.
    stat_time(&stat, [13, 14])
}
