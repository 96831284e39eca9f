//! Bench devices in one set, and the guest of each: it submits commands, and verifies that each
//! completion is right and comes exactly once.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};
use tempfile::NamedTempFile;
use vfiod_core::dma::{Backing, Completion, DmaPeer, MapRequest, Perm};
use vfiod_core::irq::{IrqAction, IrqData};
use vfiod_core::{
    DescriptorTable, DeviceSpec, Errno, Error, File, Owner, RegionIndex, Registration, Registry,
    Result, SetId, SetObject,
};
use vfiod_io::RuntimeRing;
use vfiod_pci::Function;
use vfiod_pci::irq_index::MSIX;
use vfiod_tasks::{Runtime, Workers};

use super::super::registers::{
    BY_DATAMATCH, BY_EVENTFD, DOORBELLS, QUEUE_REGISTERS, QUEUE_STRIDE, QUEUES, SELECT,
};
use super::super::{Bench, BenchOptions};

/// Entries of each ring.
pub(super) const ENTRIES: u32 = 16;
/// Bytes of each transfer.
const LEN: usize = 512;
/// Distance between two transfers, in memory and in the file.
const PAGE: u64 = 4096;
/// Guest memory of the rings, and how much of it each queue has.
const RINGS: u64 = 1 << 32;
const RINGS_LEN: u64 = QUEUES as u64 * QUEUE_RINGS;
const QUEUE_RINGS: u64 = 1024;
const COMPLETIONS: u64 = 64 + 32 * ENTRIES as u64;
/// Guest memory of the data.
const DATA: u64 = 2 << 32;
const DATA_LEN: u64 = QUEUES as u64 * ENTRIES as u64 * PAGE;
const FILE_TO_MEMORY: u32 = 1;
const MEMORY_TO_FILE: u32 = 2;
const REGISTERS: RegionIndex = RegionIndex(2);
const PAGE_BAR: RegionIndex = RegionIndex(3);
const CONFIG: RegionIndex = RegionIndex(7);
const TIMEOUT: Duration = Duration::from_secs(60);

/// Pseudo-random numbers (xorshift), the same in each run.
pub(super) struct Numbers(pub(super) u64);

impl Numbers {
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

struct Slot;

impl SetObject for Slot {
    fn set_name(&self) -> String {
        "slot".to_owned()
    }
}

/// How a device reaches guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Memory {
    #[default]
    Mapped,
    ByMessage,
}

/// What performs requests to the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Engine {
    /// io_uring, where it is not forbidden.
    #[default]
    Kernel,
    Threads,
}

/// What the queues read and write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Storage {
    /// Memory of the device's own.
    #[default]
    Own,
    /// A file, which outlives the device.
    File,
}

/// What a rig is made of.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Setup {
    pub(super) memory: Memory,
    pub(super) engine: Engine,
    pub(super) storage: Storage,
}

/// The form of a saved state.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    Text,
    Image,
}

/// Two devices of one set, and the threads that run their tasks.
pub(super) struct Rig {
    pub(super) guests: Vec<Guest>,
    registrations: Vec<Registration>,
    makers: Vec<Maker>,
    registry: Registry,
    _workers: Workers,
}

/// Makes one of the devices of a rig.
struct Maker {
    set: SetId,
    ring: Option<Arc<RuntimeRing>>,
    /// Of the devices the second one polls its doorbells.
    polled: bool,
    disk: Option<NamedTempFile>,
    made: u32,
}

