//! What holds between the requests of a disk, by the test back end.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use vfiod_disk::test::{Kind, SECTOR, TestDisk, own};
use vfiod_disk::{
    Backend, Buffer, Bytes, Channel, Disk, DiskChannel, Done, FailureKind, Interest, Memory, Null,
    Pending, Request,
};
use vfiod_dma::{Attachment, Errno, Error};
use vfiod_quota::CurrentPayer;
use vfiod_tasks::Runtime;

struct Rig {
    runtime: Runtime,
    test: Arc<TestDisk>,
    disk: Disk,
    channel: Arc<DiskChannel>,
}

fn rig(sectors: usize) -> Rig {
    let (runtime, test) = (Runtime::new().unwrap(), TestDisk::new(sectors * SECTOR));
    let disk = Disk::new(test.clone());
    let channel = disk.connect(&runtime).unwrap();
    Rig { runtime, test, disk, channel }
}

fn sector(n: usize) -> u64 {
    (n * SECTOR) as u64
}

fn write(n: usize, byte: u8, count: usize) -> Request {
    Request::Write { offset: sector(n), buffer: own(&vec![byte; count * SECTOR]), durable: false }
}

fn read(n: usize, count: usize) -> Request {
    Request::Read { offset: sector(n), buffer: own(&vec![0xee; count * SECTOR]) }
}

fn zero(n: usize, count: usize, durable: bool) -> Request {
    Request::Zero { offset: sector(n), len: sector(count), deallocate: false, durable }
}

fn deallocate(n: usize, count: usize) -> Request {
    Request::Deallocate { offset: sector(n), len: sector(count) }
}

fn bytes(done: Done) -> Vec<u8> {
    done.result.unwrap();
    let Some(Buffer::Own(bytes)) = done.buffer else { panic!("no buffer came back") };
    bytes
}

fn kind(done: Done) -> Option<FailureKind> {
    done.result.err().map(|failure| failure.kind)
}

impl Rig {
    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(None, future).unwrap()
    }

    fn run(&self, request: Request) -> Done {
        self.wait(self.channel.start(request))
    }

    /// What is held: kinds, and the sectors where they begin.
    fn held(&self) -> Vec<(Kind, usize)> {
        self.test.held().iter().map(|held| (held.kind, held.offset as usize / SECTOR)).collect()
    }

    /// What a power cut leaves at least.
    fn durable(&self, n: usize) -> u8 {
        self.test.power_cut(|_| 0)[n * SECTOR]
    }
}

/// Polls once, as a task that is about to wait does.
fn poll<F: Future<Output = Done> + Unpin>(pending: &mut F) -> Option<Done> {
    match pin!(pending).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}

fn random(mut state: u64) -> impl FnMut(usize) -> usize {
    move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as usize % below
    }
}

#[test]
fn overlapping_requests_wait_in_their_order_and_others_do_not() {
    let rig = rig(64);
    rig.test.hold(true);
    let mut first = rig.channel.start(write(0, 1, 4));
    let mut reader = rig.channel.start(read(3, 2));
    let mut beside = rig.channel.start(write(8, 2, 1));
    for pending in [&mut first, &mut reader, &mut beside] {
        assert!(poll(pending).is_none());
    }
    assert_eq!(rig.held(), [(Kind::Write, 0), (Kind::Write, 8)], "the read passed the write");
    rig.test.finish(0);
    assert_eq!(kind(rig.wait(first)), None);
    assert!(poll(&mut reader).is_none());
    assert_eq!(rig.held(), [(Kind::Write, 8), (Kind::Read, 3)]);
    rig.test.finish_all();
    assert_eq!(bytes(rig.wait(reader)), [[1; SECTOR], [0; SECTOR]].concat());
    assert_eq!((kind(rig.wait(beside)), rig.disk.in_flight()), (None, 0));
}

