//! Operations of devices that run, as their models offer them.

use axum::Json;
use axum::extract::State;
use serde_json::Value;

use crate::handler::{Answer, Given, Named, Shared, ended, look, operate};
use crate::problem::Problem;
use crate::request::Operation;

/// The operations of a device: a JSON schema of what can be posted here.
///
/// 501 EOPNOTSUPP: its model has none.
#[utoipa::path(get, path = "/devices/{name}/operations", tag = "devices",
    params(("name" = String, Path, description = "the device's name")),
    responses((status = 200, description = "a JSON schema", body = Object),
        (status = "default", response = Problem)))]
pub(crate) async fn operations(
    State(manager): Shared,
    Named(name): Named<String>,
) -> Answer<Value> {
    look(&manager, move |manager| manager.operations_schema(&name)).await
}

/// Carries out an operation of a device, one that its model has. What it changes for good is part of the
/// configuration that runs (`/config`) from then on.
///
/// The reply comes when everything has ended that the operation ends, such as commands that were under way. 501
/// EOPNOTSUPP: its model has no operations; 422 EINVAL: it has no such one, or an argument is wrong; 403
/// EACCES: the sandbox does not allow a path; 409 EBUSY, EEXIST: it is in the way of what there is; 504
/// ETIMEDOUT: it was carried out, and something goes on for longer than the request waits.
#[utoipa::path(post, path = "/devices/{name}/operations", tag = "devices", request_body = Operation,
    params(("name" = String, Path, description = "the device's name")),
    responses((status = 200, description = "what came of it; `null` if there is nothing to say",
        body = Object), (status = "default", response = Problem)))]
pub(crate) async fn carry_out(
    State(manager): Shared,
    Named(name): Named<String>,
    Given(Operation(operation)): Given<Operation>,
) -> Answer<Value> {
    let subject = name.clone();
    let carry_out = move |manager: &std::sync::Arc<vfiod_manager::Manager>| {
        manager.operate(&name, Value::Object(operation))
    };
    let Json(operated) = operate(&manager, &subject, carry_out).await?;
    if let Some(ending) = operated.ending {
        ended(&subject, ending).await?;
    }
    Ok(Json(operated.result))
}
