//! What is mapped where, for whom, and how it goes.

use super::*;

#[test]
fn reads_and_writes_the_clients_memory() {
    let (space, memory) = (TestDevice::new(), Memory::new(1 << 20));
    map(&space, &memory, 0x1000, 0x2000, 0x4000);
    space.write(0x1ffe, b"hello").unwrap();
    assert_eq!(memory.peek(0x4ffe, 5), b"hello");
    memory.poke(0x4000, b"world");
    let mut bytes = [0; 5];
    space.read(0x1000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"world");
    assert_eq!(space.unmap(0x1000, 0x2000, SOON).unwrap(), 0x2000);
    assert_eq!(errno(space.read(0x1000, &mut bytes)), Errno::FAULT);
}

#[test]
fn an_access_may_cross_windows_that_adjoin() {
    let (space, a, b) = (TestDevice::new(), Memory::new(0x4000), Memory::new(0x4000));
    // Neither files nor offsets are in the order of the addresses; sizes are odd.
    map(&space, &a, 0x1000, 0x800, 0x3000);
    map(&space, &b, 0x1800, 3, 0x123);
    map(&space, &a, 0x1803, 0x1000, 0);
    let pattern: Vec<u8> = (0..0x1000).map(|i| (i % 251) as u8).collect();
    space.write(0x1400, &pattern).unwrap();
    assert_eq!(a.peek(0x3400, 0x400), pattern[..0x400]);
    assert_eq!(b.peek(0x123, 3), pattern[0x400..0x403]);
    assert_eq!(b.peek(0x126, 1), [0]);
    assert_eq!(a.peek(0, 0xbfd), pattern[0x403..]);
    let mut back = vec![0; 0x1000];
    space.read(0x1400, &mut back).unwrap();
    assert_eq!(back, pattern);
}

#[test]
fn a_large_access_goes_the_same_ways() {
    let (space, a, b) = (TestDevice::new(), Memory::new(2 << 20), Memory::new(2 << 20));
    map(&space, &a, 0, 1 << 20, 0);
    map(&space, &b, 1 << 20, 1 << 20, 1 << 20);
    let pattern: Vec<u8> = (0..1 << 20).map(|i: u32| (i * 7 / 3) as u8).collect();
    space.write(0x8_0001, &pattern).unwrap();
    assert_eq!(a.peek(0x8_0001, 0x7_ffff), pattern[..0x7_ffff]);
    assert_eq!(b.peek(1 << 20, 0x8_0001), pattern[0x7_ffff..]);
    let mut back = vec![0; 1 << 20];
    space.read(0x8_0001, &mut back).unwrap();
    assert_eq!(back, pattern);
    assert_eq!(errno(space.read(0x10_0001, &mut back)), Errno::FAULT);
    assert_eq!(space.usage().in_use, 0);
}

#[test]
fn nothing_is_touched_where_a_part_is_missing_or_forbidden() {
    let (space, memory) = (TestDevice::new(), Memory::new(0x1_0000));
    map(&space, &memory, 0x1000, 0x1000, 0);
    space.map(A, request(0x2000, 0x1000, Perm::READ, memory.fd(), 0x1000)).unwrap();
    map(&space, &memory, 0x4000, 0x1000, 0x2000);
    let ones = vec![1; 0x8000];
    assert_eq!(errno(space.write(0x1ff0, &ones[..32])), Errno::ACCESS);
    assert_eq!(errno(space.write(0x4ff0, &ones[..32])), Errno::FAULT);
    assert_eq!(errno(space.write(0x0ff0, &ones[..32])), Errno::FAULT);
    assert_eq!(errno(space.write(0x1000, &ones)), Errno::ACCESS);
    assert_eq!(memory.peek(0, 0x1_0000), vec![0; 0x1_0000]);
    let mut bytes = vec![7; 0x3001];
    assert_eq!(errno(space.read(0x1000, &mut bytes)), Errno::FAULT);
    assert!(bytes.iter().all(|b| *b == 7));
    space.read(0x1000, &mut bytes[..0x2000]).unwrap();
    space.write(0x3000, &[]).unwrap();
    for at in [0x3000, u64::MAX - 3] {
        assert_eq!(errno(space.read(at, &mut bytes[..8])), Errno::FAULT);
    }
}

