//! Memory that only messages reach.

use std::sync::Mutex;

use super::*;

/// A peer with memory at its addresses, which notes what it was asked.
#[derive(Default)]
struct Peer {
    log: Mutex<Vec<(char, u64, usize)>>,
    /// Done while a message is under way: the peer goes on meanwhile.
    meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Peer {
    fn note(&self, what: char, iova: u64, len: usize) {
        self.log.lock().unwrap().push((what, iova, len));
        if let Some(f) = self.meanwhile.lock().unwrap().take() {
            f();
        }
    }

    fn log(&self) -> Vec<(char, u64, usize)> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }
}

impl DmaPeer for Peer {
    fn start_read(&self, iova: u64, len: usize, completion: Completion<Vec<u8>>) {
        self.note('r', iova, len);
        completion.complete(Ok((iova..).map(|at| at as u8).take(len).collect()));
    }

    fn start_write(&self, iova: u64, data: Vec<u8>, completion: Completion<()>) {
        self.note('w', iova, data.len());
        completion.complete(Ok(()));
    }
}

/// A peer that has gone.
pub(super) struct Dead;

impl DmaPeer for Dead {
    fn start_read(&self, _iova: u64, _len: usize, completion: Completion<Vec<u8>>) {
        completion.complete(Err(Error::new(Errno::TIMEDOUT, "no answer")));
    }

    fn start_write(&self, _iova: u64, _data: Vec<u8>, completion: Completion<()>) {
        completion.complete(Err(Error::new(Errno::TIMEDOUT, "no answer")));
    }
}

fn map_peer(
    space: &TestDevice,
    peer: &Arc<impl DmaPeer + 'static>,
    iova: u64,
    size: u64,
    perm: Perm,
) {
    let backing = Backing::Peer(peer.clone());
    space.map(A, MapRequest { iova, size, perm, backing }).unwrap();
}

#[test]
fn one_message_for_each_window() {
    let (space, peer, memory) = (TestDevice::new(), Arc::new(Peer::default()), Memory::new(0x1000));
    map_peer(&space, &peer, 0x1000, 0x1000, RW);
    map_peer(&space, &peer, 0x2000, 0x1000, RW);
    map(&space, &memory, 0x3000, 0x1000, 0);
    memory.poke(0, &[0xfe; 16]);
    let mut bytes = [0; 0x1020];
    space.read(0x1ff0, &mut bytes).unwrap();
    assert_eq!(peer.log(), [('r', 0x1ff0, 16), ('r', 0x2000, 0x1000)]);
    assert_eq!(bytes[..16], *(0xf0..=0xff).collect::<Vec<u8>>());
    assert_eq!(bytes[0x1010..], [0xfe; 16]);
    space.write(0x2fff, &[1, 2]).unwrap();
    assert_eq!((peer.log(), memory.peek(0, 1)), (vec![('w', 0x2fff, 1)], vec![2]));
    assert!(!space.mappings()[0].is_mapped());
    // A whole megabyte is still one: the peer's own limits are the transport's matter.
    map_peer(&space, &peer, 1 << 20, 1 << 20, RW);
    space.write(1 << 20, &vec![0; 1 << 20]).unwrap();
    assert_eq!(peer.log(), [('w', 1 << 20, 1 << 20)]);
}

#[test]
fn permissions_and_errors() {
    let (space, peer) = (TestDevice::new(), Arc::new(Peer::default()));
    map_peer(&space, &peer, 0x1000, 0x1000, Perm::READ);
    map_peer(&space, &Arc::new(Dead), 0x2000, 0x1000, RW);
    let mut bytes = [0; 4];
    assert_eq!(errno(space.write(0x1000, &bytes)), Errno::ACCESS);
    assert_eq!(errno(space.read(0x2ffe, &mut bytes)), Errno::FAULT);
    assert!(peer.log().is_empty(), "nothing is sent for what is refused");
    assert_eq!(errno(space.read(0x2000, &mut bytes)), Errno::TIMEDOUT);
    assert_eq!(errno(space.write(0x2000, &bytes)), Errno::TIMEDOUT);
    assert_eq!(errno(space.pin(0x1000, 4, Perm::READ)), Errno::OPNOTSUPP);
    assert_eq!(errno(space.swap(0x2000, 1u32)), Errno::OPNOTSUPP);
    assert_eq!(errno(space.fetch_add(0x2000, 1u32)), Errno::OPNOTSUPP);
    let mut access = space.access().unwrap();
    let span = access.translate(0x1000, 4, Perm::READ).unwrap();
    assert!(!span.is_mapped());
    assert_eq!(errno(span.read(0, &mut bytes)), Errno::OPNOTSUPP);
}

