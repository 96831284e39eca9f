use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;

use vfiod_tasks::ManualClock;

use super::*;

const LIMITS: WorkLimits = WorkLimits { tasks: 4, bells: 2 };

fn with_panics() -> (Runtime, Work, mpsc::Receiver<String>) {
    let runtime = Runtime::with_clock(&ManualClock::new()).expect("starts");
    let (sender, panics) = mpsc::channel();
    let on_panic: OnPanic = Box::new(move |task, panic| {
        sender.send(format!("{task}: {panic}")).expect("is received");
    });
    let work = Work::new("d", runtime.clone(), LIMITS, on_panic);
    (runtime, work, panics)
}

fn new() -> (Runtime, Work) {
    let (runtime, work, _) = with_panics();
    (runtime, work)
}

/// Counts the rings of doorbell 0 that a task takes, and how many tasks have ended.
fn count_rings(work: &Work, rings: &Arc<AtomicUsize>) -> TaskHandle {
    let rings = rings.clone();
    let make = |task: Task| async move {
        loop {
            task.bell(0).await;
            rings.fetch_add(1, Ordering::Relaxed);
        }
    };
    work.spawn("count", make).expect("starts")
}

#[test]
fn device_without_work_is_idle_as_soon_as_its_gate_closes() {
    let (_, work) = new();
    assert_eq!(work.state(), GateState::Open);
    work.close(Close::Finish);
    assert_eq!(work.state(), GateState::Closed);
    assert!(work.wait_idle(Instant::now()));
    work.reopen(Rings::Repeat);
    assert_eq!(work.state(), GateState::Open);
}

#[test]
fn spawn_over_the_limit_fails_with_eagain() {
    let (runtime, work) = new();
    let tasks: Vec<_> =
        (0..4).map(|_| work.spawn("waits", |_| std::future::pending()).expect("starts")).collect();
    let error = work.spawn("fifth", |_| std::future::pending()).expect_err("is over the limit");
    assert_eq!(error.errno(), Errno::AGAIN);
    assert_eq!(error.message(), "d: cannot start task fifth: limit of 4 tasks reached");
    tasks[0].cancel();
    runtime.run_until_idle();
    assert!(tasks[0].is_gone());
    work.spawn("fifth", |_| std::future::pending()).expect("starts");
}

#[test]
fn spawn_at_a_closed_gate_fails_with_ebusy() {
    let (_, work) = new();
    work.close(Close::Finish);
    let error = work.spawn("late", |_| std::future::pending()).expect_err("is refused");
    assert_eq!(error.errno(), Errno::BUSY);
    assert_eq!(error.message(), "d: cannot start task late: it is being stopped");
}

#[test]
fn cancelling_drops_every_task_at_its_next_await() {
    let (runtime, work) = new();
    let rings = Arc::new(AtomicUsize::new(0));
    count_rings(&work, &rings);
    work.spawn("waits", |_| std::future::pending()).expect("starts");
    work.spawn("never polled", |_| async {}).expect("starts");
    work.close(Close::Cancel);
    assert_eq!(work.state(), GateState::Cancelling);
    let states: Vec<_> = work.list().into_iter().map(|task| task.state).collect();
    assert_eq!(states, [TaskState::Cancelled; 3]);
    // Nobody else runs tasks here.
    assert!(work.wait_idle(runtime.now() + Duration::from_secs(1)));
    assert_eq!(work.list(), []);
}

#[test]
fn finishing_lets_a_task_go_on_until_it_waits_for_a_doorbell() {
    let (runtime, work) = new();
    let (proceed, ended) = (Arc::new(Bell::new()), Arc::new(AtomicUsize::new(0)));
    let (wait, end) = (proceed.clone(), ended.clone());
    let make = |task: Task| async move {
        wait.wait().await;
        end.store(1, Ordering::Relaxed);
        task.bell(0).await;
        end.store(2, Ordering::Relaxed);
    };
    work.spawn("works", make).expect("starts");
    count_rings(&work, &Arc::default());
    runtime.run_until_idle();
    work.close(Close::Finish);
    runtime.run_until_idle();
    let names = || work.list().into_iter().map(|task| task.name).collect::<Vec<_>>();
    assert_eq!(names(), ["works"]);
    assert!(!work.wait_idle(runtime.now()));
    work.ring(0, None);
    proceed.ring(None);
    assert!(work.wait_idle(runtime.now() + Duration::from_secs(1)));
    assert_eq!(ended.load(Ordering::Relaxed), 1);
}

