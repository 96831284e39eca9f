//! What broke somebody's VM with another controller, over a socket. Each test names the report; more of them
//! are beside the controller.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use rustix::event::EventfdFlags;
use rustix::fs::{FallocateFlags, SeekFrom};
use vfiod_client::{Client, IrqAction, IrqData};
use vfiod_disk::test::TestDisk;
use vfiod_nvme::{Nvme, NvmeOptions};
use vfiod_nvme_driver::{
    Buffer, Command, Controller, Data, Error, Namespace, Queue, Reset, Waiting, opcode,
};

use crate::rig::{BLOCKS, PATIENCE, Rig, content, options, pattern, until};

const MSIX: u32 = 2;
/// Queue pairs, and vectors: one of each, and one for the admin queues.
const PAIRS: usize = 64;
const VECTORS: usize = PAIRS + 1;
/// Where the driver's memory begins.
const BASE: u64 = 1 << 32;

/// The status of a command that was refused.
fn refused<T: std::fmt::Debug>(result: Result<T, Error>) -> u16 {
    result.expect_err("it is refused").status().expect("by a status").code()
}

/// spdk#2576: Windows does not start with a controller of 512 vectors. There are 65, and any number of them
/// that a host sets up, from 2 on, is enough for as many queues.
#[test]
fn two_to_65_vectors_are_usable_and_no_more_are_offered() {
    let rig = Rig::new();
    let mut client = Client::connect(&rig.socket).unwrap();
    assert_eq!(client.irq_info(MSIX).unwrap().count, VECTORS as u32);
    let events: Vec<OwnedFd> =
        (0..=VECTORS).map(|_| rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap()).collect();
    let fds: Vec<_> = events.iter().map(AsFd::as_fd).collect();
    let mut set = |first: usize, count: usize| {
        let data = IrqData::EventFds(&fds[..count]);
        client.set_irqs(MSIX, first as u32, count as u32, IrqAction::Trigger, data)
    };
    for count in [2, 16, VECTORS] {
        set(0, count).unwrap();
    }
    assert!(set(0, VECTORS + 1).is_err() && set(VECTORS, 1).is_err());
    client.close(PATIENCE);
    for vectors in [2, 3, VECTORS] {
        let mut controller = rig.connect_again();
        let disk = controller.namespace(1).unwrap();
        let buffer = controller.memory().allocate(512).unwrap();
        let mut queues: Vec<Queue> = (1..vectors)
            .map(|_| controller.create_queue(4, Waiting::Interrupts).unwrap())
            .collect();
        for _ in 0..3 {
            for queue in &mut queues {
                queue.read(&disk, 0, Data::of(&buffer)).unwrap();
            }
        }
        controller.close().unwrap();
    }
}

fn get(feature: u32, select: u32) -> Command {
    // Error Recovery is a feature of a namespace, the others are the controller's.
    let namespace = u32::from(feature == 5);
    Command::new(opcode::GET_FEATURES).namespace(namespace).dword(10, feature | select << 8)
}

fn set(feature: u32, value: u32) -> Command {
    Command::new(opcode::SET_FEATURES).dword(10, feature).dword(11, value)
}

/// Get Log Page: 512 bytes of it.
fn log(controller: &mut Controller, page: u32) -> Result<Vec<u8>, Error> {
    let buffer = controller.memory().allocate(512).unwrap();
    let command = Command::new(opcode::GET_LOG_PAGE).namespace(u32::MAX);
    controller.admin(command.dword(10, page | 127 << 16), Some(Data::of(&buffer)))?;
    Ok(content(&buffer))
}