#[test]
fn dropped_write_keeps_its_range_until_it_has_ended() {
    let rig = rig(8);
    rig.test.hold(true);
    drop(rig.channel.start(write(0, 1, 1)));
    let mut reader = rig.channel.start(read(0, 1));
    assert!(poll(&mut reader).is_none());
    assert_eq!((rig.held(), rig.disk.in_flight()), (vec![(Kind::Write, 0)], 2));
    let mut idle = Box::pin(rig.disk.idle());
    assert!(idle.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    rig.test.finish_all();
    rig.runtime.run_until_idle();
    assert_eq!(bytes(rig.wait(reader)), [1; SECTOR]);
    rig.wait(idle);
}

#[test]
fn flush_ends_after_a_sync_that_began_after_it() {
    let rig = rig(8);
    rig.test.hold(true);
    let mut first = rig.channel.start(Request::Flush);
    assert!(poll(&mut first).is_none());
    // The sync runs already when this write completes: it may not cover it.
    let written = rig.channel.start(write(1, 7, 1));
    rig.test.finish(1);
    assert_eq!(kind(rig.wait(written)), None);
    let mut others = [(); 3].map(|()| rig.channel.start(Request::Flush));
    for other in &mut others {
        assert!(poll(other).is_none());
    }
    assert_eq!(rig.held(), [(Kind::Flush, 0)], "two syncs at once");
    rig.test.finish(0);
    assert_eq!(kind(rig.wait(first)), None);
    for other in &mut others {
        assert!(poll(other).is_none(), "a flush ended with a sync that began before it");
    }
    assert_eq!(rig.held().len(), 1, "one sync for three flushes");
    rig.test.finish_all();
    for other in others {
        assert_eq!(kind(rig.wait(other)), None);
    }
    assert_eq!(rig.durable(1), 7);
}

#[test]
fn after_a_failed_sync_no_flush_and_no_write_succeeds() {
    let rig = rig(8);
    let other = rig.disk.connect(&rig.runtime).unwrap();
    assert_eq!(kind(rig.run(write(0, 1, 1))), None);
    rig.test.hold(true);
    // Two flushes at once, of which the kernel would report the failure to one only.
    let mut flushes = [rig.channel.start(Request::Flush), other.start(Request::Flush)];
    for flush in &mut flushes {
        assert!(poll(flush).is_none());
    }
    let written = other.start(write(1, 1, 1));
    rig.test.finish_in_part(rig.test.held()[0].id, 0, Errno::IO);
    rig.test.finish_all();
    for flush in flushes {
        assert_eq!(kind(rig.wait(flush)), Some(FailureKind::SyncFailed));
    }
    assert_eq!(kind(rig.wait(written)), None, "it was under way");
    for channel in [&rig.channel, &other] {
        let refused = Some(FailureKind::SyncFailed);
        for request in [Request::Flush, write(0, 2, 1), zero(0, 1, false), deallocate(0, 1)] {
            assert_eq!(kind(rig.wait(channel.start(request))), refused);
        }
        let fused = channel.compare_and_write(
            &Interest::default(),
            0,
            (own(&[1; 512]), own(&[2; 512])),
            false,
            || (),
        );
        assert_eq!(kind(rig.wait(fused)), refused);
        assert_eq!(bytes(rig.wait(channel.start(read(0, 1)))), [1; SECTOR], "reads go on");
    }
    assert!(rig.disk.sync_failure().is_some());
    // Opened anew.
    let disk = Disk::new(TestDisk::with_image(rig.test.bytes()));
    let channel = disk.connect(&rig.runtime).unwrap();
    assert_eq!(kind(rig.wait(channel.start(Request::Flush))), None);
}

#[test]
fn sync_that_fails_when_nobody_waits_for_it_is_not_forgotten() {
    let rig = rig(8);
    assert_eq!(kind(rig.run(write(0, 1, 1))), None);
    rig.test.hold(true);
    let mut flush = rig.channel.start(Request::Flush);
    assert!(poll(&mut flush).is_none());
    drop(flush);
    rig.test.fail(Kind::Flush, Errno::IO, 1);
    rig.test.finish_all();
    assert_eq!(kind(rig.run(Request::Flush)), Some(FailureKind::SyncFailed));
}

#[test]
fn durable_writes_are_synced_before_they_complete() {
    let rig = rig(8);
    let fua = |n: usize| {
        let buffer = own(&[9; SECTOR]);
        Request::Write { offset: sector(n), buffer, durable: true }
    };
    assert_eq!((kind(rig.run(fua(0))), rig.durable(0)), (None, 9));
    assert_eq!((kind(rig.run(zero(0, 1, true))), rig.durable(0)), (None, 0));
    let fused = rig.channel.compare_and_write(
        &Interest::default(),
        0,
        (own(&[0; 512]), own(&[3; 512])),
        true,
        || (),
    );
    assert_eq!((kind(rig.wait(fused)), rig.durable(0)), (None, 3));
    rig.test.fail(Kind::Flush, Errno::IO, 1);
    assert_eq!(kind(rig.run(fua(1))), Some(FailureKind::SyncFailed));
}

#[test]
fn without_a_write_cache_every_write_is_synced() {
    let rig = rig(8);
    assert_eq!((kind(rig.run(write(0, 1, 1))), rig.durable(0)), (None, 0));
    rig.disk.set_write_through(true);
    assert_eq!((kind(rig.run(write(1, 2, 1))), rig.durable(1)), (None, 2));
    assert_eq!(rig.durable(0), 1, "the earlier write was synced with it");
    assert_eq!((kind(rig.run(deallocate(0, 1))), rig.durable(0)), (None, 0));
    rig.disk.set_write_through(false);
    assert_eq!((kind(rig.run(write(0, 1, 1))), rig.durable(0)), (None, 0));
}

#[test]
fn write_of_a_pair_that_lacks_memory_is_not_compared_again() {
    let rig = rig(8);
    rig.test.hold(true);
    let interest = Interest::default();
    let pair = (own(&[0; 2 * SECTOR]), own(&[3; 2 * SECTOR]));
    let mut fused = rig.channel.compare_and_write(&interest, 0, pair, false, || ());
    assert!(poll(&mut fused).is_none());
    let next = |of: Kind| {
        let held = rig.test.held().pop().expect("a request");
        assert_eq!(held.kind, of);
        held.id
    };
    rig.test.finish(next(Kind::Read));
    assert!(poll(&mut fused).is_none());
    // A part is written.
    rig.test.finish_in_part(next(Kind::Write), SECTOR, Errno::AGAIN);
    if let Some(done) = poll(&mut fused) {
        panic!("{:?}", kind(done));
    }
    rig.test.hold(false);
    assert_eq!(kind(rig.wait(fused)), None);
    assert_eq!(rig.test.bytes()[..2 * SECTOR], [3; 2 * SECTOR]);
}

#[test]
fn compare_and_write_is_one_step() {
    let rig = rig(512);
    let len = 300 * SECTOR;
    let old: Vec<u8> = (0..len).map(|at| (at / 7) as u8).collect();
    let write_old = Request::Write { offset: 512, buffer: own(&old), durable: false };
    assert_eq!(kind(rig.run(write_old)), None);
    assert_eq!(kind(rig.wait(rig.channel.compare(&Interest::default(), 512, own(&old)))), None);
    // The last byte differs, in a later piece than the first.
    let mut different = old.clone();
    *different.last_mut().unwrap() ^= 1;
    let compared = rig.wait(rig.channel.compare(&Interest::default(), 512, own(&different)));
    assert_eq!(kind(compared), Some(FailureKind::Different));
    let new = own(&vec![5; len]);
    let refused = rig.wait(rig.channel.compare_and_write(
        &Interest::default(),
        512,
        (own(&different), new),
        false,
        || panic!("equal"),
    ));
    assert_eq!(kind(refused), Some(FailureKind::Different));
    assert!(rig.test.bytes()[512..512 + len] == old, "it was written all the same");
    // Another write of the range waits from the first read to the end of the write.
    rig.test.hold(true);
    let mut fused = rig.channel.compare_and_write(
        &Interest::default(),
        0,
        (own(&[0; 512]), own(&[5; 512])),
        false,
        || (),
    );
    assert!(poll(&mut fused).is_none());
    let never = || panic!("equal");
    let mut second = rig.channel.compare_and_write(
        &Interest::default(),
        0,
        (own(&[0; 512]), own(&[7; 512])),
        false,
        never,
    );
    assert!(poll(&mut second).is_none());
    let mut other = rig.channel.start(write(0, 6, 1));
    assert!(poll(&mut other).is_none());
    assert_eq!(rig.held(), [(Kind::Read, 0)], "a compare or a write beside a compare");
    rig.test.finish(rig.test.held()[0].id);
    assert!(poll(&mut fused).is_none() && poll(&mut other).is_none());
    assert_eq!(rig.held(), [(Kind::Write, 0)]);
    rig.test.finish_all();
    assert_eq!(bytes(rig.wait(fused)), [5; 512], "the buffer that was written comes back");
    assert_eq!(kind(rig.wait(second)), Some(FailureKind::Different));
    assert_eq!((kind(rig.wait(other)), rig.test.bytes()[0]), (None, 6));
    let unequal = rig.wait(rig.channel.compare_and_write(
        &Interest::default(),
        0,
        (own(&[0; 512]), own(&[5; 8])),
        false,
        || (),
    ));
    assert_eq!(kind(unequal), Some(FailureKind::Other));
}

#[test]
fn what_is_done_at_once_passes_nobody() {
    let runtime = Runtime::new().unwrap();
    let disk = Disk::new(Memory::new(1 << 20).unwrap());
    let channel = disk.connect(&runtime).unwrap();
    let read = |offset| {
        let mut into = own(&[0xee; 512]);
        let result = channel.read_at_once(offset, &mut into)?;
        Some(bytes(Done { result, buffer: Some(into) })[511])
    };
    let write = |offset, byte| {
        let written = channel.write_at_once(offset, &mut own(&[byte; 512]))?;
        Some(written.is_ok())
    };
    assert_eq!((write(512, 5), read(512)), (Some(true), Some(5)));
    let interest = Interest::default();
    let both = (own(&[5; 512]), own(&[6; 512]));
    let fused = channel.compare_and_write(&interest, 512, both, false, || ());
    assert_eq!((write(512, 7), read(512)), (None, None), "another one has the range");
    assert_eq!((write(0, 7), read(1024)), (Some(true), Some(0)), "not this one");
    assert_eq!(kind(runtime.block_on(None, fused).unwrap()), None);
    assert_eq!(read(512), Some(6));
    runtime.block_on(None, disk.cut(1024)).unwrap();
    assert_eq!((read(512), read(1024), write(1024, 1)), (Some(6), None, None), "behind the end");
    disk.set_write_through(true);
    assert_eq!((write(0, 1), read(0)), (None, Some(7)), "a sync is behind it");
    assert!(!rig(1).channel.is_at_once());
}

/// Bytes for whose copy there is too little memory.
struct Lacks;

impl Bytes for Lacks {
    fn len(&self) -> usize {
        512
    }

    fn put(&mut self, _at: usize, _bytes: &[u8]) -> vfiod_dma::Result<()> {
        Err(Error::short(Errno::NOMEM, "a test has no memory"))
    }

    fn take(&mut self, _at: usize, _bytes: &mut [u8]) -> vfiod_dma::Result<()> {
        Err(Error::short(Errno::NOMEM, "a test has no memory"))
    }
}

#[test]
fn what_lacks_memory_is_not_done_at_once() {
    let runtime = Runtime::new().unwrap();
    let channel = Disk::new(Memory::new(1 << 20).unwrap()).connect(&runtime).unwrap();
    assert!(channel.write_at_once(0, &mut Lacks).is_none(), "whoever waits for memory writes it");
    assert!(channel.read_at_once(0, &mut Lacks).is_none());
    assert!(channel.write_at_once(0, &mut own(&[1; 512])).unwrap().is_ok(), "its range is free");
}

/// Bytes whose copy takes as long as another one lets it.
struct Slow<'a>(&'a dyn Fn());

