//! What a driver sees of the device.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use vfiod_core::dma::{Completion, DmaPeer, Perm};
use vfiod_core::{DescriptorTable, Errno, Error, Result, StatePolicy};
use vfiod_pci::irq_index::{INTX, MSI};

use super::{Edu, EduOptions, factorial};
use vfiod_testing::{Driver, eventually};

vfiod_testing::conformance!(
    Edu::new(EduOptions::default()),
    // From guest memory at 0 to the buffer.
    dma = |device| {
        for (register, value) in [(0x80, 0), (0x88, 0x40000), (0x90, 4096), (0x98, 5)] {
            device.write64(0, register, value);
        }
    },
);

const LIVENESS: u64 = 0x04;
const FACTORIAL: u64 = 0x08;
const STATUS: u64 = 0x20;
const INTERRUPT_STATUS: u64 = 0x24;
const RAISE: u64 = 0x60;
const ACKNOWLEDGE: u64 = 0x64;
const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;
const BUFFER: u64 = 0x40000;
const RW: Perm = Perm::READ.union(Perm::WRITE);

fn edu() -> Driver {
    let device = Driver::new(Edu::new(EduOptions::default()));
    device.enable();
    device
}

fn start(device: &Driver, source: u64, destination: u64, count: u64, command: u32) {
    device.write64(0, SOURCE, source);
    device.write64(0, DESTINATION, destination);
    device.write64(0, COUNT, count);
    device.write32(0, COMMAND, command);
}

fn finish(device: &Driver) {
    eventually("the transfer ends", || device.read32(0, COMMAND) & 1 == 0);
}

fn dma(device: &Driver, source: u64, destination: u64, count: u64, command: u32) {
    start(device, source, destination, count, command);
    finish(device);
}

#[test]
fn identifies_itself_and_lives() {
    let device = edu();
    assert_eq!(device.config32(0), 0x11e8_1234);
    assert_eq!(device.read32(0, 0), 0x0100_00ed);
    for value in [0, 1, 0x1234_5678, u32::MAX] {
        device.write32(0, LIVENESS, value);
        assert_eq!(device.read32(0, LIVENESS), !value);
    }
}

#[test]
fn only_the_documented_widths() {
    let device = edu();
    device.write32(0, LIVENESS, 0);
    let liveness = device.read32(0, LIVENESS);
    for (offset, data) in [(LIVENESS, &[1u8; 8][..]), (LIVENESS, &[1; 2]), (LIVENESS + 1, &[1; 4])]
    {
        device.write(vfiod_core::RegionIndex(0), offset, data);
    }
    assert_eq!(device.read32(0, LIVENESS), liveness);
    assert_eq!(device.read64(0, 0), u64::MAX);
    assert_eq!(device.read8(0, 0), 0xff);
    assert_eq!(device.read::<2>(vfiod_core::RegionIndex(0), 0), [0xff; 2]);
    device.write64(0, SOURCE, 0x1_2345_6789);
    assert_eq!(device.read64(0, SOURCE), 0x1_2345_6789);
    assert_eq!(device.read32(0, SOURCE), 0x2345_6789);
    device.write32(0, SOURCE, 7);
    assert_eq!(device.read64(0, SOURCE), 7);
}

#[test]
fn computes_factorials_beside() {
    let device = edu();
    let interrupt = device.interrupt(INTX, 0);
    device.write32(0, FACTORIAL, 10);
    eventually("the factorial is there", || device.read32(0, STATUS) & 1 == 0);
    assert_eq!(device.read32(0, FACTORIAL), 3_628_800);
    assert_eq!(device.read32(0, INTERRUPT_STATUS), 0);
    device.write32(0, STATUS, u32::MAX);
    assert_eq!(device.read32(0, STATUS), 0x80, "COMPUTING cannot be written");
    device.write32(0, FACTORIAL, 5);
    assert_eq!(interrupt.wait(), 1);
    assert_eq!(device.read32(0, STATUS), 0x80);
    assert_eq!(device.read32(0, FACTORIAL), 120);
    assert_eq!(device.read32(0, INTERRUPT_STATUS), 1);
}

