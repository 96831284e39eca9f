//! The disk's content is that of a model, after any I/O commands and with resets of every kind between them.
//!
//! Each block that is written has a number, which its bytes are made of. The model has for each block the
//! numbers that it may have: one, but while commands on several queues are in flight, or where a reset has
//! ended them.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vfiod_nvme::NvmeOptions;
use vfiod_nvme_driver::{Buffer, Command, Completion, Controller, Data, Namespace, Queue};
use vfiod_nvme_driver::{Reset, Waiting, opcode};

use crate::resets::RESETS;
use crate::rig::Rig;

/// Blocks of the disk.
const BLOCKS: u64 = 96;
/// The most blocks of a command.
const MOST: u64 = 24;
const QUEUES: usize = 3;
const ENTRIES: u32 = 6;
/// Copy, and the bit of ONCS that says that there is one.
const COPY: (u8, u16) = (0x19, 1 << 8);
/// The opcodes that are played: all that the controller may have.
const PLAYED: [u8; 8] = [
    opcode::FLUSH,
    opcode::WRITE,
    opcode::READ,
    opcode::COMPARE,
    opcode::WRITE_ZEROES,
    opcode::DATASET_MANAGEMENT,
    opcode::VERIFY,
    COPY.0,
];

/// Generic status 0Ah and 09h: the other command of a fused pair has failed, or is missing.
const FUSED_ABORTED: [u16; 2] = [0x0a, 0x09];
const COMPARE_FAILURE: u16 = 0x285;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Write {
        durable: bool,
    },
    Zero {
        deallocate: bool,
    },
    Deallocate,
    /// With the data that is there, or with a byte that differs.
    Compare {
        same: bool,
    },
    Verify,
    Flush,
    /// From another place.
    Copy {
        from: u64,
    },
    /// Compare and Write, fused.
    Swap {
        same: bool,
    },
}

#[derive(Clone, Copy, Debug)]
struct Io {
    kind: Kind,
    queue: usize,
    first: u64,
    count: u64,
    /// Where the data begins in its buffer, in dwords.
    offset: usize,
}

#[derive(Clone, Debug)]
enum Step {
    /// Commands at once; then the whole disk is read.
    Commands(Vec<Io>),
    /// Commands, and a reset that does not wait for them.
    Reset(Reset, Vec<Io>),
    /// Commands, and the end of the connection.
    Reconnect(Vec<Io>),
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        3 => Just(Kind::Read),
        6 => any::<bool>().prop_map(|durable| Kind::Write { durable }),
        2 => any::<bool>().prop_map(|deallocate| Kind::Zero { deallocate }),
        2 => Just(Kind::Deallocate),
        2 => any::<bool>().prop_map(|same| Kind::Compare { same }),
        1 => Just(Kind::Verify),
        1 => Just(Kind::Flush),
        2 => (0..BLOCKS).prop_map(|from| Kind::Copy { from }),
        2 => any::<bool>().prop_map(|same| Kind::Swap { same }),
    ]
}