impl Bytes for Slow<'_> {
    fn len(&self) -> usize {
        512
    }

    fn put(&mut self, _at: usize, _bytes: &[u8]) -> vfiod_dma::Result<()> {
        (self.0)();
        Ok(())
    }

    fn take(&mut self, _at: usize, _bytes: &mut [u8]) -> vfiod_dma::Result<()> {
        (self.0)();
        Ok(())
    }
}

/// What another thread comes to, which must not wait for this one.
fn beside<T: Send + 'static>(what: &str, f: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, done) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(f()));
    let done = done.recv_timeout(std::time::Duration::from_secs(60));
    done.unwrap_or_else(|_| panic!("{what} waits for another copy"))
}

/// The copy of guest memory may wait for whoever owns that, or for whoever maps it, who waits for those that have
/// entered the map. Nobody else waits for the copy: neither what is done at once, nor another controller, nor one
/// that comes.
#[test]
fn copy_that_takes_long_holds_up_nobody_else() {
    let null: Arc<dyn Backend> = Null::new(1 << 20, true).unwrap();
    for backend in [Memory::new(1 << 20).unwrap() as Arc<dyn Backend>, null] {
        let (runtime, disk) = (Runtime::new().unwrap(), Disk::new(backend));
        let channel = disk.connect(&runtime).unwrap();
        let copies = || {
            let other = channel.clone();
            let reads =
                move || other.read_at_once(4096, &mut own(&[0; 512])).map(|read| read.is_ok());
            assert_eq!(beside("what is done at once", reads), Some(true));
            let (disk, runtime) = (disk.clone(), runtime.clone());
            let done = beside("another controller", move || {
                let other = disk.connect(&runtime).unwrap();
                let wait = |request| runtime.block_on(None, other.start(request)).unwrap();
                // In the same pieces of memory as well.
                let done = [write(1, 7, 1), read(1, 1), zero(2, 1, false), deallocate(3, 1)];
                let overlaps = other.read_at_once(0, &mut own(&[0; 512])).map(|read| read.is_ok());
                (done.map(|request| kind(wait(request))), overlaps)
            });
            assert_eq!(done, ([const { None }; 4], Some(true)));
        };
        let mut slow = Slow(&copies);
        assert!(channel.read_at_once(0, &mut slow).unwrap().is_ok());
        assert!(channel.write_at_once(sector(4), &mut own(&[1; 512])).unwrap().is_ok());
        assert!(channel.read_at_once(0, &mut slow).unwrap().is_ok(), "of memory that there is");
        assert!(channel.write_at_once(sector(5), &mut slow).unwrap().is_ok());
    }
}

