//! What all handlers of requests have in common: where they run, and how long they may take.
//!
//! Whoever looks waits for no device: what is shown of one is read without its callbacks. Operations
//! may wait for a device that is stuck. They have threads of their own, of which those on one thing can
//! have few, so that the others can still be managed. Every request has a deadline; an operation that
//! has begun goes on after it.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use tokio::sync::Notify;
use tokio::time::Instant;
use vfiod_core::{DeviceId, Errno, Error};
use vfiod_manager::Manager;

pub(crate) use crate::body::{Given, NoBody};
use crate::caller;
use crate::places::Places;
use crate::problem::Problem;
use crate::releases::Releases;
use crate::shares::{Share, Shares};
use crate::threads::Threads;

/// Where every path of this version begins.
pub(crate) const PREFIX: &str = "/api/v1";

/// Threads of those who look.
const LOOKS: usize = 16;
/// Threads of operations.
const OPERATIONS: usize = 64;
/// Threads of operations on one thing.
const OPERATIONS_ON_ONE: usize = 4;
/// Saved states that are received at the same time: they are large.
const STATES: usize = 8;
/// How long a look may take.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);
/// How long an operation may take. What gives users time is several of them, with waits in between.
const OPERATION_DEADLINE: Duration = Duration::from_secs(10);
/// How long a request waits for what is still to end after its operation. With the operation itself it is less
/// than what our client waits for a reply.
const ENDING_DEADLINE: Duration = Duration::from_secs(15);

/// The subject of changes of the configuration, which are made one at a time.
pub(crate) const CONFIGURATION: &str = "the configuration";

/// The manager, and the threads on which requests wait for it.
pub(crate) struct Api {
    manager: Arc<Manager>,
    threads: Threads,
    places: Places,
    looks: Shares,
    operations: Shares,
    /// Saved states that are being received.
    states: Shares,
    /// Operations that run, by what they are on.
    running: Arc<Mutex<HashMap<String, usize>>>,
    releases: Arc<Releases>,
}

impl Api {
    /// `places` are those of the connections to it.
    pub(crate) fn new(manager: Arc<Manager>, threads: Threads, places: Places) -> Arc<Self> {
        Arc::new(Self {
            manager,
            threads,
            places,
            looks: Shares::new(LOOKS),
            operations: Shares::new(OPERATIONS),
            states: Shares::new(STATES),
            running: Arc::default(),
            releases: Arc::default(),
        })
    }

    /// Notified from now on when a device is not open any more; see [`Releases::of`].
    pub(crate) fn released(&self, device: DeviceId) -> Arc<Notify> {
        self.releases.of(&self.manager, device)
    }

    /// The places of the connections to it.
    pub(crate) fn places(&self) -> &Places {
        &self.places
    }

    /// Who may send a saved state.
    pub(crate) fn states(&self) -> &Shares {
        &self.states
    }

    /// Counts an operation.
    ///
    /// # Errors
    /// `EBUSY`: as many run on this as can.
    fn begin(&self, subject: &str) -> Result<Running, Error> {
        let mut running = self.running.lock().unwrap_or_else(|error| error.into_inner());
        let count = running.entry(subject.to_owned()).or_default();
        if *count >= OPERATIONS_ON_ONE {
            let what = format!("{count} operations on {subject} have not ended; try again");
            return Err(Error::new(Errno::BUSY, what));
        }
        *count += 1;
        Ok(Running { all: self.running.clone(), subject: subject.to_owned() })
    }
}

impl Deref for Api {
    type Target = Arc<Manager>;

    fn deref(&self) -> &Arc<Manager> {
        &self.manager
    }
}

/// An operation that runs.
struct Running {
    all: Arc<Mutex<HashMap<String, usize>>>,
    subject: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(|error| error.into_inner());
        if let Some(count) = all.get_mut(&self.subject) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.subject);
            }
        }
    }
}

/// What every handler is given.
pub(crate) type Shared = State<Arc<Api>>;
/// A result in JSON, or a refusal.
pub(crate) type Answer<T> = Result<Json<T>, Problem>;

/// Runs what waits for the disk at most, and replies with its result.
pub(crate) async fn look<T: Send + 'static>(
    api: &Arc<Api>,
    look: impl FnOnce(&Arc<Manager>) -> Result<T, Error> + Send + 'static,
) -> Answer<T> {
    run(api, &api.looks, (), LOOK_DEADLINE, "this", look).await
}

/// Runs an operation that may wait for the device, instance or definition `subject`, but not for its users.
/// Replies with its result.
pub(crate) async fn operate<T: Send + 'static>(
    api: &Arc<Api>,
    subject: &str,
    operation: impl FnOnce(&Arc<Manager>) -> Result<T, Error> + Send + 'static,
) -> Answer<T> {
    let running = api.begin(subject)?;
    run(api, &api.operations, running, OPERATION_DEADLINE, subject, operation).await
}

