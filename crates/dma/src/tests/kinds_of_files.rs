//! Files of every kind and length, and what their owners do to them.

use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, SealFlags, fcntl_add_seals, open};

use super::*;

#[test]
fn what_cannot_be_mapped_is_refused() {
    let space = TestDevice::new();
    let open = |path: &str, flags| open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    let socket: OwnedFd = std::os::unix::net::UnixStream::pair().unwrap().0.into();
    let eventfd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let write_only = {
        use std::os::fd::AsRawFd;
        let memory = Memory::new(0x1000);
        open(&format!("/proc/self/fd/{}", memory.0.as_raw_fd()), OFlags::WRONLY)
    };
    let cases = [
        ("a pipe", pipe, Errno::NODEV),
        ("a socket", socket, Errno::NODEV),
        ("an eventfd", eventfd, Errno::NODEV),
        ("a directory", open("/", OFlags::RDONLY), Errno::NODEV),
        ("a directory of a tmpfs", open("/dev/shm", OFlags::RDONLY), Errno::NODEV),
        ("a device", open("/dev/zero", OFlags::RDWR), Errno::NODEV),
        ("write-only", write_only, Errno::ACCESS),
        ("a path", open("/proc/self/exe", OFlags::PATH), Errno::BADF),
        ("proc", open("/proc/self/status", OFlags::RDONLY), Errno::IO),
    ];
    let any = TestDevice::with_files(AcceptedFiles::Any);
    for (what, fd, want) in cases {
        let copy = fd.try_clone().unwrap();
        let got = errno(any.map(A, request(0, 0x1000, Perm::READ, copy, 0)));
        // What the kernel says to a file of /proc depends on the kernel.
        assert!(got == want || what == "proc", "{what}: {got:?}");
        let kind = MemoryKind::of(&fd);
        let got = errno(space.map(A, request(0, 0x1000, Perm::READ, fd, 0)));
        if what == "write-only" {
            assert_eq!((got, kind), (Errno::ACCESS, MemoryKind::Shared));
        } else {
            assert!([Errno::NODEV, Errno::BADF].contains(&got), "{what}: {got:?}");
            assert_eq!(kind, MemoryKind::Other, "{what}");
        }
    }
    assert_eq!((space.usage(), any.usage()), (Usage::default(), Usage::default()));
}

#[test]
fn a_window_longer_than_its_file() {
    let (space, memory) = (TestDevice::new(), Memory::new(0x1800));
    map(&space, &memory, 0, 0x10_0000, 0);
    let mut bytes = vec![0; 0x8000];
    // To the end of its last page, as with any mapping.
    space.read(0x1000, &mut bytes[..0x1000]).unwrap();
    assert_eq!(errno(space.read(0x1fff, &mut bytes[..2])), Errno::FAULT);
    assert_eq!(errno(space.write(0x2000, &[1])), Errno::FAULT);
    assert_eq!(errno(space.read(0, &mut bytes)), Errno::FAULT);
    assert_eq!(errno(space.load::<u32>(0x2000, Ordering::Relaxed)), Errno::FAULT);
    let pinned = space.pin(0, 0x8000, RW).unwrap();
    assert_eq!(errno(pinned.read(0, &mut bytes)), Errno::FAULT);
    // The file grows into the mapping.
    ftruncate(&memory.0, 0x8000).unwrap();
    pinned.read(0, &mut bytes).unwrap();
    space.write(0x7fff, &[1]).unwrap();
    assert_eq!(memory.peek(0x7fff, 1), [1]);
}

#[test]
fn a_window_that_lies_about_its_length_grossly() {
    let (space, memory) = (TestDevice::new(), Memory::new(0x1000));
    map(&space, &memory, 0, 1 << 62, 0);
    space.write(0xfff, &[1]).unwrap();
    for at in [0x1000, 1 << 36, 1 << 38, (1 << 62) - 1] {
        assert_eq!(errno(space.write(at, &[1])), Errno::FAULT, "{at:#x}");
        assert_eq!(errno(space.load::<u8>(at, Ordering::Relaxed)), Errno::FAULT, "{at:#x}");
    }
    assert_eq!(errno(space.pin(1 << 38, 1, RW)), Errno::FAULT);
    map(&space, &memory, 1 << 62, 0x1000, 1 << 40);
    assert_eq!(errno(space.write(1 << 62, &[1])), Errno::FAULT);
    assert!(space.usage().address_space < 1 << 40);
}

