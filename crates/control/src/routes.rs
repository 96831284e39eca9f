//! The resources, one function for each method of each path.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::{IntoParams, OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;
use vfiod_config::TIME_HELP;
use vfiod_core::{FileId, InUse};
use vfiod_manager::{Change, Manager, NewInstance};
use vfiod_mdev::Removal;

use crate::changes;
use crate::document::with_statuses;
use crate::events;
use crate::handler::{
    Answer, Api, Asked, Given, Named, NoBody, PREFIX, Shared, done, look, operate,
};
use crate::look as views;
use crate::metrics;
use crate::operations;
use crate::page::Page;
use crate::places::Places;
use crate::problem::Problem;
use crate::query;
use crate::removal;
use crate::request::{ChangeInstance, Create, Define, DefineInstance, Modify};
use crate::states;
use crate::threads::Threads;
use crate::view::{self, Revoked};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "vfiod control API",
        description = "Devices, device sets, files, parents, types, instances, definitions and \
            events of a running vfiod. Refusals are problem details (RFC 9457) with the errno.",
        license(name = "Apache-2.0 OR MIT", identifier = "Apache-2.0 OR MIT"),
    ),
    components(responses(Problem))
)]
struct Document;

/// Every path and what serves it.
pub(crate) fn router(
    manager: Arc<Manager>,
    threads: Threads,
    places: Places,
) -> (axum::Router, utoipa::openapi::OpenApi) {
    let (router, document) = paths().split_for_parts();
    let served = with_statuses(&document, manager.models());
    let answer = move || std::future::ready(Json(served.clone()));
    let router = router
        .route(&format!("{PREFIX}/openapi.json"), axum::routing::get(answer))
        .route("/metrics", axum::routing::get(show_metrics))
        .fallback(|| async {
            let help = format!("there is no such resource; {PREFIX}/openapi.json lists them");
            Problem::new(StatusCode::NOT_FOUND, help)
        })
        .method_not_allowed_fallback(|| async {
            let help = format!("not with this method; {PREFIX}/openapi.json lists them");
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, help)
        })
        .layer(from_fn_with_state(query::keys(&document), query::check))
        .with_state(Api::new(manager, threads, places));
    (router, document)
}

/// Serves nothing but the metrics: for an address that anybody may reach.
pub(crate) fn metrics_router(
    manager: Arc<Manager>,
    threads: Threads,
    places: Places,
) -> axum::Router {
    let page = Arc::<Page>::default();
    let shown = async move |State(manager): Shared| {
        let written = async move { written_metrics(&manager).await };
        let text = page.text(Instant::now(), written).await?;
        Ok::<_, Problem>(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text))
    };
    axum::Router::new()
        .route("/metrics", axum::routing::get(shown))
        .layer(from_fn_with_state(query::Keys::default(), query::check))
        .with_state(Api::new(manager, threads, places))
}

/// Metrics in Prometheus' text format.
async fn show_metrics(State(manager): Shared) -> Result<Response, Problem> {
    let text = written_metrics(&manager).await?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

async fn written_metrics(manager: &Arc<Api>) -> Result<String, Problem> {
    let Json(text) = look(manager, |manager| Ok(metrics::text(manager))).await?;
    Ok(text)
}

/// What `openapi.json` says.
pub(crate) fn document() -> utoipa::openapi::OpenApi {
    paths().split_for_parts().1
}

fn paths() -> OpenApiRouter<Arc<Api>> {
    let inner = OpenApiRouter::new()
        .routes(routes!(daemon))
        .routes(routes!(devices, changes::add))
        .routes(routes!(device, changes::delete))
        .routes(routes!(changes::reload))
        .routes(routes!(changes::configuration))
        .routes(routes!(device_files))
        .routes(routes!(operations::operations, operations::carry_out))
        .routes(routes!(states::state, states::restore))
        .routes(routes!(sets))
        .routes(routes!(set))
        .routes(routes!(reset_set))
        .routes(routes!(files))
        .routes(routes!(file, revoke_file))
        .routes(routes!(parents))
        .routes(routes!(parent))
        .routes(routes!(types))
        .routes(routes!(instances, create))
        .routes(routes!(instance, change_instance, remove))
        .routes(routes!(define_instance))
        .routes(routes!(definitions, define))
        .routes(routes!(definition, modify, undefine))
        .routes(routes!(start))
        .routes(routes!(events::events));
    OpenApiRouter::with_openapi(Document::openapi()).nest(PREFIX, inner)
}

/// The daemon itself.
#[utoipa::path(get, path = "/daemon", tag = "daemon",
    responses((status = 200, description = "the daemon", body = view::Daemon),
        (status = "default", response = Problem)))]