impl Maker {
    fn register(&mut self, registry: &Registry) -> Registration {
        let disk = self.disk.as_ref().map(|disk| disk.path().to_owned());
        let options = BenchOptions { polled: self.polled, disk, ..BenchOptions::default() };
        let mut bench = Bench::new(options);
        bench.ring = self.ring.clone();
        let function = Function::new(bench).expect("a sound description");
        self.made += 1;
        let kind = if self.polled { "polls" } else { "sleeps" };
        let name = format!("{kind}, {}", self.made);
        let spec = DeviceSpec { name, set: Some(self.set.clone()), ..DeviceSpec::default() };
        registry.register(spec, Box::new(function)).expect("registers")
    }
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(Setup::default())
    }

    pub(super) fn with(setup: Setup) -> Self {
        let runtime = Runtime::new().expect("descriptors");
        let workers = Workers::start(&runtime, 2).expect("threads");
        let ring = (setup.engine == Engine::Threads)
            .then(|| RuntimeRing::with_threads(&runtime, 3).expect("descriptors"));
        let registry = Registry::with_runtime(runtime, None);
        let set = SetId::of(&Arc::new(Slot));
        let mut makers = [false, true].map(|polled| {
            let disk = (setup.storage == Storage::File).then(|| {
                let disk = NamedTempFile::new().expect("a file");
                disk.as_file().set_len(DATA_LEN).expect("its size");
                disk
            });
            Maker { set: set.clone(), ring: ring.clone(), polled, disk, made: 0 }
        });
        let registrations: Vec<_> =
            makers.iter_mut().map(|maker| maker.register(&registry)).collect();
        let open = |registration: &Registration| {
            registration.device().open(Owner::in_process("guest")).expect("opens")
        };
        let guests = registrations.iter().map(|device| Guest::new(open(device), setup)).collect();
        Self { guests, registrations, makers: makers.into(), registry, _workers: workers }
    }

    /// Saves a device amid its work, closes it, and goes on with a fresh one to which the state is
    /// restored. What the first one still did after it had been saved is done again.
    pub(super) fn replace(&mut self, which: usize, form: Form) {
        let guest = &mut self.guests[which];
        let mut descriptors = DescriptorTable::new().with_peer(guest.peer.clone());
        let old = guest.file.device().clone();
        let saved = old.save(&mut descriptors).expect("it can be saved");
        let image = match form {
            Form::Text => None,
            Form::Image => {
                let mut image = vec![0; old.image_len().expect("it can be saved")];
                old.save_image(&mut image).expect("it can be saved");
                Some(image)
            }
        };
        old.revoke(guest.file.id()).expect("it is open");
        let new = self.makers[which].register(&self.registry);
        let restored = new.device().restore(&saved, image.as_deref(), &mut descriptors);
        let file = restored.expect("it can be restored").pop().expect("it was open");
        guest.take(file);
        self.registrations[which] = new;
    }
}

/// The memory of a guest that is reached by message: its addresses and what is there.
struct Client {
    parts: [(u64, OwnedFd); 2],
}

impl Client {
    /// Where some memory is. `EFAULT`: the guest has none there.
    fn find(&self, iova: u64, len: usize) -> Result<(&OwnedFd, u64)> {
        let end = iova + len as u64;
        let (base, fd) = self.parts.iter().rfind(|(base, _)| *base <= iova).ok_or_else(fault)?;
        let size = fstat(fd).map_or(0, |stat| stat.st_size as u64);
        if end - base <= size { Ok((fd, iova - base)) } else { Err(fault()) }
    }
}

fn fault() -> Error {
    Error::new(Errno::FAULT, "the guest has no memory there")
}

impl DmaPeer for Client {
    fn start_read(&self, iova: u64, len: usize, completion: Completion<Vec<u8>>) {
        completion.complete(self.find(iova, len).and_then(|(fd, offset)| {
            let mut data = vec![0; len];
            match pread(fd, &mut data, offset) {
                Ok(read) if read == len => Ok(data),
                _ => Err(fault()),
            }
        }));
    }

    fn start_write(&self, iova: u64, data: Vec<u8>, completion: Completion<()>) {
        completion.complete(self.find(iova, data.len()).and_then(|(fd, offset)| {
            match pwrite(fd, &data, offset) {
                Ok(written) if written == data.len() => Ok(()),
                _ => Err(fault()),
            }
        }));
    }
}

fn memory(len: u64) -> OwnedFd {
    let fd = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&fd, len).expect("its size");
    fd
}

fn get(fd: &OwnedFd, offset: u64, bytes: &mut [u8]) {
    assert_eq!(pread(fd, &mut *bytes, offset), Ok(bytes.len()));
}

fn put(fd: &OwnedFd, offset: u64, bytes: &[u8]) {
    assert_eq!(pwrite(fd, bytes, offset), Ok(bytes.len()));
}

fn get32(fd: &OwnedFd, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    get(fd, offset, &mut bytes);
    u32::from_le_bytes(bytes)
}

/// A command that was submitted and has not completed.
struct Command {
    number: u32,
    operation: u32,
    pattern: [u8; LEN],
    /// How often something had happened to the guest's memory before.
    accidents: u64,
}

#[derive(Default)]
struct Queue {
    submitted: u32,
    waiting: std::collections::VecDeque<Command>,
    completed: u32,
    /// How many completions had been verified when its interrupts were last counted.
    told: u32,
    /// What is in the file, by place in the ring; `None`: not known.
    disk: Vec<Option<[u8; LEN]>>,
}

