//! Lines about a user that were not logged are told, also if no line comes after them.
#![cfg(not(any(loom, shuttle)))]

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use vfiod_quota::{Ledger, Limits, Payer, User};

const LINES: u64 = 500;

/// Adds up what was told.
#[derive(Clone, Default)]
struct Told(Arc<AtomicU64>);

impl Visit for Told {
    fn record_u64(&mut self, field: &Field, value: u64) {
        assert_eq!(field.name(), "suppressed");
        self.0.fetch_add(value, Ordering::SeqCst);
    }

    fn record_debug(&mut self, _: &Field, _: &dyn Debug) {}
}

impl Subscriber for Told {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut self.clone());
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Logs about one user. Returns how many lines were logged, and said to be suppressed by these.
fn log(ledger: &Arc<Ledger>) -> u64 {
    let account = ledger.open("x").unwrap().account;
    let payer = Payer::new(account, User::Account(1));
    (0..LINES).filter_map(|_| payer.lines().pass(0)).map(|suppressed| 1 + suppressed).sum()
}

#[test]
fn suppressed_lines_of_a_user_are_told_before_the_end_or_when_what_is_kept_of_the_user_ends() {
    let told = Told::default();
    let _log = tracing::subscriber::set_default(told.clone());
    let ledger = Ledger::new(Limits::of_process(1));
    let logged = log(&ledger);
    ledger.log_suppressed();
    assert_eq!(logged + told.0.swap(0, Ordering::SeqCst), LINES);
    ledger.log_suppressed();
    assert_eq!(told.0.load(Ordering::SeqCst), 0, "once");

    let ledger = Ledger::new(Limits::of_process(1));
    let logged = log(&ledger);
    drop(ledger);
    assert_eq!(logged + told.0.load(Ordering::SeqCst), LINES);
}
