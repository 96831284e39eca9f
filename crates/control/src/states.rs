//! The state of a device: saved for a file, and restored.

use axum::extract::State;
use axum::http::StatusCode;
use serde_json::Value;
use vfiod_manager::SavedDevice;

use crate::body::GivenState;
use crate::handler::{Answer, Named, Shared, done, operate};
use crate::problem::Problem;

/// The state of a device, to be restored to one of the same model, here or elsewhere. The device quiesces for
/// that, and goes on.
///
/// It has what the device has, and nothing of its clients: no files, no interrupts that were set up, nothing of a
/// guest's memory, nor what a disk contains. 501 EOPNOTSUPP: its model cannot be saved; 409 EBUSY: it does not
/// quiesce within two seconds; 500 EIO: it is in the error state.
#[utoipa::path(get, path = "/devices/{name}/state", tag = "devices",
    params(("name" = String, Path, description = "the device's name")),
    responses((status = 200, description = "the state", body = SavedDevice),
        (status = "default", response = Problem)))]
pub(crate) async fn state(
    State(manager): Shared,
    Named(name): Named<String>,
) -> Answer<SavedDevice> {
    let subject = name.clone();
    operate(&manager, &subject, move |manager| manager.save_device(&name)).await
}

/// Restores a state that was saved, of a device of the same model with the same options. Whoever opens the device
/// next finds it, with bus mastering and messages off as after a close; a reset before that ends it.
///
/// 409 EBUSY: the device is in use; 422 EINVAL: the state is damaged, or of another format, version, model,
/// options, disk or size; 500 EIO: the device is in the error state. Nothing has changed then.
#[utoipa::path(put, path = "/devices/{name}/state", tag = "devices",
    params(("name" = String, Path, description = "the device's name")),
    request_body = SavedDevice,
    responses((status = 204, description = "the state was restored"),
        (status = "default", response = Problem)))]
pub(crate) async fn restore(
    State(manager): Shared,
    Named(name): Named<String>,
    GivenState(document): GivenState,
) -> Result<StatusCode, Problem> {
    let subject = name.clone();
    let restore = move |manager: &std::sync::Arc<vfiod_manager::Manager>| {
        manager.restore_device(&name, Value::Object(document))
    };
    done(&manager, &subject, restore).await
}
