//! The bench device: memory to read and write, operations that run inside the server, so that
//! their cost can be measured without the socket's, and 64 queues that move data between a file
//! and guest memory.
//!
//! BAR 0 is 2 MiB of memory. BAR 2 has the registers (`registers.rs`), BAR 3 a page of doorbells
//! where the device polls, BAR 4 the MSI-X table: vector *q* is queue *q*'s.

mod doorbells;
mod measure;
mod queue;
mod registers;
#[cfg(test)]
mod tests;

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vfiod_core::region::SparseArea;
use vfiod_core::{Errno, Error, Quiesce, ReadEffect, ReadTraits, Result, Why};
use vfiod_io::RuntimeRing;
use vfiod_pci::{
    Bar, BarKind, CannotSave, Capability, Cx, FunctionSpec, Model, Unsaved, Worker, Works,
};

use self::doorbells::Doorbells;
use self::measure::Operation;
use self::queue::{Disk, Queue};
use self::registers::{COUNT, Op, QUEUE, QUEUES, REGISTERS, Reg};

const MEMORY: usize = 2 << 20;
/// Bytes of the file that the queues use if none is named.
const DISK: u64 = 4 << 20;
const PAGE: u64 = 4096;
/// The BAR of the page of doorbells.
const PAGE_BAR: u8 = 3;

/// Options of the model.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BenchOptions {
    /// Whether BAR 0 is memory that clients may map and the core serves, or the model's own.
    pub shared: bool,
    /// Whether BAR 3 is a page of doorbells that the device polls. It never sleeps then while it
    /// is open.
    pub polled: bool,
    /// The file that the queues read and write; by default 4 MiB of memory, new after each reset.
    pub disk: Option<PathBuf>,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self { shared: true, polled: false, disk: None }
    }
}

/// BAR 0.
#[derive(Debug)]
enum Memory {
    /// The core serves it.
    Shared,
    /// The model does.
    Own { bytes: Vec<u8>, written: bool },
}

/// The device.
#[derive(Debug)]
pub struct Bench {
    options: BenchOptions,
    memory: Memory,
    registers: [u64; COUNT],
    /// The operation that is under way.
    running: Option<Op>,
    queues: Vec<Queue>,
    doorbells: Arc<Doorbells>,
    /// There when a queue has needed them.
    disk: Option<Disk>,
    ring: Option<Arc<RuntimeRing>>,
}

impl Bench {
    /// The device with its options.
    pub fn new(options: BenchOptions) -> Self {
        let memory = if options.shared {
            Memory::Shared
        } else {
            Memory::Own { bytes: vec![0; MEMORY], written: false }
        };
        Self {
            options,
            memory,
            registers: [0; COUNT],
            running: None,
            queues: vec![Queue::default(); QUEUES],
            doorbells: Arc::new(Doorbells::new()),
            disk: None,
            ring: None,
        }
    }

    /// The file of the queues.
    fn disk(&mut self) -> Result<Disk> {
        if let Some(disk) = &self.disk {
            return Ok(disk.clone());
        }
        let disk = match &self.options.disk {
            Some(path) => {
                let file =
                    OpenOptions::new().read(true).write(true).open(path).map_err(|error| {
                        let what = format!("cannot open {}: {error}", path.display());
                        Error::new(Errno::from_io_error(&error).unwrap_or(Errno::IO), what)
                    })?;
                let file = OwnedFd::from(file);
                let stat = fstat(&file).map_err(|e| Error::new(e, "cannot look at the disk"))?;
                Disk { file: Arc::new(file), len: u64::try_from(stat.st_size).unwrap_or(0) }
            }
            None => {
                let fails = |errno| Error::new(errno, "cannot make memory for a disk");
                let file = memfd_create("vfiod-bench-disk", MemfdFlags::CLOEXEC).map_err(fails)?;
                ftruncate(&file, DISK).map_err(fails)?;
                Disk { file: Arc::new(file), len: DISK }
            }
        };
        Ok(self.disk.insert(disk).clone())
    }

