//! Removals by a reload while users come and go.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

use vfiod_config::{Document, Models};
use vfiod_core::event::{Event, Observer};
use vfiod_core::{DeviceRef, Errno, File, Owner, Result};
use vfiod_manager::{InUsePolicy, Manager};

struct Stage {
    directory: tempfile::TempDir,
    manager: Manager,
}

impl Stage {
    fn start(devices: &[&str], observer: Option<Arc<dyn Observer>>) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        write(&directory, devices);
        let models: Models = vfiod_devices::catalogue();
        let document = Document::load(&file_in(&directory), &models, Vec::new());
        let document = document.expect("a configuration");
        let manager = Manager::start(document, &models, observer).expect("starts");
        Self { directory, manager }
    }

    fn device(&self, name: &str) -> DeviceRef {
        self.manager.find(name).expect("it is registered")
    }
}

fn file_in(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("vfiod.toml")
}

fn write(directory: &tempfile::TempDir, devices: &[&str]) {
    let section = |name: &&str| {
        let socket = directory.path().join(name);
        format!("[device.{name}]\nmodel = \"edu\"\nsocket = {socket:?}\n")
    };
    let text: String = devices.iter().map(section).collect();
    std::fs::write(file_in(directory), text).expect("writes");
}

fn open(device: &DeviceRef) -> Result<File> {
    device.open(Owner::in_process("test"))
}

/// Opens a device on another thread as soon as another device has been unregistered.
#[derive(Default)]
struct OpenAfter {
    device: OnceLock<DeviceRef>,
    opened: Mutex<Option<Result<File>>>,
}

impl Observer for OpenAfter {
    fn event(&self, event: &Event<'_>) {
        if let Event::Unregistered(subject) = event
            && subject.name == "second"
            && let Some(device) = self.device.get()
        {
            let opened = thread::scope(|scope| scope.spawn(|| open(device)).join());
            *self.opened.lock().expect("not poisoned") = opened.ok();
        }
    }
}

#[test]
fn device_that_a_reload_removes_cannot_be_opened_once_it_was_found_unused() {
    let observer = Arc::<OpenAfter>::default();
    let stage = Stage::start(&["first", "second", "kept"], Some(observer.clone()));
    observer.device.set(stage.device("first")).expect("set once");
    write(&stage.directory, &["kept"]);
    let changes = stage.manager.reload(InUsePolicy::Refuse).expect("nothing is in use");
    assert_eq!(changes.removed, ["first", "second"]);
    let opened = observer.opened.lock().expect("not poisoned").take();
    let refused = opened.expect("it was tried").expect_err("opened while it was being removed");
    assert_eq!(refused.errno(), Errno::BUSY);
}

#[test]
fn refused_reload_leaves_every_device_open_to_its_users() {
    let stage = Stage::start(&["first", "second", "kept"], None);
    let used = open(&stage.device("second")).expect("opens");
    write(&stage.directory, &["kept"]);
    let refused = stage.manager.reload(InUsePolicy::Refuse).expect_err("second is in use");
    assert_eq!(refused.errno(), Errno::BUSY);
    assert!(refused.to_string().contains("in use: second by "), "{refused}");
    drop(open(&stage.device("first")).expect("opens"));
    drop(used);
    drop(open(&stage.device("second")).expect("opens"));
    assert!(stage.manager.reload(InUsePolicy::Refuse).is_ok());
}

#[test]
fn reload_that_cannot_open_a_new_socket_leaves_every_device_open_to_its_users() {
    let stage = Stage::start(&["first"], None);
    write(&stage.directory, &["missing/third"]);
    let text = std::fs::read_to_string(file_in(&stage.directory)).expect("reads");
    let text = text.replace("[device.missing/third]", "[device.third]");
    std::fs::write(file_in(&stage.directory), text).expect("writes");
    stage.manager.reload(InUsePolicy::Refuse).expect_err("there is no such directory");
    drop(open(&stage.device("first")).expect("opens"));
}