async fn daemon(State(manager): Shared) -> Answer<view::Daemon> {
    let places = manager.places().usage();
    look(&manager, move |manager| Ok(views::daemon(manager, places))).await
}

/// Every device.
#[utoipa::path(get, path = "/devices", tag = "devices",
    responses((status = 200, description = "the devices", body = [view::DeviceSummary]),
        (status = "default", response = Problem)))]
async fn devices(State(manager): Shared) -> Answer<Vec<view::DeviceSummary>> {
    look(&manager, |manager| {
        Ok(manager.devices().iter().map(|device| views::summary(manager, device)).collect())
    })
    .await
}

/// A device: files, regions, interrupts, memory, connections.
#[utoipa::path(get, path = "/devices/{name}", tag = "devices",
    params(("name" = String, Path, description = "the device's name")),
    responses((status = 200, description = "the device", body = view::Device),
        (status = "default", response = Problem)))]
async fn device(State(manager): Shared, Named(name): Named<String>) -> Answer<view::Device> {
    look(&manager, move |manager| Ok(views::device(manager, &manager.find(&name)?))).await
}

/// Revokes every file of a device.
#[utoipa::path(delete, path = "/devices/{name}/files", tag = "files",
    params(("name" = String, Path, description = "the device's name")),
    responses((status = 200, description = "how many files were revoked", body = Revoked),
        (status = "default", response = Problem)))]
async fn device_files(
    State(manager): Shared,
    Named(name): Named<String>,
    _: NoBody,
) -> Answer<Revoked> {
    let subject = name.clone();
    operate(&manager, &subject, move |manager| Ok(Revoked { files: manager.revoke_device(&name)? }))
        .await
}

/// Every device set.
#[utoipa::path(get, path = "/sets", tag = "sets",
    responses((status = 200, description = "the sets", body = [view::Set]),
        (status = "default", response = Problem)))]
async fn sets(State(manager): Shared) -> Answer<Vec<view::Set>> {
    look(&manager, |manager| {
        let sets = manager.sets();
        Ok(sets.iter().map(|(name, members)| views::set(manager, name, members)).collect())
    })
    .await
}

/// A device set.
#[utoipa::path(get, path = "/sets/{name}", tag = "sets",
    params(("name" = String, Path, description = "the set's name")),
    responses((status = 200, description = "the set", body = view::Set),
        (status = "default", response = Problem)))]
async fn set(State(manager): Shared, Named(name): Named<String>) -> Answer<view::Set> {
    look(&manager, move |manager| Ok(views::set(manager, &name, &manager.set(&name)?))).await
}

/// How a set is reset that may be in use.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum IfInUse {
    /// Refuse while it is in use.
    #[default]
    Refuse,
    /// Under its users, who are not asked.
    Reset,
}

/// How it is to be reset.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct HowToReset {
    #[serde(default)]
    #[param(inline)]
    in_use: IfInUse,
}

/// Resets every member of a device set.
///
/// 409 EBUSY: a member is in use, or could not be quiesced.
#[utoipa::path(post, path = "/sets/{name}/reset", tag = "sets",
    params(("name" = String, Path, description = "the set's name"), HowToReset),
    responses((status = 204, description = "the set was reset"),
        (status = "default", response = Problem)))]
async fn reset_set(
    State(manager): Shared,
    Named(name): Named<String>,
    Asked(how): Asked<HowToReset>,
    _: NoBody,
) -> Result<StatusCode, Problem> {
    let in_use = match how.in_use {
        IfInUse::Refuse => InUse::Refuse,
        IfInUse::Reset => InUse::Reset,
    };
    let subject = name.clone();
    done(&manager, &subject, move |manager| manager.reset_set(&name, in_use)).await
}

/// Every file: who has what open since when.
#[utoipa::path(get, path = "/files", tag = "files",
    responses((status = 200, description = "the files", body = [view::File]),
        (status = "default", response = Problem)))]
