//! Format NVM.

use std::path::Path;

use vfiod_config::ConfiguredModel;
use vfiod_pci::ModelRef;
use vfiod_testing::eventually;

use super::rig::{BASE, Command, DATA, Held, Host, nvme, pattern, with};
use crate::controller::Nvme;
use crate::options::NvmeOptions;

const WRITE: u8 = 1;
const READ: u8 = 2;

fn format(index: u32) -> Command {
    Command::new(0x80).namespace(1).set(10, index)
}

fn options(path: &Path) -> NvmeOptions {
    // The file's disk may write less than 4 KiB whole.
    NvmeOptions { file: Some(path.to_owned()), torn_writes: true, ..NvmeOptions::default() }
}

fn open(path: &Path) -> Host {
    let mut host = Host::new(Nvme::configured(options(path)).unwrap());
    host.create_pair(1, 64, 1);
    host
}

/// The size of a block, and how many there are.
fn blocks(host: &mut Host) -> (u64, u64) {
    let namespace = host.identify(0, 1).unwrap();
    let blocks = u64::from_le_bytes(namespace[..8].try_into().unwrap());
    (1 << namespace[130 + 4 * usize::from(namespace[26] & 0xf)], blocks)
}

/// Formatting erases everything and changes the block size, which outlives a restart.
#[test]
fn format_erases_and_its_block_size_is_kept() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("disk.img");
    std::fs::write(&path, pattern(1, 1 << 20)).unwrap();
    let mut host = open(&path);
    assert_eq!(blocks(&mut host), (512, 2048));
    assert_eq!(host.admin(format(1)), Ok(0));
    assert_eq!(blocks(&mut host), (4096, 256));
    assert!(std::fs::read(&path).unwrap() == vec![0; 1 << 20]);
    host.memory.put(DATA - BASE, &pattern(2, 4096));
    assert_eq!(host.perform(1, Command::io(WRITE, 255, 1, (DATA, 0))), Ok(0));
    assert_eq!(host.perform(1, Command::io(READ, 256, 1, (DATA, 0))), Err(0x80));
    assert_eq!(host.perform(1, Command::new(0).namespace(1)), Ok(0));
    drop(host);
    let mut host = open(&path);
    assert_eq!(blocks(&mut host), (4096, 256));
    host.memory.put(DATA - BASE, &[0; 4096]);
    assert_eq!(host.perform(1, Command::io(READ, 255, 1, (DATA, 0))), Ok(0));
    assert_eq!(host.memory.get(DATA - BASE, 4096), pattern(2, 4096));
    drop(host);
    let other = NvmeOptions { block_size: Some(512), ..options(&path) };
    let refused = super::options::refusal(other);
    assert!(refused.contains("blocks of 4096 bytes, not 512"), "{refused}");
}

#[test]
fn what_cannot_be_formatted_so_is_refused_and_stays() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("disk.img");
    // No multiple of 4,096.
    std::fs::write(&path, pattern(1, 9 * 512)).unwrap();
    let mut host = open(&path);
    for (what, command, expected) in [
        ("a size that the disk cannot have", format(1), 0x10a),
        ("no format", format(2), 0x10a),
        ("no format", format(15), 0x10a),
        ("an upper index", format(1 << 12), 0x10a),
        ("protection information", format(1 << 5), 0x10a),
        ("a cryptographic erase", format(2 << 9), 0x02),
        ("a reserved erase", format(7 << 9), 0x02),
        ("no namespace", format(0).namespace(0), 0x0b),
        ("an inactive one", format(0).namespace(2), 0x02),
        ("one past NN", format(0).namespace(17), 0x0b),
    ] {
        assert_eq!(host.admin(command), Err(expected), "{what}");
    }
    assert!(std::fs::read(&path).unwrap() == pattern(1, 9 * 512));
    assert_eq!(host.identify(0, 1).unwrap()[134], 0, "the format is not there");
    // User data erase, of all namespaces.
    assert_eq!(host.admin(format(1 << 9).namespace(u32::MAX)), Ok(0));
    assert!(std::fs::read(&path).unwrap() == vec![0; 9 * 512]);
    drop(host);
    let read_only = NvmeOptions { readonly: true, torn_writes: false, ..options(&path) };
    let mut host = Host::new(Nvme::configured(read_only).unwrap());
    assert_eq!(host.admin(format(0)), Err(0x20));
}

/// Commands that were begun end first, those that come meanwhile with Format In Progress.
#[test]
fn commands_amid_a_format_end_with_format_in_progress() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    host.create_pair(1, 64, 1);
    disk.hold(true);
    let write = host.submit(1, Command::io(WRITE, 3, 1, (DATA, 0)));
    eventually("a write that is held", || disk.waiting() == 1);
    let id = host.submit(0, format(0));
    // More than MDTS: refused, one way or another.
    let refused = Command::io(READ, 0, 4000, (DATA, 0));
    let mut seen = 0x02;
    while seen == 0x02 {
        seen = host.perform(1, refused).unwrap_err();
    }
    assert_eq!(seen, 0x84);
    for opcode in [0, WRITE, READ, 5, 8, 9, 12, 0x19] {
        let command = Command::io(opcode, 0, 1, (DATA, 0));
        assert_eq!(host.perform(1, command), Err(0x84), "{opcode:#x}");
    }
    assert_eq!(disk.waiting(), 1, "nothing is erased before the write has ended");
    assert!(host.peek(0).is_none());
    disk.hold(false);
    disk.release();
    assert_eq!((host.wait(1).id, host.wait(0).id), (write, id));
    assert_eq!(host.perform(1, Command::io(READ, 3, 1, (DATA, 0))), Ok(0));
    assert_eq!(host.memory.get(DATA - BASE, 512), [0; 512], "what was written before");
}

/// A controller that is disabled while a format waits is disabled, and the namespace can be used.
#[test]
fn reset_ends_a_format_that_waits() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    host.create_pair(1, 64, 1);
    disk.hold(true);
    host.submit(1, Command::io(READ, 3, 1, (DATA, 0)));
    eventually("a read that is held", || disk.waiting() == 1);
    host.submit(0, format(0));
    host.device.write32(0, 0x14, super::rig::ENABLE & !1);
    disk.hold(false);
    disk.release();
    host.await_status(vfiod_nvme_spec::registers::READY, 0);
    host.enable();
    host.create_pair(1, 64, 1);
    assert_eq!(host.perform(1, Command::io(READ, 3, 1, (DATA, 0))), Ok(0));
}

/// Nothing of a namespace is done while it is formatted, on disks that wait for nothing either.
#[test]
fn command_of_memory_during_a_format_is_refused() {
    let mut host = Host::new(nvme());
    host.create_pair(1, 16, 1);
    let device = ModelRef::<Nvme>::of(host.device.device()).unwrap();
    let namespace = device.step(|nvme, _| nvme.common.namespaces.get(1)).unwrap().unwrap();
    let formatting = namespace.begin_format().unwrap();
    let read = || Command::io(READ, 0, 1, (DATA, 0));
    assert_eq!(host.perform(1, read()), Err(0x84));
    drop(formatting);
    assert_eq!(host.perform(1, read()), Ok(0));
}