#[test]
fn finishing_becomes_cancelling_and_never_the_other_way() {
    let (runtime, work) = new();
    work.spawn("waits", |_| std::future::pending()).expect("starts");
    runtime.run_until_idle();
    work.close(Close::Finish);
    assert_eq!(work.state(), GateState::Finishing);
    work.close(Close::Cancel);
    assert_eq!(work.state(), GateState::Cancelling);
    work.close(Close::Finish);
    assert_eq!(work.state(), GateState::Cancelling);
    runtime.run_until_idle();
    assert_eq!(work.state(), GateState::Closed);
}

#[test]
fn task_that_goes_on_is_found_after_an_abandoned_quiesce() {
    let (runtime, work) = new();
    let task = work.spawn("waits", |_| std::future::pending()).expect("starts");
    let counts = count_rings(&work, &Arc::default());
    runtime.run_until_idle();
    work.close(Close::Finish);
    runtime.run_until_idle();
    work.reopen(Rings::Repeat);
    assert!(counts.is_gone() && work.find("count").is_none());
    assert!(!task.is_gone() && work.find("waits").is_some());
}

#[test]
fn call_inside_keeps_the_device_busy_and_none_begins_at_a_closed_gate() {
    let (_, work) = new();
    let inside = work.enter().expect("is open");
    work.close(Close::Cancel);
    assert!(work.enter().is_none());
    assert!(!work.is_idle());
    drop(inside);
    assert!(work.is_idle());
}

#[test]
fn ring_at_a_closed_gate_is_taken_after_it_opens() {
    let (runtime, work) = new();
    work.close(Close::Cancel);
    work.ring(0, Some(3));
    work.reopen(Rings::Repeat);
    let rings = Arc::new(AtomicUsize::new(0));
    count_rings(&work, &rings);
    runtime.run_until_idle();
    assert_eq!(rings.load(Ordering::Relaxed), 1);
}

fn taken(work: &Work) -> Vec<(usize, Ring)> {
    let mut rings = Vec::new();
    work.deliver_rings(|bell, ring| rings.push((bell, ring)));
    rings
}

/// A task that takes the rings of a doorbell.
fn serve(work: &Work, name: &str, bell: usize) -> (TaskHandle, Arc<AtomicUsize>) {
    let count = Arc::<AtomicUsize>::default();
    let rings = count.clone();
    let make = |task: Task| async move {
        loop {
            task.bell(bell).await;
            rings.fetch_add(1, Ordering::Relaxed);
        }
    };
    (work.spawn(name, make).expect("starts"), count)
}

#[test]
fn queue_is_stopped_and_resumed_while_another_goes_on() {
    for how in [Close::Finish, Close::Cancel] {
        let (runtime, work) = new();
        let ((first, rings), (other, others)) = (serve(&work, "0", 0), serve(&work, "1", 1));
        let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        runtime.run_until_idle();
        let queue = work.queue([0, 77], [first.clone()]);
        queue.quiesce(how);
        assert!(!queue.is_idle(), "its task has not ended");
        runtime.block_on(None, queue.idle()).expect("has no deadline");
        assert!(queue.is_idle() && first.is_gone() && !other.is_gone());
        work.ring(0, Some(5));
        work.ring(1, None);
        runtime.run_until_idle();
        assert_eq!((count(&rings), count(&others)), (0, 1));
        work.ring_through(0, Some(6), |_| panic!("the queue is stopped"));
        assert_eq!(taken(&work), []);
        let (_, again) = serve(&work, "again", 0);
        runtime.run_until_idle();
        assert_eq!(count(&again), 0, "a task of a stopped queue takes no ring");
        queue.resume(Rings::Repeat);
        runtime.run_until_idle();
        assert_eq!((count(&again), count(&others)), (1, 1));
    }
}

#[test]
fn queue_that_is_resumed_before_its_task_has_ended_goes_on() {
    let (runtime, work) = new();
    let (task, rings) = serve(&work, "0", 0);
    let queue = work.queue([0], [task.clone()]);
    queue.quiesce(Close::Finish);
    queue.resume(Rings::Forget);
    work.ring(0, None);
    runtime.run_until_idle();
    assert!(!task.is_gone());
    assert_eq!(rings.load(Ordering::Relaxed), 1);
}

#[test]
fn reset_opens_queues_again_and_a_save_does_not() {
    let (_, work) = new();
    work.queue([0], []).quiesce(Close::Finish);
    work.close(Close::Cancel);
    work.reopen(Rings::Repeat);
    work.ring(0, None);
    assert_eq!(taken(&work), []);
    work.close(Close::Cancel);
    work.reopen(Rings::Forget);
    work.ring(0, None);
    assert_eq!(taken(&work), [(0, Ring { value: None })]);
}

