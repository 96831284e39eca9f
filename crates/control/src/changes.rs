//! Changes of the configuration while the daemon runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;
use vfiod_config::TIME_HELP;
use vfiod_core::{DeviceRef, OpenPause};
use vfiod_manager::{EventKind, InUsePolicy, Manager, Removing, Watch, request_close};

use crate::caller;
use crate::handler::{
    Answer, Api, Asked, CONFIGURATION, Given, Named, NoBody, Shared, look, operate,
};
use crate::problem::Problem;
use crate::request::AddDevice;
use crate::view::Changes;

/// The pauses between two requests to close a device: the first, each is twice as long as the one
/// before, and the longest, which is that of the kernel's `vfio_unregister_group_dev`.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(50);
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long a request waits for a device that is busy: the next request follows anyway.
pub(crate) const REQUEST_WAIT: Duration = Duration::from_millis(50);

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
    /// How long users have; `None`: a device in use is refused.
    fn grace(&self) -> Result<Option<Duration>, Problem> {
        let Some(text) = &self.deadline else { return Ok(None) };
        vfiod_config::time(text).map(Some).ok_or_else(|| {
            let what = format!("deadline: `{text}` is no time; {TIME_HELP}");
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, what)
        })
    }
}

/// Adds a device, which stays until it is removed or the daemon ends.
///
/// 422 EINVAL: mistakes, also of what options name, each with its key and a remedy; 409 EBUSY: somebody has what it
/// is to have, or another device would change. Nothing has changed then.
#[utoipa::path(post, path = "/devices", tag = "devices", request_body = AddDevice,
    responses((status = 201, description = "what was added", body = Changes),
        (status = "default", response = Problem)))]
pub(crate) async fn add(
    State(manager): Shared,
    Given(device): Given<AddDevice>,
) -> Result<(StatusCode, Json<Changes>), Problem> {
    let (name, section) = device.section();
    let added =
        operate(&manager, CONFIGURATION, move |manager| manager.add(&name, &section)).await?;
    Ok((StatusCode::CREATED, added))
}

/// How a device is removed that may be in use.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct HowToDelete {
    /// When the files of its users are revoked, e.g. `5s`.
    deadline: Option<String>,
    /// Ask its users to close it, again and again, and reply when it has been removed. Not with a
    /// deadline.
    #[serde(default)]
    wait: bool,
    /// How long to wait at most, e.g. `30s`; with `wait`, and only there.
    timeout: Option<String>,
}

impl HowToDelete {
    /// How long to wait for the users; `None`: not at all.
    fn wait(&self) -> Result<Option<Duration>, Problem> {
        let wrong = |what: String| Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, what));
        match (self.wait, &self.timeout) {
            (false, None) => Ok(None),
            (false, Some(_)) => wrong("a timeout needs wait=true".to_owned()),
            (true, _) if self.deadline.is_some() => {
                wrong("deadline and wait exclude each other".to_owned())
            }
            (true, None) => Ok(Some(Duration::MAX)),
            (true, Some(text)) => match vfiod_config::time(text) {
                Some(time) => Ok(Some(time)),
                None => wrong(format!("timeout: `{text}` is no time; {TIME_HELP}")),
            },
        }
    }
}

/// Removes a device of the configuration. One of the file comes back when that is reloaded.
///
/// 409 EBUSY: it is in use, or being removed, or another device would change; 422 EINVAL: others depend on
/// it. While a request with `wait` or a deadline waits, nobody else can open the device, and other changes
/// of the configuration can be made. With `wait` it can be opened again if the request times out (409
/// EBUSY), or its connection is closed; with a deadline it is removed in any case.
#[utoipa::path(delete, path = "/devices/{name}", tag = "devices",
    params(("name" = String, Path, description = "the device's name"), HowToDelete),
    responses((status = 200, description = "what was removed", body = Changes),
        (status = "default", response = Problem)))]
pub(crate) async fn delete(
    State(manager): Shared,
    Named(name): Named<String>,
    Asked(how): Asked<HowToDelete>,
    _: NoBody,
) -> Answer<Changes> {
    if let Some(time) = how.wait()? {
        return delete_when_unused(manager, name, time).await;
    }
    let grace = InUse { deadline: how.deadline }.grace()?;
    change(&manager, Removing::Device(name), grace).await
}

