//! Shows that the tests find faults: applies the entries of `ci/faults.toml`, one at a time, to a
//! copy of the tree, and expects the checks named there to fail for the reason named there.
//! CONTRIBUTING.md says how to add one.

mod choose;
mod list;
mod run;
mod tree;

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use clap::{Args, Parser, Subcommand};

use crate::choose::Part;
use crate::list::Fault;
use crate::run::{Found, Limits};

#[derive(Parser)]
#[command(name = "faults", about = "Show that the tests find deliberate faults")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the faults.
    List,
    /// Check that every old text is in its file exactly once.
    Verify,
    /// Apply faults, one at a time, and check that the tests find them.
    Run {
        #[command(flatten)]
        choice: Choice,
        /// Seconds that a test may take; its build may take longer.
        #[arg(long, value_name = "SECONDS", default_value_t = 600)]
        limit: u32,
    },
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Choice {
    /// These faults.
    names: Vec<String>,
    /// All faults.
    #[arg(long)]
    all: bool,
    /// One of several parts of all faults: `2/4` is the second quarter.
    #[arg(long, value_name = "PART/PARTS")]
    part: Option<Part>,
    /// Four faults, chosen by this text (the hash of a commit), without checks that attack a daemon.
    #[arg(long, value_name = "SEED")]
    four: Option<String>,
}

fn main() -> ExitCode {
    match execute(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> Result<()> {
    // This crate is ci/faults of the tree.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("has two parents");
    let faults = list::read(root)?;
    match command {
        Command::List => {
            for fault in &faults {
                println!("{:36} {:12} {}", fault.name, fault.package, fault.what);
            }
            Ok(())
        }
        Command::Verify => {
            verify(root, &faults)?;
            println!("{} faults match their files", faults.len());
            Ok(())
        }
        Command::Run { choice, limit } => {
            verify(root, &faults)?;
            let limits = Limits { attacks: choice.four.is_none(), seconds: limit };
            run_all(root, chosen(&faults, &choice)?, limits)
        }
    }
}

fn verify(root: &Path, faults: &[Fault]) -> Result<()> {
    let problems = list::mismatches(root, faults);
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(())
}

fn chosen<'a>(faults: &'a [Fault], choice: &Choice) -> Result<Vec<&'a Fault>> {
    if choice.all {
        return Ok(faults.iter().collect());
    }
    if let Some(part) = choice.part {
        return Ok(faults.iter().filter(|fault| part.has(&fault.name)).collect());
    }
    if let Some(seed) = &choice.four {
        let quick = |fault: &&Fault| fault.checks.iter().any(|check| !check.is_attack);
        return Ok(choose::by_seed(faults.iter().filter(quick), seed, 4));
    }
    let find = |name: &String| match faults.iter().find(|fault| fault.name == *name) {
        Some(fault) => Ok(fault),
        None => bail!("ci/faults.toml has no fault `{name}`; `list` shows them all"),
    };
    choice.names.iter().map(find).collect()
}

/// Runs the checks of faults.
fn run_all(root: &Path, mut faults: Vec<&Fault>, limits: Limits) -> Result<()> {
    choose::by_build(&mut faults);
    let copy = tree::Copy::of(root)?;
    let mut missed = Vec::new();
    let start = Instant::now();
    println!("| fault | crate | check | s | how it was found |\n| --- | --- | --- | ---: | --- |");
    for fault in &faults {
        match run::run(&copy, fault, limits) {
            Ok(found) => {
                for Found { check, time, how } in found {
                    let (name, time) = (&fault.name, time.as_secs());
                    println!("| {name} | {} | {check} | {time} | {how} |", fault.package);
                }
            }
            Err(error) => {
                println!("| {} | {} | | | NOT FOUND |", fault.name, fault.package);
                eprintln!("{}: {error:#}", fault.name);
                missed.push(fault.name.as_str());
            }
        }
    }
    let (found, seconds) = (faults.len() - missed.len(), start.elapsed().as_secs());
    println!("\n{found} of {} faults found in {seconds} s", faults.len());
    ensure!(missed.is_empty(), "not found: {}", missed.join(", "));
    Ok(())
}
