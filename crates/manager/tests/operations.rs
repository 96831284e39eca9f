//! Operations of a device that runs: judged by the options that they lead to, carried out, and part of the
//! configuration from then on.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use vfiod_config::{ConfiguredModel, Document, Models, Operated, OperatedModel};
use vfiod_core::{Errno, Owner, Result};
use vfiod_manager::{InUsePolicy, Manager};
use vfiod_pci::{ModelRef, prelude::*};

/// Options of the model.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Options {
    /// What is not exceeded.
    limit: u32,
    /// What it is called.
    name: String,
    /// Files.
    #[schemars(extend("x-path" = "file"))]
    files: Vec<PathBuf>,
}

/// Operations of the model.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Operation {
    /// Changes the limit.
    SetLimit {
        /// The new one; by default one more.
        limit: Option<u32>,
    },
    /// Takes one more file.
    AddFile {
        /// Which.
        file: PathBuf,
    },
    /// Goes wrong.
    Fail {},
    /// Panics while it has the device.
    Panic {},
}

struct Limited(Options);

impl Model for Limited {
    type State = Stateless;

    fn spec(&self) -> FunctionSpec {
        FunctionSpec::new(0x1234, 0x7eff).class(0xff_00_00).bar(0, Bar::memory32(4096))
    }

    /// The limit, in every register.
    fn read(&mut self, _cx: &Cx<Self>, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(self.0.limit as u8);
    }

    fn write(&mut self, _cx: &Cx<Self>, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn reset(&mut self, _cx: &Cx<Self>) {}
}

impl ConfiguredModel for Limited {
    type Options = Options;
    const SUMMARY: &'static str = "something with a limit";

    fn configured(options: Options) -> Result<Self> {
        if options.limit > 9 {
            return Err(Error::new(Errno::INVAL, "`limit` is above 9"));
        }
        Ok(Self(options))
    }
}

impl OperatedModel for Limited {
    type Operation = Operation;

    fn options(&self) -> Options {
        self.0.clone()
    }

    fn plan(operation: &mut Operation, options: &mut Options) -> Result<()> {
        match operation {
            Operation::SetLimit { limit } => {
                options.limit = *limit.get_or_insert(options.limit + 1);
            }
            Operation::AddFile { file } => options.files.push(file.clone()),
            Operation::Fail {} | Operation::Panic {} => options.limit = 7,
        }
        Ok(())
    }

    fn operate(device: &ModelRef<Self>, operation: Operation) -> Result<Operated> {
        device.step(|model, _| match operation {
            Operation::SetLimit { limit } => {
                model.0.limit = limit.unwrap_or_default();
                Ok(Operated::with(model.0.limit))
            }
            Operation::AddFile { file } => {
                model.0.files.push(file);
                Ok(Operated::default())
            }
            Operation::Fail {} => Err(Error::new(Errno::NOSPC, "there is no place")),
            Operation::Panic {} => panic!("as the test wants it"),
        })?
    }
}

struct Stage {
    directory: tempfile::TempDir,
    manager: Manager,
}

impl Stage {
    fn start(options: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        write(directory.path(), options);
        let models = Models::new().operated::<Limited>("limited").model::<Limited>("fixed");
        let file = directory.path().join("vfiod.toml");
        let document = Document::load(&file, &models, Vec::new()).expect("a configuration");
        let manager = Manager::start(document, &models, None).expect("starts");
        Self { directory, manager }
    }

    fn write(&self, options: &str) {
        write(self.directory.path(), options);
    }

    fn operate(&self, operation: serde_json::Value) -> Result<serde_json::Value> {
        Ok(self.manager.operate("it", operation)?.result)
    }

