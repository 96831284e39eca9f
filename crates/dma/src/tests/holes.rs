//! Holes in clients' memory: what fills them, what an access sees there, and whose memory it takes.

use rustix::fs::{FallocateFlags, SealFlags, fallocate, fcntl_add_seals, fstat};

use super::*;
use crate::block_on::block_on;
use crate::userfault;

const MIB: u64 = 1 << 20;

/// Whether holes are kept here. Where they are not, a test says so and ends.
fn kept() -> bool {
    if !userfault::is_available() {
        eprintln!("SKIPPED: userfaultfd is forbidden here, so reads fill holes");
    }
    userfault::is_available()
}

impl Memory {
    /// Bytes that are allocated.
    fn allocated(&self) -> u64 {
        fstat(&self.0).unwrap().st_blocks as u64 * 512
    }

    fn punch(&self, offset: u64, len: u64) {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&self.0, flags, offset, len).unwrap();
    }
}

/// A device, and 4 MiB of memory of which one page is there, at 1 MiB.
fn sparse() -> (TestDevice, Memory) {
    let (device, memory) = (TestDevice::new(), Memory::new(4 * MIB));
    memory.poke(MIB, &[7; 4096]);
    map(&device, &memory, 0, 4 * MIB, 0);
    (device, memory)
}

/// What `memory` contains at `offset`, with a page of sevens at 1 MiB.
fn expected(offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let place = |at: u64| (at.saturating_sub(offset) as usize).min(len);
    bytes[place(MIB)..place(MIB + 4096)].fill(7);
    bytes
}

#[test]
fn reads_see_zeros_in_holes_and_leave_them() {
    if !kept() {
        return;
    }
    let (device, memory) = sparse();
    for len in [1, 2, 3, 4, 5, 8, 13, 16, 17, 33, 64, 65, 200, 512, 4096, 5000, 16 << 10, 1 << 20] {
        for at in [0, 8, 4095, MIB - 4096, MIB - 5, MIB, MIB + 4090, MIB + 4096, 2 * MIB + 1] {
            let mut bytes = vec![9; len];
            device.read(at, &mut bytes).unwrap();
            assert!(bytes == expected(at, len), "{len} bytes at {at:#x}");
            bytes.fill(9);
            let mut batch = device.attachment().batch().unwrap();
            assert_eq!(batch.read(at, &mut bytes).unwrap(), Reach::Mapped);
            assert!(bytes == expected(at, len), "{len} bytes at {at:#x} by a batch");
            bytes.fill(9);
            batch.translate(at, len, Perm::READ).unwrap().read(0, &mut bytes).unwrap();
            assert!(bytes == expected(at, len), "{len} bytes at {at:#x} translated");
            drop(batch);
            bytes.fill(9);
            device.pin(at, len, Perm::READ).unwrap().read(0, &mut bytes).unwrap();
            assert!(bytes == expected(at, len), "{len} bytes at {at:#x} held");
        }
    }
    for at in [0, 4088, MIB, 3 * MIB] {
        let want = expected(at, 1)[0];
        assert_eq!(device.load::<u8>(at, Ordering::Acquire).unwrap(), want);
        assert_eq!(device.load::<u64>(at, Ordering::Acquire).unwrap().to_ne_bytes(), [want; 8]);
    }
    assert_eq!(memory.allocated(), 4096);
}

#[test]
fn writes_fill_the_pages_that_they_touch() {
    if !kept() {
        return;
    }
    for len in [1usize, 2, 4, 8, 9, 64, 65, 4096, 5000, 16 << 10, 100_000, 1 << 20] {
        for at in [0, 4090, MIB - 4100, MIB - 8, MIB + 4096] {
            let (device, memory) = sparse();
            let bytes: Vec<u8> = (0..len).map(|byte| (byte % 255) as u8 + 1).collect();
            device.write(at, &bytes).unwrap();
            let mut want = expected(0, 4 << 20);
            want[at as usize..][..len].copy_from_slice(&bytes);
            assert!(memory.peek(0, 4 << 20) == want, "{len} bytes at {at:#x}");
            let touched = (at / 4096..=(at + len as u64 - 1) / 4096).chain([MIB / 4096]);
            let pages = touched.collect::<std::collections::BTreeSet<_>>().len();
            assert_eq!(memory.allocated(), pages as u64 * 4096, "{len} bytes at {at:#x}");
        }
    }
}