#[test]
fn doorbells_are_repeated_or_forgotten_when_the_gate_opens() {
    let (_, work) = new();
    let taken = || taken(&work);
    work.ring(1, Some(7));
    let ring = Ring { value: Some(7) };
    assert_eq!(taken(), [(1, ring)]);
    assert_eq!(taken(), []);
    work.close(Close::Cancel);
    work.reopen(Rings::Repeat);
    assert_eq!(taken(), [(1, ring)]);
    work.ring(1, Some(8));
    work.close(Close::Cancel);
    work.reopen(Rings::Forget);
    assert_eq!(taken(), []);
    work.close(Close::Cancel);
    work.reopen(Rings::Repeat);
    assert_eq!(taken(), []);
}

#[test]
fn ring_of_a_doorbell_that_does_not_exist_is_ignored() {
    let (_, work) = new();
    work.ring(2, None);
    work.ring_through(2, None, |_| panic!("has no such doorbell"));
    assert_eq!(taken(&work), []);
}

#[test]
fn data_path_is_rung_inside_the_gate_only() {
    let (_, work) = new();
    let delivered = AtomicUsize::new(0);
    let deliver = |ring: Ring| {
        assert_eq!(ring.value, Some(1));
        delivered.fetch_add(1, Ordering::Relaxed);
    };
    work.ring_through(0, Some(1), deliver);
    assert_eq!(delivered.load(Ordering::Relaxed), 1);
    work.close(Close::Finish);
    work.ring_through(0, Some(2), |_| panic!("the gate is closed"));
    work.reopen(Rings::Repeat);
    assert_eq!(taken(&work), [(0, Ring { value: Some(2) })]);
}

/// A data path may resume one of its queues.
#[test]
fn ring_that_comes_amid_a_delivery_is_left_to_it() {
    let (_, work) = new();
    let queue = work.queue([0], []);
    let mut values = Vec::new();
    work.ring_through(0, Some(1), |ring| {
        values.push(ring.value);
        if values.len() == 1 {
            queue.resume(Rings::Repeat);
            assert_eq!(taken(&work), [], "two deliveries at a time");
        }
    });
    assert_eq!(values, [Some(1), Some(1)], "the ring is lost");
}

#[test]
fn panic_of_a_task_is_reported_with_its_name_before_the_device_is_idle() {
    let (runtime, work, panics) = with_panics();
    work.spawn("bad", |_| async { panic!("on purpose") }).expect("starts");
    runtime.run_until_idle();
    assert_eq!(panics.try_recv().as_deref(), Ok("bad: panic: on purpose"));
    assert_eq!(work.list(), []);
}

#[test]
fn task_whose_future_cannot_be_made_is_not_listed() {
    let (_, work) = new();
    let make = |_| -> std::future::Ready<()> { panic!("on purpose") };
    let spawn = || work.spawn("bad", make);
    vfiod_tasks::contain::contain(spawn).expect_err("panics");
    assert_eq!(work.list(), []);
    work.close(Close::Finish);
    assert!(work.is_idle());
}

#[test]
fn list_shows_what_tasks_do() {
    let (runtime, work) = new();
    work.spawn("waits", |_| std::future::pending()).expect("starts");
    let listed = |work: &Work| work.list().remove(0);
    assert_eq!(listed(&work).polls, 0);
    runtime.run_until_idle();
    let task = listed(&work);
    assert_eq!((task.id, task.name.as_str(), task.polls), (1, "waits", 1));
    assert_eq!(task.state, TaskState::Waiting);
    assert!(task.run <= task.age);
}

#[test]
fn queue_is_stopped_by_its_task() {
    let (runtime, work) = new();
    let queue = work.spawn("queue 1", |_| std::future::pending()).expect("starts");
    work.spawn("queue 2", |_| std::future::pending()).expect("starts");
    runtime.run_until_idle();
    queue.cancel();
    assert!(runtime.block_on(None, queue.gone()).is_some());
    assert!(work.find("queue 1").is_none() && work.find("queue 2").is_some());
}

#[test]
fn tasks_are_cancelled_when_the_work_is_dropped() {
    let (runtime, work) = new();
    let held = Arc::new(());
    let holds = held.clone();
    let make = |_| async move {
        let _held = holds;
        std::future::pending::<()>().await;
    };
    work.spawn("waits", make).expect("starts");
    runtime.run_until_idle();
    drop(work);
    runtime.run_until_idle();
    assert_eq!(Arc::strong_count(&held), 1);
}
