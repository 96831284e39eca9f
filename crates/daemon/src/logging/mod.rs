//! Logs: structured, on standard error.
//!
//! What is logged is decided, first to last, by `--log`, the environment variable `VFIOD_LOG`,
//! the configuration file, the command's default. A filter is a level (`debug`) or a list of
//! levels by module (`info,vfiod_server=trace`), or for one device's messages
//! (`info,[message{device=edu0}]=trace`).
//!
//! Where standard error is the journal, each line begins with its priority, as `sd-daemon(3)` says.

mod journal;
mod queue;

use std::io::{self, Write};

use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};
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
    /// Checks the filter of the command line, else that of `VFIOD_LOG`, if there is one.
    ///
    /// # Errors
    /// [`UsageError`]: it cannot be read.
    pub fn check(&self) -> Result<(), UsageError> {
        self.filter(None, "off").map(drop)
    }

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
        let filter = parse(&self.filter(configured, default)?)?;
        let lines = lines(self.format.or(format).unwrap_or_default(), queue::Queue::get()?);
        let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
        Ok(())
    }
}

/// The FUSE library logs each request at debug, and warns of each that the view does not have, such as the
/// `ioctl` of `isatty`, which any local user can make. Only who names the library wants that.
fn parse(filter: &str) -> anyhow::Result<EnvFilter> {
    let parsed = EnvFilter::builder().parse(filter)?;
    Ok(if filter.contains("fuser") { parsed } else { parsed.add_directive("fuser=error".parse()?) })
}

/// Prints to standard error why the program fails.
pub(crate) fn print_error(text: &str) {
    // It may have a server's words.
    let mut text = crate::output::plain(text).as_bytes().to_vec();
    if journal::is_standard_error() {
        text = queue::prioritize(&text, journal::priority(tracing::Level::ERROR));
    }
    // Whoever closed standard error does not want to know.
    let _ = io::stderr().write_all(&text);
}

/// Formats events. Spans are there for filters only: what they say is in the events, too.
fn lines(format: LogFormat, queue: queue::Queue) -> impl Layer<Inner> {
    let journal = journal::is_standard_error();
    let writer = queue.with_priorities(journal);
    let layer = fmt::layer().with_writer(writer);
    let ansi = io::IsTerminal::is_terminal(&io::stderr());
    let layer = match format {
        // The journal has its own time.
        LogFormat::Text if journal => layer.without_time().with_ansi(false).boxed(),
        LogFormat::Text => layer.with_ansi(ansi).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    // No level of its own: the highest one that any layer names would count.
    layer.with_filter(filter_fn(|metadata| metadata.is_event()))
}

/// What the lines are put on.
type Inner = tracing_subscriber::layer::Layered<EnvFilter, Registry>;

#[cfg(test)]
mod tests {
    use tracing::Subscriber;
    use tracing::level_filters::LevelFilter;

    use super::*;

    #[test]
    fn warnings_of_the_fuse_library_are_for_who_names_it() {
        let warns = |filter: &str| {
            let registry = tracing_subscriber::registry().with(parse(filter).unwrap());
            tracing::subscriber::with_default(
                registry,
                || tracing::enabled!(target: "fuser", tracing::Level::WARN),
            )
        };
        assert!(!warns("info"));
        assert!(!warns("trace"));
        assert!(warns("info,fuser=debug"));
    }

    /// Whoever asks whether a level is on reads one number; it must say no where nobody wants it.
    #[test]
    fn trace_is_off_everywhere_unless_a_filter_asks_for_it() {
        let most = |filter: &str| {
            let filter = EnvFilter::builder().parse(filter).unwrap();
            let lines = lines(LogFormat::Json, queue::Queue::get().unwrap());
            tracing_subscriber::registry().with(filter).with(lines).max_level_hint()
        };
        assert_eq!(most("info"), Some(LevelFilter::INFO));
        assert_eq!(most("info,vfiod_core=debug"), Some(LevelFilter::DEBUG));
        assert_eq!(most("info,vfiod_server=trace"), Some(LevelFilter::TRACE));
        assert_eq!(most("info,[message{device=edu0}]=trace"), Some(LevelFilter::TRACE));
    }
}