#[test]
fn atomic_accesses_work_in_holes() {
    if !kept() {
        return;
    }
    let (device, memory) = sparse();
    device.store(0, 0x1234u16, Ordering::Release).unwrap();
    device.store(0x1008, 0x1234_5678u32, Ordering::SeqCst).unwrap();
    assert_eq!(memory.peek(0, 2), 0x1234u16.to_ne_bytes());
    assert_eq!(memory.peek(0x1008, 4), 0x1234_5678u32.to_ne_bytes());
    assert_eq!(memory.allocated(), 3 * 4096);
    if !ATOMICS {
        return;
    }
    let mut batch = device.attachment().batch().unwrap();
    assert_eq!(batch.swap(0x2000, 5u64).unwrap(), 0);
    assert_eq!(batch.swap(0x2000, 6u64).unwrap(), 5);
    assert_eq!(batch.compare_exchange(0x3000, 0u32, 9).unwrap(), 0);
    assert_eq!(batch.compare_exchange(0x4000, 1u32, 9).unwrap(), 0);
    assert_eq!(batch.fetch_add(0x5000, 3u8).unwrap(), 0);
    assert_eq!(memory.peek(0x2000, 1), 6u8.to_ne_bytes());
    assert_eq!(memory.peek(0x3000, 4), 9u32.to_ne_bytes());
    assert_eq!(memory.peek(0x4000, 4), [0; 4]);
    assert_eq!(memory.peek(0x5000, 1), [3]);
}

#[test]
fn file_that_ends_is_told_from_a_hole() {
    let (device, memory) = (TestDevice::new(), Memory::new(0x5800));
    map(&device, &memory, 0, MIB, 0);
    let mut bytes = vec![9; 0x8000];
    // To the end of the last page, as with any mapping.
    device.read(0x5000, &mut bytes[..0x1000]).unwrap();
    assert_eq!(bytes[..0x1000], [0; 0x1000]);
    device.read(0x5ff8, &mut bytes[..8]).unwrap();
    for (at, len) in [(0x5fff, 2), (0x6000, 1), (0, 0x6001), (0, 0x8000), (0x6000, 8)] {
        assert_eq!(errno(device.read(at, &mut bytes[..len])), Errno::FAULT, "{at:#x}");
        assert_eq!(errno(device.write(at, &bytes[..len])), Errno::FAULT, "{at:#x}");
    }
    assert_eq!(errno(device.load::<u32>(0x6000, Ordering::Acquire)), Errno::FAULT);
    assert_eq!(errno(device.store(0x6000, 1u32, Ordering::SeqCst)), Errno::FAULT);
    // What is behind the end in the last page is there for those who have the file mapped.
    device.write(0x5ffc, &[1, 2, 3, 4]).unwrap();
    device.read(0x57f8, &mut bytes[..0x808]).unwrap();
    assert_eq!(bytes[0x804..0x808], [1, 2, 3, 4]);
    ftruncate(&memory.0, 0).unwrap();
    assert_eq!(errno(device.read(0, &mut bytes[..1])), Errno::FAULT);
    ftruncate(&memory.0, 0x6000).unwrap();
    device.read(0, &mut bytes[..0x6000]).unwrap();
    assert!(bytes[..0x6000].iter().all(|byte| *byte == 0));
    if kept() {
        assert_eq!(memory.allocated(), 0);
    }
}