#[test]
fn the_pin_follows_the_causes() {
    let device = edu();
    let interrupt = device.interrupt(INTX, 0);
    device.write32(0, RAISE, 0x10);
    device.write32(0, RAISE, 0x02);
    assert_eq!(device.read32(0, INTERRUPT_STATUS), 0x12);
    assert_eq!(interrupt.count(), 1, "it masked itself");
    device.write32(0, ACKNOWLEDGE, 0x10);
    assert_eq!(device.read32(0, INTERRUPT_STATUS), 0x02);
    device.mask_pin(false);
    assert_eq!(interrupt.count(), 1, "a cause is left");
    assert_eq!(device.config16(6) & 8, 8, "interrupt status of configuration space");
    device.write32(0, ACKNOWLEDGE, 0x02);
    device.mask_pin(false);
    assert_eq!(interrupt.count(), 0);
    assert_eq!(device.config16(6) & 8, 0);
}

#[test]
fn every_raise_sends_a_message() {
    let device = edu();
    let interrupt = device.interrupt(MSI, 0);
    device.write32(0, RAISE, 1);
    device.write32(0, RAISE, 1);
    assert_eq!(interrupt.count(), 2);
    device.write32(0, ACKNOWLEDGE, 1);
    assert_eq!(interrupt.count(), 0);
}

#[test]
fn transfers_both_ways() {
    let device = edu();
    let memory = device.map(0x10_0000, 0x4000, RW);
    let interrupt = device.interrupt(MSI, 0);
    let text: Vec<u8> = (0..4096u32).map(|n| (n * 7 + n / 256) as u8).collect();
    memory.put(0x10, &text);
    dma(&device, 0x10_0010, BUFFER, 4096, 1);
    assert_eq!(device.read32(0, INTERRUPT_STATUS), 0, "none was asked for");
    dma(&device, BUFFER + 96, 0x10_2000, 4000, 1 | 2 | 4);
    assert_eq!(interrupt.wait(), 1);
    assert_eq!(device.read32(0, INTERRUPT_STATUS), 0x100);
    assert_eq!(device.read32(0, COMMAND), 2 | 4);
    assert_eq!(memory.get(0x2000, 4000), text[96..]);
    assert_eq!(memory.get(0x2000 + 4000, 96), [0; 96], "not a byte more");
}

#[test]
fn addresses_are_cut_to_the_mask() {
    let narrow = Driver::new(Edu::new(EduOptions { dma_mask: 0xffff }));
    narrow.enable();
    let memory = narrow.map(0, 0x1_0000, RW);
    memory.put(0x8000, b"low");
    dma(&narrow, 0xabc_8000, BUFFER, 3, 1);
    dma(&narrow, BUFFER, 0x1000, 3, 3);
    assert_eq!(memory.get(0x1000, 3), b"low");
}

/// Ended, with the interrupt that was asked for, and nothing moved.
#[test]
fn a_transfer_that_fails_ends() {
    let device = edu();
    let memory = device.map(0x1000, 0x1000, Perm::READ);
    let interrupt = device.interrupt(MSI, 0);
    memory.put(0, &[0x5a; 16]);
    dma(&device, 0x1000, BUFFER, 16, 1);
    for (source, destination, count, command) in [
        (BUFFER, 0x8000, 16, 7),         // not mapped
        (BUFFER, 0x1000, 16, 7),         // not writable
        (0x1ff8, BUFFER, 16, 5),         // over the window's end
        (0x1000, BUFFER + 4090, 16, 5),  // over the buffer's end
        (0x1000, BUFFER - 1, 16, 5),     // before it
        (0x1000, 0, 16, 5),              // far from it
        (0x1000, BUFFER, u64::MAX, 5),   // too much
        (0x1000, u64::MAX, u64::MAX, 5), // and past 2^64
    ] {
        dma(&device, source, destination, count, command);
        assert_eq!(interrupt.wait(), 1, "{count:#x} from {source:#x} to {destination:#x}");
        device.write32(0, ACKNOWLEDGE, u32::MAX);
    }
    device.set_config16(4, 3); // no bus mastering
    dma(&device, 0x1000, BUFFER + 16, 16, 5);
    assert_eq!(interrupt.wait(), 1);
    device.enable();
    let out = device.map(0x4000, 0x1000, RW);
    dma(&device, BUFFER, 0x4000, 32, 3);
    assert_eq!(out.get(0, 16), [0x5a; 16]);
    assert_eq!(out.get(16, 16), [0; 16], "nothing came while bus mastering was off");
    out.truncate();
    dma(&device, BUFFER, 0x4000, 32, 7);
    assert_eq!(interrupt.wait(), 1, "the client took its memory away");
}