fn io() -> impl Strategy<Value = Io> {
    (kind(), 0..QUEUES, 0..BLOCKS, 1..=MOST, prop_oneof![Just(0), 0..1024_usize]).prop_map(
        |(kind, queue, first, count, offset)| {
            let count = count.min(BLOCKS - first);
            Io { kind, queue, first, count, offset }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let several = || prop::collection::vec(io(), 1..12);
    prop_oneof![
        6 => several().prop_map(Step::Commands),
        2 => (prop::sample::select(RESETS.to_vec()), several())
            .prop_map(|(reset, commands)| Step::Reset(reset, commands)),
        1 => several().prop_map(Step::Reconnect),
    ]
}

/// A block's bytes, of its number; 0: zeroes.
fn bytes_of(number: u32, block: usize) -> Vec<u8> {
    let mut state = u64::from(number);
    let mut bytes = Vec::with_capacity(block);
    bytes.extend_from_slice(&number.to_le_bytes());
    while bytes.len() < block {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d);
        bytes.push((state >> 56) as u8);
    }
    bytes
}

/// The number that a block's bytes are made of.
fn number_of(bytes: &[u8]) -> Option<u32> {
    let number = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    (bytes == bytes_of(number, bytes.len())).then_some(number)
}

/// A command that was submitted, and what was known then.
struct InFlight {
    io: Io,
    queue: usize,
    ids: Vec<u16>,
    buffer: Arc<Buffer>,
    completions: Vec<Completion>,
}

struct World {
    rig: Rig,
    /// `None` only while it is replaced.
    controller: Option<Controller>,
    disk: Namespace,
    queues: Vec<Queue>,
    /// What each block may be.
    blocks: Vec<BTreeSet<u32>>,
    next: u32,
    has_copy: bool,
    has_fused: bool,
}

impl World {
    fn new(options: impl FnOnce(&std::path::Path) -> NvmeOptions) -> Self {
        let rig = Rig::with(options);
        let mut controller = rig.connect();
        let disk = controller.namespace(1).unwrap();
        assert_eq!(disk.blocks, BLOCKS);
        let has_copy = controller.info().io_commands & COPY.1 != 0;
        let has_fused = controller.identify(1, 0).unwrap()[522] & 1 != 0;
        let mut world = Self {
            rig,
            controller: Some(controller),
            disk,
            queues: Vec::new(),
            blocks: vec![BTreeSet::from([0]); BLOCKS as usize],
            next: 1,
            has_copy,
            has_fused,
        };
        world.must_play_every_opcode();
        world.begin();
        world
    }

    fn controller(&mut self) -> &mut Controller {
        self.controller.as_mut().unwrap()
    }

    /// What the Commands Supported and Effects log says there is, is among what is played.
    fn must_play_every_opcode(&mut self) {
        let buffer = self.controller().memory().allocate(4096).unwrap();
        let log = Command::new(opcode::GET_LOG_PAGE).namespace(u32::MAX).dword(10, 1023 << 16 | 5);
        self.controller().admin(log, Some(Data::of(&buffer))).unwrap();
        for opcode in 0..=255_u8 {
            let mut effects = [0; 4];
            buffer.read(1024 + 4 * usize::from(opcode), &mut effects);
            let is_there = effects[0] & 1 != 0;
            assert!(!is_there || PLAYED.contains(&opcode), "opcode {opcode:#x} is not tested here");
        }
    }

    fn begin(&mut self) {
        let waiting = [Waiting::Polling, Waiting::Interrupts];
        self.queues = (0..QUEUES)
            .map(|n| self.controller().create_queue(ENTRIES, waiting[n % 2]).unwrap())
            .collect();
    }

    fn block(&self) -> usize {
        self.disk.block_size as usize
    }

    fn range(io: &Io) -> std::ops::Range<usize> {
        io.first as usize..(io.first + io.count) as usize
    }

    fn fresh(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    /// The data of a compare: what the disk has, if that is known.
    fn known(&self, io: &Io) -> Option<Vec<u8>> {
        let block = self.block();
        let blocks = self.blocks[Self::range(io)].iter().map(|may| match may.len() {
            1 => may.first().map(|number| bytes_of(*number, block)),
            _ => None,
        });
        blocks.collect::<Option<Vec<_>>>().map(|blocks| blocks.concat())
    }

    /// Submits a command, and adds to the model what it may do. `None`: it is not played.
    fn submit(&mut self, io: Io) -> Option<InFlight> {
        let (block, at) = (self.block(), 4 * io.offset);
        let len = io.count as usize * block;
        let memory = self.controller().memory().clone();
        let buffer = memory.allocate(at + len.max(4096)).unwrap();
        let data = Data::part(&buffer, at..at + len);
        let plain = |opcode| Command::new(opcode).namespace(1).blocks(io.first, io.count as u32);
        let mut numbers = Vec::new();
        let mut fill = |world: &mut Self, buffer: &Buffer| {
            for n in 0..io.count as usize {
                let number = world.fresh();
                buffer.write(at + n * block, &bytes_of(number, block));
                numbers.push(number);
            }
        };
        let mut commands = Vec::new();
        match io.kind {
            Kind::Read => commands.push((plain(opcode::READ), Some(data))),
            Kind::Write { durable } => {
                fill(self, &buffer);
                let write = plain(opcode::WRITE);
                let write = if durable { write.durable() } else { write };
                commands.push((write, Some(data)));
            }
            Kind::Zero { deallocate } => {
                let count = io.count as u32 - 1;
                let zero = plain(opcode::WRITE_ZEROES);
                let zero = zero.dword(12, count | u32::from(deallocate) << 25);
                commands.push((zero, None));
                numbers = vec![0; io.count as usize];
            }
            Kind::Deallocate => {
                // Two ranges.
                let first = io.count.div_ceil(2);
                let ranges = [(io.first, first), (io.first + first, io.count - first)];
                let ranges = &ranges[..if io.count > 1 { 2 } else { 1 }];
                for (n, (start, count)) in ranges.iter().enumerate() {
                    buffer.write(at + 16 * n, &[0; 4]);
                    buffer.write(at + 16 * n + 4, &(*count as u32).to_le_bytes());
                    buffer.write(at + 16 * n + 8, &start.to_le_bytes());
                }
                let command = Command::new(opcode::DATASET_MANAGEMENT)
                    .namespace(1)
                    .dword(10, ranges.len() as u32 - 1)
                    .dword(11, 1 << 2);
                let data = Data::part(&buffer, at..at + 16 * ranges.len());
                commands.push((command, Some(data)));
                numbers = vec![0; io.count as usize];
            }
            Kind::Compare { same } => {
                buffer.write(at, &self.known(&io)?);
                if !same {
                    let last = at + len - 1;
                    let mut byte = [0];
                    buffer.read(last, &mut byte);
                    buffer.write(last, &[!byte[0]]);
                }
                commands.push((plain(opcode::COMPARE), Some(data)));
            }
            Kind::Verify => commands.push((plain(opcode::VERIFY), None)),
            Kind::Flush => commands.push((Command::new(opcode::FLUSH).namespace(1), None)),
            Kind::Copy { from } => {
                if !self.has_copy || from + io.count > BLOCKS {
                    return None;
                }
                let source = Io { first: from, ..io };
                let overlaps = from < io.first + io.count && io.first < from + io.count;
                if overlaps || self.known(&source).is_none() {
                    return None;
                }
                buffer.write(at, &[0; 32]);
                buffer.write(at + 8, &from.to_le_bytes());
                buffer.write(at + 16, &(io.count as u16 - 1).to_le_bytes());
                let command = Command::new(COPY.0)
                    .namespace(1)
                    .dword(10, io.first as u32)
                    .dword(11, 0)
                    .dword(12, 0);
                commands.push((command, Some(Data::part(&buffer, at..at + 32))));
                let range = Self::range(&source);
                numbers =
                    self.blocks[range].iter().filter_map(|may| may.first().copied()).collect();
            }
            Kind::Swap { same } => {
                if !self.has_fused || io.count > 1 {
                    return None;
                }
                let mut expected = self.known(&io)?;
                if !same {
                    expected[0] ^= 1;
                }
                let compared = memory.allocate(len).unwrap();
                compared.write(0, &expected);
                fill(self, &buffer);
                let fused =
                    |opcode: u8, which: u32| plain(opcode).dword(0, u32::from(opcode) | which << 8);
                commands.push((fused(opcode::COMPARE, 1), Some(Data::of(&compared))));
                commands.push((fused(opcode::WRITE, 2), Some(data)));
            }
        }
        for (at, number) in Self::range(&io).zip(numbers) {
            self.blocks[at].insert(number);
        }
        let queue = &mut self.queues[io.queue];
        let submit = |(command, data)| queue.submit(command, data).unwrap();
        let ids = commands.into_iter().map(submit).collect();
        Some(InFlight { io, queue: io.queue, ids, buffer, completions: Vec::new() })
    }

    /// Submits as many commands as the queues take, none of which touches the blocks of a command whose
    /// outcome depends on the order.
    fn submit_all(&mut self, commands: &[Io]) -> Vec<InFlight> {
        let mut in_flight: Vec<InFlight> = Vec::new();
        for io in commands {
            let room = ENTRIES as usize - 1 - self.queues[io.queue].in_flight();
            if room < 2 || in_flight.iter().any(|other| conflicts(&other.io, io)) {
                continue;
            }
            in_flight.extend(self.submit(*io));
        }
        self.queues.iter_mut().for_each(|queue| queue.ring().unwrap());
        in_flight
    }

    /// Waits for commands, and judges what they ended with.
    fn finish(&mut self, in_flight: Vec<InFlight>) {
        let before = self.blocks.clone();
        for mut command in in_flight {
            for id in &command.ids {
                let completion = self.queues[command.queue].wait_for(*id).unwrap();
                command.completions.push(completion);
            }
            self.judge(&command, &before);
        }
    }

    fn judge(&mut self, command: &InFlight, may: &[BTreeSet<u32>]) {
        let InFlight { io, completions, buffer, .. } = command;
        let codes: Vec<u16> = completions.iter().map(|entry| entry.status.code()).collect();
        match io.kind {
            Kind::Compare { same: false } => assert_eq!(codes, [COMPARE_FAILURE], "{io:?}"),
            Kind::Swap { same: false } => {
                assert_eq!(codes[0], COMPARE_FAILURE, "{io:?}");
                assert!(FUSED_ABORTED.contains(&codes[1]), "{io:?}: {codes:x?}");
            }
            _ => assert!(codes.iter().all(|code| *code == 0), "{io:?}: {codes:x?}"),
        }
        if let Kind::Read = io.kind {
            self.must_be_possible(io, buffer, may);
        }
    }

    /// What was read is what the blocks may be.
    fn must_be_possible(&self, io: &Io, buffer: &Buffer, may: &[BTreeSet<u32>]) -> Vec<u32> {
        let block = self.block();
        let mut bytes = vec![0; block];
        let mut numbers = Vec::new();
        for (n, at) in Self::range(io).enumerate() {
            buffer.read(4 * io.offset + n * block, &mut bytes);
            let number = number_of(&bytes);
            let number =
                number.unwrap_or_else(|| panic!("block {at} is torn: {:x?}", &bytes[..16]));
            assert!(may[at].contains(&number), "block {at} is {number}, not of {:?}", may[at]);
            numbers.push(number);
        }
        numbers
    }

    /// Reads the whole disk: from now on it is that.
    fn look(&mut self) {
        let before = self.blocks.clone();
        for first in (0..BLOCKS).step_by(MOST as usize) {
            let count = MOST.min(BLOCKS - first);
            let io = Io { kind: Kind::Read, queue: 0, first, count, offset: 0 };
            let mut read = self.submit(io).unwrap();
            read.completions.push(self.queues[0].wait_for(read.ids[0]).unwrap());
            assert!(read.completions[0].status.is_success());
            let numbers = self.must_be_possible(&io, &read.buffer, &before);
            for (at, number) in Self::range(&io).zip(numbers) {
                self.blocks[at] = BTreeSet::from([number]);
            }
        }
    }

    /// What commands that completed have done for sure: blocks that only one of them has touched.
    fn settle(&mut self, in_flight: &[InFlight], before: &[BTreeSet<u32>]) {
        for (at, may) in before.iter().enumerate() {
            let touches =
                |command: &&InFlight| Self::range(&command.io).contains(&at) && writes(&command.io);
            let touching: Vec<_> = in_flight.iter().filter(touches).collect();
            // A deallocated block may be what it was.
            let certain = |command: &&&InFlight| match command.io.kind {
                Kind::Write { .. } | Kind::Zero { .. } => true,
                // It may bring the number that the block had.
                Kind::Copy { .. } => touching.len() == 1,
                Kind::Swap { same } => same,
                _ => false,
            };
            if !touching.is_empty() && touching.iter().all(|it| certain(&it)) {
                let old = may.first().copied().unwrap_or(0);
                let new: BTreeSet<_> = self.blocks[at].difference(may).copied().collect();
                // The same number as before can be written only as zeroes.
                self.blocks[at] = if new.is_empty() { BTreeSet::from([old]) } else { new };
                if touching.iter().any(|command| matches!(command.io.kind, Kind::Zero { .. })) {
                    self.blocks[at].insert(0);
                }
            }
            if touching.iter().all(|it| matches!(it.io.kind, Kind::Swap { same: false })) {
                self.blocks[at].clone_from(may);
            }
        }
    }

    fn perform(&mut self, step: &Step) {
        let before = self.blocks.clone();
        match step {
            Step::Commands(commands) => {
                let in_flight = self.submit_all(commands);
                let summary: Vec<_> = in_flight.iter().map(copy_of).collect();
                self.finish(in_flight);
                self.settle(&summary, &before);
            }
            Step::Reset(reset, commands) => {
                self.submit_all(commands);
                self.controller().reset(*reset).unwrap();
                self.begin();
            }
            Step::Reconnect(commands) => {
                self.submit_all(commands);
                self.queues.clear();
                self.controller = None;
                self.controller = Some(self.rig.connect_again());
                self.begin();
            }
        }
        self.look();
    }
}

fn copy_of(command: &InFlight) -> InFlight {
    let InFlight { io, queue, ids, buffer, .. } = command;
    let (ids, buffer) = (ids.clone(), buffer.clone());
    InFlight { io: *io, queue: *queue, ids, buffer, completions: Vec::new() }
}

fn writes(io: &Io) -> bool {
    match io.kind {
        Kind::Write { .. } | Kind::Zero { .. } | Kind::Deallocate => true,
        Kind::Copy { .. } | Kind::Swap { .. } => true,
        Kind::Read | Kind::Compare { .. } | Kind::Verify | Kind::Flush => false,
    }
}

/// Whether the outcome of one depends on whether the other has been performed.
fn conflicts(one: &Io, other: &Io) -> bool {
    let overlaps =
        |a: u64, b: u64, first: &Io, second: &Io| a < b + second.count && b < a + first.count;
    let compares = |io: &Io| matches!(io.kind, Kind::Compare { .. } | Kind::Swap { .. });
    let copies = |io: &Io, of: &Io| match io.kind {
        Kind::Copy { from } => writes(of) && overlaps(from, of.first, io, of),
        _ => false,
    };
    let judged = compares(one) && writes(other) || compares(other) && writes(one);
    judged && overlaps(one.first, other.first, one, other)
        || copies(one, other)
        || copies(other, one)
}

fn check(cases: u32, options: impl Fn(&std::path::Path) -> NvmeOptions) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let steps = prop::collection::vec(step(), 1..16);
    let result = TestRunner::new(config).run(&steps, |steps| {
        let mut world = World::new(&options);
        steps.iter().for_each(|step| world.perform(step));
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// How many sequences are played; `VFIOD_CONTENT_CASES` says otherwise.
fn cases() -> u32 {
    let asked = std::env::var("VFIOD_CONTENT_CASES").ok();
    asked.map_or(12, |cases| cases.parse().expect("VFIOD_CONTENT_CASES is a number"))
}

#[test]
fn disk_in_memory_has_what_a_model_says() {
    check(cases(), |_| NvmeOptions { memory: Some(BLOCKS * 512), ..NvmeOptions::default() });
}

#[test]
fn image_of_large_blocks_has_what_a_model_says() {
    check(cases(), |directory| {
        let file = directory.join("disk.img");
        std::fs::File::create(&file).unwrap().set_len(BLOCKS * 4096).unwrap();
        NvmeOptions {
            file: Some(file),
            block_size: Some(4096),
            torn_writes: true,
            ..NvmeOptions::default()
        }
    });
}

#[test]
fn buffered_image_has_what_a_model_says() {
    check(cases(), |directory| {
        let file = directory.join("disk.img");
        std::fs::File::create(&file).unwrap().set_len(BLOCKS * 512).unwrap();
        let (direct, torn_writes) = (Some(false), true);
        NvmeOptions { file: Some(file), direct, torn_writes, ..NvmeOptions::default() }
    });
}
