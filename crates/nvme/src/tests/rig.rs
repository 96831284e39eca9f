//! A host in process: a small driver of the controller, with memory and queues of its own.

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vfiod_core::dma::{Completion, DmaPeer, Perm};
use vfiod_core::memory::SharedMemory;
use vfiod_core::work::TaskState;
use vfiod_core::{Error, RegionIndex, Result};
use vfiod_disk::test::{Kind, TestDisk};
use vfiod_disk::{
    Backend, Channel, Disk, Done, Failure, FailureKind, Limits, Memory, Pending, Request,
};
use vfiod_pci::irq_index::MSIX;
use vfiod_tasks::event_index::is_past_event;
use vfiod_tasks::{ManualClock, Runtime};
use vfiod_testing::driver::{GuestMemory, Interrupt};
use vfiod_testing::{Driver, eventually};

use crate::common::Common;
use crate::controller::Nvme;
use crate::identity::{Identity, MODEL};
use crate::namespace::{Namespace, NamespaceIdentity, Volume};
use vfiod_nvme_spec::registers::{DOORBELLS, FATAL, READY};

/// Where the host's memory is, and how much.
pub(super) const BASE: u64 = 1 << 32;
pub(super) const LEN: u64 = 32 << 20;
/// Entries of the admin queues.
const ADMIN_ENTRIES: u32 = 16;
/// Memory of each queue pair, from the beginning: submissions, then completions.
const PAIR: u64 = 0x5_0000;
const COMPLETIONS: u64 = 0x4_0000;
/// Where data is, behind 65 pairs.
pub(super) const DATA: u64 = BASE + 66 * PAIR;
/// Blocks of a disk of 512 bytes each.
pub(super) const BLOCKS: u64 = 8192;

/// CC: enabled, with the sizes of entries.
pub(super) const ENABLE: u32 = 6 << 16 | 4 << 20 | 1;

/// A command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Command(pub(super) [u32; 16]);

/// The namespace whose value of a feature is meant in tests: 0 where the controller has one.
pub(super) fn namespace_of(feature: u32) -> u32 {
    u32::from(feature == 0x05)
}

impl Command {
    pub(super) fn new(opcode: u8) -> Self {
        let mut dwords = [0; 16];
        dwords[0] = opcode.into();
        Self(dwords)
    }

    pub(super) fn set(mut self, dword: usize, value: u32) -> Self {
        self.0[dword] = value;
        self
    }

    pub(super) fn namespace(self, id: u32) -> Self {
        self.set(1, id)
    }

    pub(super) fn prps(self, first: u64, second: u64) -> Self {
        let part = |value: u64, n: u32| (value >> (32 * n)) as u32;
        self.set(6, part(first, 0))
            .set(7, part(first, 1))
            .set(8, part(second, 0))
            .set(9, part(second, 1))
    }

    /// A command for blocks of namespace 1.
    pub(super) fn io(opcode: u8, first: u64, blocks: u32, data: (u64, u64)) -> Self {
        Self::new(opcode)
            .namespace(1)
            .prps(data.0, data.1)
            .set(10, first as u32)
            .set(11, (first >> 32) as u32)
            .set(12, blocks - 1)
    }
}

/// An entry of a completion queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) result: u32,
    pub(super) head: u16,
    pub(super) queue: u16,
    pub(super) id: u16,
    /// Type and code, without Do Not Retry.
    pub(super) status: u16,
    pub(super) full_status: u16,
}

#[derive(Clone, Copy, Debug)]
struct Pair {
    entries: (u32, u32),
    tail: u32,
    head: u32,
    phase: bool,
}

/// The host.
pub(super) struct Host {
    pub(super) device: Driver,
    pub(super) memory: GuestMemory,
    pairs: Vec<Option<Pair>>,
    pub(super) interrupts: Vec<Interrupt>,
    next_id: u16,
    /// The pages of shadow doorbells and of event indices, once they are set.
    shadow: Option<(u64, u64)>,
    /// Doorbell registers that were written.
    pub(super) registers: std::cell::Cell<u32>,
    /// How doorbells are moved; `None`: as Linux does.
    pub(super) way: Option<Way>,
}