/// The order of Windows' driver, as propolis#1199, openvmm#3886, #3673, spdk#2008, #2009 and #2067 tell it:
/// Identify, and the address of the admin queue is read back at once; requests for events, which stay
/// outstanding; every mandatory feature and log page, and one of a vendor's; queues; a shutdown that deletes
/// them first. No Windows runs in CI.
#[test]
fn order_of_commands_of_windows_driver() {
    let rig = Rig::new();
    let mut controller = rig.connect();
    for boot in 0..3 {
        let queue_address = controller.register(0x28).unwrap();
        let identified = controller.identify(1, 0).unwrap();
        assert_eq!(controller.register(0x28).unwrap(), queue_address, "ASQ reads as 0");
        assert_ne!(queue_address, 0);
        // A driver that is told that there is no such command asks again and again.
        let events: Vec<u16> = (0..4)
            .map(|_| {
                let command = Command::new(opcode::ASYNCHRONOUS_EVENT_REQUEST);
                controller.begin_admin(command, None).unwrap()
            })
            .collect();
        // The write cache is a feature of those that have one.
        let cache = (identified[525] & 1 != 0).then_some(6);
        for feature in [1, 2, 4, 5, 7, 8, 9, 0x0a, 0x0b].into_iter().chain(cache) {
            for select in 0..4 {
                controller.admin(get(feature, select), None).expect("a mandatory feature");
            }
        }
        let offered = identified[92..96].try_into().map(u32::from_le_bytes).unwrap();
        controller.admin(set(0x0b, offered & 0x1ff), None).unwrap();
        controller.admin(set(7, 0x000f_000f), None).unwrap();
        for page in [0, 1, 2, 3, 5] {
            log(&mut controller, page).expect("a mandatory log page");
        }
        assert_eq!(refused(log(&mut controller, 0xc1)), 0x109, "a vendor's log page");
        let list = controller.identify(2, 0).unwrap();
        assert_eq!(list[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
        assert!(list[4..].iter().all(|byte| *byte == 0));
        for cns in [0, 3, 6, 8] {
            controller.identify(cns, 1).expect("a mandatory structure");
        }
        assert!(controller.identify(0, 2).unwrap().iter().all(|byte| *byte == 0), "inactive");
        let disk = controller.namespace(1).unwrap();
        let mut queues: Vec<Queue> =
            (0..4).map(|_| controller.create_queue(64, Waiting::Interrupts).unwrap()).collect();
        let buffer = controller.memory().allocate(16 << 10).unwrap();
        for (n, queue) in (0..).zip(&mut queues) {
            buffer.write(0, &pattern(boot * 10 + n, 16 << 10));
            queue.write(&disk, n * 32, Data::of(&buffer)).unwrap();
            queue.flush(&disk).unwrap();
            buffer.write(0, &vec![0; 16 << 10]);
            queue.read(&disk, n * 32, Data::of(&buffer)).unwrap();
            assert!(content(&buffer) == pattern(boot * 10 + n, 16 << 10));
        }
        // Still outstanding: an Abort finds each.
        for id in events {
            let abort = Command::new(opcode::ABORT).dword(10, u32::from(id) << 16);
            assert_eq!(controller.admin(abort, None).unwrap(), 0, "event request {id}");
            assert_eq!(controller.finish_admin(id).unwrap().status.code(), 0x07);
        }
        queues.into_iter().for_each(|queue| controller.delete_queue(queue).unwrap());
        controller.reset(Reset::Shutdown).unwrap();
    }
}

/// A read of a block whose data pointer is these two addresses.
fn pointing(block: u64, blocks: u32, (first, second): (u64, u64)) -> Command {
    let part = |value: u64, n: u32| (value >> (32 * n)) as u32;
    Command::new(opcode::READ)
        .namespace(1)
        .blocks(block, blocks)
        .dword(6, part(first, 0))
        .dword(7, part(first, 1))
        .dword(8, part(second, 0))
        .dword(9, part(second, 1))
}

/// The same, by an SGL descriptor.
fn listed(at: u64, len: u32, kind: u64) -> Command {
    let second = u64::from(len) | kind << 56;
    pointing(0, 1, (at, second)).dword(0, u32::from(opcode::READ) | 1 << 14)
}

/// What a guest ended or hung SPDK's target with, seen here: lists that lead to themselves, segments of 0 bytes,
/// addresses near 2^64, more data than MDTS says. Each is refused, and others on the same queue go on. It failed
/// chained PRP lists, which are right.
#[test]
fn data_pointers_that_ended_another_controller_are_refused() {
    const SEGMENT: u64 = 0x20;
    const LAST: u64 = 0x30;
    let rig = Rig::new();
    let mut controller = rig.connect();
    let disk = controller.namespace(1).unwrap();
    let mut queue = controller.create_queue(16, Waiting::Interrupts).unwrap();
    let memory = controller.memory().clone();
    let (list, good) = (memory.allocate(8192).unwrap(), memory.allocate(512).unwrap());
    let at = list.address();
    let descriptor = |to: u64, len: u32, kind: u8| {
        [&to.to_le_bytes()[..], &len.to_le_bytes(), &[0, 0, 0, kind]].concat()
    };
    list.write(0, &descriptor(at, 16, SEGMENT as u8));
    list.write(16, &descriptor(at + 16, 0, LAST as u8));
    // A list of PRPs that leads to itself.
    list.write(8184, &(at + 8184).to_le_bytes());
    for (what, command, status) in [
        ("a segment that leads to itself", listed(at, 16, SEGMENT), 0x0e),
        ("a segment of 0 bytes", listed(at, 0, SEGMENT), 0x0d),
        ("one that leads to one of 0 bytes", listed(at + 16, 16, SEGMENT), 0x0d),
        ("a segment near 2^64", listed(u64::MAX - 7, 16, LAST), 0x04),
        ("data near 2^64", listed(u64::MAX - 511, 512, 0), 0x04),
        ("a PRP near 2^64", pointing(0, 1, (u64::MAX - 3, 0)), 0x04),
        ("a PRP of the last page", pointing(0, 16, (at, u64::MAX - 4095)), 0x04),
        ("a list near 2^64", pointing(0, 24, (at, u64::MAX - 7)), 0x04),
        ("more than MDTS", pointing(0, 2049, (at, at)), 0x02),
        ("a list that leads to itself", pointing(0, 2048, (at, at + 8184)), 0x13),
    ] {
        for _ in 0..3 {
            let bad = queue.submit(command, None).unwrap();
            let read = disk.transfer(opcode::READ, 3, &Data::of(&good)).unwrap();
            let read = queue.submit(read, Some(Data::of(&good))).unwrap();
            assert_eq!(queue.wait_for(bad).unwrap().status.code(), status, "{what}");
            assert!(queue.wait_for(read).unwrap().status.is_success(), "after {what}");
        }
    }
    // Shadow doorbells near 2^64.
    for (doorbells, events) in [(u64::MAX - 4095, at), (at, u64::MAX - 4095)] {
        let config = pointing(0, 1, (doorbells, events));
        let config = (6..10).fold(Command::new(0x7c), |all, n| all.dword(n, config.get(n)));
        assert_eq!(refused(controller.admin(config, None)), 0x04);
    }
    queue.read(&disk, 0, Data::of(&good)).unwrap();
    // A chained list: 1 MiB, whose first list has room for one entry of data.
    let data = memory.allocate(1 << 20).unwrap();
    data.write(0, &pattern(5, 1 << 20));
    let pages: Vec<u64> = (1..256).map(|n| data.address() + n * 4096).collect();
    list.write(4080, &pages[0].to_le_bytes());
    list.write(4088, &(at + 4096).to_le_bytes());
    let rest: Vec<u8> = pages[1..].iter().flat_map(|page| page.to_le_bytes()).collect();
    list.write(4096, &rest);
    let chained = pointing(16, 2048, (data.address(), at + 4080));
    queue.perform(chained.dword(0, opcode::WRITE.into()), None).unwrap();
    data.write(0, &vec![0; 1 << 20]);
    queue.perform(chained, None).unwrap();
    assert!(content(&data) == pattern(5, 1 << 20));
}

/// A client that left SPDK's target with shadow doorbells on and commands under way hung it. Here the next one
/// has a controller without them, and nobody reads or writes the pages of the last one.
#[test]
fn client_that_leaves_with_shadow_doorbells_harms_nobody() {
    let disk = TestDisk::new(BLOCKS as usize * 512);
    let rig = Rig::of(Nvme::with_backend(&NvmeOptions::default(), disk.clone()).unwrap());
    for round in 0..5 {
        let mut controller = rig.connect_again();
        let namespace = controller.namespace(1).unwrap();
        let pages = controller.memory().allocate(8192).unwrap();
        pages.write(0, &[0; 8192]);
        let mut queue = controller.create_queue(32, Waiting::Polling).unwrap();
        let config = pointing(0, 1, (pages.address(), pages.address() + 4096));
        let config = (6..10).fold(Command::new(0x7c), |all, n| all.dword(n, config.get(n)));
        controller.admin(config, None).unwrap();
        let buffer = controller.memory().allocate(512).unwrap();
        for _ in 0..20 {
            // By the register alone, as the admin queue.
            queue.write(&namespace, round, Data::of(&buffer)).unwrap();
        }
        disk.hold(true);
        for block in 0..8 {
            let read = namespace.transfer(opcode::READ, block, &Data::of(&buffer)).unwrap();
            queue.submit(read, Some(Data::of(&buffer))).unwrap();
        }
        queue.ring().unwrap();
        until("all are held", || disk.held().len() == 8);
        // The driver's own memory, after the connection has ended.
        drop((queue, controller));
        pages.write(0, &[0x55; 8192]);
        disk.finish_all();
        let mut next = rig.connect_again();
        let mut queue = next.create_queue(32, Waiting::Interrupts).unwrap();
        let fresh = next.memory().allocate(512).unwrap();
        for block in 0..40 {
            queue.read(&namespace, block, Data::of(&fresh)).unwrap();
        }
        assert_eq!(content(&pages), [0x55; 8192], "round {round}");
    }
}

/// Images, buffered and, where that is possible, direct.
fn images() -> Vec<Option<bool>> {
    vec![Some(false), None]
}

fn image(direct: Option<bool>, bytes: u64) -> Rig {
    Rig::with_in(env!("CARGO_TARGET_TMPDIR"), |place| {
        let path = place.join("disk.img");
        File::create(&path).unwrap().set_len(bytes).unwrap();
        NvmeOptions { file: Some(path), direct, ..NvmeOptions::default() }
    })
}

/// QEMU's model, seen here: a read beside a write of one block gave half of each.
#[test]
fn read_beside_a_write_of_a_block_has_all_of_one() {
    for direct in images() {
        let rig = image(direct, 1 << 20);
        let mut controller = rig.connect();
        let disk = controller.namespace(1).unwrap();
        let mut writer = controller.create_queue(16, Waiting::Polling).unwrap();
        let mut reader = controller.create_queue(16, Waiting::Polling).unwrap();
        let memory = controller.memory().clone();
        std::thread::scope(|scope| {
            let written = scope.spawn(move || {
                let buffer = memory.allocate(512).unwrap();
                for round in 0..500_u32 {
                    buffer.write(0, &[round as u8; 512]);
                    writer.write(&disk, 7, Data::of(&buffer)).unwrap();
                }
            });
            let buffer = controller.memory().allocate(512).unwrap();
            while !written.is_finished() {
                reader.read(&disk, 7, Data::of(&buffer)).unwrap();
                let bytes = content(&buffer);
                assert!(bytes.iter().all(|byte| *byte == bytes[0]), "half of each");
            }
        });
    }
}

/// cloud-hypervisor#7720, #8051: neighbouring writes that a page of the host has several of, at depth 32, on all
/// queues at once: none overwrites another one.
#[test]
fn neighbouring_blocks_written_on_all_queues_all_have_their_data() {
    const QUEUES: u64 = 16;
    const DEPTH: u64 = 32;
    for direct in images() {
        let rig = image(direct, QUEUES * DEPTH * 512);
        let mut controller = rig.connect();
        let disk = controller.namespace(1).unwrap();
        let mut queues: Vec<Queue> = (0..QUEUES)
            .map(|_| controller.create_queue(DEPTH as u32 + 1, Waiting::Polling).unwrap())
            .collect();
        let memory = controller.memory();
        let buffers: Vec<Arc<Buffer>> =
            (0..QUEUES * DEPTH).map(|_| memory.allocate(512).unwrap()).collect();
        for round in 0..4_u64 {
            for (queue, number) in queues.iter_mut().zip(0..) {
                for n in 0..DEPTH {
                    // Neighbours are on different queues.
                    let block = n * QUEUES + number;
                    let buffer = &buffers[block as usize];
                    buffer.write(0, &pattern(round * 1000 + block, 512));
                    let write = disk.transfer(opcode::WRITE, block, &Data::of(buffer)).unwrap();
                    queue.submit(write, Some(Data::of(buffer))).unwrap();
                }
            }
            queues.iter_mut().for_each(|queue| queue.ring().unwrap());
            for queue in &mut queues {
                for _ in 0..DEPTH {
                    assert!(queue.wait().unwrap().status.is_success());
                }
            }
            let whole = memory.allocate((QUEUES * DEPTH * 512) as usize).unwrap();
            queues[0].read(&disk, 0, Data::of(&whole)).unwrap();
            for (block, bytes) in (0..).zip(content(&whole).chunks_exact(512)) {
                assert!(
                    bytes == pattern(round * 1000 + block, 512),
                    "round {round}, block {block}"
                );
            }
        }
    }
}

/// The file of the driver's memory.
fn memory_file(controller: &Controller) -> File {
    // Several tests have one: this one has a mark of its own.
    let mark = controller.memory().allocate(4096).unwrap();
    let number = std::process::id().to_le_bytes().repeat(8);
    let stamp: Vec<u8> = format!("{:?}", std::thread::current().id()).into_bytes();
    let stamp = [number, stamp].concat();
    mark.write(0, &stamp);
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let name = std::fs::read_link(entry.path()).unwrap_or_default();
        if !name.to_string_lossy().contains("memfd:nvme-driver") {
            continue;
        }
        let Ok(file) = File::options().read(true).write(true).open(entry.path()) else { continue };
        let mut bytes = vec![0; stamp.len()];
        let read =
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, mark.address() - BASE);
        if read.is_ok() && bytes == stamp {
            return file;
        }
    }
    panic!("the memory has no file");
}

