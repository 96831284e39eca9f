//! Power cuts: what a host was told is durable is there, and of the rest any part.
//!
//! A host may rely on this (base 7.1, NVM command set 2.1.4 and 3.2.6): a Flush that has completed covers each
//! write that had completed before it was submitted; a write with Force Unit Access, and any write while the
//! volatile write cache is off, is durable when it completes, and so is what was read with Force Unit Access. A block has what was durable last, or what any
//! later write has given it, completed or not, and never parts of two.

use vfiod_disk::test::{SECTOR, TestDisk};
use vfiod_testing::eventually;

use super::rig::{BASE, Command, DATA, Host};
use super::shared::neighbours;

/// Blocks that are written. As many behind them are the sources of copies.
const BLOCKS: usize = 16;
const SOURCE: u8 = 250;
const QUEUES: usize = 3;
const FORCED: u32 = 1 << 30;

fn random(mut state: u64) -> impl FnMut(usize) -> usize {
    move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as usize % below
    }
}

/// What the host knows of a block.
struct Block {
    /// What it was given, in order.
    given: Vec<u8>,
    /// The last of it that has completed, and that is durable.
    completed: usize,
    durable: usize,
    /// A write is outstanding.
    busy: bool,
}

/// A command that is outstanding.
enum Outstanding {
    Write {
        blocks: std::ops::Range<usize>,
        durable: bool,
    },
    Flush {
        covered: Vec<usize>,
    },
    /// A read with Force Unit Access: of these blocks, and what had completed of them.
    Read {
        first: usize,
        covered: Vec<usize>,
    },
}

struct Round {
    /// Queues are those of the first host, of the second one, and so on.
    hosts: Vec<Host>,
    disk: std::sync::Arc<TestDisk>,
    blocks: Vec<Block>,
    outstanding: Vec<(usize, u16, Outstanding)>,
    /// The volatile write cache is off.
    through: bool,
    flushed: usize,
    forced: usize,
}

impl Round {
    fn new<const N: usize>(through: bool) -> Self {
        let sources = BLOCKS * SECTOR;
        let disk = TestDisk::with_image([vec![0; sources], vec![SOURCE; sources]].concat());
        let mut hosts: Vec<Host> = neighbours::<N>(disk.clone()).into();
        for host in &mut hosts {
            (1..=QUEUES).for_each(|id| host.create_pair(id, 64, 1));
            if through {
                assert_eq!(host.admin(Command::new(9).set(10, 6)), Ok(0));
            }
        }
        disk.hold(true);
        let block = || Block { given: vec![0], completed: 0, durable: 0, busy: false };
        let blocks = (0..BLOCKS).map(|_| block()).collect();
        Self { hosts, disk, blocks, outstanding: Vec::new(), through, flushed: 0, forced: 0 }
    }

    /// The host of a queue.
    fn host(&mut self, queue: usize) -> &mut Host {
        let count = self.hosts.len();
        &mut self.hosts[queue % count]
    }

    fn submit(&mut self, queue: usize, command: Command, what: Outstanding) {
        let id = self.host(queue).submit(queue, command);
        self.outstanding.push((queue, id, what));
    }

    /// Writes blocks in one of several ways, unless one of them is being written.
    fn write(&mut self, step: u8, next: &mut impl FnMut(usize) -> usize) {
        let first = next(BLOCKS);
        let count = (1 + next(4)).min(BLOCKS - first);
        let blocks = first..first + count;
        // One writer of a block at a time, so that the order is known.
        if self.blocks[blocks.clone()].iter().any(|block| block.busy) {
            return;
        }
        let at = DATA + 4096 * u64::from(step);
        let queue = 1 + next(QUEUES);
        let memory = &self.host(queue).memory;
        let (byte, opcode) = [(step, 1), (0, 8), (SOURCE, 0x19), (step, 1)][next(4)];
        let forced = if next(3) == 0 { FORCED } else { 0 };
        let command = if opcode == 0x19 {
            let from = [&[0; 8][..], &(BLOCKS as u64).to_le_bytes(), &[count as u8 - 1], &[0; 15]];
            memory.put(at - BASE, &from.concat());
            let command = Command::new(opcode).namespace(1).prps(at, 0);
            command.set(10, first as u32).set(12, forced)
        } else {
            memory.put(at - BASE, &vec![byte; count * SECTOR]);
            let command = Command::io(opcode, first as u64, count as u32, (at, 0));
            command.set(12, forced | (count as u32 - 1))
        };
        for block in &mut self.blocks[blocks.clone()] {
            block.given.push(byte);
            block.busy = true;
        }
        let durable = forced != 0 || self.through;
        self.submit(queue, command, Outstanding::Write { blocks, durable });
    }

