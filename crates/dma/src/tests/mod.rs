use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

mod attachments;
mod holes;
mod in_flight;
mod kinds_of_files;
mod mappings;
mod messages;
mod model;
mod spaces;
mod stalled;

use super::*;
use crate::test_device::TestDevice;

use vfiod_sync::Arc;
use vfiod_sync::atomic::Ordering;

const A: MapOwner = MapOwner(1);
const B: MapOwner = MapOwner(2);
const SOON: Duration = Duration::from_millis(20);
/// Whether there are recoverable atomic read-modify-writes.
const ATOMICS: bool = cfg!(all(target_arch = "x86_64", not(vfiod_portable)));
const RW: Perm = Perm::READ.union(Perm::WRITE);

/// A client's memory.
struct Memory(OwnedFd);

impl Memory {
    fn new(size: u64) -> Self {
        Self::named("guest", size)
    }

    /// With a name to be found by in `/proc`.
    fn named(name: &str, size: u64) -> Self {
        let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, size).unwrap();
        Self(fd)
    }

    fn fd(&self) -> OwnedFd {
        self.0.try_clone().unwrap()
    }

    fn read_only(&self) -> OwnedFd {
        use std::os::fd::AsRawFd;
        std::fs::File::open(format!("/proc/self/fd/{}", self.0.as_raw_fd())).unwrap().into()
    }

    fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        rustix::io::pread(&self.0, &mut bytes, offset).unwrap();
        bytes
    }

    fn poke(&self, offset: u64, bytes: &[u8]) {
        assert_eq!(rustix::io::pwrite(&self.0, bytes, offset).unwrap(), bytes.len());
    }
}

fn request(iova: u64, size: u64, perm: Perm, fd: OwnedFd, offset: u64) -> MapRequest {
    MapRequest { iova, size, perm, backing: Backing::File { fd, offset } }
}

fn map(space: &TestDevice, memory: &Memory, iova: u64, size: u64, offset: u64) {
    space.map(A, request(iova, size, RW, memory.fd(), offset)).unwrap();
}

fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
    result.unwrap_err().errno()
}

/// How many mappings and descriptors of this process are of a file of this name.
fn held(name: &str) -> (usize, usize) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let maps = maps.lines().filter(|line| line.contains(&format!("memfd:{name} "))).count();
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let fds = fds
        .filter_map(|fd| std::fs::read_link(fd.path()).ok())
        .filter(|link| link.to_string_lossy().contains(&format!("memfd:{name} ")))
        .count();
    (maps, fds)
}
