//! Tasks take their turns, those of a group as one.

#![cfg(not(shuttle))]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use vfiod_tasks::{Bell, Group, Job, Runtime, Workers, yield_now};

/// A task that is always ready, and counts its turns.
fn busy(runtime: &Runtime, group: Option<&Group>, turns: &Arc<AtomicUsize>) -> Job {
    let turns = turns.clone();
    let future = async move {
        loop {
            turns.fetch_add(1, Ordering::Relaxed);
            yield_now().await;
        }
    };
    match group {
        Some(group) => runtime.spawn_in(group, future, |_| {}),
        None => runtime.spawn_with(future, |_| {}),
    }
}

#[test]
fn group_of_many_tasks_has_no_more_turns_than_one_of_a_single_task() {
    let runtime = Runtime::new().unwrap();
    let turns: [Arc<AtomicUsize>; 3] = Default::default();
    let (many, one) = (Group::new(), Group::new());
    let mut jobs: Vec<Job> = (0..32).map(|_| busy(&runtime, Some(&many), &turns[0])).collect();
    jobs.push(busy(&runtime, Some(&one), &turns[1]));
    jobs.push(busy(&runtime, None, &turns[2]));
    // Each call ends in the middle of a round.
    for _ in 0..100 {
        assert!(runtime.run());
        let had = turns.each_ref().map(|turns| turns.load(Ordering::Relaxed));
        let (least, most) = (had.iter().min().unwrap(), had.iter().max().unwrap());
        assert!(
            most - least <= 1,
            "turns of 32 tasks in a group, of one, and of one in none: {had:?}"
        );
    }
}

/// All of a group's tasks have their turn, in the order in which they became ready.
#[test]
fn tasks_of_a_group_take_their_turns_among_themselves() {
    let runtime = Runtime::new().unwrap();
    let group = Group::new();
    let turns: Vec<Arc<AtomicUsize>> = (0..8).map(|_| Arc::default()).collect();
    let _jobs: Vec<Job> = turns.iter().map(|turns| busy(&runtime, Some(&group), turns)).collect();
    (0..10).for_each(|_| assert!(runtime.run()));
    let had: Vec<usize> = turns.iter().map(|turns| turns.load(Ordering::Relaxed)).collect();
    assert_eq!(had.iter().sum::<usize>(), 2560);
    assert!(had.iter().all(|turns| *turns == 320), "{had:?}");
}

/// A group's tasks that are ready when the runtime ends are dropped.
#[test]
fn tasks_of_a_group_end_with_the_runtime() {
    let runtime = Runtime::new().unwrap();
    let (group, turns, ended) = (Group::new(), Arc::<AtomicUsize>::default(), Arc::new(()));
    let jobs: Vec<Job> = (0..4)
        .map(|_| {
            let (turns, ended) = (turns.clone(), ended.clone());
            let future = async move {
                let _held = ended;
                loop {
                    turns.fetch_add(1, Ordering::Relaxed);
                    yield_now().await;
                }
            };
            runtime.spawn_in(&group, future, |_| {})
        })
        .collect();
    runtime.run();
    drop(runtime);
    assert_eq!(Arc::strong_count(&ended), 1);
    drop(jobs);
}

/// A thread that makes a task ready keeps it for itself only if no other task waits for its turn.
#[test]
fn task_is_not_kept_before_others_that_wait_for_their_turn() {
    let runtime = Runtime::new().unwrap();
    let _workers = Workers::start(&runtime, 1).unwrap();
    let (group, bell, taken) = (Group::new(), Arc::new(Bell::new()), Arc::<AtomicU64>::default());
    let (rings, takes) = (bell.clone(), taken.clone());
    let future = async move {
        loop {
            takes.store(bell.wait().await.value.unwrap(), Ordering::SeqCst);
        }
    };
    let _job = runtime.spawn_in(&group, future, |_| {});
    let keeper = runtime.keeper().expect("there are workers");
    let wait_for = |value| {
        let start = std::time::Instant::now();
        while taken.load(Ordering::SeqCst) != value {
            assert!(start.elapsed().as_secs() < 60, "a ring is lost");
            std::thread::yield_now();
        }
    };
    let mut kept = 0;
    for value in 1..=100 {
        group.keep(|| rings.ring(Some(value)));
        kept += usize::from(keeper.run());
        wait_for(value);
    }
    assert!(kept > 0, "nothing is kept");
    // Some of these wait for their turns at all times, also while a worker that has no processor is replaced.
    let turns = Arc::default();
    let _busy: Vec<Job> = (0..32).map(|_| busy(&runtime, None, &turns)).collect();
    for value in 101..=200 {
        group.keep(|| rings.ring(Some(value)));
        assert!(!keeper.holds(), "kept before a task that waits for its turn");
        wait_for(value);
    }
}
