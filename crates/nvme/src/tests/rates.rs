//! How many commands and bytes per second a controller carries out: counted, by a clock that the test moves.

use std::time::Duration;

use serde_json::json;
use vfiod_disk::Memory;
use vfiod_tasks::ManualClock;

use super::operations::{limits, operate_on};
use super::rig::{BASE, BLOCKS, Command, DATA, Host, namespace, with_common};
use crate::common::Common;
use crate::rate::RateLimits;

const SECOND: Duration = Duration::from_secs(1);

/// A host whose commands are limited, its clock, and what its limits are changed by.
struct Limited {
    host: Host,
    clock: ManualClock,
    rate: std::sync::Arc<crate::rate::RateLimit>,
}

impl Limited {
    fn new(limits: RateLimits) -> Self {
        let common = Common::new(16, vec![namespace(1, Memory::new(BLOCKS * 512).unwrap())]);
        let rate = common.rate.clone();
        rate.set(limits);
        let clock = ManualClock::new();
        let mut host = Host::with_clock(with_common(common), &clock);
        for queue in 1..=3 {
            host.create_pair(queue, 1024, 1);
        }
        Self { host, clock, rate }
    }

    /// Submits reads of so many blocks.
    fn submit(&mut self, queue: usize, count: usize, blocks: u32) {
        for _ in 0..count {
            self.host.put(queue, read(blocks));
        }
        self.host.ring(queue);
    }

    /// Takes the completions that a queue has by now.
    fn take(&mut self, queue: usize) -> usize {
        self.host.settle();
        let mut count = 0;
        while let Some(entry) = self.host.poll(queue) {
            assert_eq!(entry.status, 0);
            count += 1;
        }
        self.host.release(queue);
        count
    }

    /// How many complete in this time.
    fn pass(&mut self, queue: usize, time: Duration) -> usize {
        self.clock.advance(time);
        self.take(queue)
    }
}

fn read(blocks: u32) -> Command {
    Command::io(2, 0, blocks, (DATA, DATA + 4096))
}

fn iops(rate: u64, burst: u64) -> RateLimits {
    RateLimits { iops: Some(rate), iops_burst: Some(burst), ..RateLimits::default() }
}

fn bandwidth(rate: u64, burst: u64) -> RateLimits {
    RateLimits { bandwidth: Some(rate), bandwidth_burst: Some(burst), ..RateLimits::default() }
}

#[test]
fn burst_and_then_as_many_commands_as_the_rate_allows() {
    let mut limited = Limited::new(iops(100, 7));
    limited.submit(1, 500, 1);
    assert_eq!(limited.take(1), 7);
    assert_eq!(limited.pass(1, Duration::from_micros(9_999)), 0);
    assert_eq!(limited.pass(1, Duration::from_micros(1)), 1);
    let sum: usize = (0..100).map(|_| limited.pass(1, Duration::from_millis(10))).sum();
    assert_eq!(sum, 100);
    // A pause fills no more than the burst.
    limited.clock.advance(Duration::ZERO);
    assert_eq!(limited.pass(1, SECOND), 7);
    // What was not carried out was not read.
    let left = 500 - 7 - 1 - 100 - 7;
    limited.host.memory.put(Host::at(1).0 - BASE + 64 * 499, &[0x7f]);
    limited.rate.set(RateLimits::default());
    limited.host.settle();
    let ends: Vec<_> = std::iter::from_fn(|| limited.host.poll(1)).map(|end| end.status).collect();
    assert_eq!(ends.len(), left);
    assert_eq!(ends[left - 1], 1, "Invalid Command Opcode");
}

