//! `vfiod bench --nvme`: reads through an NVMe controller, by the driver in user space.
//!
//! Server and client are processes of their own, and the processor time of each is told apart. With a file
//! behind the controller, fio reads the same file with io_uring in the same rounds; so may other servers.

mod deallocate;
mod fio;
mod idle;
mod job;
mod play;
mod target;

use std::path::Path;
use std::time::Duration;

use vfiod_daemon::output;

use self::job::{Figures, Job};
use self::target::Target;
use super::arguments::Bench;

/// Runs `vfiod bench --nvme`.
pub(super) fn run(directory: &Path, args: &Bench, poll: Option<Duration>) -> anyhow::Result<()> {
    if let Some(image) = &args.deallocate {
        let rounds = deallocate::measure(directory, args, poll, image)?;
        let text = || rounds.iter().map(deallocate::Delays::text).collect::<String>();
        return if args.json { output::print_json(&rounds) } else { output::print(&text()) };
    }
    if let Some(controllers) = args.idle {
        let idle = idle::measure(directory, args, poll, controllers as usize)?;
        return if args.json { output::print_json(&idle) } else { output::print(&idle.text()) };
    }
    let figures = measure(directory, args, poll)?;
    if args.json { output::print_json(&figures) } else { output::print(&job::text(&figures)) }
}

/// Measures all jobs in turns, `--rounds` times for `--time-ms` each.
fn measure(directory: &Path, args: &Bench, poll: Option<Duration>) -> anyhow::Result<Vec<Figures>> {
    let controllers = args.controllers.unwrap_or(1) as usize;
    let mut jobs = Job::of_one(args.file.is_some());
    if controllers > 1 {
        jobs.extend(Job::of_many(controllers));
    }
    jobs.retain(|job| args.only.as_ref().is_none_or(|only| job.name().contains(only.as_str())));
    let mut targets = vec![Target::own(directory, args, poll, controllers)?];
    for (name, socket) in &args.against {
        targets.push(Target::other(name, socket)?);
    }
    let budget = Duration::from_millis(args.time_ms);
    let mut rounds = vec![vec![Vec::new(); targets.len() + 1]; jobs.len()];
    for _ in 0..args.rounds {
        for (job, rounds) in jobs.iter().zip(&mut rounds) {
            for (target, rounds) in targets.iter().zip(&mut *rounds) {
                rounds.extend(target.play(*job, budget)?);
            }
            if let (Some(file), true) = (&args.file, fio::can(*job)) {
                rounds[targets.len()].extend(fio::play(file, *job, budget)?);
            }
        }
    }
    let names: Vec<_> = targets.iter().map(|target| target.name.clone()).collect();
    let names = names.into_iter().chain([Some("fio, io_uring".to_owned())]);
    let mut figures = Vec::new();
    for (job, rounds) in jobs.into_iter().zip(rounds) {
        for (name, rounds) in names.clone().zip(rounds) {
            figures.extend(Figures::new(job.name(), name, &rounds));
        }
    }
    Ok(figures)
}