#[test]
fn a_file_that_grew_after_it_was_mapped() {
    let (space, memory) = (TestDevice::new(), Memory::new(0x1000));
    map(&space, &memory, 0, 0x1000, 0);
    for i in 1..64u64 {
        ftruncate(&memory.0, (i + 1) * 0x1000).unwrap();
        map(&space, &memory, i * 0x1000, 0x1000, i * 0x1000);
        space.write(i * 0x1000, &[i as u8]).unwrap();
        assert_eq!(memory.peek(i * 0x1000, 1), [i as u8]);
    }
    assert!(space.usage().mapped_files <= 8, "{:?}", space.usage());
    // Mappings of the mappings before still work, and all of it goes.
    space.write(0, &[77]).unwrap();
    assert_eq!(memory.peek(0, 1), [77]);
    assert_eq!(space.unmap(0, 0x4_0000, SOON).unwrap(), 0x4_0000);
    assert!(space.usage().mapped_files <= 1);
}

#[test]
fn a_file_too_long_to_be_mapped_whole() {
    let (space, memory) = (TestDevice::new(), Memory::named("dma-long", 3 << 40));
    map(&space, &memory, 0x1000, 0x1234, (2 << 40) + 0x123);
    map(&space, &memory, 0x9000, 0x1000, 0x1000);
    space.write(0x1000, b"far").unwrap();
    space.write(0x9000, b"near").unwrap();
    assert_eq!(memory.peek((2 << 40) + 0x123, 3), b"far");
    assert_eq!(memory.peek(0x1000, 4), b"near");
    assert_eq!((space.usage().mapped_files, space.usage().address_space), (2, 0x3000));
    space.unmap(0x1000, 0x1234, SOON).unwrap();
    assert_eq!(held("dma-long").0, 1, "no such mapping is kept for later");
    let all = request(1 << 44, 3 << 40, RW, memory.fd(), 0);
    space.set_address_space(1 << 40);
    assert_eq!(errno(space.map(A, all)), Errno::NOMEM);
}

#[test]
fn a_file_sealed_against_writing() {
    let (space, memory) = (TestDevice::new(), Memory::new(0x1000));
    memory.poke(0, b"fixed");
    fcntl_add_seals(&memory.0, SealFlags::WRITE).unwrap();
    map(&space, &memory, 0, 0x1000, 0);
    let mut bytes = [0; 5];
    space.read(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"fixed");
    assert_eq!(errno(space.write(0, &bytes)), Errno::ACCESS);
    assert_eq!(errno(space.store(0, 1u8, Ordering::SeqCst)), Errno::ACCESS);
    assert_eq!(errno(space.pin(0, 1, Perm::WRITE)), Errno::ACCESS);
}

/// A file that has no name any more, in a directory.
fn unnamed(directory: &Path, size: u64) -> OwnedFd {
    let path = directory.join(format!("vfiod-dma-{}", std::process::id()));
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let fd = open(&path, flags, Mode::RUSR | Mode::WUSR).unwrap();
    std::fs::remove_file(&path).unwrap();
    ftruncate(&fd, size).unwrap();
    fd
}

#[test]
fn memory_is_mapped_and_other_files_only_where_they_are_accepted() {
    let huge = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let mut files = vec![
        ("a memfd", MemoryKind::Shared, Memory::new(0x4000).0),
        ("a tmpfs", MemoryKind::Shared, unnamed(Path::new("/dev/shm"), 0x4000)),
        ("a disk", MemoryKind::Other, unnamed(Path::new(env!("CARGO_MANIFEST_DIR")), 0x4000)),
    ];
    if let Ok(fd) = memfd_create("dma-kinds-huge", huge) {
        ftruncate(&fd, 2 << 20).unwrap();
        files.push(("huge pages", MemoryKind::Huge, fd));
    }
    for (what, kind, fd) in files {
        assert_eq!(MemoryKind::of(&fd), kind, "{what}");
        for accepted in [AcceptedFiles::Memory, AcceptedFiles::Any] {
            let device = TestDevice::with_files(accepted);
            let copy = fd.try_clone().unwrap();
            let mapped = device.map(A, request(0, 0x1000, RW, copy, 0)).map_err(|e| e.errno());
            let refused = kind == MemoryKind::Other && accepted == AcceptedFiles::Memory;
            assert_eq!(mapped, if refused { Err(Errno::NODEV) } else { Ok(()) }, "{what}");
        }
    }
}

/// A file of an overlay is in the hands of whoever serves the file systems below it.
#[test]
fn file_of_an_overlay_is_no_memory() {
    let Some(overlay) = Overlay::mount() else {
        eprintln!("SKIPPED: no overlay can be mounted here");
        return;
    };
    let fd = unnamed(&overlay.merged(), 0x1000);
    assert_eq!(MemoryKind::of(&fd), MemoryKind::Other);
    let mapped = TestDevice::new().map(A, request(0, 0x1000, RW, fd, 0));
    assert_eq!(errno(mapped), Errno::NODEV);
}