async fn files(State(manager): Shared) -> Answer<Vec<view::File>> {
    look(&manager, |manager| Ok(manager.devices().iter().flat_map(views::files).collect())).await
}

/// A file.
#[utoipa::path(get, path = "/files/{number}", tag = "files",
    params(("number" = u64, Path, description = "the file's number")),
    responses((status = 200, description = "the file", body = view::File),
        (status = "default", response = Problem)))]
async fn file(State(manager): Shared, Named(number): Named<u64>) -> Answer<view::File> {
    look(&manager, move |manager| views::file(manager, number)).await
}

/// Revokes a file: every later operation on it fails with ENODEV.
#[utoipa::path(delete, path = "/files/{number}", tag = "files",
    params(("number" = u64, Path, description = "the file's number")),
    responses((status = 204, description = "the file was revoked"),
        (status = "default", response = Problem)))]
async fn revoke_file(
    State(manager): Shared,
    Named(number): Named<u64>,
    _: NoBody,
) -> Result<StatusCode, Problem> {
    done(&manager, &format!("file {number}"), move |manager| manager.revoke_file(FileId(number)))
        .await
}

/// Every parent of mediated devices.
#[utoipa::path(get, path = "/parents", tag = "parents",
    responses((status = 200, description = "the parents", body = [view::Parent]),
        (status = "default", response = Problem)))]
async fn parents(State(manager): Shared) -> Answer<Vec<view::Parent>> {
    look(&manager, |manager| Ok(views::parents(manager))).await
}

/// A parent.
#[utoipa::path(get, path = "/parents/{name}", tag = "parents",
    params(("name" = String, Path, description = "the parent's name")),
    responses((status = 200, description = "the parent", body = view::Parent),
        (status = "default", response = Problem)))]
async fn parent(State(manager): Shared, Named(name): Named<String>) -> Answer<view::Parent> {
    look(&manager, move |manager| views::parent(manager, &name)).await
}

/// Every type of every parent.
#[utoipa::path(get, path = "/types", tag = "parents",
    responses((status = 200, description = "the types", body = [view::Type]),
        (status = "default", response = Problem)))]
async fn types(State(manager): Shared) -> Answer<Vec<view::Type>> {
    look(&manager, |manager| {
        Ok(views::parents(manager).into_iter().flat_map(|parent| parent.types).collect())
    })
    .await
}

/// Every instance.
#[utoipa::path(get, path = "/instances", tag = "instances",
    responses((status = 200, description = "the instances", body = [view::InstanceSummary]),
        (status = "default", response = Problem)))]
async fn instances(State(manager): Shared) -> Answer<Vec<view::InstanceSummary>> {
    look(&manager, |manager| {
        let instances = manager.bus().instances();
        Ok(instances.iter().map(|one| views::instance_summary(manager, one)).collect())
    })
    .await
}

/// An instance: its attributes, its definition, its device.
#[utoipa::path(get, path = "/instances/{uuid}", tag = "instances",
    params(("uuid" = Uuid, Path)),
    responses((status = 200, description = "the instance", body = view::Instance),
        (status = "default", response = Problem)))]
async fn instance(State(manager): Shared, Named(uuid): Named<Uuid>) -> Answer<view::Instance> {
    // Attributes are read by calls of the parent.
    operate(&manager, &uuid.to_string(), move |manager| {
        Ok(views::instance(manager, &manager.find_instance(uuid)?))
    })
    .await
}

fn pairs(settings: Vec<view::Setting>) -> Vec<(String, String)> {
    settings.into_iter().map(|setting| (setting.name, setting.value)).collect()
}

impl From<Create> for NewInstance {
    fn from(create: Create) -> Self {
        let Create { parent, type_id, uuid, attributes } = create;
        Self { parent, type_id, uuid, attributes: pairs(attributes) }
    }
}

/// Creates an instance, which lasts until it is removed or the daemon ends.
///
/// 404 ENODEV: no such parent, or it is being unregistered; 422 EINVAL: no such type, or a bad value; 409
/// EEXIST: the UUID is known; 409 EUSERS: none is left.
#[utoipa::path(post, path = "/instances", tag = "instances", request_body = Create,
    responses((status = 201, description = "the new instance", body = view::Instance),
        (status = "default", response = Problem)))]
