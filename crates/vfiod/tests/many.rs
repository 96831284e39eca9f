//! As many instances as a host may have, managed through the API by several programs at once.

mod process;

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;

use process::api::ask;
use process::{Daemon, until, vfiod};
use rustix::process::{Resource, getrlimit};
use serde_json::{Value, json};
use vfiod_client::Client;

const INSTANCES: usize = 10_000;
const PROGRAMS: usize = 4;
/// Those that are opened, all at the same time.
const SAMPLE: usize = 200;
/// Of the server.
const THREADS: usize = 16;
/// With those of the control API, at most 32, and the program's own.
const ALL_THREADS: usize = THREADS + 32 + 8;

/// Each takes a descriptor, of which this machine may allow fewer.
fn instances() -> usize {
    let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let free = usize::try_from(limit).unwrap_or(usize::MAX).saturating_sub(1000);
    INSTANCES.min(free).max(SAMPLE)
}

fn uuid(number: usize) -> String {
    format!("83b8f4f2-509f-382f-3c1e-{number:012x}")
}

/// Asks for something for each instance, shared out among several programs.
fn for_each(control: &Path, status: u16, request: impl Fn(usize) -> Request + Sync) {
    thread::scope(|scope| {
        for program in 0..PROGRAMS {
            let request = &request;
            scope.spawn(move || {
                for number in (program..instances()).step_by(PROGRAMS) {
                    let (method, path, body) = request(number);
                    let (got, answer) = ask(control, method, &path, body.as_deref()).unwrap();
                    assert_eq!(got, status, "{method} {path}: {answer}");
                }
            });
        }
    });
}

type Request = (&'static str, String, Option<String>);

#[test]
fn ten_thousand_come_are_used_and_go() {
    let instances = instances();
    if instances < INSTANCES {
        eprintln!("ulimit -Hn leaves descriptors for {instances} instances only");
    }
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let (control, sockets) = (at("control"), at("mdev"));
    let text = format!(
        "threads = {THREADS}\n[parent.pins]\nmodel = \"gpio\"\noptions = {{ instances = {instances} }}\n\
         [mdev]\nsockets = {sockets:?}\n[control]\nsocket = {control:?}\n"
    );
    std::fs::write(at("c.toml"), text).unwrap();
    let command = vfiod(["--log", "error", "serve", at("c.toml").to_str().unwrap()]);
    let daemon = Daemon::serving(command, &[&control]);
    let get = |path: &str| {
        let (mut status, mut answer) = (0, Value::Null);
        until("an answer", || {
            (status, answer) = ask(&control, "GET", path, None).unwrap();
            // To list so many takes a busy machine longer than the API lets a look take.
            status != 504
        });
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let available = || get("types")[0]["available"].as_u64().unwrap();
    assert_eq!(available(), instances as u64);
    let descriptors = daemon.descriptors();

    for_each(&control, 201, |number| {
        let body = json!({"parent": "pins", "type": "gpio-16", "uuid": uuid(number)});
        ("POST", "instances".into(), Some(body.to_string()))
    });
    assert_eq!(available(), 0);
    let body = json!({"parent": "pins", "type": "gpio-16"}).to_string();
    let (status, answer) = ask(&control, "POST", "instances", Some(&body)).unwrap();
    assert_eq!((status, &answer["errno"]), (409, &json!("EUSERS")), "{answer}");

    let list = get("instances");
    let listed: BTreeSet<&str> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|instance| instance["uuid"].as_str().unwrap())
        .collect();
    let all: Vec<String> = (0..instances).map(uuid).collect();
    assert!(listed.iter().copied().eq(all.iter().map(String::as_str)), "{}", listed.len());
    assert_eq!(get("devices").as_array().unwrap().len(), instances);
    assert_eq!(get("sets").as_array().unwrap().len(), instances);

    // One descriptor each, and not one thread.
    until("the end of the programs' connections", || {
        daemon.descriptors() <= descriptors + instances
    });
    // One that has made a name in the directory of sockets ends by itself.
    until("few threads", || daemon.threads() <= ALL_THREADS);

    let clients: Vec<Client> = (0..SAMPLE)
        .map(|turn| {
            let number = turn * (instances / SAMPLE);
            let mut client =
                process::connect(sockets.join(format!("{}.sock", uuid(number)))).unwrap();
            client.device_info().unwrap();
            client
        })
        .collect();
    assert_eq!(get("files").as_array().unwrap().len(), SAMPLE);
    // One that has made a name in the directory of sockets ends by itself.
    until("few threads", || daemon.threads() <= ALL_THREADS);
    let (status, answer) =
        ask(&control, "DELETE", &format!("instances/{}", uuid(0)), None).unwrap();
    assert_eq!((status, &answer["errno"]), (409, &json!("EBUSY")), "{answer}");
    drop(clients);
    until("the last release", || get("files") == json!([]));

    for_each(&control, 204, |number| ("DELETE", format!("instances/{}", uuid(number)), None));
    assert_eq!(get("instances"), json!([]));
    assert_eq!(get("devices"), json!([]));
    assert_eq!(get("sets"), json!([]));
    assert_eq!(get("parents")[0]["instances"], Value::Array(Vec::new()));
    assert_eq!(available(), instances as u64);
    assert_eq!(std::fs::read_dir(&sockets).unwrap().count(), 0);
    until("the descriptors' return", || daemon.descriptors() <= descriptors);
}