/// The guest of a device.
pub(super) struct Guest {
    pub(super) file: File,
    rings: OwnedFd,
    data: OwnedFd,
    queues: Vec<Queue>,
    bells: Vec<OwnedFd>,
    interrupts: Vec<OwnedFd>,
    /// How often data was unmapped or truncated.
    accidents: u64,
    polled: bool,
    page: u32,
    /// Where its memory is mapped.
    base: u64,
    memory: Memory,
    peer: Arc<Client>,
}

impl Guest {
    fn new(file: File, setup: Setup) -> Self {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let interrupts: Vec<_> =
            (0..QUEUES).map(|_| eventfd(0, flags).expect("an eventfd")).collect();
        let copies = interrupts.iter().map(|fd| fd.try_clone().ok()).collect();
        let data = IrqData::EventFds(copies);
        file.set_irqs(MSIX, 0, QUEUES as u32, IrqAction::Trigger, data).expect("vectors");
        let bells = file.doorbells(REGISTERS).expect("eventfds");
        assert_eq!(bells.len(), BY_EVENTFD + BY_DATAMATCH);
        let polled = file.region(PAGE_BAR).expect("a region").size > 0;
        let (rings, data) = (memory(RINGS_LEN), memory(DATA_LEN));
        let copy = |fd: &OwnedFd| fd.try_clone().expect("a descriptor");
        let peer = Arc::new(Client { parts: [(RINGS, copy(&rings)), (DATA, copy(&data))] });
        let mut guest = Self {
            file,
            rings,
            data,
            queues: Vec::new(),
            bells,
            interrupts,
            accidents: 0,
            polled,
            page: 0,
            base: 0,
            memory: setup.memory,
            peer,
        };
        guest.map_rings();
        guest.map_data();
        guest.configure();
        guest
    }

    /// Goes on with a device to which the state of the last one was restored.
    fn take(&mut self, file: File) {
        self.file = file;
        self.bells = self.file.doorbells(REGISTERS).expect("eventfds");
    }

    /// Uses other addresses, where another guest of its space has none.
    pub(super) fn move_to(&mut self, base: u64) {
        self.base = base;
        self.map_rings();
        self.map_data();
        self.configure();
    }

    fn write64(&self, offset: u64, value: u64) {
        self.file.write(REGISTERS, offset, &value.to_le_bytes()).expect("is written");
    }

    pub(super) fn read64(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.file.read(REGISTERS, offset, &mut bytes).expect("is read");
        u64::from_le_bytes(bytes)
    }

    fn register(queue: usize, register: u64) -> u64 {
        QUEUE_REGISTERS + QUEUE_STRIDE * queue as u64 + register
    }

    /// Forgets everything, and enables all queues: after a reset.
    pub(super) fn configure(&mut self) {
        self.file.write(CONFIG, 4, &[6, 0]).expect("bus mastering");
        put(&self.rings, 0, &vec![0; RINGS_LEN as usize]);
        for interrupt in &self.interrupts {
            _ = rustix::io::read(interrupt, &mut [0; 8]);
        }
        for index in 0..QUEUES {
            let is_enabled = self.read64(Self::register(index, 0x18)) & 1 == 1;
            assert!(!is_enabled, "queue {index} is enabled after a reset");
            let rings = self.base + RINGS + QUEUE_RINGS * index as u64;
            self.write64(Self::register(index, 0x00), rings);
            self.write64(Self::register(index, 0x08), rings + COMPLETIONS);
            self.write64(Self::register(index, 0x10), ENTRIES.into());
            self.write64(Self::register(index, 0x18), 1);
            assert_eq!(self.read64(Self::register(index, 0x18)) & 1, 1, "it is enabled");
        }
        // The disk of a device that was reset is new.
        let queue = || Queue { disk: vec![Some([0; LEN]); ENTRIES as usize], ..Queue::default() };
        self.queues = (0..QUEUES).map(|_| queue()).collect();
    }

    fn map(&self, iova: u64, fd: &OwnedFd, size: u64) {
        let backing = match self.memory {
            Memory::Mapped => {
                Backing::File { fd: fd.try_clone().expect("a descriptor"), offset: 0 }
            }
            Memory::ByMessage => Backing::Peer(self.peer.clone()),
        };
        let perm = Perm::READ | Perm::WRITE;
        self.file.dma_map(MapRequest { iova, size, perm, backing }).expect("is mapped");
    }

    pub(super) fn map_rings(&self) {
        self.map(self.base + RINGS, &self.rings, RINGS_LEN);
    }

    pub(super) fn map_data(&self) {
        self.map(self.base + DATA, &self.data, DATA_LEN);
    }

