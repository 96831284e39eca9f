use std::collections::BTreeSet;

use proptest::prelude::*;
use vfiod_quota::{Ledger, Limit, Limits, Share, Size, User};

use super::*;

fn log() -> DirtyLog {
    let log = DirtyLog::default();
    assert!(log.start(None).unwrap());
    log
}

fn bits(bitmap: &[u8]) -> Vec<u64> {
    (0..bitmap.len() as u64 * 8).filter(|i| bitmap[*i as usize / 8] >> (i % 8) & 1 == 1).collect()
}

fn report(log: &DirtyLog, iova: u64, size: u64, page_size: u64, marks: Marks) -> Vec<u64> {
    let mut bitmap = vec![0; dirty_bitmap_len(size, page_size).unwrap()];
    log.report(iova, iova + (size - 1), page_size, marks, &mut bitmap).unwrap();
    bits(&bitmap)
}

#[test]
fn bitmap_lengths_are_whole_words() {
    let cases = [
        (1, 4096, Some(8)),
        (64 * 4096, 4096, Some(8)),
        (64 * 4096 + 1, 4096, Some(16)),
        (1 << 40, 4096, Some(1 << 25)),
        (u64::MAX, 1, Some(1 << 61)),
        (4096, 0, None),
    ];
    for (size, page_size, want) in cases {
        assert_eq!(dirty_bitmap_len(size, page_size), want, "{size} {page_size}");
    }
}

#[test]
fn report_without_clearing_repeats_and_with_clearing_does_not() {
    let log = log();
    log.mark(0x5fff, 2);
    for _ in 0..2 {
        assert_eq!(report(&log, 0, 0x1_0000, 4096, Marks::Keep), [5, 6]);
    }
    assert_eq!(report(&log, 0, 0x1_0000, 4096, Marks::Clear), [5, 6]);
    assert!(report(&log, 0, 0x1_0000, 4096, Marks::Clear).is_empty());
}

#[test]
fn page_larger_or_smaller_than_that_of_the_log_is_reported() {
    let log = log();
    log.mark(0x20_1000, 1);
    assert_eq!(report(&log, 0, 1 << 30, 2 << 20, Marks::Keep), [1]);
    assert_eq!(report(&log, 0x20_1000, 0x1000, 1024, Marks::Keep), [0, 1, 2, 3]);
    assert_eq!(report(&log, 0x20_0800, 0x1000, 1024, Marks::Keep), [2, 3]);
}

#[test]
fn page_partly_outside_the_range_keeps_its_mark() {
    let log = log();
    log.mark(0x1000, 1);
    assert_eq!(report(&log, 0x1000, 0x800, 512, Marks::Clear), [0, 1, 2, 3]);
    assert_eq!(report(&log, 0x1000, 0x1000, 4096, Marks::Clear), [0]);
    assert!(report(&log, 0x1000, 0x1000, 4096, Marks::Clear).is_empty());
}

#[test]
fn last_page_of_all_is_marked_and_reported() {
    let log = log();
    log.mark(u64::MAX, 1);
    log.mark(u64::MAX - 0x1000, 1);
    assert_eq!(report(&log, u64::MAX - 0x1fff, 0x2000, 4096, Marks::Keep), [0, 1]);
    log.forget(u64::MAX - 0xfff, u64::MAX);
    assert_eq!(report(&log, u64::MAX - 0x1fff, 0x2000, 4096, Marks::Clear), [0]);
}

#[test]
fn too_many_places_mark_everything_and_take_bounded_memory() {
    let log = log();
    for i in 0..CHUNKS as u64 + 10 {
        log.mark(i << (CHUNK_SHIFT + PAGE_SHIFT), 1);
    }
    assert_eq!(read(&log.pages).chunks.len(), CHUNKS);
    assert_eq!(report(&log, 0, 0x4000, 4096, Marks::Clear), [0, 1, 2, 3]);
    assert_eq!(report(&log, 0, 0x4000, 4096, Marks::Clear), [0, 1, 2, 3]);
    assert!(log.stop() && log.start(None).unwrap());
    assert!(report(&log, 0, 0x4000, 4096, Marks::Clear).is_empty());
}

/// Addresses between the beginnings of two chunks.
const STRIDE: u64 = CHUNK_PAGES * PAGE;

/// A client with so much memory.
fn payer(memory: u64) -> Payer {
    let mut limits = Limits::of_process(1);
    limits.set(Resource::Memory, Limit::new(Size::Total(memory), Share::Demanded(memory)));
    Payer::new(Ledger::new(limits).open("x").unwrap().account, User::Account(0))
}

#[test]
fn whoever_starts_a_log_pays_for_its_memory_until_it_is_forgotten() {
    let (log, payer) = (DirtyLog::default(), payer(1 << 20));
    let used = || payer.account().usage(Resource::Memory).used;
    assert!(log.start(Some(&payer)).unwrap());
    assert_eq!(used(), charged(1));
    let most = 10 * CHARGED;
    (0..most).for_each(|n| log.mark(n * STRIDE, 1));
    assert_eq!(used(), charged(most as usize));
    assert_eq!(used(), most * CHUNK);
    log.forget(0, most * STRIDE - 1);
    assert!(used() <= charged(1) + CHARGED * CHUNK, "{}", used());
    assert!(log.stop());
    assert_eq!(used(), 0);
}