/// The ways of a host to move a doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The register alone.
    Register,
    /// The page, and the register if that is asked for.
    Page,
    /// The page, and the register always.
    Both,
    /// A store to the register, which is mapped.
    Store,
}

/// A controller with a disk in memory.
pub(super) fn nvme() -> Nvme {
    with(Memory::new(BLOCKS * 512).unwrap())
}

/// A controller with a back end.
pub(super) fn with(backend: Arc<dyn Backend>) -> Nvme {
    with_common(Common::new(16, vec![namespace(1, backend)]))
}

/// A namespace with a back end.
pub(super) fn namespace(id: u32, backend: Arc<dyn Backend>) -> Namespace {
    Namespace::new(id, Arc::new(volume(id, backend)))
}

/// What the controllers of a namespace with a back end have in common.
pub(super) fn volume(id: u32, backend: Arc<dyn Backend>) -> Volume {
    let uuid =
        uuid::Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0 + u128::from(id) - 1);
    let ids = NamespaceIdentity { nguid: uuid.into_bytes(), uuid: uuid.into_bytes() };
    Volume::new(ids, Disk::new(backend), 512, false).unwrap()
}

/// A controller with namespaces and limits.
pub(super) fn with_common(common: Common) -> Nvme {
    let uuid = uuid::Uuid::from_u128(0x1234_5678_9abc_def0_1234_5678_9abc_def0);
    let identity = Identity {
        serial: "serial-1".to_owned(),
        model: MODEL.to_owned(),
        subsystem_name: format!("nqn.2014-08.org.nvmexpress:uuid:{uuid}"),
        controller: 1,
    };
    Nvme::new(identity, common)
}

impl Host {
    /// A host whose controller is enabled.
    pub(super) fn new(nvme: Nvme) -> Self {
        let mut host = Self::disabled(nvme);
        host.enable();
        host
    }

    /// A host that has not touched its controller.
    pub(super) fn disabled(nvme: Nvme) -> Self {
        let mut host = Self::without_interrupts(Driver::new(nvme));
        host.interrupts = (0..4).map(|vector| host.device.interrupt(MSIX, vector)).collect();
        host
    }

    /// A host that has set up no interrupts.
    pub(super) fn without_interrupts(device: Driver) -> Self {
        device.enable();
        let memory = device.map(BASE, LEN, Perm::READ | Perm::WRITE);
        let (pairs, interrupts, registers) = (vec![None; 66], Vec::new(), Default::default());
        Self { device, memory, pairs, interrupts, next_id: 0, shadow: None, registers, way: None }
    }

    /// A host whose controller is enabled, and whose time passes with a clock.
    pub(super) fn with_clock(nvme: Nvme, clock: &ManualClock) -> Self {
        let mut host = Self::without_interrupts(Driver::without_workers_at(nvme, clock));
        host.enable();
        host
    }

    /// Where no worker does it, runs the tasks of the controller until each waits for something.
    pub(super) fn settle(&self) {
        if !self.device.has_workers() {
            self.device.settle();
        }
    }

    /// Waits until the tasks of the controller have not been run for this time.
    pub(super) fn rest(&self, time: Duration) {
        // `None`: one runs, or has lost its processor amid that.
        let polls = || -> Option<u64> {
            let tasks = self.device.device().status().tasks;
            let waits = tasks.iter().all(|task| task.state == TaskState::Waiting);
            waits.then(|| tasks.iter().map(|task| task.polls).sum())
        };
        eventually("tasks that have nothing to do rest", || {
            let before = polls();
            std::thread::sleep(time);
            before.is_some() && polls() == before
        });
    }

    /// Sets the pages of shadow doorbells: the status.
    pub(super) fn set_pages(&mut self, doorbells: u64, events: u64) -> Result<u32, u16> {
        let result = self.admin(Command::new(0x7c).prps(doorbells, events));
        if result.is_ok() {
            self.shadow = Some((doorbells, events));
        }
        result
    }

