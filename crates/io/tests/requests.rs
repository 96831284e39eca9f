//! Requests by io_uring and by threads: what they do, who owns what, and what fails.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfiod_buffer::Aligned;
use vfiod_dma::{Attachment, Backing, Errno, MapRequest, Perm, Space};
use vfiod_io::{Allocation, Buffer, Holds, Ring, RuntimeRing};
use vfiod_tasks::{Runtime, Workers};

const RW: Perm = Perm::READ.union(Perm::WRITE);
const SOON: Duration = Duration::from_millis(20);

/// Both kinds of ring; only one where io_uring is forbidden.
fn rings() -> Vec<Ring> {
    let mut rings = vec![Ring::with_threads(2).unwrap()];
    match Ring::with_io_uring(4) {
        Ok(ring) => rings.push(ring),
        Err(error) => assert!(matches!(error.errno(), Errno::PERM | Errno::NOSYS), "{error}"),
    }
    rings
}

fn file(name: &str, size: u64) -> Arc<OwnedFd> {
    let fd = memfd_create(name, MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, size).unwrap();
    Arc::new(fd)
}

/// A device with memory of a guest at 0.
fn guest(size: u64) -> (Attachment, Space, Arc<OwnedFd>) {
    let (space, memory) = (Space::new(), file("guest", size));
    let backing = Backing::File { fd: memory.try_clone().unwrap(), offset: 0 };
    space.map(None, MapRequest { iova: 0, size, perm: RW, backing }).unwrap();
    (Attachment::new(&space), space, memory)
}

fn peek(fd: &OwnedFd, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rustix::io::pread(fd, &mut bytes, offset).unwrap();
    bytes
}

/// Waits until requests have completed, and takes them.
fn reap(ring: &Ring) -> usize {
    let mut fds = [PollFd::new(ring.fd(), PollFlags::IN)];
    poll(&mut fds, None).unwrap();
    ring.reap()
}

/// Runs a future on this thread; completions are taken by a task.
fn run<F: Future + Send + 'static>(ring: &Ring, future: F) -> F::Output
where
    F::Output: Send,
{
    let runtime = Runtime::new().unwrap();
    let (fd, reaper) = (runtime.descriptor(ring.fd().clone()).unwrap(), ring.clone());
    let _reaper = runtime.spawn(async move {
        loop {
            fd.readable().await;
            reaper.reap();
        }
    });
    runtime.block_on(None, future).unwrap()
}

#[test]
fn data_goes_between_file_and_guest_memory() {
    for ring in rings() {
        let ((device, space, memory), disk) = (guest(0x10000), file("disk", 0x20000));
        rustix::io::pwrite(&*disk, &[7; 0x3000], 0x1800).unwrap();
        space.start_dirty_log();
        let (requests, target) = (ring.clone(), disk.clone());
        run(&ring, async move {
            let hold = device.hold(0x2100, 0x3000, Perm::WRITE).unwrap();
            let (read, hold) = requests.read_to_guest(&target, 0x1800, hold).await;
            assert_eq!((read.unwrap(), hold.map(|h| h.iova())), (0x3000, Some(0x2100)));
            let hold = device.hold(0x2000, 0x200, Perm::READ).unwrap();
            let (written, _) = requests.write_from_guest(&target, 0x10000, hold).await;
            assert_eq!(written.unwrap(), 0x200);
            requests.flush(&target).await.unwrap();
            assert_eq!(device.in_flight(), 0);
        });
        assert_eq!(peek(&memory, 0x20ff, 0x3002), [&[0], [7; 0x3000].as_slice(), &[0]].concat());
        assert_eq!(peek(&disk, 0x10000, 0x200), [[0; 0x100], [7; 0x100]].concat());
        let mut bitmap = [0; 8];
        space.report_dirty(0, 0x10000, 4096, vfiod_dma::Marks::Clear, &mut bitmap).unwrap();
        assert_eq!(bitmap[..2], [0b0011_1100, 0], "what was read into is dirty");
    }
}

