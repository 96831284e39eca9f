//! What the model checks of several crates share. Only with `--cfg shuttle`.
//!
//! A *scenario* is a function that starts a few threads ([`spawn`]), joins them ([`join`]) and
//! asserts what must hold. [`check`] runs it in many orders of these threads.

use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, FailurePersistence, Runner};

use crate::thread::{self, JoinHandle};

/// Starts a thread of a scenario.
pub fn spawn<T: Send + 'static>(task: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    thread::spawn(task)
}

/// Waits for a thread of a scenario and returns its result.
///
/// # Panics
/// If the thread panicked.
#[track_caller]
pub fn join<T>(task: JoinHandle<T>) -> T {
    task.join().expect("a thread of the scenario panicked")
}

/// Waits for several threads of a scenario.
///
/// # Panics
/// If one of them panicked.
#[track_caller]
pub fn join_all<T>(tasks: impl IntoIterator<Item = JoinHandle<T>>) -> Vec<T> {
    tasks.into_iter().map(join).collect()
}

/// Runs a scenario in many orders: `rounds` chosen at random, and three times half as many that
/// seek a few unlucky switches. The seeds are fixed, so that a failure can be repeated;
/// `SHUTTLE_RANDOM_SEED` changes them, and `VFIOD_MODEL_ROUNDS` replaces `rounds`.
///
/// # Panics
/// If the scenario fails in one of the orders, which is printed, or its threads deadlock.
pub fn check(scenario: fn(), rounds: usize) {
    let chosen = std::env::var("VFIOD_MODEL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    let rounds = chosen.unwrap_or(rounds);
    run(RandomScheduler::new_from_seed(0x5eed, rounds), scenario);
    for depth in 2..=4 {
        run(PctScheduler::new_from_seed(depth as u64, depth, rounds / 2), scenario);
    }
}

/// Runs a scenario in every order, or in the first `limit` of them.
///
/// # Panics
/// As [`check`].
pub fn check_every_order(scenario: fn(), limit: usize) {
    run(DfsScheduler::new(Some(limit), false), scenario);
}

fn run(scheduler: impl Scheduler + 'static, scenario: fn()) {
    let mut config = Config::new();
    config.stack_size = 0x4_0000;
    config.failure_persistence = FailurePersistence::Print;
    config.silence_warnings = true;
    Runner::new(scheduler, config).run(scenario);
}

/// Makes a module `checks` with a test for each scenario: `scenario: rounds`.
#[macro_export]
macro_rules! checks {
    ($($scenario:ident: $rounds:literal,)*) => {
        mod checks {
            $(#[test]
            fn $scenario() {
                $crate::model::check(super::$scenario, $rounds);
            })*
        }
    };
}
