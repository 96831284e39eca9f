//! `nvme`: the host of an NVMe controller. It writes registers, puts commands of all kinds into queues that
//! are where it has said or elsewhere, writes its memory meanwhile, takes the memory away, and resets the
//! controller in every way. At the end the controller must work.

use arbitrary::{Arbitrary, Unstructured};
use vfiod_config::ConfiguredModel;
use vfiod_core::dma::Perm;
use vfiod_core::{DescriptorTable, Errno, RegionIndex};
use vfiod_nvme::{Nvme, NvmeOptions};
use vfiod_testing::Driver;
use vfiod_testing::driver::{CONFIG, GuestMemory};

use crate::messages::Number;

/// Most steps of an input.
const STEPS: usize = 256;
/// Guest memory, at address 0: small numbers are addresses.
const MEMORY: u64 = 0x10_0000;
/// Queues that the host knows of, the admin queue among them. Each has two pages of memory, submissions and
/// completions.
const QUEUES: u8 = 5;
const ENTRIES: u32 = 32;
/// Where lists are, and data.
const LISTS: u64 = 0x2_0000;
const DATA: u64 = 0x4_0000;

mod register {
    pub(super) const AQA: u64 = 0x24;
    pub(super) const ASQ: u64 = 0x28;
    pub(super) const ACQ: u64 = 0x30;
    pub(super) const CC: u64 = 0x14;
    pub(super) const CSTS: u64 = 0x1c;
    pub(super) const DOORBELLS: u64 = 0x1000;
}

/// CC: enabled, the NVM command set, entries of 64 and 16 bytes.
const ENABLED: u32 = 6 << 16 | 4 << 20 | 1;
/// Command: memory, bus master.
const COMMAND: u16 = 0x6;

#[derive(Arbitrary, Debug)]
enum Step {
    /// A write of a register, 4 or 8 bytes.
    Write {
        word: u8,
        value: Number,
        wide: bool,
    },
    /// Enables the controller as it should be, or nearly so.
    Enable {
        also: Number,
    },
    Disable,
    ShutDown {
        abrupt: bool,
    },
    /// A command, and its doorbell.
    Submit {
        queue: u8,
        command: Command,
        rings: bool,
    },
    /// Creates a queue pair where the host expects it.
    CreatePair {
        queue: u8,
        entries: u8,
        vector: u8,
    },
    /// Several reads or writes, of which each is sound.
    Transfers {
        queue: u8,
        count: u8,
        write: bool,
        first: u8,
        blocks: u8,
    },
    Ring {
        queue: u8,
        completions: bool,
        value: Number,
    },
    /// The host takes what has completed.
    Take {
        queue: u8,
    },
    /// Writes a quadword of memory.
    Poke {
        address: Address,
        value: Address,
    },
    /// A list of pages, or of SGL descriptors.
    List {
        at: u8,
        entries: [Address; 4],
        every: u8,
    },
    /// The controller's tasks do what they can.
    Settle,
    Reset,
    FunctionReset,
    BusMaster(bool),
    Unmap,
    Map,
    Truncate,
    /// The device is saved, and rebuilt from that.
    Restore,
    Reopen,
}

/// An address: those where something is come more often.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Address {
    Data(u8),
    DataWithin(u8, u8),
    List(u8),
    ListEnd(u8),
    Queue(u8),
    Any(Number),
}

