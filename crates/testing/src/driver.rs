//! A driver in process: it registers a model and does to it what a guest and its client would,
//! through the same [`File`] that a connection holds.
//!
//! An operation that cannot fail with a sound model panics here, with a message.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfiod_core::dma::{Backing, DmaPeer, MapRequest, Perm};
use vfiod_core::irq::{IrqAction, IrqData};
use vfiod_core::{
    Device, DeviceRef, DeviceSpec, Errno, Error, File, FindDescriptors, IrqIndex, Owner,
    RegionIndex, Registration, Registry, Result, Saved, StatePolicy,
};
use vfiod_pci::{Function, Model};
use vfiod_tasks::{ManualClock, Runtime, Workers};

/// The region of configuration space (`VFIO_PCI_CONFIG_REGION_INDEX`).
pub const CONFIG: RegionIndex = RegionIndex(7);
/// How long to wait for what should happen at once.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Command: I/O, memory, bus master (PCI 6.2.2).
const COMMAND_ON: u16 = 0x7;

/// An open device.
pub struct Driver {
    pub(crate) file: File,
    pub(crate) registration: Registration,
    /// Where the device's tasks run.
    pub(crate) runtime: Runtime,
    /// Who runs them; without workers it is [`Driver::settle`].
    pub(crate) workers: Option<Workers>,
}

impl Driver {
    /// Registers a model in a registry of its own, and opens it.
    ///
    /// # Panics
    /// If the model refuses to be registered or opened.
    pub fn new<M: Model>(model: M) -> Self {
        Self::with_policy(model, StatePolicy::Reset)
    }

    /// Registers a model, with what happens to its state between users, and opens it.
    ///
    /// # Panics
    /// If the model refuses to be registered or opened.
    pub fn with_policy<M: Model>(model: M, state: StatePolicy) -> Self {
        let (registration, runtime) = register(function(model), state);
        let workers = Workers::start(&runtime, 1).expect("a thread for the device's tasks");
        let file = open(&registration).expect("it can be opened");
        Self { file, registration, runtime, workers: Some(workers) }
    }

    /// Registers a model and opens it. The time of its tasks is that of `clock`, which a test moves.
    ///
    /// # Panics
    /// If the model refuses to be registered or opened.
    pub fn with_clock<M: Model>(model: M, clock: &ManualClock) -> Self {
        let runtime = Runtime::with_clock(clock).expect("a runtime");
        let registry = Registry::with_runtime(runtime.clone(), None);
        let registration = register_in(&registry, function(model), StatePolicy::Reset);
        let workers = Workers::start(&runtime, 1).expect("a thread for the device's tasks");
        let file = open(&registration).expect("it can be opened");
        Self { file, registration, runtime, workers: Some(workers) }
    }

    /// Registers a model and opens it, without a thread for its tasks: they run in
    /// [`Driver::settle`] and in whatever waits for them, so that what the device does is the same
    /// each time.
    ///
    /// # Panics
    /// If the model refuses to be registered or opened.
    pub fn without_workers<M: Model>(model: M) -> Self {
        Self::of_device(function(model))
    }

    /// As [`Driver::without_workers`]. The time of the device's tasks is that of `clock`.
    ///
    /// # Panics
    /// If the model refuses to be registered or opened.
    pub fn without_workers_at<M: Model>(model: M, clock: &ManualClock) -> Self {
        let runtime = Runtime::with_clock(clock).expect("a runtime");
        let registry = Registry::with_runtime(runtime.clone(), None);
        let registration = register_in(&registry, function(model), StatePolicy::Reset);
        let file = open(&registration).expect("it can be opened");
        Self { file, registration, runtime, workers: None }
    }

    /// Registers a device of any bus and opens it; as [`Driver::without_workers`]. What is about BARs
    /// and configuration space is for PCI functions only.
    ///
    /// # Panics
    /// If the device refuses to be registered or opened.
    pub fn of_device(device: Box<dyn Device>) -> Self {
        let (registration, runtime) = register(device, StatePolicy::Reset);
        let file = open(&registration).expect("it can be opened");
        Self { file, registration, runtime, workers: None }
    }

    /// Whether threads run the tasks of the device.
    pub fn has_workers(&self) -> bool {
        self.workers.is_some()
    }

    /// How many devices are polled now: this one, or none.
    pub fn polled(&self) -> usize {
        self.runtime.polled()
    }

