//! A driver for tests: registers a model and does to it what a guest and its client would,
//! through the same [`File`] that a connection holds.
//!
//! ```
//! use vfiod_devices::{driver::Driver, template::Template};
//!
//! let device = Driver::new(Template::default());
//! device.write32(0, 4, 0x1234); // BAR 0, offset 4
//! assert_eq!(device.read32(0, 4), 0x1234);
//! ```
//!
//! What cannot go wrong with a sound model panics here, with a message.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfiod_core::dma::{Backing, DmaPeer, MapRequest, Perm};
use vfiod_core::irq::{IrqAction, IrqData};
use vfiod_core::{
    DeviceSpec, File, IrqIndex, Owner, RegionIndex, Registration, Registry, Result, StatePolicy,
};
use vfiod_pci::{Function, Model};

/// The region of configuration space (`VFIO_PCI_CONFIG_REGION_INDEX`).
pub const CONFIG: RegionIndex = RegionIndex(7);
/// How long something is waited for that should be there at once.
const PATIENCE: Duration = Duration::from_secs(20);
/// Command: I/O, memory, bus master (PCI 6.2.2).
const COMMAND_ON: u16 = 0x7;

/// An open device.
pub struct Driver {
    pub(crate) file: File,
    pub(crate) registration: Registration,
}

impl Driver {
    /// Registers a model and opens it.
    ///
    /// # Panics
    /// Where the model refuses.
    pub fn new<M: Model + 'static>(model: M) -> Self {
        Self::with_policy(model, StatePolicy::Reset)
    }

    /// The same, with what happens to the state between users.
    ///
    /// # Panics
    /// Where the model refuses.
    pub fn with_policy<M: Model + 'static>(model: M, state: StatePolicy) -> Self {
        let function = Function::new(model).expect("the spec is sound");
        let spec = DeviceSpec { name: "subject".to_owned(), state, ..DeviceSpec::default() };
        let registration =
            Registry::new().register(spec, Box::new(function)).expect("it can be registered");
        let file = open(&registration).expect("it can be opened");
        Self { file, registration }
    }

    /// Closes it (the last close) and opens it again (a first open).
    ///
    /// # Panics
    /// Where it does not open again.
    #[must_use]
    pub fn reopen(self) -> Self {
        let Self { file, registration } = self;
        drop(file);
        let file = open(&registration).expect("it opens again");
        Self { file, registration }
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// DEVICE_RESET.
    ///
    /// # Panics
    /// Where the reset fails.
    pub fn reset(&self) {
        self.file.reset().expect("it can be reset");
    }

    /// Size of a region in bytes, 0 where there is none.
    pub fn size(&self, region: u32) -> u64 {
        self.file.region(RegionIndex(region)).map_or(0, |region| region.size)
    }

    /// The BARs that there are, with their sizes.
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

    /// Writes a region; panics as [`Driver::read`].
    pub fn write(&self, region: RegionIndex, offset: u64, data: &[u8]) {
        self.file.write(region, offset, data).expect("it can be written");
    }

    /// A byte of a BAR.
    pub fn read8(&self, bar: u32, offset: u64) -> u8 {
        u8::from_le_bytes(self.read(RegionIndex(bar), offset))
    }

    /// 4 bytes of a BAR.
    pub fn read32(&self, bar: u32, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(RegionIndex(bar), offset))
    }

    /// 8 bytes of a BAR.
    pub fn read64(&self, bar: u32, offset: u64) -> u64 {
        u64::from_le_bytes(self.read(RegionIndex(bar), offset))
    }

    /// A byte to a BAR.
    pub fn write8(&self, bar: u32, offset: u64, value: u8) {
        self.write(RegionIndex(bar), offset, &[value]);
    }

    /// 4 bytes to a BAR.
    pub fn write32(&self, bar: u32, offset: u64, value: u32) {
        self.write(RegionIndex(bar), offset, &value.to_le_bytes());
    }

    /// 8 bytes to a BAR.
    pub fn write64(&self, bar: u32, offset: u64, value: u64) {
        self.write(RegionIndex(bar), offset, &value.to_le_bytes());
    }

    /// A byte of configuration space.
    pub fn config8(&self, offset: u64) -> u8 {
        u8::from_le_bytes(self.read(CONFIG, offset))
    }

    /// 2 bytes of configuration space.
    pub fn config16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(CONFIG, offset))
    }

    /// 4 bytes of configuration space.
    pub fn config32(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(CONFIG, offset))
    }

    /// 2 bytes to configuration space.
    pub fn set_config16(&self, offset: u64, value: u16) {
        self.write(CONFIG, offset, &value.to_le_bytes());
    }

    /// 4 bytes to configuration space.
    pub fn set_config32(&self, offset: u64, value: u32) {
        self.write(CONFIG, offset, &value.to_le_bytes());
    }

    /// Turns on memory, I/O and bus mastering, as a driver does first.
    pub fn enable(&self) {
        self.set_config16(4, COMMAND_ON);
    }

    /// Where a capability is, by its id.
    pub fn capability(&self, id: u8) -> Option<u64> {
        let mut next = u64::from(self.config8(0x34));
        // As many as fit: a chain that loops ends too.
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

    /// Guest memory: a window of `len` bytes at `iova`, all zeros.
    ///
    /// # Panics
    /// Where the core refuses the window.
    pub fn map(&self, iova: u64, len: u64, perm: Perm) -> GuestMemory {
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&fd, len).expect("its size");
        let copy = fd.try_clone().expect("a second descriptor");
        let backing = Backing::File { fd: copy, offset: 0 };
        self.file.dma_map(MapRequest { iova, size: len, perm, backing }).expect("a window");
        GuestMemory { fd, len }
    }

    /// Guest memory that only messages reach; panics as [`Driver::map`].
    pub fn map_peer(&self, iova: u64, len: u64, peer: Arc<dyn DmaPeer>) {
        let perm = Perm::READ | Perm::WRITE;
        let backing = Backing::Peer(peer);
        self.file.dma_map(MapRequest { iova, size: len, perm, backing }).expect("a window");
    }

    /// Removes the window that is exactly this. Waits for accesses in flight.
    ///
    /// # Errors
    /// Those of [`File::dma_unmap`].
    pub fn unmap(&self, iova: u64, len: u64) -> Result<u64> {
        self.file.dma_unmap(iova, len, PATIENCE)
    }

    /// Sets up an eventfd for an interrupt.
    ///
    /// # Panics
    /// Where there is no such vector.
    pub fn interrupt(&self, index: IrqIndex, vector: u32) -> Interrupt {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let fd = eventfd(0, flags).expect("an eventfd");
        let copy = fd.try_clone().expect("a second descriptor");
        let fds = IrqData::EventFds(vec![Some(copy)]);
        self.file.set_irqs(index, vector, 1, IrqAction::Trigger, fds).expect("it is there");
        Interrupt { fd }
    }

    /// Masks or unmasks the pin, as the client does.
    ///
    /// # Panics
    /// Where the function has no pin.
    pub fn mask_pin(&self, masked: bool) {
        let action = if masked { IrqAction::Mask } else { IrqAction::Unmask };
        let pin = vfiod_pci::irq_index::INTX;
        self.file.set_irqs(pin, 0, 1, action, IrqData::None).expect("the function has a pin");
    }
}

