//! Hot resets while another owner, who has died, still has a member open.

use std::time::Duration;

use vfiod_client::{Client, GuestMemory};
use vfiod_wire::Command;
use vfiod_wire::payload::{Feature, RegionAccess, feature_flag};
use vfiod_wire::set::HOT_RESET;
use zerocopy::IntoBytes;

use crate::hot_reset::{Pair, Stranger, fill, is_clear};
use crate::rig::*;

const IOVA: u64 = 0x4000_0000;

/// Another owner that has died with the second member open: the file is not released before this is
/// dropped, as the device is amid one of its accesses.
fn departed(pair: &Pair) -> Stall {
    let stall = Stall::new();
    drop(Stranger::stalling(&pair.paths[1], &stall));
    stall
}

fn submit_reset(client: &mut Client) -> u16 {
    let feature = Feature { argsz: 16, flags: u32::from(HOT_RESET) | feature_flag::SET };
    client.submit(Command::DeviceFeature, &[feature.as_bytes(), &[0; 8]].concat(), &[]).unwrap()
}

/// Waits until a reset has been tried that a client of the first member has submitted: `messages` of all
/// its clients have been received. Then `other`, a client of the same member, is served a while.
fn await_attempt(pair: &Pair, messages: u64, other: &mut Client) {
    eventually("the reset is received", || pair.devices[0].1.totals().messages >= messages);
    for _ in 0..20 {
        other.device_info().unwrap();
    }
}

/// Whether a reset has waited, and was done. It waits for two seconds. A machine that stands still for so
/// long looks as if it did not, but not again and again.
fn is_done_in_time(client: &mut Client, reset: u16) -> bool {
    match client.complete(reset) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.remote_errno(), Some(EINVAL), "{error}");
            false
        }
    }
}

#[test]
fn hot_reset_waits_for_the_file_of_an_owner_who_has_died() {
    let waits = || {
        let pair = Pair::new();
        let [mut a, mut other] = [0; 2].map(|_| pair.client(0));
        fill(&mut a);
        let stall = departed(&pair);
        let messages = pair.devices[0].1.totals().messages + 1;
        let reset = submit_reset(&mut a);
        let read = RegionAccess { offset: 0, region: PLAIN, count: 16 };
        let behind = a.submit(Command::RegionRead, read.as_bytes(), &[]).unwrap();
        await_attempt(&pair, messages, &mut other);
        drop(stall);
        let done = is_done_in_time(&mut a, reset);
        let read = a.complete(behind).unwrap();
        assert_eq!(read.payload.ends_with(&[0; 16]), done, "what came behind was handled before");
        assert_eq!(is_clear(&mut other), done);
        done
    };
    assert!((0..3).any(|_| waits()), "it is refused");
}

/// As an open is at the end of its time.
#[test]
fn hot_reset_is_refused_where_the_file_is_not_released_in_time() {
    let pair = Pair::new();
    let mut a = pair.client(0);
    fill(&mut a);
    let stall = departed(&pair);
    assert_eq!(refused(a.hot_reset()), EINVAL);
    assert!(!is_clear(&mut a), "something was reset");
    drop(stall);
    a.hot_reset().unwrap();
    assert!(is_clear(&mut a));
}

#[test]
fn client_that_hangs_up_while_its_hot_reset_waits_is_released_at_once() {
    let released = || {
        let pair = Pair::new();
        let [mut a, mut other] = [0; 2].map(|_| pair.client(0));
        let _stall = departed(&pair);
        let messages = pair.devices[0].1.totals().messages + 1;
        submit_reset(&mut a);
        await_attempt(&pair, messages, &mut other);
        drop(a);
        let files = || pair.devices[0].0.device().status().files.len();
        eventually("its file is released", || files() == 1);
        // At the end of its time the reset would have been refused.
        pair.devices[0].1.totals().errors == 0
    };
    assert!((0..3).any(|_| released()), "it waits for nobody");
}

/// The device works on while the reset of its client waits.
#[test]
fn dma_messages_are_answered_while_a_hot_reset_waits() {
    let answered = || {
        let pair = Pair::new();
        let memory = GuestMemory::new(1 << 20).unwrap();
        memory.attach(IOVA, 1 << 20, 0);
        let mut a = Client::connect_with(&pair.paths[0], options().memory(memory)).unwrap();
        a.dma_map(IOVA, 1 << 20, None).unwrap();
        let mut other = pair.client(0);
        let stall = departed(&pair);
        write_u64(&mut other, DMA, 0, IOVA);
        write_u64(&mut other, DMA, 8, 16);
        let messages = pair.devices[0].1.totals().messages + 1;
        let reset = submit_reset(&mut a);
        await_attempt(&pair, messages, &mut other);
        write_u64(&mut other, DMA, 16, DMA_READ);
        let mut errno = RUNNING;
        eventually("the DMA is done", || {
            a.serve_dma(Duration::from_millis(1)).unwrap();
            errno = read_u64(&mut other, DMA, 24);
            errno != RUNNING
        });
        assert_eq!(errno, 0);
        drop(stall);
        is_done_in_time(&mut a, reset)
    };
    assert!((0..3).any(|_| answered()), "the DMA waits for the reset");
}