    /// What a guest reads.
    fn limit(&self) -> u8 {
        let device = self.manager.find("it").expect("it is registered");
        let file = device.open(Owner::in_process("test")).expect("opens");
        let mut data = [0];
        file.write(vfiod_core::RegionIndex(7), 4, &[2, 0]).expect("memory space is enabled");
        file.read(vfiod_core::RegionIndex(0), 0, &mut data).expect("reads");
        data[0]
    }
}

fn write(directory: &Path, options: &str) {
    let socket = directory.join("it.sock");
    let text = format!("[device.it]\nmodel = \"limited\"\nsocket = {socket:?}\n{options}\n");
    std::fs::write(directory.join("vfiod.toml"), text).expect("writes");
}

fn refused(result: Result<serde_json::Value>) -> (Errno, String) {
    let error = result.expect_err("refused");
    (error.errno(), error.message().to_owned())
}

#[test]
fn operation_acts_on_what_runs_and_is_in_the_configuration() {
    let stage = Stage::start("options = { limit = 3, name = \"x\" } # why");
    let id = stage.manager.find("it").unwrap().id();
    assert_eq!(stage.operate(json!({"set-limit": {"limit": 5}})).unwrap(), 5);
    assert_eq!(stage.limit(), 5);
    let text = stage.manager.configuration().unwrap();
    assert!(text.contains("options = { limit = 5, name = \"x\" } # why"), "{text}");
    // What is left open is settled when it is planned.
    assert_eq!(stage.operate(json!({"set-limit": {}})).unwrap(), 6);
    // The default again: nothing needs to say it.
    assert_eq!(stage.operate(json!({"set-limit": {"limit": 0}})).unwrap(), 0);
    let text = stage.manager.configuration().unwrap();
    assert!(text.contains("options = { name = \"x\" } # why"), "{text}");
    assert_eq!(stage.manager.find("it").unwrap().id(), id, "the device is the same one");
    stage.manager.stop(std::time::Duration::ZERO);
}

#[test]
fn file_that_says_what_it_did_leaves_what_an_operation_has_changed() {
    let stage = Stage::start("options.name = \"x\"");
    let id = stage.manager.find("it").unwrap().id();
    stage.operate(json!({"set-limit": {"limit": 5}})).unwrap();
    let changes = stage.manager.reload(InUsePolicy::Refuse).unwrap();
    assert_eq!((changes.changed, changes.kept), (vec![], 1));
    assert_eq!((stage.limit(), stage.manager.find("it").unwrap().id()), (5, id));
    // As `vfiod config` prints it: also nothing new.
    stage.write("options = { name = \"x\", limit = 5 }");
    let changes = stage.manager.reload(InUsePolicy::Refuse).unwrap();
    assert_eq!((changes.changed, changes.kept), (vec![], 1));
    // Something else: what it says.
    stage.write("options = { limit = 2 }");
    let changes = stage.manager.reload(InUsePolicy::Refuse).unwrap();
    assert_eq!((changes.changed, changes.kept), (vec!["it".to_owned()], 0));
    assert_eq!(stage.limit(), 2);
    // That is what counts from now on.
    let changes = stage.manager.reload(InUsePolicy::Refuse).unwrap();
    assert_eq!((changes.changed, changes.kept, stage.limit()), (vec![], 1, 2));
    stage.manager.stop(std::time::Duration::ZERO);
}

#[test]
fn refused_operation_changes_nothing_and_says_what_is_wrong() {
    let stage = Stage::start("options = { limit = 3 }");
    let text = stage.manager.configuration().unwrap();
    for (operation, errno, what) in [
        (json!({"set-limit": {"limit": 10}}), Errno::INVAL, "`limit` is above 9"),
        (json!({"set-limits": {}}), Errno::INVAL, "unknown variant `set-limits`"),
        (json!({"set-limit": {"limt": 1}}), Errno::INVAL, "unknown field `limt`"),
        (json!({}), Errno::INVAL, "no operation of it"),
        (json!({"fail": {}}), Errno::NOSPC, "there is no place"),
        (json!({"add-file": {"file": "/there/is/none"}}), Errno::INVAL, "device.it.options.files"),
    ] {
        let (is, message) = refused(stage.operate(operation.clone()));
        assert!(is == errno && message.contains(what), "{operation}: {is:?} {message}");
        assert_eq!((stage.limit(), stage.manager.configuration().unwrap()), (3, text.clone()));
    }
    let none = stage.manager.operate("its", json!({"fail": {}})).unwrap_err();
    assert_eq!(none.errno(), Errno::NOENT);
    stage.manager.stop(std::time::Duration::ZERO);
}

#[test]
fn device_without_operations_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("edu.sock");
    let text = format!("[device.edu]\nmodel = \"edu\"\nsocket = {socket:?}\n");
    let models = vfiod_devices::catalogue().operated::<Limited>("limited");
    let manager =
        Manager::start(Document::of_text(&text, &models).unwrap(), &models, None).unwrap();
    for error in [
        manager.operate("edu", json!({"set-limit": {}})).unwrap_err(),
        manager.operations_schema("edu").unwrap_err(),
    ] {
        assert_eq!(error.errno(), Errno::OPNOTSUPP);
        assert_eq!(error.message(), "edu is of a model that has no operations");
    }
    manager.stop(std::time::Duration::ZERO);
}

#[test]
fn panic_in_an_operation_is_the_devices_own_and_a_reset_ends_it() {
    let stage = Stage::start("options = { limit = 3 }");
    let (errno, message) = refused(stage.operate(json!({"panic": {}})));
    assert_eq!(errno, Errno::IO, "{message}");
    assert!(stage.manager.find("it").unwrap().status().failed);
    let (errno, message) = refused(stage.operate(json!({"set-limit": {}})));
    assert_eq!((errno, &*message), (Errno::IO, "it is in the error state until it is reset"));
    stage.manager.reset_set("it", vfiod_core::InUse::Refuse).unwrap();
    assert_eq!(stage.operate(json!({"set-limit": {}})).unwrap(), 4);
    stage.manager.stop(std::time::Duration::ZERO);
}

#[test]
fn schema_names_the_operations() {
    let stage = Stage::start("");
    let schema = stage.manager.operations_schema("it").unwrap();
    assert_eq!(schema["oneOf"][0]["properties"]["set-limit"]["type"], "object", "{schema}");
    stage.manager.stop(std::time::Duration::ZERO);
}