impl Address {
    fn get(self) -> u64 {
        match self {
            Self::Data(page) => DATA + 4096 * u64::from(page % 128),
            Self::DataWithin(page, at) => DATA + 4096 * u64::from(page % 128) + 16 * u64::from(at),
            Self::List(at) => LISTS + 512 * u64::from(at),
            Self::ListEnd(at) => LISTS + 4096 * u64::from(at % 32) + 4096 - 8,
            Self::Queue(queue) => submissions(queue % QUEUES),
            Self::Any(number) => number.get(),
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Command {
    opcode: Opcode,
    /// FUSE and PSDT.
    flags: u8,
    namespace: Number,
    metadata: Number,
    pointers: (Address, Address),
    /// Dwords 10 to 15.
    dwords: [Number; 6],
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Opcode {
    /// One of those that there may be.
    Known(u8),
    Any(u8),
}

impl Command {
    fn encode(self, id: u16) -> [u8; 64] {
        let opcode = match self.opcode {
            Opcode::Known(opcode) => opcode % 0x20,
            Opcode::Any(opcode) => opcode,
        };
        let namespace = match self.namespace {
            Number::Small(small) => u32::from(small % 3),
            other => other.short(),
        };
        let mut bytes = [0; 64];
        (bytes[0], bytes[1]) = (opcode, self.flags & 0xc3);
        bytes[2..4].copy_from_slice(&id.to_le_bytes());
        bytes[4..8].copy_from_slice(&namespace.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.metadata.get().to_le_bytes());
        bytes[24..32].copy_from_slice(&self.pointers.0.get().to_le_bytes());
        bytes[32..40].copy_from_slice(&self.pointers.1.get().to_le_bytes());
        for (place, dword) in bytes[40..].chunks_exact_mut(4).zip(self.dwords) {
            place.copy_from_slice(&dword.short().to_le_bytes());
        }
        bytes
    }
}

fn submissions(queue: u8) -> u64 {
    0x2000 * (1 + u64::from(queue))
}

fn completions(queue: u8) -> u64 {
    submissions(queue) + 0x1000
}

/// What the host knows of a queue.
#[derive(Clone, Copy, Default)]
struct Ring {
    tail: u32,
    head: u32,
    /// Completions have the phase tag 0 now.
    odd: bool,
}

struct Host {
    device: Driver,
    /// `None`: not mapped.
    memory: Option<GuestMemory>,
    truncated: bool,
    rings: [Ring; QUEUES as usize],
    next_id: u16,
}

fn model(block: u32) -> Nvme {
    let options = NvmeOptions {
        memory: Some(0x4_0000),
        block_size: Some(block),
        torn_writes: true,
        ..NvmeOptions::default()
    };
    Nvme::configured(options).expect("the options are sound")
}

/// Plays what the bytes say. The first one decides how large a block is, and whether the controller is
/// enabled and has queues already.
pub(crate) fn play(bytes: &[u8]) {
    let Some((&first, bytes)) = bytes.split_first() else { return };
    let block = if first & 1 == 0 { 512 } else { 4096 };
    let mut host = Host::new(Driver::without_workers(model(block)));
    if first & 2 == 0 {
        host.enable(0);
        host.device.settle();
        for queue in 1..QUEUES {
            let create = Step::CreatePair { queue: queue - 1, entries: 1, vector: queue };
            host = host.perform(create, block);
            host.device.settle();
            host.take(0);
        }
    }
    let mut choices = Unstructured::new(bytes);
    for _ in 0..STEPS {
        if choices.is_empty() {
            break;
        }
        let Ok(step) = choices.arbitrary() else { break };
        host = host.perform(step, block);
    }
    host.must_work();
}

impl Host {
    fn new(device: Driver) -> Self {
        device.set_config16(4, COMMAND);
        let mut host = Self {
            device,
            memory: None,
            truncated: false,
            rings: [Ring::default(); QUEUES as usize],
            next_id: 0,
        };
        host.map();
        host
    }

    fn map(&mut self) {
        if self.memory.is_none() {
            self.memory = Some(self.device.map(0, MEMORY, Perm::READ | Perm::WRITE));
            self.truncated = false;
        }
    }

    fn unmap(&mut self) {
        if self.memory.take().is_some() {
            self.device.unmap(0, MEMORY).expect("nothing holds guest memory for long");
        }
    }

    /// Writes memory, unless the host has taken it away.
    fn put(&self, address: u64, bytes: &[u8]) {
        let Some(memory) = &self.memory else { return };
        let fits = address.checked_add(bytes.len() as u64).is_some_and(|end| end <= MEMORY);
        if fits && !self.truncated {
            memory.put(address, bytes);
        }
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        self.device.write(RegionIndex(0), offset, bytes);
    }

    fn write32(&self, offset: u64, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    fn status(&self) -> u32 {
        self.device.read32(0, register::CSTS)
    }

    fn enable(&mut self, also: u32) {
        self.rings = [Ring::default(); QUEUES as usize];
        self.put(0, &vec![0; LISTS as usize]);
        self.write32(register::AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1));
        self.write(register::ASQ, &submissions(0).to_le_bytes());
        self.write(register::ACQ, &completions(0).to_le_bytes());
        self.write32(register::CC, ENABLED | also);
    }

    fn ring(&self, queue: u8, completions: bool, value: u32) {
        let bell = 2 * u64::from(queue) + u64::from(completions);
        self.write32(register::DOORBELLS + 4 * bell, value);
    }

    fn submit(&mut self, queue: u8, bytes: impl FnOnce(u16) -> [u8; 64]) {
        self.next_id = self.next_id.wrapping_add(1);
        let ring = &mut self.rings[usize::from(queue)];
        let at = submissions(queue) + 64 * u64::from(ring.tail);
        ring.tail = (ring.tail + 1) % ENTRIES;
        self.put(at, &bytes(self.next_id));
    }

    fn ring_tail(&self, queue: u8) {
        self.ring(queue, false, self.rings[usize::from(queue)].tail);
    }

    /// Takes the completions that are there.
    fn take(&mut self, queue: u8) {
        let Some(memory) = self.memory.as_ref().filter(|_| !self.truncated) else { return };
        let ring = &mut self.rings[usize::from(queue)];
        for _ in 0..ENTRIES {
            let entry = memory.get(completions(queue) + 16 * u64::from(ring.head), 16);
            if (entry[14] & 1 == 0) == ring.odd {
                ring.head = (ring.head + 1) % ENTRIES;
                ring.odd ^= ring.head == 0;
            }
        }
        let head = ring.head;
        self.ring(queue, true, head);
    }

    /// A command of these dwords, with data at one page.
    fn simple(opcode: u8, data: u64, dwords: [u32; 3]) -> impl FnOnce(u16) -> [u8; 64] {
        move |id| {
            let mut bytes = [0; 64];
            bytes[0] = opcode;
            bytes[2..4].copy_from_slice(&id.to_le_bytes());
            bytes[4] = 1;
            bytes[24..32].copy_from_slice(&data.to_le_bytes());
            bytes[40..44].copy_from_slice(&dwords[0].to_le_bytes());
            bytes[44..48].copy_from_slice(&dwords[1].to_le_bytes());
            bytes[48..52].copy_from_slice(&dwords[2].to_le_bytes());
            bytes
        }
    }

    fn perform(mut self, step: Step, block: u32) -> Self {
        match step {
            Step::Write { word, value, wide } => {
                let offset = 4 * u64::from(word % 0x20);
                if wide {
                    self.write(offset, &value.get().to_le_bytes());
                } else {
                    self.write32(offset, value.short());
                }
            }
            Step::Enable { also } => self.enable(match also {
                // All of CC but what makes it sound.
                Number::Any(bits) => bits as u32 & 0x0000_3f80,
                _ => 0,
            }),
            Step::Disable => self.write32(register::CC, ENABLED & !1),
            Step::ShutDown { abrupt } => {
                self.write32(register::CC, ENABLED | (1 + u32::from(abrupt)) << 14);
            }
            Step::Submit { queue, command, rings } => {
                let queue = queue % QUEUES;
                self.submit(queue, |id| command.encode(id));
                if rings {
                    self.ring_tail(queue);
                }
            }
            Step::CreatePair { queue, entries, vector } => {
                let queue = 1 + queue % (QUEUES - 1);
                self.rings[usize::from(queue)] = Ring::default();
                let entries = match entries {
                    0 => 1,
                    _ => ENTRIES - 1,
                };
                let size = entries << 16 | u32::from(queue);
                let vector = u32::from(vector) << 16 | 3;
                self.submit(0, Self::simple(5, completions(queue), [size, vector, 0]));
                let completions = u32::from(queue) << 16 | 1;
                self.submit(0, Self::simple(1, submissions(queue), [size, completions, 0]));
                self.ring_tail(0);
            }
            Step::Transfers { queue, count, write, first, blocks } => {
                let queue = queue % QUEUES;
                for n in 0..count % 16 {
                    let blocks = u32::from(blocks) % (4096 / block);
                    let first = u32::from(first.wrapping_add(n));
                    let data = DATA + 4096 * u64::from(n);
                    let opcode = if write { 1 } else { 2 };
                    self.submit(queue, Self::simple(opcode, data, [first, 0, blocks]));
                }
                self.ring_tail(queue);
            }
            Step::Ring { queue, completions, value } => {
                self.ring(queue % 66, completions, value.short());
            }
            Step::Take { queue } => {
                let queue = queue % QUEUES;
                self.take(queue);
            }
            Step::Poke { address, value } => {
                self.put(address.get(), &value.get().to_le_bytes());
            }
            Step::List { at, entries, every } => {
                let at = LISTS + 512 * u64::from(at);
                let (value, first) = (entries[0].get(), entries[0].get());
                for n in 0..64_u64 {
                    let chosen = every != 0 && n % u64::from(every) == 0;
                    let other = entries[n as usize % 4].get();
                    let page = value.wrapping_add((n + 1) * 4096);
                    let value = if n == 0 {
                        first
                    } else if chosen {
                        other
                    } else {
                        page
                    };
                    self.put(at + 8 * n, &value.to_le_bytes());
                }
            }
            Step::Settle => self.device.settle(),
            Step::Reset => self.device.reset(),
            Step::FunctionReset => self.function_reset(),
            Step::BusMaster(on) => {
                self.device.set_config16(4, if on { COMMAND } else { COMMAND & !4 });
            }
            Step::Unmap => self.unmap(),
            Step::Map => self.map(),
            Step::Truncate => {
                if let Some(memory) = &self.memory {
                    memory.truncate();
                    self.truncated = true;
                }
            }
            Step::Restore => return self.restored(block),
            Step::Reopen => {
                let Self { device, .. } = self;
                return Self::new(device.reopen());
            }
        }
        self
    }

    fn function_reset(&self) {
        let Some(express) = self.device.capability(0x10) else { return };
        let control = express + 8;
        let value = self.device.config16(control) | 1 << 15;
        self.device.write(CONFIG, control, &value.to_le_bytes());
        self.device.settle();
    }

    /// Another device, with this one's state; or this one, if that cannot be had.
    fn restored(self, block: u32) -> Self {
        let Self { device, memory, truncated, rings, next_id } = self;
        let mut descriptors = DescriptorTable::new();
        let saved = match device.device().save(&mut descriptors) {
            Ok(saved) => saved,
            Err(error) => {
                assert_eq!(error.errno(), Errno::BUSY, "{error}");
                return Self { device, memory, truncated, rings, next_id };
            }
        };
        let device = Driver::restored(model(block), &saved, None, &mut descriptors);
        let device = device.expect("what was saved is restored");
        Self { device, memory, truncated, rings, next_id }
    }

    /// After a reset the controller works, whatever was done before.
    fn must_work(mut self) {
        self.unmap();
        self.map();
        self.device.reset();
        self.device.set_config16(4, COMMAND);
        self.enable(0);
        self.device.settle();
        assert_eq!(self.status(), 1, "CSTS after a reset");
        self.submit(0, Self::simple(6, DATA, [1, 0, 0]));
        self.ring_tail(0);
        self.device.settle();
        let memory = self.memory.as_ref().expect("it is mapped");
        let completion = memory.get(completions(0), 16);
        let status = u16::from_le_bytes([completion[14], completion[15]]);
        assert_eq!(status, 1, "the status and phase of Identify after a reset: {completion:x?}");
        assert_eq!(memory.get(DATA, 2), [0x34, 0x12], "the vendor in Identify Controller");
    }
}
