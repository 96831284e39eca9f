//! A device with a bit of everything, served on a socket of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::os::fd::OwnedFd;
use vfiod_client::{Client, Error as ClientError, Options, RawMessage, Socket};
use vfiod_core::dma::Attachment;
use vfiod_core::irq::{IrqFlags, IrqInfo};
use vfiod_core::region::{Doorbell, SparseArea};
use vfiod_core::{
    Context, DataPath, Description, Device, DeviceFlags, DeviceSpec, DeviceTask, Errno, Error,
    Features, IrqIndex, OpenPolicy, Quiesce, Region, RegionFlags, RegionIndex, Registration,
    Registry, ResetCause, Result, Why, Worker,
};
use vfiod_server::{Listener, Served, Server, ServerOptions, SocketAccess};
use vfiod_tasks::{Runtime, Workers};
use vfiod_wire::payload::RegionAccess;
use vfiod_wire::{Command, Header, Kind};
use zerocopy::IntoBytes;

pub(crate) use crate::testing::{PATIENCE, eventually};

/// Memory up to here, registers behind.
pub(crate) const SPARSE: u32 = 0;
pub(crate) const SPARSE_SIZE: u64 = 0x10000;
pub(crate) const SPARSE_AREA: u64 = 0x8000;
/// Plain registers.
pub(crate) const PLAIN: u32 = 1;
pub(crate) const PLAIN_SIZE: u64 = 0x2000;
/// The DMA engine: IOVA, length, operation, errno. It is a task; the errno is [`RUNNING`] until it is
/// done.
pub(crate) const DMA: u32 = 2;
pub(crate) const RUNNING: u64 = u64::MAX;
pub(crate) const DMA_READ: u64 = 1;
pub(crate) const DMA_WRITE: u64 = 2;
/// Knobs: see `Rack::knob`.
pub(crate) const KNOBS: u32 = 3;
pub(crate) const BELL: u64 = 0x00;
pub(crate) const RINGS: u64 = 0x08;
pub(crate) const TRIGGER: u64 = 0x10;
pub(crate) const LEVEL: u64 = 0x18;
pub(crate) const PANIC: u64 = 0x20;
pub(crate) const STALL_MS: u64 = 0x28;
/// Stalls until the [`Stall`] of this number is released.
pub(crate) const STALL: u64 = 0x50;
/// How long the next close takes.
pub(crate) const SLOW_CLOSE_MS: u64 = 0x30;
/// How long the next reset takes.
pub(crate) const SLOW_RESET_MS: u64 = 0x38;
/// The next reset waits until the DMA engine is done, instead of cancelling it.
pub(crate) const RESET_AWAITS_DMA: u64 = 0x40;
/// Whether it was, when the last such reset ended.
pub(crate) const DMA_WAS_DONE: u64 = 0x48;
/// Two megabytes.
pub(crate) const LARGE: u32 = 4;
pub(crate) const LARGE_SIZE: u64 = 2 << 20;
/// Cannot be written.
pub(crate) const READ_ONLY: u32 = 5;
/// Is not there.
pub(crate) const ABSENT: u32 = 6;
/// Says that it was read, and gives nothing.
pub(crate) const LAZY: u32 = 7;
/// Two megabytes that clients can map.
pub(crate) const MEMORY: u32 = 8;
pub(crate) const REGIONS: u32 = 9;

pub(crate) const LINE: u32 = 0;
pub(crate) const VECTORS: u32 = 1;
pub(crate) const VECTOR_COUNT: u32 = 256;
pub(crate) const NO_IRQ: u32 = 2;
pub(crate) const IRQS: u32 = 3;

pub(crate) const FEATURE: u16 = 0x4242;

pub(crate) const EINVAL: u32 = 22;
pub(crate) const EACCES: u32 = 13;
pub(crate) const EBUSY: u32 = 16;
pub(crate) const EEXIST: u32 = 17;
pub(crate) const EFAULT: u64 = 14;
pub(crate) const EIO: u32 = 5;
pub(crate) const ENODEV: u32 = 19;
pub(crate) const ENOSYS: u32 = 38;
pub(crate) const ENOTTY: u32 = 25;
pub(crate) const EOPNOTSUPP: u32 = 95;
pub(crate) const ETIMEDOUT: u64 = 110;

