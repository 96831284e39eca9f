//! Names and UUIDs for the shell, out of the running daemon. Without an answer there is no candidate.

use std::path::PathBuf;
use std::time::Duration;

use clap_complete::CompletionCandidate;
use serde::de::DeserializeOwned;
use vfiod_control::client::{Client, path};
use vfiod_control::view;

/// Asks the daemon that the environment names; the command line is not known here.
fn ask<T: DeserializeOwned + Default>(kind: &str) -> T {
    let socket = std::env::var_os("VFIOD_CONTROL").map(PathBuf::from);
    let socket = socket.unwrap_or_else(|| vfiod_control::DEFAULT_SOCKET.into());
    // Nobody waits for candidates.
    let patience = Duration::from_secs(2);
    let answer = Client::connect(&socket)
        .and_then(|client| client.with_patience(patience).get(&path([kind])));
    answer.unwrap_or_default()
}

fn candidate(name: impl Into<String>, help: String) -> CompletionCandidate {
    CompletionCandidate::new(name.into()).help(Some(help.into()))
}

pub(super) fn devices() -> Vec<CompletionCandidate> {
    let all: Vec<view::DeviceSummary> = ask("devices");
    all.into_iter().map(|device| candidate(device.name, device.model)).collect()
}

pub(super) fn sets() -> Vec<CompletionCandidate> {
    let all: Vec<view::Set> = ask("sets");
    all.into_iter().map(|set| CompletionCandidate::new(set.name)).collect()
}

pub(super) fn parents() -> Vec<CompletionCandidate> {
    let all: Vec<view::Parent> = ask("parents");
    all.into_iter().map(|parent| candidate(parent.name, parent.model)).collect()
}

pub(super) fn types() -> Vec<CompletionCandidate> {
    let all: Vec<view::Type> = ask("types");
    let help = |mdev_type: &view::Type| format!("{} {}", mdev_type.parent, mdev_type.description);
    all.into_iter().map(|mdev_type| candidate(mdev_type.id.clone(), help(&mdev_type))).collect()
}

pub(super) fn instances() -> Vec<CompletionCandidate> {
    let all: Vec<view::InstanceSummary> = ask("instances");
    let help = |one: &view::InstanceSummary| format!("{} {}", one.parent, one.type_id);
    all.into_iter().map(|one| candidate(one.uuid.to_string(), help(&one))).collect()
}

pub(super) fn definitions() -> Vec<CompletionCandidate> {
    let all: view::Definitions = ask("definitions");
    let help = |one: &view::Definition| format!("{} {}", one.parent, one.type_id);
    let candidate = |one: view::Definition| candidate(one.uuid.to_string(), help(&one));
    all.definitions.into_iter().map(candidate).collect()
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