    /// Takes the rings away for a moment. The queues go on when they are rung again.
    pub(super) fn remap_rings(&mut self) {
        self.file.dma_unmap(self.base + RINGS, RINGS_LEN, TIMEOUT).expect("is unmapped");
        self.map_rings();
        self.ring_all();
    }

    /// Takes the data away for a moment.
    pub(super) fn remap_data(&mut self) {
        self.accidents += 1;
        self.file.dma_unmap(self.base + DATA, DATA_LEN, TIMEOUT).expect("is unmapped");
        // By message the client performs the accesses itself, and sees to those in flight.
        if self.memory == Memory::Mapped {
            self.mark_reads();
            let unmapped = self.data();
            std::thread::yield_now();
            assert!(self.data() == unmapped, "memory changes after it was unmapped");
        }
        self.map_data();
    }

    /// Changes the memory of every command that reads the file and has not completed, so that what
    /// still arrives there shows.
    fn mark_reads(&self) {
        let mut marked = Vec::new();
        for (index, queue) in self.queues.iter().enumerate() {
            for command in &queue.waiting {
                if command.operation == FILE_TO_MEMORY {
                    let (place, mark) = (Self::place(index, command.number), [0x6d; LEN]);
                    put(&self.data, place, &mark);
                    marked.push((place, mark));
                }
            }
        }
        // What would still arrive has some time for it.
        _ = self.data();
        for (place, mark) in marked {
            let mut found = [0; LEN];
            get(&self.data, place, &mut found);
            assert!(found == mark, "memory changes after it was unmapped");
        }
    }

    /// Commands that are under way may fail because their memory is not there.
    pub(super) fn expect_faults(&mut self) {
        self.accidents += 1;
    }

    /// Truncates the memory of the data, and makes it as long as before.
    pub(super) fn truncate(&mut self) {
        self.accidents += 1;
        ftruncate(&self.data, 0).expect("is cut");
        ftruncate(&self.data, DATA_LEN).expect("grows");
    }

    /// Where a command's data are, in memory and in the file.
    fn place(index: usize, number: u32) -> u64 {
        (u64::from(number % ENTRIES) + index as u64 * u64::from(ENTRIES)) * PAGE
    }

    /// Submits as many commands as fit, up to `count`, and rings.
    pub(super) fn submit(&mut self, index: usize, count: u32, numbers: &mut Numbers) {
        let rings = QUEUE_RINGS * index as u64;
        for _ in 0..count {
            let queue = &mut self.queues[index];
            if queue.submitted - queue.completed == ENTRIES {
                break;
            }
            let number = queue.submitted;
            let mut pattern = [0; LEN];
            pattern.fill_with(|| numbers.below(256) as u8);
            let operation = 1 + numbers.below(2) as u32;
            let place = Self::place(index, number);
            put(&self.data, place, &pattern);
            let address = self.base + DATA + place;
            let mut bytes = Vec::new();
            bytes.extend_from_slice(&tag(index, number).to_le_bytes());
            bytes.extend_from_slice(&operation.to_le_bytes());
            bytes.extend_from_slice(&address.to_le_bytes());
            bytes.extend_from_slice(&place.to_le_bytes());
            bytes.extend_from_slice(&(LEN as u64).to_le_bytes());
            put(&self.rings, rings + 64 + 32 * u64::from(number % ENTRIES), &bytes);
            queue.submitted += 1;
            let accidents = self.accidents;
            queue.waiting.push_back(Command { number, operation, pattern, accidents });
            put(&self.rings, rings, &queue.submitted.to_le_bytes());
        }
        self.ring(index, numbers.below(3));
    }

    /// Rings a queue, in one of the ways that it has.
    fn ring(&mut self, index: usize, way: u64) {
        let value = index as u32;
        let eventfd = index < BY_EVENTFD + BY_DATAMATCH;
        match way {
            0 if eventfd => {
                rustix::io::write(&self.bells[index], &1u64.to_ne_bytes()).expect("rings");
                // As the server does when it finds the eventfd readable.
                assert!(self.file.ring(REGISTERS, index).expect("is delivered"));
            }
            1 => self.file.write(REGISTERS, SELECT, &value.to_le_bytes()).expect("rings"),
            2 if self.polled => {
                self.page += 1;
                let offset = 4 * index as u64;
                if self.page.is_multiple_of(2) {
                    let page = self.file.shared_memory(PAGE_BAR).expect("memory");
                    let page = page.expect("it is shared");
                    let stored =
                        pwrite(page.fd(), &self.page.to_le_bytes(), page.offset() + offset);
                    assert_eq!(stored, Ok(4));
                } else {
                    self.file.write(PAGE_BAR, offset, &self.page.to_le_bytes()).expect("rings");
                }
            }
            _ => {
                let offset = DOORBELLS + 4 * index as u64;
                self.file.write(REGISTERS, offset, &[1, 0, 0, 0]).expect("rings");
            }
        }
    }