/// Stalls that were begun and have not been released.
/// Those that are wanted, and whether a device is in them.
static STALLS: Mutex<BTreeMap<u64, bool>> = Mutex::new(BTreeMap::new());
static LAST_STALL: AtomicU64 = AtomicU64::new(0);

/// The longest stall, where whoever began it does not come to its end.
const LONGEST_STALL: Duration = Duration::from_secs(600);

/// A stall of a device, from when its number is written to [`STALL`] until this is dropped.
pub(crate) struct Stall(u64);

impl Stall {
    pub(crate) fn new() -> Self {
        let number = LAST_STALL.fetch_add(1, Ordering::SeqCst) + 1;
        STALLS.lock().unwrap().insert(number, false);
        Self(number)
    }

    /// What is written to [`KNOBS`].
    pub(crate) fn payload(&self) -> Vec<u8> {
        stall_payload(self.0)
    }

    /// For a client in another process: see [`stall_payload`].
    pub(crate) fn number(&self) -> u64 {
        self.0
    }

    pub(crate) fn await_begin(&self) {
        eventually("the stall begins", || STALLS.lock().unwrap()[&self.0]);
    }

    fn hold(number: u64) {
        // One that a client asked for when nobody wants it any more is over at once.
        if let Some(begun) = STALLS.lock().unwrap().get_mut(&number) {
            *begun = true;
        }
        let start = Instant::now();
        while STALLS.lock().unwrap().contains_key(&number) && start.elapsed() < LONGEST_STALL {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        STALLS.lock().unwrap().remove(&self.0);
    }
}

/// What is written to [`KNOBS`] for the stall of this number.
pub(crate) fn stall_payload(number: u64) -> Vec<u8> {
    let access = RegionAccess { offset: STALL, region: KNOBS, count: 8 };
    [access.as_bytes(), &number.to_ne_bytes()].concat()
}

struct Rack {
    ctx: Option<Context>,
    plain: Arc<Mutex<Vec<u8>>>,
    large: Vec<u8>,
    dma: [u64; 4],
    dma_errno: Arc<AtomicU64>,
    rings: Arc<Rings>,
    feature: Vec<u8>,
    slow_close: Duration,
    slow_reset: Duration,
    reset_awaits_dma: bool,
    dma_was_done: bool,
}

/// Counts the rings of the doorbells.
#[derive(Default)]
struct Rings(AtomicU64);

impl DataPath for Rings {
    fn doorbell(&self, _: usize, _: Option<u64>, _: &Attachment) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Rack {
    fn new() -> Self {
        Self {
            ctx: None,
            plain: Arc::new(Mutex::new(vec![0; PLAIN_SIZE as usize])),
            large: vec![0; LARGE_SIZE as usize],
            dma: [0; 4],
            dma_errno: Arc::default(),
            rings: Arc::default(),
            feature: b"initial".to_vec(),
            slow_close: Duration::ZERO,
            slow_reset: Duration::ZERO,
            reset_awaits_dma: false,
            dma_was_done: false,
        }
    }

    fn knob(&mut self, offset: u64, value: u64) -> Result<()> {
        let Some(ctx) = &self.ctx else { return Ok(()) };
        match offset {
            TRIGGER => {
                ctx.irqs().trigger(IrqIndex(VECTORS), value as u32)?;
            }
            LEVEL => ctx.irqs().set_level(IrqIndex(LINE), 0, value != 0)?,
            PANIC => panic!("asked to"),
            SLOW_CLOSE_MS => self.slow_close = Duration::from_millis(value),
            SLOW_RESET_MS => self.slow_reset = Duration::from_millis(value),
            RESET_AWAITS_DMA => self.reset_awaits_dma = value != 0,
            STALL_MS => std::thread::sleep(Duration::from_millis(value)),
            STALL => Stall::hold(value),
            _ => {}
        }
        Ok(())
    }

    fn run_dma(&mut self, op: u64) {
        let Some(ctx) = &self.ctx else { return };
        let [iova, len, ..] = self.dma;
        let (plain, errno) = (self.plain.clone(), self.dma_errno.clone());
        errno.store(RUNNING, Ordering::SeqCst);
        let engine = |task: DeviceTask<Self>| async move {
            let mut data = vec![0; len as usize];
            let done = if op == DMA_READ {
                let done = task.dma().read(iova, &mut data).await;
                // As much of it as can be looked at.
                let kept = data.len().min(PLAIN_SIZE as usize);
                plain.lock().unwrap()[..kept].copy_from_slice(&data[..kept]);
                done
            } else {
                data.copy_from_slice(&plain.lock().unwrap()[..len as usize]);
                task.dma().write(iova, &data).await
            };
            let done = done.err().map_or(0, |error| error.errno().raw_os_error() as u64);
            errno.store(done, Ordering::SeqCst);
        };
        if let Err(error) = DeviceTask::spawn(ctx, "dma", engine) {
            self.dma_errno.store(error.errno().raw_os_error() as u64, Ordering::SeqCst);
        }
    }
}

impl Device for Rack {
    fn persistence(&mut self) -> vfiod_core::Persistence<'_> {
        vfiod_core::Persistence::Stateless
    }