    fn flush(&mut self, next: &mut impl FnMut(usize) -> usize) {
        let covered = self.blocks.iter().map(|block| block.completed).collect();
        let flush = Command::new(0).namespace(1);
        self.submit(1 + next(QUEUES), flush, Outstanding::Flush { covered });
    }

    fn read(&mut self, next: &mut impl FnMut(usize) -> usize) {
        let first = next(BLOCKS);
        let count = (1 + next(4)).min(BLOCKS - first);
        let covered = self.blocks[first..first + count].iter().map(|block| block.completed);
        let what = Outstanding::Read { first, covered: covered.collect() };
        let read = Command::io([2, 12][next(2)], first as u64, count as u32, (DATA, 0));
        self.submit(1 + next(QUEUES), read.set(12, FORCED | (count as u32 - 1)), what);
    }

    /// Takes what has completed.
    fn take(&mut self) {
        for queue in 1..=QUEUES {
            while let Some(entry) = self.host(queue).poll(queue) {
                self.host(queue).release(queue);
                assert_eq!(entry.status, 0);
                let is_this =
                    |(of, id, _): &(usize, u16, Outstanding)| (*of, *id) == (queue, entry.id);
                let place = self.outstanding.iter().position(is_this).expect("it completes once");
                match self.outstanding.remove(place).2 {
                    Outstanding::Write { blocks, durable } => {
                        self.forced += usize::from(durable);
                        for block in &mut self.blocks[blocks] {
                            block.busy = false;
                            block.completed = block.given.len() - 1;
                            if durable {
                                block.durable = block.completed;
                            }
                        }
                    }
                    Outstanding::Read { first, covered } => {
                        for (block, covered) in self.blocks[first..].iter_mut().zip(covered) {
                            block.durable = block.durable.max(covered);
                        }
                    }
                    Outstanding::Flush { covered } => {
                        self.flushed += 1;
                        for (block, covered) in self.blocks.iter_mut().zip(covered) {
                            block.durable = block.durable.max(covered);
                        }
                    }
                }
            }
        }
    }

    /// Lets the disk end something that it holds, if it does.
    fn finish(&mut self, next: &mut impl FnMut(usize) -> usize) {
        let held = self.disk.held();
        if !held.is_empty() {
            self.disk.finish(held[next(held.len())].id);
        }
    }

    /// Waits for a command.
    fn wait(&mut self, next: &mut impl FnMut(usize) -> usize) {
        if self.outstanding.is_empty() {
            return;
        }
        let (queue, id, _) = self.outstanding[next(self.outstanding.len())];
        eventually("a command that ends", || {
            self.finish(next);
            self.take();
            !self.outstanding.iter().any(|(of, other, _)| (*of, *other) == (queue, id))
        });
    }
}

#[test]
fn power_cut_leaves_what_a_host_relies_on() {
    cut::<1>();
}

/// Each host has a controller of its own: a Flush on one covers what has completed on the other.
#[test]
fn power_cut_leaves_what_hosts_of_two_controllers_rely_on() {
    cut::<2>();
}

fn cut<const N: usize>() {
    let mut next = random(11);
    let (mut flushed, mut forced) = (0, 0);
    for round in 0..60 {
        let mut this = Round::new::<N>(round % 4 == 3);
        for step in 1..50 {
            match next(8) {
                0..4 => this.write(step, &mut next),
                4 if step % 2 == 0 => this.flush(&mut next),
                4 => this.read(&mut next),
                5 | 6 => this.finish(&mut next),
                _ => this.wait(&mut next),
            }
        }
        // What the host knows before the cut is what it relies on.
        this.take();
        let image = this.disk.power_cut(&mut next);
        for (n, block) in this.blocks.iter().enumerate() {
            let sector = &image[n * SECTOR..(n + 1) * SECTOR];
            let byte = sector[0];
            assert!(sector.iter().all(|other| *other == byte), "block {n} is torn");
            let allowed = &block.given[block.durable..];
            assert!(allowed.contains(&byte), "block {n} has {byte}, not one of {allowed:?}");
        }
        (flushed, forced) = (flushed + this.flushed, forced + this.forced);
        this.disk.finish_all();
    }
    assert!(flushed > 60 && forced > 120, "{flushed} flushes, {forced} forced writes");
}