#[test]
fn holes_of_files_that_cannot_be_written_stay() {
    if !kept() {
        return;
    }
    let sealed = Memory::new(4 * MIB);
    sealed.poke(MIB, &[7; 4096]);
    let read_only = Memory(sealed.read_only());
    let seal = |memory: &Memory| fcntl_add_seals(&memory.0, SealFlags::WRITE).unwrap();
    for (memory, seals) in [(&read_only, false), (&sealed, true)] {
        if seals {
            seal(memory);
        }
        let device = TestDevice::new();
        device.map(A, request(0, 4 * MIB, RW, memory.fd(), 0)).unwrap();
        let mut bytes = vec![9; 2 << 20];
        device.read(0, &mut bytes).unwrap();
        assert!(bytes == expected(0, 2 << 20));
        assert_eq!(device.load::<u32>(3 * MIB, Ordering::Acquire).unwrap(), 0);
        assert_eq!(errno(device.write(0, &[1])), Errno::ACCESS);
        assert_eq!(memory.allocated(), 4096);
        if !seals {
            // What the client writes is seen at once.
            sealed.poke(MIB, &[8]);
            assert_eq!(device.load::<u8>(MIB, Ordering::Acquire).unwrap(), 8);
        }
        sealed.poke_back();
    }
}

impl Memory {
    /// Undoes what a test has changed, unless the memory is sealed.
    fn poke_back(&self) {
        _ = rustix::io::pwrite(&self.0, &[7], MIB);
    }
}

#[test]
fn what_a_client_makes_a_hole_of_again_is_read_and_written_right() {
    use std::sync::atomic::{AtomicBool, Ordering as Std};
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Std::Relaxed);
        }
    }
    let (device, memory) = sparse();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Std::Relaxed) {
                memory.punch(0, 0x8000);
                memory.poke(0x1000, &[0xaa; 0x1000]);
            }
        });
        let _stop = Stop(&stop);
        let mut bytes = vec![0; 0x8000];
        // A client that always wins makes a write fail; it does not go on for ever.
        let written = |done: Result<()>| done.is_ok() || errno(done) == Errno::FAULT;
        for _ in 0..300 {
            device.read(0, &mut bytes).unwrap();
            let rest = bytes.iter().find(|byte| ![0, 0xaa, 0xbb].contains(*byte));
            assert_eq!(rest, None);
            let value = device.load::<u64>(0x1008, Ordering::Acquire).unwrap().to_ne_bytes();
            assert!(value == [0; 8] || value == [0xaa; 8], "not in one piece: {value:x?}");
            assert!(written(device.write(0x4000, &[0xbb; 0x3000])));
            let all_b = u64::from_ne_bytes([0xbb; 8]);
            assert!(written(device.store(0x7000, all_b, Ordering::SeqCst)));
        }
    });
}

/// One test at a time has huge pages.
static HUGE_PAGES: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// On a machine without huge pages, too: a file of them can be made and mapped.
#[test]
fn write_without_a_free_huge_page_says_so() {
    let _all = HUGE_PAGES.lock();
    let count = |name| {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}");
        let count = std::fs::read_to_string(path).ok()?;
        count.trim().parse::<u64>().ok()
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let pages = count("nr_hugepages").zip(count("nr_overcommit_hugepages"));
    let (Some((there, more)), Ok(fd)) = (pages, memfd_create("dma-no-huge", flags)) else {
        eprintln!("SKIPPED: needs a kernel with pages of 2 MiB");
        return;
    };
    let len = (there + more + 1) * 2 * MIB;
    ftruncate(&fd, len).unwrap();
    let (device, memory) = (TestDevice::new(), Memory(fd));
    map(&device, &memory, 0, len, 0);
    let mut pages = (0..len).step_by(2 << 20);
    let refused = pages.find_map(|page| device.write(page, &[1]).err()).expect("too few pages");
    assert_eq!(refused.errno(), Errno::FAULT);
    assert!(refused.message().contains("vm.nr_hugepages"), "{refused}");
    let refused = device.store(len - 8, 1u64, Ordering::SeqCst).unwrap_err();
    assert!(refused.message().contains("vm.nr_hugepages"), "{refused}");
    let mut at = [9];
    if kept() {
        // What is only read takes none.
        device.read(len - 1, &mut at).unwrap();
        assert_eq!(at, [0]);
    }
}

