//! Images: what is read and written, by each way to do it, and what is refused.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use smallvec::smallvec;
use vfiod_disk::{
    Backend, Buffer, Channel, DirectIo, Disk, DiskChannel, Done, FailureKind, Holds, Image,
    ImageOptions, Request,
};
use vfiod_dma::{Attachment, Backing, Hold, MapRequest, Perm, Space};
use vfiod_tasks::{Runtime, Workers};

const RW: Perm = Perm::READ.union(Perm::WRITE);

fn directory() -> tempfile::TempDir {
    // A real file system, where temporary files of the system may be in memory.
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn image_in(directory: &Path, bytes: u64) -> PathBuf {
    let path = directory.join("disk.img");
    File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

/// Every way to do I/O that there is here: direct and not, by io_uring and by threads.
fn ways(path: &Path) -> Vec<ImageOptions> {
    let mut ways = Vec::new();
    for direct in [DirectIo::Required, DirectIo::Off] {
        for threads in [None, Some(2)] {
            let options = ImageOptions { direct, threads, ..ImageOptions::new(path) };
            match Image::open(&options) {
                Ok(_) => ways.push(options),
                Err(error) => {
                    assert_eq!(direct, DirectIo::Required, "{error}");
                    eprintln!("SKIPPED direct I/O: {error}");
                }
            }
        }
    }
    ways
}

struct Rig {
    runtime: Runtime,
    image: Arc<Image>,
    disk: Disk,
    channel: Arc<DiskChannel>,
    guest: Attachment,
    memory: Arc<OwnedFd>,
    _space: Space,
}

const GUEST: u64 = 1 << 20;

fn rig(options: &ImageOptions) -> Rig {
    let runtime = Runtime::new().unwrap();
    let image = Image::open(options).unwrap();
    let disk = Disk::new(image.clone());
    let channel = disk.connect(&runtime).unwrap();
    let memory = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&memory, GUEST).unwrap();
    let space = Space::new();
    let backing = Backing::File { fd: memory.try_clone().unwrap(), offset: 0 };
    space.map(None, MapRequest { iova: 0, size: GUEST, perm: RW, backing }).unwrap();
    let (guest, memory) = (Attachment::new(&space), Arc::new(memory));
    Rig { runtime, image, disk, channel, guest, memory, _space: space }
}

impl Rig {
    fn run(&self, request: Request) -> Done {
        self.runtime.block_on(None, self.channel.start(request)).unwrap()
    }

    fn hold(&self, at: u64, len: usize, perm: Perm) -> Hold {
        self.guest.hold(at, len, perm).unwrap()
    }

    fn fill(&self, at: u64, bytes: &[u8]) {
        rustix::io::pwrite(&*self.memory, bytes, at).unwrap();
    }

    fn peek(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        rustix::io::pread(&*self.memory, &mut bytes, at).unwrap();
        bytes
    }
}

fn kind(done: &Done) -> Option<FailureKind> {
    done.result.as_ref().err().map(|failure| failure.kind)
}

fn random(mut state: u64) -> impl FnMut(usize) -> usize {
    move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as usize % below
    }
}

