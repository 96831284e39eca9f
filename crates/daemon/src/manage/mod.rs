//! The commands that ask a running daemon: each is one or two calls of its API.

mod arguments;
mod asked;
mod attach;
mod complete;
mod limit;
mod namespace;
mod print;
mod qmp;
mod states;

use std::time::Duration;

use anyhow::bail;
use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use uuid::Uuid;
use vfiod_config::{UsageError, time_argument};
use vfiod_control::client::{Client, Failure, encoded, path};
use vfiod_control::request::{
    AddDevice, ChangeInstance, Create, Define, DefineInstance, Modify, Operation, Socket,
};
use vfiod_control::view::{self, EventKind, Owner, Start};

pub(crate) use self::arguments::Manage;
use self::arguments::{Kind, RevokeKind, Users, What};
use self::asked::Daemon;
use crate::option_value::{no_argument_twice, no_option_twice, option_value};
use crate::output;

/// How often a removal is looked after: the first interval, and the longest.
const POLL_INTERVALS: (Duration, Duration) =
    (Duration::from_millis(10), Duration::from_millis(320));

/// Runs one of them.
pub(crate) fn run(command: Manage) -> anyhow::Result<()> {
    match command {
        Manage::List { kind, daemon } => list(kind, &daemon),
        Manage::Types { daemon } => list(Kind::Types, &daemon),
        Manage::Show { name, kind, daemon } => show(name.as_deref(), kind, &daemon),
        Manage::Create { what, daemon } => create(what, &daemon),
        Manage::Remove { uuid, users, daemon } => remove(uuid, &users, &daemon),
        Manage::Define { parent, type_id, uuid, attributes, auto, daemon } => {
            let start = Some(if auto { Start::Auto } else { Start::Manual });
            let mut client = connect(&daemon)?;
            let defined: view::Definition = match (parent, type_id, uuid) {
                (Some(parent), Some(type_id), uuid) => {
                    let body = Define { parent, type_id, uuid, start, attributes };
                    client.call(Method::POST, &path(["definitions"]), Some(&body))?
                }
                (_, _, uuid) => {
                    let uuid = uuid.unwrap_or_default().to_string();
                    let path = path(["instances", &uuid, "definition"]);
                    client.call(Method::POST, &path, Some(&DefineInstance { start }))?
                }
            };
            answer(&daemon, &defined, |defined| format!("{}\n", defined.uuid))
        }
        Manage::Undefine { uuid, parent, daemon } => {
            let path = definition(uuid, parent.as_deref(), None);
            connect(&daemon)?.send(Method::DELETE, &path)
        }
        Manage::Start { uuid, parent, daemon } => {
            let path = definition(uuid, parent.as_deref(), Some("start"));
            let started: view::Instance = connect(&daemon)?.send(Method::POST, &path)?;
            answer(&daemon, &started, |started| format!("{}\n", started.summary.uuid))
        }
        Manage::Modify { uuid, attributes, unset, auto, manual, live, parent, daemon } => {
            let mut client = connect(&daemon)?;
            if live {
                let path = path(["instances", &uuid.to_string()]);
                let body = ChangeInstance { attributes };
                let changed: view::Instance = client.call(Method::PATCH, &path, Some(&body))?;
                return answer(&daemon, &changed, |_| String::new());
            }
            let start = auto.then_some(Start::Auto).or(manual.then_some(Start::Manual));
            let path = definition(uuid, parent.as_deref(), None);
            let body = Modify { start, set: attributes, unset };
            let changed: view::Definition = client.call(Method::PATCH, &path, Some(&body))?;
            answer(&daemon, &changed, |_| String::new())
        }
        Manage::Add {
            name,
            device,
            socket_path,
            socket_mode,
            options,
            open,
            state,
            slot,
            function,
            daemon,
        } => {
            no_option_twice(options.iter().map(|set| set.name.as_str()))?;
            let options =
                options.into_iter().map(|set| (set.name, option_value(&set.value))).collect();
            let path = std::path::absolute(socket_path)?;
            let socket = match socket_mode {
                None => Socket::Path(path),
                mode => Socket::Access { path, mode, owner: None, group: None },
            };
            let rest = AddDevice::default();
            let body = AddDevice {
                name,
                model: device,
                socket,
                options,
                open,
                state,
                slot,
                function,
                ..rest
            };
            let path = vfiod_control::client::path(["devices"]);
            let added: view::Changes = connect(&daemon)?.call(Method::POST, &path, Some(&body))?;
            answer(&daemon, &added, changes)
        }
        Manage::Del { name, deadline, wait, timeout, daemon } => {
            let mut path = with_deadline(path(["devices", &name]), deadline.as_deref());
            if wait {
                path += "?wait=true";
                path += &timeout
                    .map_or_else(String::new, |time| format!("&timeout={}", encoded(&time)));
            }
            let removed: view::Changes = connect(&daemon)?.send(Method::DELETE, &path)?;
            answer(&daemon, &removed, changes)
        }
        Manage::Operate { name, operation, arguments, daemon } => {
            operate(&name, operation, arguments, &daemon)
        }
        Manage::Namespace { what } => namespace::run(what),
        Manage::Limit { what } => limit::run(what),
        Manage::Reload { deadline, daemon } => {
            let path = with_deadline(path(["reload"]), deadline.as_deref());
            let reloaded: view::Changes = connect(&daemon)?.send(Method::POST, &path)?;
            answer(&daemon, &reloaded, changes)
        }
        Manage::Config { daemon } => {
            let text = connect(&daemon)?.fetch(&path(["config"]))?;
            output::print(&String::from_utf8_lossy(&text))
        }
        Manage::Reset { device, set, force, daemon } => {
            let mut client = connect(&daemon)?;
            let set = match (device, set) {
                (Some(device), _) => {
                    let device: view::Device = client.get(&path(["devices", &device]))?;
                    device.summary.set
                }
                (None, set) => set.unwrap_or_default(),
            };
            let in_use = if force { "reset" } else { "refuse" };
            let path = format!("{}?in_use={in_use}", path(["sets", &set, "reset"]));
            client.send(Method::POST, &path)
        }
        Manage::Save { device, file, force, daemon } => {
            states::save(&device, &file, force, &daemon)
        }
        Manage::Restore { device, file, daemon } => states::restore(&device, &file, &daemon),
        Manage::Revoke { what, kind, daemon } => {
            let mut client = connect(&daemon)?;
            if kind != Some(RevokeKind::Device) && what.parse::<u64>().is_ok() {
                let is_device = kind.is_none() && exists(&mut client, Kind::Devices, &what)?;
                if !is_device {
                    return client.send(Method::DELETE, &path(["files", &what]));
                }
                if exists(&mut client, Kind::Files, &what)? {
                    bail!(ambiguous(&what, "file", "device"));
                }
            }
            let revoked: view::Revoked =
                client.send(Method::DELETE, &path(["devices", &what, "files"]))?;
            answer(&daemon, &revoked, |revoked| format!("{}\n", revoked.files))
        }
        Manage::Attach { qmp, device, id, bus, daemon } => {
            attach::attach(&qmp, &device, id, bus, &daemon)
        }
        Manage::Detach { qmp, device, id, timeout, daemon } => {
            let timeout = time_argument("--timeout", &timeout)?;
            attach::detach(&qmp, &device, id, timeout, &daemon)
        }
        Manage::Watch { device, kinds, daemon } => {
            connect(&daemon)?.watch(&events(device, &kinds), |event| {
                if daemon.json {
                    output::print(&(serde_json::to_string(&event)? + "\n"))
                } else {
                    output::print(&line(&event))
                }
            })
        }
    }
}