    fn describe(&self) -> Description {
        let doorbells =
            vec![Doorbell::eventfd(BELL, 4).matching(1), Doorbell::eventfd(BELL, 8).matching(7)];
        Description {
            flags: DeviceFlags::RESET,
            regions: vec![
                Region {
                    shared: vec![SparseArea { offset: 0, size: SPARSE_AREA }],
                    ..Region::registers(SPARSE_SIZE)
                },
                Region::registers(PLAIN_SIZE),
                Region::registers(32),
                Region { doorbells, ..Region::registers(0x1000) },
                Region::registers(LARGE_SIZE),
                Region { flags: RegionFlags::READ, ..Region::registers(16) },
                Region::absent(),
                Region::registers(0x2000),
                Region {
                    shared: vec![SparseArea { offset: 0, size: LARGE_SIZE }],
                    ..Region::registers(LARGE_SIZE)
                },
            ],
            irqs: vec![
                IrqInfo {
                    flags: IrqFlags::EVENTFD | IrqFlags::MASKABLE | IrqFlags::AUTOMASKED,
                    count: 1,
                },
                IrqInfo { flags: IrqFlags::EVENTFD | IrqFlags::NORESIZE, count: VECTOR_COUNT },
                IrqInfo { flags: IrqFlags::EVENTFD, count: 0 },
            ],
        }
    }

    fn init(&mut self, ctx: &Context) -> Result<()> {
        ctx.set_data_path(self.rings.clone());
        self.ctx = Some(ctx.clone());
        Ok(())
    }

    fn open_device(&mut self) -> Result<()> {
        Ok(())
    }

    fn close_device(&mut self) {
        std::thread::sleep(std::mem::take(&mut self.slow_close));
    }

    fn read(&mut self, region: RegionIndex, offset: u64, data: &mut [u8]) -> Result<()> {
        let at = offset as usize;
        match region.0 {
            PLAIN => data.copy_from_slice(&self.plain.lock().unwrap()[at..at + data.len()]),
            LARGE => data.copy_from_slice(&self.large[at..at + data.len()]),
            DMA => {
                let mut registers = self.dma;
                registers[3] = self.dma_errno.load(Ordering::SeqCst);
                data.copy_from_slice(&registers.as_bytes()[at..at + data.len()]);
            }
            LAZY => {}
            KNOBS if offset == DMA_WAS_DONE => data[0] = self.dma_was_done.into(),
            KNOBS if offset == RINGS => {
                data.copy_from_slice(&self.rings.0.load(Ordering::SeqCst).to_ne_bytes())
            }
            _ => data.fill(0x5a),
        }
        Ok(())
    }

    fn write(&mut self, region: RegionIndex, offset: u64, data: &[u8]) -> Result<()> {
        let at = offset as usize;
        let mut value = [0; 8];
        let len = data.len().min(8);
        value[..len].copy_from_slice(&data[..len]);
        let value = u64::from_ne_bytes(value);
        match region.0 {
            PLAIN => self.plain.lock().unwrap()[at..at + data.len()].copy_from_slice(data),
            LARGE => self.large[at..at + data.len()].copy_from_slice(data),
            DMA => {
                self.dma[at / 8] = value;
                if at == 16 {
                    self.run_dma(value);
                }
            }
            KNOBS => self.knob(offset, value)?,
            _ => {}
        }
        Ok(())
    }

