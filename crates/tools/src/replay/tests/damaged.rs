//! Captures that were damaged, cut, or made up.

use vfiod_wire::{Command, Header, Kind};

use super::*;
use crate::replay::play_hostile;

/// Changes some bytes, or cuts and repeats parts, as `random` decides.
fn damage(bytes: &mut Vec<u8>, mut random: impl FnMut(usize) -> usize) {
    for _ in 0..=random(4) {
        let at = random(bytes.len());
        match random(6) {
            0 => bytes.truncate(at.max(64)),
            1 => {
                let part = bytes[at..(at + 64).min(bytes.len())].to_vec();
                bytes.splice(at..at, part);
            }
            2 => bytes[at] = 0xff,
            3 => bytes[at] = 0,
            _ => bytes[at] ^= 1 << random(8),
        }
    }
}

#[test]
fn damaged_captures_are_refused_or_replayed_as_far_as_they_go() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["edu", "gpio", "serial", "template"] {
        let path = dir.path().join(format!("{name}.capture"));
        capture_model(model(name), &path, Options::default(), |client| {
            if name == "edu" { session(client) } else { anything(client, 9) }
        });
        let whole = std::fs::read(&path).unwrap();
        let mut state = 1u64;
        let mut random = move |end: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % end.max(1)
        };
        for _ in 0..30 {
            // Most damage behind the first records, so that the session begins.
            let mut bytes = whole.clone();
            damage(&mut bytes, &mut random);
            play_hostile(name, &bytes);
        }
    }
}

#[test]
fn capture_of_another_model_is_given_up_after_some_differences() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("edu.capture");
    capture(&path, Options::default(), |client| anything(client, 5));
    let file = BufReader::new(File::open(&path).unwrap());
    let findings = play(file, model("serial"), None, None).unwrap();
    assert!(findings.stopped);
    assert_eq!(findings.differences.len(), 20);
}

/// The records of a capture, without its end.
fn records(path: &Path) -> Vec<Event> {
    let mut reader = Reader::new(BufReader::new(File::open(path).unwrap())).unwrap();
    let next = || Some(reader.read().unwrap()).filter(|event| !matches!(event, Event::End));
    std::iter::from_fn(next).collect()
}

fn differences(records: &[Event]) -> Vec<String> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes).unwrap();
    for record in records.iter().chain([&Event::End]) {
        writer.write(record, 0).unwrap();
    }
    play(Cursor::new(bytes), edu(), None, None).unwrap().differences
}

/// A client that leaves while the device is at work.
#[test]
fn message_that_the_device_sends_when_the_client_has_left_is_no_difference() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("edu.capture");
    capture(&path, Options::default(), |client| {
        client.device_info().unwrap();
        let memory = client_memory();
        client.dma_map(IOVA, memory.size(), Some((memory.fd(), 0))).unwrap();
        client.region_write(7, COMMAND, &BUS_MASTER.to_le_bytes()).unwrap();
        transfer(client, IOVA, 0x40000, 16, 1);
        while read(client, 0x98) & 1 != 0 {}
    });
    let all = records(&path);
    let header = |record: &Event| match record {
        Event::Client { message, .. } | Event::Server { message } => Header::parse(message),
        _ => None,
    };
    let is = |command: Command| {
        move |record: &&Event| header(record).is_some_and(|header| header.command == command as u16)
    };
    // What comes behind the write that starts the transfer is cut off, but for its reply.
    let mut requests = all.iter().filter(|record| matches!(record, Event::Client { .. }));
    let start = requests.rfind(is(Command::RegionWrite)).unwrap();
    let at = all.iter().position(|record| record == start).unwrap();
    let id = header(start).unwrap().id;
    let answers = |record: &&Event| {
        let kind = header(record).map(|header| (header.id, header.kind()));
        matches!(record, Event::Server { .. }) && kind == Some((id, Kind::Reply(Ok(()))))
    };
    let reply = all[at..].iter().find(answers).unwrap();
    let started = [&all[..=at], std::slice::from_ref(reply)].concat();
    assert_eq!(differences(&started), Vec::<String>::new());
    // The client asks for something first.
    let question: Vec<Event> =
        all.iter().filter(is(Command::DeviceGetInfo)).take(2).cloned().collect();
    let [Event::Client { .. }, Event::Server { .. }] = &question[..] else { panic!("no question") };
    let goes_on = [started, question.clone(), question].concat();
    assert_eq!(differences(&goes_on), ["1 more DMA messages"]);
}
