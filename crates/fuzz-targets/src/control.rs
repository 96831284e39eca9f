//! `control`: requests to the control API over its socket, well-formed, nearly so, and any bytes, while
//! clients have devices open. With them devices are added and removed, instances and definitions made,
//! changed and removed, and the configuration is read again.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use serde_json::{Map, Value, json};
use vfiod_client::{Client, Options};

use crate::clients::use_each;
use crate::world::{INSTANCES, Touched, World, with_world};

/// Most steps of an input.
const STEPS: usize = 24;
/// How long a request may take that waits for nobody.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a request is waited for that may wait for the users of a device.
const MOMENT: Duration = Duration::from_millis(30);

#[derive(Arbitrary, Debug)]
enum Step {
    Request(Request),
    Bytes(Vec<u8>),
    /// A client opens a device or an instance, and stays.
    Open {
        device: u8,
    },
    /// The client that came first goes.
    Close,
    /// The configuration file changes.
    WriteFile(File),
}

#[derive(Arbitrary, Debug)]
struct Request {
    method: Method,
    resource: Resource,
    query: Vec<(Key, Word)>,
    body: Body,
    content_type: ContentType,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Method {
    /// What is usual for such a body.
    Usual,
    Get,
    Post,
    Patch,
    Delete,
    Other(u8),
}

#[derive(Arbitrary, Debug)]
enum Resource {
    Daemon,
    Devices,
    Device(Word),
    DeviceFiles(Word),
    Reload,
    Config,
    Sets,
    Set(Word),
    ResetSet(Word),
    Files,
    File(u8),
    Parents,
    Parent(Word),
    Types,
    Instances,
    Instance(Word),
    DefineInstance(Word),
    Definitions,
    Definition(Word),
    StartDefinition(Word),
    Events,
    Document,
    Metrics,
    Any(Vec<Word>),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Key {
    Deadline,
    Wait,
    Timeout,
    InUse,
    Policy,
    Parent,
    Device,
    KindOfEvent,
    Unknown,
}

/// A word of a path, a query or a body.
#[derive(Arbitrary, Clone, Debug)]
enum Word {
    Known(u8),
    Uuid(u8),
    Text(String),
}

/// What is known: names, values of queries and of attributes, and what may be taken for a path.
const WORDS: [&str; 52] = [
    "",
    "edu",
    "template",
    "serial",
    "bench",
    "lines",
    "teacher",
    "physical",
    "virtual-0",
    "fabric",
    "portal",
    "added",
    "other",
    "school",
    "ports",
    "pins",
    "edu-1",
    "mtty-1",
    "mtty-2",
    "gpio-16",
    "dma_mask",
    "inputs",
    "outputs",
    "backend",
    "pty",
    "pty0",
    "loopback",
    "none",
    "gpio",
    "single",
    "multi",
    "retain",
    "reset",
    "card",
    "refuse",
    "wait",
    "deadline",
    "true",
    "false",
    "0s",
    "1ms",
    "20ms",
    "0",
    "1",
    "0xffff",
    "18446744073709551615",
    "auto",
    "manual",
    "..",
    "%2e%2e",
    "%00",
    "%ff",
];

impl Word {
    fn text(&self) -> String {
        match self {
            Self::Known(which) => WORDS[usize::from(*which) % WORDS.len()].to_owned(),
            Self::Uuid(number) => uuid(*number),
            Self::Text(text) => text.clone(),
        }
    }

