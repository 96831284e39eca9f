//! What clients can make the server write into its log.

use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use vfiod_core::OpenPolicy;
use vfiod_wire::Command;

use crate::rig::*;

/// Keeps the messages of all lines from INFO on.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

struct Line<'a>(&'a mut String);

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, "{}={value:?} ", field.name()).unwrap();
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = String::new();
        event.record(&mut Line(&mut line));
        self.0.lock().unwrap().push(line);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

impl Lines {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

#[test]
fn clients_that_connect_again_and_again_do_not_fill_the_log() {
    const CLIENTS: usize = 1000;
    /// Lines of a second: ends and refusals, as many as may be of each.
    const LINES: usize = 20;
    if !alone("log_lines::clients_that_connect_again_and_again_do_not_fill_the_log") {
        return;
    }
    let lines = Lines::default();
    tracing::subscriber::set_global_default(lines.clone()).unwrap();
    let rig = Rig::with(OpenPolicy::Single, server_options());
    let assert_few = |lines: &[String], since: Instant| {
        // On a slow machine clients come more slowly, too. Its first and last second may be parts.
        let most = LINES * (since.elapsed().as_secs() as usize + 2);
        assert!(lines.len() <= most, "{} lines", lines.len());
    };
    let start = Instant::now();
    for _ in 0..CLIENTS {
        let socket = rig.socket();
        socket.send(&version_message(), &[]).unwrap();
        // Refused where the machine stood still for as long as it waits for the last one's end.
        socket.receive_message().unwrap();
    }
    rig.wait_idle();
    let ended = lines.take();
    assert!(!ended.is_empty());
    assert_few(&ended, start);

    let _there = rig.client();
    let start = Instant::now();
    for _ in 0..CLIENTS {
        let socket = rig.socket();
        socket.send(&version_message(), &[]).unwrap();
        assert_eq!(reply_errno(&socket.receive_message().unwrap()), EINVAL);
    }
    let refused = lines.take();
    assert!(refused.iter().any(|line| line.contains("refused")), "{refused:?}");
    assert_few(&refused, start);

    let start = Instant::now();
    for _ in 0..CLIENTS {
        let socket = rig.socket();
        socket.send(&message(0, Command::DeviceReset, &[]), &[]).unwrap();
        assert_eq!(reply_errno(&socket.receive_message().unwrap()), EINVAL);
    }
    assert_few(&lines.take(), start);
}

#[test]
fn end_of_a_connection_says_how_many_of_its_refusals_were_not_logged() {
    const REFUSALS: u64 = 1000;
    if !alone("log_lines::end_of_a_connection_says_how_many_of_its_refusals_were_not_logged") {
        return;
    }
    let lines = Lines::default();
    tracing::subscriber::set_global_default(lines.clone()).unwrap();
    let rig = Rig::with(OpenPolicy::Single, server_options());
    let socket = negotiated(&rig);
    for _ in 0..REFUSALS {
        socket.send(&message(0, Command::DeviceGetInfo, &[]), &[]).unwrap();
        assert_eq!(reply_errno(&socket.receive_message().unwrap()), EINVAL);
    }
    drop(socket);
    rig.wait_idle();
    let lines = lines.take();
    let number = |line: &str, name: &str| {
        let mut fields = line.split(' ').filter_map(|field| field.split_once('='));
        fields.find(|(field, _)| *field == name).map(|(_, value)| value.parse::<u64>().unwrap())
    };
    let refused: Vec<_> = lines.iter().filter(|line| line.contains("message=refused")).collect();
    let suppressed: u64 = refused.iter().map(|line| number(line, "suppressed").unwrap()).sum();
    let told = refused.len() as u64 + suppressed;
    let end = lines.iter().find(|line| line.contains("connection ended")).unwrap();
    assert_eq!(number(end, "errors"), Some(REFUSALS), "{end}");
    assert_eq!(number(end, "refusals"), Some(REFUSALS - told), "{refused:?} {end}");
}
