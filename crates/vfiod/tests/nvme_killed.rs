//! The daemon is killed while its disk is written on several queues: what was flushed is there after a
//! restart, and no block is half of two. The page cache survives the daemon, so that this says nothing about
//! a power failure; crates/disk and crates/nvme have tests for that.

mod process;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use process::nvme::connect;
use process::random::Random;
use process::{Daemon, until, vfiod};
use rustix::process::Signal;
use vfiod_nvme_driver::{Controller, Data, Error, Namespace, Queue, Result};
use vfiod_nvme_driver::{Waiting, opcode};

/// How often it is killed; `VFIOD_KILLS` says otherwise.
const KILLS: u64 = 4;
const QUEUES: u64 = 4;
const ENTRIES: u32 = 8;
/// Blocks that a queue writes, and those of one command.
const BLOCKS: u64 = 64;
const CELL: u64 = 4;
const BLOCK: usize = 512;

/// What is known of a block: versions, of which a later one is larger.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// At least this one is there after a restart.
    durable: u64,
    /// The write of this one has completed.
    completed: u64,
    /// No later one was submitted.
    submitted: u64,
}

/// The bytes of a version of a block.
fn bytes(block: u64, version: u64) -> Vec<u8> {
    if version == 0 {
        return vec![0; BLOCK];
    }
    let words = (0..BLOCK as u64 / 8).map(|word| match word {
        0 => version,
        _ => version.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ block << 32 ^ word,
    });
    words.flat_map(u64::to_le_bytes).collect()
}

/// The version of a block that these bytes are.
fn version(block: u64, found: &[u8]) -> u64 {
    let version = u64::from_le_bytes(found[..8].try_into().unwrap());
    assert!(found == bytes(block, version), "block {block} is half of version {version:#x}");
    version
}

struct Shared {
    disk: Namespace,
    known: Mutex<Vec<Known>>,
    versions: AtomicU64,
    /// Commands that have completed.
    completed: AtomicU64,
}

/// Writes blocks of its own, several commands at once, and flushes, until the daemon has ended.
fn work(
    shared: &Shared,
    controller: &vfiod_nvme_driver::Memory,
    queue: &mut Queue,
    random: &mut Random,
) -> Result<()> {
    let first = u64::from(queue.id() - 1) * BLOCKS;
    let buffers: Vec<_> = (0..ENTRIES - 1)
        .map(|_| controller.allocate(CELL as usize * BLOCK))
        .collect::<Result<_>>()?;
    loop {
        let mut writes = Vec::new();
        let mut cell = random.below(BLOCKS / CELL);
        for buffer in &buffers {
            // Not one that is in flight.
            cell = (cell + 1 + random.below(2)) % (BLOCKS / CELL);
            let at = first + cell * CELL;
            let new = shared.versions.fetch_add(1, Ordering::Relaxed) + 1;
            for block in at..at + CELL {
                buffer.write((block - at) as usize * BLOCK, &bytes(block, new));
                shared.known.lock().unwrap()[block as usize].submitted = new;
            }
            let data = Data::of(buffer);
            let write = shared.disk.transfer(opcode::WRITE, at, &data)?;
            let durable = random.below(8) == 0;
            let write = if durable { write.durable() } else { write };
            writes.push((queue.submit(write, Some(data))?, at, new, durable));
            if random.below(4) == 0 {
                break;
            }
        }
        for (id, at, new, durable) in writes {
            let status = queue.wait_for(id)?.status;
            assert!(status.is_success(), "a write ended with {status}");
            let mut known = shared.known.lock().unwrap();
            for block in &mut known[at as usize..(at + CELL) as usize] {
                block.completed = new;
                if durable {
                    block.durable = new;
                }
            }
            shared.completed.fetch_add(1, Ordering::SeqCst);
        }
        if random.below(3) == 0 {
            // Whatever has completed on any queue.
            let before: Vec<u64> =
                shared.known.lock().unwrap().iter().map(|block| block.completed).collect();
            queue.flush(&shared.disk)?;
            let mut known = shared.known.lock().unwrap();
            for (block, completed) in known.iter_mut().zip(before) {
                block.durable = block.durable.max(completed);
            }
        }
    }
}