    pub(super) fn ring_all(&mut self) {
        (0..QUEUES).for_each(|index| self.ring(index, 3));
    }

    /// Takes the completions that are there, and verifies each.
    pub(super) fn verify(&mut self) {
        for index in 0..QUEUES {
            while self.verify_next(index) {}
        }
    }

    fn verify_next(&mut self, index: usize) -> bool {
        let queue = &mut self.queues[index];
        let number = queue.completed;
        let at = QUEUE_RINGS * index as u64 + COMPLETIONS + 16 * u64::from(number % ENTRIES);
        if get32(&self.rings, at + 12) != number + 1 {
            return false;
        }
        let (tag_of, status, bytes) =
            (get32(&self.rings, at), get32(&self.rings, at + 4), get32(&self.rings, at + 8));
        let command = queue.waiting.pop_front().expect("a completion of a command");
        assert_eq!(command.number, number);
        assert_eq!(tag_of, tag(index, number), "queue {index}, command {number}");
        let quiet = command.accidents == self.accidents;
        let place = Self::place(index, number);
        let slot = &mut queue.disk[(number % ENTRIES) as usize];
        if status != 0 {
            assert_eq!(status, Errno::FAULT.raw_os_error() as u32, "queue {index}");
            assert!(!quiet, "queue {index}, command {number}: nothing happened to its memory");
            if command.operation == MEMORY_TO_FILE {
                *slot = None;
            }
        } else {
            assert!(bytes == LEN as u32 || !quiet, "{bytes} bytes");
            let mut found = [0; LEN];
            get(&self.data, place, &mut found);
            match command.operation {
                FILE_TO_MEMORY if quiet => {
                    if let Some(disk) = slot {
                        assert!(found == *disk, "queue {index}, command {number}: its data");
                    }
                }
                FILE_TO_MEMORY => {}
                // The memory may have been cut before it was read.
                _ => *slot = quiet.then_some(command.pattern),
            }
        }
        queue.completed += 1;
        true
    }

    fn is_done(&self) -> bool {
        self.queues.iter().all(|queue| queue.waiting.is_empty())
    }

    /// Waits until all commands have completed, without ringing again, and verifies that each has
    /// exactly once.
    pub(super) fn finish(&mut self) {
        let start = Instant::now();
        while !self.is_done() {
            self.verify();
            if start.elapsed() > TIMEOUT {
                let late = self.queues.iter().position(|queue| !queue.waiting.is_empty());
                panic!("never: the completions of queue {late:?}");
            }
            std::thread::yield_now();
        }
        // A device that has quiesced has sent its interrupts.
        self.file.device().save(&mut DescriptorTable::new()).expect("it quiesces");
        for index in 0..QUEUES {
            let (submitted, completed) =
                (self.queues[index].submitted, self.queues[index].completed);
            assert_eq!(submitted, completed);
            let head = self.read64(Self::register(index, 0x20)) as u32;
            assert_eq!(head, completed, "what queue {index} says");
            let (interrupts, told) = (self.interrupts_of(index), self.queues[index].told);
            assert_eq!(
                interrupts > 0,
                completed > told,
                "{interrupts} interrupts of queue {index}"
            );
            self.queues[index].told = completed;
        }
    }

    /// How many interrupts of a queue came since this was last called.
    pub(super) fn interrupts_of(&self, index: usize) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.interrupts[index], &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    /// How many interrupts came since they were last counted.
    pub(super) fn interrupts(&self) -> u64 {
        (0..QUEUES).map(|index| self.interrupts_of(index)).sum()
    }

    /// What is in the rings, to see that nothing changes it.
    pub(super) fn rings(&self) -> Vec<u8> {
        let mut bytes = vec![0; RINGS_LEN as usize];
        get(&self.rings, 0, &mut bytes);
        bytes
    }

    /// All of the data.
    pub(super) fn data(&self) -> Vec<u8> {
        let mut bytes = vec![0; DATA_LEN as usize];
        get(&self.data, 0, &mut bytes);
        bytes
    }
}

fn tag(index: usize, number: u32) -> u32 {
    (index as u32) << 24 ^ number.wrapping_mul(0x9e37_79b9)
}
