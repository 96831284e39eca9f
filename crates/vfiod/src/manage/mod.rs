//! The commands that ask a running daemon: each is one or two calls of its API.

mod arguments;
mod complete;
mod print;

use std::time::Duration;

use anyhow::bail;
use hyper::Method;
use serde_json::{Value, json};
use uuid::Uuid;

pub(crate) use self::arguments::Manage;
use self::arguments::{Daemon, Kind, Setting, Users, What};
use crate::control::client::{Client, Failure, encoded, path};
use crate::output;

/// How often is looked whether an instance is gone: at first, and at the longest.
const GLANCES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(320));

/// Runs one of them.
pub(crate) fn run(command: Manage) -> anyhow::Result<()> {
    match command {
        Manage::List { kind, daemon } => list(kind, &daemon),
        Manage::Types { daemon } => list(Kind::Types, &daemon),
        Manage::Show { name, kind, daemon } => show(name.as_deref(), kind, &daemon),
        Manage::Create { what, daemon } => create(what, &daemon),
        Manage::Remove { uuid, users, daemon } => remove(uuid, &users, &daemon),
        Manage::Define { parent, type_id, uuid, attributes, auto, daemon } => {
            let start = if auto { "auto" } else { "manual" };
            let (path, body) = match (parent, uuid) {
                (None, Some(uuid)) => {
                    let path = path(["instances", &uuid.to_string(), "definition"]);
                    (path, json!({ "start": start }))
                }
                (parent, uuid) => {
                    let body = json!({
                        "parent": parent, "type": type_id, "uuid": uuid, "start": start,
                        "attributes": settings(&attributes),
                    });
                    (path(["definitions"]), body)
                }
            };
            let defined = connect(&daemon)?.call(Method::POST, &path, Some(&body))?;
            answer(&daemon, &defined, |defined| line(&defined["uuid"]))
        }
        Manage::Undefine { uuid, parent, daemon } => {
            let path = definition(uuid, parent.as_deref(), None);
            connect(&daemon)?.call(Method::DELETE, &path, None).map(drop)
        }
        Manage::Start { uuid, parent, daemon } => {
            let path = definition(uuid, parent.as_deref(), Some("start"));
            let started = connect(&daemon)?.call(Method::POST, &path, None)?;
            answer(&daemon, &started, |started| line(&started["uuid"]))
        }
        Manage::Modify { uuid, attributes, unset, auto, manual, live, parent, daemon } => {
            let settings = settings(&attributes);
            let (path, body) = if live {
                (path(["instances", &uuid.to_string()]), json!({ "attributes": settings }))
            } else {
                let start = auto.then_some("auto").or(manual.then_some("manual"));
                let body = json!({ "start": start, "set": settings, "unset": unset });
                (definition(uuid, parent.as_deref(), None), body)
            };
            let changed = connect(&daemon)?.call(Method::PATCH, &path, Some(&body))?;
            answer(&daemon, &changed, |_| String::new())
        }
        Manage::Reset { device, set, force, daemon } => {
            let mut client = connect(&daemon)?;
            let set = match (device, set) {
                (Some(device), _) => {
                    let device = client.get(&path(["devices", &device]))?;
                    device["set"].as_str().unwrap_or_default().to_owned()
                }
                (None, set) => set.unwrap_or_default(),
            };
            let in_use = if force { "reset" } else { "refuse" };
            let path = format!("{}?in_use={in_use}", path(["sets", &set, "reset"]));
            client.call(Method::POST, &path, None).map(drop)
        }
        Manage::Revoke { what, daemon } => {
            let mut client = connect(&daemon)?;
            if what.parse::<u64>().is_ok() {
                return client.call(Method::DELETE, &path(["files", &what]), None).map(drop);
            }
            let count = client.call(Method::DELETE, &path(["devices", &what, "files"]), None)?;
            answer(&daemon, &count, |count| line(&count["files"]))
        }
        Manage::Watch { daemon } => connect(&daemon)?.watch(|event| {
            if daemon.json {
                output::print(&format!("{event}\n"))
            } else {
                output::print(&happened(&event))
            }
        }),
    }
}