/// Random requests of every kind, to and from guest memory at any address, compared with a model.
#[test]
fn image_has_what_a_model_has() {
    const SIZE: usize = 2 << 20;
    let directory = directory();
    let path = image_in(directory.path(), SIZE as u64);
    let mut model = vec![0u8; SIZE];
    let mut next = random(11);
    for options in ways(&path) {
        let rig = rig(&ImageOptions { bounce: 64 << 10, ..options });
        for step in 0..400 {
            let blocks = 1 + next(300);
            let (len, offset) = (blocks * 512, next(SIZE / 512 - blocks) * 512);
            // Aligned or not, in one piece or several.
            let at = (next(1 << 18) & if next(2) == 0 { !0xfff } else { !0 }) as u64;
            let cut = if next(2) == 0 { 1 + next(len - 1) } else { len };
            let range = offset..offset + len;
            let holds = |perm| {
                let mut holds: Holds = smallvec![rig.hold(at, cut, perm)];
                if cut < len {
                    holds.push(rig.hold(at + 0x8_0000, len - cut, perm));
                }
                Buffer::Guest(holds)
            };
            let what = format!("step {step}, {len} bytes at {offset:#x}, guest {at:#x}, cut {cut}");
            match next(6) {
                0 | 1 => {
                    let bytes: Vec<u8> = (0..len).map(|i| (i / 3 + step) as u8).collect();
                    rig.fill(at, &bytes[..cut]);
                    rig.fill(at + 0x8_0000, &bytes[cut..]);
                    let (offset, buffer) = (offset as u64, holds(Perm::READ));
                    let done = rig.run(Request::Write { offset, buffer, durable: step % 8 == 0 });
                    assert_eq!(kind(&done), None, "{what}");
                    model[range].copy_from_slice(&bytes);
                }
                2 => {
                    let done = rig.run(Request::Read { offset: offset as u64, buffer: holds(RW) });
                    assert_eq!(kind(&done), None, "{what}");
                    let read = [rig.peek(at, cut), rig.peek(at + 0x8_0000, len - cut)].concat();
                    assert!(read == model[range], "{what}");
                }
                3 => {
                    let buffer = Buffer::Own(vec![step as u8; len]);
                    let write = Request::Write { offset: offset as u64, buffer, durable: false };
                    assert_eq!(kind(&rig.run(write)), None, "{what}");
                    model[range.clone()].fill(step as u8);
                    let buffer = Buffer::Own(vec![0; len]);
                    let done = rig.run(Request::Read { offset: offset as u64, buffer });
                    let Some(Buffer::Own(read)) = done.buffer else { panic!("{what}") };
                    assert!(read == model[range], "{what}");
                }
                4 => {
                    let (offset, len) = (offset as u64, len as u64);
                    let deallocate = step % 2 == 0;
                    let zero = Request::Zero { offset, len, deallocate, durable: false };
                    assert_eq!(kind(&rig.run(zero)), None, "{what}");
                    model[range].fill(0);
                }
                _ => {
                    if rig.disk.limits().deallocate.is_some() {
                        let (offset, len) = (offset as u64, len as u64);
                        let deallocate = Request::Deallocate { offset, len };
                        assert_eq!(kind(&rig.run(deallocate)), None, "{what}");
                        model[range].fill(0);
                    }
                }
            }
        }
        assert_eq!(kind(&rig.run(Request::Flush)), None);
        assert!(std::fs::read(&path).unwrap() == model, "{}", rig.image.how());
        assert_eq!(rig.guest.in_flight(), 0);
    }
}

/// Neighbouring blocks, of which a page has several, written at once.
#[test]
fn neighbouring_blocks_written_at_once_all_have_their_data() {
    let directory = directory();
    let path = image_in(directory.path(), 1 << 20);
    for options in ways(&path) {
        let rig = rig(&options);
        let channels = [(); 2].map(|()| rig.disk.connect(&rig.runtime).unwrap());
        for round in 0..16u64 {
            let mut tasks = Vec::new();
            for n in 0..32u64 {
                // A page of guest memory that direct I/O takes, or an address that it does not.
                let at = n * 4096 + if round % 2 == 0 { 0 } else { 1 + n };
                rig.fill(at, &[(round * 32 + n) as u8; 512]);
                let buffer = Buffer::Guest(smallvec![rig.hold(at, 512, Perm::READ)]);
                let offset = (round * 32 + n) * 512;
                let write = Request::Write { offset, buffer, durable: false };
                tasks.push(rig.runtime.spawn(channels[(n % 2) as usize].start(write)));
            }
            for task in tasks {
                let done = rig.runtime.block_on(None, task.result()).unwrap().unwrap();
                assert_eq!(kind(&done), None);
            }
        }
        let bytes = std::fs::read(&path).unwrap();
        for (n, block) in bytes.chunks(512).take(16 * 32).enumerate() {
            assert!(block.iter().all(|byte| *byte == n as u8), "block {n}");
        }
    }
}

#[test]
fn little_bounce_memory_makes_requests_wait_and_none_fail() {
    let directory = directory();
    let path = image_in(directory.path(), 4 << 20);
    for options in ways(&path) {
        let rig = rig(&ImageOptions { bounce: 1, ..options });
        let tasks: Vec<_> = (0..32u64)
            .map(|n| {
                let buffer =
                    Buffer::Guest(smallvec![rig.hold(n * 0x1000 + 1, 0x2_0000, Perm::WRITE)]);
                let read = Request::Read { offset: n * 0x2_0000, buffer };
                rig.runtime.spawn(rig.channel.start(read))
            })
            .collect();
        for task in tasks {
            let done = rig.runtime.block_on(None, task.result()).unwrap().unwrap();
            assert_eq!(kind(&done), None);
        }
    }
}

