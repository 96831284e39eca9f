//! What is logged as an error.

use std::fmt::{Debug, Write as _};
use std::sync::{Mutex, Once};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

/// Most messages that are kept.
const KEPT: usize = 16;

static ERRORS: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Errors;

/// The text of an event: its message, and its fields.
#[derive(Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.0, "{}={value:?} ", field.name());
    }
}

impl<S: Subscriber> Layer<S> for Errors {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        // Of warnings the text is made, too: it may show a bug of its own.
        let mut text = Text::default();
        event.record(&mut text);
        if *event.metadata().level() == Level::ERROR {
            let mut errors = ERRORS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if errors.len() < KEPT {
                errors.push(text.0);
            }
        }
    }
}

/// Collects errors of this process from now on.
pub(crate) fn collect() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let layers = tracing_subscriber::registry().with(Errors.with_filter(LevelFilter::WARN));
        tracing::subscriber::set_global_default(layers).expect("nothing else collects the log");
    });
}

/// What was logged since the last time.
pub(crate) fn take() -> Vec<String> {
    std::mem::take(&mut ERRORS.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
}
