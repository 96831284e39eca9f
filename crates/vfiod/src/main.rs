//! `vfiod`: software devices for virtual machines, served over vfio-user.
//!
//! The command line is in [`cli`]; each command is a module of its name, but those that ask a
//! running daemon, which are in [`manage`]. Exit codes: 0 when all went well, 1 when something
//! failed, 2 for a mistake on the command line or in a configuration file, 3 to 6 for what a
//! daemon refuses ([`control::client::Failure`]).

mod bench;
mod cli;
mod control;
mod definitions;
mod demo;
mod generate;
mod inherited;
mod logging;
mod manage;
mod manager;
mod models;
mod notify;
mod output;
mod probe;
mod serve;
mod signals;
mod sysfs;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use vfiod_config::{LoadError, UsageError};

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    // A shell that asks for completions (`vfiod completions`).
    clap_complete::CompleteEnv::with_factory(Cli::command).complete();
    let cli = Cli::parse();
    let result = run(cli);
    logging::finish();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let log = cli.log.as_deref();
    match cli.command {
        Command::Manage(command) => manage::run(command),
        Command::Serve(args) => serve::run(&args, log, cli.log_format),
        Command::Probe(args) => probe::run(&args),
        Command::Devices { json } => models::list(&vfiod_devices::catalogue(), json),
        Command::Demo(args) => {
            logging::start(log, cli.log_format.unwrap_or_default(), None, "error")?;
            demo::run(&args)
        }
        Command::DemoClient(args) => demo::run_client(&args),
        Command::Bench(args) => {
            logging::start(log, cli.log_format.unwrap_or_default(), None, "error")?;
            bench::run(&args)
        }
        Command::BenchFloor(args) => bench::run_floor(&args),
        Command::Completions { shell } => generate::completions(shell),
        Command::Openapi => output::print_json(&control::openapi()),
        Command::Man { directory } => generate::man_pages(&directory),
    }
}

fn report(error: &anyhow::Error) -> ExitCode {
    if error.is::<output::ReaderGone>() {
        // `vfiod probe … | head`: the reader has seen enough.
        return ExitCode::SUCCESS;
    }
    if let Some(LoadError::Wrong(problems)) = error.downcast_ref() {
        eprint!("{problems}");
        return ExitCode::from(2);
    }
    eprintln!("vfiod: {error:#}");
    if let Some(failure) = error.downcast_ref::<control::client::Failure>() {
        return ExitCode::from(failure.exit_code());
    }
    if error.is::<UsageError>() { ExitCode::from(2) } else { ExitCode::FAILURE }
}