    fn reset(&mut self, _cause: ResetCause) -> Result<()> {
        std::thread::sleep(std::mem::take(&mut self.slow_reset));
        // Of a task that was cancelled nothing comes any more.
        let errno = self.dma_errno.swap(0, Ordering::SeqCst);
        self.dma_was_done = errno != RUNNING;
        self.plain.lock().unwrap().fill(0);
        self.dma = [0; 4];
        self.rings.0.store(0, Ordering::SeqCst);
        Ok(())
    }

    fn as_worker(&mut self) -> Option<&mut dyn Worker> {
        Some(self)
    }

    fn as_features(&mut self) -> Option<&mut dyn Features> {
        Some(self)
    }
}

impl Worker for Rack {
    fn quiesce(&mut self, _: Why) -> Quiesce {
        if std::mem::take(&mut self.reset_awaits_dma) { Quiesce::Finish } else { Quiesce::Cancel }
    }

    fn resume(&mut self) {}
}

impl Features for Rack {
    fn probe(&mut self, index: u16) -> (bool, bool) {
        (index == FEATURE, index == FEATURE)
    }

    fn get(&mut self, index: u16, _argument: &[u8]) -> Result<Vec<u8>> {
        if index == FEATURE { Ok(self.feature.clone()) } else { Err(no_feature()) }
    }

    fn set(&mut self, index: u16, data: &[u8]) -> Result<()> {
        if index != FEATURE {
            return Err(no_feature());
        }
        self.feature = data.to_vec();
        Ok(())
    }
}

fn no_feature() -> Error {
    Error::new(Errno::NOTTY, "no such feature")
}

/// The device, its server and its socket.
pub(crate) struct Rig {
    pub(crate) served: Option<Served>,
    pub(crate) registration: Option<Registration>,
    _registry: Registry,
    _workers: Workers,
    pub(crate) path: PathBuf,
    pub(crate) server: Server,
    _dir: tempfile::TempDir,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(OpenPolicy::Multi, server_options())
    }

    pub(crate) fn with(open: OpenPolicy, options: ServerOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rack.sock");
        let (registry, workers) = registry();
        let spec = DeviceSpec { name: "rack".to_owned(), open, ..DeviceSpec::default() };
        let server = Server::new(options).unwrap();
        let (registration, served) = serve(&registry, &server, spec, &path);
        Self {
            served: Some(served),
            registration: Some(registration),
            _registry: registry,
            _workers: workers,
            path,
            server,
            _dir: dir,
        }
    }

    pub(crate) fn client(&self) -> Client {
        self.client_with(options())
    }

    pub(crate) fn client_with(&self, options: Options) -> Client {
        Client::connect_with(&self.path, options).unwrap()
    }

    /// A socket without negotiation.
    pub(crate) fn socket(&self) -> Socket {
        Socket::connect(&self.path, PATIENCE).unwrap()
    }

    pub(crate) fn connections(&self) -> usize {
        self.served.as_ref().map_or(0, Served::connections)
    }

    /// Waits until the server has let go of every connection.
    pub(crate) fn wait_idle(&self) {
        eventually("the connections are gone", || self.connections() == 0);
    }

    /// That the server still serves others.
    pub(crate) fn assert_alive(&self) {
        let mut client = self.client();
        client.region_write(PLAIN, 0, &[1, 2, 3, 4]).unwrap();
        let mut data = [0; 4];
        client.region_read(PLAIN, 0, &mut data).unwrap();
        assert_eq!(data, [1, 2, 3, 4]);
    }
}

/// Options of a client that waits for a reply as long as a test does.
pub(crate) fn options() -> Options {
    Options { timeout: PATIENCE, ..Options::default() }
}

/// Connects to a device with [`options`].
pub(crate) fn connect(path: impl AsRef<std::path::Path>) -> Result<Client, ClientError> {
    Client::connect_with(path, options())
}

