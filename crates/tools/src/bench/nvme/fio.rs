//! The same reads by fio, of the file itself.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;
use vfiod_nvme_driver::{Doorbells, Waiting};

use super::job::{Job, Reads, Round};

/// Whether fio can do what a job does.
pub(super) fn can(job: Job) -> bool {
    let is_plain = job.waiting == Waiting::Polling && job.doorbells == Doorbells::Registers;
    is_plain && job.rate.is_none() && job.controllers == 1
}

/// Lets fio read the file as the job does; `None`: it is not installed.
pub(super) fn play(file: &Path, job: Job, budget: Duration) -> anyhow::Result<Option<Round>> {
    let milliseconds = budget.as_millis();
    let kind = if job.reads == Reads::Sequential { "read" } else { "randread" };
    let mut command = Command::new("fio");
    command
        .args(["--name=read", "--ioengine=io_uring", "--time_based", "--readonly"])
        .args(["--group_reporting", "--output-format=json", "--direct=1"])
        .args(["--norandommap", "--randrepeat=0", "--thread"])
        .arg(format!("--rw={kind}"))
        .arg(format!("--bs={}", job.reads.bytes()))
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
        latency: Some(number(&job["read"]["clat_ns"]["percentile"]["50.000000"])? / 1e3),
        server: None,
        client: busy * seconds_of_jobs * 1e9,
    }))
}
