//! What controllers cost: idle ones, many queues, and a command. Everything is in one test of one thread, which
//! also runs the tasks: what is counted is nobody else's.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vfiod_config::ConfiguredModel;
use vfiod_core::dma::{Backing, MapRequest, Perm};
use vfiod_core::{DeviceSpec, File, Owner, RegionIndex, Registration, Registry};
use vfiod_nvme::{Nvme, NvmeOptions};
use vfiod_pci::Function;
use vfiod_tasks::Runtime;

/// Counts what is allocated.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that are allocated.
static BYTES: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Allocations of the thread.
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    BYTES.fetch_add(bytes, Ordering::Relaxed);
    _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: what is returned is of the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as for this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as for this function; everything is of the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        BYTES.fetch_sub(layout.size(), Ordering::Relaxed);
        count(size);
        // SAFETY: as for this function; everything is of the system's allocator.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

fn allocations() -> usize {
    COUNT.with(Cell::get)
}

fn bytes() -> usize {
    BYTES.load(Ordering::Relaxed)
}

/// How many entries a directory has.
fn entries(directory: &str) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

/// Memory of a host: queues, each of a submission and a completion ring of 64 KiB, then data.
const MEMORY: u64 = 16 << 20;
const RING: u64 = 64 << 10;
const DATA: u64 = MEMORY - (1 << 20);
const CONFIGURATION: RegionIndex = RegionIndex(7);
const BAR: RegionIndex = RegionIndex(0);

/// A host whose controller is enabled.
struct Host {
    file: File,
    memory: OwnedFd,
    /// Entries, and the tail of both rings of a queue.
    queues: Vec<(u32, u32)>,
    _registration: Registration,
}

impl Host {
    fn new(registry: &Registry, name: &str) -> Self {
        let options = NvmeOptions { null: Some(1 << 30), ..NvmeOptions::default() };
        let function = Function::new(Nvme::configured(options).unwrap()).unwrap();
        let spec = DeviceSpec { name: name.to_owned(), ..DeviceSpec::default() };
        let registration = registry.register(spec, Box::new(function)).unwrap();
        let file = registration.device().open(Owner::in_process(name)).unwrap();
        let memory = rustix::fs::memfd_create("host", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memory, MEMORY).unwrap();
        let backing = Backing::File { fd: memory.try_clone().unwrap(), offset: 0 };
        let perm = Perm::READ | Perm::WRITE;
        file.dma_map(MapRequest { iova: 0, size: MEMORY, perm, backing }).unwrap();
        file.write(CONFIGURATION, 4, &6_u16.to_le_bytes()).unwrap();
        let mut host = Self { file, memory, queues: Vec::new(), _registration: registration };
        host.write(0x24, 15 << 16 | 15);
        host.write(0x28, 0);
        host.write(0x30, RING as u32);
        host.write(0x14, 6 << 16 | 4 << 20 | 1);
        host.queues.push((16, 0));
        host
    }

    fn write(&self, offset: u64, value: u32) {
        self.file.write(BAR, offset, &value.to_le_bytes()).unwrap();
    }

    /// Performs a command.
    fn perform(&mut self, runtime: &Runtime, queue: usize, dwords: &[(usize, u32)]) {
        self.perform_all(runtime, queue, dwords, 1);
    }

    /// Performs a command so many times at once, in a queue that has never been round before.
    fn perform_all(
        &mut self,
        runtime: &Runtime,
        queue: usize,
        dwords: &[(usize, u32)],
        count: u32,
    ) {
        let (entries, tail) = self.queues[queue];
        let at = 2 * RING * queue as u64;
        let mut command = [0_u8; 64];
        for (dword, value) in dwords {
            command[4 * dword..][..4].copy_from_slice(&value.to_le_bytes());
        }
        for n in 0..count {
            rustix::io::pwrite(&self.memory, &command, at + 64 * u64::from(tail + n)).unwrap();
        }
        let next = (tail + count) % entries;
        self.write(0x1000 + 8 * queue as u64, next);
        runtime.run_until_idle();
        let mut head = 0;
        for n in 0..count {
            let mut entry = [0; 16];
            let place = at + RING + 16 * u64::from(tail + n);
            rustix::io::pread(&self.memory, &mut entry, place).unwrap();
            assert_eq!(u16::from_le_bytes([entry[14], entry[15]]) >> 1, 0, "{dwords:x?}");
            head = u16::from_le_bytes([entry[8], entry[9]]);
        }
        assert_eq!(head, next as u16, "they were read");
        self.write(0x1004 + 8 * queue as u64, next);
        self.queues[queue].1 = next;
    }

    fn create_pair(&mut self, runtime: &Runtime, id: usize, entries: u32, at: u64) {
        let size = (entries - 1) << 16 | id as u32;
        self.perform(runtime, 0, &[(0, 5), (6, (at + RING) as u32), (10, size), (11, 1)]);
        self.perform(
            runtime,
            0,
            &[(0, 1), (6, at as u32), (10, size), (11, (id as u32) << 16 | 1)],
        );
    }
}

#[test]
fn controllers_and_commands_cost_what_is_said_of_them() {
    const CONTROLLERS: usize = 100;
    let registry = Registry::new();
    let runtime = registry.runtime().clone();
    // What is made once is made.
    let mut first = Host::new(&registry, "first");
    first.create_pair(&runtime, 1, 1024, 2 * RING);
    first.queues.push((1024, 0));

    // Idle controllers, each with a queue pair.
    let own = [entries("/proc/self/fd"), entries("/proc/self/task"), bytes()];
    let mut hosts: Vec<Host> = (0..CONTROLLERS)
        .map(|n| {
            let mut host = Host::new(&registry, &format!("disk{n}"));
            host.create_pair(&runtime, 1, 1024, 2 * RING);
            host.queues.push((1024, 0));
            host.perform(&runtime, 1, &[(0, 2), (1, 1), (6, DATA as u32), (12, 7)]);
            host
        })
        .collect();
    let all = [entries("/proc/self/fd"), entries("/proc/self/task"), bytes()];
    let each = [0, 1, 2].map(|at| (all[at] - own[at]) / CONTROLLERS);
    println!("an idle controller: descriptors (2 are its host's), threads, bytes: {each:?}");
    // The host's memory, here and in the address space.
    assert!(each[0] <= 2 && all[1] == own[1] && each[2] < 128 << 10, "{each:?}");
    runtime.run_until_idle();
    let mut fds = [PollFd::from_borrowed_fd(runtime.fd(), PollFlags::IN)];
    let time = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };
    assert_eq!(poll(&mut fds, Some(&time)).unwrap(), 0, "something wakes an idle controller");

    // As many queues as there can be, of as many entries: these are in the host's memory.
    let before = bytes();
    for id in 1..=64 {
        if id > 1 {
            hosts[0].create_pair(&runtime, id, 4096, 2 * RING);
        }
    }
    let queues = bytes() - before;
    println!("63 queue pairs of 4096 entries: {queues} bytes");
    assert!(queues < 1 << 20, "{queues} bytes for 63 queue pairs");

    // A read of 4 KiB.
    let host = &mut first;
    let read = [(0, 2), (1, 1), (6, DATA as u32), (12, 7)];
    for at_once in [1, 10] {
        (0..20).for_each(|_| host.perform_all(&runtime, 1, &read, at_once));
        let before = allocations();
        (0..10).for_each(|_| host.perform_all(&runtime, 1, &read, at_once));
        let count = allocations() - before;
        println!("reads, {at_once} at once: {count} allocations for 10 times");
        assert_eq!(count, 0, "reads take memory, {at_once} at once");
    }
}
