//! A device that is stuck in a callback blinds nobody: every look at the daemon is answered.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::thread;
use std::time::Duration;

use uuid::Uuid;
use vfiod_config::{ConfiguredParent, Models, NoOptions};
use vfiod_control::Control;
use vfiod_core::{
    Context, Description, Device, DeviceFlags, FileId, Owner, Persistence, Region, RegionIndex,
    ResetCause, Result,
};
use vfiod_manager::{Manager, NewInstance as Wanted};
use vfiod_mdev::{AttributeInfo, Attributes, Capacity, NewInstance, Parent, ParentSpec, TypeInfo};
use vfiod_server::{Listener, SocketAccess};

/// The callback at which devices stop, and how many calls stand there.
static WALL: LazyLock<Wall> = LazyLock::new(Wall::default);

#[derive(Default)]
struct Wall {
    state: Mutex<(Option<&'static str>, usize)>,
    changed: Condvar,
}

impl Wall {
    /// Stops every call of a callback until what is returned is dropped, also by a panic: whoever waits
    /// for the stuck threads would otherwise wait without end.
    fn raise(&'static self, at: &'static str) -> Raised {
        *self.state.lock().unwrap() = (Some(at), 0);
        Raised(self)
    }

    fn pass(&self, callback: &str) {
        let mut state = self.state.lock().unwrap();
        if state.0 == Some(callback) {
            state.1 += 1;
            self.changed.notify_all();
            drop(self.changed.wait_while(state, |(at, _)| *at == Some(callback)).unwrap());
        }
    }

    fn await_calls(&self, count: usize) {
        let state = self.state.lock().unwrap();
        let limit = Duration::from_secs(60);
        let waited = self.changed.wait_timeout_while(state, limit, |(_, calls)| *calls < count);
        let (state, result) = waited.unwrap();
        let stopped = state.1;
        drop(state);
        assert!(!result.timed_out(), "{stopped} calls of {count} were stopped");
    }
}

/// Lowers the wall when dropped.
struct Raised(&'static Wall);

impl Drop for Raised {
    fn drop(&mut self) {
        *self.0.state.lock().unwrap() = (None, 0);
        self.0.changed.notify_all();
    }
}

struct Stopping;

impl Device for Stopping {
    fn persistence(&mut self) -> Persistence<'_> {
        Persistence::Stateless
    }
    fn describe(&self) -> Description {
        let region = Region::registers(64);
        Description { flags: DeviceFlags::RESET, regions: vec![region], irqs: vec![] }
    }
    fn init(&mut self, _: &Context) -> Result<()> {
        Ok(())
    }
    fn open_device(&mut self) -> Result<()> {
        WALL.pass("open_device");
        Ok(())
    }
    fn close_device(&mut self) {
        WALL.pass("close_device");
    }
    fn open(&mut self, _: FileId, _: &Owner) -> Result<()> {
        WALL.pass("open");
        Ok(())
    }
    fn release(&mut self, _: FileId) {
        WALL.pass("release");
    }
    fn read(&mut self, _: RegionIndex, _: u64, _: &mut [u8]) -> Result<()> {
        WALL.pass("read");
        Ok(())
    }
    fn write(&mut self, _: RegionIndex, _: u64, _: &[u8]) -> Result<()> {
        WALL.pass("write");
        Ok(())
    }
    fn reset(&mut self, cause: ResetCause) -> Result<()> {
        if cause == ResetCause::Client {
            WALL.pass("reset");
        }
        Ok(())
    }
}

impl Attributes for Stopping {
    fn get(&self, _: &str) -> Result<String> {
        WALL.pass("get");
        Ok("1".to_owned())
    }
    fn set(&self, _: &str, _: &str) -> Result<()> {
        WALL.pass("set");
        Ok(())
    }
}

impl Parent for Stopping {
    fn create(&self, _: &str, _: Uuid) -> Result<NewInstance> {
        WALL.pass("create");
        Ok(NewInstance { device: Box::new(Stopping), attributes: Some(Arc::new(Stopping)) })
    }
    fn check_attribute(&self, _: &str, _: &str, _: &str) -> Result<()> {
        Ok(())
    }
}

impl ConfiguredParent for Stopping {
    type Options = NoOptions;

    const SUMMARY: &'static str = "stops where it is told to";

