//! Runs the checks of one fault.

use std::fs::{self, File};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::list::{Check, Checker, Fault};
use crate::tree::Copy;

/// What `timeout` exits with then; with the last one it had to kill, itself included.
const TIMED_OUT: [Option<i32>; 3] = [Some(124), Some(137), None];

/// How many orders of threads a model check tries: ten times as many as in `ci/model-checks.sh`,
/// since a fault may show in few of them.
const ROUNDS: &str = "20000";

/// What checks are run, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Whether those are run, too, that attack a daemon.
    pub(crate) attacks: bool,
    /// How long a test may take. One that takes longer hangs, which is no way to find a fault.
    pub(crate) seconds: u32,
}

/// A check that found a fault.
pub(crate) struct Found {
    /// Its checker and name.
    pub(crate) check: String,
    /// The time for building and running it.
    pub(crate) time: Duration,
    /// The line of its output that says what it found.
    pub(crate) how: String,
}

/// Puts a fault in and runs its checks, all of which must find it.
pub(crate) fn run(copy: &Copy, fault: &Fault, limits: Limits) -> Result<Vec<Found>> {
    copy.with(fault, || {
        let found = |check: &Check| {
            let start = Instant::now();
            let name = check.name();
            let how = find(copy, check, limits).with_context(|| name.clone())?;
            Ok(Found { check: name, time: start.elapsed(), how })
        };
        let checks = fault.checks.iter().filter(|check| limits.attacks || !check.is_attack);
        checks.map(found).collect()
    })
}

fn find(copy: &Copy, check: &Check, limits: Limits) -> Result<String> {
    // How long a build takes depends on what else the machine does.
    let (built, output) = cargo(copy, check, None, &["--no-run"])?;
    ensure!(built.success(), "with the fault in it the code does not compile:\n{output}");
    let limit = Some(limits.seconds);
    let (status, output) = match &check.test {
        Some(test) => {
            let (status, output) = cargo(copy, check, limit, &["--", "--exact", test])?;
            let there = output.contains("running 1 test");
            ensure!(there, "{} has no such test:\n{output}", check.package);
            (status, output)
        }
        None => cargo(copy, check, limit, &[])?,
    };
    ensure!(!status.success(), "the check passed");
    // The name of a test that fails is in the output whatever the reason.
    let name = check.test.as_deref().unwrap_or("\n");
    match output.lines().find(|line| line.replace(name, "").contains(&check.finds)) {
        Some(line) => Ok(line.trim().replace('|', "\\|")),
        None => bail!("it failed for another reason than `{}`:\n{output}", check.finds),
    }
}

/// Runs `cargo test`, for `limit` seconds at most.
fn cargo(
    copy: &Copy,
    check: &Check,
    limit: Option<u32>,
    rest: &[&str],
) -> Result<(ExitStatus, String)> {
    let file = File::create(&copy.log)?;
    // `timeout` ends the test along with cargo, and its processes that do not end by themselves; 0 is no
    // limit.
    let limit = limit.unwrap_or(0);
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=10", &limit.to_string()])
        .arg(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        // The tests of a model that is not in every build, too.
        .args(["test", "--quiet", "--locked", "--all-features", "--package", &check.package])
        .args(match &check.target {
            None => vec!["--lib"],
            Some(target) => vec!["--test", target.as_str()],
        })
        .args(rest)
        .current_dir(&copy.root)
        .env("CARGO_TARGET_DIR", copy.target(check.checker))
        // A fault changes a few lines of one crate.
        .env("CARGO_INCREMENTAL", "1")
        // Nobody debugs it.
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("RUST_BACKTRACE", "0")
        .env("VFIOD_MODEL_ROUNDS", ROUNDS)
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    match check.checker {
        Checker::Plain => command.env_remove("RUSTFLAGS"),
        checker => command.env("RUSTFLAGS", format!("--cfg {}", checker.name())),
    };
    let status = command.status().context("cannot run `timeout` (coreutils)")?;
    ensure!(!TIMED_OUT.contains(&status.code()), "not over after {limit} s");
    Ok((status, String::from_utf8_lossy(&fs::read(&copy.log)?).into_owned()))
}