    /// A number of 4 bytes in the host's memory.
    pub(super) fn word(&self, at: u64) -> u32 {
        let bytes = self.memory.get(at - BASE, 4);
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    /// Moves a doorbell: that of a submission queue has twice its number. As Linux, by the register alone
    /// where there are no pages.
    pub(super) fn move_doorbell(&self, bell: usize, value: u32, way: Way) {
        if way == Way::Store {
            return self
                .page()
                .store(DOORBELLS + 4 * bell as u64, value, Ordering::SeqCst)
                .unwrap();
        }
        let mut writes = way != Way::Page;
        if let (Some((doorbells, events)), Way::Page | Way::Both) = (self.shadow, way) {
            let offset = 4 * bell as u64;
            let old = self.word(doorbells + offset);
            fence(Ordering::SeqCst);
            self.memory.put(doorbells + offset - BASE, &value.to_le_bytes());
            fence(Ordering::SeqCst);
            let event = self.word(events + offset);
            writes |= is_past_event(event as u16, old as u16, value as u16);
        }
        if writes || self.shadow.is_none() {
            self.registers.set(self.registers.get() + 1);
            self.device.write32(0, DOORBELLS + 4 * bell as u64, value);
        }
    }

    /// BAR 0, as a host has mapped it.
    pub(super) fn page(&self) -> &SharedMemory {
        let memory = self.device.file().shared_memory(RegionIndex(0));
        memory.unwrap().expect("its doorbells are mapped")
    }

    /// How a doorbell is moved.
    fn usual_way(&self, queue: usize) -> Way {
        self.way.unwrap_or(if queue == 0 { Way::Register } else { Way::Page })
    }

    /// Goes on with the device of another driver, to which the state of this one was restored.
    pub(super) fn moved(self, device: Driver) -> Self {
        Self { device, ..self }
    }

    /// Closes the controller and opens it again, with the same memory. The host goes on with what it has set up, but
    /// for shadow doorbells.
    pub(super) fn reopened(self) -> Self {
        let device = self.device.reopen();
        device.map_again(BASE, &self.memory, Perm::READ | Perm::WRITE);
        device.enable();
        Self { device, shadow: None, ..self }
    }

    /// Lets the controller master the bus, or not.
    pub(super) fn set_bus_mastering(&self, on: bool) {
        self.device.set_config16(4, 3 | u16::from(on) << 2);
    }

    /// Sets up the admin queues and enables the controller.
    pub(super) fn enable(&mut self) {
        let size = ADMIN_ENTRIES - 1;
        self.device.write32(0, 0x24, size << 16 | size);
        self.device.write64(0, 0x28, BASE);
        self.device.write64(0, 0x30, BASE + COMPLETIONS);
        self.forget_queues();
        self.begin_pair(0, (ADMIN_ENTRIES, ADMIN_ENTRIES));
        self.device.write32(0, 0x14, ENABLE);
        self.await_status(READY, READY);
    }

    /// Disables the controller, and waits until it is.
    pub(super) fn disable(&mut self) {
        self.device.write32(0, 0x14, ENABLE & !1);
        self.await_status(READY, 0);
        self.forget_queues();
    }

    /// What was set up is gone.
    pub(super) fn forget_queues(&mut self) {
        self.pairs.fill(None);
        self.shadow = None;
    }

    pub(super) fn status(&self) -> u32 {
        self.device.read32(0, 0x1c)
    }

    /// Waits until these bits of CSTS are so.
    pub(super) fn await_status(&self, bits: u32, value: u32) {
        eventually(&format!("CSTS & {bits:#x} is {value:#x}"), || {
            self.settle();
            self.status() & bits == value
        });
    }

    /// Where a pair's submissions and completions are.
    pub(super) fn at(pair: usize) -> (u64, u64) {
        let at = BASE + PAIR * pair as u64;
        (at, at + COMPLETIONS)
    }

    fn begin_pair(&mut self, id: usize, entries: (u32, u32)) {
        let (_, completions) = Self::at(id);
        self.memory.put(completions - BASE, &vec![0; 16 * entries.1 as usize]);
        self.pairs[id] = Some(Pair { entries, tail: 0, head: 0, phase: true });
    }

    /// Puts a command into a queue, and rings unless told otherwise. Returns its identifier.
    pub(super) fn submit(&mut self, queue: usize, command: Command) -> u16 {
        let id = self.put(queue, command);
        self.ring(queue);
        id
    }

    /// Puts a command into a queue.
    pub(super) fn put(&mut self, queue: usize, mut command: Command) -> u16 {
        self.next_id = self.next_id.wrapping_add(1);
        command.0[0] |= u32::from(self.next_id) << 16;
        let bytes: Vec<u8> = command.0.iter().flat_map(|dword| dword.to_le_bytes()).collect();
        let pair = self.pairs[queue].as_mut().expect("a queue");
        let at = Self::at(queue).0 + 64 * u64::from(pair.tail);
        pair.tail = (pair.tail + 1) % pair.entries.0;
        self.memory.put(at - BASE, &bytes);
        self.next_id
    }

    /// Where the last command of a queue is.
    pub(super) fn last(&self, queue: usize) -> u64 {
        let Pair { entries, tail, .. } = self.pairs[queue].expect("a queue");
        Self::at(queue).0 + 64 * u64::from((tail + entries.0 - 1) % entries.0)
    }

    pub(super) fn ring(&self, queue: usize) {
        self.ring_by(queue, self.usual_way(queue));
    }

    pub(super) fn ring_by(&self, queue: usize, way: Way) {
        let tail = self.pairs[queue].expect("a queue").tail;
        self.move_doorbell(2 * queue, tail, way);
    }

    /// The next completion of a queue, if it is there.
    pub(super) fn poll(&mut self, queue: usize) -> Option<Entry> {
        let entry = self.peek(queue)?;
        let pair = self.pairs[queue].as_mut().expect("a queue");
        pair.head += 1;
        if pair.head == pair.entries.1 {
            (pair.head, pair.phase) = (0, !pair.phase);
        }
        Some(entry)
    }

    /// The next completion of a queue, which stays there.
    pub(super) fn peek(&self, queue: usize) -> Option<Entry> {
        let pair = self.pairs[queue].expect("a queue");
        let at = Self::at(queue).1 + 16 * u64::from(pair.head) - BASE;
        let bytes = self.memory.get(at, 16);
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let last = word(14);
        (last & 1 == u16::from(pair.phase)).then(|| Entry {
            result: u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            head: word(8),
            queue: word(10),
            id: word(12),
            status: last >> 1 & 0x7ff,
            full_status: last >> 1,
        })
    }

    /// Says that the completions that were taken may be written over.
    pub(super) fn release(&self, queue: usize) {
        self.release_by(queue, self.usual_way(queue));
    }

    pub(super) fn release_by(&self, queue: usize, way: Way) {
        let head = self.pairs[queue].expect("a queue").head;
        self.move_doorbell(2 * queue + 1, head, way);
    }

    /// Waits for the next completion of a queue and takes it.
    pub(super) fn wait(&mut self, queue: usize) -> Entry {
        eventually("a completion", || {
            self.settle();
            self.peek(queue).is_some()
        });
        let entry = self.poll(queue).unwrap();
        self.release(queue);
        entry
    }

    /// Waits until these commands of a queue have ended, each once and well.
    pub(super) fn wait_all(&mut self, queue: usize, mut ids: Vec<u16>) {
        while !ids.is_empty() {
            let entry = self.wait(queue);
            assert_eq!(entry.status, 0);
            ids.remove(ids.iter().position(|id| *id == entry.id).expect("it completes once"));
        }
    }

    /// Performs a command: its result, or its status.
    pub(super) fn perform(&mut self, queue: usize, command: Command) -> Result<u32, u16> {
        self.perform_fully(queue, command).map_err(|status| status & 0x7ff)
    }

    /// Performs a command: its result, or its status with More and Do Not Retry.
    pub(super) fn perform_fully(&mut self, queue: usize, command: Command) -> Result<u32, u16> {
        let id = self.submit(queue, command);
        let entry = self.wait(queue);
        assert_eq!((entry.id, entry.queue), (id, queue as u16), "{command:x?}");
        if entry.status == 0 { Ok(entry.result) } else { Err(entry.full_status) }
    }

    pub(super) fn admin(&mut self, command: Command) -> Result<u32, u16> {
        self.perform(0, command)
    }

    /// Creates a queue pair, whose completion queue has this vector.
    pub(super) fn create_pair(&mut self, id: usize, entries: u32, vector: u32) {
        self.begin_pair(id, (entries, entries));
        let (submissions, completions) = Self::at(id);
        assert_eq!(self.admin(create_cq(id, entries, completions, vector)), Ok(0));
        assert_eq!(self.admin(create_sq(id, entries, submissions, id)), Ok(0));
    }

    /// The host begins anew with a queue pair of these entries, submissions and completions.
    pub(super) fn renew_pair(&mut self, id: usize, submissions: u32, completions: u32) {
        self.begin_pair(id, (submissions, completions));
    }

    /// Identify: the structure, or the status.
    pub(super) fn identify(&mut self, cns: u32, namespace: u32) -> Result<Vec<u8>, u16> {
        self.memory.put(DATA - BASE, &[0xee; 4096]);
        let command = Command::new(6).namespace(namespace).prps(DATA, 0).set(10, cns);
        self.admin(command).map(|_| self.memory.get(DATA - BASE, 4096))
    }

    /// Get Log Page from the beginning: `len` bytes, or the status.
    pub(super) fn log(&mut self, page: u32, len: u32) -> Result<Vec<u8>, u16> {
        self.memory.put(DATA - BASE, &vec![0xee; len as usize]);
        let command = Command::new(2)
            .namespace(u32::MAX)
            .prps(DATA, DATA + 4096)
            .set(10, page | (len / 4 - 1) << 16);
        self.admin(command).map(|_| self.memory.get(DATA - BASE, len as usize))
    }

    /// Whether the controller shows fatal status.
    pub(super) fn await_fatal(&self) {
        self.await_status(FATAL, FATAL);
    }
}

pub(super) fn create_cq(id: usize, entries: u32, at: u64, vector: u32) -> Command {
    let interrupts = 2 | 1;
    Command::new(5)
        .prps(at, 0)
        .set(10, (entries - 1) << 16 | id as u32)
        .set(11, vector << 16 | interrupts)
}

pub(super) fn create_sq(id: usize, entries: u32, at: u64, completions: usize) -> Command {
    Command::new(1)
        .prps(at, 0)
        .set(10, (entries - 1) << 16 | id as u32)
        .set(11, (completions as u32) << 16 | 1)
}

/// A disk for tests that tells what it was asked for, and fails requests with a kind of their own.
#[derive(Debug)]
pub(super) struct Held {
    disk: Arc<TestDisk>,
    state: Mutex<State>,
}

/// What a disk says of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tells {
    pub(super) deallocate: bool,
    pub(super) volatile: bool,
}