/// A request that overlaps what is being copied has its turn after that.
#[test]
fn request_that_overlaps_a_copy_waits_for_it() {
    let (runtime, disk) = (Runtime::new().unwrap(), Disk::new(Memory::new(1 << 20).unwrap()));
    let (channel, other) = (disk.connect(&runtime).unwrap(), disk.connect(&runtime).unwrap());
    let waits = std::cell::RefCell::new(None);
    let copies = || {
        let mut write = other.start(write(0, 7, 1));
        assert!(poll(&mut write).is_none(), "a write beside a read of the same block");
        *waits.borrow_mut() = Some(write);
    };
    assert!(channel.read_at_once(0, &mut Slow(&copies)).unwrap().is_ok());
    let write = waits.borrow_mut().take().unwrap();
    assert_eq!(kind(runtime.block_on(None, write).unwrap()), None);
    let mut read = own(&[0; 512]);
    assert!(channel.read_at_once(0, &mut read).unwrap().is_ok());
    assert_eq!(bytes(Done { result: Ok(()), buffer: Some(read) }), [7; 512]);
}

#[test]
fn requests_outside_the_disk_or_of_one_that_is_read_only_are_refused() {
    let rig = rig(8);
    let outside = Some(FailureKind::OutOfRange);
    for n in [8, 7, usize::MAX / SECTOR] {
        for request in [read(n, 2), write(n, 1, 2)] {
            let done = rig.run(request);
            assert!(done.buffer.is_some(), "the buffer is lost");
            assert_eq!(kind(done), outside);
        }
        for request in [zero(n, 2, false), deallocate(n, 2)] {
            assert_eq!(kind(rig.run(request)), outside);
        }
        assert_eq!(
            kind(rig.wait(rig.channel.verify(&Interest::default(), sector(n), 1024))),
            outside
        );
        assert_eq!(
            kind(rig.wait(rig.channel.compare(&Interest::default(), sector(n), own(&[0; 1024])))),
            outside
        );
    }
    assert_eq!(rig.test.started(), 0);
    rig.test.set_limits(|limits| limits.read_only = true);
    assert_eq!(kind(rig.run(write(0, 1, 1))), None, "not asked yet");
    assert!(rig.disk.refresh().read_only);
    assert_eq!(kind(rig.run(write(0, 1, 1))), Some(FailureKind::ReadOnly));
    assert_eq!(bytes(rig.run(read(0, 1))), [1; SECTOR]);
    assert_eq!(kind(rig.wait(rig.channel.verify(&Interest::default(), 0, 4096))), None);
    rig.test.fail(Kind::Read, Errno::IO, 1);
    assert_eq!(
        kind(rig.wait(rig.channel.verify(&Interest::default(), 0, 4096))),
        Some(FailureKind::Medium)
    );
}

