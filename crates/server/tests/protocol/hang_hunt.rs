//! Clients that map and unmap in a loop on a loaded machine, for long: `ci/soak hang-hunt`.

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vfiod_client::{GuestMemory, Options};
use vfiod_core::OpenPolicy;
use vfiod_server::ServerOptions;

use crate::rig::*;

/// Clients of one device: more than its gate lets in, and than there are processors.
const CLIENTS: usize = 12;
/// A client that is not answered for so long is one that was forgotten.
const FORGOTTEN: Duration = Duration::from_secs(20);

/// Prints what every thread of this process does.
fn dump_threads() {
    let pid = std::process::id().to_string();
    let debuggers: [&[&str]; 2] =
        [&["eu-stack", "-p", &pid], &["gdb", "-p", &pid, "-batch", "-ex", "thread apply all bt"]];
    for debugger in debuggers {
        let stacks = Command::new(debugger[0]).args(&debugger[1..]).output();
        if let Ok(stacks) = stacks.as_ref().map(|stacks| String::from_utf8_lossy(&stacks.stdout)) {
            println!("{stacks}");
            break;
        }
    }
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let [comm, wchan, syscall] = ["comm", "wchan", "syscall"].map(read);
        println!("{:?} {} {wchan} {}", task.file_name(), comm.trim(), syscall.trim());
    }
}

/// Runs for `VFIOD_HUNT_SECONDS`. Every third client connects anew now and then.
#[test]
#[ignore = "takes half an hour"]
fn no_client_that_maps_and_unmaps_is_forgotten() {
    let seconds = std::env::var("VFIOD_HUNT_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(1800));
    // Two threads may be with the device: the others wait at its gate, again and again.
    let options = ServerOptions { max_threads: 8, ..server_options() };
    let rig = Rig::with(OpenPolicy::Multi, options);
    let start = Instant::now();
    let answered: Vec<_> = (0..CLIENTS).map(|_| AtomicU64::new(0)).collect();
    let rounds = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (number, answered) in answered.iter().enumerate() {
            let (rig, rounds, over) = (&rig, &rounds, &over);
            scope.spawn(move || {
                let memory = GuestMemory::new(0x1000).unwrap();
                let iova = number as u64 * 0x10_000;
                let options = || Options { timeout: 2 * FORGOTTEN, ..Options::default() };
                let mut client = rig.client_with(options());
                for round in 1.. {
                    client.dma_map(iova, 0x1000, Some((memory.fd(), 0))).unwrap();
                    client.dma_unmap(iova, 0x1000).unwrap();
                    write_u64(&mut client, PLAIN, 8 * number as u64, round);
                    answered.store(start.elapsed().as_millis() as u64, Ordering::Relaxed);
                    rounds.fetch_add(1, Ordering::Relaxed);
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    if number % 3 == 0 && round % 50 == 0 {
                        client = rig.client_with(options());
                    }
                }
            });
        }
        // The load.
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let mut forgotten = None;
        while Instant::now() < end && forgotten.is_none() {
            std::thread::sleep(Duration::from_millis(500));
            let now = start.elapsed().as_millis() as u64;
            let limit = FORGOTTEN.as_millis() as u64;
            let is_forgotten =
                |at: &AtomicU64| now.saturating_sub(at.load(Ordering::Relaxed)) > limit;
            forgotten = answered.iter().position(is_forgotten);
        }
        if forgotten.is_some() {
            dump_threads();
        }
        over.store(true, Ordering::Relaxed);
        assert_eq!(forgotten, None, "a client was not answered for {FORGOTTEN:?}");
    });
    println!(
        "{} rounds of {CLIENTS} clients in {:?}",
        rounds.load(Ordering::Relaxed),
        start.elapsed()
    );
}
