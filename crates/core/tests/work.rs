//! A device's work on real threads: it is stopped and resumed again and again while doorbells are
//! rung, and none of them is lost.
#![cfg(not(any(shuttle, loom)))]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use vfiod_core::work::{Close, Rings, Task, Work, WorkLimits};
use vfiod_tasks::{Ring, Runtime, Workers};

const BELLS: usize = 4;
/// The last doorbell reaches a data path, the others tasks.
const DATA_PATH: usize = BELLS - 1;
const ROUNDS: usize = 300;
const LONG: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Seen {
    inside: AtomicUsize,
    quiesced: AtomicBool,
    handled: [AtomicU64; BELLS],
}

impl Seen {
    /// Handles a ring of a doorbell.
    fn handle(&self, bell: usize, ring: Ring) {
        self.inside.fetch_add(1, SeqCst);
        assert!(!self.quiesced.load(SeqCst), "work while the device is quiesced");
        let value = ring.value.expect("each ring has a value");
        self.handled[bell].fetch_max(value, SeqCst);
        self.inside.fetch_sub(1, SeqCst);
    }
}

fn start_tasks(work: &Work, seen: &Arc<Seen>) {
    for bell in 0..DATA_PATH {
        let seen = seen.clone();
        let make = |task: Task| async move {
            loop {
                let ring = task.bell(bell).await;
                // Half of the time it is stopped between taking a ring and handling it.
                if ring.value.is_some_and(|value| value % 2 == 0) {
                    task.sleep(Duration::from_micros(20)).await;
                }
                seen.handle(bell, ring);
            }
        };
        work.spawn(&format!("bell {bell}"), make).expect("starts");
    }
}

fn stop_and_resume(workers: usize) {
    let runtime = Runtime::new().expect("starts");
    let _workers = (workers > 0).then(|| Workers::start(&runtime, workers).expect("starts"));
    let limits = WorkLimits { tasks: BELLS, bells: BELLS };
    let on_panic = Box::new(|task: &str, panic| panic!("{task} panicked: {panic}"));
    let work = Work::new("device", runtime.clone(), limits, on_panic);
    let seen = Arc::<Seen>::default();
    let stop = AtomicBool::new(false);
    let rung = [const { AtomicU64::new(0) }; BELLS];
    let data_path = |ring| seen.handle(DATA_PATH, ring);
    std::thread::scope(|scope| {
        for (bell, rung) in rung.iter().enumerate() {
            let (work, stop) = (&work, &stop);
            scope.spawn(move || {
                while !stop.load(SeqCst) {
                    let value = rung.load(SeqCst) + 1;
                    if bell == DATA_PATH {
                        work.ring_through(bell, Some(value), data_path);
                    } else {
                        work.ring(bell, Some(value));
                    }
                    rung.store(value, SeqCst);
                    std::thread::yield_now();
                }
            });
        }
        start_tasks(&work, &seen);
        for round in 0..ROUNDS {
            work.close(if round % 2 == 0 { Close::Cancel } else { Close::Finish });
            assert!(work.wait_idle(runtime.now() + LONG), "does not quiesce: {:?}", work.list());
            seen.quiesced.store(true, SeqCst);
            assert_eq!(seen.inside.load(SeqCst), 0);
            std::thread::yield_now();
            seen.quiesced.store(false, SeqCst);
            work.reopen(Rings::Repeat);
            start_tasks(&work, &seen);
            // Those that came at the closed gate, of the tasks' doorbells as well.
            work.deliver_rings(|bell, ring| seen.handle(bell, ring));
        }
        stop.store(true, SeqCst);
    });
    let newest = |bell: usize| rung[bell].load(SeqCst);
    while (0..BELLS).any(|bell| seen.handled[bell].load(SeqCst) < newest(bell)) {
        runtime.run();
        std::thread::yield_now();
    }
}

#[test]
fn no_ring_is_lost_while_workers_run_the_tasks() {
    stop_and_resume(2);
}

#[test]
fn no_ring_is_lost_while_the_thread_that_waits_runs_the_tasks() {
    stop_and_resume(0);
}
