//! Commands beside those of the daemon: `probe`, `bench`, `demo`, `capture`, `replay`.
//!
//! A program adds them to its [`vfiod_daemon::Daemon`], all or one by one:
//!
//! ```no_run
//! # use std::process::ExitCode;
//! fn main() -> ExitCode {
//!     let daemon = vfiod_daemon::Daemon::new().models(vfiod_devices::catalogue());
//!     vfiod_tools::all().into_iter().fold(daemon, vfiod_daemon::Daemon::tool).run()
//! }
//! ```

mod bench;
mod capture;
mod demo;
mod probe;
mod replay;

use vfiod_daemon::{Program, Run, Tool};

use self::bench::arguments::{Bench, BenchAttack, BenchFloor};
use self::capture::arguments::Capture;
use self::demo::arguments::{Demo, DemoClient};
use self::probe::arguments::Probe;
use self::replay::arguments::Replay;

/// Every tool. `bench` and `demo` run the program itself again for their other ends, so the hidden
/// commands for that come with them.
pub fn all() -> Vec<Tool> {
    vec![
        Tool::new::<Demo>(
            "demo",
            "Show it at work: serve two devices in one slot, drive them, print what happens",
        ),
        probe(),
        Tool::new::<Bench>(
            "bench",
            "Measure a server: round trips, DMA, interrupts, each with the bare socket's figure",
        ),
        capture(),
        replay(),
        Tool::new::<DemoClient>("demo-client", "").hidden(),
        Tool::new::<BenchFloor>("bench-floor", "").hidden(),
        Tool::new::<BenchAttack>("bench-attack", "").hidden(),
    ]
}

/// The tool that asks any vfio-user server what it serves.
pub fn probe() -> Tool {
    Tool::new::<Probe>(
        "probe",
        "Ask a vfio-user server what device it serves, and print it in lspci's manner",
    )
}

/// Plays any bytes as a captured session to a device of a model: they are refused, or replayed as far
/// as they go. For fuzzing.
#[doc(hidden)]
pub fn replay_hostile(model: &'static str, capture: &[u8]) {
    replay::play_hostile(model, capture);
}

/// The tool that sits between a client and a server, and records the session.
pub fn capture() -> Tool {
    Tool::new::<Capture>(
        "capture",
        "Sit between a client and a server, and write down the session; it contains guest data",
    )
}

/// The tool that plays a captured session to a device of one of the program's models.
pub fn replay() -> Tool {
    Tool::new::<Replay>("replay", "Play a captured session to a device, and report differences")
}

impl Run for Demo {
    fn run(&self, program: &Program<'_>) -> anyhow::Result<()> {
        program.logs.start(None, None, "error")?;
        demo::run(self)
    }
}

impl Run for DemoClient {
    fn run(&self, _program: &Program<'_>) -> anyhow::Result<()> {
        demo::run_client(self)
    }
}

impl Run for Probe {
    fn run(&self, _program: &Program<'_>) -> anyhow::Result<()> {
        probe::run(self)
    }
}

impl Run for Capture {
    fn run(&self, program: &Program<'_>) -> anyhow::Result<()> {
        program.logs.start(None, None, "warn")?;
        capture::run(self)
    }
}

impl Run for Replay {
    fn run(&self, program: &Program<'_>) -> anyhow::Result<()> {
        program.logs.start(None, None, "error")?;
        replay::run(&Replay { models: program.models.clone(), ..self.clone() })
    }
}

impl Run for Bench {
    fn run(&self, program: &Program<'_>) -> anyhow::Result<()> {
        program.logs.start(None, None, "error")?;
        bench::run(self)
    }
}

impl Run for BenchFloor {
    fn run(&self, _program: &Program<'_>) -> anyhow::Result<()> {
        bench::run_floor(self)
    }
}

impl Run for BenchAttack {
    fn run(&self, _program: &Program<'_>) -> anyhow::Result<()> {
        bench::run_attacker(self)
    }
}