fn connect(daemon: &Daemon) -> anyhow::Result<Client> {
    Client::connect(&daemon.control)
}

/// Prints an answer: as JSON, or for people.
fn answer<T: Serialize>(
    daemon: &Daemon,
    value: &T,
    people: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    if daemon.json { output::print_json(value) } else { output::print(&people(value)) }
}

fn with_deadline(path: String, deadline: Option<&str>) -> String {
    match deadline {
        Some(time) => format!("{path}?deadline={}", encoded(time)),
        None => path,
    }
}

/// The query for events of a device and of some kinds.
fn events(device: Option<String>, kinds: &[String]) -> String {
    let device = device.map(|device| format!("device={}", encoded(&device)));
    let kinds = (!kinds.is_empty()).then(|| format!("kind={}", encoded(&kinds.join(","))));
    let query: Vec<String> = device.into_iter().chain(kinds).collect();
    if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) }
}

/// What a change of the configuration did.
fn changes(changes: &view::Changes) -> String {
    let view::Changes { added, removed, changed, kept, notes } = changes;
    let mut text = String::new();
    for (what, names) in [("added", added), ("removed", removed), ("changed", changed)] {
        if !names.is_empty() {
            text += &format!("{what}: {}\n", names.join(", "));
        }
    }
    text += &format!("untouched: {kept}\n");
    notes.iter().for_each(|note| text += &format!("note: {note}\n"));
    text
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
}