#[test]
fn bytes_are_limited_by_what_commands_read_and_write() {
    // A block is 512 bytes: 20 reads of 8 blocks in a second.
    let mut limited = Limited::new(bandwidth(20 * 4096, 4096));
    limited.submit(1, 60, 8);
    assert_eq!(limited.take(1), 1);
    let mut sums = [0; 2];
    for sum in &mut sums {
        *sum = (0..1000).map(|_| limited.pass(1, Duration::from_millis(1))).sum();
    }
    assert_eq!(sums, [20, 20]);
    // One that takes more than there is keeps the next one from being read.
    let mut limited = Limited::new(bandwidth(4096, 512));
    limited.submit(1, 2, 8);
    limited.submit(2, 1, 1);
    assert_eq!((limited.take(1), limited.take(2)), (1, 0));
    assert_eq!(limited.pass(2, SECOND * 7 / 8), 0);
    assert_eq!(limited.pass(2, SECOND / 8) + limited.take(1), 1);
}

#[test]
fn commands_cost_the_bytes_that_the_disk_moves_for_them() {
    let cost = |command: Command| {
        let mut limited = Limited::new(bandwidth(512, 1 << 30));
        let ranges = [[0; 16].as_slice(), &[7, 0], &[0; 14]].concat();
        limited.host.memory.put(DATA - BASE, &ranges);
        assert_eq!(limited.host.perform(1, command), Ok(0));
        limited.rate.missing_bytes() / 512
    };
    let io = |opcode| Command::io(opcode, 0, 8, (DATA, 0));
    assert_eq!(cost(Command::new(0).namespace(1)), 0, "Flush");
    assert_eq!(cost(io(1)), 8, "Write");
    assert_eq!(cost(io(2)), 8, "Read");
    assert_eq!(cost(io(8)), 8, "Write Zeroes");
    assert_eq!(cost(io(8).set(12, 7 | 1 << 25)), 0, "Write Zeroes that deallocates");
    assert_eq!(cost(io(12)), 8, "Verify");
    assert_eq!(cost(Command::io(0x19, 16, 1, (DATA, 0)).set(12, 0)), 16, "Copy");
    let deallocate = Command::new(9).namespace(1).prps(DATA, 0).set(11, 4);
    assert_eq!(cost(deallocate), 0, "Dataset Management");
}

/// A queue that asks for ever so much gets no more of it than one that asks for little.
#[test]
fn queues_share_what_there_is() {
    for limits in [iops(100, 1), bandwidth(100 * 512, 512)] {
        let mut limited = Limited::new(limits);
        let submitted = [1000, 100, 20];
        for (queue, count) in (1..).zip(submitted) {
            limited.submit(queue, count, 1);
        }
        let mut counts = [0; 3];
        for _ in 0..120 {
            limited.clock.advance(Duration::from_millis(10));
            for (queue, count) in (1..).zip(&mut counts) {
                *count += limited.take(queue);
            }
        }
        assert_eq!(counts.iter().sum::<usize>(), 120);
        assert_eq!(counts[2], 20, "{counts:?}");
        // The first one may come twice before the others are there.
        assert!(counts[0].abs_diff(counts[1]) <= 2, "{counts:?}");
    }
}

#[test]
fn limited_queue_delays_neither_admin_commands_nor_registers_and_can_be_deleted_and_reset() {
    let mut limited = Limited::new(iops(1, 1));
    for queue in 1..=3 {
        limited.submit(queue, 10, 1);
    }
    assert_eq!((1..=3).map(|queue| limited.take(queue)).sum::<usize>(), 1);
    assert!(limited.host.identify(1, 0).is_ok());
    assert_eq!(limited.host.status(), 1);
    // The queue whose turn is next goes, and another one has it.
    for queue in [1, 2] {
        assert_eq!(limited.host.admin(Command::new(0).set(10, queue)), Ok(0));
    }
    assert_eq!(limited.pass(3, SECOND), 1);
    limited.host.disable();
    limited.host.enable();
    limited.host.create_pair(1, 16, 1);
    limited.submit(1, 2, 1);
    assert_eq!(limited.pass(1, SECOND), 1);
    assert_eq!(limited.pass(1, SECOND), 1);
}