/// Waits for what is still to end after an operation on `subject`, without a thread.
pub(crate) async fn ended(
    subject: &str,
    ending: impl Future<Output = Result<(), Error>> + Send + 'static,
) -> Result<(), Problem> {
    // It goes on, whoever waits for it.
    let ending = tokio::spawn(ending);
    match tokio::time::timeout(ENDING_DEADLINE, ending).await {
        Ok(Ok(ended)) => Ok(ended?),
        Ok(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
        Err(_) => {
            let what = format!(
                "{subject}: done, but what was begun before has not ended within {} s; it goes on",
                ENDING_DEADLINE.as_secs()
            );
            Err(Error::new(Errno::TIMEDOUT, what).into())
        }
    }
}

/// Runs an operation that may wait for `subject`, and replies with no content.
pub(crate) async fn done(
    api: &Arc<Api>,
    subject: &str,
    operation: impl FnOnce(&Arc<Manager>) -> Result<(), Error> + Send + 'static,
) -> Result<StatusCode, Problem> {
    let done = operate(api, subject, operation).await;
    done.map(|Json(())| StatusCode::NO_CONTENT)
}

async fn run<T: Send + 'static>(
    api: &Arc<Api>,
    shares: &Shares,
    running: impl Send + 'static,
    deadline: Duration,
    subject: &str,
    operation: impl FnOnce(&Arc<Manager>) -> Result<T, Error> + Send + 'static,
) -> Answer<T> {
    let end = Instant::now() + deadline;
    let Ok(share) = tokio::time::timeout_at(end, shares.take(caller::peer())).await else {
        let what = format!(
            "{subject} has not begun within {} s: earlier requests take all threads that there are \
             for this user; try again when one of them has ended",
            deadline.as_secs()
        );
        return Err(Error::new(Errno::AGAIN, what).into());
    };
    let manager = api.manager.clone();
    let run = api.threads.run(move || {
        // Held until it has ended, also if nobody waits for that any more.
        let _held: (Share, _) = (share, running);
        operation(&manager)
    });
    match tokio::time::timeout_at(end, run).await {
        Ok(Ok(Some(result))) => Ok(Json(result?)),
        Ok(Ok(None)) => {
            tracing::error!("an operation of the control API has panicked");
            let what = "the daemon failed at this; its log says more";
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, what))
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "no thread for a request of the control API");
            Err(error.into())
        }
        Err(_) => {
            let what = format!(
                "{subject} has not ended within {} s; what has begun goes on",
                deadline.as_secs()
            );
            Err(Error::new(Errno::TIMEDOUT, what).into())
        }
    }
}

/// Parts of the path.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Problem))]
pub(crate) struct Named<T>(pub(crate) T);

/// What comes after the question mark.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(Problem))]
pub(crate) struct Asked<T>(pub(crate) T);

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use vfiod_config::{Config, Models};
    use vfiod_quota::User;

    use super::*;
    use crate::caller::{Caller, Pace};
    use crate::places::Peer;

    /// Waits for a reply that says that the deadline is over. Bounded, as without one it never comes.
    async fn in_time(run: impl Future<Output = Answer<()>>) -> Problem {
        let run = tokio::time::timeout(Duration::from_secs(60), run).await;
        run.expect("a request without a deadline").unwrap_err()
    }

    /// What takes all threads delays the others' replies, and keeps none back.
    #[test]
    fn request_for_which_no_thread_becomes_free_is_refused_at_its_deadline() {
        let manager = Manager::start(Config::default(), &Models::new(), None).unwrap();
        let api = Api::new(Arc::new(manager), Threads::default(), Places::by_user(8));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (shares, deadline) = (Shares::new(0), Duration::from_millis(10));
        let request = run(&api, &shares, (), deadline, "it", |_| Ok(()));
        let refused = runtime.block_on(in_time(request));
        assert_eq!(refused.errno.as_deref(), Some("EAGAIN"), "it has not begun: {refused:?}");
    }

    #[test]
    fn operation_over_its_deadline_is_reported_and_keeps_its_thread_until_it_ends() {
        let manager = Manager::start(Config::default(), &Models::new(), None).unwrap();
        let threads = Threads::default();
        let api = Api::new(Arc::new(manager), threads.clone(), Places::by_user(8));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (go_on, wait) = mpsc::channel::<()>();
        let running = api.begin("it").unwrap();
        let blocked = move |_: &Arc<Manager>| {
            let _ = wait.recv();
            Ok(())
        };
        let deadline = Duration::from_millis(10);
        let shares = &api.operations;
        let refused =
            runtime.block_on(in_time(run(&api, shares, running, deadline, "it", blocked)));
        assert_eq!(refused.errno.as_deref(), Some("ETIMEDOUT"), "{refused:?}");
        for _ in 1..OPERATIONS_ON_ONE {
            std::mem::forget(api.begin("it").unwrap());
        }
        assert_eq!(api.begin("it").err().map(|error| error.errno()), Some(Errno::BUSY));
        api.begin("another").unwrap();
        drop(go_on);
        threads.settle(Duration::from_secs(60));
        api.begin("it").unwrap();
    }

    #[test]
    fn operations_of_one_user_that_do_not_end_keep_nobody_else_from_theirs() {
        let manager = Manager::start(Config::default(), &Models::new(), None).unwrap();
        let threads = Threads::default();
        let api = Api::new(Arc::new(manager), threads.clone(), Places::by_user(8));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (go_on, wait) = mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        let caller = |uid| Caller::new(Peer::User(User::Account(uid)), Pace::default());
        let deadline = Duration::from_millis(10);
        runtime.block_on(async {
            let refusals = async {
                let mut refusals = Vec::new();
                for _ in 0..OPERATIONS {
                    let wait = wait.clone();
                    let blocked = move |_: &Arc<Manager>| {
                        let _ = wait.lock().unwrap().recv();
                        Ok(())
                    };
                    let refused = run(&api, &api.operations, (), deadline, "it", blocked).await;
                    refusals.push(refused.unwrap_err().errno.unwrap());
                }
                refusals
            };
            let refusals = caller(1000).scope(refusals).await;
            assert_eq!(refusals.iter().filter(|errno| *errno == "ETIMEDOUT").count(), 28);
            assert_eq!(refusals.last().unwrap(), "EAGAIN", "it has not begun");
            let done = caller(1001).scope(operate(&api, "another", |_| Ok(5)));
            assert_eq!(done.await.unwrap().0, 5);
        });
        drop(go_on);
        threads.settle(Duration::from_secs(60));
    }
}