#[test]
fn permissions_of_windows() {
    let (space, memory) = (TestDevice::new(), Memory::new(0x4000));
    space.map(A, request(0, 0x1000, Perm::READ, memory.fd(), 0)).unwrap();
    space.map(A, request(0x1000, 0x1000, Perm::WRITE, memory.fd(), 0)).unwrap();
    let mut word = [0; 4];
    space.read(0, &mut word).unwrap();
    assert_eq!(errno(space.write(0, &word)), Errno::ACCESS);
    assert_eq!(errno(space.read(0x1000, &mut word)), Errno::ACCESS);
    space.write(0x1000, &word).unwrap();
    assert_eq!(errno(space.pin(0, 4, RW)), Errno::ACCESS);
    assert_eq!(errno(space.pin(0x1000, 4, Perm::READ)), Errno::ACCESS);
    assert_eq!(errno(space.store(0, 1u32, Ordering::Relaxed)), Errno::ACCESS);
    assert_eq!(errno(space.load::<u32>(0x1000, Ordering::Relaxed)), Errno::ACCESS);
    assert_eq!(errno(space.swap(0, 1u32)), Errno::ACCESS);
    assert_eq!(errno(space.swap(0x1000, 1u32)), Errno::ACCESS);
    let mut access = space.access().unwrap();
    assert_eq!(errno(access.translate(0, 4, Perm::WRITE).map(|s| s.len())), Errno::ACCESS);
}

#[test]
fn no_bus_master_no_dma() {
    let (space, memory) = (TestDevice::new(), Memory::new(0x1000));
    map(&space, &memory, 0, 0x1000, 0);
    assert!(space.bus_master());
    let mut word = [0; 4];
    let mut batch = space.attachment().batch().unwrap();
    assert_eq!(batch.read(0, &mut word).unwrap(), crate::Reach::Mapped);
    space.set_bus_master(false);
    let refused = |access: crate::Result<()>| access.err().map(|error| error.errno());
    let accesses = [
        refused(batch.read(0, &mut word).map(drop)),
        refused(batch.write(0, &word).map(drop)),
        refused(batch.load::<u32>(0).map(drop)),
        refused(batch.translate(0, 4, Perm::READ).map(drop)),
    ];
    assert_eq!(accesses, [Some(Errno::PERM); 4], "an access of a batch that had begun");
    drop(batch);
    assert_eq!(errno(space.read(0, &mut word)), Errno::PERM);
    assert_eq!(errno(space.write(0, &word)), Errno::PERM);
    assert_eq!(errno(space.pin(0, 4, Perm::READ)), Errno::PERM);
    assert_eq!(errno(space.access().map(drop)), Errno::PERM);
    assert_eq!(errno(space.load::<u8>(0, Ordering::Acquire)), Errno::PERM);
    assert_eq!(errno(space.fetch_add(0, 1u8)), Errno::PERM);
    space.set_bus_master(true);
    space.read(0, &mut word).unwrap();
}

#[test]
fn windows_that_cannot_be() {
    let (space, memory) = (TestDevice::new(), Memory::new(0x10000));
    let try_map = |iova, size, perm, offset| {
        errno(space.map(A, request(iova, size, perm, memory.fd(), offset)))
    };
    map(&space, &memory, 0x4000, 0x2000, 0);
    for (iova, size) in [
        (0x4000, 0x2000),
        (0x4000, 1),
        (0x5fff, 1),
        (0x3000, 0x1001),
        (0x5000, 0x9000),
        (0, 1 << 40),
    ] {
        assert_eq!(try_map(iova, size, RW, 0), Errno::EXIST, "{iova:#x} {size:#x}");
    }
    assert_eq!(try_map(0, 0, RW, 0), Errno::INVAL);
    assert_eq!(try_map(1, u64::MAX, RW, 0), Errno::INVAL);
    assert_eq!(try_map(u64::MAX, 2, RW, 0), Errno::INVAL);
    assert_eq!(try_map(0, 0x1000, Perm::empty(), 0), Errno::INVAL);
    assert_eq!(try_map(0, 0x1000, RW, u64::MAX), Errno::INVAL);
    assert_eq!(try_map(0, 0x1000, RW, i64::MAX as u64), Errno::INVAL);
    assert_eq!(space.len(), 1);
    // Neighbours are fine, up to the very last address.
    map(&space, &memory, 0x3fff, 1, 0);
    map(&space, &memory, 0x6000, 1, 0);
    map(&space, &memory, 0xffff_ffff_ffff_f000, 0x1000, 0x2000);
    space.write(u64::MAX, &[9]).unwrap();
    assert_eq!(memory.peek(0x2fff, 1), [9]);
    assert_eq!(errno(space.write(u64::MAX, &[9, 9])), Errno::FAULT);
}