#[test]
fn long_deallocation_is_done_in_pieces_that_let_others_through() {
    let sectors = (64 << 20) / SECTOR;
    let rig = rig(sectors);
    rig.test.hold(true);
    let mut whole = rig.channel.start(deallocate(1, sectors - 2));
    assert!(poll(&mut whole).is_none());
    let held = rig.test.held();
    assert_eq!((held.len(), held[0].offset), (1, 512));
    assert!(held[0].len < sector(sectors) / 4, "one piece of {} bytes", held[0].len);
    // A read behind the piece need not wait for it.
    let mut behind = rig.channel.start(read(sectors - 2, 1));
    assert!(poll(&mut behind).is_none());
    assert_eq!(rig.held(), [(Kind::Deallocate, 1), (Kind::Read, sectors - 2)]);
    rig.test.finish_all();
    // Its range is free once its end was seen.
    let behind = rig.runtime.spawn(behind);
    assert_eq!(kind(rig.wait(whole)), None);
    assert_eq!(kind(rig.wait(behind.result()).unwrap()), None);
    assert!(rig.test.started() > 3, "{} requests", rig.test.started());
    // A failure ends it.
    rig.test.fail(Kind::Zero, Errno::NOSPC, 1);
    let before = rig.test.started();
    assert_eq!(kind(rig.run(zero(0, sectors, false))), Some(FailureKind::NoSpace));
    assert_eq!(rig.test.started(), before + 1);
}