    fn configured(name: &str, _: NoOptions) -> Result<(ParentSpec, Box<dyn Parent>)> {
        let attribute = AttributeInfo {
            name: "a".to_owned(),
            values: "anything".to_owned(),
            summary: "stops".to_owned(),
            writable: true,
        };
        let mdev_type = TypeInfo {
            id: "t".to_owned(),
            name: "t".to_owned(),
            description: "t".to_owned(),
            device_api: "vfio-platform".to_owned(),
            takes: 1,
            attributes: vec![attribute],
        };
        let (types, capacity) = (vec![mdev_type], Capacity::PerType(64));
        Ok((ParentSpec { name: name.to_owned(), types, capacity }, Box::new(Stopping)))
    }
}

/// Sends a request. Returns the status and what was replied.
fn ask(socket: &Path, method: &str, path: &str, body: &str) -> (u16, String) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let kind = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: vfiod\r\nconnection: close\r\n{kind}\
         content-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    let status = reply.split(' ').nth(1).unwrap().parse().unwrap();
    (status, reply)
}

struct Rig {
    _alone: std::sync::MutexGuard<'static, ()>,
    manager: Arc<Manager>,
    socket: PathBuf,
    _control: Control,
    _directory: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        // The wall is there once.
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let models = Models::new().parent::<Stopping>("stopping");
        let text = "[parent.p]\nmodel = \"stopping\"\n";
        let config = vfiod_config::read("c.toml", text, &models).unwrap();
        let manager = Arc::new(Manager::start(config, &models, None).unwrap());
        let socket = directory.path().join("control");
        let listener = Listener::bind(&socket, SocketAccess::default()).unwrap();
        let control = Control::start(manager.clone(), listener, vec![], vec![]).unwrap();
        Self { _alone: alone, manager, socket, _control: control, _directory: directory }
    }

    fn create(&self) -> vfiod_mdev::Instance {
        let (parent, type_id) = ("p".to_owned(), "t".to_owned());
        self.manager.create(Wanted { parent, type_id, uuid: None, attributes: vec![] }).unwrap()
    }

    fn get(&self, path: &str) -> (u16, String) {
        ask(&self.socket, "GET", path, "")
    }

    /// More looks at once than there are threads, each of which is answered.
    fn look_at(&self, uuid: Uuid) {
        let paths = [
            "/api/v1/devices".to_owned(),
            format!("/api/v1/devices/{uuid}"),
            "/api/v1/files".to_owned(),
            "/api/v1/sets".to_owned(),
            format!("/api/v1/sets/{uuid}"),
            "/api/v1/instances".to_owned(),
            "/api/v1/parents".to_owned(),
            "/api/v1/daemon".to_owned(),
            "/metrics".to_owned(),
        ];
        thread::scope(|scope| {
            for path in paths.iter().cycle().take(90) {
                scope.spawn(move || assert_eq!(self.get(path).0, 200, "{path}"));
            }
        });
    }
}

#[test]
fn device_that_is_stuck_in_any_callback_can_be_looked_at_and_so_can_all_others() {
    let rig = &Rig::new();
    for callback in ["open_device", "open", "read", "write", "reset", "release", "close_device"] {
        let instance = rig.create();
        thread::scope(|scope| {
            let raised = WALL.raise(callback);
            let device = instance.device();
            scope.spawn(move || {
                let file = device.open(Owner::in_process("test")).unwrap();
                file.read(RegionIndex(0), 0, &mut [0]).unwrap();
                file.write(RegionIndex(0), 0, &[0]).unwrap();
                file.reset().unwrap();
            });
            WALL.await_calls(1);
            rig.look_at(instance.uuid());
            // Another device can be used and managed.
            let other = rig.create();
            rig.manager.remove(other.uuid(), vfiod_mdev::Removal::Refuse).unwrap();
            drop(raised);
        });
    }
}

/// More operations on a stuck instance than one thing may have are refused, and others are not.
#[test]
fn instance_whose_attributes_are_stuck_does_not_take_the_api() {
    let rig = &Rig::new();
    let instance = rig.create();
    let other = rig.create();
    let path = format!("/api/v1/instances/{}", instance.uuid());
    thread::scope(|scope| {
        let raised = WALL.raise("get");
        let stuck: Vec<_> = (0..4).map(|_| scope.spawn(|| rig.get(&path).0)).collect();
        WALL.await_calls(4);
        for _ in 0..80 {
            let (status, reply) = rig.get(&path);
            assert_eq!(status, 409, "{reply}");
            assert!(reply.contains("have not ended; try again"), "{reply}");
        }
        rig.look_at(instance.uuid());
        let other = format!("/api/v1/instances/{}", other.uuid());
        assert_eq!(ask(&rig.socket, "DELETE", &other, "").0, 204);
        drop(raised);
        for one in stuck {
            assert_eq!(one.join().unwrap(), 200);
        }
    });
}
