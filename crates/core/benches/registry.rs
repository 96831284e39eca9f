//! What the registry costs with 1, 1,000, 10,000 and 1,000,000 devices in it, beside what such a core
//! has without one: a list under one lock, searched from its head.
//!
//! `cargo bench -p vfiod-core --bench registry` prints tables in Markdown, in about a minute; with
//! `-- 10000` those of so many devices only.
//! Figures are nanoseconds per operation as each thread sees it: wall time by operations per
//! thread; the median of five rounds (the best would be one in which threads did not meet). In each
//! round, what opens and closes cost one thread is the least of slices of 400, which says something
//! also while other programs run. Without
//! `--bench` (as `cargo test` runs it) it does a little of everything, to show that it works.

use std::hint::black_box;
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use vfiod_core::{
    Context, Description, Device, DeviceFlags, DeviceRef, DeviceSpec, OpenPolicy, Owner,
    OwnerIdentity, Region, RegionIndex, Registration, Registry, ResetCause, Result, SetId,
    SetObject,
};

/// A device that does nothing, so that only the core is measured.
struct Nothing;

impl Device for Nothing {
    fn persistence(&mut self) -> vfiod_core::Persistence<'_> {
        vfiod_core::Persistence::Stateless
    }

    fn describe(&self) -> Description {
        let regions = vec![Region::registers(0x100)];
        Description { flags: DeviceFlags::empty(), regions, irqs: Vec::new() }
    }
    fn init(&mut self, _ctx: &Context) -> Result<()> {
        Ok(())
    }
    fn open_device(&mut self) -> Result<()> {
        Ok(())
    }
    fn close_device(&mut self) {}
    fn read(&mut self, _region: RegionIndex, offset: u64, data: &mut [u8]) -> Result<()> {
        data[0] = offset as u8;
        Ok(())
    }
    fn write(&mut self, _region: RegionIndex, _offset: u64, data: &[u8]) -> Result<()> {
        black_box(data[0]);
        Ok(())
    }
    fn reset(&mut self, _cause: ResetCause) -> Result<()> {
        Ok(())
    }
}

struct Slot;

impl SetObject for Slot {
    fn set_name(&self) -> String {
        "slot".to_owned()
    }
}

/// How the devices are spread over sets.
#[derive(Clone, Copy)]
enum Sets {
    Own,
    By64,
    One,
}

impl Sets {
    fn name(self) -> &'static str {
        match self {
            Self::Own => "each its own",
            Self::By64 => "64 to a set",
            Self::One => "one for all",
        }
    }
}

/// What is measured: the registry, or the list.
trait Core: Sync {
    type Member: Send + Sync;
    fn register(&self, n: usize) -> Self::Member;
    fn open_and_close(&self, n: usize, member: &Self::Member);
    fn unregister(&self, n: usize, member: Self::Member);
}

struct Ours {
    registry: Registry,
    sets: Sets,
    slots: Vec<Arc<Slot>>,
}

impl Ours {
    fn new(sets: Sets, most: usize) -> Self {
        let slots = match sets {
            Sets::Own => 0,
            Sets::By64 => most.div_ceil(64),
            Sets::One => 1,
        };
        let slots = (0..slots).map(|_| Arc::new(Slot)).collect();
        Self { registry: Registry::new(), sets, slots }
    }
}

fn me() -> Owner {
    Owner::new(OwnerIdentity::Process { pidfd_inode: 1 })
}

impl Core for Ours {
    type Member = Registration;

    fn register(&self, n: usize) -> Registration {
        let set = match self.sets {
            Sets::Own => None,
            Sets::By64 => Some(SetId::of(&self.slots[n / 64])),
            Sets::One => Some(SetId::of(&self.slots[0])),
        };
        let name = format!("device-{n}");
        let spec = DeviceSpec { name, set, open: OpenPolicy::Multi, ..DeviceSpec::default() };
        self.registry.register(spec, Box::new(Nothing)).expect("registers")
    }

    fn open_and_close(&self, _n: usize, member: &Registration) {
        // By number, as a caller does that does not hold the registration.
        let device: DeviceRef = self.registry.get(member.device().id()).expect("is registered");
        drop(device.open(me()).expect("opens"));
    }

    fn unregister(&self, _n: usize, member: Registration) {
        member.unregister(None);
    }
}

/// One list, one lock; every operation looks for its device from the head on.
#[derive(Default)]
struct List {
    devices: Mutex<Vec<Arc<Entry>>>,
}

struct Entry {
    id: usize,
    files: std::sync::atomic::AtomicUsize,
    _device: Mutex<Box<dyn Device>>,
}

fn device() -> Mutex<Box<dyn Device>> {
    Mutex::new(Box::new(Nothing))
}

impl List {
    fn count(&self, n: usize, by: isize) {
        let devices = self.devices.lock().unwrap();
        let entry = devices.iter().find(|entry| entry.id == n).expect("is registered");
        entry.files.fetch_add(by as usize, std::sync::atomic::Ordering::Relaxed);
    }
}

impl Core for List {
    type Member = ();

    fn register(&self, n: usize) {
        let entry = Arc::new(Entry { id: n, files: 0.into(), _device: device() });
        let mut devices = self.devices.lock().unwrap();
        assert!(devices.iter().all(|entry| entry.id != n), "registered twice");
        devices.push(entry);
    }

    fn open_and_close(&self, n: usize, (): &()) {
        self.count(n, 1);
        self.count(n, -1);
    }

