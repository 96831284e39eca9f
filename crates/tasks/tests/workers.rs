//! A runtime with threads.

#![cfg(not(shuttle))]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use vfiod_tasks::{Bell, Ended, Runtime, Task, Workers};

fn start(count: usize) -> (Runtime, Workers) {
    let runtime = Runtime::new().expect("starts");
    let workers = Workers::start(&runtime, count).expect("starts");
    (runtime, workers)
}

fn result<T: Send + 'static>(runtime: &Runtime, task: &Task<T>) -> Result<T, Ended> {
    runtime.block_on(None, task.result()).expect("has no deadline")
}

#[test]
fn tasks_pass_a_token_around() {
    const TASKS: usize = 8;
    const ROUNDS: u64 = 1000;
    let (runtime, _workers) = start(2);
    let bells: Arc<[Bell]> = (0..TASKS).map(|_| Bell::new()).collect();
    let tasks: Vec<_> = (0..TASKS)
        .map(|at| {
            let bells = bells.clone();
            runtime.spawn(async move {
                for round in 0..ROUNDS {
                    assert_eq!(bells[at].wait().await.value, Some(round));
                    let next = if at + 1 == TASKS { round + 1 } else { round };
                    bells[(at + 1) % TASKS].ring(Some(next));
                }
            })
        })
        .collect();
    bells[0].ring(Some(0));
    for task in &tasks {
        result(&runtime, task).expect("ends");
    }
}

#[test]
fn tasks_spawn_tasks() {
    let (runtime, _workers) = start(2);
    let ended = Arc::new(AtomicUsize::new(0));
    let task = runtime.spawn({
        let (runtime, ended) = (runtime.clone(), ended.clone());
        async move {
            let tasks: Vec<_> = (0..1000)
                .map(|_| {
                    let ended = ended.clone();
                    runtime.spawn(async move { ended.fetch_add(1, Ordering::Relaxed) })
                })
                .collect();
            for task in tasks {
                task.result().await.expect("ends");
            }
        }
    });
    result(&runtime, &task).expect("ends");
    assert_eq!(ended.load(Ordering::Relaxed), 1000);
}

#[test]
fn timers_run_on_workers() {
    let (runtime, _workers) = start(1);
    let task = runtime.spawn({
        let runtime = runtime.clone();
        async move {
            let before = runtime.now();
            runtime.sleep(Duration::from_millis(5)).await;
            runtime.now() - before
        }
    });
    assert!(result(&runtime, &task).expect("ends") >= Duration::from_millis(5));
}

#[test]
fn worker_whose_task_does_not_wait_is_replaced_until_it_is_back() {
    let (runtime, workers) = start(1);
    let go_on = Arc::new(AtomicBool::new(false));
    let hog = runtime.spawn({
        let go_on = go_on.clone();
        async move {
            while !go_on.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
        }
    });
    for _ in 0..10 {
        let other = runtime.spawn(async {});
        result(&runtime, &other).expect("ends");
    }
    assert_eq!(workers.count(), 2);
    go_on.store(true, Ordering::Relaxed);
    result(&runtime, &hog).expect("ends");
    while workers.count() > 1 {
        std::thread::yield_now();
    }
}

#[test]
fn task_may_block_its_worker_on_another_task() {
    let (runtime, _workers) = start(1);
    let outer = runtime.spawn({
        let runtime = runtime.clone();
        async move {
            let inner = runtime.spawn(async { 5 });
            runtime.block_on(None, inner.result())
        }
    });
    let inner = result(&runtime, &outer).expect("ends").expect("has no deadline");
    assert_eq!(inner.expect("ends"), 5);
}

#[test]
fn tasks_outlive_workers() {
    let (runtime, workers) = start(2);
    let bell = Arc::new(Bell::new());
    let task = runtime.spawn({
        let bell = bell.clone();
        async move { bell.wait().await.value }
    });
    drop(workers);
    bell.ring(Some(1));
    assert_eq!(result(&runtime, &task).expect("ends"), Some(1));
}