#[test]
fn data_goes_between_file_and_buffer() {
    for ring in rings() {
        let disk = file("disk", 0x4000);
        let (requests, target) = (ring.clone(), disk.clone());
        run(&ring, async move {
            let (written, buffer) = requests.write(&target, 0x3ffc, b"12345678".to_vec()).await;
            assert_eq!((written.unwrap(), buffer), (8, b"12345678".to_vec()));
            let (read, buffer) = requests.read(&target, 0x4000, vec![9; 8]).await;
            assert_eq!((read.unwrap(), buffer), (4, b"5678\t\t\t\t".to_vec()), "short at the end");
            requests.allocate(&target, Allocation::PunchHole, 0x3000, 0x1000).await.unwrap();
            assert_eq!(peek(&target, 0x3ffc, 8), [[0; 4], *b"5678"].as_flattened());
            requests.allocate(&target, Allocation::Reserve, 0, 0x1000).await.unwrap();
        });
    }
}

#[test]
fn errors_come_with_the_buffer() {
    for ring in rings() {
        let ((device, _space, memory), disk) = (guest(0x4000), file("disk", 0x4000));
        let (requests, target) = (ring.clone(), disk.clone());
        run(&ring, async move {
            let read_only = device.hold(0, 0x1000, Perm::READ).unwrap();
            let (refused, hold) = requests.read_to_guest(&target, 0, read_only).await;
            assert_eq!((refused.unwrap_err().errno(), hold.is_some()), (Errno::ACCESS, true));
            let (refused, _) = requests.read(&target, u64::MAX, vec![0; 8]).await;
            assert_eq!(refused.unwrap_err().errno(), Errno::INVAL);
            // The client truncates its memory: the request fails, the process lives.
            let hold = device.hold(0x1000, 0x1000, RW).unwrap();
            ftruncate(&*memory, 0x1000).unwrap();
            let (refused, hold) = requests.read_to_guest(&target, 0, hold).await;
            assert_eq!((refused.unwrap_err().errno(), hold.is_some()), (Errno::FAULT, true));
            let directory = Arc::new(std::fs::File::open("/").unwrap().into());
            let (refused, _) = requests.read(&directory, 0, vec![0; 8]).await;
            assert_eq!(refused.unwrap_err().errno(), Errno::ISDIR);
            requests.allocate(&directory, Allocation::PunchHole, 0, 1).await.unwrap_err();
            requests.allocate(&target, Allocation::PunchHole, 0, 0).await.unwrap_err();
        });
    }
}

/// Bytes of memory that are allocated.
fn allocated(memory: &OwnedFd) -> u64 {
    rustix::fs::fstat(memory).unwrap().st_blocks as u64 * 512
}

/// A guest's memory of 1 MiB with a page of sevens every 64 KiB, which stays sparse; `None`, and said
/// so, where holes cannot be kept.
fn sparse_guest() -> Option<(Attachment, Space, Arc<OwnedFd>)> {
    let (device, space, memory) = guest(0x10_0000);
    device.batch().unwrap().load::<u64>(0).unwrap();
    if allocated(&memory) > 0 {
        eprintln!("SKIPPED: userfaultfd is forbidden here, so reads fill holes");
        return None;
    }
    for at in (0..16).map(|at| at << 16) {
        rustix::io::pwrite(&*memory, &[7; 4096], at).unwrap();
    }
    Some((device, space, memory))
}

#[test]
fn guest_memory_with_holes_is_written_to_a_file_and_stays_sparse() {
    for ring in rings() {
        let Some((device, _space, memory)) = sparse_guest() else { return };
        let disk = file("disk", 0);
        let (requests, target) = (ring.clone(), disk.clone());
        run(&ring, async move {
            // From a hole, and from a page that is there.
            for at in [0x8000, 0x0] {
                let len = 0x10_0000 - at;
                let hold = device.hold(at, len as usize, Perm::READ).unwrap();
                let (written, hold) = requests.write_from_guest(&target, at, hold).await;
                assert_eq!((written.unwrap(), hold.is_some()), (len as usize, true));
            }
            assert_eq!(device.in_flight(), 0);
        });
        assert_eq!(allocated(&memory), 16 * 4096);
        assert!(peek(&disk, 0, 0x10_0000) == peek(&memory, 0, 0x10_0000));
    }
}

