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
use std::time::Duration;

use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vfiod_core::region::SparseArea;
use vfiod_directories::{directory_of, in_directory};
use vfiod_io::RuntimeRing;
use vfiod_pci::BarKind;
use vfiod_pci::prelude::*;

use self::doorbells::Doorbells;
use self::measure::Measurement;
use self::queue::{CONTROL, Disk, Queue};
use self::registers::QUEUES;

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
    /// Whether BAR 0 is memory that clients may map and the core serves, or the model's own, whose
    /// contents are not saved.
    pub shared: bool,
    /// Whether BAR 3 is a page of doorbells that the device polls. It never sleeps then while it
    /// is open.
    pub polled: bool,
    /// The file that the queues read and write; by default 4 MiB of memory, new after each reset
    /// and restore.
    #[schemars(extend("x-path" = "file"))]
    pub disk: Option<PathBuf>,
    /// Milliseconds that each reset and each access to the registers of BAR 2 takes, as of a device
    /// that does not keep its contract: to see what that does to others.
    #[schemars(extend("x-local" = true))]
    pub delay_ms: u16,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self { shared: true, polled: false, disk: None, delay_ms: 0 }
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
    measurement: Measurement,
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
            measurement: Measurement::power_on(),
            queues: (0..QUEUES).map(|_| Queue::power_on(false)).collect(),
            doorbells: Arc::new(Doorbells::new()),
            disk: None,
            ring: None,
        }
    }

    /// Takes as long as the options say.
    fn delay(&self) {
        if self.options.delay_ms > 0 {
            std::thread::sleep(Duration::from_millis(self.options.delay_ms.into()));
        }
    }

    /// The file of the queues.
    fn disk(&mut self) -> Result<Disk> {
        if let Some(disk) = &self.disk {
            return Ok(disk.clone());
        }
        let disk = match &self.options.disk {
            Some(path) => {
                let place = path.clone();
                let open = move || OpenOptions::new().read(true).write(true).open(place);
                let file = in_directory(directory_of(path), open)?.map_err(|error| {
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
    fn serve(&self, cx: &Cx<Self>, index: usize) {
        let doorbells = self.doorbells.clone();
        cx.ensure_task(&queue::task_name(index), |task| queue::serve(task, index, doorbells));
    }

    /// Starts the operation that is under way, unless its task is there.
    fn measure(&self, cx: &Cx<Self>) {
        cx.ensure_task("operation", |task| async move {
            let operation =
                task.step(|bench, cx| bench.measurement.operation(cx.interrupts())).await;
            let Some(operation) = operation else { return };
            let figures = operation.run(&task).await;
            task.last_step(|bench, _| bench.measurement.end(&figures)).await;
        });
    }

    /// Starts to poll the page of doorbells, unless its task is there.
    fn poll(&self, cx: &Cx<Self>) {
        match cx.shared_memory(PAGE_BAR) {
            Ok(page) => {
                let doorbells = self.doorbells.clone();
                cx.ensure_task("poll", |task| doorbells::poll(task, page, doorbells));
            }
            Err(error) => tracing::error!(device = cx.name(), %error, "doorbells are not polled"),
        }
    }

    /// The queue whose registers an access to BAR 2 means, and the offset in them.
    fn queue_at(&mut self, cx: &Cx<Self>, offset: u64) -> Option<(usize, &mut Queue, u64)> {
        let (index, offset) = registers::queue_at(offset)?;
        let queue = &mut self.queues[index];
        if offset == CONTROL {
            queue.set_busy(cx.find_task(&queue::task_name(index)).is_some());
        }
        Some((index, queue, offset))
    }

    fn read_registers(&mut self, cx: &Cx<Self>, offset: u64, data: &mut [u8]) {
        match self.queue_at(cx, offset) {
            Some((_, queue, offset)) => queue.read_register(offset, data),
            None => self.measurement.read_register(offset, data),
        }
    }

    fn write_registers(&mut self, cx: &Cx<Self>, offset: u64, data: &[u8]) {
        if let Some((index, queue, offset)) = self.queue_at(cx, offset) {
            let changed = queue.decode_write(offset, data).is_some_and(|write| queue.write(write));
            match (changed, queue.is_enabled()) {
                (true, true) => self.serve(cx, index),
                // Its task finds that out.
                (true, false) => self.doorbells.of(index).ring(None),
                (false, _) => {}
            }
        } else if let Some(write) = self.measurement.decode_write(offset, data)
            && self.measurement.write(write)
        {
            self.measure(cx);
        }
    }
}

impl Model for Bench {
    type State = Works<HasState>;

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
            (2, _) => {
                self.delay();
                self.read_registers(cx, offset, data);
            }
            _ => data.fill(0xff),
        }
    }

    fn read_traits(&self, bar: u8, offset: u64, len: usize) -> ReadTraits {
        match (bar, &self.memory) {
            // What is in it is not saved.
            (0, Memory::Own { .. }) => ReadTraits { effect: ReadEffect::None, volatile: u64::MAX },
            (2, _) => match registers::queue_at(offset) {
                Some((_, offset)) => Queue::register_traits(offset, len),
                None => Measurement::register_traits(offset, len),
            },
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
            (2, _) => {
                self.delay();
                self.write_registers(cx, offset, data);
            }
            _ => {}
        }
    }

    fn reset(&mut self, _cx: &Cx<Self>) {
        self.delay();
        let Self { options: _, memory, measurement, queues, doorbells: _, disk, ring: _ } = self;
        if let Memory::Own { bytes, written: written @ true } = memory {
            bytes.fill(0);
            *written = false;
        }
        measurement.reset_registers();
        queues.iter_mut().for_each(Queue::reset_registers);
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
        if self.options.polled {
            self.poll(cx);
        }
        if self.measurement.is_running() {
            self.measure(cx);
        }
        for index in 0..QUEUES {
            if self.queues[index].is_enabled() {
                self.serve(cx, index);
            }
        }
    }
}

/// The queues of an image: serde has no arrays of 64.
type Halves<T> = [[T; QUEUES / 2]; 2];

vfiod_pci::image! {
    /// What is saved: registers, how far each queue has come, and what was under way. Memory of BAR 0
    /// that clients share is kept by the core.
    pub struct BenchImage {
        measurement: <Measurement as Registers>::Image,
        queues: Halves<<Queue as Registers>::Image>,
    }
}

impl Save for Bench {
    const KIND: &'static str = "bench";
    const VERSION: u32 = 1;
    type Image = BenchImage;

    fn save(&self) -> BenchImage {
        let Self { options: _, memory: _, measurement, queues, doorbells: _, disk: _, ring: _ } =
            self;
        let queue = |half: usize, n: usize| queues[half * QUEUES / 2 + n].save_registers();
        BenchImage {
            measurement: measurement.save_registers(),
            queues: std::array::from_fn(|half| std::array::from_fn(|n| queue(half, n))),
        }
    }

    fn restore(&mut self, _cx: &Cx<Self>, image: BenchImage) -> Result<()> {
        let BenchImage { measurement, queues } = image;
        let queues = queues.into_iter().flatten().map(Queue::restored);
        let queues = queues.collect::<Result<Vec<_>>>()?;
        self.measurement = Measurement::restored(measurement)?;
        self.queues = queues;
        // What was written to it was not saved.
        self.disk = None;
        if let Memory::Own { bytes, written } = &mut self.memory {
            bytes.fill(0);
            *written = false;
        }
        Ok(())
    }
}