#[test]
fn unmapping_takes_what_is_inside_and_cuts_nothing() {
    let (space, memory) = (TestDevice::new(), Memory::new(0x10000));
    let fill = || (0..4).for_each(|i| map(&space, &memory, i * 0x4000, 0x2000, i * 0x1000));
    fill();
    assert_eq!(errno(space.unmap(0x1000, 0x1000, SOON)), Errno::INVAL);
    assert_eq!(errno(space.unmap(0x0, 0x5000, SOON)), Errno::INVAL);
    assert_eq!(errno(space.unmap(0x1fff, u64::MAX - 0x2000, SOON)), Errno::INVAL);
    assert_eq!(errno(space.unmap(0x4000, 0, SOON)), Errno::INVAL);
    assert_eq!(errno(space.unmap(1, u64::MAX, SOON)), Errno::INVAL);
    assert_eq!(space.len(), 4);
    assert_eq!(space.unmap(0x2000, 0x2000, SOON).unwrap(), 0);
    assert_eq!(space.unmap(0x4000, 0x2000, SOON).unwrap(), 0x2000);
    assert_eq!(space.unmap(0x2000, 0x8000, SOON).unwrap(), 0x2000);
    assert_eq!(space.len(), 2);
    // As a client with a virtual IOMMU does, past every mapping and up to 2^64.
    assert_eq!(space.unmap(0, 0x8000_0000_0000, SOON).unwrap(), 0x4000);
    fill();
    assert_eq!(space.unmap(0xfef0_0000, 0xffff_ffff_0110_0000, SOON).unwrap(), 0);
    map(&space, &memory, 0xffff_ffff_ffff_0000, 0x1_0000, 0);
    assert_eq!(space.unmap(0xfef0_0000, 0xffff_ffff_0110_0000, SOON).unwrap(), 0x1_0000);
    assert_eq!(space.unmap_all(SOON).unwrap(), 0x8000);
    assert_eq!(space.unmap_all(SOON).unwrap(), 0);
    assert!(space.is_empty());
}

#[test]
fn a_file_is_mapped_once_and_not_for_ever() {
    let (space, memory) = (TestDevice::new(), Memory::named("dma-once", 1 << 20));
    for i in 0..1000 {
        map(&space, &memory, i * 0x2000, 0x1000, i % 256 * 0x1000);
    }
    assert_eq!(held("dma-once"), (1, 2), "one mapping, one descriptor beside ours");
    assert_eq!(space.usage().mapped_files, 1);
    space.unmap(0, 0x1000 * 3000, SOON).unwrap();
    assert_eq!((space.len(), held("dma-once").0, space.usage().idle), (0, 1, 1));
    // Others push it out.
    let others = [(); 4].map(|()| Memory::named("dma-other", 0x1000));
    for other in &others {
        map(&space, other, 0, 0x1000, 0);
        space.unmap(0, 0x1000, SOON).unwrap();
    }
    assert_eq!((held("dma-once").0, held("dma-other").0), (0, 4));
    space.unmap_all(SOON).unwrap();
    assert_eq!(held("dma-other").0, 0);
    assert_eq!(space.usage(), Usage::default());
}

#[test]
fn files_of_other_modes_are_mapped_apart() {
    let (space, memory) = (TestDevice::new(), Memory::new(0x2000));
    map(&space, &memory, 0, 0x1000, 0);
    // What is open for reading only must not get at the writable mapping.
    space.map(A, request(0x1000, 0x1000, RW, memory.read_only(), 0)).unwrap();
    assert_eq!(space.usage().mapped_files, 2);
    space.write(0, b"x").unwrap();
    assert_eq!(errno(space.write(0x1000, b"x")), Errno::ACCESS);
    assert_eq!(errno(space.pin(0x1000, 1, RW)), Errno::ACCESS);
    let mut byte = [0];
    space.read(0x1000, &mut byte).unwrap();
    assert_eq!(&byte, b"x");
}

