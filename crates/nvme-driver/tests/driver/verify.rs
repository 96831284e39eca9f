//! Every queue that a controller can have writes and reads at the same time, sizes and places at random, and
//! reads what it has written last.

use std::path::{Path, PathBuf};
use std::process::Command as Program;

use vfiod_nvme::NvmeOptions;
use vfiod_nvme_driver::{Buffer, Data, Memory, Namespace, Queue, Waiting, opcode};

use crate::rig::Rig;

const QUEUES: u64 = 64;
const ENTRIES: u32 = 8;
/// Blocks of each queue: no multiple of a page, so that two queues write parts of one.
const BLOCKS: u64 = 333;
/// The most blocks of one command.
const MOST: u64 = 96;
const BLOCK: usize = 512;
const SIZE: u64 = QUEUES * BLOCKS * BLOCK as u64;

/// How many rounds each queue plays; `VFIOD_VERIFY_ROUNDS` says otherwise.
fn rounds() -> u32 {
    let asked = std::env::var("VFIOD_VERIFY_ROUNDS").ok();
    asked.map_or(4, |rounds| rounds.parse().expect("VFIOD_VERIFY_ROUNDS is a number"))
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % limit
    }
}

/// The bytes of a block after write `version`; 0: nobody has written it.
fn bytes(block: u64, version: u32) -> Vec<u8> {
    let seed = (block + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(version) << 32;
    let word = |n: u64| if version == 0 { 0 } else { seed ^ n };
    (0..BLOCK as u64 / 8).flat_map(|n| word(n).to_le_bytes()).collect()
}

/// One queue and its blocks.
struct Worker {
    disk: Namespace,
    queue: Queue,
    random: Random,
    first: u64,
    versions: Vec<u32>,
    buffers: Vec<std::sync::Arc<Buffer>>,
}

impl Worker {
    fn new(disk: &Namespace, memory: &Memory, queue: Queue) -> Self {
        let number = u64::from(queue.id()) - 1;
        let len = MOST as usize * BLOCK + 4096;
        Self {
            disk: *disk,
            queue,
            random: Random((number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            first: number * BLOCKS,
            versions: vec![0; BLOCKS as usize],
            buffers: (1..ENTRIES).map(|_| memory.allocate(len).unwrap()).collect(),
        }
    }

    /// Commands at once, none of which touches the blocks of another; then what they have read is compared.
    fn round(&mut self, version: u32) {
        let mut commands = Vec::new();
        let mut at = self.random.below(8);
        for buffer in self.buffers.clone() {
            let most = if self.random.below(3) == 0 { MOST } else { 9 };
            let count = 1 + self.random.below(most);
            if at + count > BLOCKS {
                break;
            }
            let offset = 4 * self.random.below(1024) as usize;
            let data = Data::part(&buffer, offset..offset + count as usize * BLOCK);
            let writes = self.random.below(2) == 0;
            let mut command = if writes {
                for block in at..at + count {
                    self.versions[block as usize] = version;
                    let into = offset + (block - at) as usize * BLOCK;
                    buffer.write(into, &bytes(self.first + block, version));
                }
                self.disk.transfer(opcode::WRITE, self.first + at, &data).unwrap()
            } else {
                self.disk.transfer(opcode::READ, self.first + at, &data).unwrap()
            };
            if writes && self.random.below(8) == 0 {
                command = command.durable();
            }
            let id = self.queue.submit(command, Some(data)).unwrap();
            commands.push((id, writes, at, count, offset, buffer));
            at += count + self.random.below(16);
        }
        for (id, writes, at, count, offset, buffer) in commands {
            let status = self.queue.wait_for(id).unwrap().status;
            assert!(status.is_success(), "block {at} of queue {}: {status}", self.queue.id());
            if !writes {
                self.compare(&buffer, offset, at, count);
            }
        }
    }

    fn compare(&self, buffer: &Buffer, offset: usize, at: u64, count: u64) {
        let mut found = vec![0; BLOCK];
        for block in at..at + count {
            let (expected, number) = (self.versions[block as usize], self.first + block);
            buffer.read(offset + (block - at) as usize * BLOCK, &mut found);
            assert!(found == bytes(number, expected), "block {number} is not of write {expected}");
        }
    }

    /// Reads all blocks.
    fn look(&mut self) {
        let buffer = self.buffers[0].clone();
        for at in (0..BLOCKS).step_by(MOST as usize) {
            let count = MOST.min(BLOCKS - at);
            let data = Data::part(&buffer, 0..count as usize * BLOCK);
            self.queue.read(&self.disk, self.first + at, data).unwrap();
            self.compare(&buffer, 0, at, count);
        }
    }
}

/// All queues at the same time; then a client that connects anew reads everything.
fn verify(options: impl FnOnce(&Path) -> NvmeOptions) {
    let rig = Rig::with(options);
    let mut controller = rig.connect();
    assert_eq!(u64::from(controller.info().queues), QUEUES);
    let disk = controller.namespace(1).unwrap();
    let workers: Vec<_> = (0..QUEUES)
        .map(|n| {
            let waiting = if n % 4 == 0 { Waiting::Polling } else { Waiting::Interrupts };
            let queue = controller.create_queue(ENTRIES, waiting).unwrap();
            let mut worker = Worker::new(&disk, controller.memory(), queue);
            std::thread::spawn(move || {
                for version in 1..=rounds() {
                    worker.round(version);
                }
                worker.look();
                worker.versions
            })
        })
        .collect();
    let versions: Vec<_> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
    drop(controller);
    let mut controller = rig.connect_again();
    let disk = controller.namespace(1).unwrap();
    for versions in versions {
        let queue = controller.create_queue(ENTRIES, Waiting::Interrupts).unwrap();
        let mut worker = Worker::new(&disk, controller.memory(), queue);
        worker.versions = versions;
        worker.look();
    }
}

fn image(directory: &Path) -> PathBuf {
    let file = directory.join("disk.img");
    std::fs::File::create(&file).unwrap().set_len(SIZE).unwrap();
    file
}

#[test]
fn sixty_four_queues_read_what_they_wrote_in_memory() {
    verify(|_| NvmeOptions { memory: Some(SIZE), ..NvmeOptions::default() });
}

#[test]
fn sixty_four_queues_read_what_they_wrote_in_an_image() {
    verify(|directory| NvmeOptions { file: Some(image(directory)), ..NvmeOptions::default() });
}

#[test]
fn sixty_four_queues_read_what_they_wrote_in_a_buffered_image() {
    verify(|directory| {
        let file = Some(image(directory));
        let (direct, torn_writes) = (Some(false), true);
        NvmeOptions { file, direct, torn_writes, ..NvmeOptions::default() }
    });
}

/// A loop device, until it is dropped.
struct Loop(PathBuf);

impl Loop {
    /// `None`: none can be made here.
    fn of(file: &Path, sector: usize) -> Option<Self> {
        let made = Program::new("losetup")
            .args(["--find", "--show", "--sector-size", &sector.to_string()])
            .arg(file)
            .output()
            .ok()?;
        let name = String::from_utf8(made.stdout).ok()?;
        made.status.success().then(|| Self(name.trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Program::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

/// A block device with sectors of this size.
fn verify_block_device(sector: usize) {
    let directory = tempfile::tempdir().unwrap();
    // Whole sectors.
    let file = image(directory.path());
    std::fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(SIZE.next_multiple_of(4096))
        .unwrap();
    let Some(device) = Loop::of(&file, sector) else {
        eprintln!("SKIPPED: no loop device can be made here (root can, with losetup)");
        return;
    };
    let metadata = directory.path().join("metadata");
    verify(|_| NvmeOptions {
        file: Some(device.0.clone()),
        metadata: Some(metadata),
        torn_writes: true,
        ..NvmeOptions::default()
    });
}

#[test]
fn sixty_four_queues_read_what_they_wrote_on_a_block_device() {
    verify_block_device(512);
}

/// Blocks of 512 bytes on sectors of 4,096: queues write parts of one sector.
#[test]
fn sixty_four_queues_read_what_they_wrote_on_a_block_device_of_large_sectors() {
    verify_block_device(4096);
}
