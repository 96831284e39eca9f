//! `save` and `restore`: the state of a device in a file. The daemon never opens the file.

use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;

use anyhow::Context;
use hyper::Method;
use serde_json::Value;
use tempfile::NamedTempFile;
use vfiod_config::{UsageError, open_regular};
use vfiod_control::client::path;

use super::asked::Daemon;
use super::connect;
use crate::output;

/// Bytes of the largest file that can be a state: what the daemon accepts, with much space between.
const LARGEST: u64 = 4 << 20;
/// The name that stands for standard input and output.
const STANDARD: &str = "-";

/// Saves the state of a device to a file.
pub(super) fn save(device: &str, file: &Path, force: bool, daemon: &Daemon) -> anyhow::Result<()> {
    let to_output = file == Path::new(STANDARD);
    // Before the device is asked to quiesce.
    if !to_output && !force && file.symlink_metadata().is_ok() {
        return Err(is_there(file).into());
    }
    let state: Value = connect(daemon)?.get(&path(["devices", device, "state"]))?;
    let text = serde_json::to_string_pretty(&state)? + "\n";
    if to_output {
        return output::print(&text);
    }
    write_whole(file, text.as_bytes(), force)
}

/// Makes a file that has all of the content or is not there, readable by its owner alone.
fn write_whole(file: &Path, content: &[u8], force: bool) -> anyhow::Result<()> {
    let directory = match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let cannot = || format!("cannot write {}", file.display());
    let mut new = NamedTempFile::new_in(directory).with_context(cannot)?;
    new.write_all(content).and_then(|()| new.as_file().sync_all()).with_context(cannot)?;
    let named = if force { new.persist(file) } else { new.persist_noclobber(file) };
    match named {
        Ok(_) => {}
        Err(refused) if refused.error.kind() == ErrorKind::AlreadyExists => {
            return Err(is_there(file).into());
        }
        Err(refused) => return Err(refused.error).with_context(cannot),
    }
    // The name, too.
    let synced = std::fs::File::open(directory).and_then(|directory| directory.sync_all());
    synced.with_context(|| format!("cannot sync {}", directory.display()))
}

fn is_there(file: &Path) -> UsageError {
    UsageError(format!("{} is there already; --force replaces it", file.display()))
}

/// Restores the state of a device from a file.
pub(super) fn restore(device: &str, file: &Path, daemon: &Daemon) -> anyhow::Result<()> {
    let text = read_whole(file).with_context(|| format!("cannot read {}", file.display()))?;
    let wrong = |what: String| UsageError(format!("{}: {what}", file.display()));
    if text.len() as u64 > LARGEST {
        return Err(wrong("this is not a saved state: it is larger than any".to_owned()).into());
    }
    let state: Value = serde_json::from_slice(&text)
        .map_err(|error| wrong(format!("this is not a saved state, or damaged: {error}")))?;
    if !state.is_object() {
        return Err(wrong("this is not a saved state".to_owned()).into());
    }
    let path = path(["devices", device, "state"]);
    connect(daemon)?.call(Method::PUT, &path, Some(&state))
}

/// Reads a file, or so much of it that it is too large.
fn read_whole(file: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    if file == Path::new(STANDARD) {
        io::stdin().lock().take(LARGEST + 1).read_to_end(&mut text)?;
    } else {
        open_regular(file)?.take(LARGEST + 1).read_to_end(&mut text)?;
    }
    Ok(text)
}
