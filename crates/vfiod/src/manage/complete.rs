//! Names and UUIDs for the shell, out of the running daemon. Whatever goes wrong is no candidate.

use std::path::PathBuf;

use clap_complete::CompletionCandidate;
use serde_json::Value;

use crate::control::client::{Client, path};

/// The daemon that the environment names; the command line is not known here.
fn ask(kind: &str) -> Vec<Value> {
    let socket = std::env::var_os("VFIOD_CONTROL").map(PathBuf::from);
    let socket = socket.unwrap_or_else(|| "/run/vfiod/control.sock".into());
    let answer = Client::connect(&socket).and_then(|mut client| client.get(&path([kind])));
    match answer {
        Ok(Value::Array(list)) => list,
        Ok(Value::Object(mut fields)) => match fields.remove(kind) {
            Some(Value::Array(list)) => list,
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

fn candidates(kind: &str, key: &str, help: &[&str]) -> Vec<CompletionCandidate> {
    let candidate = |value: &Value| {
        let help = help.iter().filter_map(|key| value[*key].as_str());
        let help = help.collect::<Vec<_>>().join(" ");
        Some(CompletionCandidate::new(value[key].as_str()?).help(Some(help.into())))
    };
    ask(kind).iter().filter_map(candidate).collect()
}

pub(super) fn devices() -> Vec<CompletionCandidate> {
    candidates("devices", "name", &["model", "state"])
}

pub(super) fn sets() -> Vec<CompletionCandidate> {
    candidates("sets", "name", &[])
}

pub(super) fn parents() -> Vec<CompletionCandidate> {
    candidates("parents", "name", &["model"])
}

pub(super) fn types() -> Vec<CompletionCandidate> {
    candidates("types", "type", &["parent", "description"])
}

pub(super) fn instances() -> Vec<CompletionCandidate> {
    candidates("instances", "uuid", &["parent", "type"])
}

pub(super) fn definitions() -> Vec<CompletionCandidate> {
    candidates("definitions", "uuid", &["parent", "type", "start"])
}

pub(super) fn anything() -> Vec<CompletionCandidate> {
    let mut all = devices();
    all.extend(sets());
    all.extend(parents());
    all.extend(definitions());
    all.sort_by(|a, b| a.get_value().cmp(b.get_value()));
    all.dedup_by(|a, b| a.get_value() == b.get_value());
    all
}