#[derive(Debug, Default)]
struct State {
    fails: Option<(Option<FailureKind>, vfiod_core::Errno)>,
    seen: Vec<String>,
}

impl Held {
    pub(super) fn new() -> Arc<Self> {
        let disk = TestDisk::new(BLOCKS as usize * 512);
        disk.set_limits(|limits| {
            // Blocks of 4 KiB, too.
            (limits.atomic_write, limits.max_range) = (4096, 64 << 10);
            limits.deallocate = Some(64 << 10);
        });
        Arc::new(Self { disk, state: Mutex::default() })
    }

    /// What it says of itself; before it is used.
    pub(super) fn tell(&self, tells: Tells) {
        self.disk.set_limits(|limits| {
            limits.volatile = tells.volatile;
            limits.deallocate = limits.deallocate.filter(|_| tells.deallocate);
        });
    }

    /// Holds requests back from now on, or not.
    pub(super) fn hold(&self, holds: bool) {
        self.disk.hold(holds);
    }

    /// Fails requests from now on, or not.
    pub(super) fn fail(&self, errno: Option<vfiod_core::Errno>) {
        self.fail_as(None, errno);
    }

    /// Fails requests from now on with a kind that the errno does not stand for, or not.
    pub(super) fn fail_as(&self, kind: Option<FailureKind>, errno: Option<vfiod_core::Errno>) {
        self.state.lock().unwrap().fails = errno.map(|errno| (kind, errno));
    }

