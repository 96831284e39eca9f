//! Removals of instances that wait for users. Each is a task; it has a thread only while something is
//! done.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use uuid::Uuid;
use vfiod_manager::Manager;
use vfiod_mdev::PendingRemoval;

use crate::caller;
use crate::changes::{FIRST_PAUSE, LONGEST_PAUSE, REQUEST_WAIT};
use crate::handler::{Api, operate};
use crate::problem::Problem;

/// Begins to remove an instance, which is removed when its users have closed it. What is open at `end` is
/// revoked.
pub(crate) async fn begin(api: &Arc<Api>, uuid: Uuid, end: Option<Instant>) -> Result<(), Problem> {
    let subject = uuid.to_string();
    let begin = move |manager: &Arc<Manager>| manager.begin_removal(uuid);
    let Json(pending) = operate(api, &subject, begin).await?;
    match (pending, end) {
        (Some(pending), _) => drop(caller::spawn(finish(api.clone(), uuid, pending, end))),
        // Whoever was first removes it, as soon as nobody has it open.
        (None, Some(end)) => drop(caller::spawn(revoke(api.clone(), uuid, end))),
        (None, None) => {}
    }
    Ok(())
}

/// Asks the users of an instance to close it, again and again, until it can be removed.
async fn finish(api: Arc<Api>, uuid: Uuid, pending: PendingRemoval, end: Option<Instant>) {
    // Before the first look, so that no release is missed.
    let released = api.released(pending.device().id());
    let (pending, subject) = (Arc::new(pending), uuid.to_string());
    let mut pause = FIRST_PAUSE;
    for n in 0.. {
        let expired = end.is_some_and(|end| Instant::now() >= end);
        let step = pending.clone();
        let step = operate(&api, &subject, move |_| {
            if expired {
                step.finish_now();
            }
            let removed = step.finish_if_unused();
            if !removed {
                step.request_close(n, REQUEST_WAIT);
            }
            Ok(removed)
        });
        match step.await {
            Ok(Json(true)) => break,
            Ok(Json(false)) => {}
            Err(problem) => {
                tracing::warn!(%uuid, error = problem.detail, "a removal is held up; trying again");
            }
        }
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let until = left.filter(|left| !left.is_zero()).map_or(pause, |left| left.min(pause));
        // Released, or time for the next request: the next turn sees which.
        let _ = tokio::time::timeout(until, released.notified()).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    tracing::info!(%uuid, "removed");
}

/// Revokes what is open of an instance at `end`.
async fn revoke(api: Arc<Api>, uuid: Uuid, end: Instant) {
    tokio::time::sleep_until(end.into()).await;
    let revoke = move |manager: &Arc<Manager>| {
        // It may have been removed meanwhile.
        Ok(manager.find_instance(uuid).map_or(0, |instance| instance.device().revoke_all()))
    };
    let subject = uuid.to_string();
    if let Err(problem) = operate(&api, &subject, revoke).await {
        tracing::warn!(%uuid, error = problem.detail, "the files of an instance are not revoked");
    }
}