    /// The ring of the runtime that runs the device's tasks.
    fn ring(&mut self, cx: &Cx<Self>) -> Result<Arc<RuntimeRing>> {
        if let Some(ring) = &self.ring {
            return Ok(ring.clone());
        }
        Ok(self.ring.insert(RuntimeRing::of(cx.runtime())?).clone())
    }

    /// Starts the task of a queue that is enabled, unless it is there.
    fn serve(&mut self, cx: &Cx<Self>, index: usize) {
        let name = queue::task_name(index);
        if cx.find_task(&name).is_some() {
            return;
        }
        let doorbells = self.doorbells.clone();
        let started = cx.spawn(&name, |task| queue::serve(task, index, doorbells));
        must_start(cx, started.err());
    }

    /// Starts the operation that is under way.
    fn measure(&mut self, cx: &Cx<Self>) {
        let started = cx.spawn("operation", |task| async move {
            let operation = task.step(|bench, cx| {
                let op = bench.running?;
                Some(Operation::new(op, &bench.registers, cx.interrupts()))
            });
            let Some(operation) = operation.await else { return };
            let figures = operation.run(&task).await;
            task.step(|bench, _| {
                bench.running = None;
                let elapsed = u64::try_from(figures.elapsed.as_nanos()).unwrap_or(u64::MAX);
                bench.registers[Reg::ResultNs as usize] = elapsed;
                bench.registers[Reg::Errors as usize] = figures.errors;
                bench.registers[Reg::Check as usize] = figures.check;
            })
            .await;
        });
        must_start(cx, started.err());
    }

    /// Starts to poll the page of doorbells.
    fn poll(&mut self, cx: &Cx<Self>) {
        let page = match cx.shared_memory(PAGE_BAR) {
            Ok(page) => page,
            Err(error) => return must_start(cx, Some(error)),
        };
        let doorbells = self.doorbells.clone();
        let started = cx.spawn("poll", |task| doorbells::poll(task, page, doorbells));
        must_start(cx, started.err());
    }

    fn read_registers(&self, cx: &Cx<Self>, offset: u64, data: &mut [u8]) {
        match registers::queue_at(offset) {
            Some((index, offset)) => {
                let busy = || cx.find_task(&queue::task_name(index)).is_some();
                QUEUE.read(offset, data, |register| self.queues[index].read(register, busy));
            }
            None => REGISTERS.read(offset, data, |register| match register {
                Reg::Status => self.running.is_some().into(),
                register => self.registers[register as usize],
            }),
        }
    }

    fn write_registers(&mut self, cx: &Cx<Self>, offset: u64, data: &[u8]) {
        if let Some((index, offset)) = registers::queue_at(offset) {
            let Some((register, value)) = QUEUE.write(offset, data) else { return };
            let busy = || cx.find_task(&queue::task_name(index)).is_some();
            if self.queues[index].write(register, value, busy) {
                if self.queues[index].enabled {
                    self.serve(cx, index);
                } else {
                    // Its task finds that out.
                    self.doorbells.of(index).ring(None);
                }
            }
            return;
        }
        let Some((register, value)) = REGISTERS.write(offset, data) else { return };
        match register {
            Reg::Status => {} // read-only
            Reg::Op if self.running.is_some() => {}
            Reg::Op => {
                self.registers[Reg::Op as usize] = value;
                self.running = Op::from_value(value);
                if self.running.is_some() {
                    self.measure(cx);
                }
            }
            register => self.registers[register as usize] = value,
        }
    }
}

/// A task of an open device can always be started: it has 66 at most.
fn must_start(cx: &Cx<Bench>, error: Option<Error>) {
    if let Some(error) = error {
        tracing::error!(device = cx.name(), %error, "work was not started");
    }
}

impl Model for Bench {
    type State = Works<CannotSave>;