fn punch(file: &File, at: u64, len: u64) {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, mode, at, len).unwrap();
}

/// A VMM takes pages of its guest away, and the guest fills them again: a read goes to the new page.
#[test]
fn read_goes_to_the_page_that_a_guest_has_now() {
    for direct in images() {
        let rig = image(direct, 1 << 20);
        let mut controller = rig.connect();
        let (memory, disk) = (memory_file(&controller), controller.namespace(1).unwrap());
        let mut queue = controller.create_queue(16, Waiting::Polling).unwrap();
        let buffer = controller.memory().allocate(64 << 10).unwrap();
        let at = buffer.address() - BASE;
        for round in 0..20 {
            buffer.write(0, &pattern(round, 64 << 10));
            queue.write(&disk, 0, Data::of(&buffer)).unwrap();
            punch(&memory, at, 64 << 10);
            if round % 2 == 0 {
                buffer.write(0, &[0xee; 64 << 10]);
            }
            queue.read(&disk, 0, Data::of(&buffer)).unwrap();
            assert!(content(&buffer) == pattern(round, 64 << 10), "round {round}");
            // And what is written comes from the new page.
            punch(&memory, at, 64 << 10);
            buffer.write(512, &[round as u8; 512]);
            queue.write(&disk, 0, Data::of(&buffer)).unwrap();
            buffer.write(0, &[0xee; 64 << 10]);
            queue.read(&disk, 0, Data::of(&buffer)).unwrap();
            let expected = [[0; 512], [round as u8; 512]].concat();
            assert!(content(&buffer)[..1024] == expected, "round {round}");
        }
    }
}