#[test]
fn integers_by_message() {
    let (space, peer) = (TestDevice::new(), Arc::new(Peer::default()));
    map_peer(&space, &peer, 0x1000, 0x1000, RW);
    let value: u32 = space.load(0x1004, Ordering::Acquire).unwrap();
    assert_eq!(value.to_ne_bytes(), [4, 5, 6, 7]);
    space.store(0x1004, value, Ordering::SeqCst).unwrap();
    assert_eq!(peer.log(), [('r', 0x1004, 4), ('w', 0x1004, 4)]);
}

#[test]
fn the_peer_may_map_and_unmap_while_it_is_waited_for() {
    let (space, peer, memory) = (TestDevice::new(), Arc::new(Peer::default()), Memory::new(0x1000));
    map_peer(&space, &peer, 0x1000, 0x1000, RW);
    map(&space, &memory, 0x2000, 0x1000, 0);
    let remap = {
        let space = space.clone();
        move || {
            let memory = Memory::new(0x1000);
            map(&space, &memory, 0x8000, 0x1000, 0);
            assert_eq!(space.unmap(0x1000, 0x2000, SOON).unwrap(), 0x2000);
        }
    };
    *peer.meanwhile.lock().unwrap() = Some(Box::new(remap));
    space.read(0x1ff0, &mut [0; 32]).unwrap();
    assert_eq!(space.len(), 1);
    space.unmap_all(SOON).unwrap();
}

#[test]
fn batch_accesses_nothing_where_a_part_is_reached_by_message() {
    let (space, peer, memory) = (TestDevice::new(), Arc::new(Peer::default()), Memory::new(0x1000));
    map_peer(&space, &peer, 0x1000, 0x1000, RW);
    map(&space, &memory, 0x2000, 0x1000, 0);
    let mut batch = space.access().unwrap();
    for iova in [0x1000, 0x1ff0, 0x1fff] {
        assert_eq!(batch.write(iova, &[1; 32]).unwrap(), Reach::Message);
        assert_eq!(batch.read(iova, &mut [0; 32]).unwrap(), Reach::Message);
    }
    assert_eq!(batch.load::<u32>(0x1000).unwrap(), None);
    assert_eq!(batch.store(0x1000, 1u32, Ordering::Release).unwrap(), Reach::Message);
    assert_eq!(batch.write(0x2000, &[1]).unwrap(), Reach::Mapped);
    assert_eq!(memory.peek(0, 32), [[1].as_slice(), &[0; 31]].concat());
    assert!(peer.log().is_empty());
}

#[test]
fn a_peer_is_let_go_with_its_last_window() {
    let (space, peer) = (TestDevice::new(), Arc::new(Peer::default()));
    (0..100).for_each(|i| map_peer(&space, &peer, i * 0x1000, 0x1000, RW));
    assert!(Arc::strong_count(&peer) <= 3, "not one for each mapping");
    space.unmap(0, 99 * 0x1000, SOON).unwrap();
    assert!(Arc::strong_count(&peer) > 1);
    space.drop_owner(A);
    assert_eq!(Arc::strong_count(&peer), 1);
    map_peer(&space, &peer, 0, 0x1000, RW);
    space.unmap(0, 0x1000, SOON).unwrap();
    assert_eq!(Arc::strong_count(&peer), 1);
}
