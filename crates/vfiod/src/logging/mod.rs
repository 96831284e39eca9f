//! Logs: structured, on standard error.
//!
//! What is logged is decided, first to last, by `--log`, the environment variable `VFIOD_LOG`,
//! the configuration file, the command's default. A filter is a level (`debug`) or a list of
//! levels by module (`info,vfiod_server=trace`).

mod queue;

use std::io;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

pub(crate) use self::queue::finish;
use crate::Misuse;

/// The environment variable with a filter.
pub(crate) const VARIABLE: &str = "VFIOD_LOG";

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Checks a filter; the error says what is wrong with it.
pub(crate) fn check_filter(filter: &str) -> Result<(), String> {
    EnvFilter::builder()
        .parse(filter)
        .map(drop)
        .map_err(|error| format!("`{filter}` is no log filter: {error}"))
}

/// Starts logging. `configured` and `default` stand behind the command line and `VFIOD_LOG`.
///
/// # Errors
/// [`Misuse`] for a filter that cannot be read.
pub(crate) fn start(
    wanted: Option<&str>,
    format: Format,
    configured: Option<&str>,
    default: &str,
) -> anyhow::Result<()> {
    let environment = std::env::var(VARIABLE).ok().filter(|value| !value.is_empty());
    let (place, filter) = match (wanted, &environment, configured) {
        (Some(filter), _, _) => ("--log", filter),
        (None, Some(filter), _) => (VARIABLE, filter.as_str()),
        (None, None, Some(filter)) => ("log.level", filter),
        (None, None, None) => ("the default", default),
    };
    check_filter(filter).map_err(|why| Misuse(format!("{place}: {why}")))?;
    // The FUSE library tells of each request at debug; only whoever names it wants that.
    let filter = if filter.contains("fuser") {
        EnvFilter::builder().parse(filter)?
    } else {
        EnvFilter::builder().parse(filter)?.add_directive("fuser=warn".parse()?)
    };
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(queue::Queue::get()?);
    // A second start (tests in one process) keeps the first.
    let _ = match format {
        Format::Text => builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}
