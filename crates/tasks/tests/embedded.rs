//! A runtime that is driven by its user's thread.

#![cfg(not(shuttle))]

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use vfiod_tasks::{
    Bell, Elapsed, Ended, ManualClock, Poll, Ring, Runtime, Task, Waiters, yield_now,
};

fn is_readable(runtime: &Runtime) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(runtime.fd(), PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("polls") == 1
}

/// As an embedder does: waits for the descriptor, and runs what there is.
fn poll_and_run(runtime: &Runtime) {
    let mut fds = [PollFd::from_borrowed_fd(runtime.fd(), PollFlags::IN)];
    poll(&mut fds, None).expect("polls");
    runtime.run();
}

fn result<T: Send + 'static>(runtime: &Runtime, task: &Task<T>) -> Result<T, Ended> {
    runtime.block_on(None, task.result()).expect("has no deadline")
}

#[test]
fn descriptor_is_readable_only_while_there_is_something_to_do() {
    let runtime = Runtime::new().expect("starts");
    assert!(!is_readable(&runtime));
    let task = runtime.spawn(async { 7 });
    assert!(is_readable(&runtime));
    assert!(!runtime.run());
    assert!(!is_readable(&runtime));
    assert_eq!(result(&runtime, &task).expect("ends"), 7);
}

#[test]
fn descriptor_is_not_left_readable_by_tasks_that_wake_one_another() {
    let runtime = Runtime::new().expect("starts");
    let bell = Arc::new(Bell::new());
    let waits = runtime.spawn({
        let bell = bell.clone();
        async move { bell.wait().await }
    });
    runtime.run();
    let _rings = runtime.spawn(async move { bell.ring(Some(3)) });
    assert!(!runtime.run());
    assert!(!is_readable(&runtime));
    assert_eq!(result(&runtime, &waits).expect("ends"), Ring { value: Some(3) });
}

/// Counts how often completions are taken.
#[derive(Default)]
struct Taker {
    times: AtomicUsize,
    waiters: Waiters,
}

impl Poll for Taker {
    fn poll(&self) {
        self.times.fetch_add(1, Ordering::SeqCst);
        self.waiters.wake_all();
    }
}

#[test]
fn completions_are_taken_once_for_each_time_their_descriptor_tells_of_some() {
    let runtime = Runtime::new().expect("starts");
    let eventfd = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).expect("opens"));
    let taker = Arc::new(Taker::default());
    let completions = runtime.completions(eventfd.clone(), taker.clone()).expect("is watched");
    assert!(!is_readable(&runtime));
    for times in 1..=3 {
        let (waits, bell) = (taker.clone(), Arc::new(AtomicUsize::new(0)));
        let task = runtime.spawn({
            let bell = bell.clone();
            async move {
                let taken = || (waits.times.load(Ordering::SeqCst) == times).then_some(());
                waits.waiters.wait_for(taken).await;
                bell.store(times, Ordering::SeqCst);
            }
        });
        runtime.run();
        rustix::io::write(&eventfd, &1u64.to_ne_bytes()).expect("signals");
        assert!(is_readable(&runtime));
        runtime.run();
        assert_eq!(bell.load(Ordering::SeqCst), times, "the task has run as well");
        assert!(!is_readable(&runtime), "though the descriptor was not read");
        result(&runtime, &task).expect("ends");
    }
    drop(completions);
    rustix::io::write(&eventfd, &1u64.to_ne_bytes()).expect("signals");
    assert!(!is_readable(&runtime), "nobody takes them any more");
}

#[test]
fn run_returns_though_a_task_is_always_ready() {
    let runtime = Runtime::new().expect("starts");
    let mut task = runtime.spawn(async {
        loop {
            yield_now().await;
        }
    });
    assert!(runtime.run());
    assert!(is_readable(&runtime));
    task.cancel();
    while runtime.run() {}
    assert!(!is_readable(&runtime));
    let result: Result<(), _> = result(&runtime, &task);
    assert!(matches!(result, Err(Ended::Cancelled)));
}

