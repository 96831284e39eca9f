//! The daemon is killed at random instants, a few hundred times: every definition is as the
//! last reply said, or as the next reply would have said; what starts by itself runs, on the same
//! socket.

mod process;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use process::api::ask;
use process::random::Random;
use process::{Daemon, until, vfiod};
use rustix::process::Signal;
use serde_json::{Value, json};

const ROUNDS: u64 = 200;
const NAMES: u64 = 6;

/// What a definition says that matters: when it starts, and its inputs.
type Content = Option<(bool, u64)>;

/// What is known of one definition.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// What the daemon confirmed.
    told: Content,
    /// What it was asked for without having answered yet.
    asked: Option<Content>,
}

fn uuid(name: u64) -> String {
    format!("83b8f4f2-509f-382f-3c1e-0000000000{name:02x}")
}

/// Defines, changes and removes, until the daemon is gone.
fn work(control: &Path, known: &Mutex<BTreeMap<u64, Known>>, random: &mut Random) {
    loop {
        let name = random.below(NAMES);
        let (auto, inputs) = (random.below(2) == 0, random.below(0x10000));
        let start = if auto { "auto" } else { "manual" };
        let set = json!([{ "name": "inputs", "value": inputs.to_string() }]);
        let (path, there) =
            (format!("definitions/{}", uuid(name)), known.lock().unwrap()[&name].told);
        let (method, path, body, wanted) = match (there, random.below(3)) {
            (None, _) => {
                let body = json!({
                    "parent": "pins", "type": "gpio-16", "uuid": uuid(name),
                    "start": start, "attributes": set,
                });
                ("POST", "definitions", Some(body.to_string()), Some((auto, inputs)))
            }
            (Some(_), 0) => ("DELETE", path.as_str(), None, None),
            (Some(_), _) => {
                let body = json!({ "start": start, "set": set });
                ("PATCH", path.as_str(), Some(body.to_string()), Some((auto, inputs)))
            }
        };
        known.lock().unwrap().get_mut(&name).unwrap().asked = Some(wanted);
        match ask(control, method, path, body.as_deref()) {
            Ok((status, answer)) => {
                assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
                known.lock().unwrap().insert(name, Known { told: wanted, asked: None });
            }
            Err(_) => return,
        }
    }
}

fn content(definition: &Value) -> (bool, u64) {
    let attributes = definition["attributes"].as_array().unwrap();
    assert_eq!(attributes.len(), 1, "{definition}");
    let inputs = attributes[0]["value"].as_str().unwrap().parse().unwrap();
    (definition["start"] == "auto", inputs)
}

/// Holds what the daemon has against what is known.
fn check(control: &Path, sockets: &Path, known: &mut BTreeMap<u64, Known>) {
    let (status, answer) = ask(control, "GET", "definitions", None).unwrap();
    assert_eq!((status, &answer["damaged"]), (200, &json!([])), "{answer}");
    let found: BTreeMap<String, (bool, u64)> = answer["definitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|definition| (definition["uuid"].as_str().unwrap().to_owned(), content(definition)))
        .collect();
    for (name, known) in known.iter_mut() {
        let found = found.get(&uuid(*name)).copied();
        assert!(found == known.told || Some(found) == known.asked, "{found:?} is not {known:?}");
        *known = Known { told: found, asked: None };
        let socket = sockets.join(format!("{}.sock", uuid(*name)));
        match found {
            Some((true, inputs)) => {
                let mut client = process::connect(&socket).unwrap();
                let mut bytes = [0; 2];
                client.region_read(2, 1, &mut bytes[..1]).unwrap();
                client.region_read(2, 5, &mut bytes[1..]).unwrap();
                assert_eq!(u64::from(u16::from_le_bytes(bytes)), inputs);
            }
            _ => assert!(process::connect(&socket).is_err(), "not to be started by itself"),
        }
    }
    let left = found.keys().filter(|uuid| !(0..NAMES).any(|name| **uuid == self::uuid(name)));
    assert_eq!(left.count(), 0, "{found:?}");
}

#[test]
fn definitions_survive_whenever_it_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let text = format!(
        "[parent.pins]\nmodel = \"gpio\"\n[mdev]\nsockets = {:?}\ndefinitions = {:?}\n\
         [control]\nsocket = {:?}\n",
        at("mdev"),
        at("definitions"),
        at("control"),
    );
    std::fs::write(at("c.toml"), text).unwrap();
    let mut random = Random(0x5eed);
    let mut known: BTreeMap<_, _> = (0..NAMES).map(|name| (name, Known::default())).collect();
    let mut changes_cut = 0;
    for round in 0..ROUNDS {
        let mut daemon = Daemon::start(vfiod(["serve", at("c.toml").to_str().unwrap()]));
        if random.below(8) == 0 {
            // While it starts.
            thread::sleep(Duration::from_micros(random.below(20_000)));
        } else {
            until("an answer", || ask(&at("control"), "GET", "daemon", None).is_ok());
            check(&at("control"), &at("mdev"), &mut known);
            let shared = Mutex::new(known);
            let pause = Duration::from_micros(random.below(15_000));
            let mut inner = Random(round + 1);
            thread::scope(|scope| {
                scope.spawn(|| work(&at("control"), &shared, &mut inner));
                thread::sleep(pause);
                daemon.signal(Signal::KILL);
            });
            known = shared.into_inner().unwrap();
            changes_cut += usize::from(known.values().any(|known| known.asked.is_some()));
        }
        daemon.signal(Signal::KILL);
        daemon.end();
    }
    // It was killed amid changes, not between them.
    assert!(changes_cut > ROUNDS as usize / 4, "{changes_cut} of {ROUNDS}");
    let _daemon =
        Daemon::serving(vfiod(["serve", at("c.toml").to_str().unwrap()]), &[&at("control")]);
    check(&at("control"), &at("mdev"), &mut known);
}
