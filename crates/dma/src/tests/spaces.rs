//! Spaces as objects: owners, copies, snapshots, listeners, unmaps that do not block, dirty pages.

use std::sync::Mutex;

use super::*;

#[test]
fn mapping_of_nobody_stays_until_it_is_unmapped() {
    let (space, memory) = (Space::new(), Memory::new(0x2000));
    space.map(None, request(0, 0x1000, RW, memory.fd(), 0)).unwrap();
    space.map(A, request(0x1000, 0x1000, RW, memory.fd(), 0)).unwrap();
    space.drop_owner(A);
    space.drop_owner(B);
    let owners: Vec<_> = space.mappings().iter().map(|m| (m.iova, m.owner)).collect();
    assert_eq!(owners, [(0, None)]);
    assert_eq!(space.unmap(0, 0x1000, SOON).unwrap(), 0x1000);
}

#[test]
fn one_descriptor_for_each_file_and_access_mode_is_kept() {
    let (space, memory) = (Space::new(), Memory::named("dma-kept", 0x10000));
    let read_only = memory.read_only();
    for i in 0..8u64 {
        space.map(A, request(i * 0x1000, 0x1000, RW, memory.fd(), 0x1000)).unwrap();
        let fd = read_only.try_clone().unwrap();
        space.map(A, request((i + 8) * 0x1000, 0x1000, Perm::READ, fd, 0x2010)).unwrap();
    }
    // Ours are two.
    assert_eq!(held("dma-kept"), (2, 4));
    let snapshot = space.snapshot();
    assert_eq!(snapshot.descriptors.len(), 2);
    for (i, mapping) in snapshot.mappings.iter().enumerate() {
        let (fd, offset) = mapping.file.unwrap();
        assert_eq!(offset, if i < 8 { 0x1000 } else { 0x2010 });
        let mode = rustix::fs::fcntl_getfl(&snapshot.descriptors[fd]).unwrap();
        let writable = mode & rustix::fs::OFlags::RWMODE == rustix::fs::OFlags::RDWR;
        assert_eq!(writable, i < 8);
    }
    // A file that has grown is mapped anew, by the same descriptor.
    ftruncate(&memory.0, 1 << 30).unwrap();
    space.map(A, request(1 << 32, 0x1000, RW, memory.fd(), (1 << 30) - 0x1000)).unwrap();
    assert_eq!((space.snapshot().descriptors.len(), held("dma-kept").1), (2, 4));
    drop(snapshot);
    space.unmap_all(SOON).unwrap();
    assert_eq!(held("dma-kept").1, 2);
}

#[test]
fn snapshot_names_the_offset_of_a_part_of_a_long_file() {
    let (space, memory) = (Space::new(), Memory::new(3 << 40));
    space.map(A, request(0x1000, 0x1234, RW, memory.fd(), (2 << 40) + 0x123)).unwrap();
    assert_eq!(space.mappings()[0].file, Some((0, (2 << 40) + 0x123)));
}

#[test]
fn part_of_a_mapping_is_copied_to_another_space() {
    let (from, to, memory) = (Space::new(), Space::new(), Memory::new(0x8000));
    from.map(A, request(0x1000, 0x4000, RW, memory.fd(), 0x2000)).unwrap();
    from.map(A, request(0x5000, 0x1000, Perm::READ, memory.fd(), 0)).unwrap();
    from.copy(0x2000, 0x1000, &to, 0x9000, RW, B).unwrap();
    from.copy(0x2800, 0x10, &from, 0x8000, Perm::READ, None).unwrap();
    let copy = to.mappings()[0];
    assert_eq!((copy.iova, copy.last, copy.owner), (0x9000, 0x9fff, Some(B)));
    assert_eq!(copy.file, Some((0, 0x3000)));
    from.unmap_all(SOON).unwrap();
    let device = TestDevice::new();
    device.attachment().attach(&to);
    device.write(0x9000, b"copied").unwrap();
    assert_eq!(memory.peek(0x3000, 6), b"copied");

    let from = Space::new();
    from.map(A, request(0x1000, 0x1000, RW, memory.fd(), 0)).unwrap();
    from.map(A, request(0x2000, 0x1000, Perm::READ, memory.fd(), 0)).unwrap();
    for (at, size, perm, want) in [
        (0x800, 0x100, RW, Errno::FAULT),
        (0x1000, 0x1001, RW, Errno::INVAL),
        (0x1000, 0, RW, Errno::INVAL),
        (0x1000, u64::MAX, RW, Errno::INVAL),
        (0x2000, 0x1000, RW, Errno::ACCESS),
        (0x2000, 0x1000, Perm::empty(), Errno::INVAL),
    ] {
        assert_eq!(errno(from.copy(at, size, &to, 0, perm, B)), want, "{at:#x} {size:#x}");
    }
    assert_eq!(errno(from.copy(0x1000, 0x1000, &to, 0x9800, RW, B)), Errno::EXIST);
}