#[test]
fn windows_go_with_the_file_that_mapped_them() {
    let (space, memory) = (TestDevice::new(), Memory::named("dma-owned", 0x1000));
    for i in 0..500u64 {
        let owner = if i % 3 == 0 { B } else { A };
        space.map(owner, request(i * 0x1000, 0x1000, RW, memory.fd(), 0)).unwrap();
    }
    let infos = space.mappings();
    assert_eq!(infos.len(), 500);
    assert_eq!((infos[3].iova, infos[3].last, infos[3].owner), (0x3000, 0x3fff, Some(B)));
    space.drop_owner(MapOwner(99));
    assert_eq!(space.len(), 500);
    space.drop_owner(A);
    assert_eq!(space.len(), 167);
    assert!(space.mappings().iter().all(|w| w.owner == Some(B) && w.is_mapped() && w.perm == RW));
    space.read(0, &mut [0]).unwrap();
    assert_eq!(errno(space.read(0x1000, &mut [0])), Errno::FAULT);
    space.drop_owner(B);
    assert_eq!((space.usage(), held("dma-owned").0), (Usage::default(), 0));
}

#[test]
fn address_space_is_limited() {
    let (space, memory) = (TestDevice::new(), Memory::new(0x4000));
    space.set_address_space(0x6000);
    map(&space, &memory, 0, 0x4000, 0);
    let other = Memory::new(0x4000);
    let more = request(0x4000, 0x4000, RW, other.fd(), 0);
    assert_eq!(errno(space.map(A, more)), Errno::NOMEM);
    assert_eq!((space.len(), space.usage().address_space), (1, 0x4000));
    map(&space, &memory, 0x4000, 0x1000, 0);
    space.unmap_all(SOON).unwrap();
    map(&space, &other, 0, 0x4000, 0);
}

#[test]
fn a_million_windows() {
    let (space, memory) = (TestDevice::new(), Memory::new(0x1000));
    let peer: Arc<dyn DmaPeer> = Arc::new(messages::Dead);
    let message = |i: u64| MapRequest {
        iova: i * 2,
        size: 1,
        perm: Perm::READ,
        backing: Backing::Peer(peer.clone()),
    };
    for i in 0..(1 << 20) - 1 {
        space.map(A, message(i)).unwrap();
    }
    map(&space, &memory, 1 << 40, 0x1000, 0);
    assert_eq!(errno(space.map(A, message(1 << 38))), Errno::NOSPC);
    space.write((1 << 40) + 5, b"x").unwrap();
    assert_eq!(space.unmap(0x1000, 0x10_0000, SOON).unwrap(), 0x8_0000);
    space.drop_owner(A);
    assert!(space.is_empty());
}

#[test]
fn atomics() {
    let (space, memory) = (TestDevice::new(), Memory::new(0x2000));
    map(&space, &memory, 0x1000, 0x1002, 0);
    space.store(0x1008, 0x1122_3344_5566_7788u64, Ordering::SeqCst).unwrap();
    assert_eq!(memory.peek(8, 8), 0x1122_3344_5566_7788u64.to_ne_bytes());
    space.store(0x1010, 0xaabb_ccddu32, Ordering::Release).unwrap();
    space.store(0x1014, 0xeeffu16, Ordering::Relaxed).unwrap();
    space.store(0x1016, 0x99u8, Ordering::Relaxed).unwrap();
    assert_eq!(space.load::<u32>(0x1010, Ordering::Acquire).unwrap(), 0xaabb_ccdd);
    assert_eq!(space.load::<u16>(0x1014, Ordering::Relaxed).unwrap(), 0xeeff);
    assert_eq!(space.load::<u8>(0x1016, Ordering::SeqCst).unwrap(), 0x99);
    assert_eq!(space.load::<u64>(0x1008, Ordering::Acquire).unwrap(), 0x1122_3344_5566_7788);
    // A place across the mapping's end, at an odd place in the file, and at an odd address.
    assert_eq!(errno(space.load::<u32>(0x2000, Ordering::Relaxed)), Errno::INVAL);
    map(&space, &memory, 0x4000, 0x100, 1);
    assert_eq!(errno(space.load::<u32>(0x4000, Ordering::Relaxed)), Errno::INVAL);
    assert_eq!(errno(space.store(0x1001, 1u16, Ordering::Relaxed)), Errno::INVAL);
    assert_eq!(errno(space.load::<u64>(0x8000, Ordering::Relaxed)), Errno::FAULT);
    if !ATOMICS {
        assert_eq!(errno(space.swap(0x1000, 1u8)), Errno::OPNOTSUPP);
        return;
    }
    assert_eq!(space.swap(0x1000, 5u32).unwrap(), 0);
    assert_eq!(space.compare_exchange(0x1000, 4u32, 9).unwrap(), 5);
    assert_eq!(space.compare_exchange(0x1000, 5u32, 9).unwrap(), 5);
    assert_eq!(space.fetch_add(0x1000, u32::MAX).unwrap(), 9);
    assert_eq!(space.fetch_or(0x1000, 0x70u8).unwrap(), 8);
    assert_eq!(space.fetch_and(0x1000, 0x18u16).unwrap(), 0x78);
    assert_eq!(space.load::<u64>(0x1000, Ordering::Relaxed).unwrap(), 0x18);
    ftruncate(&memory.0, 0).unwrap();
    assert_eq!(errno(space.load::<u64>(0x1000, Ordering::Relaxed)), Errno::FAULT);
    assert_eq!(errno(space.store(0x1000, 1u16, Ordering::SeqCst)), Errno::FAULT);
    assert_eq!(errno(space.fetch_add(0x1000, 1u16)), Errno::FAULT);
}