/// What is done in pieces ends with the piece that the back end has; what waits for its range, or has it
/// but was not begun, is not begun.
#[test]
fn nothing_new_is_begun_when_nobody_wants_it_any_more() {
    let sectors = (64 << 20) / SECTOR;
    let rig = rig(sectors);
    let interest = Interest::new();
    rig.test.hold(true);
    let whole = deallocate(0, sectors / 2);
    let long = [
        rig.channel.start_within(&interest, whole),
        rig.channel.verify(&interest, sector(sectors / 2), sector(1 << 10)),
        rig.channel.compare(&interest, sector(sectors - 512), own(&vec![0; 512 * SECTOR])),
    ];
    let spawn = |pending| rig.runtime.spawn(pending);
    let long = long.map(spawn);
    rig.runtime.run_until_idle();
    let behind = spawn(rig.channel.start_within(&interest, write(0, 1, 1)));
    rig.runtime.run_until_idle();
    let begun = rig.held();
    assert_eq!(begun.len(), 3, "{begun:?}");
    interest.end();
    rig.test.finish_all();
    for pending in long.into_iter().chain([behind]) {
        assert_eq!(kind(rig.wait(pending.result()).unwrap()), Some(FailureKind::Unwanted));
    }
    assert_eq!((rig.test.started(), rig.disk.in_flight()), (3, 0));
    // Others have the disk as ever.
    assert_eq!(kind(rig.run(write(0, 2, 1))), None);
    assert_eq!(bytes(rig.run(read(0, 1))), [2; SECTOR]);
}

