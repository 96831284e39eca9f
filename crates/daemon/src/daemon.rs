//! The program: its command line, put together, and its exit codes.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::{ArgMatches, Args, FromArgMatches};
use vfiod_config::{
    ConfiguredModel, ConfiguredParent, LoadError, Models, OperatedModel, UsageError,
};
use vfiod_control::client::Failure;

use crate::cli::{self, Cli, Command};
use crate::holder::{self, ServerFailed};
use crate::{confine, generate, logging, manage, models, output, serve, signals};

/// A daemon that serves these models, with its command line.
///
/// ```no_run
/// # use vfiod_config::{ConfiguredModel, NoOptions};
/// # use vfiod_daemon::Daemon;
/// # fn main() -> std::process::ExitCode {
/// Daemon::new().models(vfiod_devices::catalogue()).run()
/// # }
/// ```
#[derive(Debug)]
#[must_use]
pub struct Daemon {
    name: String,
    version: String,
    models: Models,
    tools: Vec<Tool>,
}

/// A command that a program adds to those of the daemon.
#[derive(Debug)]
pub struct Tool {
    command: clap::Command,
    run: fn(&ArgMatches, &Program<'_>) -> anyhow::Result<()>,
}

/// The program that a tool is part of.
#[derive(Debug)]
pub struct Program<'a> {
    /// What the command line says about logs.
    pub logs: &'a logging::Wanted,
    /// The models that the program serves.
    pub models: &'a Models,
}

/// What a tool does: its arguments and a function.
pub trait Run: Args {
    /// Runs the tool.
    ///
    /// # Errors
    /// [`UsageError`] ends the program with code 2, every other error with code 1.
    fn run(&self, program: &Program<'_>) -> anyhow::Result<()>;
}

impl Tool {
    /// A command of this name. `about` is its line in the list of commands.
    pub fn new<T: Run>(name: &'static str, about: &'static str) -> Self {
        fn run<T: Run>(matches: &ArgMatches, program: &Program<'_>) -> anyhow::Result<()> {
            T::from_arg_matches(matches)?.run(program)
        }
        let command = T::augment_args(clap::Command::new(name)).about(about).long_about(None);
        Self { command, run: run::<T> }
    }

    /// Leaves the command out of the list of commands.
    #[must_use]
    pub fn hidden(mut self) -> Self {
        self.command = self.command.hide(true);
        self
    }
}

impl Default for Daemon {
    fn default() -> Self {
        Self::new()
    }
}

impl Daemon {
    /// A daemon without a model, under the name that the program was called by.
    pub fn new() -> Self {
        let called = std::env::args_os().next().unwrap_or_default();
        let name = Path::new(&called).file_name().and_then(|name| name.to_str());
        Self {
            name: name.unwrap_or("vfiod").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            models: Models::new(),
            tools: Vec::new(),
        }
    }

    /// Sets the program's name, for help, man pages and completions.
    pub fn name(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// Sets the program's version, usually `env!("CARGO_PKG_VERSION")`.
    pub fn version(self, version: &str) -> Self {
        Self { version: version.to_owned(), ..self }
    }

    /// Serves every model and parent of a table, instead of those named before.
    pub fn models(self, models: Models) -> Self {
        Self { models, ..self }
    }

    /// Serves a model under a name.
    pub fn model<M: ConfiguredModel>(self, name: &str) -> Self {
        Self { models: self.models.model::<M>(name), ..self }
    }

    /// Serves a model with operations under a name.
    pub fn operated<M: OperatedModel>(self, name: &str) -> Self {
        Self { models: self.models.operated::<M>(name), ..self }
    }

    /// Serves a parent of mediated devices under a name.
    pub fn parent<P: ConfiguredParent>(self, name: &str) -> Self {
        Self { models: self.models.parent::<P>(name), ..self }
    }

    /// Adds a command.
    pub fn tool(mut self, tool: Tool) -> Self {
        self.tools.push(tool);
        self
    }

    /// Runs the program with the arguments of the process, and returns its exit code: 0 all went
    /// well, 1 something failed, 2 a mistake on the command line or in a configuration file, 3 to
    /// 6 what a daemon refuses ([`Failure::exit_code`]).
    pub fn run(self) -> ExitCode {
        let command = self.command();
        let factory = command.clone();
        // A shell that asks for completions.
        clap_complete::CompleteEnv::with_factory(move || factory.clone()).complete();
        let matches = command.get_matches();
        let result = self.dispatch(&matches);
        logging::finish();
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => self.report(&error),
        }
    }

    fn command(&self) -> clap::Command {
        let tools = self.tools.iter().map(|tool| tool.command.clone());
        cli::command(&self.name, &self.version).subcommands(tools)
    }

    fn dispatch(&self, matches: &ArgMatches) -> anyhow::Result<()> {
        signals::outlive_file_size().context("cannot catch SIGXFSZ")?;
        let logs = logging::Wanted {
            filter: matches.get_one("log").cloned(),
            format: matches.get_one("log_format").copied(),
        };
        // Also where nothing is logged: a mistake in it is one of the command line.
        logs.check()?;
        if let Some((name, matches)) = matches.subcommand()
            && let Some(tool) = self.tools.iter().find(|tool| tool.command.get_name() == name)
        {
            return (tool.run)(matches, &Program { logs: &logs, models: &self.models });
        }
        match Cli::from_arg_matches(matches)?.command {
            Command::Manage(command) => manage::run(command),
            Command::Serve(args) => serve::run(&args, &self.models, &logs, &self.name),
            Command::Holder(args) => holder::run(&args, self.command(), &logs),
            Command::SandboxHelper(args) => confine::serve_as_helper(&args),
            Command::Devices { json } => models::list(&self.models, json),
            Command::Completions { shell } => generate::completions(shell, &self.name),
            Command::Openapi => output::print_json(&vfiod_control::openapi(&self.models)),
            Command::Man { directory } => {
                generate::man_pages(self.command(), &self.models, &directory)
            }
        }
    }

    fn report(&self, error: &anyhow::Error) -> ExitCode {
        if error.is::<output::ReaderGone>() {
            // `probe … | head`: the reader has seen enough.
            return ExitCode::SUCCESS;
        }
        if let Some(ServerFailed(status)) = error.downcast_ref() {
            return ExitCode::from(*status);
        }
        if let Some(LoadError::Wrong(problems)) = error.downcast_ref() {
            logging::print_error(&problems.to_string());
            return ExitCode::from(2);
        }
        logging::print_error(&format!("{}: {error:#}\n", self.name));
        if let Some(failure) = error.downcast_ref::<Failure>() {
            return ExitCode::from(failure.exit_code());
        }
        let mistake = error.is::<LoadError>() || error.is::<UsageError>();
        if mistake { ExitCode::from(2) } else { ExitCode::FAILURE }
    }
}