    /// How many are held back.
    pub(super) fn waiting(&self) -> usize {
        self.disk.held().len()
    }

    /// Performs those that are held back.
    pub(super) fn release(&self) {
        self.disk.held().iter().for_each(|held| _ = self.disk.finish(held.id));
    }

    /// Finishes the flushes that are held.
    pub(super) fn release_flushes(&self) {
        let held = self.disk.held();
        let flushes = held.iter().filter(|held| held.kind == Kind::Flush);
        flushes.for_each(|held| _ = self.disk.finish(held.id));
    }

    /// What was asked for, in order, and forgets it.
    pub(super) fn seen(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }
}

impl Backend for Held {
    fn limits(&self) -> Limits {
        self.disk.limits()
    }

    fn connect(self: Arc<Self>, _runtime: &Runtime) -> Result<Arc<dyn Channel>> {
        Ok(self)
    }

    fn set_size(&self, bytes: u64) -> Result<()> {
        self.state.lock().unwrap().seen.push(format!("size {bytes}"));
        Ok(())
    }

    fn release(&self) {
        self.state.lock().unwrap().seen.push("released".to_owned());
    }
}

fn describe(request: &Request) -> String {
    match request {
        Request::Read { offset, buffer } => format!("read {offset} {}", buffer.len()),
        Request::Write { offset, buffer, durable } => {
            format!("write {offset} {} {durable}", buffer.len())
        }
        Request::Flush => "flush".to_owned(),
        Request::Zero { offset, len, deallocate, durable } => {
            format!("zero {offset} {len} {deallocate} {durable}")
        }
        Request::Deallocate { offset, len } => format!("deallocate {offset} {len}"),
    }
}