#[test]
fn image_that_has_become_smaller_fails_what_is_behind_its_end() {
    let directory = directory();
    let path = image_in(directory.path(), 1 << 20);
    for options in ways(&path) {
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        let rig = rig(&options);
        // Inside a page, and a block.
        file.set_len((512 << 10) + 100).unwrap();
        for (offset, aligned, expected) in [
            (512 << 10, true, Some(FailureKind::OutOfRange)),
            (512 << 10, false, Some(FailureKind::OutOfRange)),
            (768 << 10, true, Some(FailureKind::OutOfRange)),
            (500 << 10, true, None),
        ] {
            let at = if aligned { 0 } else { 3 };
            let buffer = Buffer::Guest(smallvec![rig.hold(at, 4096, Perm::WRITE)]);
            let done = rig.run(Request::Read { offset, buffer });
            assert_eq!((kind(&done), done.buffer.is_some()), (expected, true), "{offset} {at}");
        }
        let zero =
            Request::Zero { offset: 768 << 10, len: 4096, deallocate: false, durable: false };
        assert_eq!(kind(&rig.run(zero)), Some(FailureKind::OutOfRange));
        assert_eq!(rig.disk.refresh().capacity, 512 << 10, "whole blocks");
        file.set_len(4 << 20).unwrap();
        assert_eq!(rig.disk.refresh().capacity, 4 << 20);
        let read = Request::Read { offset: 3 << 20, buffer: Buffer::Own(vec![1; 512]) };
        assert_eq!(kind(&rig.run(read)), None);
    }
}

#[test]
fn guest_memory_that_is_truncated_fails_the_request_only() {
    let directory = directory();
    let path = image_in(directory.path(), 1 << 20);
    for options in ways(&path) {
        let rig = rig(&options);
        let holds = |at| [Perm::WRITE, Perm::READ].map(|perm| rig.hold(at, 4096, perm));
        let (aligned, not) = (holds(0x8_0000), holds(0x9_0001));
        ftruncate(&*rig.memory, 0x8_0000).unwrap();
        for [write, read] in [aligned, not] {
            let done =
                rig.run(Request::Read { offset: 0, buffer: Buffer::Guest(smallvec![write]) });
            assert_eq!(kind(&done), Some(FailureKind::Memory));
            let buffer = Buffer::Guest(smallvec![read]);
            let done = rig.run(Request::Write { offset: 0, buffer, durable: false });
            assert_eq!(kind(&done), Some(FailureKind::Memory));
        }
        let buffer = Buffer::Guest(smallvec![rig.hold(0, 4096, Perm::READ)]);
        assert_eq!(kind(&rig.run(Request::Write { offset: 0, buffer, durable: false })), None);
    }
}

#[test]
fn deallocation_frees_whole_units_and_leaves_what_is_beside() {
    let directory = directory();
    let path = image_in(directory.path(), 8 << 20);
    for options in ways(&path) {
        std::fs::write(&path, vec![7; 8 << 20]).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
        let rig = rig(&options);
        let Some(unit) = rig.disk.limits().deallocate else {
            eprintln!("SKIPPED: no holes can be punched in {}", path.display());
            return;
        };
        assert!(rig.disk.limits().deallocated_reads_zero);
        let before = std::fs::metadata(&path).unwrap().blocks();
        // From the middle of a unit to the middle of another one.
        let (offset, len) = (u64::from(unit) + 512, 4 << 20);
        assert_eq!(kind(&rig.run(Request::Deallocate { offset, len })), None);
        let freed = (before - std::fs::metadata(&path).unwrap().blocks()) * 512;
        assert!(freed >= len - u64::from(unit), "{freed} bytes were freed");
        let bytes = std::fs::read(&path).unwrap();
        let (start, end) = (offset as usize, (offset + len) as usize);
        assert!(bytes[..start].iter().chain(&bytes[end..]).all(|byte| *byte == 7), "beside it");
        assert!(bytes[start..end].iter().all(|byte| *byte == 0), "inside it");
    }
}

