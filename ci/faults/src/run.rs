//! Runs the checks of one fault.

use std::fs::{self, File};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::list::{Check, Checker, Fault};
use crate::tree::Copy;

/// How long a check may take, in seconds. One that takes longer hangs, which is no way to find a
/// fault.
const LIMIT: &str = "600";

/// What `timeout` exits with then.
const TIMED_OUT: i32 = 124;

/// How many orders of threads a model check tries: ten times as many as in `ci/model-checks.sh`,
/// since a fault may show in few of them.
const ROUNDS: &str = "20000";

/// A check that found a fault.
pub(crate) struct Found {
    /// Its checker and name.
    pub(crate) check: String,
    /// The time for building and running it.
    pub(crate) time: Duration,
    /// The line of its output that says what it found.
    pub(crate) how: String,
}

/// Puts a fault in and runs its checks, all of which must find it; those that attack a daemon only with
/// `attacks`.
pub(crate) fn run(copy: &Copy, fault: &Fault, attacks: bool) -> Result<Vec<Found>> {
    copy.with(fault, || {
        let found = |check: &Check| {
            let start = Instant::now();
            let name = check.name();
            let how = find(copy, check).with_context(|| name.clone())?;
            Ok(Found { check: name, time: start.elapsed(), how })
        };
        fault.checks.iter().filter(|check| attacks || !check.is_attack).map(found).collect()
    })
}

fn find(copy: &Copy, check: &Check) -> Result<String> {
    let (built, output) = cargo(copy, check, &["--no-run"])?;
    ensure!(built.success(), "with the fault in it the code does not compile:\n{output}");
    let (status, output) = match &check.test {
        Some(test) => {
            let (status, output) = cargo(copy, check, &["--", "--exact", test])?;
            let there = output.contains("running 1 test");
            ensure!(there, "{} has no such test:\n{output}", check.package);
            (status, output)
        }
        None => cargo(copy, check, &[])?,
    };
    ensure!(!status.success(), "the check passed");
    match output.lines().find(|line| line.contains(&check.finds)) {
        Some(line) => Ok(line.trim().replace('|', "\\|")),
        None => bail!("it failed for another reason than `{}`:\n{output}", check.finds),
    }
}

fn cargo(copy: &Copy, check: &Check, rest: &[&str]) -> Result<(ExitStatus, String)> {
    let file = File::create(&copy.log)?;
    // `timeout` ends the test along with cargo.
    let mut command = Command::new("timeout");
    command
        .arg(LIMIT)
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
    ensure!(status.code() != Some(TIMED_OUT), "not over after {LIMIT} s");
    Ok((status, String::from_utf8_lossy(&fs::read(&copy.log)?).into_owned()))
}