    /// Runs the tasks of a device without workers until each waits for something.
    pub fn settle(&self) {
        self.runtime.run_until_idle();
    }

    /// Registers a model and restores a state to it that was saved while one file was open. Its
    /// tasks run as with [`Driver::without_workers`].
    ///
    /// # Errors
    /// Those of [`DeviceRef::restore`](vfiod_core::DeviceRef::restore). `EINVAL`: no file was open.
    ///
    /// # Panics
    /// If the model refuses to be registered.
    pub fn restored<M: Model>(
        model: M,
        saved: &Saved,
        image: Option<&[u8]>,
        descriptors: &mut dyn FindDescriptors,
    ) -> Result<Self> {
        Self::restored_device(function(model), saved, image, descriptors)
    }

    /// The same for a device of any bus.
    ///
    /// # Errors
    /// As [`Driver::restored`].
    ///
    /// # Panics
    /// If the device refuses to be registered.
    pub fn restored_device(
        device: Box<dyn Device>,
        saved: &Saved,
        image: Option<&[u8]>,
        descriptors: &mut dyn FindDescriptors,
    ) -> Result<Self> {
        let (registration, runtime) = register(device, StatePolicy::Reset);
        let file = registration.device().restore(saved, image, descriptors)?.pop();
        let file = file.ok_or_else(|| Error::new(Errno::INVAL, "no file was open"))?;
        Ok(Self { file, registration, runtime, workers: None })
    }

    /// As [`Driver::without_workers`], of a device that retains its state.
    ///
    /// # Panics
    /// If the model refuses to be registered or opened.
    pub fn retaining<M: Model>(model: M) -> Self {
        let (registration, runtime) = register(function(model), StatePolicy::Retain);
        let file = open(&registration).expect("it can be opened");
        Self { file, registration, runtime, workers: None }
    }

    /// Registers a model, restores a state without clients to it, and opens it. Its tasks run as with
    /// [`Driver::without_workers`].
    ///
    /// # Errors
    /// Those of [`DeviceRef::restore_portable`].
    ///
    /// # Panics
    /// If the model refuses to be registered, or the device to be opened.
    pub fn next_of<M: Model>(model: M, saved: &Saved) -> Result<Self> {
        let (registration, runtime) = register(function(model), StatePolicy::Reset);
        registration.device().restore_portable(saved)?;
        let file = open(&registration).expect("it can be opened");
        Ok(Self { file, registration, runtime, workers: None })
    }

    /// Closes the device (the last close) and opens it again (a first open).
    ///
    /// # Panics
    /// If the device does not open again.
    #[must_use]
    pub fn reopen(self) -> Self {
        self.close().open()
    }

    /// Closes the device (the last close).
    #[must_use]
    pub fn close(self) -> Closed {
        let Self { file, registration, runtime, workers } = self;
        drop(file);
        Closed { registration, runtime, workers }
    }

    /// The file by which the device is open.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The device, as its administrator sees it.
    pub fn device(&self) -> &DeviceRef {
        self.registration.device()
    }

    /// How many tasks the device has.
    pub fn tasks(&self) -> usize {
        self.device().status().tasks.len()
    }

    /// Resets the device (DEVICE_RESET).
    ///
    /// # Panics
    /// If the reset fails.
    pub fn reset(&self) {
        self.file.reset().expect("it can be reset");
    }

    /// The size of a region in bytes; 0 if the device does not have it.
    pub fn size(&self, region: u32) -> u64 {
        self.file.region(RegionIndex(region)).map_or(0, |region| region.size)
    }

    /// The BARs of the device, with their sizes in bytes.
    pub fn bars(&self) -> Vec<(u32, u64)> {
        (0..6).map(|bar| (bar, self.size(bar))).filter(|(_, size)| *size > 0).collect()
    }

    /// Reads a region, BAR or configuration space.
    ///
    /// # Panics
    /// Outside the region, or in the error state.
    pub fn read<const N: usize>(&self, region: RegionIndex, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.file.read(region, offset, &mut data).expect("it can be read");
        data
    }

    /// Writes a region, BAR or configuration space.
    ///
    /// # Panics
    /// Outside the region, or in the error state.
    pub fn write(&self, region: RegionIndex, offset: u64, data: &[u8]) {
        self.file.write(region, offset, data).expect("it can be written");
    }

