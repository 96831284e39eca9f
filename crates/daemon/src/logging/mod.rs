//! Logs: structured, on standard error.
//!
//! What is logged is decided, first to last, by `--log`, the environment variable `VFIOD_LOG`,
//! the configuration file, the command's default. A filter is a level (`debug`) or a list of
//! levels by module (`info,vfiod_server=trace`).

mod queue;

use std::io;

use tracing_subscriber::EnvFilter;
use vfiod_config::{LogFormat, UsageError, check_filter};

pub use self::queue::finish;

/// The environment variable with a filter.
pub const VARIABLE: &str = "VFIOD_LOG";

/// What the command line asks of the log.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// A filter: a level, or levels by module.
    pub filter: Option<String>,
    /// How a log line looks.
    pub format: Option<LogFormat>,
}

impl Wanted {
    /// The filter: that of the command line, else `VFIOD_LOG`, else of the configuration, else
    /// `default`.
    ///
    /// # Errors
    /// [`UsageError`]: it cannot be read.
    pub fn filter(&self, configured: Option<&str>, default: &str) -> Result<String, UsageError> {
        let environment = std::env::var(VARIABLE).ok().filter(|value| !value.is_empty());
        let (place, filter) = match (&self.filter, &environment, configured) {
            (Some(filter), _, _) => ("--log", filter.as_str()),
            (None, Some(filter), _) => (VARIABLE, filter.as_str()),
            (None, None, Some(filter)) => ("log.level", filter),
            (None, None, None) => ("the default", default),
        };
        check_filter(filter).map_err(|why| UsageError(format!("{place}: {why}")))?;
        Ok(filter.to_owned())
    }

    /// Starts logging with the filter of [`Wanted::filter`]. A second start in one process keeps the
    /// first.
    ///
    /// # Errors
    /// As [`Wanted::filter`].
    pub fn start(
        &self,
        configured: Option<&str>,
        format: Option<LogFormat>,
        default: &str,
    ) -> anyhow::Result<()> {
        let filter = &self.filter(configured, default)?;
        // The FUSE library logs each request at debug; only who names it wants that.
        let filter = if filter.contains("fuser") {
            EnvFilter::builder().parse(filter)?
        } else {
            EnvFilter::builder().parse(filter)?.add_directive("fuser=warn".parse()?)
        };
        let builder =
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(queue::Queue::get()?);
        let _ = match self.format.or(format).unwrap_or_default() {
            LogFormat::Text => {
                builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).try_init()
            }
            LogFormat::Json => builder.json().flatten_event(true).try_init(),
        };
        Ok(())
    }
}
