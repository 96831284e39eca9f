//! A writer is killed again and again; whatever it had promised is there, and nothing half.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use uuid::Uuid;
use vfiod_core::Errno;

use super::{Definition, Definitions, Start};

const DIRECTORY: &str = "VFIOD_TEST_KILLED_WRITER";
const ROUNDS: u64 = 300;
const COUNT: u128 = 6;

fn uuid(at: u128) -> Uuid {
    Uuid::from_u128((7 << 64) | at)
}

/// The definition of one generation; long, so that it takes more than one page.
fn generation(at: u128, number: u64) -> Definition {
    let mut definition = Definition::new(uuid(at), "parent", format!("type-{number}"));
    definition.start = if number.is_multiple_of(2) { Start::Auto } else { Start::Manual };
    definition.attrs = vec![("number".into(), number.to_string()); 300];
    definition
}

/// The generation of a definition that must be whole.
fn number(definition: &Definition) -> u64 {
    let number = definition.attrs[0].1.parse().unwrap();
    let at = definition.uuid.as_u128() & u128::from(u64::MAX);
    assert_eq!(*definition, generation(at, number), "a mixture of generations");
    number
}

/// The writer: not a test by itself, run by the one below in a process of its own. It tells what
/// it has done each time after it was done.
#[test]
#[ignore = "run by another test"]
fn writer() {
    let Some(dir) = std::env::var_os(DIRECTORY) else { return };
    let store = Definitions::open(Path::new(&dir)).unwrap();
    let mut out = std::io::stdout().lock();
    for step in 0_u64.. {
        let at = u128::from(step) % COUNT;
        let done = match store.get(uuid(at), None).unwrap() {
            None => {
                store.define(&generation(at, 1)).unwrap();
                1
            }
            Some(old) if number(&old) % 5 == 4 => {
                store.undefine(uuid(at), None).unwrap();
                0
            }
            Some(old) => {
                let next = number(&old) + 1;
                let change = |definition: &mut Definition| {
                    *definition = generation(at, next);
                    Ok(())
                };
                store.modify(uuid(at), Some("parent"), change).unwrap();
                next
            }
        };
        writeln!(out, "\ndone {at} {done}").unwrap();
    }
}

#[test]
fn killed_at_any_instant() {
    let dir = TempDir::new().unwrap();
    let mut promised = [0_u64; COUNT as usize];
    let mut steps = 0;
    // Instants that differ from round to round, and are the same in every run.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..ROUNDS {
        let mut writer = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "definitions::killed::writer", "--ignored", "--nocapture"])
            .env(DIRECTORY, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let mut last = promised;
        let mut note = |line: &str| {
            let mut words = line.split(' ');
            let (Some("done"), Some(at), Some(done), None) =
                (words.next(), words.next(), words.next(), words.next())
            else {
                return false;
            };
            last[at.parse::<usize>().unwrap()] = done.parse().unwrap();
            steps += 1;
            true
        };
        // It is at work once it has said something; then any moment will do.
        for line in lines.by_ref() {
            if note(&line.unwrap()) {
                break;
            }
        }
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(round | 1);
        std::thread::sleep(Duration::from_micros(random >> 50));
        writer.kill().unwrap();
        for line in lines {
            note(&line.unwrap());
        }
        assert!(!writer.wait().unwrap().success(), "the writer failed by itself");
        // The line may be cut off at the end, and the last step may be done but not told.
        let store = Definitions::open(dir.path()).unwrap();
        let listing = store.list().unwrap();
        assert_eq!(listing.damaged, [], "round {round}");
        for at in 0..COUNT {
            let now = match store.get(uuid(at), None) {
                Ok(found) => found.as_ref().map_or(0, number),
                Err(error) => panic!("round {round}: {error}"),
            };
            let told = last[usize::try_from(at).unwrap()];
            let next = (told + 1) % 5;
            assert!(now == told || now == next, "round {round}: {told} was told, {now} is there");
            promised[usize::try_from(at).unwrap()] = now;
        }
        let left = std::fs::read_dir(dir.path().join(".vfiod/new")).unwrap().count();
        assert_eq!(left, 0, "round {round}");
        let second = Definitions::open(dir.path()).unwrap_err();
        assert_eq!(second.errno(), Errno::BUSY, "the lock of the dead is gone, ours is not");
    }
    assert!(steps > ROUNDS, "the writer did next to nothing");
}
