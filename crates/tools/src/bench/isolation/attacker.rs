//! The process that attacks.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::super::own;
use super::attack::Attack;
use super::attacks::{self, Lane};
use super::stage::Stage;

/// How long a lane may fail before it has succeeded once.
const PATIENCE: Duration = Duration::from_secs(60);
const READY: &str = "ready";

/// Arguments of the process that attacks.
#[derive(Debug, Args)]
pub(crate) struct BenchAttack {
    /// What to do.
    #[arg(value_enum)]
    pub attack: Attack,
    /// Where the sockets of the attacked daemon are.
    pub directory: PathBuf,
}

/// An attack that goes on in another process.
pub(super) struct Attacker {
    child: Child,
    /// Closed to end it.
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Attacker {
    /// Starts an attack, and waits until all of it is under way.
    pub(super) fn start(attack: Attack, stage: &Stage) -> anyhow::Result<Self> {
        let mut command = own()?;
        command.arg("bench-attack").arg(attack.name()).arg(stage.directory());
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.context("cannot start the process that attacks")?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("the attacker has no output")?;
        let mut attacker = Self { child, stdin, stdout: BufReader::new(stdout) };
        let mut line = String::new();
        attacker.stdout.read_line(&mut line)?;
        ensure!(line.trim() == READY, "the attack could not be made (see above)");
        Ok(attacker)
    }

    /// Ends it, amid what it does: how often it was made.
    pub(super) fn stop(mut self) -> anyhow::Result<u64> {
        drop(self.stdin.take());
        let mut text = String::new();
        self.stdout.read_to_string(&mut text)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the process that attacks ended with {status}");
        text.trim().parse().context("the attacker does not say how often it attacked")
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the process that attacks, until its input ends.
pub(crate) fn run(args: &BenchAttack) -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit })
        .context("cannot raise the limit of descriptors")?;
    let lanes = attacks::lanes(args.attack, &args.directory)?;
    let rounds = Arc::new(AtomicU64::new(0));
    let beginning = Arc::new(AtomicUsize::new(lanes.len()));
    for (number, lane) in lanes.into_iter().enumerate() {
        let (rounds, beginning) = (rounds.clone(), beginning.clone());
        thread::Builder::new()
            .name(format!("attack-{number}"))
            .spawn(move || {
                if let Err(error) = attack(lane, &rounds, &beginning) {
                    // The other end says which attack it was.
                    let _ = writeln!(std::io::stderr(), "lane {number}: {error:#}");
                    std::process::exit(1);
                }
            })
            .context("cannot start a thread")?;
    }
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", rounds.load(Ordering::Relaxed))?;
    out.flush()?;
    // What is under way ends as with a client that is killed.
    std::process::exit(0);
}

/// Repeats a lane. A round that fails is one more way to attack, once the first one has succeeded.
fn attack(mut lane: Lane, rounds: &AtomicU64, beginning: &AtomicUsize) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        match lane() {
            Ok(()) => {
                rounds.fetch_add(1, Ordering::Relaxed);
                break;
            }
            Err(error) if start.elapsed() > PATIENCE => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
    if beginning.fetch_sub(1, Ordering::AcqRel) == 1 {
        let mut out = std::io::stdout().lock();
        if writeln!(out, "{READY}").and_then(|()| out.flush()).is_err() {
            bail!("nobody waits for the attack");
        }
    }
    loop {
        match lane() {
            Ok(()) => _ = rounds.fetch_add(1, Ordering::Relaxed),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}
