//! Changes of the configuration while the daemon runs.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;
use vfiod_config::TIME_HELP;
use vfiod_manager::InUsePolicy;

use crate::handler::{Answer, Asked, Given, Named, Shared, wait_for};
use crate::problem::Problem;
use crate::request::AddDevice;
use crate::view::Changes;

/// What happens to a device that is in use and to be removed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct InUse {
    /// When the files of its users are revoked, e.g. `5s`. Without a deadline a device in use is
    /// refused.
    deadline: Option<String>,
}

impl InUse {
    fn policy(&self) -> Result<InUsePolicy, Problem> {
        let Some(text) = &self.deadline else { return Ok(InUsePolicy::Refuse) };
        vfiod_config::time(text).map(InUsePolicy::RevokeAfter).ok_or_else(|| {
            let what = format!("deadline: `{text}` is no time; {TIME_HELP}");
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, what)
        })
    }
}

/// Adds a device, which stays until it is removed or the daemon ends.
///
/// 422 EINVAL: mistakes, each with its key and a remedy; 409 EBUSY: another device would change.
#[utoipa::path(post, path = "/devices", tag = "devices", request_body = AddDevice,
    responses((status = 201, body = Changes), (status = "default", response = Problem)))]
pub(crate) async fn add(
    State(manager): Shared,
    Given(device): Given<AddDevice>,
) -> Result<(StatusCode, Json<Changes>), Problem> {
    let (name, section) = device.section();
    let added = wait_for(&manager, move |manager| manager.add(&name, &section)).await?;
    Ok((StatusCode::CREATED, added))
}

/// Removes a device of the configuration. One of the file comes back when that is reloaded.
///
/// 409 EBUSY: it is in use, or another device would change; 422 EINVAL: others depend on it.
#[utoipa::path(delete, path = "/devices/{name}", tag = "devices",
    params(("name" = String, Path, description = "the device's name"), InUse),
    responses((status = 200, body = Changes), (status = "default", response = Problem)))]
pub(crate) async fn delete(
    State(manager): Shared,
    Named(name): Named<String>,
    Asked(in_use): Asked<InUse>,
) -> Answer<Changes> {
    let policy = in_use.policy()?;
    wait_for(&manager, move |manager| manager.delete(&name, policy)).await
}

/// Reads the configuration file again: adds, removes and changes what differs.
///
/// 422 EINVAL: mistakes of the file, each with its place and a remedy; 409 EBUSY: what is to be
/// removed is in use. Nothing has changed then.
#[utoipa::path(post, path = "/reload", tag = "daemon", params(InUse),
    responses((status = 200, body = Changes), (status = "default", response = Problem)))]
pub(crate) async fn reload(State(manager): Shared, Asked(in_use): Asked<InUse>) -> Answer<Changes> {
    let policy = in_use.policy()?;
    wait_for(&manager, move |manager| manager.reload(policy)).await
}

/// The configuration that runs, as a file that makes it again.
#[utoipa::path(get, path = "/config", tag = "daemon",
    responses((status = 200, body = String, content_type = "application/toml"),
        (status = "default", response = Problem)))]
pub(crate) async fn configuration(State(manager): Shared) -> Result<Response, Problem> {
    let Json(text) = wait_for(&manager, |manager| manager.configuration()).await?;
    Ok(([(header::CONTENT_TYPE, "application/toml")], text).into_response())
}