/// Of many at the same time only those have begun that have a place.
#[test]
fn verify_that_waits_for_a_place_is_not_begun_when_nobody_wants_it_any_more() {
    let rig = rig(40 * 128);
    let interest = Interest::new();
    rig.test.hold(true);
    let verify = |n: u64| rig.runtime.spawn(rig.channel.verify(&interest, n << 16, 1 << 16));
    let pending: Vec<_> = (0..40).map(verify).collect();
    rig.runtime.run_until_idle();
    let begun = rig.held().len();
    assert!((1..40).contains(&begun), "{begun} begun");
    interest.end();
    rig.test.finish_all();
    for pending in pending {
        _ = rig.wait(pending.result());
    }
    assert_eq!(rig.test.started(), begun as u64);
}

/// What is written is on the disk before it is synced, and nobody's memory is used any more.
#[test]
fn device_is_idle_while_its_writes_are_synced() {
    let rig = rig(64);
    let device = Attachment::detached();
    let channel =
        rig.disk.connect_device(&rig.runtime, device.flights(), CurrentPayer::default()).unwrap();
    rig.test.hold(true);
    let durable = |request| match request {
        Request::Write { offset, buffer, .. } => Request::Write { offset, buffer, durable: true },
        other => other,
    };
    let written = rig.runtime.spawn(channel.start(durable(write(16, 1, 1))));
    rig.runtime.run_until_idle();
    assert_eq!(device.in_flight(), 1);
    assert!(rig.test.finish(rig.test.held()[0].id));
    rig.runtime.run_until_idle();
    assert_eq!(rig.test.held().iter().map(|held| held.kind).collect::<Vec<_>>(), [Kind::Flush]);
    assert_eq!((device.in_flight(), rig.disk.in_flight()), (0, 2), "the device waits for a sync");
    rig.test.finish_all();
    assert_eq!(kind(rig.wait(written.result()).unwrap()), None);
}

#[test]
fn device_is_not_idle_before_its_requests_have_ended() {
    let rig = rig(64);
    let device = Attachment::detached();
    let channel =
        rig.disk.connect_device(&rig.runtime, device.flights(), CurrentPayer::default()).unwrap();
    rig.test.hold(true);
    drop([deallocate(0, 8), write(16, 1, 1), Request::Flush].map(|request| channel.start(request)));
    rig.runtime.run_until_idle();
    // But for the flush, which moves no data, and is one of the disk's.
    for left in [2, 1, 0] {
        assert_eq!(device.in_flight(), left);
        assert!(rig.disk.in_flight() > left, "the flush is in flight");
        let held = rig.test.held();
        let first = held.iter().find(|held| held.kind != Kind::Flush).or(held.first());
        assert!(rig.test.finish(first.expect("something is held").id));
        rig.runtime.run_until_idle();
    }
    assert_eq!((device.in_flight(), rig.disk.in_flight()), (0, 0));
}