impl Channel for Held {
    fn start(&self, request: Request) -> Pending {
        let mut state = self.state.lock().unwrap();
        state.seen.push(describe(&request));
        let Some((kind, errno)) = state.fails else {
            drop(state);
            return self.disk.start(request);
        };
        let mut failure = Failure::from(Error::new(errno, "asked to fail"));
        failure.kind = kind.unwrap_or(failure.kind);
        let done = Done { result: Err(failure), buffer: request.into_buffer() };
        Pending::ended(done)
    }
}

/// Memory that a host gives to its controller by message, and never does: it counts what is asked for.
#[derive(Debug, Default)]
pub(super) struct Silent(pub(super) Mutex<Vec<Asked>>);

/// A request to a host that does not answer.
pub(super) type Asked = Box<dyn std::any::Any + Send>;

impl Silent {
    /// How many requests wait.
    pub(super) fn asked(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

impl DmaPeer for Silent {
    fn start_read(&self, _iova: u64, _len: usize, completion: Completion<Vec<u8>>) {
        self.0.lock().unwrap().push(Box::new(completion));
    }

    fn start_write(&self, _iova: u64, _data: Vec<u8>, completion: Completion<()>) {
        self.0.lock().unwrap().push(Box::new(completion));
    }
}

/// Bytes that differ from place to place.
pub(super) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| (n.wrapping_mul(31) ^ (n >> 8) ^ seed.wrapping_mul(97)) as u8).collect()
}
