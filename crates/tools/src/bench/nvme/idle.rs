//! What controllers cost that have a driver and nothing to do.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use vfiod_nvme_driver::{Controller, Doorbells, Queue, Waiting};

use super::play::{connect, server_time};
use super::target::Target;
use crate::bench::arguments::Bench;
use crate::bench::idle::{Taken, taken};

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct Idle {
    controllers: usize,
    /// Nobody is connected.
    served: Taken,
    one_enabled: Taken,
    all_enabled: Taken,
    /// For each further controller that is enabled, with an I/O queue.
    descriptors_each: f64,
    /// For each further controller that is enabled, resident memory in KiB.
    resident_kib_each: f64,
    /// Which part of a processor's time the daemon takes while all are enabled.
    share: f64,
}

impl Idle {
    /// For people.
    pub(super) fn text(&self) -> String {
        let Self { controllers, served, one_enabled, all_enabled, .. } = self;
        let line = |name: String, taken: &Taken| {
            let Taken { threads, descriptors, resident_kib } = taken;
            format!("{name:<28}{threads:>10}{descriptors:>14}{resident_kib:>10}\n")
        };
        format!(
            "{:<28}{:>10}{:>14}{:>10}\n{}{}{}each further: {:.2} descriptors, {:.1} KiB\n\
             all enabled and idle: {:.3} % of a CPU\n",
            "idle NVMe controllers",
            "threads",
            "descriptors",
            "KiB",
            line(format!("{controllers} served"), served),
            line(format!("{controllers} served, 1 enabled"), one_enabled),
            line(format!("{controllers} enabled"), all_enabled),
            self.descriptors_each,
            self.resident_kib_each,
            100.0 * self.share,
        )
    }
}

/// Serves so many controllers, enables them, and looks at what that takes.
pub(super) fn measure(
    directory: &Path,
    args: &Bench,
    poll: Option<Duration>,
    controllers: usize,
) -> anyhow::Result<Idle> {
    let target = Target::own(directory, args, poll, controllers)?;
    let mut driven = Vec::new();
    let served = taken(target.pid())?;
    driven.push(enable(&target.sockets()[0])?);
    let one_enabled = taken(target.pid())?;
    for socket in &target.sockets()[1..] {
        driven.push(enable(socket)?);
    }
    // What enabling them has begun is over.
    std::thread::sleep(Duration::from_secs(1));
    let all_enabled = taken(target.pid())?;
    let (before, start) = (server_time(target.pid())?, Instant::now());
    std::thread::sleep(Duration::from_secs(args.seconds));
    let used = server_time(target.pid())? - before;
    let share = used / start.elapsed().as_nanos() as f64;
    let each = |of: fn(&Taken) -> u64| {
        let more = of(&all_enabled) as f64 - of(&one_enabled) as f64;
        more / controllers.saturating_sub(1).max(1) as f64
    };
    let (descriptors_each, resident_kib_each) =
        (each(|taken| taken.descriptors), each(|taken| taken.resident_kib));
    driven.into_iter().try_for_each(|(controller, _queue)| controller.close())?;
    Ok(Idle {
        controllers,
        served,
        one_enabled,
        all_enabled,
        descriptors_each,
        resident_kib_each,
        share,
    })
}

fn enable(socket: &Path) -> anyhow::Result<(Controller, Queue)> {
    let mut controller = connect(socket, Doorbells::Registers)?;
    let queue = controller.create_queue(33, Waiting::Interrupts)?;
    Ok((controller, queue))
}