/// Random writes and flushes with power cuts: each sector has what it had at the last flush that
/// completed, or something that was written since.
#[test]
fn power_cut_leaves_what_was_flushed() {
    const SECTORS: usize = 16;
    let mut next = random(7);
    let mut flushed = 0;
    for _ in 0..300 {
        let rig = rig(SECTORS);
        rig.test.hold(true);
        // What each sector may have: what was flushed, and what was written since, also what has not
        // completed.
        let mut allowed: Vec<Vec<u8>> = vec![vec![0]; SECTORS];
        let mut last = vec![0u8; SECTORS];
        let mut writes: Vec<(Pending, usize, usize, u8)> = Vec::new();
        let mut flushes: Vec<(Pending, Vec<u8>)> = Vec::new();
        for step in 1..60u8 {
            match next(4) {
                0 | 1 => {
                    let n = next(SECTORS);
                    let count = (1 + next(3)).min(SECTORS - n);
                    // One writer of a sector at a time, so that the order is known.
                    if writes.iter().any(|(_, at, len, _)| *at < n + count && n < at + len) {
                        continue;
                    }
                    let mut pending = rig.channel.start(write(n, step, count));
                    assert!(poll(&mut pending).is_none());
                    (n..n + count).for_each(|n| allowed[n].push(step));
                    writes.push((pending, n, count, step));
                }
                2 => flushes.push((rig.channel.start(Request::Flush), last.clone())),
                _ => {
                    let held = rig.test.held();
                    if !held.is_empty() {
                        rig.test.finish(held[next(held.len())].id);
                    }
                }
            }
            writes.retain_mut(|(pending, n, count, byte)| {
                let done = poll(pending);
                if done.is_some() {
                    last[*n..*n + *count].fill(*byte);
                }
                done.is_none()
            });
            flushes.retain_mut(|(flush, covered)| {
                let done = poll(flush);
                if done.is_some() {
                    flushed += 1;
                    for (allowed, covered) in allowed.iter_mut().zip(covered) {
                        // A later flush may have covered more already.
                        if let Some(from) = allowed.iter().rposition(|byte| byte == covered) {
                            allowed.drain(..from);
                        }
                    }
                }
                done.is_none()
            });
        }
        let image = rig.test.power_cut(&mut next);
        for (n, sector) in image.chunks(SECTOR).enumerate() {
            let byte = sector[0];
            assert!(sector.iter().all(|other| *other == byte), "sector {n} is torn");
            let allowed = &allowed[n];
            assert!(allowed.contains(&byte), "sector {n} has {byte}, not one of {allowed:?}");
        }
    }
    assert!(flushed > 300, "{flushed} flushes in 300 rounds");
}

#[test]
fn memory_disk_does_what_the_test_disk_does() {
    let runtime = Runtime::new().unwrap();
    let disks = [Disk::new(Memory::new(64 << 10).unwrap()), Disk::new(TestDisk::new(64 << 10))];
    let channels = disks.map(|disk| disk.connect(&runtime).unwrap());
    let mut next = random(3);
    for step in 0..500 {
        let (n, count, what) = (next(100), 1 + next(28), next(4));
        let request = || match what {
            0 => read(n, count),
            1 => write(n, step as u8, count),
            2 => zero(n, count, false),
            _ => deallocate(n, count),
        };
        let [ours, theirs] = channels.each_ref().map(|channel| {
            let done = runtime.block_on(None, channel.start(request())).unwrap();
            let bytes = done.buffer.map(|buffer| {
                let mut bytes = vec![0; buffer.len()];
                buffer.take(0, &mut bytes).unwrap();
                bytes
            });
            (done.result.map_err(|failure| failure.kind), bytes)
        });
        assert!(ours == theirs, "step {step}");
    }
}

#[test]
fn disk_says_what_its_back_end_can() {
    let rig = rig(8);
    assert_eq!(rig.disk.limits(), rig.test.limits());
}