/// Records what it is notified of, and keeps delays as long as the test wants.
#[derive(Default)]
struct Notes {
    events: Mutex<Vec<(&'static str, u64, u64)>>,
    delays: Mutex<Vec<Delay>>,
    keeps: std::sync::atomic::AtomicBool,
}

impl Listener for Notes {
    fn unmapping(&self, first: u64, last: u64, delay: Delay) {
        self.events.lock().unwrap().push(("unmapping", first, last));
        if self.keeps.load(Ordering::Relaxed) {
            self.delays.lock().unwrap().push(delay);
        }
    }

    fn restored(&self, first: u64, last: u64) {
        self.events.lock().unwrap().push(("restored", first, last));
    }
}

#[test]
fn listener_delays_an_unmap_until_the_bound() {
    let (space, memory, notes) = (Space::new(), Memory::new(0x4000), Arc::new(Notes::default()));
    let map = || space.map(A, request(0x1000, 0x1000, RW, memory.fd(), 0)).unwrap();
    map();
    let listening = space.listen(notes.clone());
    space.unmap(0x8000, 0x1000, SOON).unwrap();
    assert!(notes.events.lock().unwrap().is_empty(), "nothing was mapped there");
    space.unmap(0x1000, 0x1000, SOON).unwrap();
    map();
    notes.keeps.store(true, Ordering::Relaxed);
    assert_eq!(errno(space.unmap(0, 0x3000, SOON)), Errno::BUSY);
    assert_eq!(space.len(), 1, "it is there again");
    let events = std::mem::take(&mut *notes.events.lock().unwrap());
    let want = [("unmapping", 0x1000, 0x1fff), ("unmapping", 0, 0x2fff), ("restored", 0, 0x2fff)];
    assert_eq!(events, want);
    notes.delays.lock().unwrap().clear();
    drop(listening);
    space.unmap_all(SOON).unwrap();
    assert!(notes.events.lock().unwrap().is_empty(), "it listens no more");
}

#[test]
fn unmap_that_does_not_block_ends_either_way() {
    let (space, memory) = (TestDevice::new(), Memory::new(0x4000));
    map(&space, &memory, 0x1000, 0x1000, 0);
    let hold = space.pin(0x1000, 16, RW).unwrap();
    let space = space.space();
    let unmapping = space.start_unmap(0x1000, 0x1000).unwrap();
    assert!(space.is_empty() && !unmapping.is_clear());
    assert_eq!(errno(unmapping.finish()), Errno::BUSY);
    assert_eq!(space.len(), 1);
    // Dropped, it ends as well.
    drop(space.start_unmap(0x1000, 0x1000).unwrap());
    assert_eq!(space.len(), 1);
    let unmapping = space.start_unmap_all().unwrap();
    drop(hold);
    assert!(unmapping.is_clear() && unmapping.wait(Some(std::time::Instant::now())));
    assert_eq!(unmapping.finish().unwrap(), 0x1000);
    assert_eq!(space.usage(), Usage::default());
    assert_eq!(errno(space.start_unmap(2, u64::MAX).map(drop)), Errno::INVAL);
}

fn dirty(space: &Space, marks: Marks) -> Vec<u64> {
    let mut bitmap = [0; 8];
    space.report_dirty(0, 64 * 4096, 4096, marks, &mut bitmap).unwrap();
    (0..64).filter(|i| bitmap[i / 8] >> (i % 8) & 1 == 1).map(|i| i as u64).collect()
}

#[test]
fn every_way_to_write_is_logged() {
    let (device, memory) = (TestDevice::new(), Memory::new(0x40000));
    map(&device, &memory, 0, 0x40000, 0);
    let space = device.space();
    let hold = device.pin(0x3_0000, 0x1001, RW).unwrap();
    device.write(0, b"before").unwrap();
    let refused = space.report_dirty(0, 0x1000, 4096, Marks::Keep, &mut [0; 8]);
    assert_eq!(errno(refused), Errno::INVAL);
    space.start_dirty_log();
    assert!(space.is_dirty_log_on() && dirty(&space, Marks::Keep).is_empty());
    device.write(0x1fff, b"12").unwrap();
    device.read(0x5000, &mut [0; 16]).unwrap();
    device.store(0x6000, 1u32, Ordering::SeqCst).unwrap();
    device.write(0x8000, &[1; DIRECT + 1]).unwrap();
    {
        let mut batch = device.access().unwrap();
        assert_eq!(batch.write(0x1_0000, b"x").unwrap(), Reach::Mapped);
        batch.translate(0x1_2000, 0x2000, RW).unwrap().write(0x1000, b"x").unwrap();
        if ATOMICS {
            batch.fetch_add(0x1_4000, 1u32).unwrap();
        } else {
            assert_eq!(batch.write(0x1_4000, b"x").unwrap(), Reach::Mapped);
        }
    }
    drop(device.pin(0x1_6000, 1, Perm::READ).unwrap());
    let marked = [1, 2, 6, 8, 9, 10, 11, 12, 16, 19, 20];
    assert_eq!(dirty(&space, Marks::Keep), marked);
    drop(hold);
    assert_eq!(dirty(&space, Marks::Clear), [marked.as_slice(), &[48, 49]].concat());
    assert!(dirty(&space, Marks::Clear).is_empty());
    device.write(0, b"x").unwrap();
    space.stop_dirty_log();
    device.write(0x1000, b"x").unwrap();
    space.start_dirty_log();
    assert!(dirty(&space, Marks::Clear).is_empty());
}

#[test]
fn unmap_reports_and_removes_the_marks_of_its_range() {
    let (device, memory) = (TestDevice::new(), Memory::new(0x40000));
    map(&device, &memory, 0x1000, 0x2000, 0);
    map(&device, &memory, 0x3000, 0x1000, 0);
    let space = device.space();
    space.start_dirty_log();
    device.write(0x2000, b"x").unwrap();
    device.write(0x3000, b"x").unwrap();
    let mut bitmap = [0; 8];
    let unmapping = space.start_unmap(0x1000, 0x2000).unwrap();
    // Too short a bitmap puts the mapping back.
    let refused = unmapping.finish_reporting(512, &mut [0; 1]);
    assert_eq!((errno(refused), space.len()), (Errno::INVAL, 2));
    let unmapping = space.start_unmap(0x1000, 0x2000).unwrap();
    assert_eq!(unmapping.finish_reporting(4096, &mut bitmap).unwrap(), 0x2000);
    assert_eq!(bitmap[0], 0b10);
    assert_eq!(dirty(&space, Marks::Keep), [3], "those of others stay");
    map(&device, &memory, 0x1000, 0x2000, 0);
    assert_eq!(dirty(&space, Marks::Clear), [3], "a new mapping in the place is clean");
    device.write(0x1000, b"x").unwrap();
    space.drop_owner(A);
    assert!(dirty(&space, Marks::Clear).is_empty());
}
