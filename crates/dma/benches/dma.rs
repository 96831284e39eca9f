//! What DMA costs: `cargo bench -p vfiod-dma`. Prints Markdown.
//!
//! Each figure is the median of several rounds, in nanoseconds of processor time. An argument picks the sections
//! whose name contains it.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::RwLock;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use vfiod_dma::{Attachment, Backing, MapOwner, MapRequest, Perm, Space};

const OWNER: MapOwner = MapOwner(1);
const PAGE: u64 = 4096;
const WAIT: Duration = Duration::from_secs(1);
const ROUNDS: usize = 7;

/// Processor time of this thread: what others do on the machine counts only by the caches that
/// they take.
fn cpu_time() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

/// Median time of one of `ops` operations that `run` does.
fn time(ops: u64, mut run: impl FnMut(u64)) -> f64 {
    run(ops.div_ceil(10));
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = cpu_time();
            run(ops);
            (cpu_time() - start) / ops as f64
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

/// The result of a future that does not wait: all memory is mapped.
#[inline]
fn ready<T>(future: impl Future<Output = T>) -> T {
    let cx = &mut Context::from_waker(Waker::noop());
    match pin!(future).poll(cx) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("nothing is reached by message"),
    }
}

fn memory(size: u64) -> OwnedFd {
    let fd = memfd_create("bench", MemfdFlags::CLOEXEC).expect("memfd");
    ftruncate(&fd, size).expect("size of the memfd");
    fd
}

fn map(space: &Space, fd: OwnedFd, mapping: u64, offset: u64) {
    space
        .map(
            OWNER,
            MapRequest {
                // A gap after each, so that no two adjoin.
                iova: mapping * 2 * PAGE,
                size: PAGE,
                perm: Perm::READ | Perm::WRITE,
                backing: Backing::File { fd, offset },
            },
        )
        .expect("map");
}

/// A space with so many mappings on one file of 64 MiB.
fn filled(mappings: u64) -> (Space, OwnedFd) {
    let space = Space::new();
    let fd = memory(64 << 20);
    for mapping in 0..mappings {
        let copy = fd.try_clone().expect("a descriptor");
        map(&space, copy, mapping, mapping % 16384 * PAGE);
    }
    (space, fd)
}

fn translation() {
    println!("\n## IOVA translation, ns\n");
    println!("`call`: the lock taken for each; `batch`: once for all; `load`: a `load::<u32>`");
    println!(
        "each, the memory's own cache misses included. Beside it, a `BTreeMap` in a `RwLock`.\n"
    );
    println!(
        "| mappings | call, same | call, random | batch, same | batch, random | load, random \
         | BTreeMap call, random | BTreeMap batch, random |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    const OPS: u64 = 2_000_000;
    for mappings in [1, 64, 1024, 16_384, 65_000, 1_000_000] {
        let (space, _fd) = filled(mappings);
        let device = Attachment::new(&space);
        let mut random = Random(1);
        let call = |random: &mut Random, below: u64| {
            time(OPS, |ops| {
                for _ in 0..ops {
                    let iova = random.below(below) * 2 * PAGE + 64;
                    let mut access = device.batch().expect("master");
                    black_box(access.translate(iova, 64, Perm::READ).expect("mapped").len());
                }
            })
        };
        let load = |random: &mut Random, below: u64| {
            time(OPS, |ops| {
                for _ in 0..ops {
                    let iova = random.below(below) * 2 * PAGE + 64;
                    let mut batch = device.batch().expect("master");
                    black_box(batch.load::<u32>(iova).expect("mapped"));
                }
            })
        };
        let batch = |random: &mut Random, below: u64| {
            time(OPS, |ops| {
                let mut access = device.batch().expect("master");
                for _ in 0..ops {
                    let iova = random.below(below) * 2 * PAGE + 64;
                    black_box(access.translate(iova, 64, Perm::READ).expect("mapped").len());
                }
            })
        };
        let figures = [
            call(&mut random, 1),
            call(&mut random, mappings),
            batch(&mut random, 1),
            batch(&mut random, mappings),
            load(&mut random, mappings),
        ];
        let tree: BTreeMap<u64, [u64; 3]> =
            (0..mappings).map(|w| (w * 2 * PAGE, [w * 2 * PAGE + PAGE, w * PAGE, 3])).collect();
        let tree = RwLock::new(tree);
        let tree_call = time(OPS, |ops| {
            for _ in 0..ops {
                let iova = random.below(mappings) * 2 * PAGE + 64;
                let tree = tree.read().expect("lock");
                let (_, found) = tree.range(..=iova).next_back().expect("mapped");
                black_box(iova < found[0]);
            }
        });
        let tree_batch = time(OPS, |ops| {
            let tree = tree.read().expect("lock");
            for _ in 0..ops {
                let iova = random.below(mappings) * 2 * PAGE + 64;
                let (_, found) = tree.range(..=iova).next_back().expect("mapped");
                black_box(iova < found[0]);
            }
        });
        print!("| {mappings} |");
        figures.iter().for_each(|f| print!(" {f:.1} |"));
        println!(" {tree_call:.1} | {tree_batch:.1} |");
    }
}

fn mapping() {
    println!("\n## Map and unmap a mapping on a known file, ns a pair\n");
    println!("`close`: duplicating and closing a descriptor, which is part of each pair.\n");
    println!("| other mappings | at random | past the end | close |");
    println!("| ---: | ---: | ---: | ---: |");
    const OPS: u64 = 100_000;
    for mappings in [0, 1, 64, 1024, 16_384, 65_000, 1_000_000] {
        let (space, fd) = filled(mappings);
        let mut random = Random(7);
        let pair = |mapping: u64| {
            map(&space, fd.try_clone().expect("a descriptor"), mapping, mapping % 16384 * PAGE);
            space.unmap(mapping * 2 * PAGE, PAGE, WAIT).expect("unmap");
        };
        let at_random = time(OPS, |ops| {
            for _ in 0..ops {
                let mapping = random.below(mappings.max(1));
                space.unmap(mapping * 2 * PAGE, PAGE, WAIT).expect("unmap");
                map(&space, fd.try_clone().expect("a descriptor"), mapping, 0);
            }
        });
        let past = time(OPS, |ops| (0..ops).for_each(|_| pair(mappings + 8)));
        let close = time(OPS, |ops| (0..ops).for_each(|_| drop(fd.try_clone())));
        println!("| {mappings} | {at_random:.0} | {past:.0} | {close:.0} |");
    }
    let start = Instant::now();
    let (space, _fd) = filled(1_000_000);
    let fill = start.elapsed();
    let start = Instant::now();
    space.unmap_all(WAIT).expect("unmap");
    println!(
        "\n1,000,000 mappings: mapped in {fill:.0?}, unmapped at once in {:.0?}.",
        start.elapsed()
    );
}

fn copying() {
    println!("\n## Copying, ns\n");
    println!("| bytes | read | write | memcpy |");
    println!("| ---: | ---: | ---: | ---: |");
    let (space, fd) = (Space::new(), memory(64 << 20));
    let device = Attachment::new(&space);
    space
        .map(
            OWNER,
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
            (0..ops).for_each(|_| ready(device.write(4096, &buffer)).expect("write"));
        });
        let read = time(ops, |ops| {
            (0..ops).for_each(|_| ready(device.read(4096, black_box(&mut buffer))).expect("read"));
        });
        let from = vec![1u8; bytes];
        let plain = time(ops, |ops| {
            (0..ops).for_each(|_| black_box(&mut buffer).copy_from_slice(black_box(&from)));
        });
        println!("| {bytes} | {read:.1} | {write:.1} | {plain:.1} |");
    }
    let atomic = time(2_000_000, |ops| {
        for _ in 0..ops {
            let mut batch = device.batch().expect("master");
            black_box(batch.load::<u32>(4096).expect("load"));
        }
    });
    let add = time(2_000_000, |ops| {
        (0..ops).for_each(|_| {
            let mut batch = device.batch().expect("master");
            _ = batch.fetch_add::<u32>(4096, 1).expect("add");
        });
    });
    let hold = time(1_000_000, |ops| {
        (0..ops).for_each(|_| drop(device.hold(4096, 65536, Perm::READ).expect("hold")));
    });
    println!(
        "\n`load::<u32>` {atomic:.1}, `fetch_add::<u32>` {add:.1}, hold and release {hold:.1}."
    );
}