fn open(registration: &Registration) -> Result<File> {
    registration.device().open(Owner::in_process("driver"))
}

/// Memory of a guest that is not there.
#[derive(Debug)]
pub struct GuestMemory {
    fd: OwnedFd,
    len: u64,
}

impl GuestMemory {
    /// What is there, from an offset in bytes.
    ///
    /// # Panics
    /// Past its end.
    pub fn get(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        let read = rustix::io::pread(&self.fd, &mut data, offset).expect("it can be read");
        assert_eq!(read, len, "{len} bytes at {offset:#x} of {:#x}", self.len);
        data
    }

    /// Puts bytes there; panics as [`GuestMemory::get`].
    pub fn put(&self, offset: u64, data: &[u8]) {
        assert!(offset + data.len() as u64 <= self.len, "past the end");
        let written = rustix::io::pwrite(&self.fd, data, offset).expect("it can be written");
        assert_eq!(written, data.len());
    }

    /// Takes the memory away behind the device's back, as a hostile client can.
    ///
    /// # Panics
    /// Where the kernel refuses.
    pub fn truncate(&self) {
        ftruncate(&self.fd, 0).expect("a memfd can be cut");
    }
}

/// An interrupt as its client sees it.
#[derive(Debug)]
pub struct Interrupt {
    fd: OwnedFd,
}

impl Interrupt {
    /// How often it came since the last time that this was asked.
    pub fn count(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.fd, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    /// Waits until it comes; how often it did.
    ///
    /// # Panics
    /// Where it does not come for a long time.
    pub fn wait(&self) -> u64 {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let ready = poll(&mut fds, Some(&patience)).expect("an eventfd can be waited for");
        assert!(ready == 1, "the interrupt does not come");
        self.count()
    }
}

/// Waits until something is so that a device does by itself.
///
/// # Panics
/// Where it does not come about for a long time.
pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
