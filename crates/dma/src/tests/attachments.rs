//! Devices attached to spaces: asynchronous access, moves, quiesce, what is in flight.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::*;

/// Polls a future once.
fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// The result of a future that does not wait.
fn now<F: Future>(future: F) -> F::Output {
    match poll(pin!(future)) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("it waits"),
    }
}

/// A peer that replies when the test says so.
#[derive(Default)]
struct Slow {
    reads: Mutex<Vec<Read>>,
    writes: Mutex<Vec<Write>>,
}

type Read = (u64, usize, Completion<Vec<u8>>);
type Write = (u64, Vec<u8>, Completion<()>);

impl DmaPeer for Slow {
    fn start_read(&self, iova: u64, len: usize, completion: Completion<Vec<u8>>) {
        self.reads.lock().unwrap().push((iova, len, completion));
    }

    fn start_write(&self, iova: u64, data: Vec<u8>, completion: Completion<()>) {
        self.writes.lock().unwrap().push((iova, data, completion));
    }
}

/// A space with a page of a peer at 0x1000 and one of memory behind it.
fn mixed() -> (Space, Arc<Slow>, Memory) {
    let (space, peer, memory) = (Space::new(), Arc::new(Slow::default()), Memory::new(0x1000));
    let backing = Backing::Peer(peer.clone());
    space.map(A, MapRequest { iova: 0x1000, size: 0x1000, perm: RW, backing }).unwrap();
    space.map(A, request(0x2000, 0x1000, RW, memory.fd(), 0)).unwrap();
    (space, peer, memory)
}

#[test]
fn one_await_serves_mapped_memory_and_peers() {
    let (space, peer, memory) = mixed();
    let attachment = Attachment::new(&space);
    memory.poke(0, b"mapped");
    let mut bytes = [0; 12];
    {
        let mut read = pin!(attachment.read(0x1ffa, &mut bytes));
        assert!(poll(read.as_mut()).is_pending());
        assert_eq!(attachment.in_flight(), 1);
        let (iova, len, completion) = peer.reads.lock().unwrap().pop().unwrap();
        assert_eq!((iova, len), (0x1ffa, 6));
        assert!(poll(read.as_mut()).is_pending());
        completion.complete(Ok(b"asked ".to_vec()));
        assert!(poll(read).is_ready());
    }
    assert_eq!(attachment.in_flight(), 0);
    assert_eq!(&bytes, b"asked mapped");
    let mut write = pin!(attachment.write(0x1ffe, b"1234"));
    assert!(poll(write.as_mut()).is_pending());
    let (iova, data, completion) = peer.writes.lock().unwrap().pop().unwrap();
    assert_eq!((iova, data), (0x1ffe, b"12".to_vec()));
    completion.complete(Ok(()));
    assert!(matches!(poll(write), Poll::Ready(Ok(()))));
    assert_eq!(memory.peek(0, 2), b"34");
    // What is mapped does not wait.
    now(attachment.read(0x2000, &mut bytes)).unwrap();
    assert_eq!(&bytes[..2], b"34");
}

#[test]
fn failed_reply_of_a_peer_is_the_error_of_the_access() {
    let (space, peer, _memory) = mixed();
    let attachment = Attachment::new(&space);
    let mut bytes = [0; 4];
    let replies = [
        (Err(Error::new(Errno::TIMEDOUT, "late")), Errno::TIMEDOUT),
        (Ok(vec![0; 3]), Errno::IO),
        (Ok(vec![0; 5]), Errno::IO),
    ];
    for (reply, want) in replies {
        let mut read = pin!(attachment.read(0x1000, &mut bytes));
        assert!(poll(read.as_mut()).is_pending());
        peer.reads.lock().unwrap().pop().unwrap().2.complete(reply);
        match poll(read) {
            Poll::Ready(result) => assert_eq!(errno(result), want),
            Poll::Pending => panic!("completed, but pending"),
        }
    }
}

#[test]
fn dropped_future_abandons_the_wait_and_nothing_else() {
    let (space, peer, _memory) = mixed();
    let attachment = Attachment::new(&space);
    {
        let mut write = pin!(attachment.write(0x1000, b"data"));
        assert!(poll(write.as_mut()).is_pending());
    }
    attachment.quiesce();
    let (_, data, completion) = peer.writes.lock().unwrap().pop().unwrap();
    assert_eq!((data.as_slice(), completion.is_abandoned()), (b"data".as_slice(), true));
    // The client may be waiting for the very reset that abandoned the request.
    assert!(attachment.wait_idle(Instant::now()));
    completion.complete(Ok(()));
}

#[test]
fn quiesced_device_begins_no_access() {
    let (space, _peer, _memory) = mixed();
    let attachment = Attachment::new(&space);
    let hold = attachment.hold(0x2000, 16, RW).unwrap();
    attachment.quiesce();
    assert!(attachment.is_quiesced());
    assert_eq!(errno(now(attachment.read(0x2000, &mut [0]))), Errno::PERM);
    assert_eq!(errno(attachment.hold(0x2000, 1, RW)), Errno::PERM);
    assert_eq!(errno(attachment.batch().map(drop)), Errno::PERM);
    hold.write(0, b"goes on").unwrap();
    // Whatever the command register says.
    attachment.set_bus_master(false);
    attachment.set_bus_master(true);
    assert_eq!(errno(now(attachment.write(0x2000, &[0]))), Errno::PERM);
    attachment.resume();
    now(attachment.write(0x2000, &[0])).unwrap();
    let other = Attachment::new(&space);
    attachment.quiesce();
    now(other.write(0x2000, &[0])).expect("it is the attachment that is quiesced");
}

