//! Removals while others are at work with what is removed.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use uuid::Uuid;
use vfiod_config::{Document, Models};
use vfiod_core::{DeviceRef, Errno, File, Owner, Result};
use vfiod_manager::{InUsePolicy, Manager, NewInstance};
use vfiod_mdev::Removal;

struct Stage {
    directory: tempfile::TempDir,
    manager: Manager,
}

impl Stage {
    fn start(devices: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        write(&directory, devices);
        let models: Models = vfiod_devices::catalogue();
        let document = Document::load(&file_in(&directory), &models, Vec::new());
        let document = document.expect("a configuration");
        let manager = Manager::start(document, &models, None).expect("starts");
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

/// A user opens and closes the device all the time: it is found unused, or it is in use.
#[test]
fn device_that_a_reload_removes_cannot_be_opened_once_it_was_found_unused() {
    const PAUSE: Duration = Duration::from_micros(200);
    for _ in 0..20 {
        let stage = Stage::start(&["first", "kept"]);
        let device = stage.device("first");
        write(&stage.directory, &["kept"]);
        thread::scope(|scope| {
            let user = scope.spawn(|| {
                let mut revoked = false;
                loop {
                    match open(&device) {
                        Ok(file) => {
                            thread::sleep(PAUSE);
                            revoked |= file.is_revoked();
                        }
                        Err(error) if error.errno() == Errno::NODEV => return revoked,
                        Err(error) => assert_eq!(error.errno(), Errno::BUSY),
                    }
                    thread::sleep(PAUSE);
                }
            });
            while let Err(refused) = stage.manager.reload(InUsePolicy::Refuse) {
                assert_eq!(refused.errno(), Errno::BUSY, "{refused}");
            }
            assert!(!user.join().expect("no panic"), "opened while it was being removed");
        });
    }
}

#[test]
fn refused_reload_leaves_every_device_open_to_its_users() {
    let stage = Stage::start(&["first", "second", "kept"]);
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
    let stage = Stage::start(&["first"]);
    write(&stage.directory, &["missing/third"]);
    let text = std::fs::read_to_string(file_in(&stage.directory)).expect("reads");
    let text = text.replace("[device.missing/third]", "[device.third]");
    std::fs::write(file_in(&stage.directory), text).expect("writes");
    let missing = file_in(&stage.directory).with_file_name("missing");
    std::fs::write(missing, "a file in place of the directory").expect("writes");
    stage.manager.reload(InUsePolicy::Refuse).expect_err("there is no such directory");
    drop(open(&stage.device("first")).expect("opens"));
}

/// Removes an instance as soon as it is logged that there is one, as another thread may do then.
struct RemovesAtOnce(Arc<Manager>, Uuid);

impl<S: tracing::Subscriber> Layer<S> for RemovesAtOnce {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let is_managers = event.metadata().target() == "vfiod_manager::manager";
        if is_managers && event.fields().any(|field| field.name() == "mdev_type") {
            self.0.remove(self.1, Removal::Refuse).expect("it is there");
        }
    }
}

#[test]
fn create_returns_what_it_made_though_that_has_been_removed() {
    let models = vfiod_devices::catalogue();
    let text = "[parent.pins]\nmodel = \"gpio\"\n";
    let config = vfiod_config::read("c.toml", text, &models).expect("a configuration");
    let manager = Arc::new(Manager::start(config, &models, None).expect("starts"));
    let uuid = Uuid::from_u128(0x4711);
    let (parent, type_id) = ("pins".to_owned(), "gpio-16".to_owned());
    let new = NewInstance { parent, type_id, uuid: Some(uuid), attributes: Vec::new() };
    let remover = RemovesAtOnce(manager.clone(), uuid);
    let remover = tracing_subscriber::registry().with(remover);
    let created = tracing::subscriber::with_default(remover, || manager.create(new));
    assert_eq!(created.expect("it was created").uuid(), uuid);
    assert_eq!(manager.find_instance(uuid).err().map(|error| error.errno()), Some(Errno::NOENT));
}
