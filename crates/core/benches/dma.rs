//! What DMA and interrupts cost: `cargo bench -p vfiod-core --bench dma`. Prints Markdown.
//!
//! Each figure is the median of several rounds, in nanoseconds. An argument picks the sections
//! whose name contains it.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::sync::RwLock;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vfiod_core::dma::{Backing, DmaSpace, MapRequest, Perm};
use vfiod_core::irq::{IrqAction, IrqData};
use vfiod_core::{Context, FileId, IrqFlags, IrqIndex, IrqInfo};

const FILE: FileId = FileId(1);
const PAGE: u64 = 4096;
const WAIT: Duration = Duration::from_secs(1);
const ROUNDS: usize = 7;

/// Median time of one of `ops` operations that `run` does.
fn time(ops: u64, mut run: impl FnMut(u64)) -> f64 {
    run(ops.div_ceil(10));
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            run(ops);
            start.elapsed().as_nanos() as f64 / ops as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

/// A cheap source of numbers below `below`.
struct Random(u64);

impl Random {
    #[inline]
    fn below(&mut self, below: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 32) * below) >> 32
    }
}

fn memory(size: u64) -> OwnedFd {
    let fd = memfd_create("bench", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&fd, size).expect("size of the memfd");
    fd
}

fn map(space: &DmaSpace, fd: OwnedFd, window: u64, offset: u64) {
    space
        .map(
            FILE,
            MapRequest {
                // A gap after each, so that no two adjoin.
                iova: window * 2 * PAGE,
                size: PAGE,
                perm: Perm::READ | Perm::WRITE,
                backing: Backing::File { fd, offset },
            },
        )
        .expect("map");
}

/// A space with so many windows on one file of 64 MiB.
fn filled(windows: u64) -> (Context, OwnedFd) {
    let context = Context::detached("bench", &[]);
    let fd = memory(64 << 20);
    for window in 0..windows {
        let copy = fd.try_clone().expect("a descriptor");
        map(context.dma(), copy, window, window % 16384 * PAGE);
    }
    (context, fd)
}