#[test]
fn file_is_read_into_holes_which_fills_only_those() {
    for ring in rings() {
        let Some((device, _space, memory)) = sparse_guest() else { return };
        // It ends before the memory that it is read into does.
        let disk = file("disk", 0x3_0000);
        rustix::io::pwrite(&*disk, &[9; 0x3_0000], 0).unwrap();
        let (requests, source) = (ring.clone(), disk.clone());
        run(&ring, async move {
            let hold = device.hold(0x8000, 0x6_0000, Perm::WRITE).unwrap();
            let (read, _) = requests.read_to_guest(&source, 0, hold).await;
            assert_eq!(read.unwrap(), 0x3_0000);
        });
        assert!(peek(&memory, 0x8000, 0x3_0000) == [9; 0x3_0000]);
        assert_eq!(peek(&memory, 0x3_8000, 0x1000), [0; 0x1000]);
        // Of the pages that were there, three were read into.
        assert_eq!(allocated(&memory), (16 - 3) * 4096 + 0x3_0000);
    }
}

/// Several holds are one sequence of bytes, also where the kernel does not reach some of them.
#[test]
fn several_holds_are_read_and_written_in_their_order() {
    for ring in rings() {
        let Some((device, _space, memory)) = sparse_guest() else { return };
        // Holes and pages, of lengths that no piece of a copy through a buffer ends at.
        let parts = [(0x4_0000, 0x300), (0x8000, 0x1_2345), (0, 0x1000), (0x7_fe00, 0x4100)];
        let len: usize = parts.iter().map(|(_, len)| len).sum();
        let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        let disk = file("disk", 0x10_0000);
        rustix::io::pwrite(&*disk, &bytes, 0x1000).unwrap();
        let (requests, target) = (ring.clone(), disk.clone());
        run(&ring, async move {
            let hold = |(at, len), perm| device.hold(at, len, perm).unwrap();
            let hold_all = |perm| parts.map(|part| hold(part, perm)).into_iter().collect::<Holds>();
            let into = Buffer::Guest(hold_all(Perm::WRITE));
            let (read, Buffer::Guest(holds)) = requests.read_into(&target, 0x1000, into).await
            else {
                panic!("the holds come back")
            };
            let order: Vec<u64> = holds.iter().map(|hold| hold.iova()).collect();
            assert_eq!((read.unwrap(), order), (len, parts.map(|(at, _)| at).to_vec()));
            let from = Buffer::Guest(hold_all(Perm::READ));
            let (written, _) = requests.write_from(&target, 0x8_0000, from).await;
            assert_eq!(written.unwrap(), len);
            let mut holds = hold_all(Perm::READ);
            holds.insert(1, device.hold(0, 1, Perm::WRITE).unwrap());
            let (refused, buffer) = requests.write_from(&target, 0, Buffer::Guest(holds)).await;
            let Buffer::Guest(holds) = buffer else { panic!("the holds come back") };
            assert_eq!((refused.unwrap_err().errno(), holds.len()), (Errno::ACCESS, 5));
        });
        let mut at = 0;
        for (iova, len) in parts {
            assert!(peek(&memory, iova, len) == bytes[at..at + len], "read at {iova:#x}");
            at += len;
        }
        assert!(peek(&disk, 0x8_0000, len) == bytes, "written");
    }
}

#[test]
fn aligned_buffer_is_read_and_written() {
    for ring in rings() {
        let disk = file("disk", 0x4000);
        let (requests, target) = (ring.clone(), disk.clone());
        run(&ring, async move {
            let mut buffer = Aligned::zeroed(0x2000, 4096).unwrap();
            buffer.set_len(0x1000);
            buffer.fill(5);
            let (written, buffer) = requests.write_aligned(&target, 0x3000, buffer).await;
            let mut buffer = buffer.unwrap();
            buffer.set_len(0x2000);
            let (read, buffer) = requests.read_aligned(&target, 0x2000, buffer).await;
            assert_eq!((written.unwrap(), read.unwrap()), (0x1000, 0x2000));
            assert!(buffer.unwrap()[..] == [[0; 0x1000], [5; 0x1000]].concat());
        });
    }
}

