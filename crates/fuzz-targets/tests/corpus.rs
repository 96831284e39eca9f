//! Runs every input of the corpus of every fuzz target, and names each that fails.

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use vfiod_fuzz_targets::TARGETS;

/// The corpus of a target, in an order that is the same everywhere.
fn inputs(target: &str) -> Vec<PathBuf> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&corpus)
        .unwrap_or_else(|error| panic!("no corpus at {}: {error}", corpus.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    files
}

fn main() -> ExitCode {
    if vfiod_fuzz_targets::was_a_stranger() {
        return ExitCode::SUCCESS;
    }
    let mut failed = 0;
    for target in TARGETS {
        let inputs = inputs(target.name);
        assert!(!inputs.is_empty(), "the corpus of {} is empty", target.name);
        let count = inputs.len();
        for file in inputs {
            let input = std::fs::read(&file).expect("an input can be read");
            if catch_unwind(|| target.run(&input)).is_err() {
                eprintln!("{}: failed with the input {}", target.name, file.display());
                failed += 1;
            }
        }
        println!("{}: {count} inputs", target.name);
    }
    vfiod_fuzz_targets::end();
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
