//! That the operations do what their figures are taken for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vfiod_core::dma::{Completion, DmaPeer, Perm};
use vfiod_pci::irq_index::MSIX;

use vfiod_testing::{Driver, eventually};

use super::super::{Bench, BenchOptions};

const OP: u64 = 0x00;
const ITERS: u64 = 0x08;
const BASE: u64 = 0x10;
const STRIDE: u64 = 0x18;
const COUNT: u64 = 0x20;
const LEN: u64 = 0x28;
const RESULT_NS: u64 = 0x30;
const ERRORS: u64 = 0x38;
const CHECK: u64 = 0x40;
const STATUS: u64 = 0x48;

fn bench(shared: bool) -> Driver {
    let device = Driver::new(Bench::new(BenchOptions { shared, ..BenchOptions::default() }));
    device.enable();
    device
}

fn describe(device: &Driver, base: u64, stride: u64, count: u64, len: u64) {
    for (register, value) in [(BASE, base), (STRIDE, stride), (COUNT, count), (LEN, len)] {
        device.write64(2, register, value);
    }
}

/// Runs an operation; how many iterations failed, and the sum over what was read.
fn run(device: &Driver, op: u64, iters: u64) -> (u64, u64) {
    device.write64(2, ITERS, iters);
    device.write64(2, OP, op);
    eventually("the operation has ended", || device.read64(2, STATUS) == 0);
    assert!(device.read64(2, RESULT_NS) > 0);
    (device.read64(2, ERRORS), device.read64(2, CHECK))
}

#[test]
fn both_kinds_of_memory_are_memory() {
    for shared in [true, false] {
        let device = bench(shared);
        device.write64(0, 0x1f_fff8, 0x0123_4567_89ab_cdef);
        assert_eq!(device.read64(0, 0x1f_fff8), 0x0123_4567_89ab_cdef);
        assert_eq!(device.size(0), 2 << 20);
        assert_eq!(
            device.file().region(vfiod_core::RegionIndex(0)).unwrap().shared.is_empty(),
            !shared
        );
    }
}

#[test]
fn translates_and_copies() {
    let device = bench(true);
    let _windows: Vec<_> = (0..16u64)
        .map(|n| {
            let memory = device.map(0x10_0000 * (n + 1), 0x1000, Perm::READ);
            memory.put(0, &[1; 64]);
            memory
        })
        .collect();
    describe(&device, 0x10_0000, 0x10_0000, 16, 64);
    for op in [1, 2] {
        assert_eq!(run(&device, op, 1000), (0, 64 * 1000), "operation {op}");
    }
    assert_eq!(run(&device, 3, 1000), (0, 1000));
    // Half of the windows are not there.
    describe(&device, 0x10_0000, 0x10_0000, 32, 64);
    for op in [1, 3] {
        let (errors, _) = run(&device, op, 1000);
        assert!((300..700).contains(&errors), "{errors} of 1000 failed");
    }
    assert_eq!(run(&device, 2, 1000).0, 0, "always the first");
    device.set_config16(4, 3); // no bus mastering
    for op in [1, 2, 3] {
        assert_eq!(run(&device, op, 100).0, 100, "operation {op}");
    }
}

struct Counting(AtomicU64);

impl DmaPeer for Counting {
    fn start_read(&self, _iova: u64, len: usize, completion: Completion<Vec<u8>>) {
        self.0.fetch_add(1, Ordering::Relaxed);
        completion.complete(Ok(vec![2; len]));
    }

    fn start_write(&self, _iova: u64, _data: Vec<u8>, completion: Completion<()>) {
        completion.complete(Ok(()));
    }
}

#[test]
fn reads_by_message() {
    let device = bench(true);
    let peer = Arc::new(Counting(AtomicU64::new(0)));
    device.map_peer(0x1000, 0x1000, peer.clone());
    describe(&device, 0x1000, 0, 1, 64);
    assert_eq!(run(&device, 4, 100), (0, 200));
    assert_eq!(peer.0.load(Ordering::Relaxed), 100);
}

#[test]
fn triggers_interrupts() {
    let device = bench(true);
    let interrupt = device.interrupt(MSIX, 0);
    assert_eq!(run(&device, 5, 1000), (0, 0));
    assert_eq!(interrupt.count(), 1000);
}

#[test]
fn an_unknown_operation_does_nothing() {
    let device = bench(true);
    device.write64(2, ITERS, u64::MAX);
    for op in [0, 6, u64::MAX] {
        device.write64(2, OP, op);
        assert_eq!(device.read64(2, RESULT_NS), 0);
    }
}

/// Answered before the client gives up, whatever it asked for; what was left out is counted.
#[test]
fn an_operation_without_end_ends() {
    let device = bench(true);
    describe(&device, 0, 0, 1, 64);
    assert!(run(&device, 1, u64::MAX).0 > u64::MAX / 2);
}