#[test]
fn holes_of_huge_pages_stay() {
    let _all = HUGE_PAGES.lock();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let free = free.ok().and_then(|free| free.trim().parse().ok()).unwrap_or(0);
    let (true, Ok(fd)) = (free >= 2u32 && kept(), memfd_create("dma-holes-huge", flags)) else {
        eprintln!("SKIPPED: needs userfaultfd and two free pages of 2 MiB (vm.nr_hugepages)");
        return;
    };
    ftruncate(&fd, 8 << 20).unwrap();
    let (device, memory) = (TestDevice::new(), Memory(fd));
    map(&device, &memory, 0, 8 * MIB, 0);
    let mut bytes = vec![9; 5 << 20];
    device.read(MIB, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    assert_eq!(memory.allocated(), 0);
    device.write(4 * MIB - 2, b"1234").unwrap();
    assert_eq!((memory.peek(4 * MIB - 2, 4), memory.allocated()), (b"1234".to_vec(), 4 * MIB));
    device.read(4 * MIB - 4, &mut bytes[..8]).unwrap();
    assert_eq!(bytes[..8], *b"\0\x001234\0\0");
    ftruncate(&memory.0, 4 << 20).unwrap();
    assert_eq!(errno(device.write(4 * MIB, b"1")), Errno::FAULT);
    assert_eq!(errno(device.read(4 * MIB, &mut bytes[..1])), Errno::FAULT);
}

/// In a memory group with a limit, the whole of a large sparse file is read by a process of its own.
#[test]
fn reading_a_large_sparse_file_takes_no_memory() {
    if std::env::var_os("VFIOD_HOLES_CHILD").is_some() {
        let (device, memory) = (TestDevice::new(), Memory::new(512 * MIB));
        map(&device, &memory, 0, 512 * MIB, 0);
        let mut bytes = vec![0; 1 << 20];
        for at in (0..512).map(|mib| mib * MIB) {
            device.read(at, &mut bytes).unwrap();
            device.load::<u64>(at, Ordering::Acquire).unwrap();
            block_on(device.attachment().read(at + 4096, &mut bytes[..4096])).unwrap();
        }
        assert_eq!(memory.allocated(), 0);
        return;
    }
    let Some(group) = MemoryGroup::new(64 << 20).filter(|_| kept()) else {
        eprintln!("SKIPPED: no memory group with a limit can be made here");
        return;
    };
    let name = "tests::holes::reading_a_large_sparse_file_takes_no_memory";
    let script = format!("echo $$ > {}/cgroup.procs && exec \"$0\" \"$@\"", group.0.display());
    let status = std::process::Command::new("sh")
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .env("VFIOD_HOLES_CHILD", "1")
        .stdout(std::process::Stdio::null())
        .status();
    assert!(status.unwrap().success());
}

/// A memory group, of cgroup v2 or v1; needs root.
struct MemoryGroup(std::path::PathBuf);

impl MemoryGroup {
    fn new(limit: u64) -> Option<Self> {
        let hierarchies =
            [("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")];
        hierarchies.into_iter().find_map(|(root, file)| {
            let group = Self(format!("{root}/vfiod-holes-{}", std::process::id()).into());
            std::fs::create_dir(&group.0).ok()?;
            std::fs::write(group.0.join(file), limit.to_string()).ok()?;
            _ = std::fs::write(group.0.join("memory.swap.max"), "0");
            Some(group)
        })
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        _ = std::fs::remove_dir(&self.0);
    }
}
