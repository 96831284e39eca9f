//! A server in this process, whose device is a controller with a disk in memory.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vfiod_config::ConfiguredModel;
use vfiod_core::{DeviceSpec, Registration, Registry};
use vfiod_nvme::{Nvme, NvmeOptions};
use vfiod_nvme_driver::{Buffer, Controller, Doorbells, Options};
use vfiod_pci::Function;
use vfiod_server::{Listener, Served, Server, ServerOptions, SocketAccess};
use vfiod_tasks::Workers;

/// Nothing here takes that long, unless it hangs: also on a machine that stands still for seconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Blocks of the disk, of 512 bytes each.
pub(crate) const BLOCKS: u64 = 8192;

pub(crate) struct Rig {
    pub(crate) socket: PathBuf,
    // In the order in which they end.
    _served: Served,
    _server: Server,
    _registration: Registration,
    _workers: Workers,
    _directories: [tempfile::TempDir; 2],
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(|_| NvmeOptions { memory: Some(BLOCKS * 512), ..NvmeOptions::default() })
    }

    /// A server whose disk has these options; they may name files in a directory of its own.
    pub(crate) fn with(options: impl FnOnce(&Path) -> NvmeOptions) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let model = Nvme::configured(options(directory.path())).unwrap();
        Self::in_directory(model, directory)
    }

    /// The same, whose directory is in this one.
    pub(crate) fn with_in(place: &str, options: impl FnOnce(&Path) -> NvmeOptions) -> Self {
        let directory = tempfile::tempdir_in(place).unwrap();
        let model = Nvme::configured(options(directory.path())).unwrap();
        Self::in_directory(model, directory)
    }

    /// A server of this controller.
    pub(crate) fn of(model: Nvme) -> Self {
        Self::in_directory(model, tempfile::tempdir().unwrap())
    }

    fn in_directory(model: Nvme, directory: tempfile::TempDir) -> Self {
        // The name of a socket has a limit.
        let sockets = tempfile::tempdir().unwrap();
        let socket = sockets.path().join("disk.sock");
        let registry = Registry::new();
        let spec = DeviceSpec { name: "disk".to_owned(), ..DeviceSpec::default() };
        let registration =
            registry.register(spec, Box::new(Function::new(model).unwrap())).unwrap();
        let workers = Workers::start(registry.runtime(), 1).unwrap();
        let server = Server::new(ServerOptions::default()).unwrap();
        let listener = Listener::bind(&socket, SocketAccess::default()).unwrap();
        let served = server.serve(listener, registration.device().clone()).unwrap();
        Self {
            socket,
            _served: served,
            _server: server,
            _registration: registration,
            _workers: workers,
            _directories: [sockets, directory],
        }
    }

    pub(crate) fn connect(&self) -> Controller {
        Controller::connect(&self.socket, &options()).unwrap()
    }

    pub(crate) fn connect_by(&self, doorbells: Doorbells) -> Controller {
        let mut options = options();
        options.doorbells = doorbells;
        Controller::connect(&self.socket, &options).unwrap()
    }

    /// Connects as soon as the client before has been noticed to be gone.
    pub(crate) fn connect_again(&self) -> Controller {
        let start = Instant::now();
        loop {
            match Controller::connect(&self.socket, &options()) {
                Ok(controller) => return controller,
                Err(error) if start.elapsed() > PATIENCE => panic!("{error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

/// Options of a driver that waits as long as a test does.
pub(crate) fn options() -> Options {
    let mut options = Options::default();
    options.timeout = PATIENCE;
    options
}

/// Bytes that differ from place to place.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| (n.wrapping_mul(31) ^ (n >> 8) ^ seed.wrapping_mul(97)) as u8).collect()
}

pub(crate) fn content(buffer: &Buffer) -> Vec<u8> {
    let mut bytes = vec![0; buffer.len()];
    buffer.read(0, &mut bytes);
    bytes
}

/// Waits until a condition holds that others bring about.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