    /// Reads a byte of a BAR.
    pub fn read8(&self, bar: u32, offset: u64) -> u8 {
        u8::from_le_bytes(self.read(RegionIndex(bar), offset))
    }

    /// Reads 4 bytes of a BAR.
    pub fn read32(&self, bar: u32, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(RegionIndex(bar), offset))
    }

    /// Reads 8 bytes of a BAR.
    pub fn read64(&self, bar: u32, offset: u64) -> u64 {
        u64::from_le_bytes(self.read(RegionIndex(bar), offset))
    }

    /// Writes a byte to a BAR.
    pub fn write8(&self, bar: u32, offset: u64, value: u8) {
        self.write(RegionIndex(bar), offset, &[value]);
    }

    /// Writes 4 bytes to a BAR.
    pub fn write32(&self, bar: u32, offset: u64, value: u32) {
        self.write(RegionIndex(bar), offset, &value.to_le_bytes());
    }

    /// Writes 8 bytes to a BAR.
    pub fn write64(&self, bar: u32, offset: u64, value: u64) {
        self.write(RegionIndex(bar), offset, &value.to_le_bytes());
    }

    /// Reads a byte of configuration space.
    pub fn config8(&self, offset: u64) -> u8 {
        u8::from_le_bytes(self.read(CONFIG, offset))
    }

    /// Reads 2 bytes of configuration space.
    pub fn config16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(CONFIG, offset))
    }

    /// Reads 4 bytes of configuration space.
    pub fn config32(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(CONFIG, offset))
    }

    /// Writes 2 bytes to configuration space.
    pub fn set_config16(&self, offset: u64, value: u16) {
        self.write(CONFIG, offset, &value.to_le_bytes());
    }

    /// Writes 4 bytes to configuration space.
    pub fn set_config32(&self, offset: u64, value: u32) {
        self.write(CONFIG, offset, &value.to_le_bytes());
    }

    /// Enables memory, I/O and bus mastering in the command register.
    pub fn enable(&self) {
        self.set_config16(4, COMMAND_ON);
    }

    /// Waits for the end of a function-level reset, as a driver does: until then configuration
    /// space can read as all ones.
    ///
    /// # Panics
    /// If the reset does not end within 60 s.
    pub fn await_function_reset(&self) {
        let start = Instant::now();
        while self.config32(0) == u32::MAX {
            assert!(start.elapsed() < TIMEOUT, "the function-level reset does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The offset of a capability in configuration space, by its id; `None` if it is not there.
    pub fn capability(&self, id: u8) -> Option<u64> {
        let mut next = u64::from(self.config8(0x34));
        // No more capabilities fit: the search also ends if the chain loops.
        for _ in 0..48 {
            if next < 0x40 {
                return None;
            }
            if self.config8(next) == id {
                return Some(next);
            }
            next = self.config8(next + 1).into();
        }
        None
    }

    /// Maps `len` bytes of guest memory at `iova`, all zeros.
    ///
    /// # Panics
    /// If the core refuses the mapping.
    pub fn map(&self, iova: u64, len: u64, perm: Perm) -> GuestMemory {
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&fd, len).expect("its size");
        let memory = GuestMemory { fd: Arc::new(fd), len };
        self.map_again(iova, &memory, perm);
        memory
    }

    /// Maps guest memory that there is already, whole, at `iova`.
    ///
    /// # Panics
    /// If the core refuses the mapping.
    pub fn map_again(&self, iova: u64, memory: &GuestMemory, perm: Perm) {
        let fd = memory.fd.try_clone().expect("a second descriptor");
        let backing = Backing::File { fd, offset: 0 };
        let request = MapRequest { iova, size: memory.len, perm, backing };
        self.file.dma_map(request).expect("it can be mapped");
    }

    /// Maps guest memory that is reached by messages (DMA_READ, DMA_WRITE).
    ///
    /// # Panics
    /// If the core refuses the mapping.
    pub fn map_peer(&self, iova: u64, len: u64, peer: Arc<dyn DmaPeer>) {
        let perm = Perm::READ | Perm::WRITE;
        let backing = Backing::Peer(peer);
        self.file.dma_map(MapRequest { iova, size: len, perm, backing }).expect("it can be mapped");
    }

    /// Removes exactly this mapping. Waits up to 60 s for accesses in flight.
    ///
    /// # Errors
    /// Those of [`File::dma_unmap`].
    pub fn unmap(&self, iova: u64, len: u64) -> Result<u64> {
        self.file.dma_unmap(iova, len, TIMEOUT)
    }

    /// Sets up an eventfd for an interrupt vector.
    ///
    /// # Panics
    /// If the device does not have the vector.
    pub fn interrupt(&self, index: IrqIndex, vector: u32) -> Interrupt {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let fd = eventfd(0, flags).expect("an eventfd");
        let copy = fd.try_clone().expect("a second descriptor");
        let fds = IrqData::EventFds(vec![Some(copy)]);
        self.file.set_irqs(index, vector, 1, IrqAction::Trigger, fds).expect("it is there");
        Interrupt { fd }
    }

    /// Masks or unmasks INTx, as the client does.
    ///
    /// # Panics
    /// If the function has no pin.
    pub fn mask_pin(&self, masked: bool) {
        let action = if masked { IrqAction::Mask } else { IrqAction::Unmask };
        let pin = vfiod_pci::irq_index::INTX;
        self.file.set_irqs(pin, 0, 1, action, IrqData::None).expect("the function has a pin");
    }
}

/// A device that is not open.
pub struct Closed {
    registration: Registration,
    runtime: Runtime,
    workers: Option<Workers>,
}

impl Closed {
    /// The device, as its administrator sees it.
    pub fn device(&self) -> &DeviceRef {
        self.registration.device()
    }

    /// Opens the device (a first open).
    ///
    /// # Panics
    /// If the device does not open again.
    #[must_use]
    pub fn open(self) -> Driver {
        let Self { registration, runtime, workers } = self;
        let file = open(&registration).expect("it opens again");
        Driver { file, registration, runtime, workers }
    }
}

fn function<M: Model>(model: M) -> Box<dyn Device> {
    Box::new(Function::new(model).expect("the spec is sound"))
}

fn register(device: Box<dyn Device>, state: StatePolicy) -> (Registration, Runtime) {
    let registry = Registry::new();
    (register_in(&registry, device, state), registry.runtime().clone())
}

fn register_in(registry: &Registry, device: Box<dyn Device>, state: StatePolicy) -> Registration {
    let spec = DeviceSpec { name: "subject".to_owned(), state, ..DeviceSpec::default() };
    registry.register(spec, device).expect("it can be registered")
}

fn open(registration: &Registration) -> Result<File> {
    registration.device().open(Owner::in_process("driver"))
}

/// A memfd that stands for the memory of a guest. A clone is the same.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    fd: Arc<OwnedFd>,
    len: u64,
}

