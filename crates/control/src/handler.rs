//! What all handlers of requests have in common.

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use vfiod_manager::Manager;

pub(crate) use crate::body::{Given, NoBody};
use crate::problem::Problem;

/// Where every path of this version begins.
pub(crate) const PREFIX: &str = "/api/v1";

/// What every handler is given.
pub(crate) type Shared = State<Arc<Manager>>;
/// A result in JSON, or a refusal.
pub(crate) type Answer<T> = Result<Json<T>, Problem>;

/// Runs an operation that may wait, on a thread for that, and replies with its result.
pub(crate) async fn wait_for<T: Send + 'static>(
    manager: &Arc<Manager>,
    operation: impl FnOnce(&Arc<Manager>) -> Result<T, vfiod_core::Error> + Send + 'static,
) -> Answer<T> {
    let manager = manager.clone();
    match tokio::task::spawn_blocking(move || operation(&manager)).await {
        Ok(result) => Ok(Json(result?)),
        Err(error) => {
            tracing::error!(%error, "an operation of the control API failed");
            let what = "the daemon failed at this; its log says more";
            Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, what))
        }
    }
}

/// Runs an operation that may wait, and replies with no content.
pub(crate) async fn done(
    manager: &Arc<Manager>,
    operation: impl FnOnce(&Arc<Manager>) -> Result<(), vfiod_core::Error> + Send + 'static,
) -> Result<StatusCode, Problem> {
    wait_for(manager, operation).await.map(|Json(())| StatusCode::NO_CONTENT)
}

/// Parts of the path.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Problem))]
pub(crate) struct Named<T>(pub(crate) T);

/// What comes after the question mark.
#[derive(FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(Problem))]
pub(crate) struct Asked<T>(pub(crate) T);