    /// The word within a path or a query of a request.
    fn within_a_line(&self) -> String {
        let allowed = |byte: &char| byte.is_ascii_graphic() && !"?#&/ ".contains(*byte);
        self.text().chars().filter(allowed).collect()
    }
}

/// One of a few UUIDs, those of the first instances among them.
fn uuid(number: u8) -> String {
    format!("00000000-0000-0000-0000-{:012x}", number % 8)
}

/// A value of a body: what belongs there, or another.
#[derive(Arbitrary, Clone, Debug)]
enum Loose {
    Word(Word),
    Number(i64),
    Bool(bool),
    Null,
    List(Vec<Word>),
}

impl Loose {
    fn value(&self) -> Value {
        match self {
            Self::Word(word) => word.text().into(),
            Self::Number(number) => (*number).into(),
            Self::Bool(value) => (*value).into(),
            Self::Null => Value::Null,
            Self::List(words) => words.iter().map(Word::text).collect(),
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Body {
    None,
    /// An instance or a definition.
    Mdev {
        parent: Loose,
        type_id: Loose,
        uuid: Option<u8>,
        start: Option<Loose>,
        set: Settings,
    },
    /// One that is right but for its attributes.
    Right {
        which: u8,
        uuid: u8,
        start: Option<bool>,
        set: Settings,
    },
    Attributes(Settings),
    Modify {
        start: Option<Loose>,
        set: Settings,
        unset: Vec<Word>,
    },
    /// A device.
    Device {
        name: Loose,
        model: Loose,
        socket: u8,
        options: Vec<(Word, Loose)>,
        keys: Vec<(Word, Loose)>,
    },
    Object(Vec<(Word, Loose)>),
    Bytes(Vec<u8>),
}

type Settings = Vec<(Word, Word)>;

fn settings(settings: &Settings) -> Value {
    let setting =
        |(name, value): &(Word, Word)| json!({"name": name.text(), "value": value.text()});
    settings.iter().map(setting).collect()
}

fn object(members: &[(Word, Loose)]) -> Map<String, Value> {
    members.iter().map(|(key, value)| (key.text(), value.value())).collect()
}

impl Body {
    fn encode(&self, directory: &Path) -> Option<Vec<u8>> {
        let value = match self {
            Self::None => return None,
            // No path: a text may name a socket.
            Self::Bytes(bytes) => {
                return Some(bytes.iter().map(|byte| without_slash(*byte)).collect());
            }
            Self::Mdev { parent, type_id, uuid: number, start, set } => {
                let mut body = json!({"parent": parent.value(), "type": type_id.value()});
                if let Some(number) = number {
                    body["uuid"] = uuid(*number).into();
                }
                if let Some(start) = start {
                    body["start"] = start.value();
                }
                if !set.is_empty() {
                    body["attributes"] = settings(set);
                }
                body
            }
            Self::Right { which, uuid: number, start, set } => {
                let (parent, type_id, _) = INSTANCES[usize::from(*which) % INSTANCES.len()];
                let mut body = json!({"parent": parent, "type": type_id, "uuid": uuid(*number)});
                if let Some(automatic) = start {
                    body["start"] = if *automatic { "auto" } else { "manual" }.into();
                }
                if !set.is_empty() {
                    body["attributes"] = settings(set);
                }
                body
            }
            Self::Attributes(set) => json!({"attributes": settings(set)}),
            Self::Modify { start, set, unset } => {
                let unset: Vec<_> = unset.iter().map(Word::text).collect();
                let mut body = json!({"set": settings(set), "unset": unset});
                if let Some(start) = start {
                    body["start"] = start.value();
                }
                body
            }
            Self::Device { name, model, socket, options, keys } => {
                let mut body = object(keys);
                // What names a path is not for the fuzzer to choose.
                body.insert("socket".to_owned(), socket_of(*socket, directory));
                body.insert("name".to_owned(), name.value());
                body.insert("model".to_owned(), model.value());
                let mut options = object(options);
                ["control", "disk", "links"].iter().for_each(|path| _ = options.remove(*path));
                if !options.is_empty() {
                    body.insert("options".to_owned(), options.into());
                }
                body.into()
            }
            Self::Object(members) => {
                let mut body = object(members);
                body.remove("socket");
                body.into()
            }
        };
        Some(value.to_string().into_bytes())
    }

    /// The method and the resource that take it.
    fn method(&self) -> &'static str {
        match self {
            Self::None => "GET",
            Self::Attributes(_) | Self::Modify { .. } => "PATCH",
            _ => "POST",
        }
    }
}

fn without_slash(byte: u8) -> u8 {
    if byte == b'/' { b'_' } else { byte }
}

fn socket_of(which: u8, directory: &Path) -> Value {
    let path = directory.join(match which % 4 {
        0 => "added.sock",
        1 => "edu.sock",
        2 => "no-directory/added.sock",
        _ => "other.sock",
    });
    let path = path.display().to_string();
    if which & 4 == 0 { path.into() } else { json!({"path": path, "mode": "0600"}) }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum ContentType {
    Json,
    JsonToo,
    None,
    Other,
}

/// What the configuration file has.
#[derive(Arbitrary, Debug)]
enum File {
    /// What it had at the start.
    First,
    Without {
        section: u8,
    },
    With {
        line: u8,
    },
    Bytes(Vec<u8>),
}

const LINES: [&str; 7] = [
    "[device.more]\nmodel = \"template\"\nsocket = \"DIR/more.sock\"\n",
    "[device.edu]\n",
    "[parent.more]\nmodel = \"edu\"\n",
    "[device.more]\nmodel = \"gpio\"\nslot = \"card\"\nfunction = 3\nsocket = \"DIR/more.sock\"\n",
    "[device.more]\nmodel = \"none\"\nsocket = \"DIR/more.sock\"\n",
    "[container.more]\nid = 9\nsocket = \"DIR/more.sock\"\n",
    "threads = 4\n",
];

impl File {
    fn text(&self, world: &World) -> Vec<u8> {
        let first = world.configuration();
        match self {
            Self::First => first.as_bytes().to_vec(),
            Self::Without { section } => {
                let sections: Vec<&str> = first.split_inclusive("\n\n").collect();
                let left_out = usize::from(*section) % sections.len();
                let kept = sections.iter().enumerate().filter(|(at, _)| *at != left_out);
                kept.map(|(_, section)| *section).collect::<String>().into_bytes()
            }
            Self::With { line } => {
                let directory = world.directory().display().to_string();
                let line = LINES[usize::from(*line) % LINES.len()].replace("DIR", &directory);
                format!("{first}\n{line}").into_bytes()
            }
            Self::Bytes(bytes) => bytes.iter().map(|byte| without_slash(*byte)).collect(),
        }
    }
}

pub(crate) fn play(input: &[u8]) {
    with_world(use_each, |world| {
        let before = files(world.directory());
        let mut clients = Vec::new();
        let mut input = Unstructured::new(input);
        for _ in 0..STEPS {
            if input.is_empty() {
                break;
            }
            let Ok(step) = Step::arbitrary(&mut input) else { continue };
            match step {
                Step::Request(request) => ask(world, &request, !clients.is_empty()),
                Step::Bytes(bytes) => {
                    let bytes: Vec<_> = bytes.iter().map(|byte| without_slash(*byte)).collect();
                    exchange(world, &bytes, Exchange::AnyBytes);
                }
                Step::Open { device } => {
                    let device = &world.devices[usize::from(device) % world.devices.len()];
                    let mut options = Options { timeout: PATIENCE, ..Options::default() };
                    options.capabilities.vf_token = device.vf_token.map(str::to_owned);
                    // Fails where it was removed, or is in use.
                    clients.extend(Client::connect_with(&device.socket, options));
                }
                Step::Close if clients.is_empty() => {}
                Step::Close => drop(clients.remove(0)),
                Step::WriteFile(file) => {
                    let written = std::fs::write(world.file(), file.text(world));
                    written.expect("the configuration is written");
                }
            }
        }
        drop(clients);
        world.restore();
        let after = files(world.directory());
        assert_eq!(after, before, "files are left, or are gone");
        Touched { devices: (0..world.devices.len()).collect(), own_ends: false }
    });
}

/// Sends a request.
///
/// # Panics
/// If there is no reply, if that is no HTTP or no JSON where it says so, or if the daemon says that
/// something within it has failed.
fn ask(world: &World, request: &Request, in_use: bool) {
    let body = request.body.encode(world.directory());
    let method = match request.method {
        Method::Usual => request.body.method(),
        Method::Get => "GET",
        Method::Post => "POST",
        Method::Patch => "PATCH",
        Method::Delete => "DELETE",
        Method::Other(which) => ["PUT", "HEAD", "OPTIONS", "CONNECT", "X"][usize::from(which) % 5],
    };
    let path = path_of(&request.resource);
    let query: Vec<_> = request.query.iter().map(|(key, value)| parameter(*key, value)).collect();
    let query = if query.is_empty() { String::new() } else { format!("?{}", query.join("&")) };
    let content_type = match (request.content_type, &body) {
        (_, None) | (ContentType::None, _) => "",
        (ContentType::Json | ContentType::JsonToo, _) => "content-type: application/json\r\n",
        (ContentType::Other, _) => "content-type: text/plain\r\n",
    };
    let length =
        body.as_ref().map_or(String::new(), |body| format!("content-length: {}\r\n", body.len()));
    let head = format!(
        "{method} {path}{query} HTTP/1.1\r\nhost: vfiod\r\nconnection: close\r\n{content_type}{length}\r\n"
    );
    let bytes = [head.as_bytes(), &body.unwrap_or_default()].concat();
    // A stream of events has no end; a request may wait for who has a device open.
    let waits = matches!(request.resource, Resource::Events) || path.ends_with("/events") || in_use;
    let Some(reply) =
        exchange(world, &bytes, if waits { Exchange::MayWait } else { Exchange::Request })
    else {
        assert!(waits, "no reply to {head}");
        return;
    };
    if !waits {
        check_reply(&reply, &head);
    }
}

/// What is sent to the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exchange {
    /// A request that is complete.
    Request,
    /// A request whose reply has no end, or may wait for who uses a device.
    MayWait,
    AnyBytes,
}

fn check_reply(reply: &[u8], head: &str) {
    let text = String::from_utf8_lossy(reply);
    let status = text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse::<u16>().ok());
    let status = status.unwrap_or_else(|| panic!("{head} got {text}"));
    assert_ne!(status, 500, "{head} got {text}");
    if let Some((headers, body)) = text.split_once("\r\n\r\n") {
        let headers = headers.to_ascii_lowercase();
        let is_json = headers.contains("json\r\n") && !headers.contains("chunked");
        let is_empty = body.is_empty();
        assert!(
            !is_json || is_empty || serde_json::from_str::<Value>(body).is_ok(),
            "{head} got {text}"
        );
    }
}

/// Sends bytes on a connection of its own, and returns the reply. `None`: it did not end in time.
///
/// # Panics
/// If the API does not end the reply to what waits for nobody.
fn exchange(world: &World, bytes: &[u8], how: Exchange) -> Option<Vec<u8>> {
    let patience = if how == Exchange::MayWait { MOMENT } else { PATIENCE };
    let mut stream = UnixStream::connect(world.control()).expect("the control API listens");
    stream.set_read_timeout(Some(patience)).expect("a timeout can be set");
    // Fails where it has been refused before its end.
    let _ = stream.write_all(bytes);
    let mut reply = Vec::new();
    if how == Exchange::AnyBytes {
        // The API may be waiting for the rest of a request.
        let _ = stream.shutdown(Shutdown::Write);
    }
    match stream.read_to_end(&mut reply) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            assert!(
                how == Exchange::MayWait,
                "no end of the reply to {}",
                String::from_utf8_lossy(bytes)
            );
            None
        }
        _ => Some(reply),
    }
}

fn path_of(resource: &Resource) -> String {
    let one = |collection: &str, word: &Word, rest: &str| {
        format!("/api/v1/{collection}/{}{rest}", word.within_a_line())
    };
    let fixed = |path: &str| format!("/api/v1/{path}");
    match resource {
        Resource::Daemon => fixed("daemon"),
        Resource::Devices => fixed("devices"),
        Resource::Device(name) => one("devices", name, ""),
        Resource::DeviceFiles(name) => one("devices", name, "/files"),
        Resource::Reload => fixed("reload"),
        Resource::Config => fixed("config"),
        Resource::Sets => fixed("sets"),
        Resource::Set(name) => one("sets", name, ""),
        Resource::ResetSet(name) => one("sets", name, "/reset"),
        Resource::Files => fixed("files"),
        Resource::File(number) => format!("/api/v1/files/{number}"),
        Resource::Parents => fixed("parents"),
        Resource::Parent(name) => one("parents", name, ""),
        Resource::Types => fixed("types"),
        Resource::Instances => fixed("instances"),
        Resource::Instance(uuid) => one("instances", uuid, ""),
        Resource::DefineInstance(uuid) => one("instances", uuid, "/definition"),
        Resource::Definitions => fixed("definitions"),
        Resource::Definition(uuid) => one("definitions", uuid, ""),
        Resource::StartDefinition(uuid) => one("definitions", uuid, "/start"),
        Resource::Events => fixed("events"),
        Resource::Document => fixed("openapi.json"),
        Resource::Metrics => "/metrics".to_owned(),
        Resource::Any(words) => {
            words.iter().map(|word| format!("/{}", word.within_a_line())).collect()
        }
    }
}

fn parameter(key: Key, value: &Word) -> String {
    let key = match key {
        Key::Deadline => "deadline",
        Key::Wait => "wait",
        Key::Timeout => "timeout",
        Key::InUse => "in_use",
        Key::Policy => "policy",
        Key::Parent => "parent",
        Key::Device => "device",
        Key::KindOfEvent => "kind",
        Key::Unknown => "unknown",
    };
    format!("{key}={}", value.within_a_line())
}

/// The files in a directory, and in those within it.
fn files(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            // The directory of a parent's definitions stays when it is empty.
            if path.is_dir() {
                left.push(path);
            } else {
                found.insert(path);
            }
        }
    }
    found
}