    fn unregister(&self, n: usize, (): ()) {
        let mut devices = self.devices.lock().unwrap();
        let at = devices.iter().position(|entry| entry.id == n).expect("is registered");
        devices.swap_remove(at);
    }
}

/// How many devices a thread adds before it takes them away again, so that about as many are
/// registered all the time as the table says.
const BATCH: usize = 16;

/// Runs work on threads at once, each told its number; the longest times of any.
fn together(threads: usize, work: impl Fn(usize) -> [Duration; 2] + Sync) -> [Duration; 2] {
    let start = Barrier::new(threads);
    std::thread::scope(|scope| {
        let (start, work) = (&start, &work);
        let spawn = |thread| {
            scope.spawn(move || {
                start.wait();
                work(thread)
            })
        };
        let threads: Vec<_> = (0..threads).map(spawn).collect();
        let times = threads.into_iter().map(|thread| thread.join().expect("a bench thread"));
        times.fold([Duration::ZERO; 2], |a, b| [a[0].max(b[0]), a[1].max(b[1])])
    })
}

/// Nanoseconds per operation of register, open and close, unregister.
fn measure<C: Core>(core: &C, there: &[C::Member], threads: usize, ops: usize) -> [f64; 3] {
    let mut rounds: [Vec<f64>; 3] = Default::default();
    for _ in 0..5 {
        let [register, unregister] = together(threads, |thread| {
            let first = there.len() + thread * BATCH;
            let mut took = [Duration::ZERO; 2];
            for _ in 0..ops.div_ceil(BATCH) {
                let begin = Instant::now();
                let added = std::array::from_fn::<_, BATCH, _>(|n| core.register(first + n));
                let middle = Instant::now();
                for (n, member) in added.into_iter().enumerate() {
                    core.unregister(first + n, member);
                }
                took[0] += middle - begin;
                took[1] += middle.elapsed();
            }
            took
        });
        let [open, _] = together(threads, |thread| {
            let mut random = thread as u64 * 0x9e37_79b9 + 1;
            let slice = if threads == 1 { ops.min(400) } else { ops };
            let slices = (0..ops / slice).map(|_| {
                let begin = Instant::now();
                for _ in 0..slice {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let n = (random >> 33) as usize % there.len();
                    core.open_and_close(n, &there[n]);
                }
                begin.elapsed()
            });
            let least = slices.min().unwrap_or_default();
            [least * (ops / slice) as u32, Duration::ZERO]
        });
        let batched = ops.div_ceil(BATCH) * BATCH;
        for (rounds, (took, ops)) in
            rounds.iter_mut().zip([(register, batched), (open, ops), (unregister, batched)])
        {
            rounds.push(took.as_nanos() as f64 / ops as f64);
        }
    }
    rounds.map(|mut rounds| {
        rounds.sort_by(f64::total_cmp);
        rounds[rounds.len() / 2]
    })
}

fn accesses(rounds: u32) {
    let registry = Registry::new();
    let spec = DeviceSpec { name: "one".to_owned(), ..DeviceSpec::default() };
    let registration = registry.register(spec, Box::new(Nothing)).expect("registers");
    let file = registration.device().open(me()).expect("opens");
    let best = |access: &dyn Fn()| {
        let round = || {
            let begin = Instant::now();
            (0..rounds).for_each(|_| access());
            begin.elapsed().as_nanos() as f64 / f64::from(rounds)
        };
        (0..5).map(|_| round()).fold(f64::INFINITY, f64::min)
    };
    let (region, mut data) = (RegionIndex(0), [0; 4]);
    let cell = std::cell::RefCell::new(&mut data);
    let read = best(&|| file.read(region, 4, &mut cell.borrow_mut()[..]).expect("reads"));
    let write = best(&|| file.write(region, 4, &[1; 4]).expect("writes"));
    println!("\n| access of 4 bytes through a file | ns |\n| --- | ---: |");
    println!("| read | {read:.1} |\n| write | {write:.1} |");
}

fn main() {
    let full = std::env::args().any(|argument| argument == "--bench");
    let wanted: Vec<usize> = std::env::args().filter_map(|count| count.parse().ok()).collect();
    let all: &[usize] = if full { &[1, 1000, 10_000, 1_000_000] } else { &[1, 100] };
    let counts = if wanted.is_empty() { all } else { &wanted };
    let ops = if full { 20_000 } else { 100 };

    println!("| devices | sets | threads | register | open + close | unregister |");
    println!("| ---: | --- | ---: | ---: | ---: | ---: |");
    for &count in counts {
        for sets in [Sets::Own, Sets::By64, Sets::One] {
            let core = Ours::new(sets, count + 2 * BATCH);
            let there: Vec<_> = (0..count).map(|n| core.register(n)).collect();
            for threads in [1, 2] {
                let [register, open, unregister] = measure(&core, &there, threads, ops);
                let sets = sets.name();
                println!(
                    "| {count} | {sets} | {threads} | {register:.0} | {open:.0} | {unregister:.0} |"
                );
            }
        }
        let core = List::default();
        // Not by `register`, which would take hours.
        let entry = |n| Arc::new(Entry { id: n, files: 0.into(), _device: device() });
        core.devices.lock().unwrap().extend((0..count).map(entry));
        let there = vec![(); count];
        for threads in [1, 2] {
            let ops = if count >= 1_000_000 { 2 * BATCH } else { ops };
            let [register, open, unregister] = measure(&core, &there, threads, ops);
            println!(
                "| {count} | *linear list* | {threads} | {register:.0} | {open:.0} | {unregister:.0} |"
            );
        }
    }
    accesses(if full { 5_000_000 } else { 1000 });
}
