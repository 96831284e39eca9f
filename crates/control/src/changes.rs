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
use vfiod_core::OpenPause;
use vfiod_manager::{EventKind, InUsePolicy};

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
    fn policy(&self) -> Result<InUsePolicy, Problem> {
        let Some(text) = &self.deadline else { return Ok(InUsePolicy::Refuse) };
        vfiod_config::time(text).map(InUsePolicy::RevokeAfter).ok_or_else(|| {
            let what = format!("deadline: `{text}` is no time; {TIME_HELP}");
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, what)
        })
    }
}

/// How long the users have.
fn grace(policy: InUsePolicy) -> Duration {
    match policy {
        InUsePolicy::Refuse => Duration::ZERO,
        InUsePolicy::RevokeAfter(grace) => grace,
    }
}

/// Adds a device, which stays until it is removed or the daemon ends.
///
/// 422 EINVAL: mistakes, each with its key and a remedy; 409 EBUSY: another device would change.
#[utoipa::path(post, path = "/devices", tag = "devices", request_body = AddDevice,
    responses((status = 201, description = "what was added", body = Changes),
        (status = "default", response = Problem)))]
pub(crate) async fn add(
    State(manager): Shared,
    Given(device): Given<AddDevice>,
) -> Result<(StatusCode, Json<Changes>), Problem> {
    let (name, section) = device.section();
    let added = operate(&manager, CONFIGURATION, Duration::ZERO, move |manager| {
        manager.add(&name, &section)
    })
    .await?;
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
/// 409 EBUSY: it is in use, or another device would change; 422 EINVAL: others depend on it. While a
/// request with `wait` waits, nobody else can open the device; it can again if the request times out
/// (409 EBUSY), or its connection is closed.
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
    let policy = InUse { deadline: how.deadline }.policy()?;
    operate(&manager, CONFIGURATION, grace(policy), move |manager| manager.delete(&name, policy))
        .await
}

/// Removes a device when its users have closed it. No thread waits meanwhile.
async fn delete_when_unused(manager: Arc<Api>, name: String, time: Duration) -> Answer<Changes> {
    let end = Instant::now().checked_add(time);
    // Before the first look, so that no release is missed.
    let mut watch = manager.watch();
    let Json(pauses) = {
        let name = name.clone();
        look(&manager, move |manager| Ok(Arc::new(manager.pause_opens(&name)?))).await?
    };
    let mut pause = FIRST_PAUSE;
    let subject = name.clone();
    for n in 0.. {
        let (name, held) = (name.clone(), pauses.clone());
        let Json(removed) = operate(&manager, &subject, Duration::ZERO, move |manager| {
            let is_used = |pause: &&OpenPause| !pause.device().status().files.is_empty();
            let used: Vec<_> = held.iter().filter(is_used).collect();
            if used.is_empty() {
                return manager.delete(&name, InUsePolicy::Refuse).map(Some);
            }
            used.iter().for_each(|pause| _ = pause.device().request_close(n, REQUEST_WAIT));
            Ok(None)
        })
        .await?;
        if let Some(changes) = removed {
            return Ok(Json(changes));
        }
        let released = async {
            while let Some(record) = watch.next().await {
                let released = record.kind == EventKind::FileReleased && record.count == Some(0);
                let is_member = |pause: &OpenPause| Some(pause.device().id()) == record.device;
                if record.kind == EventKind::Lost || released && pauses.iter().any(is_member) {
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
    // A last try, in whose refusal its users are named.
    operate(&manager, &subject, Duration::ZERO, move |manager| {
        manager.delete(&name, InUsePolicy::Refuse)
    })
    .await
}

/// Reads the configuration file again: adds, removes and changes what differs.
///
/// 422 EINVAL: mistakes of the file, each with its place and a remedy; 409 EBUSY: what is to be
/// removed is in use. Nothing has changed then.
#[utoipa::path(post, path = "/reload", tag = "daemon", params(InUse),
    responses((status = 200, description = "what the reload has changed", body = Changes),
        (status = "default", response = Problem)))]
pub(crate) async fn reload(
    State(manager): Shared,
    Asked(in_use): Asked<InUse>,
    _: NoBody,
) -> Answer<Changes> {
    let policy = in_use.policy()?;
    operate(&manager, CONFIGURATION, grace(policy), move |manager| manager.reload(policy)).await
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