async fn create(
    State(manager): Shared,
    Given(create): Given<Create>,
) -> Result<(StatusCode, Json<view::Instance>), Problem> {
    let subject = create.uuid.map_or_else(|| create.parent.clone(), |uuid| uuid.to_string());
    let instance = operate(&manager, &subject, move |manager| {
        Ok(views::instance(manager, &manager.create_undefined(create.into())?))
    })
    .await?;
    Ok((StatusCode::CREATED, instance))
}

/// Sets attributes of an instance; its definition stays as it is.
#[utoipa::path(patch, path = "/instances/{uuid}", tag = "instances",
    params(("uuid" = Uuid, Path)), request_body = ChangeInstance,
    responses((status = 200, description = "the instance", body = view::Instance),
        (status = "default", response = Problem)))]
async fn change_instance(
    State(manager): Shared,
    Named(uuid): Named<Uuid>,
    Given(change): Given<ChangeInstance>,
) -> Answer<view::Instance> {
    let attributes = pairs(change.attributes);
    operate(&manager, &uuid.to_string(), move |manager| {
        Ok(views::instance(manager, &manager.set_attributes(uuid, &attributes)?))
    })
    .await
}

/// How an instance is removed that may be in use.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Policy {
    /// Refuse while it is in use.
    #[default]
    Refuse,
    /// Ask its users to close it, and wait.
    Wait,
    /// Ask its users to close it, and revoke their files at the deadline.
    Deadline,
}

/// How it is to be removed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct HowToRemove {
    #[serde(default)]
    #[param(inline)]
    policy: Policy,
    /// When it is taken from its users, e.g. `5s`; with `policy=deadline`, and only there.
    deadline: Option<String>,
}

impl HowToRemove {
    fn removal(&self) -> Result<Removal, Problem> {
        let wrong = |what: String| Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, what));
        match (self.policy, self.deadline.as_deref()) {
            (Policy::Refuse, None) => Ok(Removal::Refuse),
            (Policy::Wait, None) => Ok(Removal::Wait),
            (Policy::Deadline, Some(text)) => match vfiod_config::time(text) {
                Some(time) => Ok(Removal::Deadline(time)),
                None => wrong(format!("deadline: `{text}` is no time; {TIME_HELP}")),
            },
            (Policy::Deadline, None) => wrong("policy=deadline needs a deadline, e.g. 5s".into()),
            (_, Some(_)) => wrong("a deadline needs policy=deadline".into()),
        }
    }
}

/// Removes an instance.
///
/// 409 EBUSY: it is in use, with `policy=refuse`. With the other policies the reply is 202 at once:
/// the instance is removed when its users have closed it, or at the deadline, and so is its resource.
/// A `DELETE` with a deadline also revokes files of a removal that waits.
#[utoipa::path(delete, path = "/instances/{uuid}", tag = "instances",
    params(("uuid" = Uuid, Path), HowToRemove),
    responses((status = 204, description = "removed"), (status = 202, description = "being removed"),
        (status = "default", response = Problem)))]
async fn remove(
    State(manager): Shared,
    Named(uuid): Named<Uuid>,
    Asked(how): Asked<HowToRemove>,
    _: NoBody,
) -> Result<StatusCode, Problem> {
    let removal = how.removal()?;
    let end = match removal {
        Removal::Refuse => {
            return done(&manager, &uuid.to_string(), move |manager| manager.remove(uuid, removal))
                .await;
        }
        Removal::Wait => None,
        Removal::Deadline(time) => Instant::now().checked_add(time),
    };
    removal::begin(&manager, uuid, end).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Every definition, and the files that are none.
#[utoipa::path(get, path = "/definitions", tag = "definitions",
    responses(
        (status = 200, description = "the definitions, and files that are none",
            body = view::Definitions),
        (status = "default", response = Problem)))]
async fn definitions(State(manager): Shared) -> Answer<view::Definitions> {
    look(&manager, |manager| views::definitions(manager)).await
}

/// Adds a definition, which outlasts the daemon. Starts nothing.
#[utoipa::path(post, path = "/definitions", tag = "definitions", request_body = Define,
    responses((status = 201, description = "the new definition", body = view::Definition),
        (status = "default", response = Problem)))]