#[test]
fn atomics_of_several_threads_add_up() {
    if !ATOMICS {
        return;
    }
    let (space, memory) = (TestDevice::new(), Memory::new(0x1000));
    map(&space, &memory, 0, 0x1000, 0);
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| (0..5000).for_each(|_| _ = space.fetch_add(0x40, 1u16).unwrap()));
        }
    });
    assert_eq!(space.load::<u64>(0x40, Ordering::Relaxed).unwrap(), 15_000);
}

#[test]
fn a_batch_translates_and_copies() {
    let (space, memory) = (TestDevice::new(), Memory::new(1 << 20));
    map(&space, &memory, 0x1000, 0x1000, 0x3000);
    map(&space, &memory, 0x2000, 0x8_0000, 0x5000);
    let mut access = space.access().unwrap();
    {
        let span = access.translate(0x1800, 0x1000, Perm::READ).unwrap();
        assert_eq!((span.iova(), span.len(), span.is_mapped()), (0x1800, 0x800, true));
        memory.poke(0x3800, b"abc");
        let mut bytes = [0; 3];
        span.read(0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"abc");
        assert_eq!(errno(span.write(0, &bytes)), Errno::ACCESS);
        assert_eq!(errno(span.read(0x7fe, &mut bytes)), Errno::INVAL);
        assert_eq!(errno(span.read(usize::MAX, &mut bytes)), Errno::INVAL);
    }
    for (iova, len, want) in
        [(0x1000, 0, Errno::INVAL), (0, 1, Errno::FAULT), (u64::MAX, 2, Errno::FAULT)]
    {
        let got = access.translate(iova, len, Perm::READ).map(|span| span.len());
        assert_eq!(errno(got), want);
    }
    access.translate(0x2000, 4, RW).unwrap().write(1, b"xyz").unwrap();
    assert_eq!(memory.peek(0x5000, 4), b"\0xyz");
    assert_eq!(access.write(0x1fff, b"12").unwrap(), Reach::Mapped);
    let mut bytes = [0; 2];
    assert_eq!(access.read(0x1fff, &mut bytes).unwrap(), Reach::Mapped);
    assert_eq!(&bytes, b"12");
    // Larger than what is copied under the lock.
    let pattern = vec![0x5a; 0x4_0000];
    assert_eq!(access.write(0x2000, &pattern).unwrap(), Reach::Mapped);
    let mut back = vec![0; 0x4_0000];
    assert_eq!(access.read(0x2000, &mut back).unwrap(), Reach::Mapped);
    assert_eq!(back, pattern);
    assert_eq!(access.read(0, &mut []).unwrap(), Reach::Mapped);
    assert_eq!(errno(access.read(0, &mut back)), Errno::FAULT);
}

#[test]
fn space_ends_with_its_last_attachment() {
    let (space, memory) = (TestDevice::new(), Memory::named("dma-dropped", 0x1000));
    map(&space, &memory, 0, 0x1000, 0);
    drop(space);
    assert_eq!(held("dma-dropped"), (0, 1), "only our own descriptor is left");
}