/// tmpfs cannot make ranges zero, and has no direct I/O that says what it asks for.
#[test]
fn zeroes_are_written_where_the_file_system_cannot_make_them() {
    let Ok(directory) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("SKIPPED: no /dev/shm");
        return;
    };
    let path = image_in(directory.path(), 1 << 20);
    let direct = ImageOptions { direct: DirectIo::Required, ..ImageOptions::new(&path) };
    if let Err(error) = Image::open(&direct) {
        // With the image, and the remedy.
        let error = error.to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
        assert!(error.contains("without `direct` the page cache is used"), "{error}");
    }
    for options in ways(&path) {
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let rig = rig(&options);
        for deallocate in [false, true] {
            let offset = if deallocate { 0x8_0200 } else { 0x200 };
            let zero = Request::Zero { offset, len: 0x3_0000, deallocate, durable: true };
            assert_eq!(kind(&rig.run(zero)), None);
        }
        let bytes = std::fs::read(&path).unwrap();
        for (at, byte) in bytes.iter().enumerate() {
            let is_zero =
                [0x200, 0x8_0200].iter().any(|from| (*from..from + 0x3_0000).contains(&at));
            assert_eq!(*byte, if is_zero { 0 } else { 7 }, "{at:#x}");
        }
    }
}

#[test]
fn images_that_cannot_be_used_are_refused_with_the_remedy() {
    let directory = directory();
    let file = |name: &str, size: u64| {
        let path = directory.path().join(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        path
    };
    let fifo = directory.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let block = |path, block| ImageOptions { block, ..ImageOptions::new(path) };
    for (options, expected) in [
        (block(directory.path().join("missing"), 512), "cannot be opened (No such file"),
        (block(directory.path().into(), 512), "neither a regular file nor a block device"),
        (block(fifo, 512), "neither a regular file nor a block device"),
        (block(PathBuf::from("/dev/zero"), 512), "neither a regular file nor a block device"),
        (block(file("empty", 0), 512), "it is empty; `truncate -s 10G` gives it a size"),
        (block(file("odd", 1000), 512), "no multiple of the block size, 512; `truncate -s 1024`"),
        (block(file("512", 512), 4096), "no multiple of the block size, 4096; `truncate -s 4096`"),
        (block(file("zero", 4096), 0), "blocks of 0 bytes: a power of two from 512 on"),
        (block(file("large", 4096), 1000), "blocks of 1000 bytes: a power of two from 512 on"),
    ] {
        let error = Image::open(&options).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.contains(&options.path.display().to_string()), "{error}");
    }
}

#[test]
fn image_that_is_only_read_is_opened_so() {
    let directory = directory();
    let path = image_in(directory.path(), 4096);
    let rig = rig(&ImageOptions { read_only: true, ..ImageOptions::new(&path) });
    let limits = rig.image.limits();
    assert!(limits.read_only && !limits.volatile && limits.deallocate.is_none());
    let buffer = Buffer::Own(vec![1; 512]);
    let done = rig.run(Request::Write { offset: 0, buffer, durable: false });
    assert_eq!(kind(&done), Some(FailureKind::ReadOnly));
    let done = rig.run(Request::Read { offset: 0, buffer: Buffer::Own(vec![1; 512]) });
    let Some(Buffer::Own(bytes)) = done.buffer else { panic!("no buffer") };
    assert_eq!(bytes, [0; 512]);
    // Through the back end itself, without the disk's check: the kernel refuses it.
    let channel = rig.image.clone().connect(&rig.runtime).unwrap();
    let write = Request::Write { offset: 0, buffer: Buffer::Own(vec![1; 512]), durable: false };
    let done = rig.runtime.block_on(None, channel.start(write)).unwrap();
    assert_eq!(kind(&done), Some(FailureKind::ReadOnly));
}

#[test]
fn data_that_was_written_is_in_the_file_when_it_was_synced() {
    let directory = directory();
    let path = image_in(directory.path(), 1 << 20);
    let file = File::open(&path).unwrap();
    for options in ways(&path) {
        let rig = rig(&options);
        let write = |byte| Request::Write {
            offset: 0,
            buffer: Buffer::Own(vec![byte; 4096]),
            durable: true,
        };
        for byte in 1..4 {
            assert_eq!(kind(&rig.run(write(byte))), None);
            let mut bytes = [0; 4096];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(bytes, [byte; 4096]);
        }
    }
}

/// Bytes of memory or of a file that are allocated.
fn allocated(file: &OwnedFd) -> u64 {
    rustix::fs::fstat(file).unwrap().st_blocks as u64 * 512
}