/// A client that replies when the test says so.
struct Slow(Sender<Asked>);

/// What a client was asked for and has not answered.
enum Asked {
    Read(usize, Completion<Vec<u8>>),
    Write(Completion<()>),
}

impl Asked {
    fn answer(self, answer: Result<u8, Errno>) {
        let answer = answer.map_err(|errno| Error::new(errno, "the client says so"));
        match self {
            Self::Read(len, completion) => completion.complete(answer.map(|byte| vec![byte; len])),
            Self::Write(completion) => completion.complete(answer.map(drop)),
        }
    }
}

impl DmaPeer for Slow {
    fn start_read(&self, _iova: u64, len: usize, completion: Completion<Vec<u8>>) {
        // A test that has ended wants to know nothing more.
        let _ = self.0.send(Asked::Read(len, completion));
    }

    fn start_write(&self, _iova: u64, _data: Vec<u8>, completion: Completion<()>) {
        let _ = self.0.send(Asked::Write(completion));
    }
}

fn slow(device: &Driver, iova: u64) -> Receiver<Asked> {
    let (asked_here, asked) = channel();
    device.map_peer(iova, 0x1000, Arc::new(Slow(asked_here)));
    asked
}

#[test]
fn a_slow_client_holds_up_nobody() {
    let device = edu();
    let asked = slow(&device, 0x1000);
    let out = device.map(0x8000, 0x1000, RW);
    start(&device, 0x1000, BUFFER, 4, 1);
    let request = asked.recv().unwrap();
    assert_eq!(device.read32(0, COMMAND), 1);
    device.write32(0, LIVENESS, 1);
    assert_eq!(device.read32(0, LIVENESS), !1);
    device.write64(0, COUNT, 100);
    device.write32(0, COMMAND, 7);
    assert_eq!(device.read64(0, COUNT), 4, "locked while the transfer runs");
    assert_eq!(device.read32(0, COMMAND), 1);
    request.answer(Ok(0x77));
    finish(&device);
    dma(&device, BUFFER, 0x8000, 8, 3);
    assert_eq!(out.get(0, 8), [0x77, 0x77, 0x77, 0x77, 0, 0, 0, 0]);
}

#[test]
fn a_reset_forgets_the_transfer() {
    let device = edu();
    let asked = slow(&device, 0x1000);
    let interrupt = device.interrupt(MSI, 0);
    start(&device, 0x1000, BUFFER, 4, 5);
    let request = asked.recv().unwrap();
    device.reset();
    assert_eq!((device.read32(0, COMMAND), device.tasks()), (0, 0));
    request.answer(Ok(0x77));
    device.enable();
    let out = device.map(0x8000, 0x1000, RW);
    out.put(0, &[1; 4]);
    dma(&device, BUFFER, 0x8000, 4, 3);
    assert_eq!(out.get(0, 4), [0; 4], "what came for the old transfer is not there");
    assert_eq!(interrupt.count(), 0);
    assert_eq!(device.read32(0, INTERRUPT_STATUS), 0);
}

