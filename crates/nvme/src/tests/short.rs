//! Too little memory, and whatever else there is a limited number of: the host waits, and is told nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use vfiod_core::dma::{Completion, DmaPeer};
use vfiod_core::{Errno, Error};
use vfiod_testing::eventually;

use super::rig::{BASE, Command, DATA, ENABLE, Held, Host, create_cq, create_sq, pattern, with};
use vfiod_nvme_spec::registers::{DOORBELLS, FATAL, READY, SHUT_DOWN, SHUTDOWN};

const WRITE: u8 = 1;
const READ: u8 = 2;
const COMPARE: u8 = 5;
/// Where memory is that is reached by message, and its length.
const PEER: u64 = 1 << 41;
const LEN: usize = 1 << 20;

/// Memory that is reached by message, for which our side has too little at times.
#[derive(Debug)]
struct Scarce(Mutex<State>);

#[derive(Debug)]
struct State {
    memory: Vec<u8>,
    /// How many requests fail before the next one that does not, and so on.
    plan: VecDeque<usize>,
    failed: usize,
}

impl Scarce {
    fn new() -> Arc<Self> {
        let state = State { memory: vec![0; LEN], plan: VecDeque::new(), failed: 0 };
        Arc::new(Self(Mutex::new(state)))
    }

    /// Lets so many requests fail from now on before one does not, and so on; all others succeed.
    fn fail(&self, plan: &[usize]) {
        self.0.lock().unwrap().plan = plan.to_vec().into();
    }

