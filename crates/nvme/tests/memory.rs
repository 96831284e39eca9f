//! A list of as many pieces as a host likes: a command for which there is no memory waits until there is, and its host
//! learns of nothing.

#[path = "../../buffer/tests/scarce/mod.rs"]
mod scarce;

use std::os::fd::OwnedFd;
use std::time::Duration;

use vfiod_config::ConfiguredModel;
use vfiod_core::dma::{Backing, MapRequest, Perm};
use vfiod_core::{DeviceSpec, File, Owner, RegionIndex, Registry};
use vfiod_nvme::{Nvme, NvmeOptions};
use vfiod_pci::Function;
use vfiod_tasks::Runtime;

const MEMORY: u64 = 4 << 20;
const RING: u64 = 64 << 10;
const LIST: u64 = 1 << 20;
const DATA: u64 = 2 << 20;
const CONFIGURATION: RegionIndex = RegionIndex(7);
const BAR: RegionIndex = RegionIndex(0);
/// Pieces of the list, each a byte, none beside another one. Their descriptors have 24 KiB.
const PIECES: u64 = 1536;
/// What a thread gets at once: the descriptors, and not what is made of them, nor what a verify reads at a time.
const LARGEST: usize = 28 << 10;

/// A host, whose controller is enabled.
struct Host<'a> {
    file: File,
    memory: OwnedFd,
    runtime: &'a Runtime,
    /// The tails of both queues.
    tails: [u64; 2],
}

impl Host<'_> {
    fn write(&self, offset: u64, value: u32) {
        self.file.write(BAR, offset, &value.to_le_bytes()).unwrap();
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        rustix::io::pwrite(&self.memory, bytes, at).unwrap();
    }

    fn submit(&mut self, queue: usize, dwords: &[(usize, u32)]) {
        let mut command = [0_u8; 64];
        for (dword, value) in dwords {
            command[4 * dword..][..4].copy_from_slice(&value.to_le_bytes());
        }
        self.put(2 * RING * queue as u64 + 64 * self.tails[queue], &command);
        self.tails[queue] += 1;
        self.write(0x1000 + 8 * queue as u64, self.tails[queue] as u32);
        self.runtime.run_until_idle();
    }

    /// The status of the newest command, if it has completed.
    fn status(&self, queue: usize) -> Option<u16> {
        let mut entry = [0; 16];
        let place = 2 * RING * queue as u64 + RING + 16 * (self.tails[queue] - 1);
        rustix::io::pread(&self.memory, &mut entry, place).unwrap();
        let last = u16::from_le_bytes([entry[14], entry[15]]);
        (last & 1 == 1).then_some(last >> 1)
    }

    /// Lets time pass.
    fn rest(&self) {
        std::thread::sleep(Duration::from_millis(1));
        self.runtime.run_until_idle();
    }
}

#[test]
fn command_without_memory_waits_for_some() {
    let registry = Registry::new();
    let runtime = registry.runtime().clone();
    let options = NvmeOptions { null: Some(1 << 30), ..NvmeOptions::default() };
    let function = Function::new(Nvme::configured(options).unwrap()).unwrap();
    let spec = DeviceSpec { name: "disk".to_owned(), ..DeviceSpec::default() };
    let registration = registry.register(spec, Box::new(function)).unwrap();
    let file = registration.device().open(Owner::in_process("host")).unwrap();
    let memory = rustix::fs::memfd_create("host", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memory, MEMORY).unwrap();
    let backing = Backing::File { fd: memory.try_clone().unwrap(), offset: 0 };
    let perm = Perm::READ | Perm::WRITE;
    file.dma_map(MapRequest { iova: 0, size: MEMORY, perm, backing }).unwrap();
    file.write(CONFIGURATION, 4, &6_u16.to_le_bytes()).unwrap();
    let mut host = Host { file, memory, runtime: &runtime, tails: [0; 2] };
    host.write(0x24, 15 << 16 | 15);
    host.write(0x28, 0);
    host.write(0x30, RING as u32);
    host.write(0x14, 6 << 16 | 4 << 20 | 1);
    host.submit(0, &[(0, 5), (6, 3 * RING as u32), (10, 15 << 16 | 1), (11, 1)]);
    host.submit(0, &[(0, 1), (6, 2 * RING as u32), (10, 15 << 16 | 1), (11, 1 << 16 | 1)]);
    assert_eq!(host.status(0), Some(0));
    for n in 0..PIECES {
        let descriptor = [(DATA + 2 * n).to_le_bytes(), 1_u64.to_le_bytes()].concat();
        host.put(LIST + 16 * n, &descriptor);
    }

    let read = [
        (0, 1 << 14 | 2),
        (1, 1),
        (6, LIST as u32),
        (8, 16 * PIECES as u32),
        (9, 0x30 << 24),
        (12, 2),
    ];
    let scarcity = scarce::begin(LARGEST);
    host.submit(1, &read);
    while scarce::refused() < 3 && host.status(1).is_none() {
        host.rest();
    }
    assert_eq!(host.status(1), None);
    drop(scarcity);
    while host.status(1).is_none() {
        host.rest();
    }
    assert_eq!(host.status(1), Some(0));

    // A verify goes on with the little that is always there.
    let scarcity = scarce::begin(LARGEST);
    let before = scarce::refused();
    host.submit(1, &[(0, 0x0c), (1, 1), (12, 127)]);
    while host.status(1).is_none() {
        host.rest();
    }
    drop(scarcity);
    assert_eq!((host.status(1), scarce::refused() - before), (Some(0), 1));
}
