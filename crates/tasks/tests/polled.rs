//! What is polled, by workers and without.

#![cfg(not(shuttle))]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use vfiod_tasks::{Bell, Poll, PollSeat, Runtime, TooManyPolled, Workers, yield_now};

/// A page that a client stores to, and the bell that its poller rings.
#[derive(Default)]
struct Page {
    value: AtomicUsize,
    seen: AtomicUsize,
    bell: Bell,
    polls: AtomicUsize,
}

impl Poll for Page {
    fn poll(&self) {
        self.polls.fetch_add(1, Ordering::SeqCst);
        let value = self.value.load(Ordering::SeqCst);
        if self.seen.swap(value, Ordering::SeqCst) != value {
            self.bell.ring(Some(value as u64));
        }
    }
}

impl Page {
    fn polls(&self) -> usize {
        self.polls.load(Ordering::SeqCst)
    }
}

fn polled(runtime: &Runtime) -> (PollSeat, Arc<Page>) {
    let (seat, page) = (runtime.poll_seat().unwrap(), Arc::<Page>::default());
    seat.start(page.clone());
    (seat, page)
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn stores_wake_a_task_until_the_stop() {
    let runtime = Runtime::new().unwrap();
    let _workers = Workers::start(&runtime, 2).unwrap();
    let (seat, page) = polled(&runtime);
    assert_eq!(runtime.polled(), 1);
    for value in 1..=1000 {
        let waits = page.clone();
        let task = runtime.spawn(async move { waits.bell.wait().await.value });
        page.value.store(value, Ordering::SeqCst);
        let rung = runtime.block_on(None, task.result()).unwrap().unwrap();
        assert_eq!(rung, Some(value as u64));
    }
    seat.stop();
    assert_eq!(runtime.polled(), 0);
    eventually("the poll that was under way ends", || {
        let before = page.polls();
        std::thread::sleep(Duration::from_millis(5));
        page.polls() == before
    });
    seat.start(page.clone());
    let before = page.polls();
    eventually("it is polled again", || page.polls() > before);
}

/// The only worker always has a task, and runs it all the time.
#[test]
fn busy_task_does_not_starve_what_is_polled() {
    let runtime = Runtime::new().unwrap();
    let _workers = Workers::start(&runtime, 1).unwrap();
    let (runs, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (counted, stopped) = (runs.clone(), stop.clone());
    let busy = runtime.spawn(async move {
        while !stopped.load(Ordering::SeqCst) {
            counted.fetch_add(1, Ordering::SeqCst);
            yield_now().await;
        }
    });
    eventually("the task runs", || runs.load(Ordering::SeqCst) > 0);
    let (_seat, page) = polled(&runtime);
    let polls = || page.polls();
    eventually("it is polled", || polls() > 0);
    // Polls first: whatever comes between both makes their number larger.
    let polled_before = polls();
    let from = runs.load(Ordering::SeqCst);
    eventually("the task runs on", || runs.load(Ordering::SeqCst) > from + 10_000);
    let (ran, polled) = (runs.load(Ordering::SeqCst) - from, polls() - polled_before);
    assert!(polled >= ran / 64, "{polled} polls in {ran} runs");
    stop.store(true, Ordering::SeqCst);
    runtime.block_on(None, busy.result()).unwrap().unwrap();
}

/// Its client stores again and again, so that each poll finds something, and its own task always has something
/// to do.
#[test]
fn what_is_polled_does_not_starve_tasks() {
    struct Rings([Bell; 2]);
    impl Poll for Rings {
        fn poll(&self) {
            self.0.iter().for_each(|bell| bell.ring(None));
        }
    }
    let runtime = Runtime::new().unwrap();
    let _workers = Workers::start(&runtime, 1).unwrap();
    let seat = runtime.poll_seat().unwrap();
    let page = Arc::new(Rings([Bell::new(), Bell::new()]));
    let runs: [Arc<AtomicUsize>; 2] = Default::default();
    let _tasks = [0, 1].map(|at| {
        let (page, runs) = (page.clone(), runs[at].clone());
        runtime.spawn(async move {
            loop {
                page.0[at].wait().await;
                runs.fetch_add(1, Ordering::SeqCst);
            }
        })
    });
    seat.start(page);
    eventually("both tasks run", || runs.iter().all(|runs| runs.load(Ordering::SeqCst) > 10_000));
    for _ in 0..100 {
        let neighbour = runtime.spawn(async {});
        runtime.block_on(None, neighbour.result()).unwrap().unwrap();
    }
}

#[test]
fn worker_that_polls_and_waits_for_a_task_lets_another_worker_run_it() {
    struct Waits(Runtime, AtomicBool, AtomicBool);
    impl Poll for Waits {
        fn poll(&self) {
            if !self.1.swap(true, Ordering::SeqCst) {
                let task = self.0.spawn(async {});
                self.0.block_on(None, task.result()).unwrap().unwrap();
                self.2.store(true, Ordering::SeqCst);
            }
        }
    }
    for _ in 0..20 {
        let runtime = Runtime::new().unwrap();
        let workers = Workers::start(&runtime, 2).unwrap();
        let seat = runtime.poll_seat().unwrap();
        let (ended, end) = channel();
        std::thread::spawn(move || {
            let poller =
                Arc::new(Waits(runtime.clone(), AtomicBool::new(false), AtomicBool::new(false)));
            seat.start(poller.clone());
            let task = runtime.spawn(async {});
            runtime.block_on(None, task.result()).unwrap().unwrap();
            eventually("the worker goes on", || poller.2.load(Ordering::SeqCst));
            drop(seat);
            drop(workers);
            ended.send(())
        });
        end.recv_timeout(Duration::from_secs(60)).expect("the task is run");
    }
}

#[test]
fn without_workers_whoever_runs_tasks_polls() {
    let runtime = Runtime::new().unwrap();
    let (seat, page) = polled(&runtime);
    let waits = page.clone();
    let task = runtime.spawn(async move { waits.bell.wait().await.value });
    runtime.run_until_idle();
    assert!(!task.is_finished());
    page.value.store(7, Ordering::SeqCst);
    runtime.run_until_idle();
    assert!(task.is_finished());
    // So does a thread that waits.
    let waits = page.clone();
    let task = runtime.spawn(async move { waits.bell.wait().await.value });
    let client = page.clone();
    let stores = std::thread::spawn(move || {
        let before = client.polls();
        eventually("the thread polls", || client.polls() > before + 10);
        client.value.store(8, Ordering::SeqCst);
    });
    assert_eq!(runtime.block_on(None, task.result()).unwrap().unwrap(), Some(8));
    stores.join().unwrap();
    seat.stop();
    let before = page.polls();
    runtime.run_until_idle();
    assert_eq!(page.polls(), before);
}

#[test]
fn more_seats_than_the_limit_are_refused_until_one_is_given_up() {
    let runtime = Runtime::new().unwrap();
    runtime.limit_polled(2);
    let seats = [runtime.poll_seat().unwrap(), runtime.poll_seat().unwrap()];
    assert_eq!(runtime.poll_seat().unwrap_err(), TooManyPolled { most: 2 });
    assert_eq!(runtime.polled(), 0, "nothing is polled yet");
    drop(seats);
    runtime.poll_seat().unwrap();
}