#[test]
fn log_that_may_have_no_more_memory_is_given_up_and_says_so_until_it_is_started_anew() {
    let payer = payer(charged(1) + 1);
    let used = || payer.account().usage(Resource::Memory).used;
    let log = DirtyLog::default();
    assert!(log.start(Some(&payer)).unwrap());
    (0..CHARGED).for_each(|n| log.mark(n * STRIDE, 1));
    assert_eq!(report(&log, 0, 0x1000, 4096, Marks::Keep), [0]);
    log.mark(CHARGED * STRIDE, 1);
    log.mark(0x1000, 1);
    let refused = log.report(0, 0xfff, 4096, Marks::Keep, &mut [0; 8]).unwrap_err();
    assert_eq!(refused.errno(), Errno::NOMEM);
    assert!(refused.message().contains("limits.memory"), "{refused}");
    assert!(read(&log.pages).chunks.is_empty(), "its memory is given back");
    // No other log can be had meanwhile.
    let other = DirtyLog::default();
    assert_eq!(other.start(Some(&payer)).unwrap_err().errno(), Errno::NOMEM);
    assert!(!other.is_on());
    assert!(log.stop());
    assert_eq!(used(), 0);
    assert!(log.start(Some(&payer)).unwrap());
    log.mark(0x1000, 1);
    assert_eq!(report(&log, 0, 0x2000, 4096, Marks::Keep), [1]);
}

#[test]
fn stopped_log_has_no_marks_and_refuses_reports() {
    let log = log();
    log.mark(0, 1);
    assert!(!log.start(None).unwrap(), "started twice");
    assert!(log.stop());
    assert!(!log.stop());
    log.mark(0, 1);
    let refused = log.report(0, 0xfff, 4096, Marks::Keep, &mut [0; 8]).unwrap_err();
    assert_eq!(refused.errno(), Errno::INVAL);
    log.start(None).unwrap();
    assert!(report(&log, 0, 0x1000, 4096, Marks::Keep).is_empty());
}

#[test]
fn invalid_reports_are_refused() {
    let log = log();
    for (last, page_size, len) in [(0xfff, 0, 8), (0xfff, 3, 8), (64 * 4096, 4096, 8)] {
        let mut bitmap = vec![0; len];
        let refused = log.report(0, last, page_size, Marks::Keep, &mut bitmap).unwrap_err();
        assert_eq!(refused.errno(), Errno::INVAL);
    }
}

#[derive(Clone, Debug)]
enum Op {
    Mark(u64, usize),
    Report(u64, u64, u32, bool),
    Forget(u64, u64),
}

/// What addresses and sizes of reports are multiples of.
const STEP: u64 = 256;

fn op() -> impl Strategy<Value = Op> {
    // Around the edge of two chunks.
    let at = || (CHUNK_PAGES * PAGE - 0x1_0000)..(CHUNK_PAGES * PAGE + 0x1_0000);
    prop_oneof![
        4 => (at(), 1usize..0x4000).prop_map(|(at, len)| Op::Mark(at, len)),
        2 => (at(), 1u64..0x8000, 9u32..16, any::<bool>())
            .prop_map(|(at, size, shift, clear)| {
                Op::Report(at & !(STEP - 1), size.next_multiple_of(STEP), shift, clear)
            }),
        1 => (at(), 0u64..0x8000).prop_map(|(at, size)| Op::Forget(at, size)),
    ]
}

proptest! {
    #[test]
    fn behaves_like_a_set_of_pages(ops in prop::collection::vec(op(), 1..60)) {
        let (log, mut model) = (log(), BTreeSet::new());
        for op in ops {
            match op {
                Op::Mark(at, len) => {
                    log.mark(at, len);
                    model.extend(at / PAGE..=(at + len as u64 - 1) / PAGE);
                }
                Op::Report(at, size, shift, clear) => {
                    let page_size = 1u64 << shift;
                    let marks = if clear { Marks::Clear } else { Marks::Keep };
                    // Step by step: no boundary of a page is within one.
                    let want: BTreeSet<u64> = (0..size)
                        .step_by(STEP as usize)
                        .filter(|i| model.contains(&((at + i) / PAGE)))
                        .map(|i| i / page_size)
                        .collect();
                    let got = report(&log, at, size, page_size, marks);
                    prop_assert_eq!(got, want.into_iter().collect::<Vec<_>>());
                    if clear {
                        model.retain(|p| p * PAGE < at || p * PAGE + PAGE > at + size);
                    }
                }
                Op::Forget(at, size) => {
                    log.forget(at, at + size);
                    model.retain(|p| p * PAGE < at || p * PAGE + (PAGE - 1) > at + size);
                }
            }
        }
    }
}