/// The kernel cancels what a thread has submitted when the thread ends.
#[test]
fn requests_outlive_the_thread_that_started_them() {
    let Ok(ring) = Ring::with_io_uring(64) else { return };
    let disk = file("disk", 0x10_0000);
    for _ in 0..500 {
        let (requests, target) = (ring.clone(), disk.clone());
        let started = std::thread::spawn(move || {
            let _gathered = requests.plug();
            let reserve =
                |n: u64| requests.allocate(&target, Allocation::Reserve, n << 16, 0x1_0000);
            (0..4).map(reserve).collect::<Vec<_>>()
        });
        let started = started.join().unwrap();
        run(&ring, async move {
            for reply in started {
                reply.await.unwrap();
            }
        });
    }
}

/// More pieces than a system call takes: the rest follows.
#[test]
fn request_of_many_pieces_is_done_whole() {
    for ring in rings() {
        let pages = 1500;
        let (space, memory) = (Space::new(), file("guest", 2 * pages * 4096));
        for page in 0..pages {
            // Every other page of the file, so that no two are one piece.
            let backing =
                Backing::File { fd: memory.try_clone().unwrap(), offset: 2 * page * 4096 };
            let request = MapRequest { iova: page * 4096, size: 4096, perm: RW, backing };
            space.map(None, request).unwrap();
        }
        let (device, disk) = (Attachment::new(&space), file("disk", pages * 4096));
        let data: Vec<u8> = (0..pages * 4096).map(|at| (at / 4096 % 251) as u8).collect();
        rustix::io::pwrite(&*disk, &data, 0).unwrap();
        let requests = ring.clone();
        let (read, _) = run(&ring, async move {
            let hold = device.hold(0, (pages * 4096) as usize, Perm::WRITE).unwrap();
            requests.read_to_guest(&disk, 0, hold).await
        });
        assert_eq!(read.unwrap(), (pages * 4096) as usize);
        for page in 0..pages {
            assert_eq!(peek(&memory, 2 * page * 4096, 4096), [(page % 251) as u8; 4096]);
        }
    }
}

/// A file whose reads do not end before something is written to it.
fn slow() -> (Arc<OwnedFd>, OwnedFd) {
    let flags = rustix::net::SocketFlags::CLOEXEC;
    let (a, b) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        flags,
        None,
    )
    .unwrap();
    (Arc::new(a), b)
}

#[test]
fn dropped_future_leaves_the_hold_with_the_kernel() {
    // Threads do not read from sockets at an offset; io_uring does.
    for ring in rings().into_iter().filter(Ring::is_io_uring) {
        let ((device, space, memory), (socket, other)) = (guest(0x4000), slow());
        let hold = device.hold(0x1000, 0x1000, RW).unwrap();
        drop(ring.read_to_guest(&socket, 0, hold));
        assert_eq!((ring.in_flight(), device.in_flight()), (1, 1));
        assert_eq!(space.unmap_all(SOON).unwrap_err().errno(), Errno::BUSY);
        device.quiesce();
        assert!(!device.wait_idle(Instant::now() + SOON));
        rustix::io::write(&other, b"late").unwrap();
        while ring.in_flight() > 0 {
            reap(&ring);
        }
        assert_eq!(device.in_flight(), 0);
        assert_eq!(peek(&memory, 0x1000, 4), b"late");
        space.unmap_all(SOON).unwrap();
    }
}

#[test]
fn ring_that_ends_first_keeps_the_memory_that_the_kernel_may_write() {
    for ring in rings().into_iter().filter(Ring::is_io_uring) {
        let ((device, space, _memory), (socket, _other)) = (guest(0x4000), slow());
        let hold = device.hold(0x1000, 0x1000, RW).unwrap();
        let wait = ring.read_to_guest(&socket, 0, hold);
        drop(wait);
        drop(ring);
        assert_eq!(device.in_flight(), 1, "nobody knows whether the kernel is done");
        assert_eq!(space.unmap_all(SOON).unwrap_err().errno(), Errno::BUSY);
    }
}