async fn define(
    State(manager): Shared,
    Given(define): Given<Define>,
) -> Result<(StatusCode, Json<view::Definition>), Problem> {
    let Define { parent, type_id, uuid, start, attributes } = define;
    let new = NewInstance { parent, type_id, uuid, attributes: pairs(attributes) };
    let start = start.unwrap_or_default();
    let subject = new.parent.clone();
    let defined = operate(&manager, &subject, move |manager| {
        Ok(views::definition(manager, manager.define(new, start)?))
    })
    .await?;
    Ok((StatusCode::CREATED, defined))
}

/// Adds a definition of an instance as it is now, with all attributes that can be set.
#[utoipa::path(post, path = "/instances/{uuid}/definition", tag = "definitions",
    params(("uuid" = Uuid, Path)), request_body = DefineInstance,
    responses((status = 201, description = "the new definition", body = view::Definition),
        (status = "default", response = Problem)))]
async fn define_instance(
    State(manager): Shared,
    Named(uuid): Named<Uuid>,
    Given(define): Given<DefineInstance>,
) -> Result<(StatusCode, Json<view::Definition>), Problem> {
    let start = define.start.unwrap_or_default();
    let defined = operate(&manager, &uuid.to_string(), move |manager| {
        Ok(views::definition(manager, manager.define_running(uuid, start)?))
    })
    .await?;
    Ok((StatusCode::CREATED, defined))
}

/// Which definition is meant.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Which {
    /// Its parent, where several parents have a definition of this UUID.
    parent: Option<String>,
}

/// A definition.
#[utoipa::path(get, path = "/definitions/{uuid}", tag = "definitions",
    params(("uuid" = Uuid, Path), Which),
    responses((status = 200, description = "the definition", body = view::Definition),
        (status = "default", response = Problem)))]
async fn definition(
    State(manager): Shared,
    Named(uuid): Named<Uuid>,
    Asked(which): Asked<Which>,
) -> Answer<view::Definition> {
    look(&manager, move |manager| {
        Ok(views::definition(manager, manager.definition(uuid, which.parent.as_deref())?))
    })
    .await
}

/// Changes a definition; an instance of it stays as it is.
#[utoipa::path(patch, path = "/definitions/{uuid}", tag = "definitions",
    params(("uuid" = Uuid, Path), Which), request_body = Modify,
    responses((status = 200, description = "the definition", body = view::Definition),
        (status = "default", response = Problem)))]
async fn modify(
    State(manager): Shared,
    Named(uuid): Named<Uuid>,
    Asked(which): Asked<Which>,
    Given(modify): Given<Modify>,
) -> Answer<view::Definition> {
    let Modify { start, set, unset } = modify;
    let change = Change { start, set: pairs(set), unset };
    operate(&manager, &uuid.to_string(), move |manager| {
        let changed = manager.modify(uuid, which.parent.as_deref(), &change)?;
        Ok(views::definition(manager, changed))
    })
    .await
}

/// Removes a definition; an instance of it stays until it is removed.
#[utoipa::path(delete, path = "/definitions/{uuid}", tag = "definitions",
    params(("uuid" = Uuid, Path), Which),
    responses((status = 204, description = "the definition is gone"),
        (status = "default", response = Problem)))]
async fn undefine(
    State(manager): Shared,
    Named(uuid): Named<Uuid>,
    Asked(which): Asked<Which>,
    _: NoBody,
) -> Result<StatusCode, Problem> {
    done(&manager, &uuid.to_string(), move |manager| {
        manager.undefine(uuid, which.parent.as_deref())
    })
    .await
}

/// Creates the instance that is defined.
#[utoipa::path(post, path = "/definitions/{uuid}/start", tag = "definitions",
    params(("uuid" = Uuid, Path), Which),
    responses((status = 201, description = "the new instance", body = view::Instance),
        (status = "default", response = Problem)))]
async fn start(
    State(manager): Shared,
    Named(uuid): Named<Uuid>,
    Asked(which): Asked<Which>,
    _: NoBody,
) -> Result<(StatusCode, Json<view::Instance>), Problem> {
    let start = move |manager: &Arc<Manager>| {
        let started = manager.start_definition(uuid, which.parent.as_deref())?;
        Ok(views::instance(manager, &started))
    };
    Ok((StatusCode::CREATED, operate(&manager, &uuid.to_string(), start).await?))
}
