//! What is kept beside an image when the process is killed.
//!
//! A program of its own: a process that is started has the descriptors of all other tests for a moment.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use vfiod_disk::{Image, ImageOptions, Metadata, MetadataOptions, Stored};

fn open(path: &Path) -> Metadata {
    let image = Image::open(&ImageOptions::new(path)).unwrap();
    Metadata::open(&image, &MetadataOptions::default()).unwrap()
}

const CHANGES: &str = "VFIOD_TEST_CHANGES_METADATA";

/// Not a test by itself: what the next one kills.
#[test]
fn program_that_changes_metadata_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHANGES) else { return };
    let metadata = open(Path::new(&path));
    for _ in 0..u64::MAX {
        let mut now = 0;
        let count = |stored: &mut Stored| {
            let counter = stored.counters.entry("changes".into()).or_default();
            *counter += 1;
            now = *counter;
            // Of a length that changes.
            let filled = (now % 50) as usize;
            stored.features = (0..filled).map(|n| (format!("feature {n}"), now)).collect();
        };
        metadata.change(count).unwrap();
        println!("changed {now}");
    }
}

#[test]
fn kill_at_any_moment_leaves_the_old_or_the_new() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("disk.img");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let made = open(&path).identity();
    let mut changes = 0;
    for kills in 0..60 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "program_that_changes_metadata_until_it_is_killed", "--nocapture"])
            .env(CHANGES, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // After a number of changes that differs, amid the next one.
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let told = lines.map_while(Result::ok).filter_map(|line| {
            line.strip_prefix("changed ").and_then(|number| number.parse::<u64>().ok())
        });
        let mut told = told.peekable();
        let last = told.nth(kills % 7).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        // What it had told before it was killed.
        let last = told.last().unwrap_or(last);
        let stored = open(&path).stored();
        let now = stored.counters["changes"];
        assert!(now == last || now == last + 1, "{now} after {last} was durable");
        assert_eq!(stored.features.len() as u64, now % 50);
        assert!(stored.features.values().all(|value| *value == now), "half of one");
        assert_eq!(stored.identity, made);
        changes = now;
    }
    assert!(changes > 60, "{changes} changes");
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert!(left.len() <= 3, "files were left: {left:?}");
}