fn connect(daemon: &Daemon) -> anyhow::Result<Client> {
    Client::connect(&daemon.control)
}

/// Prints an answer: as it is, or for people.
fn answer(
    daemon: &Daemon,
    value: &Value,
    people: impl FnOnce(&Value) -> String,
) -> anyhow::Result<()> {
    if daemon.json { output::print_json(value) } else { output::print(&people(value)) }
}

fn line(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text}\n"),
        other => format!("{other}\n"),
    }
}

fn settings(attributes: &[Setting]) -> Vec<Value> {
    let setting = |set: &Setting| json!({ "name": set.name, "value": set.value });
    attributes.iter().map(setting).collect()
}

fn definition(uuid: Uuid, parent: Option<&str>, action: Option<&str>) -> String {
    let uuid = uuid.to_string();
    let path = path(["definitions", &uuid].into_iter().chain(action));
    match parent {
        Some(parent) => format!("{path}?parent={}", encoded(parent)),
        None => path,
    }
}

impl Kind {
    fn resource(self) -> &'static str {
        match self {
            Self::Devices => "devices",
            Self::Sets => "sets",
            Self::Files => "files",
            Self::Parents => "parents",
            Self::Types => "types",
            Self::Instances => "instances",
            Self::Definitions => "definitions",
        }
    }

    fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Devices => &["name", "model", "set", "state", "open", "socket"],
            Self::Sets => &["name", "open", "members"],
            Self::Files => &["number", "device", "owner", "since"],
            Self::Parents => &["name", "model", "types", "instances"],
            Self::Types => &["parent", "type", "available", "device_api", "description"],
            Self::Instances => &["uuid", "parent", "type", "state", "open", "socket"],
            Self::Definitions => &["uuid", "parent", "type", "start", "running", "attributes"],
        }
    }
}

fn list(kind: Kind, daemon: &Daemon) -> anyhow::Result<()> {
    let all = connect(daemon)?.get(&path([kind.resource()]))?;
    answer(daemon, &all, |all| {
        let mut rows = match kind {
            Kind::Definitions => all["definitions"].as_array(),
            _ => all.as_array(),
        }
        .cloned()
        .unwrap_or_default();
        rows.iter_mut().for_each(|row| brief(kind, row));
        let mut text = print::table(&rows, kind.columns());
        for damaged in all["damaged"].as_array().into_iter().flatten() {
            let [path, why] = ["path", "why"].map(|key| damaged[key].as_str().unwrap_or_default());
            text.push_str(&format!("damaged: {path}: {why}\n"));
        }
        text
    })
}

/// What is a list or a structure of its own, as it goes into a table.
fn brief(kind: Kind, row: &mut Value) {
    let names = |list: &Value, key: &str| -> Value {
        let names = list.as_array().into_iter().flatten().filter_map(|value| value[key].as_str());
        names.collect::<Vec<_>>().join(" ").into()
    };
    match kind {
        Kind::Sets => row["members"] = names(&row["members"], "name"),
        Kind::Parents => {
            row["types"] = names(&row["types"], "type");
            row["instances"] = row["instances"].as_array().map_or(0, Vec::len).into();
        }
        Kind::Definitions => {
            let settings = row["attributes"].as_array().into_iter().flatten();
            let text = |field: &Value| field.as_str().unwrap_or_default().to_owned();
            let pairs =
                settings.map(|set| format!("{}={}", text(&set["name"]), text(&set["value"])));
            row["attributes"] = pairs.collect::<Vec<_>>().join(" ").into();
        }
        Kind::Devices | Kind::Files | Kind::Types | Kind::Instances => {}
    }
}