fn list(kind: Kind, daemon: &Daemon) -> anyhow::Result<()> {
    let mut client = connect(daemon)?;
    let words = |words: Vec<String>| words.join(" ");
    match kind {
        Kind::Devices => table::<view::DeviceSummary>(
            daemon,
            &mut client,
            kind,
            &["name", "model", "set", "state", "open", "socket"],
            |_, _| {},
        ),
        Kind::Sets => table::<view::Set>(
            daemon,
            &mut client,
            kind,
            &["name", "open", "members"],
            |set, row| {
                let names = set.members.iter().map(|member| member.device.name.clone());
                row["members"] = words(names.collect()).into();
            },
        ),
        Kind::Files => table::<view::File>(
            daemon,
            &mut client,
            kind,
            &["number", "device", "owner", "since"],
            |_, _| {},
        ),
        Kind::Parents => table::<view::Parent>(
            daemon,
            &mut client,
            kind,
            &["name", "model", "types", "instances"],
            |parent, row| {
                let types = parent.types.iter().map(|mdev_type| mdev_type.id.clone());
                row["types"] = words(types.collect()).into();
                row["instances"] = parent.instances.len().into();
            },
        ),
        Kind::Types => table::<view::Type>(
            daemon,
            &mut client,
            kind,
            &["parent", "type", "available", "device_api", "description"],
            |_, _| {},
        ),
        Kind::Instances => table::<view::InstanceSummary>(
            daemon,
            &mut client,
            kind,
            &["uuid", "parent", "type", "state", "open", "socket"],
            |_, _| {},
        ),
        Kind::Definitions => {
            let all: view::Definitions = client.get(&path([kind.resource()]))?;
            answer(daemon, &all, |all| {
                let columns = ["uuid", "parent", "type", "start", "running", "attributes"];
                let mut text = print::table(&rows(&all.definitions, pairs), &columns);
                for view::Definition { uuid, failure, .. } in &all.definitions {
                    if let Some(why) = failure {
                        text.push_str(&format!("not started: {uuid}: {why}\n"));
                    }
                }
                for view::Damaged { path, why, set_aside_as } in &all.damaged {
                    let place = set_aside_as.as_ref();
                    let place = place.map_or_else(String::new, |at| format!("; set aside as {at}"));
                    text.push_str(&format!("damaged: {path}: {why}{place}\n"));
                }
                text
            })
        }
    }
}

/// Attributes of a definition as they go into a table.
fn pairs(definition: &view::Definition, row: &mut Value) {
    let pairs = definition.attributes.iter().map(|set| format!("{}={}", set.name, set.value));
    row["attributes"] = pairs.collect::<Vec<_>>().join(" ").into();
}