    fn failed(&self) -> usize {
        self.0.lock().unwrap().failed
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        self.0.lock().unwrap().memory[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn get(&self, at: usize, len: usize) -> Vec<u8> {
        self.0.lock().unwrap().memory[at..at + len].to_vec()
    }

    fn access<T>(&self, completion: Completion<T>, access: impl FnOnce(&mut Vec<u8>) -> T) {
        let mut state = self.0.lock().unwrap();
        let state_now = &mut *state;
        let result = match state_now.plan.front_mut() {
            Some(left @ 1..) => {
                *left -= 1;
                state_now.failed += 1;
                Err(Error::short(Errno::NOMEM, "a test has no memory"))
            }
            _ => {
                state_now.plan.pop_front();
                Ok(access(&mut state_now.memory))
            }
        };
        drop(state);
        completion.complete(result);
    }
}

impl DmaPeer for Scarce {
    fn start_read(&self, iova: u64, len: usize, completion: Completion<Vec<u8>>) {
        let at = (iova - PEER) as usize;
        self.access(completion, |memory| memory[at..at + len].to_vec());
    }

    fn start_write(&self, iova: u64, data: Vec<u8>, completion: Completion<()>) {
        let at = (iova - PEER) as usize;
        self.access(completion, |memory| memory[at..at + data.len()].copy_from_slice(&data));
    }
}

/// What is reached by message lacks memory of ours at first: a command begins anew until it has that.
#[test]
fn commands_begin_anew_until_there_is_memory_for_their_messages() {
    let disk = Held::new();
    let mut host = Host::new(with(disk));
    let memory = Scarce::new();
    host.device.map_peer(PEER, LEN as u64, memory.clone());
    host.create_pair(1, 16, 1);
    let block = pattern(7, 512);
    memory.put(0, &block);
    for command in [
        Command::io(WRITE, 3, 1, (PEER, 0)),
        Command::io(COMPARE, 3, 1, (PEER, 0)),
        Command::io(READ, 3, 1, (PEER + 4096, 0)),
        Command::new(6).prps(PEER + 8192, 0).set(10, 1),
    ] {
        memory.fail(&[2]);
        let before = memory.failed();
        let queue = usize::from(command.0[1] == 1);
        let id = host.submit(queue, command);
        let entry = host.wait(queue);
        assert_eq!((entry.id, entry.status), (id, 0), "{command:x?}");
        assert_eq!(memory.failed(), before + 2, "{command:x?}");
    }
    assert_eq!(memory.get(4096, 512), block);
    assert_ne!(memory.get(8192, 4096), [0; 4096]);
    let errors = host.log(2, 512).unwrap()[176];
    assert_eq!(errors, 0, "an error was told");
}

/// Lists of where data is are read again as well.
#[test]
fn lists_are_read_once_there_is_memory_for_that() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    let memory = Scarce::new();
    host.device.map_peer(PEER, LEN as u64, memory.clone());
    host.create_pair(1, 16, 1);
    let pages = [DATA + 0x4000, DATA + 0x8000].map(u64::to_le_bytes).concat();
    memory.put(0, &pages);
    let block = [DATA.to_le_bytes(), 512_u64.to_le_bytes()].concat();
    memory.put(4096, &block);
    let last_segment = 16 | 0x30 << 56;
    for command in [
        Command::io(READ, 0, 24, (DATA, PEER)),
        Command::io(READ, 0, 1, (PEER + 4096, last_segment)).set(0, 1 << 14 | u32::from(READ)),
    ] {
        memory.fail(&[3]);
        let before = memory.failed();
        assert_eq!(host.perform(1, command), Ok(0), "{command:x?}");
        assert_eq!(memory.failed(), before + 3);
    }
}

/// What the host itself refuses is no shortage of ours, whatever it calls it.
#[test]
fn client_that_says_it_has_no_memory_gets_its_error() {
    struct Refuses;
    impl DmaPeer for Refuses {
        fn start_read(&self, _iova: u64, _len: usize, completion: Completion<Vec<u8>>) {
            completion.complete(Err(Error::new(Errno::NOMEM, "the client has none")));
        }

        fn start_write(&self, _iova: u64, _data: Vec<u8>, completion: Completion<()>) {
            completion.complete(Err(Error::new(Errno::AGAIN, "the client has none")));
        }
    }
    let mut host = Host::new(with(Held::new()));
    host.device.map_peer(PEER, LEN as u64, Arc::new(Refuses));
    host.create_pair(1, 16, 1);
    for opcode in [READ, WRITE] {
        assert_eq!(host.perform(1, Command::io(opcode, 0, 1, (PEER, 0))), Err(0x04));
    }
}

/// Queues that are reached by message: commands are read, and completions written, when there is memory for that.
#[test]
fn queues_wait_for_memory_and_are_not_broken() {
    let mut host = Host::new(with(Held::new()));
    let memory = Scarce::new();
    host.device.map_peer(PEER, LEN as u64, memory.clone());
    assert_eq!(host.admin(create_cq(1, 16, PEER + 0x1_0000, 1)), Ok(0));
    assert_eq!(host.admin(create_sq(1, 16, PEER, 1)), Ok(0));
    for n in 0..3 {
        let command = Command::io(READ, 0, 1, (DATA, 0)).set(0, (7 + n) << 16 | u32::from(READ));
        let bytes: Vec<u8> = command.0.iter().flat_map(|dword| dword.to_le_bytes()).collect();
        memory.put(64 * n as usize, &bytes);
    }
    // The entry is read, and a completion written in two parts, which begin anew together.
    memory.fail(&[3, 2, 1]);
    host.device.write32(0, DOORBELLS + 8, 1);
    let entry = |n: usize| memory.get(0x1_0000 + 16 * n, 16);
    eventually("the first one has completed", || entry(0)[14] & 1 == 1);
    assert_eq!((entry(0)[12], entry(0)[14] >> 1, entry(0)[15]), (7, 0, 0));
    assert_eq!(memory.failed(), 6);
    host.device.write32(0, DOORBELLS + 8, 3);
    eventually("the others have completed", || entry(2)[14] & 1 == 1);
    assert_eq!(host.status() & (FATAL | READY), READY);
}

/// Whatever the disk does: what it has no memory for is begun anew, and the host learns of nothing.
#[test]
fn disk_that_lacks_memory_is_asked_again() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    host.create_pair(1, 16, 1);
    let range = [&[0; 4][..], &1_u32.to_le_bytes(), &8_u64.to_le_bytes()].concat();
    host.memory.put(DATA - BASE, &range);
    let copied = [&[0; 16][..], &[0; 16]].concat();
    host.memory.put(DATA + 4096 - BASE, &copied);
    host.memory.put(DATA + 8192 - BASE, &[0; 512]);
    let commands = [
        Command::io(WRITE, 1, 1, (DATA, 0)),
        Command::io(READ, 1, 1, (DATA + 0x4000, 0)),
        Command::io(READ, 1, 1, (DATA + 0x4000, 0)).set(12, 1 << 30),
        Command::io(COMPARE, 3, 1, (DATA + 8192, 0)),
        Command::io(0x0c, 4, 2, (0, 0)),
        Command::io(0x08, 4, 8, (0, 0)),
        Command::new(0x09).namespace(1).prps(DATA, 0).set(11, 4),
        Command::new(0x19).namespace(1).prps(DATA + 4096, 0).set(10, 5),
    ];
    for errno in [Errno::AGAIN, Errno::NOMEM, Errno::INTR, Errno::CANCELED] {
        for command in commands {
            disk.seen();
            disk.fail(Some(errno));
            let id = host.submit(1, command);
            let mut seen = Vec::new();
            eventually("it is begun again and again", || {
                seen.extend(disk.seen());
                seen.len() > 2 || host.peek(1).is_some()
            });
            assert_eq!(host.peek(1), None, "{errno:?}, {command:x?}");
            disk.fail(None);
            let entry = host.wait(1);
            assert_eq!((entry.id, entry.status), (id, 0), "{errno:?}, {command:x?}");
        }
    }
    let format = host.submit(0, Command::new(0x80).namespace(1));
    assert_eq!((host.wait(0).id, host.log(2, 512).unwrap()[176]), (format, 0));
}