/// A guest resets the function while a client does not answer: the write returns at once.
#[test]
fn a_function_level_reset_forgets_the_transfer() {
    let device = edu();
    let asked = slow(&device, 0x1000);
    start(&device, 0x1000, BUFFER, 4, 5);
    let request = asked.recv().unwrap();
    let express = device.capability(0x10).expect("it is PCI Express");
    device.set_config16(express + 8, 1 << 15);
    eventually("the reset ends", || device.read32(0, COMMAND) == 0);
    assert_eq!(device.tasks(), 0);
    request.answer(Ok(0x77));
}

/// Where the state is kept, what runs is not: it could reach the next client's memory.
#[test]
fn a_close_ends_the_transfer() {
    let device = Driver::with_policy(Edu::new(EduOptions::default()), StatePolicy::Retain);
    device.enable();
    let asked = slow(&device, 0x1000);
    start(&device, 0x1000, BUFFER, 4, 5);
    let request = asked.recv().unwrap();
    request.answer(Err(Errno::PIPE));
    let device = device.reopen();
    device.enable();
    assert_eq!(device.read64(0, COUNT), 4, "the registers are kept");
    assert_eq!(device.read32(0, COMMAND) & 1, 0);
    let memory = device.map(0x1000, 0x1000, RW);
    memory.put(0, b"next");
    dma(&device, 0x1000, BUFFER, 4, 1);
    dma(&device, BUFFER, 0x1800, 4, 3);
    assert_eq!(memory.get(0x800, 4), b"next");
}

/// Again and again a transfer is started and its client goes at once: it must not write what the
/// next one has mapped. Where the state is kept, registers and bus mastering would let it.
#[test]
fn no_transfer_outlives_its_client() {
    let mut device = Driver::with_policy(Edu::new(EduOptions::default()), StatePolicy::Retain);
    for round in 0..300 {
        device.enable();
        let before = device.map(0x1000, 0x1000, RW);
        before.put(0, &[0xee; 64]);
        dma(&device, 0x1000, BUFFER, 64, 1);
        start(&device, BUFFER, 0x1000, 64, 3);
        device = device.reopen();
        let after = device.map(0x1000, 0x1000, RW);
        assert_eq!((after.get(0, 64), device.tasks()), (vec![0; 64], 0), "round {round}");
        device.unmap(0x1000, 0x1000).unwrap();
    }
}

/// Saved with a transfer under way whose client does not answer: restored, it starts again, and
/// the guest sees exactly one completion.
#[test]
fn a_transfer_under_way_is_saved_and_completes_once_after_the_restore() {
    let device = edu();
    let asked = slow(&device, 0x1000);
    let interrupt = device.interrupt(MSI, 0);
    start(&device, 0x1000, BUFFER, 4, 5);
    let request = asked.recv().unwrap();
    let (asked_after_restore, asked_of_other) = channel();
    let peer = Arc::new(Slow(asked_after_restore));
    let mut table = DescriptorTable::new().with_peer(peer);
    let saved = device.device().save(&mut table).expect("is saved");
    // The device goes on: it asks again, and completes once.
    let again = asked.recv().unwrap();
    request.answer(Ok(0x66));
    again.answer(Ok(0x77));
    assert_eq!(interrupt.wait(), 1);
    let edu = Edu::new(EduOptions::default());
    let other = Driver::restored(edu, &saved, None, &mut table).expect("restores");
    let message = other.interrupt(MSI, 0);
    other.settle();
    asked_of_other.recv().unwrap().answer(Ok(0x88));
    other.settle();
    assert_eq!(message.wait(), 1);
    assert_eq!((other.read32(0, COMMAND) & 1, other.read32(0, INTERRUPT_STATUS)), (0, 0x100));
}

#[test]
fn factorials_modulo_two_to_the_32() {
    assert_eq!([0, 1, 2, 5, 10, 12].map(factorial), [1, 1, 2, 120, 3_628_800, 479_001_600]);
    assert_eq!(factorial(13), 1_932_053_504);
    assert_ne!(factorial(33), 0);
    assert_eq!([34, 35, u32::MAX].map(factorial), [0, 0, 0]);
}
