use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, fstat, ftruncate, memfd_create};
use vfiod_quota::{Ledger, Limit, Limits, Share, Size, User};

use super::*;
use crate::files::MemoryKind;
use crate::mapped_file::{Account, Costs, MappedFile};
use crate::sparse::Holes;

const GIB: u64 = 1 << 30;

/// Someone with an account who may have so many tables.
fn payer(tables: u64) -> Payer {
    let mut limits = Limits::of_process(1);
    let limit = Limit::new(Size::Total(tables * TABLE), Share::Demanded(tables * TABLE));
    limits.set(Resource::PageTables, limit);
    let opened = Ledger::new(limits).open("test").unwrap();
    Payer::new(opened.account, User::Account(1))
}

fn sparse(size: u64) -> Arc<OwnedFd> {
    let fd = memfd_create("tables", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, size).unwrap();
    Arc::new(fd)
}

fn map(fd: &Arc<OwnedFd>, size: u64, payer: &Payer) -> MappedFile {
    let account = vfiod_sync::Arc::new(Account::default());
    let costs = Costs { account: &account, limit: u64::MAX, payer: Some(payer) };
    MappedFile::new(fd, 0, size, true, Holes::Keep(MemoryKind::Shared), costs).unwrap()
}

/// KiB of this process's page tables for a mapping, by the kernel's count of what its range has resident
/// cannot be told apart, so of all: `VmPTE`.
fn kernels_tables() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPTE:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn charged(payer: &Payer) -> u64 {
    payer.account().usage(Resource::PageTables).used / TABLE
}

/// As a client that moves one page about: writes it, has it read, and makes a hole of it.
fn read_everywhere(fd: &OwnedFd, mapped: &MappedFile, spans: impl Iterator<Item = u64>) -> u64 {
    let mut most = 0;
    for span in spans {
        rustix::io::pwrite(fd, &[7], span * SPAN).unwrap();
        let mut byte = [0];
        mapped.read(span * SPAN, &mut byte).unwrap();
        assert_eq!(byte, [7]);
        if span % 64 == 0 {
            most = most.max(kernels_tables());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(fd, flags, span * SPAN, 4096).unwrap();
    }
    most
}

#[test]
fn client_that_moves_a_page_about_takes_no_more_tables_than_it_may() {
    const SPANS: u64 = 16 * 1024;
    let (fd, payer) = (sparse(SPANS * SPAN), payer(64));
    let mapped = map(&fd, SPANS * SPAN, &payer);
    let before = kernels_tables();
    let most = read_everywhere(&fd, &mapped, 0..SPANS);
    // 64 MiB without a limit. Other tests of this process run at the same time.
    assert!(most - before < 16 << 20, "{} KiB of tables", (most - before) >> 10);
    assert!((1..=64).contains(&charged(&payer)));
    assert_eq!(fstat(&fd).unwrap().st_blocks, 0, "reads have filled holes");
    drop(mapped);
    assert_eq!(charged(&payer), 0);
}

#[test]
fn tables_of_the_upper_level_are_given_back_too() {
    const UPPERS: u64 = 8 * 1024;
    let (fd, payer) = (sparse(UPPERS * GIB), payer(64));
    let mapped = map(&fd, UPPERS * GIB, &payer);
    let before = kernels_tables();
    let most = read_everywhere(&fd, &mapped, (0..UPPERS).map(|at| at * SPANS));
    assert!(most - before < 16 << 20, "{} KiB of tables", (most - before) >> 10);
    assert_eq!(fstat(&fd).unwrap().st_blocks, 0, "reads have filled holes");
}

#[test]
fn what_is_there_and_what_is_not_stays_so_when_tables_are_given_back() {
    let (fd, payer) = (sparse(GIB), payer(16));
    let mapped = map(&fd, GIB, &payer);
    let tables = mapped.tables().unwrap();
    mapped.write(5 * SPAN, &[1, 2, 3]).unwrap();
    let blocks = fstat(&fd).unwrap().st_blocks;
    for replace in [false, true, false] {
        if replace {
            // As a kernel before 6.14.
            // SAFETY: it is one mapping.
            unsafe { tables.replace() }.unwrap();
        } else {
            tables.give_back(&mut lock(&tables.counted));
        }
        let mut bytes = [9; 4];
        mapped.read(5 * SPAN, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3, 0]);
        mapped.read(6 * SPAN, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 4]);
        if userfault::is_available() {
            assert_eq!(fstat(&fd).unwrap().st_blocks, blocks, "replaced: {replace}");
        }
    }
}

#[test]
fn client_without_a_table_to_its_name_reaches_its_memory() {
    let (fd, payer) = (sparse(GIB), payer(0));
    let _all = payer.charge(Resource::PageTables, 0).unwrap();
    let mapped = map(&fd, GIB, &payer);
    for span in (0..512).rev() {
        mapped.store(span * SPAN, span as u32, vfiod_sync::atomic::Ordering::Release).unwrap();
    }
    // One access to several spans.
    let mut bytes = vec![0; 16 << 20];
    mapped.read(0, &mut bytes).unwrap();
    assert!((0..8).all(|span| bytes[(span * SPAN) as usize] == span as u8));
    assert_eq!(charged(&payer), 0);
}

#[test]
fn accesses_of_several_threads_go_on_while_tables_are_given_back() {
    let (fd, payer) = (sparse(GIB), payer(16));
    let mapped = map(&fd, GIB, &payer);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let mapped = &mapped;
            scope.spawn(move || {
                for round in 0..2_000_u64 {
                    let at = (round * 37 % 512) * SPAN + 8 * thread;
                    let ordering = vfiod_sync::atomic::Ordering::Release;
                    mapped.store(at, round, ordering).unwrap();
                    assert_eq!(mapped.load::<u64>(at).unwrap(), round);
                }
            });
        }
    });
    assert!(charged(&payer) <= 16);
}