/// Memory that a guest never touched is not filled by writing it to a disk. `VFIOD_UNTOUCHED_MIB` says how much.
#[test]
fn untouched_memory_that_is_written_to_a_disk_stays_untouched() {
    let mib = std::env::var("VFIOD_UNTOUCHED_MIB").ok().and_then(|mib| mib.parse().ok());
    let mib: u64 = mib.unwrap_or(32);
    for direct in images() {
        let rig = image(direct, mib << 20);
        let mut options = options();
        options.memory = (mib + 16) << 20;
        let mut controller = Controller::connect(&rig.socket, &options).unwrap();
        let memory = memory_file(&controller);
        let disk: Namespace = controller.namespace(1).unwrap();
        let mut queue = controller.create_queue(64, Waiting::Polling).unwrap();
        let buffer = controller.memory().allocate((mib << 20) as usize).unwrap();
        let before = memory.metadata().unwrap().blocks() * 512;
        assert!(before < 8 << 20, "{before} bytes are there");
        for n in 0..mib {
            let at = (n << 20) as usize;
            queue.write(&disk, n * 2048, Data::part(&buffer, at..at + (1 << 20))).unwrap();
        }
        queue.flush(&disk).unwrap();
        // A list of PRPs for each command that was under way.
        let filled = memory.metadata().unwrap().blocks() * 512 - before;
        if filled >= mib << 20 {
            eprintln!("SKIPPED: userfaultfd is forbidden here, so reads fill holes");
            return;
        }
        assert!(filled <= 64 * 4096, "{filled} bytes were filled");
    }
}