/// A command that waits for memory is in nobody's way: not in that of a deletion, a shutdown, a reset, a Format.
#[test]
fn command_that_lacks_memory_holds_nobody_up() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    let waiting = |host: &mut Host| {
        host.create_pair(1, 16, 1);
        disk.seen();
        disk.fail(Some(Errno::NOMEM));
        // Read together: while one waits, no others are read.
        let id = host.put(1, Command::io(READ, 0, 1, (DATA, 0)));
        let other = host.submit(1, Command::io(WRITE, 0, 1, (DATA, 0)));
        let mut seen = 0;
        eventually("both wait", || {
            seen += disk.seen().len();
            seen > 4
        });
        [id, other]
    };
    let ended = |host: &mut Host| {
        let mut entries = [host.wait(1), host.wait(1)].map(|entry| (entry.id, entry.status));
        entries.sort_unstable();
        entries
    };

    // A deletion: both end unbegun.
    let ids = waiting(&mut host);
    assert_eq!(host.admin(Command::new(0).set(10, 1)), Ok(0));
    assert_eq!(ended(&mut host), ids.map(|id| (id, 0x08)));
    assert_eq!(host.admin(Command::new(4).set(10, 1)), Ok(0));

    // A Format: they find it, and nobody waits for them.
    let ids = waiting(&mut host);
    disk.fail(None);
    disk.hold(true);
    host.submit(0, Command::new(0x80).namespace(1));
    eventually("nothing but the Format's is with the disk", || {
        host.peek(1).is_some() || {
            disk.release();
            false
        }
    });
    disk.hold(false);
    disk.release();
    assert_eq!(host.wait(0).status, 0);
    let statuses = ended(&mut host);
    assert!(
        statuses.iter().all(|(_, status)| [0, 0x84].contains(status)),
        "{ids:?}, {statuses:x?}"
    );
    assert_eq!(host.admin(Command::new(0).set(10, 1)), Ok(0));
    assert_eq!(host.admin(Command::new(4).set(10, 1)), Ok(0));

    // A shutdown, and a reset.
    let ids = waiting(&mut host);
    host.device.write32(0, 0x14, ENABLE | 1 << 14);
    assert_eq!(ended(&mut host), ids.map(|id| (id, 0x07)));
    disk.fail(None);
    host.await_status(SHUTDOWN, SHUT_DOWN);
    host.disable();
    host.enable();
    waiting(&mut host);
    host.disable();
}