    /// Vendor 1234 belongs to nobody; virtual devices use it.
    fn spec(&self) -> FunctionSpec {
        let memory = Bar::new(BarKind::Memory64 { prefetchable: true }, MEMORY as u64);
        let memory = match &self.memory {
            Memory::Shared => memory.shared(vec![SparseArea { offset: 0, size: MEMORY as u64 }]),
            Memory::Own { .. } => memory,
        };
        let registers = doorbells::registers().fold(Bar::memory32(registers::SIZE), Bar::doorbell);
        let spec = FunctionSpec::new(0x1234, 0x7e32).bar(0, memory).bar(2, registers);
        let spec = if self.options.polled {
            let page = Bar::memory32(PAGE).shared(vec![SparseArea { offset: 0, size: PAGE }]);
            spec.bar(PAGE_BAR, doorbells::page().fold(page, Bar::doorbell))
        } else {
            spec
        };
        let vectors = QUEUES as u16;
        spec.bar(4, Bar::memory32(PAGE)).capability(Capability::Msix {
            vectors,
            table: (4, 0),
            pba: (4, 0x800),
        })
    }

    fn init(&mut self, cx: &Cx<Self>) -> Result<()> {
        cx.set_data_path(self.doorbells.clone());
        Ok(())
    }

    fn read(&mut self, cx: &Cx<Self>, bar: u8, offset: u64, data: &mut [u8]) {
        match (bar, &self.memory) {
            (0, Memory::Own { bytes, .. }) => {
                let at = offset as usize;
                data.copy_from_slice(&bytes[at..at + data.len()]);
            }
            (2, _) => self.read_registers(cx, offset, data),
            _ => data.fill(0xff),
        }
    }

    fn read_traits(&self, bar: u8, offset: u64, len: usize) -> ReadTraits {
        match (bar, registers::queue_at(offset)) {
            (2, Some((_, offset))) => QUEUE.read_traits(offset, len),
            (2, None) => REGISTERS.read_traits(offset, len),
            // Memory.
            _ => ReadTraits { effect: ReadEffect::None, volatile: 0 },
        }
    }

    fn write(&mut self, cx: &Cx<Self>, bar: u8, offset: u64, data: &[u8]) {
        match (bar, &mut self.memory) {
            (0, Memory::Own { bytes, written }) => {
                let at = offset as usize;
                bytes[at..at + data.len()].copy_from_slice(data);
                *written = true;
            }
            (2, _) => self.write_registers(cx, offset, data),
            _ => {}
        }
    }

    fn reset(&mut self, _cx: &Cx<Self>) {
        let Self { options: _, memory, registers, running, queues, doorbells: _, disk, ring: _ } =
            self;
        if let Memory::Own { bytes, written: written @ true } = memory {
            bytes.fill(0);
            *written = false;
        }
        *registers = [0; COUNT];
        *running = None;
        queues.fill(Queue::default());
        // What the last user has written is not for the next one.
        *disk = None;
    }
}

impl Worker for Bench {
    /// Before an end, tasks are cancelled at once. Otherwise each finishes what it has begun with
    /// the kernel: it must not be started a second time while the kernel may still write the
    /// guest's memory.
    fn quiesce(&mut self, _cx: &Cx<Self>, why: Why) -> Quiesce {
        if why.ends() {
            return Quiesce::Cancel;
        }
        // Tasks that wait for their bells look whether they are to stop. They do so in a step,
        // which comes after this call.
        self.doorbells.ring_all();
        Quiesce::Finish
    }

    fn resume(&mut self, cx: &Cx<Self>) {
        if self.options.polled && cx.find_task("poll").is_none() {
            self.poll(cx);
        }
        if self.running.is_some() && cx.find_task("operation").is_none() {
            self.measure(cx);
        }
        for index in 0..QUEUES {
            if self.queues[index].enabled {
                self.serve(cx, index);
            }
        }
    }
}

impl Unsaved for Bench {
    const WHY: &'static str = "its memory and its disk are not part of a state";
}

#[cfg(test)]
vfiod_testing::conformance!(shared_memory, Bench::new(BenchOptions::default()));
#[cfg(test)]
vfiod_testing::conformance!(
    own_memory,
    Bench::new(BenchOptions { shared: false, ..BenchOptions::default() })
);