/// How many bytes of a file are in none of its holes.
fn data_in(path: &std::path::Path) -> u64 {
    let file = File::open(path).unwrap();
    let (mut at, mut bytes) = (0, 0);
    // `ENXIO`: there is no more data.
    while let Ok(data) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
        at = rustix::fs::seek(&file, SeekFrom::Hole(data)).unwrap();
        bytes += at - data;
    }
    bytes
}

/// Space is given back in the units that Identify names, and counts as free; deallocated blocks read as zeroes,
/// and no block beside them.
#[test]
fn space_is_freed_in_the_units_that_identify_names() {
    const MIB: usize = 1 << 20;
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = place.path().join("disk.img");
    File::create(&path).unwrap().set_len(4 << 20).unwrap();
    let options = NvmeOptions { file: Some(path.clone()), ..NvmeOptions::default() };
    let rig = Rig::of(vfiod_config::ConfiguredModel::configured(options).unwrap());
    let mut controller = rig.connect();
    let disk = controller.namespace(1).unwrap();
    let identified = controller.identify(0, 1).unwrap();
    let blocks =
        |at: usize| 1 + u64::from(u16::from_le_bytes([identified[at], identified[at + 1]]));
    // NPDG and NPDA, NPWG and NPWA and NOWS; NSFEAT says that they are there, and DLFEAT what is read.
    let (unit, write) = (blocks(68), blocks(64));
    assert_eq!((blocks(70), blocks(66), blocks(72)), (unit, write, write));
    assert_eq!(identified[24] & 1 << 4, 1 << 4, "NSFEAT");
    if controller.info().io_commands & 1 << 2 == 0 {
        eprintln!("SKIPPED: no holes can be punched in {}", path.display());
        return;
    }
    assert_eq!(identified[33], 1 | 1 << 3, "DLFEAT");
    let mut queue = controller.create_queue(16, Waiting::Polling).unwrap();
    let buffer = controller.memory().allocate(MIB).unwrap();
    buffer.write(0, &[7; MIB]);
    queue.write(&disk, 0, Data::of(&buffer)).unwrap();
    queue.flush(&disk).unwrap();
    // Of the file system's own blocks more or fewer may belong to the file when it has holes.
    let allocated = || std::fs::metadata(&path).unwrap().blocks() * 512;
    let before = (data_in(&path), allocated());
    let ranges = controller.memory().allocate(16).unwrap();
    let mut freed = |first: u64, count: u64| {
        let range = [&[0; 4][..], &(count as u32).to_le_bytes(), &first.to_le_bytes()].concat();
        ranges.write(0, &range);
        let command = Command::new(opcode::DATASET_MANAGEMENT).namespace(1).dword(11, 4);
        queue.perform(command, Some(Data::of(&ranges))).unwrap();
        queue.flush(&disk).unwrap();
        before.0 - data_in(&path)
    };
    let bytes = unit * 512;
    if unit > 1 {
        assert_eq!(freed(unit, unit - 1), 0, "less than a unit");
    }
    assert_eq!(freed(4 * unit, unit), bytes, "a unit");
    // From amid a unit to amid another one: the whole ones between.
    assert_eq!(freed(8 * unit + unit / 2, 4 * unit), bytes + bytes * if unit > 1 { 3 } else { 4 });
    assert!(allocated() < before.1, "{} of {} bytes are still allocated", allocated(), before.1);
    queue.read(&disk, 0, Data::of(&buffer)).unwrap();
    let ranges =
        [unit..unit + unit - 1, 4 * unit..5 * unit, 8 * unit + unit / 2..12 * unit + unit / 2];
    for (block, data) in (0..).zip(content(&buffer).chunks_exact(512)) {
        let is_freed = ranges.iter().any(|range| range.contains(&block));
        assert_eq!(data, [if is_freed { 0 } else { 7 }; 512], "block {block}");
    }
}