/// An overlay on a tmpfs.
struct Overlay(PathBuf);

impl Overlay {
    fn mount() -> Option<Self> {
        let overlay = Self(format!("/dev/shm/vfiod-overlay-{}", std::process::id()).into());
        let at = |name| overlay.0.join(name);
        for name in ["lower", "upper", "work", "merged"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        let (lower, upper, work) = (at("lower"), at("upper"), at("work"));
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        let mount = std::process::Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &options])
            .arg(overlay.merged())
            .stderr(std::process::Stdio::null())
            .status();
        mount.is_ok_and(|status| status.success()).then_some(overlay)
    }

    fn merged(&self) -> PathBuf {
        self.0.join("merged")
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        _ = std::process::Command::new("umount")
            .arg(self.merged())
            .stderr(std::process::Stdio::null())
            .status();
        _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_file_on_a_disk() {
    let fd = unnamed(&std::env::temp_dir(), 10_000);
    let (space, memory) = (TestDevice::with_files(AcceptedFiles::Any), Memory(fd));
    map(&space, &memory, 0, 10_000, 0);
    space.write(9_990, b"0123456789").unwrap();
    assert_eq!(memory.peek(9_990, 10), b"0123456789");
    ftruncate(&memory.0, 100).unwrap();
    assert_eq!(errno(space.write(9_990, b"0")), Errno::FAULT);
}

#[test]
fn huge_pages() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let Ok(fd) = memfd_create("dma-huge", flags) else { return };
    ftruncate(&fd, 4 << 20).unwrap();
    let (space, memory) = (TestDevice::new(), Memory(fd));
    // Longer than the file, which must not be lengthened by that.
    map(&space, &memory, 0x1000, 8 << 20, 0);
    assert_eq!(rustix::fs::fstat(&memory.0).unwrap().st_size, 4 << 20);
    // Whether the machine has such pages or not: an answer, and the process lives.
    if let Err(error) = space.write(0x1000, b"huge") {
        assert_eq!(error.errno(), Errno::FAULT);
    }
    assert_eq!(errno(space.write((4 << 20) + 0x1000, b"huge")), Errno::FAULT);
    space.unmap_all(SOON).unwrap();
    assert_eq!((held("dma-huge").0, space.usage()), (0, Usage::default()));
}

#[test]
fn truncation_and_mapping_under_running_accesses() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let (space, a, b) = (TestDevice::new(), Memory::new(0x4_0000), Memory::new(0x4_0000));
    a.poke(0, &[0xaa; 0x4_0000]);
    b.poke(0, &[0xbb; 0x4_0000]);
    map(&space, &a, 0x8_0000, 0x4_0000, 0);
    let stop = AtomicBool::new(false);
    let (mut went, mut missing) = (0u64, 0u64);
    std::thread::scope(|s| {
        // Small ones are copied under the lock, large ones pinned.
        let readers: Vec<_> = [64usize, 0x1_0000]
            .into_iter()
            .map(|len| {
                let (space, stop) = (&space, &stop);
                s.spawn(move || {
                    let (mut went, mut missing) = (0u64, 0u64);
                    let mut bytes = vec![0; len];
                    while !stop.load(Ordering::Relaxed) {
                        match space.read(0x2_0000, &mut bytes) {
                            Ok(()) => {
                                // Whole and of one file, or zeroes where it was cut meanwhile.
                                let seen = |x| bytes.contains(&x);
                                assert!(!(seen(0xaa) && seen(0xbb)));
                                assert!(bytes.iter().all(|b| [0, 0xaa, 0xbb].contains(b)));
                                went += 1;
                            }
                            Err(error) => {
                                assert_eq!(error.errno(), Errno::FAULT);
                                missing += 1;
                            }
                        }
                        _ = space.write(0x8_0000, &bytes);
                    }
                    (went, missing)
                })
            })
            .collect();
        for i in 0..2000 {
            let memory = if i % 2 == 0 { &a } else { &b };
            map(&space, memory, 0, 0x4_0000, 0);
            if i % 8 == 7 {
                ftruncate(&memory.0, 0x1000).unwrap();
                std::thread::yield_now();
                ftruncate(&memory.0, 0x4_0000).unwrap();
                let byte = if i % 2 == 0 { 0xaa } else { 0xbb };
                memory.poke(0, &[byte; 0x4_0000]);
            }
            if i % 32 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            space.unmap(0, 0x4_0000, Duration::from_secs(60)).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            let (w, m) = reader.join().unwrap();
            went += w;
            missing += m;
        }
    });
    assert!(went > 0 && missing > 0, "{went} {missing}");
    assert_eq!(space.usage().in_use, 0);
}
