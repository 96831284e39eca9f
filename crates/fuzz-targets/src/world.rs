//! A daemon's manager with every device that there is, in this process, and what must be so after any
//! input.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use tempfile::TempDir;
use vfiod_client::{Client, Options};
use vfiod_config::Document;
use vfiod_control::Control;
use vfiod_manager::{InUsePolicy, Manager, NewInstance};
use vfiod_mdev::{Removal, Uuid};

use crate::errors;
use crate::stranger::Stranger;

/// Nothing takes that long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a client is waited for that may have sent its own end.
const DEPARTURE: Duration = Duration::from_secs(3);
/// The VF token of the physical function.
pub(crate) const TOKEN: &str = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3";
/// The instances that there are: parent, type, UUID.
pub(crate) const INSTANCES: [(&str, &str, u128); 3] =
    [("school", "edu-1", 1), ("ports", "mtty-2", 2), ("pins", "gpio-16", 3)];
/// Threads of the server that may wait when nothing happens: those in `epoll`, and those that stay with a
/// connection.
const MAX_THREADS: usize = 16;

/// Every model, alone and in each kind of place: functions of a slot, virtual functions, the objects of a
/// container, instances of parents.
const CONFIGURATION: &str = r#"
    [bus.backplane]
    number = 1
    reset = "slot"
    [slot.card]
    bus = "backplane"
    number = 2
    [bus.port]
    number = 2
    reset = "bus"
    [slot.sriov]
    bus = "port"
    number = 0

    [device.edu]
    model = "edu"
    socket = "DIR/edu.sock"
    open = "multi"
    [device.template]
    model = "template"
    socket = "DIR/template.sock"
    state = "retain"
    [device.serial]
    model = "serial"
    socket = "DIR/serial.sock"
    open = "multi"
    [device.bench]
    model = "bench"
    socket = "DIR/bench.sock"
    open = "multi"

    [device.lines]
    model = "gpio"
    slot = "card"
    function = 0
    open = "multi"
    socket = "DIR/lines.sock"
    options = { control = "DIR/lines.control" }
    [device.teacher]
    model = "edu"
    slot = "card"
    function = 1
    socket = "DIR/teacher.sock"
    [device.memory]
    model = "bench"
    slot = "card"
    function = 2
    state = "retain"
    socket = "DIR/memory.sock"

    [device.physical]
    model = "edu"
    slot = "sriov"
    virtual_functions = 2
    vf_token = "TOKEN"
    socket = "DIR/physical.sock"
    [device.virtual-0]
    model = "edu"
    physical_function = "physical"
    function = 0
    socket = "DIR/virtual-0.sock"
    [device.virtual-1]
    model = "edu"
    physical_function = "physical"
    function = 1
    vf_token = "TOKEN"
    socket = "DIR/virtual-1.sock"

    [container.fabric]
    id = 2
    socket = "DIR/fabric.sock"
    [container.fabric.object.portal]
    kind = "dpmcp"
    id = 1
    socket = "DIR/portal.sock"
    [container.fabric.object.pool]
    kind = "dpbp"
    id = 7
    socket = "DIR/pool.sock"

    [parent.school]
    model = "edu"
    options = { instances = 4 }
    [parent.ports]
    model = "serial"
    [parent.pins]
    model = "gpio"

    [mdev]
    sockets = "DIR/mdev"
    definitions = "DIR/definitions"
    [control]
    socket = "DIR/control.sock"
"#;

/// A device, and how it is opened.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) socket: PathBuf,
    pub(crate) vf_token: Option<&'static str>,
}

/// The world of an input.
pub(crate) struct World {
    // In the order in which they end.
    _control: Control,
    pub(crate) manager: Arc<Manager>,
    pub(crate) stranger: Stranger,
    pub(crate) devices: Vec<Served>,
    configuration: String,
    turn: usize,
    /// How many descriptors there are once each device has been used; nothing before that.
    descriptors: Option<usize>,
    directory: TempDir,
}

static WORLD: Mutex<Option<World>> = Mutex::new(None);

/// What an input has to do with.
#[derive(Debug, Default)]
pub(crate) struct Touched {
    pub(crate) devices: BTreeSet<usize>,
    /// A client sent its own end of a connection. If it had also left so many replies that the server did
    /// not receive that any more, it counts as a client for as long as this process lives.
    pub(crate) own_ends: bool,
}

/// Calls `play` with the world, which is made for the first input and kept for those after it, and
/// checks that it is afterwards as it was before. `use_each` has every device work, so that what the
/// process makes at the first use is made before anything is counted.
///
/// # Panics
/// If it is not.
pub(crate) fn with_world(use_each: impl FnOnce(&World), play: impl FnOnce(&World) -> Touched) {
    let mut guard = world();
    let world = guard.get_or_insert_with(|| World::start(use_each));
    // An input may have left a device without what it makes when it is used.
    let before = descriptors().len().max(world.descriptors.unwrap_or_default());
    let mut touched = play(world);
    // The devices that the input has not to do with have their turn, too.
    world.turn = (world.turn + 1) % world.devices.len();
    touched.devices.insert(world.turn);
    world.check(&touched, before);
}