/// A VMM takes pages of its guest away (balloon, free page reporting), and the guest fills them again:
/// no page that was there before is remembered.
#[test]
fn pages_that_a_guest_gave_back_and_filled_again_are_the_ones_that_are_used() {
    let directory = directory();
    let path = image_in(directory.path(), 1 << 20);
    for options in ways(&path) {
        let rig = rig(&options);
        for round in 1..20u8 {
            for (at, part) in [(0x1_0000, 0u64), (0x2_0007, 1)] {
                let punch =
                    rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&*rig.memory, punch, at & !0xfff, 0x3000).unwrap();
                // Into what was punched, in part filled again; and out of it.
                if round % 2 == 0 {
                    rig.fill(at, &[0xee; 0x1000]);
                }
                std::fs::write(&path, vec![round; 1 << 20]).unwrap();
                let (offset, len) = (part * 0x1_0000, 0x2000);
                let buffer = Buffer::Guest(smallvec![rig.hold(at, len, Perm::WRITE)]);
                assert_eq!(kind(&rig.run(Request::Read { offset, buffer })), None);
                assert!(rig.peek(at, len) == vec![round; len], "read in round {round}");
                rustix::fs::fallocate(&*rig.memory, punch, at & !0xfff, 0x3000).unwrap();
                rig.fill(at + 0x1000, &[!round; 0x1000]);
                let buffer = Buffer::Guest(smallvec![rig.hold(at, len, Perm::READ)]);
                let write = Request::Write { offset, buffer, durable: true };
                assert_eq!(kind(&rig.run(write)), None);
                let expected = [[0; 0x1000], [!round; 0x1000]].concat();
                let file = std::fs::read(&path).unwrap();
                assert!(file[offset as usize..][..len] == expected, "written in round {round}");
            }
        }
    }
}

#[test]
fn guest_memory_that_was_never_touched_stays_so_when_it_is_written_to_a_disk() {
    let directory = directory();
    let path = image_in(directory.path(), 2 << 20);
    for options in ways(&path) {
        let rig = rig(&options);
        rig.guest.batch().unwrap().load::<u64>(0).unwrap();
        if allocated(&rig.memory) > 0 {
            eprintln!("SKIPPED: userfaultfd is forbidden here, so reads fill holes");
            return;
        }
        // Where direct I/O takes the address, and where it does not.
        for at in [0, 1] {
            let buffer = Buffer::Guest(smallvec![rig.hold(at, (GUEST - 512) as usize, Perm::READ)]);
            let done = rig.run(Request::Write { offset: 0, buffer, durable: false });
            assert_eq!(kind(&done), None);
        }
        assert_eq!(allocated(&rig.memory), 0, "{}", rig.image.how());
    }
}

/// Seen on QEMU's model: a read beside a write of one block gave half of each.
/// Through the page cache the kernel copies a read and a write of one block at the same time.
#[test]
fn read_beside_a_write_of_a_block_has_all_of_the_old_or_of_the_new() {
    const BLOCK: usize = 64 << 10;
    let directory = directory();
    let path = image_in(directory.path(), 1 << 20);
    for options in ways(&path) {
        let rig = rig(&options);
        let _workers = Workers::start(&rig.runtime, 2).unwrap();
        let writer = rig.disk.connect(&rig.runtime).unwrap();
        let written = rig.runtime.spawn(async move {
            for round in 0..400u32 {
                let buffer = Buffer::Own(vec![round as u8; BLOCK]);
                let done = writer.start(Request::Write { offset: 0, buffer, durable: false }).await;
                done.result.unwrap();
            }
        });
        let reader = rig.channel.clone();
        let read = rig.runtime.spawn(async move {
            let mut reads = 0;
            while !written.is_finished() {
                let read = Request::Read { offset: 0, buffer: Buffer::Own(vec![0xee; BLOCK]) };
                let done = reader.start(read).await;
                let Some(Buffer::Own(bytes)) = done.buffer else { panic!("no buffer") };
                let torn = bytes.iter().position(|byte| *byte != bytes[0]);
                assert_eq!(torn, None, "read {reads} is torn");
                reads += 1;
            }
            reads
        });
        let reads = rig.runtime.block_on(None, read.result()).unwrap().unwrap();
        assert!(reads > 0);
    }
}