#[test]
fn device_moves_to_another_space_and_its_hold_stays() {
    let (old, a) = (Space::new(), Memory::new(0x1000));
    let (new, b) = (Space::new(), Memory::new(0x1000));
    old.map(A, request(0, 0x1000, RW, a.fd(), 0)).unwrap();
    new.map(A, request(0, 0x1000, RW, b.fd(), 0)).unwrap();
    let (device, other) = (Attachment::new(&old), Attachment::new(&old));
    let hold = device.hold(0, 16, RW).unwrap();
    assert!(device.attach(&new).unwrap().is(&old));
    assert!(device.space().unwrap().is(&new));
    now(device.write(0, b"new")).unwrap();
    now(other.write(0x10, b"old")).unwrap();
    hold.write(0, b"held").unwrap();
    assert_eq!((b.peek(0, 4), a.peek(0, 4)), (b"new\0".to_vec(), b"held".to_vec()));
    assert_eq!(a.peek(0x10, 3), b"old");
    assert_eq!(errno(old.unmap_all(SOON)), Errno::BUSY);
    new.unmap_all(SOON).unwrap();
    drop(hold);
    old.unmap_all(SOON).unwrap();
    device.attach(&new);
    assert!(device.detach().unwrap().is(&new));
    assert!(device.detach().is_none() && device.space().is_none());
    assert_eq!(errno(now(device.read(0, &mut [0]))), Errno::FAULT);
    assert_eq!(errno(device.hold(0, 1, RW)), Errno::FAULT);
}

#[test]
fn devices_that_share_a_space_see_each_others_mappings() {
    let (space, memory) = (Space::new(), Memory::new(0x1000));
    let devices = [(); 4].map(|()| Attachment::new(&space));
    space.map(None, request(0, 0x1000, RW, memory.fd(), 0)).unwrap();
    std::thread::scope(|s| {
        for (i, device) in devices.iter().enumerate() {
            s.spawn(move || {
                for n in 0..2000u32 {
                    now(device.write(i as u64 * 4, &n.to_ne_bytes())).unwrap();
                }
            });
        }
        for i in 1..500u64 {
            space.map(B, request(i * 0x1000, 0x1000, RW, memory.fd(), 0)).unwrap();
        }
        space.drop_owner(B);
    });
    assert_eq!(space.len(), 1);
    assert_eq!(memory.peek(0, 16), 1999u32.to_ne_bytes().repeat(4));
}

#[test]
fn batch_lets_a_mapper_in() {
    let (space, memory) = (Space::new(), Memory::new(0x2000));
    space.map(A, request(0, 0x1000, RW, memory.fd(), 0)).unwrap();
    let device = Attachment::new(&space);
    let mut batch = device.batch().unwrap();
    std::thread::scope(|s| {
        let mapper = s.spawn(|| space.map(A, request(0x1000, 0x1000, RW, memory.fd(), 0)));
        // One batch all the time: it ends only because the mapper is let in.
        while batch.translate(0x1000, 1, RW).is_err() {
            std::thread::yield_now();
        }
        mapper.join().unwrap().unwrap();
    });
    let mapped = batch.translate(0, 0x1000, RW).map(|span| span.len());
    assert_eq!(mapped.unwrap(), 0x1000);
}

#[test]
fn device_that_moves_between_spaces_writes_to_each_only_while_attached() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let spaces = [(); 2].map(|()| (Space::new(), Memory::new(0x4_0000)));
    let map = |(space, memory): &(Space, Memory)| {
        space.map(A, request(0, 0x4_0000, RW, memory.fd(), 0)).unwrap();
    };
    let device = Attachment::detached();
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        // Small ones are copied under the lock, large ones without it.
        for len in [64usize, 0x1_0000] {
            let (device, stop) = (&device, &stop);
            s.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Err(error) = now(device.write(0x1000, &vec![0x55; len])) {
                        assert_eq!(error.errno(), Errno::FAULT);
                    }
                }
            });
        }
        for i in 0..600 {
            let (here, there) = (&spaces[i % 2], &spaces[(i + 1) % 2]);
            map(here);
            device.attach(&here.0);
            std::thread::yield_now();
            // The device goes first, or the mapping.
            if i % 3 == 0 {
                device.attach(&there.0);
            }
            here.0.unmap_all(Duration::from_secs(60)).unwrap();
            here.1.poke(0x1000, &[0xaa; 0x1_0000]);
            std::thread::yield_now();
            let bytes = here.1.peek(0x1000, 0x1_0000);
            assert!(bytes.iter().all(|byte| *byte == 0xaa), "written after the unmap");
        }
        stop.store(true, Ordering::Relaxed);
    });
}