fn show(name: Option<&str>, kind: Option<Kind>, daemon: &Daemon) -> anyhow::Result<()> {
    let mut client = connect(daemon)?;
    let Some(name) = name else {
        let about = client.get(&path(["daemon"]))?;
        return answer(daemon, &about, |about| print::tree("vfiod", about));
    };
    let kinds: &[Kind] = match kind {
        Some(Kind::Types) => {
            let mut types = client.get(&path(["types"]))?;
            let found = types.as_array_mut().and_then(|types| {
                let at = types.iter().position(|kind| kind["type"] == name)?;
                Some(types.swap_remove(at))
            });
            let Some(found) = found else { bail!(not_found(format!("there is no type `{name}`"))) };
            return answer(daemon, &found, |found| print::tree(name, found));
        }
        Some(ref kind) => std::slice::from_ref(kind),
        None if name.parse::<Uuid>().is_ok() => &[Kind::Instances, Kind::Definitions],
        None if name.parse::<u64>().is_ok() => &[Kind::Files, Kind::Devices, Kind::Parents],
        None => &[Kind::Devices, Kind::Sets, Kind::Parents],
    };
    for kind in kinds {
        match client.get(&path([kind.resource(), name])) {
            Ok(found) => return answer(daemon, &found, |found| print::tree(name, found)),
            Err(error) if kinds.len() > 1 && is_not_there(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let kinds: Vec<_> = kinds.iter().map(|kind| kind.resource()).collect();
    bail!(not_found(format!("there is no `{name}` among the {}", kinds.join(", "))))
}

fn not_found(detail: String) -> Failure {
    Failure::Refused { status: hyper::StatusCode::NOT_FOUND, detail }
}

/// Not there, or no such resource can be at all (another daemon, no store of definitions).
fn is_not_there(error: &anyhow::Error) -> bool {
    let status = |failure: &Failure| match failure {
        Failure::Refused { status, .. } => Some(*status),
        Failure::NoDaemon(..) => None,
    };
    let status = error.downcast_ref::<Failure>().and_then(status);
    matches!(status, Some(hyper::StatusCode::NOT_FOUND | hyper::StatusCode::NOT_IMPLEMENTED))
}

fn create(what: What, daemon: &Daemon) -> anyhow::Result<()> {
    let What { parent, type_id, uuid, attributes } = what;
    let body = json!({
        "parent": parent, "type": type_id, "uuid": uuid, "attributes": settings(&attributes),
    });
    let created = connect(daemon)?.call(Method::POST, &path(["instances"]), Some(&body))?;
    answer(daemon, &created, |created| line(&created["uuid"]))
}

fn remove(uuid: Uuid, users: &Users, daemon: &Daemon) -> anyhow::Result<()> {
    let mut client = connect(daemon)?;
    let instance = path(["instances", &uuid.to_string()]);
    let query = match users {
        Users { deadline: Some(time), .. } => format!("policy=deadline&deadline={}", encoded(time)),
        Users { wait: true, .. } => "policy=wait".to_owned(),
        Users { wait: false, deadline: None } => "policy=refuse".to_owned(),
    };
    client.call(Method::DELETE, &format!("{instance}?{query}"), None)?;
    // With the policies that wait, the daemon answers at once.
    let mut pause = GLANCES.0;
    loop {
        match client.get(&instance) {
            Err(error) if error.downcast_ref().is_some_and(Failure::is_not_found) => return Ok(()),
            Err(error) => return Err(error),
            Ok(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(GLANCES.1);
    }
}

/// An event in a line.
fn happened(event: &Value) -> String {
    let text = |key: &str| event[key].as_str().unwrap_or_default();
    let mut line = format!("{}  {:20}  {}", text("time"), text("event"), text("name"));
    if event["set"].is_string() && event["set"] != event["name"] {
        line += &format!("  set {}", text("set"));
    }
    for key in ["file", "count"] {
        if let Some(number) = event[key].as_u64() {
            line += &format!("  {key} {number}");
        }
    }
    if let Some(cause) = event["cause"].as_str() {
        line += &format!("  cause {cause}");
    }
    if let Some(pid) = event["owner"]["pid"].as_i64() {
        line += &format!("  pid {pid} uid {}", event["owner"]["uid"]);
    }
    line + "\n"
}