/// Reads all blocks: each is a version that it may be. From now on it is that.
fn verify(shared: &Shared, controller: &mut Controller) {
    let mut queue = controller.create_queue(ENTRIES, Waiting::Interrupts).unwrap();
    let buffer = controller.memory().allocate((QUEUES * BLOCKS) as usize * BLOCK).unwrap();
    queue.read(&shared.disk, 0, Data::of(&buffer)).unwrap();
    for (block, known) in (0..).zip(shared.known.lock().unwrap().iter_mut()) {
        let mut found = vec![0; BLOCK];
        buffer.read(block as usize * BLOCK, &mut found);
        let found = version(block, &found);
        let Known { durable, submitted, .. } = *known;
        assert!(
            (durable..=submitted).contains(&found),
            "block {block} is version {found}; {durable} was flushed, {submitted} was submitted"
        );
        *known = Known { durable: found, completed: found, submitted: found };
    }
    controller.delete_queue(queue).unwrap();
}

/// By what hosts know the disk: Identify Controller, and the descriptors of the namespace.
fn names(controller: &mut Controller) -> [Vec<u8>; 2] {
    [(1, 0), (3, 1)].map(|(structure, id)| controller.identify(structure, id).unwrap())
}

#[test]
fn what_was_flushed_survives_a_kill() {
    let kills = std::env::var("VFIOD_KILLS").ok();
    let kills = kills.map_or(KILLS, |kills| kills.parse().expect("VFIOD_KILLS is a number"));
    let directory = tempfile::tempdir().unwrap();
    let (socket, image) = (directory.path().join("disk.sock"), directory.path().join("disk.img"));
    std::fs::File::create(&image).unwrap().set_len(QUEUES * BLOCKS * BLOCK as u64).unwrap();
    let serve = || {
        let mut command = vfiod(["--log", "error", "serve", "--device", "nvme", "--socket-path"]);
        command.arg(&socket).arg("--option").arg(format!("file={}", image.display()));
        command.args(["--option", "torn_writes=true"]);
        Daemon::serving(command, &[&socket])
    };
    let mut random = Random(0x9d39_247e_3377_6d41);
    let mut daemon = serve();
    let mut controller = connect(&socket);
    let names = names(&mut controller);
    let shared = Arc::new(Shared {
        disk: controller.namespace(1).unwrap(),
        known: Mutex::new(vec![Known::default(); (QUEUES * BLOCKS) as usize]),
        versions: AtomicU64::new(0),
        completed: AtomicU64::new(0),
    });
    for round in 0..kills {
        let ends: Vec<_> = (0..QUEUES)
            .map(|n| {
                let waiting = if n % 2 == 0 { Waiting::Interrupts } else { Waiting::Polling };
                let mut queue = controller.create_queue(ENTRIES, waiting).unwrap();
                let (shared, memory) = (shared.clone(), controller.memory().clone());
                let mut random = Random(random.below(u64::MAX - 1) + 1);
                std::thread::spawn(move || work(&shared, &memory, &mut queue, &mut random))
            })
            .collect();
        let enough = shared.completed.load(Ordering::SeqCst) + 20 + random.below(300);
        until("writes", || {
            let ended = ends.iter().any(|end| end.is_finished());
            ended || shared.completed.load(Ordering::SeqCst) >= enough
        });
        let (status, said) = daemon.terminate(Signal::KILL);
        assert!(!status.success() && said.is_empty(), "{said}");
        for end in ends {
            let ended = end.join().unwrap().unwrap_err();
            assert!(matches!(ended, Error::Client(_)), "round {round}: {ended}");
        }
        daemon = serve();
        controller = connect(&socket);
        assert!(names == self::names(&mut controller), "round {round}: it is another disk");
        verify(&shared, &mut controller);
    }
    let known = shared.known.lock().unwrap();
    assert!(known.iter().any(|block| block.durable > 0), "nothing was flushed");
    drop(daemon);
}