/// Prints a list. `brief` changes what is a list or a structure of its own into a word or a few.
fn table<T: DeserializeOwned + Serialize>(
    daemon: &Daemon,
    client: &mut Client,
    kind: Kind,
    columns: &[&str],
    brief: impl Fn(&T, &mut Value),
) -> anyhow::Result<()> {
    let all: Vec<T> = client.get(&path([kind.resource()]))?;
    answer(daemon, &all, |all| print::table(&rows(all, brief), columns))
}

fn rows<T: Serialize>(all: &[T], brief: impl Fn(&T, &mut Value)) -> Vec<Value> {
    let row = |one: &T| {
        let mut row = serde_json::to_value(one).unwrap_or_default();
        brief(one, &mut row);
        row
    };
    all.iter().map(row).collect()
}

fn show(name: Option<&str>, kind: Option<Kind>, daemon: &Daemon) -> anyhow::Result<()> {
    let mut client = connect(daemon)?;
    let Some(name) = name else {
        let about: view::Daemon = client.get(&path(["daemon"]))?;
        return answer(daemon, &about, |about| tree("daemon", about));
    };
    let kinds: &[Kind] = match kind {
        Some(ref kind) => std::slice::from_ref(kind),
        None if name.parse::<Uuid>().is_ok() => &[Kind::Instances, Kind::Definitions],
        None if name.parse::<u64>().is_ok() => &[Kind::Files, Kind::Devices, Kind::Parents],
        None => &[Kind::Devices, Kind::Sets, Kind::Parents],
    };
    for kind in kinds {
        match find(&mut client, *kind, name) {
            // A set is called like its only member, but a file and a device are two things.
            Ok(_)
                if kinds.len() > 1
                    && *kind == Kind::Files
                    && exists(&mut client, Kind::Devices, name)? =>
            {
                bail!(ambiguous(name, "file", "device"));
            }
            Ok(found) => return answer(daemon, &found, |found| print::tree(name, found)),
            Err(error) if kinds.len() > 1 && is_not_there(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let kinds: Vec<_> = kinds.iter().map(|kind| kind.resource()).collect();
    bail!(not_found(format!("there is no `{name}` among the {}", kinds.join(", "))))
}

/// Whether there is a thing of this name.
fn exists(client: &mut Client, kind: Kind, name: &str) -> anyhow::Result<bool> {
    match find(client, kind, name) {
        Ok(_) => Ok(true),
        Err(error) if is_not_there(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A name that two things have.
fn ambiguous(name: &str, one: &str, other: &str) -> UsageError {
    UsageError(format!(
        "`{name}` is the number of a {one} and the name of a {other}: say which with --kind"
    ))
}

/// One thing with everything in it.
fn find(client: &mut Client, kind: Kind, name: &str) -> anyhow::Result<Value> {
    fn get<T: DeserializeOwned + Serialize>(
        client: &mut Client,
        path: &str,
    ) -> anyhow::Result<Value> {
        Ok(serde_json::to_value(client.get::<T>(path)?)?)
    }
    let path = path([kind.resource(), name]);
    match kind {
        Kind::Devices => get::<view::Device>(client, &path),
        Kind::Sets => get::<view::Set>(client, &path),
        Kind::Files => get::<view::File>(client, &path),
        Kind::Parents => get::<view::Parent>(client, &path),
        Kind::Instances => get::<view::Instance>(client, &path),
        Kind::Definitions => get::<view::Definition>(client, &path),
        // A type has no resource of its own.
        Kind::Types => {
            let types: Vec<view::Type> = client.get(&vfiod_control::client::path(["types"]))?;
            match types.into_iter().find(|mdev_type| mdev_type.id == name) {
                Some(found) => Ok(serde_json::to_value(found)?),
                None => bail!(not_found(format!("there is no type `{name}`"))),
            }
        }
    }
}

fn tree<T: Serialize>(title: &str, value: &T) -> String {
    print::tree(title, &serde_json::to_value(value).unwrap_or_default())
}

fn not_found(detail: String) -> Failure {
    Failure::Refused { status: hyper::StatusCode::NOT_FOUND, detail, errno: None }
}

/// Whether the thing, or every thing of its kind, is missing (another daemon, no definitions).
fn is_not_there(error: &anyhow::Error) -> bool {
    let status = |failure: &Failure| match failure {
        Failure::Refused { status, .. } => Some(*status),
        Failure::NoDaemon(..) | Failure::Silent(..) | Failure::TooLong(_) => None,
    };
    let status = error.downcast_ref::<Failure>().and_then(status);
    matches!(status, Some(hyper::StatusCode::NOT_FOUND | hyper::StatusCode::NOT_IMPLEMENTED))
}

fn create(what: What, daemon: &Daemon) -> anyhow::Result<()> {
    let What { parent, type_id, uuid, attributes } = what;
    let body = Create { parent, type_id, uuid, attributes };
    let path = path(["instances"]);
    let created: view::Instance = connect(daemon)?.call(Method::POST, &path, Some(&body))?;
    answer(daemon, &created, |created| format!("{}\n", created.summary.uuid))
}

fn remove(uuid: Uuid, users: &Users, daemon: &Daemon) -> anyhow::Result<()> {
    let mut client = connect(daemon)?;
    let instance = path(["instances", &uuid.to_string()]);
    let query = match users {
        Users { deadline: Some(time), .. } => format!("policy=deadline&deadline={}", encoded(time)),
        Users { wait: true, .. } => "policy=wait".to_owned(),
        Users { wait: false, deadline: None } => "policy=refuse".to_owned(),
    };
    client.send::<()>(Method::DELETE, &format!("{instance}?{query}"))?;
    // With the policies that wait, the daemon answers at once.
    let mut pause = POLL_INTERVALS.0;
    loop {
        match client.get::<view::Instance>(&instance) {
            Err(error) if error.downcast_ref().is_some_and(Failure::is_not_found) => return Ok(()),
            Err(error) => return Err(error),
            Ok(_) => std::thread::sleep(pause),
        }
        pause = (pause * 2).min(POLL_INTERVALS.1);
    }
}

/// Lets a device carry out an operation: what came of it.
fn call_operation(name: &str, operation: &Operation, daemon: &Daemon) -> anyhow::Result<Value> {
    connect(daemon)?.call(Method::POST, &path(["devices", name, "operations"]), Some(operation))
}

fn operate(
    name: &str,
    operation: String,
    arguments: Vec<view::Setting>,
    daemon: &Daemon,
) -> anyhow::Result<()> {
    no_argument_twice(&operation, arguments.iter().map(|set| set.name.as_str()))?;
    let values: Map<String, Value> =
        arguments.into_iter().map(|set| (set.name, option_value(&set.value))).collect();
    let body = Operation(Map::from_iter([(operation, values.into())]));
    let result = call_operation(name, &body, daemon)?;
    answer(daemon, &result, |result| match result {
        Value::Null => String::new(),
        Value::Object(_) => tree(name, result),
        other => format!("{other}\n"),
    })
}

/// An event in a line.
fn line(event: &view::Record) -> String {
    let mut line = format!("{}  {:20}  {}", event.time, kind_name(event.event), event.name);
    if let Some(set) = event.set.as_ref().filter(|set| **set != event.name) {
        line += &format!("  set {set}");
    }
    for (key, number) in [("file", event.file), ("count", event.count)] {
        if let Some(number) = number {
            line += &format!("  {key} {number}");
        }
    }
    if let Some(cause) = &event.cause {
        line += &format!("  cause {cause}");
    }
    if let Some(Owner::Peer { pid, uid, .. }) = event.owner {
        line += &format!("  pid {pid} uid {uid}");
    }
    line + "\n"
}

fn kind_name(kind: EventKind) -> String {
    let name = serde_json::to_value(kind).unwrap_or_default();
    name.as_str().unwrap_or_default().to_owned()
}
