//! Events as a stream.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::Error;
use utoipa::IntoParams;

use crate::caller;
use crate::handler::{Asked, PREFIX, Shared};
use crate::problem::Problem;
use crate::view::{EventKind, Record};

/// How long nothing happens before an empty line shows that the connection is alive.
const IDLE: Duration = Duration::from_secs(10);

/// Which events are wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Wanted {
    /// Only those about the device, parent or definition of this name, or the device of this number.
    device: Option<String>,
    /// Only these kinds, separated by commas, e.g. `file-opened,file-released`.
    kind: Option<String>,
}

/// Chooses records.
struct Filter {
    device: Option<String>,
    kinds: Option<Vec<EventKind>>,
}

impl Wanted {
    fn filter(self) -> Result<Filter, Problem> {
        let parse = |name: &str| {
            EventKind::deserialize(name.into_deserializer()).map_err(|_: Error| {
                let what = format!(
                    "kind: `{name}` is no kind of event; see EventKind in {PREFIX}/openapi.json"
                );
                Problem::new(StatusCode::UNPROCESSABLE_ENTITY, what)
            })
        };
        let kinds = self.kind.map(|names| names.split(',').map(parse).collect()).transpose()?;
        Ok(Filter { device: self.device, kinds })
    }
}

impl Filter {
    /// Whether a watcher wants a record. Of the watch itself it hears in any case.
    fn admits(&self, record: &vfiod_manager::Record) -> bool {
        if matches!(record.kind, EventKind::WatchBegins | EventKind::Lost) {
            return true;
        }
        let is_about = |device: &String| {
            record.name == *device || record.device.is_some_and(|id| id.0.to_string() == *device)
        };
        self.device.as_ref().is_none_or(is_about)
            && self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&record.kind))
    }
}

/// What there is, then everything that happens: a JSON object in a line for each event, without end.
///
/// First come `device-present`, `device-failed` and `parent-present` for what is there, and
/// `watch-begins`; then every event after these, each once, in the order of their numbers. An event
/// that can have caused another one comes before it. An empty line comes every few seconds in which
/// nothing happens. A watcher that is too slow loses the oldest events, and gets `lost` in their place.
#[utoipa::path(get, path = "/events", tag = "events", params(Wanted),
    responses((status = 200, description = "the events, a line each",
        body = Record, content_type = "application/x-ndjson"),
        (status = "default", response = Problem)))]
pub(crate) async fn events(
    State(manager): Shared,
    Asked(wanted): Asked<Wanted>,
) -> Result<Response, Problem> {
    let filter = wanted.filter()?;
    // Who is slow loses events, not the watch.
    caller::may_take_its_time();
    let watch = manager.watch();
    // Drop the manager, so that a watcher does not keep the daemon from ending.
    drop(manager);
    let lines = futures_util::stream::unfold((watch, filter), |(mut watch, filter)| async move {
        let wanted = async {
            loop {
                match watch.next().await {
                    Some(record) if !filter.admits(&record) => {}
                    next => break next,
                }
            }
        };
        let line = match tokio::time::timeout(IDLE, wanted).await {
            Err(_) => Ok(Bytes::from_static(b"\n")),
            Ok(None) => return None,
            Ok(Some(record)) => {
                serde_json::to_string(&Record::from(&record)).map(|line| Bytes::from(line + "\n"))
            }
        };
        Some((line, (watch, filter)))
    });
    let body = Body::from_stream(lines);
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}