/// Ends the world, so that it leaves no files behind.
pub(crate) fn end() {
    drop(world().take());
}

/// The world, which is not used any more once an input has failed.
fn world() -> MutexGuard<'static, Option<World>> {
    WORLD.lock().unwrap_or_else(|poisoned| {
        let mut guard = poisoned.into_inner();
        WORLD.clear_poison();
        *guard = None;
        guard
    })
}

impl World {
    fn start(use_each: impl FnOnce(&Self)) -> Self {
        errors::collect();
        raise_limit();
        survive_broken_pipes();
        let directory = tempfile::Builder::new().prefix("vfiod-fuzz").tempdir();
        let directory = directory.expect("a temporary directory");
        let path = directory.path().display().to_string();
        let configuration = CONFIGURATION.replace("DIR", &path).replace("TOKEN", TOKEN);
        let file = directory.path().join("vfiod.toml");
        std::fs::write(&file, &configuration).expect("the configuration is written");
        for name in ["mdev", "definitions"] {
            std::fs::create_dir(directory.path().join(name)).expect("a directory");
        }
        let models = vfiod_devices::catalogue();
        let document = Document::load(&file, &models, Vec::new());
        let document = document.unwrap_or_else(|error| panic!("the configuration: {error}"));
        let manager = Manager::start(document, &models, None).expect("the devices are served");
        let manager = Arc::new(manager);
        let socket = manager.stack().take_control().expect("a socket for the control API");
        let control = Control::start(manager.clone(), socket, Vec::new(), Vec::new());
        let mut control = control.expect("the control API is served");
        control.publish().expect("the control API listens");
        let mut world = Self {
            _control: control,
            manager,
            stranger: Stranger::start(),
            devices: Vec::new(),
            configuration,
            turn: 0,
            descriptors: None,
            directory,
        };
        world.restore();
        for device in world.manager.devices() {
            let about = world.manager.about(&device);
            let socket = about.socket.expect("a device has a socket").into();
            let name = device.name().to_owned();
            let vf_token = ["physical", "virtual-0"].contains(&&*name).then_some(TOKEN);
            world.devices.push(Served { name, socket, vf_token });
        }
        // What is made at the first use is made now: descriptors are counted from here on.
        let devices = (0..world.devices.len()).collect();
        world.open_each(&Touched { devices, own_ends: false });
        use_each(&world);
        world.await_rest(false);
        world.descriptors = Some(descriptors().len());
        world
    }

    /// Where the control API listens.
    pub(crate) fn control(&self) -> PathBuf {
        self.directory.path().join("control.sock")
    }