impl GuestMemory {
    /// Reads `len` bytes, from an offset in bytes.
    ///
    /// # Panics
    /// Past the end of the memory.
    pub fn get(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        let read = rustix::io::pread(&self.fd, &mut data, offset).expect("it can be read");
        assert_eq!(read, len, "{len} bytes at {offset:#x} of {:#x}", self.len);
        data
    }

    /// Writes bytes, from an offset in bytes.
    ///
    /// # Panics
    /// Past the end of the memory.
    pub fn put(&self, offset: u64, data: &[u8]) {
        assert!(offset + data.len() as u64 <= self.len, "past the end");
        let written = rustix::io::pwrite(&self.fd, data, offset).expect("it can be written");
        assert_eq!(written, data.len());
    }

    /// Truncates the memory to nothing while it is mapped, as a hostile client can.
    ///
    /// # Panics
    /// If the kernel refuses.
    pub fn truncate(&self) {
        ftruncate(&self.fd, 0).expect("a memfd can be cut");
    }
}

/// The eventfd of an interrupt vector, as its client sees it.
#[derive(Debug)]
pub struct Interrupt {
    fd: OwnedFd,
}

impl Interrupt {
    /// Takes the eventfd's counter: how often the interrupt came since this was last called.
    pub fn count(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.fd, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    /// Waits until the interrupt comes. Returns how often it came.
    ///
    /// # Panics
    /// If it does not come within 60 s.
    pub fn wait(&self) -> u64 {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        let timeout = Timespec { tv_sec: TIMEOUT.as_secs() as i64, tv_nsec: 0 };
        let ready = poll(&mut fds, Some(&timeout)).expect("an eventfd can be waited for");
        assert!(ready == 1, "the interrupt does not come");
        self.count()
    }
}

/// Waits until a condition holds that a device brings about by itself.
///
/// # Panics
/// If it does not hold within 60 s.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed() < TIMEOUT, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