#[test]
fn task_whose_bell_never_rests_lets_others_run() {
    let runtime = Runtime::new().expect("starts");
    let _rings_itself = runtime.spawn(async {
        let bell = Bell::new();
        loop {
            bell.ring(None);
            bell.wait().await;
        }
    });
    let other = runtime.spawn(async {});
    result(&runtime, &other).expect("ends");
}

#[test]
fn timer_makes_the_descriptor_readable() {
    let runtime = Runtime::new().expect("starts");
    let before = runtime.now();
    let (late, soon) = (Duration::from_millis(30), Duration::from_millis(20));
    let ended = Arc::new(AtomicUsize::new(0));
    let tasks = [late, soon].map(|time| {
        let (runtime_of_task, ended) = (runtime.clone(), ended.clone());
        runtime.spawn(async move {
            runtime_of_task.sleep_until(before + time).await;
            ended.fetch_add(1, Ordering::Relaxed)
        })
    });
    while ended.load(Ordering::Relaxed) < 2 {
        poll_and_run(&runtime);
    }
    assert!(runtime.now() - before >= late);
    let order = tasks.map(|task| result(&runtime, &task).expect("ends"));
    assert_eq!(order, [1, 0]);
}

#[test]
fn manual_clock_moves_only_when_told() {
    let clock = ManualClock::new();
    let runtime = Runtime::with_clock(&clock).expect("starts");
    let hour = Duration::from_secs(3600);
    let tasks = [1, 3].map(|hours| {
        let runtime_of_task = runtime.clone();
        runtime.spawn(async move {
            let bell = Bell::new();
            runtime_of_task.timeout(hours * hour, bell.wait()).await
        })
    });
    runtime.run_until_idle();
    clock.advance(2 * hour);
    assert!(is_readable(&runtime));
    runtime.run_until_idle();
    assert_eq!(result(&runtime, &tasks[0]).expect("ends"), Err(Elapsed));
    let deadline = Some(runtime.now());
    assert!(runtime.block_on(deadline, tasks[1].result()).is_none());
    clock.advance(hour);
    assert_eq!(result(&runtime, &tasks[1]).expect("ends"), Err(Elapsed));
}

#[test]
fn task_waits_for_a_pipe() {
    let runtime = Runtime::new().expect("starts");
    let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).expect("a pipe");
    let descriptor = runtime.descriptor(Arc::new(reader)).expect("can be watched");
    let task = runtime.spawn(async move {
        let mut received = Vec::<u8>::new();
        loop {
            let mut buffer = [0; 2];
            match rustix::io::read(descriptor.fd().as_fd(), &mut buffer) {
                Ok(0) => return received,
                Ok(count) => received.extend_from_slice(&buffer[..count]),
                Err(_) => descriptor.readable().await,
            }
        }
    });
    runtime.run_until_idle();
    assert!(!is_readable(&runtime));
    for piece in [&b"abc"[..], b"de"] {
        rustix::io::write(&writer, piece).expect("writes");
        assert!(is_readable(&runtime));
        runtime.run_until_idle();
    }
    drop(writer);
    assert_eq!(result(&runtime, &task).expect("ends"), b"abcde");
}

#[test]
fn task_waits_for_room_in_a_pipe() {
    let runtime = Runtime::new().expect("starts");
    let (reader, writer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).expect("a pipe");
    let descriptor = runtime.descriptor(Arc::new(writer)).expect("can be watched");
    let task = runtime.spawn(async move {
        let mut sent = 0;
        while sent < 1 << 20 {
            match rustix::io::write(descriptor.fd().as_fd(), &[0; 4096]) {
                Ok(count) => sent += count,
                Err(_) => descriptor.writable().await,
            }
        }
        sent
    });
    let mut received = 0;
    while received < 1 << 20 {
        runtime.run_until_idle();
        received += rustix::io::read(&reader, &mut vec![0; 1 << 16]).expect("reads");
    }
    assert_eq!(result(&runtime, &task).expect("ends"), 1 << 20);
}