    /// The configuration file.
    pub(crate) fn file(&self) -> PathBuf {
        self.directory.path().join("vfiod.toml")
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The text of the configuration as it was at the start.
    pub(crate) fn configuration(&self) -> &str {
        &self.configuration
    }

    /// Has devices, instances and definitions as they were at the start.
    pub(crate) fn restore(&self) {
        std::fs::write(self.file(), &self.configuration).expect("the configuration is written");
        let manager = &self.manager;
        let is_first = |uuid: Uuid| INSTANCES.iter().any(|(.., known)| uuid.as_u128() == *known);
        for instance in manager.bus().instances() {
            if !is_first(instance.uuid()) {
                // It may have been removed meanwhile.
                let _ = manager.remove(instance.uuid(), Removal::Deadline(Duration::ZERO));
            }
        }
        for definition in manager.definitions().expect("definitions are listed").definitions {
            let undefined = manager.undefine(definition.uuid, Some(&definition.parent));
            undefined.expect("a definition is removed");
        }
        for device in manager.devices() {
            if manager.origin(&device) == vfiod_manager::Origin::Added {
                let deleted =
                    manager.delete(device.name(), InUsePolicy::RevokeAfter(Duration::ZERO));
                deleted.expect("an added device is removed");
            }
        }
        let reloaded = manager.reload(InUsePolicy::RevokeAfter(Duration::ZERO));
        reloaded.expect("the first configuration is accepted");
        for (parent, type_id, uuid) in INSTANCES {
            let uuid = Uuid::from_u128(uuid);
            if manager.find_instance(uuid).is_err() {
                let (parent, type_id) = (parent.to_owned(), type_id.to_owned());
                let attributes = Vec::new();
                let new = NewInstance { parent, type_id, uuid: Some(uuid), attributes };
                manager.create(new).expect("an instance is created again");
            }
        }
    }

    /// Checks that devices can be opened and reply, that nothing is in use, that no descriptor and no
    /// thread is left, and that no error was logged.
    fn check(&self, touched: &Touched, descriptors_before: usize) {
        self.open_each(touched);
        self.await_rest(touched.own_ends);
        let start = Instant::now();
        loop {
            let now = descriptors();
            if now.len() <= descriptors_before {
                break;
            }
            let (count, before) = (now.len(), descriptors_before);
            let waited = start.elapsed() > PATIENCE;
            assert!(!waited, "{count} descriptors, {before} before the input: {now:#?}");
            thread::sleep(Duration::from_millis(1));
        }
        let logged = errors::take();
        assert!(logged.is_empty(), "errors were logged: {logged:#?}");
    }

    /// Opens devices as a new client does.
    fn open_each(&self, touched: &Touched) {
        for Served { name, socket, vf_token } in touched.devices.iter().map(|&at| &self.devices[at])
        {
            let mut options = Options { timeout: PATIENCE, ..Options::default() };
            options.capabilities.vf_token = vf_token.map(str::to_owned);
            let start = Instant::now();
            let mut client = loop {
                match Client::connect_with(socket, options.clone()) {
                    Ok(client) => break client,
                    // A client that is gone may have sent its own end, which is yet to be received.
                    Err(_) if start.elapsed() < PATIENCE => {
                        if touched.own_ends && start.elapsed() > DEPARTURE {
                            self.manager.revoke_device(name).expect("the devices stay");
                        }
                        thread::sleep(Duration::from_millis(1));
                    }
                    Err(error) => panic!("{name} cannot be opened: {error}"),
                }
            };
            let info = client.device_info();
            let info = info.unwrap_or_else(|error| panic!("{name} does not reply: {error}"));
            // Some objects of a container have nothing but interrupts.
            if info.num_regions == 0 {
                continue;
            }
            let region = if info.num_regions > 7 { 7 } else { 0 };
            let mut data = [0; 8];
            client
                .region_read(region, 0, &mut data)
                .unwrap_or_else(|error| panic!("{name} cannot be read: {error}"));
            assert!(region == 0 || data[..2] != [0xff; 2], "{name} reads as if it were not there");
            // A retained device keeps its memory from its first use on, which is here.
            if self.descriptors.is_none() {
                (0..info.num_regions).for_each(|region| _ = client.region_info(region));
            }
        }
    }

    /// Waits until no device is open, and no thread is at work for a client.
    fn await_rest(&self, own_ends: bool) {
        let start = Instant::now();
        loop {
            let is_open = |device: &vfiod_core::DeviceRef| !device.status().files.is_empty();
            let open: Vec<_> = self.manager.devices().into_iter().filter(is_open).collect();
            let threads = threads();
            let has = |name: &str| threads.iter().any(|thread| thread.starts_with(name));
            let serving = threads.iter().filter(|name| name.starts_with("vfio-user")).count();
            let is_busy = has("fd-closer") || has("remove") || has("revoke");
            if open.is_empty() && !is_busy && serving <= MAX_THREADS {
                return;
            }
            if own_ends && start.elapsed() > DEPARTURE {
                open.iter().for_each(|device| _ = device.revoke_all());
            }
            let names: Vec<_> = open.iter().map(|device| device.name().to_owned()).collect();
            let waited = start.elapsed() > PATIENCE;
            assert!(!waited, "still open: {names:?}; threads: {threads:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.manager.stop(Duration::ZERO);
    }
}

/// As many descriptors as the system allows: an input may hold hundreds on each connection.
fn raise_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Fails where the system allows no more than there is.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Has SIGPIPE caught: only a program whose `main` is Rust's ignores it, and a fuzzer's is not.
fn survive_broken_pipes() {
    let caught = signal_hook::flag::register(signal_hook::consts::SIGPIPE, Arc::default());
    caught.expect("SIGPIPE can be caught");
}

/// What the descriptors of this process stand for.
fn descriptors() -> Vec<String> {
    let entries = std::fs::read_dir("/proc/self/fd").expect("/proc is mounted");
    let links = entries.flatten().map(|entry| {
        let mut text = entry.file_name().to_string_lossy().into_owned();
        // The directory itself is closed before its link is read.
        if let Ok(link) = std::fs::read_link(entry.path()) {
            let _ = write!(text, " {}", link.display());
        }
        text
    });
    links.collect()
}

/// The names of the threads of this process.
fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc is mounted");
    // A thread may end meanwhile.
    let names =
        tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.map(|name| name.trim_end().to_owned()).collect()
}

/// A connection to a device of this world: of this process, or of another owner.
pub(crate) fn connect(world: &World, device: &Path, stranger: bool) -> Option<OwnedFd> {
    if stranger {
        return world.stranger.connect(device);
    }
    std::os::unix::net::UnixStream::connect(device).ok().map(Into::into)
}
