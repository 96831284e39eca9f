//! Logs: structured, on standard error.
//!
//! What is logged is decided, first to last, by `--log`, the environment variable `VFIOD_LOG`,
//! the configuration file, the command's default. A filter is a level (`debug`) or a list of
//! levels by module (`info,vfiod_server=trace`).

mod queue;

use std::io;

use tracing_subscriber::EnvFilter;
use vfiod_config::{LogFormat, UsageError, check_filter};

pub(crate) use self::queue::finish;

/// The environment variable with a filter.
pub(crate) const VARIABLE: &str = "VFIOD_LOG";

/// Starts logging. `configured` and `default` stand behind the command line and `VFIOD_LOG`.
///
/// # Errors
/// [`UsageError`] for a filter that cannot be read.
pub(crate) fn start(
    wanted: Option<&str>,
    format: LogFormat,
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
    check_filter(filter).map_err(|why| UsageError(format!("{place}: {why}")))?;
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
        LogFormat::Text => builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}