#[test]
fn more_requests_than_places_all_complete() {
    for ring in rings() {
        let disk = file("disk", 0x10_0000);
        {
            let _plug = ring.plug();
            for i in 0..200u64 {
                drop(ring.write(&disk, i * 16, vec![i as u8; 16]));
            }
        }
        while ring.in_flight() > 0 {
            reap(&ring);
        }
        for i in 0..200u64 {
            assert_eq!(peek(&disk, i * 16, 16), [i as u8; 16]);
        }
    }
}

/// A task that takes completions would be woken in vain. What completes later wakes it as before.
#[test]
fn what_the_kernel_does_at_once_makes_no_event() {
    for ring in rings().into_iter().filter(Ring::is_io_uring) {
        let ((device, _space, memory), (socket, other)) = (guest(0x4000), slow());
        let disk = file("disk", 0x1000);
        let is_readable = || {
            let mut fds = [PollFd::new(ring.fd(), PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
        };
        let mut was_at_once = false;
        for round in 0..100 {
            // Whether it is done at once is the kernel's choice; the ring counts on it after one that was.
            ring.reap();
            drop(ring.read(&disk, 0, vec![0; 16]));
            let is_at_once = ring.in_flight() == 0;
            if is_at_once && was_at_once {
                assert!(!is_readable(), "round {round}");
            }
            was_at_once = is_at_once;
            while ring.in_flight() > 0 {
                reap(&ring);
            }
        }
        drop(ring.read_to_guest(&socket, 0, device.hold(0x1000, 0x1000, RW).unwrap()));
        assert_eq!(ring.in_flight(), 1);
        ring.reap();
        rustix::io::write(&other, b"late").unwrap();
        while ring.in_flight() > 0 {
            reap(&ring);
        }
        assert_eq!(peek(&memory, 0x1000, 4), b"late");
    }
}

/// Nor does a request that takes its time before it has completed, whatever there was before it.
#[test]
fn request_that_has_begun_makes_no_event() {
    for ring in rings().into_iter().filter(Ring::is_io_uring) {
        let (socket, other) = slow();
        for round in 0..3 {
            while ring.in_flight() > 0 {
                reap(&ring);
            }
            ring.reap();
            drop(ring.read(&socket, 0, vec![0; 4]));
            let mut fds = [PollFd::new(ring.fd(), PollFlags::IN)];
            let ready = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap();
            assert_eq!((ready, ring.in_flight()), (0, 1), "round {round}");
            rustix::io::write(&other, b"late").unwrap();
        }
        while ring.in_flight() > 0 {
            reap(&ring);
        }
    }
}

/// A disk begins with the first ones while others are prepared.
#[test]
fn many_requests_that_are_gathered_are_not_kept_back_for_the_last_one() {
    // Not where io_uring is forbidden.
    if let Ok(ring) = Ring::with_io_uring(64) {
        let disk = file("disk", 0x1000);
        let plug = ring.plug();
        for i in 0..9 {
            drop(ring.write(&disk, i, b"x".to_vec()));
        }
        let start = Instant::now();
        while peek(&disk, 0, 8) != b"xxxxxxxx" {
            assert!(start.elapsed() < Duration::from_secs(20), "all wait for the last one");
        }
        assert_eq!(peek(&disk, 8, 1)[0], 0, "it waits for others");
        drop(plug);
        while ring.in_flight() > 0 {
            reap(&ring);
        }
        assert_eq!(peek(&disk, 0, 9), b"xxxxxxxxx");
    }
}

/// Also where nothing is left to be handed over when the plug is dropped.
#[test]
fn requests_that_were_handed_over_early_are_taken_at_once() {
    // Not where io_uring is forbidden.
    if let Ok(ring) = Ring::with_io_uring(64) {
        let disk = file("disk", 0x1000);
        let plug = ring.plug();
        (0..8).for_each(|i| drop(ring.write(&disk, i, b"x".to_vec())));
        let start = Instant::now();
        while peek(&disk, 0, 8) != b"xxxxxxxx" {
            assert!(start.elapsed() < Duration::from_secs(20), "all wait for the plug");
        }
        drop(plug);
        while ring.in_flight() > 0 {
            reap(&ring);
        }
        assert_eq!(peek(&disk, 0, 8), b"xxxxxxxx");
    }
}

#[test]
fn plugged_requests_wait_for_the_last_plug() {
    for ring in rings().into_iter().filter(Ring::is_io_uring) {
        let disk = file("disk", 0x1000);
        let outer = ring.plug();
        drop(ring.plug());
        drop(ring.write(&disk, 0, b"x".to_vec()));
        assert_eq!((ring.reap(), peek(&disk, 0, 1)[0]), (0, 0));
        drop(outer);
        reap(&ring);
        assert_eq!(peek(&disk, 0, 1), b"x");
    }
}

#[test]
fn random_requests_under_unmaps_move_the_right_bytes() {
    for ring in rings() {
        let ((device, space, memory), disk) = (guest(0x40000), file("disk", 0x40000));
        rustix::io::pwrite(&*disk, &(0..0x40000u32).map(|i| (i >> 8) as u8).collect::<Vec<_>>(), 0)
            .unwrap();
        let requests = ring.clone();
        let client = std::thread::spawn({
            let (space, memory) = (space.clone(), memory.clone());
            move || {
                for _ in 0..200 {
                    space.unmap_all(Duration::from_secs(60)).unwrap();
                    let backing = Backing::File { fd: memory.try_clone().unwrap(), offset: 0 };
                    let request = MapRequest { iova: 0, size: 0x40000, perm: RW, backing };
                    space.map(None, request).unwrap();
                }
            }
        });
        let target = disk.clone();
        run(&ring, async move {
            let (mut random, mut done) = (1u64, 0);
            while done < 200 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = (random >> 40) % 0x3e000;
                // Between an unmap and the next map there is nothing.
                let Ok(hold) = device.hold(at, 0x2000, Perm::WRITE) else { continue };
                let (read, hold) = requests.read_to_guest(&target, at, hold).await;
                assert_eq!(read.unwrap(), 0x2000);
                drop(hold);
                done += 1;
            }
        });
        client.join().unwrap();
        let (guest, disk) = (peek(&memory, 0, 0x40000), peek(&disk, 0, 0x40000));
        let right = guest.iter().zip(&disk).all(|(guest, disk)| *guest == 0 || guest == disk);
        assert!(right && guest.iter().any(|byte| *byte != 0));
    }
}

#[test]
fn each_worker_has_a_ring_of_its_own_that_all_devices_share() {
    let runtime = Runtime::new().unwrap();
    let _workers = Workers::start(&runtime, 2).unwrap();
    let devices = [0; 2].map(|_| RuntimeRing::of(&runtime).unwrap());
    assert!(Arc::ptr_eq(&devices[0], &devices[1]));
    let (file, meeting) = (file("abc", 3), Arc::new(Barrier::new(2)));
    rustix::io::pwrite(&file, b"abc", 0).unwrap();
    // Two tasks that meet are in two workers.
    let tasks = [0; 2].map(|_| {
        let (rings, file, meeting) = (devices[0].clone(), file.clone(), meeting.clone());
        runtime.spawn(async move {
            let ring = rings.ring().clone();
            assert!(ring.is(rings.ring()), "another one on the same worker");
            meeting.wait();
            let (read, buffer) = ring.read(&file, 0, vec![0; 3]).await;
            assert_eq!((read.unwrap(), &buffer[..]), (3, &b"abc"[..]));
            ring
        })
    });
    let [first, second] = tasks.map(|task| runtime.block_on(None, task.result()).unwrap().unwrap());
    assert!(!first.is(&second));
    let outside = devices[0].ring();
    assert!(outside.is(&first) || outside.is(&second), "the first worker's is for all others");
}