#[test]
fn cancelled_task_drops_its_future_at_its_next_await() {
    struct Witness(Arc<AtomicUsize>);
    impl Drop for Witness {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let runtime = Runtime::new().expect("starts");
    let dropped = Arc::new(AtomicUsize::new(0));
    let witness = Witness(dropped.clone());
    let mut task = runtime.spawn(async move {
        let _witness = witness;
        std::future::pending::<()>().await;
    });
    runtime.run_until_idle();
    task.cancel();
    assert_eq!(dropped.load(Ordering::Relaxed), 0);
    assert!(matches!(result(&runtime, &task), Err(Ended::Cancelled)));
    assert_eq!(dropped.load(Ordering::Relaxed), 1);
}

#[test]
fn panic_of_a_task_is_its_result() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("in drop");
        }
    }
    let runtime = Runtime::new().expect("starts");
    let panics = runtime.spawn(async { panic!("on purpose") });
    let drops = runtime.spawn(async {
        let _bomb = Bomb;
        yield_now().await;
    });
    let mut cancelled = runtime.spawn(async {
        let _bomb = Bomb;
        std::future::pending::<()>().await;
    });
    runtime.run_until_idle();
    cancelled.cancel();
    let text = |result: Result<(), Ended>| result.expect_err("panics").to_string();
    assert_eq!(text(result(&runtime, &panics)), "panic: on purpose");
    assert_eq!(text(result(&runtime, &drops)), "panic: in drop");
    assert_eq!(text(result(&runtime, &cancelled)), "panic: in drop");
}

#[test]
fn end_of_the_runtime_drops_tasks_that_are_ready_or_asleep() {
    let runtime = Runtime::new().expect("starts");
    let sleeps = runtime.sleep(Duration::from_secs(3600));
    let counted = Arc::new(());
    let tasks = [0, 1].map(|_| counted.clone());
    let [asleep, ready] = tasks;
    runtime
        .spawn(async move {
            let _counted = asleep;
            sleeps.await;
        })
        .detach();
    runtime.run_until_idle();
    let ready = runtime.spawn(async move { drop(ready) });
    assert_eq!(Arc::strong_count(&counted), 3);
    drop(runtime);
    assert_eq!(Arc::strong_count(&counted), 1);
    drop(ready);
}

#[test]
fn thread_without_workers_runs_the_tasks_that_it_waits_for() {
    let runtime = Runtime::new().expect("starts");
    let bell = Arc::new(Bell::new());
    let inner = runtime.spawn({
        let bell = bell.clone();
        async move { bell.wait().await }
    });
    let outer = runtime.spawn({
        let runtime = runtime.clone();
        async move {
            // A task that waits as a thread would: other tasks run inside this call.
            bell.ring(None);
            runtime.block_on(None, inner.result())
        }
    });
    let ring = result(&runtime, &outer).expect("ends").expect("has no deadline");
    assert_eq!(ring.expect("ends"), Ring { value: None });
}

#[test]
fn thread_without_workers_is_woken_by_another_thread() {
    let runtime = Runtime::new().expect("starts");
    let bell = Arc::new(Bell::new());
    let waits = runtime.spawn({
        let bell = bell.clone();
        async move { bell.wait().await.value }
    });
    runtime.run_until_idle();
    let other = std::thread::spawn(move || bell.ring(Some(1)));
    assert_eq!(result(&runtime, &waits).expect("ends"), Some(1));
    other.join().expect("ends");
    // Not by a task this time.
    let bell = Arc::new(Bell::new());
    let rings = bell.clone();
    let other = std::thread::spawn(move || rings.ring(Some(2)));
    assert_eq!(runtime.block_on(None, bell.wait()), Some(Ring { value: Some(2) }));
    other.join().expect("ends");
}

#[test]
fn wait_ends_at_its_deadline() {
    let runtime = Runtime::new().expect("starts");
    let deadline = runtime.now() + Duration::from_millis(5);
    assert_eq!(runtime.block_on(Some(deadline), std::future::pending::<()>()), None);
    assert!(runtime.now() >= deadline);
}
