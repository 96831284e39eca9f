//! What tasks cost.
//!
//! `cargo bench -p vfiod-tasks` prints a table in Markdown, in a few seconds: nanoseconds per
//! operation, the median of eleven rounds. Without `--bench` (as `cargo test` runs it) it does a
//! little of everything, to show that it works.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, epoll};
use vfiod_tasks::{Bell, Runtime, Task, Workers};

const ROUNDS: usize = 11;

fn finish<T: Send + 'static>(runtime: &Runtime, task: Task<T>) {
    runtime.block_on(None, task.result()).expect("has no deadline").expect("ends");
}

/// The median time of one operation, in nanoseconds.
fn measure(count: usize, mut round: impl FnMut(usize)) -> f64 {
    let mut times: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            round(count);
            start.elapsed().as_nanos() as f64 / count as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

fn with_workers(workers: usize) -> (Runtime, Option<Workers>) {
    let runtime = Runtime::new().expect("starts");
    let workers = (workers > 0).then(|| Workers::start(&runtime, workers).expect("starts"));
    (runtime, workers)
}

/// Tasks that are spawned by a task, run and awaited one after the other.
fn spawn_one_by_one(workers: usize, count: usize) -> f64 {
    let (runtime, _workers) = with_workers(workers);
    measure(count, |count| {
        let spawner = runtime.clone();
        let task = runtime.spawn(async move {
            for _ in 0..count {
                spawner.spawn(async {}).result().await.expect("ends");
            }
        });
        finish(&runtime, task);
    })
}

/// Tasks that are spawned by a thread all at once.
fn spawn_many(workers: usize, count: usize) -> f64 {
    let (runtime, _workers) = with_workers(workers);
    measure(count, |count| {
        let tasks: Vec<_> = (0..count).map(|_| runtime.spawn(async {})).collect();
        tasks.into_iter().for_each(|task| finish(&runtime, task));
    })
}

/// A task that makes itself ready again.
fn poll_again(count: usize) -> f64 {
    let (runtime, _workers) = with_workers(0);
    measure(count, |mut count| {
        let future = std::future::poll_fn(move |cx| {
            count -= 1;
            if count == 0 {
                return std::task::Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            std::task::Poll::Pending
        });
        let task = runtime.spawn(future);
        finish(&runtime, task);
    })
}

/// Two tasks that ring one another: each turn takes two rings and two polls; half of a turn is reported.
fn ping_pong(workers: usize, count: usize) -> f64 {
    let (runtime, _workers) = with_workers(workers);
    measure(count, |count| {
        let bells = Arc::new([Bell::new(), Bell::new()]);
        let tasks = [0, 1].map(|at| {
            let bells = bells.clone();
            runtime.spawn(async move {
                for _ in 0..count / 2 {
                    bells[at].wait().await;
                    bells[1 - at].ring(Some(1));
                }
            })
        });
        bells[0].ring(None);
        tasks.into_iter().for_each(|task| finish(&runtime, task));
    })
}

/// A thread rings, and waits (spinning) until the task on a sleeping worker has seen it.
fn ring_to_task(count: usize) -> f64 {
    let (runtime, _workers) = with_workers(1);
    let bells = Arc::new([Bell::new(), Bell::new()]);
    let _task = runtime.spawn({
        let bells = bells.clone();
        async move {
            loop {
                bells[0].wait().await;
                bells[1].ring(None);
            }
        }
    });
    let mut total = Duration::ZERO;
    for _ in 0..count {
        // Long enough for the worker to fall asleep.
        std::thread::sleep(Duration::from_micros(50));
        let start = Instant::now();
        bells[0].ring(None);
        while bells[1].take().is_none() {
            std::hint::spin_loop();
        }
        total += start.elapsed();
    }
    total.as_nanos() as f64 / count as f64
}

/// What that takes without tasks: a thread that sleeps in `epoll`, woken by an eventfd.
fn wake_a_thread(count: usize) -> f64 {
    let eventfd = || {
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        Arc::new(rustix::event::eventfd(0, flags).expect("an eventfd"))
    };
    let (wakes, answered) = (eventfd(), Arc::new(AtomicBool::new(false)));
    let (woken, answers) = (wakes.clone(), answered.clone());
    let thread = std::thread::spawn(move || {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &woken, epoll::EventData::new_u64(0), flags).expect("is added");
        for _ in 0..count {
            let mut events = [const { std::mem::MaybeUninit::uninit() }; 1];
            epoll::wait(&epoll, &mut events[..], None).expect("waits");
            answers.store(true, Ordering::Release);
        }
    });
    let mut total = Duration::ZERO;
    for _ in 0..count {
        std::thread::sleep(Duration::from_micros(50));
        let start = Instant::now();
        rustix::io::write(&wakes, &1u64.to_ne_bytes()).expect("writes");
        while !answered.swap(false, Ordering::AcqRel) {
            std::hint::spin_loop();
        }
        total += start.elapsed();
    }
    thread.join().expect("ends");
    total.as_nanos() as f64 / count as f64
}

/// Rings that merge, as nobody takes them.
fn ring_again(count: usize) -> f64 {
    let bell = Bell::new();
    measure(count, |count| (0..count as u64).for_each(|value| bell.ring(Some(value))))
}

fn ring_and_take(count: usize) -> f64 {
    let bell = Bell::new();
    measure(count, |count| {
        for value in 0..count as u64 {
            bell.ring(Some(value));
            assert!(bell.take().is_some());
        }
    })
}

/// A timeout that is set and does not expire, among others.
fn set_timeout(others: usize, count: usize) -> f64 {
    let (runtime, _workers) = with_workers(0);
    let mut sleeps: Vec<_> = (0..others)
        .map(|at| Box::pin(runtime.sleep(Duration::from_millis(100_000 + at as u64))))
        .collect();
    let cx = &mut std::task::Context::from_waker(std::task::Waker::noop());
    for sleep in &mut sleeps {
        assert!(sleep.as_mut().poll(cx).is_pending());
    }
    measure(count, |count| {
        for _ in 0..count {
            let mut sleep = std::pin::pin!(runtime.sleep(Duration::from_secs(200)));
            assert!(sleep.as_mut().poll(cx).is_pending());
        }
    })
}

/// How much later than asked for a timer's task runs.
fn timer_lateness(count: usize) -> f64 {
    let (runtime, _workers) = with_workers(1);
    let sleeper = runtime.clone();
    let task = runtime.spawn(async move {
        let mut late = Vec::new();
        for _ in 0..count {
            let deadline = sleeper.now() + Duration::from_micros(200);
            sleeper.sleep_until(deadline).await;
            late.push((sleeper.now() - deadline).as_nanos() as f64);
        }
        late.sort_by(f64::total_cmp);
        late[late.len() / 2]
    });
    runtime.block_on(None, task.result()).expect("has no deadline").expect("ends")
}

fn main() {
    let many = if std::env::args().any(|argument| argument == "--bench") { 100_000 } else { 100 };
    let few = many / 100;
    println!("| operation | ns |\n| --- | --- |");
    let row = |name: &str, nanoseconds: f64| println!("| {name} | {nanoseconds:.0} |");
    row("spawn, run and await a task, no workers", spawn_one_by_one(0, many));
    row("spawn, run and await a task, one worker", spawn_one_by_one(1, many));
    row("spawn, run and await a task, two workers", spawn_one_by_one(2, many));
    row("of many tasks spawned at once, no workers", spawn_many(0, many));
    row("of many tasks spawned at once, two workers", spawn_many(2, many));
    row("queue and poll a task", poll_again(many));
    row("ring, and poll of the other task, no workers", ping_pong(0, many));
    row("ring, and poll of the other task, one worker", ping_pong(1, many));
    row("ring, and poll of the other task, two workers", ping_pong(2, many));
    row("ring to the task on a sleeping worker and back to a spinning thread", ring_to_task(few));
    row("the same with an eventfd and `epoll` alone", wake_a_thread(few));
    row("ring that merges", ring_again(many));
    row("ring and take", ring_and_take(many));
    row("set and remove a timer", set_timeout(0, many));
    row("set and remove a timer among 10,000", set_timeout(10_000, many));
    row("lateness of a timer of 200 µs", timer_lateness(few));
}
