//! Devices that a reload replaces, whose things are free only a moment after their removal.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vfiod_config::{ConfiguredModel, Document, Models};
use vfiod_core::{Errno, Result};
use vfiod_manager::{InUsePolicy, Manager};
use vfiod_pci::prelude::*;

/// Tapes that are in use, or were: how often each is refused yet.
static TAPES: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());

#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Options {
    /// What one drive has at a time.
    tape: String,
    /// How often the tape is refused to others after this one has ended.
    refused: u32,
    /// It cannot be registered.
    broken: bool,
}

/// A drive, and whether it has its tape.
struct Drive(Options, bool);

impl Drop for Drive {
    fn drop(&mut self) {
        if self.1 {
            TAPES.lock().unwrap().insert(self.0.tape.clone(), self.0.refused);
        }
    }
}

impl Model for Drive {
    type State = Stateless;

    fn spec(&self) -> FunctionSpec {
        FunctionSpec::new(0x1234, 0x7efe).class(0xff_00_00).bar(0, Bar::memory32(4096))
    }

    fn init(&mut self, _cx: &Cx<Self>) -> Result<()> {
        if self.0.broken {
            return Err(Error::new(Errno::IO, "the drive is broken"));
        }
        let mut tapes = TAPES.lock().unwrap();
        let left = tapes.entry(self.0.tape.clone()).or_default();
        if *left > 0 {
            // One that is in a drive stays.
            *left -= u32::from(*left < u32::MAX);
            return Err(Error::new(Errno::BUSY, "the tape is in use"));
        }
        (*left, self.1) = (u32::MAX, true);
        Ok(())
    }

    fn read(&mut self, _cx: &Cx<Self>, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _cx: &Cx<Self>, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn reset(&mut self, _cx: &Cx<Self>) {}
}

impl ConfiguredModel for Drive {
    type Options = Options;
    const SUMMARY: &'static str = "a drive with a tape";

    fn configured(options: Options) -> Result<Self> {
        Ok(Self(options, false))
    }
}

fn write(directory: &Path, options: &str) {
    let socket = directory.join("drive");
    let text = format!(
        "[device.drive]\nmodel = \"drive\"\nsocket = {socket:?}\noptions = {{ {options} }}\n"
    );
    std::fs::write(directory.join("vfiod.toml"), text).expect("writes");
}

/// A manager with a drive of these options.
fn start(options: &str) -> (tempfile::TempDir, Manager) {
    let directory = tempfile::tempdir().expect("a directory");
    write(directory.path(), options);
    let models = Models::new().model::<Drive>("drive");
    let document = Document::load(&directory.path().join("vfiod.toml"), &models, Vec::new());
    let manager = Manager::start(document.expect("a configuration"), &models, None);
    (directory, manager.expect("starts"))
}

fn refusals_left(tape: &str) -> u32 {
    TAPES.lock().unwrap()[tape]
}

#[test]
fn device_that_a_reload_changes_waits_for_what_it_had() {
    let (directory, manager) = start("tape = 'a', refused = 3");
    write(directory.path(), "tape = 'a'");
    manager.reload(InUsePolicy::Refuse).expect("the tape is free at last");
    assert_eq!(refusals_left("a"), u32::MAX, "it has its tape");
}

#[test]
fn device_that_comes_back_waits_for_what_it_had() {
    let (directory, manager) = start("tape = 'b', refused = 3");
    write(directory.path(), "tape = 'c', broken = true");
    let error = manager.reload(InUsePolicy::Refuse).expect_err("it is broken");
    let said = error.to_string();
    assert!(said.contains("as it was: drive had been removed"), "{said}");
    assert_eq!(refusals_left("b"), u32::MAX, "it has its tape");
    assert!(manager.find("drive").is_ok());
}