/// A queue that waits is woken by the change alone: the clock stands still.
#[test]
fn change_of_limits_reaches_queues_that_wait() {
    let mut limited = Limited::new(iops(1, 1));
    limited.submit(1, 100, 1);
    limited.submit(2, 100, 1);
    let both = |limited: &mut Limited| limited.take(1) + limited.take(2);
    assert_eq!(both(&mut limited), 1);
    limited.rate.set(iops(1000, 10));
    assert_eq!(both(&mut limited), 9, "one of the burst was taken before");
    limited.clock.advance(Duration::from_millis(5));
    assert_eq!(both(&mut limited), 5);
    limited.rate.set(bandwidth(512, 512 * 3));
    assert_eq!(both(&mut limited), 3);
    limited.rate.set(iops(1, 1));
    assert_eq!(both(&mut limited), 1);
    limited.rate.set(RateLimits::default());
    assert_eq!(both(&mut limited), 200 - 1 - 9 - 5 - 3 - 1);
}

/// By an operation of the operator, which leaves alone what it does not name.
#[test]
fn operation_changes_limits_of_queues_that_wait() {
    let mut limited = Limited::new(iops(1, 1));
    limited.submit(1, 100, 1);
    assert_eq!(limited.take(1), 1);
    let set = |limited: &Limited, of: [Option<u64>; 4]| {
        operate_on(&limited.host.device, limits(of)).unwrap().result
    };
    let now = set(&limited, [Some(1000), Some(10), None, None]);
    assert_eq!((&now["iops"], &now["iops_burst"]), (&json!(1000), &json!(10)));
    assert_eq!(limited.take(1), 9, "one of the burst was taken before");
    let now = set(&limited, [None, None, Some(512), Some(512 * 2)]);
    assert_eq!(
        (&now["iops"], &now["bandwidth"], &now["waiting_queues"]),
        (&json!(1000), &json!(512), &json!(1))
    );
    limited.clock.advance(Duration::from_millis(10));
    assert_eq!(limited.take(1), 2);
    let now = set(&limited, [Some(0), None, Some(0), None]);
    assert_eq!((&now["iops_burst"], &now["bandwidth_burst"]), (&json!(null), &json!(null)));
    assert_eq!(limited.take(1), 100 - 1 - 9 - 2);
    assert_eq!(limited.rate.limits(), RateLimits::default());
}

/// Two commands that belong together are read together, however few the limit allows at once.
#[test]
fn fused_commands_pass_the_limit_together() {
    for limits in [iops(100, 1), bandwidth(51_200, 512)] {
        let mut limited = Limited::new(limits);
        limited.submit(1, 1, 1);
        assert_eq!(limited.take(1), 1);
        let fused = |opcode, fuse: u32| {
            let command = Command::io(opcode, 0, 1, (DATA, 0));
            command.set(0, command.0[0] | fuse << 8)
        };
        for _ in 0..3 {
            limited.host.put(1, fused(5, 1));
            limited.host.put(1, fused(1, 2));
        }
        limited.host.ring(1);
        let counts: Vec<_> = (0..7).map(|_| limited.pass(1, Duration::from_millis(10))).collect();
        assert_eq!(counts, [2, 0, 2, 0, 2, 0, 0]);
    }
}

/// Shadow doorbells: a queue that waits for tokens does not look again and again.
#[test]
fn limited_queue_with_shadow_doorbells_rests() {
    let mut limited = Limited::new(iops(10, 1));
    let pages = DATA + (1 << 20);
    assert_eq!(limited.host.set_pages(pages, pages + 4096), Ok(0));
    limited.submit(1, 30, 1);
    assert_eq!(limited.take(1), 1);
    limited.submit(1, 30, 1);
    let sum: usize = (0..20).map(|_| limited.pass(1, SECOND / 10)).sum();
    assert_eq!(sum, 20);
    limited.rate.set(RateLimits::default());
    assert_eq!(limited.take(1), 60 - 1 - 20);
}
