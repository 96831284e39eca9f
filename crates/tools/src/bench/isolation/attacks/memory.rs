//! Attacks by memory that a device is to reach, and by going while it does.
//!
//! What a client can make an access to its memory wait for is the kernel, while it punches a hole there.
//! Its own `userfaultfd` holds up its own mapping only, and files of a FUSE file system are refused.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use vfiod_client::Client;
use vfiod_wire::Command;
use vfiod_wire::payload::RegionAccess;
use zerocopy::IntoBytes;

use super::super::stage::{BOARD, MANY};
use super::{EDU, Lane, MEMORY, REGISTERS, Target, lane, memfd};

/// Where a client's memory is to the device.
pub(super) const IOVA: u64 = 1 << 32;
const SIZE: u64 = 32 << 20;

/// What the bench device is asked to do by itself, in a task.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operation {
    operation: u64,
    times: u64,
    length: u64,
    range: u64,
}

impl Operation {
    /// Reads `length` bytes so many times, at random places of `range` bytes.
    pub(super) fn read(range: u64, length: u64, times: u64) -> Self {
        Self { operation: 3, times, length, range }
    }

    /// Triggers its first vector so many times.
    pub(super) fn interrupt(times: u64) -> Self {
        Self { operation: 5, times, length: 0, range: 1 << 20 }
    }

    fn registers(self) -> [(u64, u64); 6] {
        let stride = self.length.max(1);
        let count = (self.range / stride).max(1);
        [
            (0x08, self.times),
            (0x10, IOVA),
            (0x18, stride),
            (0x20, count),
            (0x28, self.length),
            (0x00, self.operation),
        ]
    }

    /// Starts it, without waiting.
    pub(super) fn submit(self, client: &mut Client) -> anyhow::Result<()> {
        for (register, value) in self.registers() {
            client.region_post(REGISTERS, register, &value.to_le_bytes())?;
        }
        Ok(())
    }

    /// Has it done.
    pub(super) fn run(self, client: &mut Client) -> anyhow::Result<()> {
        self.submit(client)?;
        let mut running = [1; 8];
        while running != [0; 8] {
            client.region_read(REGISTERS, 0x48, &mut running)?;
            sleep(Duration::from_micros(200));
        }
        Ok(())
    }
}

/// A lane whose device reads all of a file again and again.
fn reading(target: &Target, file: &Arc<File>) -> Lane {
    let (target, file, mut client) = (target.clone(), file.clone(), None);
    lane(move || {
        let client = match &mut client {
            Some(client) => client,
            None => {
                let client = client.insert(target.client(BOARD)?);
                client.dma_map(IOVA, SIZE, Some((file.as_fd(), 0)))?;
                client
            }
        };
        Operation::read(SIZE, 64 << 10, 200).run(client)
    })
}

pub(super) fn blocked(target: &Target) -> anyhow::Result<Vec<Lane>> {
    let file = Arc::new(File::from(memfd(SIZE)?));
    let holes = {
        let file = file.clone();
        lane(move || {
            fallocate(&*file, FallocateFlags::empty(), 0, SIZE)?;
            // Who touches the range while it goes has to wait.
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            Ok(fallocate(&*file, punch, 0, SIZE)?)
        })
    };
    let refused = {
        let target = target.clone();
        let (mut client, mut on_disk) = (None, None);
        lane(move || {
            let file = match &mut on_disk {
                Some(file) => file,
                None => on_disk.insert(tempfile::tempfile_in(&target.0)?),
            };
            file.set_len(4096)?;
            let client = match &mut client {
                Some(client) => client,
                None => client.insert(target.client(MANY)?),
            };
            let mapped = client.dma_map(IOVA, 4096, Some((file.as_fd(), 0)));
            ensure!(
                mapped.is_err_and(|error| error.remote_errno().is_some()) || on_tmpfs(file),
                "a file on a disk was taken for memory"
            );
            sleep(Duration::from_millis(1));
            Ok(())
        })
    };
    Ok(vec![reading(target, &file), holes, refused])
}

/// Whether it is memory after all.
fn on_tmpfs(file: &File) -> bool {
    rustix::fs::fcntl_get_seals(file).is_ok()
}

pub(super) fn truncation(target: &Target) -> anyhow::Result<Vec<Lane>> {
    let file = Arc::new(File::from(memfd(SIZE)?));
    let truncating = {
        let file = file.clone();
        lane(move || {
            ftruncate(&*file, 0)?;
            ftruncate(&*file, SIZE)?;
            sleep(Duration::from_micros(100));
            Ok(())
        })
    };
    Ok(vec![reading(target, &file), truncating])
}

pub(super) fn close_amid_work(target: &Target) -> Vec<Lane> {
    let operation = {
        let target = target.clone();
        lane(move || {
            let file = memfd(SIZE)?;
            let mut client = target.client(BOARD)?;
            client.dma_map(IOVA, SIZE, Some((file.as_fd(), 0)))?;
            Operation::read(SIZE, 64 << 10, 10_000).submit(&mut client)?;
            client.device_info()?;
            Ok(())
        })
    };
    let transfers = {
        let target = target.clone();
        lane(move || {
            let mut client = target.client(BOARD)?;
            let access = RegionAccess { offset: 0, region: MEMORY, count: 1 << 20 };
            for _ in 0..8 {
                client.submit(Command::RegionRead, access.as_bytes(), &[])?;
            }
            Ok(())
        })
    };
    let by_message = {
        let target = target.clone();
        lane(move || {
            let mut client = target.client(MANY)?;
            client.dma_map(0x10000, 4096, None)?;
            // edu's transfer from memory into its buffer.
            for (register, value) in [(0x80, 0x10000_u64), (0x88, 0x40000), (0x90, 64), (0x98, 1)] {
                client.region_write(EDU, register, &value.to_le_bytes()).context("a transfer")?;
            }
            Ok(())
        })
    };
    vec![operation, transfers, by_message]
}