fn files() {
    println!("\n## A file that was not known, ns\n");
    println!("`pair`: mapped and unmapped; `touched`: with one load between the two.\n");
    println!("| bytes | pair | touched |");
    println!("| ---: | ---: | ---: |");
    for size in [1u64 << 20, 1 << 30, 64 << 30] {
        let (space, fd) = (Space::new(), memory(size));
        rustix::io::pwrite(&fd, &[1], 4096).expect("a page");
        let device = Attachment::new(&space);
        let run = |touch: bool| {
            time(20_000, |ops| {
                for _ in 0..ops {
                    map(&space, fd.try_clone().expect("a descriptor"), 0, 4096);
                    if touch {
                        black_box(device.batch().expect("master").load::<u32>(0).expect("mapped"));
                    }
                    space.drop_owner(OWNER);
                }
            })
        };
        println!("| {size} | {:.0} | {:.0} |", run(false), run(true));
    }
}

fn holes() {
    println!("\n## Holes in a client's memory, ns\n");
    println!(
        "`write`: into a page that is missing each time, which the client's `fallocate` made so:"
    );
    println!("its cost alone beside it.\n");
    println!("| bytes | read | write | fallocate |");
    println!("| ---: | ---: | ---: | ---: |");
    let (space, fd) = (Space::new(), memory(64 << 20));
    let copy = fd.try_clone().expect("a descriptor");
    let backing = Backing::File { fd: copy, offset: 0 };
    let perm = Perm::READ | Perm::WRITE;
    space.map(OWNER, MapRequest { iova: 0, size: 64 << 20, perm, backing }).expect("map");
    let device = Attachment::new(&space);
    let punch = || {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&fd, flags, 0, 64 << 20).expect("a hole");
    };
    for bytes in [4usize, 64, 4096, 64 << 10, 1 << 20] {
        let ops = ((64 << 20) / bytes as u64).clamp(64, 20_000);
        let mut buffer = vec![1u8; bytes];
        punch();
        let read = time(ops, |ops| {
            (0..ops).for_each(|_| ready(device.read(4096, black_box(&mut buffer))).expect("read"));
        });
        let write = time(ops, |ops| {
            for _ in 0..ops {
                ready(device.write(4096, &buffer)).expect("write");
                punch();
            }
        });
        let alone = time(ops, |ops| (0..ops).for_each(|_| punch()));
        println!("| {bytes} | {read:.0} | {write:.0} | {alone:.0} |");
    }
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let sections: [(&str, fn()); 5] = [
        ("translation", translation),
        ("mapping", mapping),
        ("files", files),
        ("copying", copying),
        ("holes", holes),
    ];
    println!("# DMA");
    for (name, section) in sections {
        if wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str())) {
            section();
        }
    }
}