fn translation() {
    println!("\n## IOVA translation, ns\n");
    println!(
        "`call`: the table lock taken for each; `batch`: once for all; `load`: a `load::<u32>`"
    );
    println!(
        "each, the memory's own cache misses included. Beside it, a `BTreeMap` in a `RwLock`.\n"
    );
    println!(
        "| windows | call, same | call, random | batch, same | batch, random | load, random \
         | BTreeMap call, random | BTreeMap batch, random |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    const OPS: u64 = 2_000_000;
    for windows in [1, 64, 1024, 16_384, 65_000, 1_000_000] {
        let (context, _fd) = filled(windows);
        let space = context.dma();
        let mut random = Random(1);
        let call = |random: &mut Random, below: u64| {
            time(OPS, |ops| {
                for _ in 0..ops {
                    let iova = random.below(below) * 2 * PAGE + 64;
                    let access = space.access().expect("master");
                    black_box(access.translate(iova, 64, Perm::READ).expect("mapped").len());
                }
            })
        };
        let load = |random: &mut Random, below: u64| {
            time(OPS, |ops| {
                for _ in 0..ops {
                    let iova = random.below(below) * 2 * PAGE + 64;
                    black_box(space.load::<u32>(iova, Ordering::Acquire).expect("mapped"));
                }
            })
        };
        let batch = |random: &mut Random, below: u64| {
            time(OPS, |ops| {
                let access = space.access().expect("master");
                for _ in 0..ops {
                    let iova = random.below(below) * 2 * PAGE + 64;
                    black_box(access.translate(iova, 64, Perm::READ).expect("mapped").len());
                }
            })
        };
        let figures = [
            call(&mut random, 1),
            call(&mut random, windows),
            batch(&mut random, 1),
            batch(&mut random, windows),
            load(&mut random, windows),
        ];
        let tree: BTreeMap<u64, [u64; 3]> =
            (0..windows).map(|w| (w * 2 * PAGE, [w * 2 * PAGE + PAGE, w * PAGE, 3])).collect();
        let tree = RwLock::new(tree);
        let tree_call = time(OPS, |ops| {
            for _ in 0..ops {
                let iova = random.below(windows) * 2 * PAGE + 64;
                let tree = tree.read().expect("lock");
                let (_, found) = tree.range(..=iova).next_back().expect("mapped");
                black_box(iova < found[0]);
            }
        });
        let tree_batch = time(OPS, |ops| {
            let tree = tree.read().expect("lock");
            for _ in 0..ops {
                let iova = random.below(windows) * 2 * PAGE + 64;
                let (_, found) = tree.range(..=iova).next_back().expect("mapped");
                black_box(iova < found[0]);
            }
        });
        print!("| {windows} |");
        figures.iter().for_each(|f| print!(" {f:.1} |"));
        println!(" {tree_call:.1} | {tree_batch:.1} |");
    }
}

fn mapping() {
    println!("\n## Map and unmap a window on a known file, ns a pair\n");
    println!("`close`: duplicating and closing a descriptor, which is part of each pair.\n");
    println!("| other windows | at random | past the end | close |");
    println!("| ---: | ---: | ---: | ---: |");
    const OPS: u64 = 100_000;
    for windows in [0, 1, 64, 1024, 16_384, 65_000, 1_000_000] {
        let (context, fd) = filled(windows);
        let space = context.dma();
        let mut random = Random(7);
        let pair = |window: u64| {
            map(space, fd.try_clone().expect("a descriptor"), window, window % 16384 * PAGE);
            space.unmap(window * 2 * PAGE, PAGE, WAIT).expect("unmap");
        };
        let at_random = time(OPS, |ops| {
            for _ in 0..ops {
                let window = random.below(windows.max(1));
                space.unmap(window * 2 * PAGE, PAGE, WAIT).expect("unmap");
                map(space, fd.try_clone().expect("a descriptor"), window, 0);
            }
        });
        let past = time(OPS, |ops| (0..ops).for_each(|_| pair(windows + 8)));
        let close = time(OPS, |ops| (0..ops).for_each(|_| drop(fd.try_clone())));
        println!("| {windows} | {at_random:.0} | {past:.0} | {close:.0} |");
    }
    let start = Instant::now();
    let (context, _fd) = filled(1_000_000);
    let fill = start.elapsed();
    let start = Instant::now();
    context.dma().unmap_all(WAIT).expect("unmap");
    println!(
        "\n1,000,000 windows: mapped in {fill:.0?}, unmapped at once in {:.0?}.",
        start.elapsed()
    );
}

fn copying() {
    println!("\n## Copying, ns\n");
    println!("| bytes | read | write | memcpy |");
    println!("| ---: | ---: | ---: | ---: |");
    let (context, fd) = (Context::detached("bench", &[]), memory(64 << 20));
    let space = context.dma();
    space
        .map(
            FILE,
            MapRequest {
                iova: 0,
                size: 64 << 20,
                perm: Perm::READ | Perm::WRITE,
                backing: Backing::File { fd, offset: 0 },
            },
        )
        .expect("map");
    for bytes in [1usize, 4, 16, 64, 256, 512, 1024, 4096, 16 << 10, 64 << 10, 1 << 20] {
        let ops = ((256 << 20) / bytes as u64).clamp(256, 2_000_000);
        let mut buffer = vec![1u8; bytes];
        let write = time(ops, |ops| {
            (0..ops).for_each(|_| space.write(4096, &buffer).expect("write"));
        });
        let read = time(ops, |ops| {
            (0..ops).for_each(|_| space.read(4096, black_box(&mut buffer)).expect("read"));
        });
        let from = vec![1u8; bytes];
        let plain = time(ops, |ops| {
            (0..ops).for_each(|_| black_box(&mut buffer).copy_from_slice(black_box(&from)));
        });
        println!("| {bytes} | {read:.1} | {write:.1} | {plain:.1} |");
    }
    let atomic = time(2_000_000, |ops| {
        for _ in 0..ops {
            black_box(space.load::<u32>(4096, Ordering::Acquire).expect("load"));
        }
    });
    let add = time(2_000_000, |ops| {
        (0..ops).for_each(|_| _ = space.fetch_add::<u32>(4096, 1).expect("add"));
    });
    let pin = time(1_000_000, |ops| {
        (0..ops).for_each(|_| drop(space.pin(4096, 65536, Perm::READ).expect("pin")));
    });
    println!("\n`load::<u32>` {atomic:.1}, `fetch_add::<u32>` {add:.1}, pin and unpin {pin:.1}.");
}

fn interrupts() {
    println!("\n## Triggering an interrupt, ns\n");
    let context = Context::detached("bench", &[IrqInfo { flags: IrqFlags::EVENTFD, count: 4 }]);
    let irqs = context.irqs();
    let mut figures = Vec::new();
    for flags in [EventfdFlags::NONBLOCK, EventfdFlags::empty()] {
        let fd = eventfd(0, flags).expect("eventfd");
        let data = IrqData::EventFds(vec![Some(fd)]);
        irqs.set(FILE, IrqIndex(0), 0, 1, IrqAction::Trigger, data).expect("set");
        figures.push(time(500_000, |ops| {
            (0..ops).for_each(|_| _ = irqs.trigger(IrqIndex(0), 0).expect("trigger"));
        }));
    }
    irqs.set_device_mask(IrqIndex(0), 0, true).expect("mask");
    let masked = time(500_000, |ops| {
        (0..ops).for_each(|_| _ = irqs.trigger(IrqIndex(0), 0).expect("trigger"));
    });
    let fd = eventfd(0, EventfdFlags::NONBLOCK).expect("eventfd");
    let plain = time(500_000, |ops| {
        (0..ops).for_each(|_| _ = rustix::io::write(&fd, &1u64.to_ne_bytes()).expect("write"));
    });
    println!("| eventfd | blocking eventfd | masked | the write alone |");
    println!("| ---: | ---: | ---: | ---: |");
    println!("| {:.0} | {:.0} | {masked:.1} | {plain:.0} |", figures[0], figures[1]);
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let sections: [(&str, fn()); 4] = [
        ("translation", translation),
        ("mapping", mapping),
        ("copying", copying),
        ("interrupts", interrupts),
    ];
    println!("# DMA and interrupts");
    for (name, section) in sections {
        if wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str())) {
            section();
        }
    }
}
