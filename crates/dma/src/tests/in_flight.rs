//! Accesses in flight, and unmaps that wait for them.

use super::*;

const LONG: Duration = Duration::from_secs(60);

#[test]
fn pinned_memory_is_read_and_written() {
    let (space, a, b) = (TestDevice::new(), Memory::new(0x3000), Memory::new(0x3000));
    map(&space, &a, 0x1000, 0x1000, 0x1000);
    map(&space, &b, 0x2000, 0x1000, 0);
    map(&space, &a, 0x3000, 0x1000, 0);
    let pinned = space.pin(0x1800, 0x2000, RW).unwrap();
    assert_eq!((pinned.len(), pinned.perm(), space.usage().in_use), (0x2000, RW, 1));
    let lens: Vec<usize> = pinned.segments().map(|s| s.len()).collect();
    assert_eq!(lens, [0x800, 0x1000, 0x800]);
    let pattern: Vec<u8> = (0..0x1900).map(|i| (i % 253) as u8).collect();
    pinned.write(0x700, &pattern).unwrap();
    assert_eq!(a.peek(0x1f00, 0x100), pattern[..0x100]);
    assert_eq!(b.peek(0, 0x1000), pattern[0x100..0x1100]);
    assert_eq!(a.peek(0, 0x800), pattern[0x1100..]);
    let mut back = vec![0; 0x1000];
    pinned.read(0x900, &mut back).unwrap();
    assert_eq!(back, pattern[0x200..0x1200]);
    assert_eq!(errno(pinned.read(0x1001, &mut back)), Errno::INVAL);
    assert_eq!(errno(pinned.read(usize::MAX, &mut back)), Errno::INVAL);
    let read_only = space.pin(0x1000, 16, Perm::READ).unwrap();
    assert_eq!(errno(read_only.write(0, &[1])), Errno::ACCESS);
    assert!(pinned.segments().all(|s| !s.as_ptr().is_null()));
    drop((pinned, read_only));
    assert_eq!(space.usage().in_use, 0);
    assert_eq!(errno(space.pin(0x1000, 0, RW)), Errno::INVAL);
    assert_eq!(errno(space.pin(0x3fff, 2, RW)), Errno::FAULT);
    assert_eq!(space.usage().in_use, 0);
}

#[test]
fn an_unmap_fails_in_time_and_changes_nothing() {
    let (space, memory) = (TestDevice::new(), Memory::new(0x4000));
    for i in 0..4 {
        map(&space, &memory, i * 0x1000, 0x1000, i * 0x1000);
    }
    let pinned = space.pin(0x1ffe, 4, RW).unwrap();
    let before = space.mappings();
    assert_eq!(errno(space.unmap(0x1000, 0x1000, SOON)), Errno::BUSY);
    assert_eq!(errno(space.unmap(0, u64::MAX, SOON)), Errno::BUSY);
    assert_eq!(errno(space.unmap_all(Duration::ZERO)), Errno::BUSY);
    assert_eq!(space.mappings(), before);
    space.write(0x1ffe, b"here").unwrap();
    // Others go.
    assert_eq!(space.unmap(0x3000, 0x1000, Duration::ZERO).unwrap(), 0x1000);
    assert_eq!(space.unmap(0, 0x1000, Duration::ZERO).unwrap(), 0x1000);
    drop(pinned);
    assert_eq!(space.unmap(0x1000, 0x2000, Duration::ZERO).unwrap(), 0x2000);
}

#[test]
fn an_unmap_waits_and_keeps_the_place() {
    let (space, memory) = (TestDevice::new(), Memory::new(0x4000));
    map(&space, &memory, 0x1000, 0x1000, 0);
    let pinned = space.pin(0x1000, 16, RW).unwrap();
    std::thread::scope(|s| {
        let unmap = s.spawn(|| space.unmap(0x1000, 0x1000, LONG).unwrap());
        while !space.is_empty() {
            std::thread::yield_now();
        }
        // No new access, no new mapping in the place, and others are not held up.
        assert_eq!(errno(space.read(0x1000, &mut [0])), Errno::FAULT);
        let same = request(0x1800, 0x1000, RW, memory.fd(), 0);
        assert_eq!(errno(space.map(B, same)), Errno::EXIST);
        map(&space, &memory, 0x2000, 0x1000, 0);
        space.unmap(0x2000, 0x1000, SOON).unwrap();
        // An unmap of the same place waits, too.
        assert_eq!(errno(space.unmap(0x1000, 0x1000, SOON)), Errno::BUSY);
        pinned.write(0, b"still there").unwrap();
        assert!(!unmap.is_finished());
        drop(pinned);
        assert_eq!(unmap.join().unwrap(), 0x1000);
    });
    assert_eq!(memory.peek(0, 11), b"still there");
    map(&space, &memory, 0x1800, 0x1000, 0);
}

#[test]
fn a_file_that_ends_while_its_unmap_waits() {
    let (space, memory) = (TestDevice::new(), Memory::named("dma-ends", 0x4000));
    map(&space, &memory, 0x1000, 0x1000, 0);
    space.map(B, request(0x2000, 0x1000, RW, memory.fd(), 0)).unwrap();
    let pinned = space.pin(0x1000, 16, RW).unwrap();
    let mut waits = false;
    while !waits {
        std::thread::scope(|s| {
            let unmap = s.spawn(|| space.unmap(0x1000, 0x1000, Duration::from_millis(200)));
            while !waits && !unmap.is_finished() {
                waits = space.len() == 1;
                std::thread::yield_now();
            }
            // Otherwise it has given up before this thread ran.
            if waits {
                space.drop_owner(A);
            }
            assert_eq!(errno(unmap.join().unwrap()), Errno::BUSY);
        });
    }
    // What came back for a file that had gone went with it; the other's is there.
    assert_eq!(space.len(), 1);
    assert_eq!(space.mappings()[0].owner, Some(B));
    pinned.write(0, b"safe").unwrap();
    drop(pinned);
    space.drop_owner(B);
    assert_eq!((space.usage(), held("dma-ends").0), (Usage::default(), 0));
}

#[test]
fn pinned_memory_outlives_everything() {
    let (space, memory) = (TestDevice::new(), Memory::named("dma-outlives", 0x1000));
    map(&space, &memory, 0, 0x1000, 0);
    let pinned = space.pin(0, 0x1000, RW).unwrap();
    space.drop_owner(A);
    drop(space);
    pinned.write(0, b"x").unwrap();
    assert_eq!(held("dma-outlives").0, 1);
    ftruncate(&memory.0, 0).unwrap();
    assert_eq!(errno(pinned.write(0, b"x")), Errno::FAULT);
    drop(pinned);
    assert_eq!(held("dma-outlives").0, 0);
}
