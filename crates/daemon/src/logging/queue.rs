//! Log lines on their way to standard error, through a queue and a thread of its own.
//!
//! Lines are logged with a device's or a set's lock held. Whoever reads standard error may be
//! slow, or have stopped: that must hold up the log only. A queue that is full loses lines, and
//! says how many.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use super::journal;

/// Lines that wait at most.
const CAPACITY: usize = 4096;
/// How long the thread sleeps after it has written: lines that come meanwhile are written
/// together, and nothing that logs wakes it.
const PAUSE: Duration = Duration::from_millis(2);
/// Bytes of lines that are written at once.
const BATCH: usize = 64 << 10;
/// How long the last lines have at the end of the process.
const FAREWELL: Duration = Duration::from_secs(1);

static QUEUE: OnceLock<Queue> = OnceLock::new();

enum Entry {
    Line(Vec<u8>),
    /// Everything before it is written when this is answered.
    Flush(Sender<()>),
}

/// The way into the queue.
#[derive(Clone)]
pub(super) struct Queue {
    sender: SyncSender<Entry>,
    lost: Arc<AtomicU64>,
    /// Whether lines begin with their priority.
    with_priorities: bool,
}

/// What takes one event.
pub(super) struct Writer<'a> {
    queue: &'a Queue,
    priority: Option<u8>,
}

impl Queue {
    /// The process's queue, started at the first call.
    pub(super) fn get() -> io::Result<Self> {
        if let Some(queue) = QUEUE.get() {
            return Ok(queue.clone());
        }
        let (sender, receiver) = mpsc::sync_channel(CAPACITY);
        let lost = Arc::new(AtomicU64::new(0));
        let queue = Self { sender, lost: lost.clone(), with_priorities: false };
        thread::Builder::new()
            .name("log".into())
            .spawn(move || write_all(&receiver, &lost, &mut io::stderr()))?;
        Ok(QUEUE.get_or_init(|| queue).clone())
    }

    /// The same queue; whether lines begin with their priority.
    pub(super) fn with_priorities(self, with_priorities: bool) -> Self {
        Self { with_priorities, ..self }
    }
}

/// Begins each line of an event with its priority: to the journal each is an entry of its own.
pub(super) fn prioritize(event: &[u8], priority: u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(event.len() + 3);
    for line in event.split_inclusive(|byte| *byte == b'\n') {
        out.extend_from_slice(format!("<{priority}>").as_bytes());
        out.extend_from_slice(line);
    }
    out
}

/// Waits, bounded, until what was logged is written.
pub fn finish() {
    let Some(queue) = QUEUE.get() else { return };
    let (sender, receiver) = mpsc::channel();
    // A full queue means a stuck reader: nothing to wait for.
    if queue.sender.try_send(Entry::Flush(sender)).is_ok() {
        let _ = receiver.recv_timeout(FAREWELL);
    }
}

fn write_all(entries: &Receiver<Entry>, lost: &AtomicU64, out: &mut impl Write) {
    let mut batch = Vec::new();
    while let Ok(first) = entries.recv() {
        for entry in std::iter::once(first).chain(entries.try_iter()) {
            match entry {
                Entry::Line(line) => {
                    batch.extend_from_slice(&line);
                    if batch.len() >= BATCH {
                        write_batch(&mut batch, lost, out);
                    }
                }
                Entry::Flush(done) => {
                    write_batch(&mut batch, lost, out);
                    let _ = done.send(());
                }
            }
        }
        write_batch(&mut batch, lost, out);
        thread::sleep(PAUSE);
    }
}

/// Writes what was collected, and how many lines were lost before.
fn write_batch(batch: &mut Vec<u8>, lost: &AtomicU64, out: &mut impl Write) {
    // Standard error that is gone is no reason to stop serving.
    let _ = out.write_all(batch);
    batch.clear();
    let lost = lost.swap(0, Ordering::Relaxed);
    if lost > 0 {
        let lost = format!("vfiod: {lost} log lines were lost: nobody read them in time\n");
        let _ = match journal::is_standard_error() {
            true => out.write_all(&prioritize(lost.as_bytes(), journal::priority(Level::WARN))),
            false => out.write_all(lost.as_bytes()),
        };
    }
}

impl Write for Writer<'_> {
    /// Takes one event as a whole, as the formatter hands it over.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = match self.priority {
            Some(priority) => prioritize(event, priority),
            None => event.to_vec(),
        };
        if self.queue.sender.try_send(Entry::Line(line)).is_err() {
            self.queue.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Writer<'a>;

    fn make_writer(&'a self) -> Writer<'a> {
        Writer { queue: self, priority: None }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Writer<'a> {
        let priority = self.with_priorities.then(|| journal::priority(*event.level()));
        Writer { queue: self, priority }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_loses_lines_and_says_so() {
        let (sender, receiver) = mpsc::sync_channel(2);
        let lost = Arc::new(AtomicU64::new(0));
        let queue = Queue { sender, lost: lost.clone(), with_priorities: false };
        for n in 0..5 {
            queue.make_writer().write_all(format!("{n}\n").as_bytes()).unwrap();
        }
        drop(queue);
        let mut out = Vec::new();
        write_all(&receiver, &lost, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "0\n1\nvfiod: 3 log lines were lost: nobody read them in time\n");
    }

    #[test]
    fn each_line_of_an_event_has_its_priority() {
        assert_eq!(prioritize(b"one\ntwo\n", 4), b"<4>one\n<4>two\n");
    }
}