/// A registry whose devices' tasks a thread runs.
pub(crate) fn registry() -> (Registry, Workers) {
    let runtime = Runtime::new().unwrap();
    let workers = Workers::start(&runtime, 1).unwrap();
    (Registry::with_runtime(runtime, None), workers)
}

/// A rack of its own, served at a path.
pub(crate) fn serve(
    registry: &Registry,
    server: &Server,
    spec: DeviceSpec,
    path: &std::path::Path,
) -> (Registration, Served) {
    let registration = registry.register(spec, Box::new(Rack::new())).unwrap();
    let listener = Listener::bind(path, SocketAccess::default()).unwrap();
    let served = server.serve(listener, registration.device().clone()).unwrap();
    (registration, served)
}

/// A negotiated socket, to misbehave on.
pub(crate) fn negotiated(rig: &Rig) -> Socket {
    let socket = rig.socket();
    socket.send(&version_message(), &[]).unwrap();
    assert_eq!(socket.receive_message().unwrap().header.kind(), Kind::Reply(Ok(())));
    socket
}

#[track_caller]
pub(crate) fn assert_closed(socket: &Socket) {
    let received = socket.receive_message();
    assert!(matches!(received, Err(ClientError::Closed)), "{received:?}");
}

/// The errno that a call was refused with.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> u32 {
    let error = outcome.expect_err("it was not refused");
    error.remote_errno().unwrap_or_else(|| panic!("not refused, but {error}"))
}

/// A whole message.
pub(crate) fn message(id: u16, command: Command, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Header::command(id, command, payload.len(), false).as_bytes().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

/// A VERSION as the shortest client would send it.
pub(crate) fn version_message() -> Vec<u8> {
    message(0, Command::Version, b"\0\0\0\0{}\0")
}

/// The errno in a reply.
#[track_caller]
pub(crate) fn reply_errno(message: &RawMessage) -> u32 {
    match message.header.kind() {
        Kind::Reply(Err(errno)) => errno,
        other => panic!("no error reply, but {other:?}"),
    }
}

pub(crate) fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// How often an eventfd was signalled since the last look.
pub(crate) fn signals(fd: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(fd, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(_) => 0,
    }
}

/// Options of a server, in a process that has as many descriptors as it may. A login often has 1,024 of half a
/// million, of which tests that run at the same time use more, and the share of a device is too small for some.
pub(crate) fn server_options() -> ServerOptions {
    static RAISED: Once = Once::new();
    RAISED.call_once(|| {
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    });
    ServerOptions::default()
}

/// Descriptors of this process. Tests that count run [`alone`].
pub(crate) fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Runs a test in a process of its own, because other tests open and close descriptors at the
/// same time: `true` in that process, `false` in the one that waited for it.
pub(crate) fn alone(test: &str) -> bool {
    if std::env::var_os("VFIOD_TEST_ALONE").is_some() {
        return true;
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("VFIOD_TEST_ALONE", "1")
        .status()
        .unwrap();
    assert!(status.success());
    false
}

pub(crate) fn write_u64(client: &mut Client, region: u32, offset: u64, value: u64) {
    client.region_write(region, offset, &value.to_ne_bytes()).unwrap();
}

pub(crate) fn read_u64(client: &mut Client, region: u32, offset: u64) -> u64 {
    let mut data = [0; 8];
    client.region_read(region, offset, &mut data).unwrap();
    u64::from_ne_bytes(data)
}

/// Starts the DMA engine.
pub(crate) fn start_dma(client: &mut Client, op: u64, iova: u64, len: u64) {
    write_u64(client, DMA, 0, iova);
    write_u64(client, DMA, 8, len);
    write_u64(client, DMA, 16, op);
}

/// Waits until the DMA engine is done; the errno it ends with.
pub(crate) fn dma_errno(client: &mut Client) -> u64 {
    let mut errno = RUNNING;
    eventually("the DMA engine is done", || {
        errno = read_u64(client, DMA, 24);
        errno != RUNNING
    });
    errno
}

/// Runs the DMA engine; the errno it ends with.
pub(crate) fn dma(client: &mut Client, op: u64, iova: u64, len: u64) -> u64 {
    start_dma(client, op, iova, len);
    dma_errno(client)
}
