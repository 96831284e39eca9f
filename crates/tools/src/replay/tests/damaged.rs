//! Captures that were damaged, cut, or made up.

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
