//! What is measured of a controller, and how its rounds are summed up.

use std::fmt::Write;

use serde::Serialize;
use vfiod_nvme_driver::{Doorbells, Waiting};

use crate::bench::figures::Spread;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Job {
    /// Controllers that are driven at the same time.
    pub(super) controllers: usize,
    /// Queues of each.
    pub(super) queues: usize,
    pub(super) depth: usize,
    pub(super) waiting: Waiting,
    pub(super) doorbells: Doorbells,
    pub(super) reads: Reads,
    /// Reads in a second; `None`: as many as there can be.
    pub(super) rate: Option<u32>,
}

/// What is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reads {
    /// 4 KiB at random places.
    Random,
    /// 128 KiB, one after the other.
    Sequential,
}

impl Reads {
    /// Bytes of a read.
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::Random => 4 << 10,
            Self::Sequential => 128 << 10,
        }
    }
}

const ONE: Job = Job {
    controllers: 1,
    queues: 1,
    depth: 1,
    waiting: Waiting::Polling,
    doorbells: Doorbells::Registers,
    reads: Reads::Random,
    rate: None,
};

impl Job {
    /// The jobs of one controller: all of them, or what an image is asked as well.
    pub(super) fn of_one(has_image: bool) -> Vec<Self> {
        let mut jobs = vec![
            ONE,
            Self { waiting: Waiting::Interrupts, ..ONE },
            Self { depth: 32, ..ONE },
            Self { doorbells: Doorbells::Shadow, ..ONE },
            Self { depth: 32, doorbells: Doorbells::Shadow, ..ONE },
            Self { depth: 32, waiting: Waiting::Interrupts, ..ONE },
            Self { depth: 32, queues: 8, ..ONE },
            Self { rate: Some(1000), ..ONE },
            Self { rate: Some(0), ..ONE },
        ];
        if has_image {
            jobs.push(Self { depth: 32, reads: Reads::Sequential, ..ONE });
        }
        jobs
    }

    /// The jobs of many controllers.
    pub(super) fn of_many(controllers: usize) -> Vec<Self> {
        [1, 32].map(|depth| Self { controllers, depth, ..ONE }).to_vec()
    }

    pub(super) fn name(self) -> String {
        let Self { controllers, queues, depth, waiting, doorbells, reads, rate } = self;
        let waiting = match (waiting, doorbells) {
            (Waiting::Interrupts, _) => "interrupts",
            (_, Doorbells::Registers) => "polling",
            (_, Doorbells::Shadow) => "shadow doorbells",
            (_, Doorbells::Mapped) => "mapped doorbells",
        };
        let queues = match controllers {
            1 => format!("{queues}"),
            _ => format!("{controllers} controllers, {queues}"),
        };
        let name = match rate {
            None => format!("{queues} × depth {depth}, {waiting}"),
            Some(0) => "enabled and idle".to_owned(),
            Some(rate) => format!("{rate} a second"),
        };
        let of = if reads == Reads::Sequential { "128 KiB, " } else { "" };
        of.to_owned() + &name
    }
}

/// One round of a job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Round {
    pub(super) commands: u64,
    pub(super) seconds: f64,
    /// Microseconds from submission to completion, the median; `None`: there was no command.
    pub(super) latency: Option<f64>,
    /// Processor time, nanoseconds; `None`: what is measured has no server.
    pub(super) server: Option<f64>,
    pub(super) client: f64,
}

impl Round {
    /// For each command; `None`: there was none.
    fn each(&self, time: f64) -> Option<f64> {
        (self.commands > 0).then(|| time / self.commands as f64)
    }
}

/// The rounds of a job, summed up.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    job: String,
    /// The server, where several are measured; fio.
    #[serde(skip_serializing_if = "Option::is_none")]
    of: Option<String>,
    /// Commands in a second.
    iops: Spread,
    /// Microseconds; the median of a round.
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<Spread>,
    /// Nanoseconds of processor time for a command.
    #[serde(skip_serializing_if = "Option::is_none")]
    server_cpu: Option<Spread>,
    /// Which part of a processor's time the server takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    server_share: Option<Spread>,
    /// Nanoseconds of processor time for a command; of fio the time of all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    client_cpu: Option<Spread>,
}

impl Figures {
    pub(super) fn new(job: String, of: Option<String>, rounds: &[Round]) -> Option<Self> {
        let spread = |of: &dyn Fn(&Round) -> Option<f64>| {
            Spread::of(&rounds.iter().filter_map(of).collect::<Vec<_>>())
        };
        Some(Self {
            job,
            of,
            iops: spread(&|round| Some(round.commands as f64 / round.seconds))?,
            latency: spread(&|round| round.latency),
            server_cpu: spread(&|round| round.each(round.server?)),
            server_share: spread(&|round| Some(round.server? / (round.seconds * 1e9))),
            client_cpu: spread(&|round| round.each(round.client)),
        })
    }

    fn line(&self) -> String {
        let Self { job, of, iops, latency, server_cpu, server_share, client_cpu } = self;
        let name = of.as_ref().map_or(job.clone(), |of| format!("  {of}"));
        let cell = |spread: &Option<Spread>, text: &dyn Fn(f64) -> String| {
            spread.map_or("–".to_owned(), |spread| text(spread.median))
        };
        let nanoseconds = |time: f64| format!("{time:.0} ns");
        format!(
            "{name:<34}{:>10.0}{:>12}{:>12}{:>9}{:>12}   {:.0} … {:.0}\n",
            iops.median,
            cell(latency, &|time| format!("{time:.2} µs")),
            cell(server_cpu, &nanoseconds),
            cell(server_share, &|share| format!("{:.1} %", 100.0 * share)),
            cell(client_cpu, &nanoseconds),
            iops.min,
            iops.max
        )
    }
}

/// A table for people.
pub(super) fn text(figures: &[Figures]) -> String {
    let mut text = format!(
        "{:<34}{:>10}{:>12}{:>12}{:>9}{:>12}   {}\n",
        "reads of 4 KiB",
        "a second",
        "latency",
        "server CPU",
        "of a CPU",
        "client CPU",
        "a second, min … max"
    );
    for of_job in figures {
        let _ = write!(text, "{}", of_job.line());
    }
    text
}
