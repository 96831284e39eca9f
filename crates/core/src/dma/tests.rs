use std::os::fd::AsFd;
use std::time::Duration;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::*;
use crate::file::FileId;

const A: FileId = FileId(1);
const B: FileId = FileId(2);
const SOON: Duration = Duration::from_millis(20);
const RW: Perm = Perm::READ.union(Perm::WRITE);

/// A client's memory.
struct Memory(OwnedFd);

impl Memory {
    fn new(size: u64) -> Self {
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
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

fn map(space: &DmaSpace, memory: &Memory, iova: u64, size: u64, offset: u64) {
    space.map(A, request(iova, size, RW, memory.fd(), offset)).unwrap();
}

fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
    result.unwrap_err().errno()
}

#[test]
fn reads_and_writes_the_clients_memory() {
    let (space, memory) = (DmaSpace::new(), Memory::new(1 << 20));
    map(&space, &memory, 0x1000, 0x2000, 0x4000);
    space.write(0x1ffe, b"hello").unwrap();
    assert_eq!(memory.peek(0x4ffe, 5), b"hello");
    memory.poke(0x4000, b"world");
    let mut bytes = [0; 5];
    space.read(0x1000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"world");
    assert_eq!(space.unmap(0x1000, 0x2000, SOON).unwrap(), 0x2000);
    assert_eq!(errno(space.read(0x1000, &mut bytes)), Errno::FAULT);
}