/// Makes a change that can remove devices in use. Their users have a `grace` to close them; `None`: a
/// device in use is refused.
async fn change(manager: &Arc<Api>, change: Removing, grace: Option<Duration>) -> Answer<Changes> {
    let Some(grace) = grace.filter(|grace| !grace.is_zero()) else {
        return operate(manager, CONFIGURATION, move |manager| {
            let leaving = grace.map(|_| manager.begin_change(&change)).transpose()?;
            manager.finish_change(&change, leaving)
        })
        .await;
    };
    // What has begun goes on, also if the one who asked has gone.
    let changed = caller::spawn(change_after(manager.clone(), change, grace));
    changed.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Makes a change once the users of what it removes have closed it, or after a `grace`. No thread waits
/// meanwhile, and no other change.
async fn change_after(manager: Arc<Api>, change: Removing, grace: Duration) -> Answer<Changes> {
    let end = Instant::now().checked_add(grace);
    // Before the first look, so that no release is missed.
    let watch = manager.watch();
    let begun = change.clone();
    let begin = move |manager: &Arc<Manager>| manager.begin_change(&begun);
    let Json(leaving) = operate(&manager, CONFIGURATION, begin).await?;
    // Not the configuration's: requests for that must not keep this from its end.
    let subject = match &change {
        Removing::Device(name) => format!("the removal of {name}"),
        Removing::Reload => "the reload".to_owned(),
    };
    let devices = leaving.devices().into();
    if let Err(problem) = ask_users(&manager, &subject, devices, watch, end).await {
        tracing::warn!(error = problem.detail, subject, "not every user was asked");
    }
    let finish = move |manager: &Arc<Manager>| manager.finish_change(&change, Some(leaving));
    operate(&manager, &subject, finish).await
}

/// Asks the users of devices to close them, again and again, until they have or it is `end`. Returns
/// whether they have. No thread waits meanwhile.
async fn ask_users(
    manager: &Arc<Api>,
    subject: &str,
    devices: Arc<[DeviceRef]>,
    mut watch: Watch,
    end: Option<Instant>,
) -> Result<bool, Problem> {
    let mut pause = FIRST_PAUSE;
    for n in 0.. {
        let asked = devices.clone();
        let ask = move |_: &Arc<Manager>| Ok(request_close(&asked, n, REQUEST_WAIT));
        let Json(is_used) = operate(manager, subject, ask).await?;
        if !is_used {
            return Ok(true);
        }
        let released = async {
            while let Some(record) = watch.next().await {
                let released = record.kind == EventKind::FileReleased && record.count == Some(0);
                let is_one = |device: &DeviceRef| Some(device.id()) == record.device;
                if record.kind == EventKind::Lost || released && devices.iter().any(is_one) {
                    return;
                }
            }
        };
        let until =
            end.map_or(pause, |end| pause.min(end.saturating_duration_since(Instant::now())));
        // Released, or time for the next request: the next turn sees which.
        let _ = tokio::time::timeout(until, released).await;
        if end.is_some_and(|end| Instant::now() >= end) {
            break;
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    Ok(false)
}

/// Removes a device when its users have closed it. No thread waits meanwhile.
async fn delete_when_unused(manager: Arc<Api>, name: String, time: Duration) -> Answer<Changes> {
    let end = Instant::now().checked_add(time);
    // Before the first look, so that no release is missed.
    let watch = manager.watch();
    let Json(pauses) = {
        let name = name.clone();
        look(&manager, move |manager| manager.pause_opens(&name)).await?
    };
    let devices = pauses.iter().map(OpenPause::device).collect();
    ask_users(&manager, &name, devices, watch, end).await?;
    // If they have not closed it, the refusal names them.
    let subject = name.clone();
    operate(&manager, &subject, move |manager| {
        let _until_removed = pauses;
        manager.delete(&name, InUsePolicy::Refuse)
    })
    .await
}

/// Reads the configuration file again: adds, removes and changes what differs.
///
/// 422 EINVAL: mistakes of the file, also of what options name, each with its place and a remedy; 409 EBUSY: what is to
/// be removed is in use, or being removed, or somebody has what a device is to have. Nothing has changed then. What
/// fails later is undone, and the detail says so. While users have a deadline, other
/// changes can be made; then the file is read once more.
#[utoipa::path(post, path = "/reload", tag = "daemon", params(InUse),
    responses((status = 200, description = "what the reload has changed", body = Changes),
        (status = "default", response = Problem)))]
pub(crate) async fn reload(
    State(manager): Shared,
    Asked(in_use): Asked<InUse>,
    _: NoBody,
) -> Answer<Changes> {
    let grace = in_use.grace()?;
    change(&manager, Removing::Reload, grace).await
}

/// The configuration that runs, as a file that makes it again.
#[utoipa::path(get, path = "/config", tag = "daemon",
    responses((status = 200, description = "a configuration file",
        body = String, content_type = "application/toml"),
        (status = "default", response = Problem)))]
pub(crate) async fn configuration(State(manager): Shared) -> Result<Response, Problem> {
    let Json(text) = look(&manager, |manager| manager.configuration()).await?;
    Ok(([(header::CONTENT_TYPE, "application/toml")], text).into_response())
}
