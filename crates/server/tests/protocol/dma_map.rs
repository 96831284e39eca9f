//! DMA_MAP, and what the device then reaches.

use std::os::fd::AsFd;

use vfiod_client::GuestMemory;
use vfiod_wire::Command;
use vfiod_wire::payload::{DmaMap, dma_flag};
use zerocopy::IntoBytes;

use crate::rig::*;

const MIB: u64 = 1 << 20;

#[test]
fn the_device_reads_and_writes_mapped_memory() {
    let rig = Rig::new();
    let mut client = rig.client();
    let memory = GuestMemory::new(2 * MIB).unwrap();
    memory.write(0x3000, b"from the guest").unwrap();
    client.dma_map(0x10_0000, MIB, Some((memory.fd(), 0))).unwrap();
    assert_eq!(dma(&mut client, DMA_READ, 0x10_3000, 14), 0);
    let mut data = [0; 14];
    client.region_read(PLAIN, 0, &mut data).unwrap();
    assert_eq!(&data, b"from the guest");
    client.region_write(PLAIN, 0, b"from the device").unwrap();
    assert_eq!(dma(&mut client, DMA_WRITE, 0x10_4000, 15), 0);
    let mut data = [0; 15];
    memory.read(0x4000, &mut data).unwrap();
    assert_eq!(&data, b"from the device");
}

#[test]
fn access_spans_adjoining_mappings() {
    let rig = Rig::new();
    let mut client = rig.client();
    let memory = GuestMemory::new(MIB).unwrap();
    memory.write(0x1000 - 4, b"left").unwrap();
    memory.write(0x8000, b"right").unwrap();
    client.dma_map(0x1000_0000, 0x1000, Some((memory.fd(), 0))).unwrap();
    client.dma_map(0x1000_1000, 0x1000, Some((memory.fd(), 0x8000))).unwrap();
    assert_eq!(dma(&mut client, DMA_READ, 0x1000_0ffc, 9), 0);
    let mut data = [0; 9];
    client.region_read(PLAIN, 0, &mut data).unwrap();
    assert_eq!(&data, b"leftright");
    assert_eq!(dma(&mut client, DMA_READ, 0x1000_1ffc, 5), EFAULT);
    assert_eq!(dma(&mut client, DMA_READ, 0x0fff_fffc, 5), EFAULT);
}

#[test]
fn device_that_reads_sparse_memory_leaves_it_sparse() {
    let rig = Rig::new();
    let mut client = rig.client();
    let memory = GuestMemory::new(MIB).unwrap();
    let allocated = || rustix::fs::fstat(memory.fd()).unwrap().st_blocks * 512;
    client.dma_map(0, MIB, Some((memory.fd(), 0))).unwrap();
    assert_eq!(dma(&mut client, DMA_READ, 0x3000, 14), 0);
    if allocated() > 0 {
        eprintln!("SKIPPED: userfaultfd is forbidden here, so reads fill holes");
        return;
    }
    let mut data = [1; 14];
    client.region_read(PLAIN, 0, &mut data).unwrap();
    assert_eq!(data, [0; 14]);
    client.region_write(PLAIN, 0, b"from the device").unwrap();
    assert_eq!(dma(&mut client, DMA_WRITE, 0x4000, 15), 0);
    assert_eq!(allocated(), 4096);
    let mut data = [0; 15];
    memory.read(0x4000, &mut data).unwrap();
    assert_eq!(&data, b"from the device");
}

#[test]
fn access_without_the_mappings_permission_fails() {
    let rig = Rig::new();
    let mut client = rig.client();
    let memory = GuestMemory::new(MIB).unwrap();
    let file = Some((memory.fd(), 0));
    client.dma_map_with(0x10000, 0x1000, dma_flag::READ, file).unwrap();
    client.dma_map_with(0x20000, 0x1000, dma_flag::WRITE, file).unwrap();
    assert_eq!(dma(&mut client, DMA_READ, 0x10000, 4), 0);
    assert_eq!(dma(&mut client, DMA_WRITE, 0x10000, 4), u64::from(EACCES));
    assert_eq!(dma(&mut client, DMA_READ, 0x20000, 4), u64::from(EACCES));
    assert_eq!(dma(&mut client, DMA_WRITE, 0x20000, 4), 0);
}

#[test]
fn overlaps_are_refused_and_change_nothing() {
    let rig = Rig::new();
    let mut client = rig.client();
    let memory = GuestMemory::new(MIB).unwrap();
    let file = Some((memory.fd(), 0));
    client.dma_map(0x10000, 0x4000, file).unwrap();
    for (iova, size) in [
        (0x10000, 0x4000),
        (0x10000, 0x1000),
        (0x13000, 0x1000),
        (0xf000, 0x2000),
        (0xf000, 0x10000),
    ] {
        assert_eq!(refused(client.dma_map(iova, size, file)), EEXIST, "{iova:#x} {size:#x}");
        assert_eq!(refused(client.dma_map(iova, size, None)), EEXIST, "{iova:#x} {size:#x}");
    }
    client.dma_map(0x14000, 0x1000, file).unwrap();
    assert_eq!(dma(&mut client, DMA_READ, 0x10000, 0x1000), 0);
}

#[test]
fn malformed_maps_are_refused() {
    let rig = Rig::new();
    let mut client = rig.client();
    let memory = GuestMemory::new(MIB).unwrap();
    let file = Some((memory.fd(), 0));
    assert_eq!(refused(client.dma_map(0, 0, file)), EINVAL);
    assert_eq!(refused(client.dma_map(0x1000, u64::MAX, file)), EINVAL);
    assert_eq!(refused(client.dma_map_with(0, 0x1000, 0, file)), EINVAL);
    assert_eq!(refused(client.dma_map_with(0, 0x1000, 4, file)), EINVAL);
    let map = DmaMap { argsz: 31, flags: 3, offset: 0, address: 0, size: 0x1000 };
    assert_eq!(refused(client.call(Command::DmaMap, map.as_bytes(), &[])), EINVAL);
    for len in [0, 8, 31] {
        assert_eq!(refused(client.call(Command::DmaMap, &map.as_bytes()[..len], &[])), EINVAL);
    }
    let two = [memory.fd(), memory.fd()];
    let map = DmaMap { argsz: 32, ..map };
    assert_eq!(refused(client.call(Command::DmaMap, map.as_bytes(), &two)), EINVAL);
    // Descriptors that cannot be mapped.
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    refused(client.dma_map(0, 0x1000, Some((pipe.as_fd(), 0))));
    let event = event();
    refused(client.dma_map(0, 0x1000, Some((event.as_fd(), 0))));
    client.dma_map(0, 0x1000, file).unwrap();
    assert_eq!(dma(&mut client, DMA_READ, 0, 4), 0);
}

#[test]
fn maps_with_and_without_a_descriptor_in_one_burst_keep_theirs() {
    // QEMU sends its RAM with a descriptor and its firmware without, and waits for neither.
    let rig = Rig::new();
    let mut client = rig.client();
    let memory = GuestMemory::new(MIB).unwrap();
    memory.write(0, &[0xab]).unwrap();
    let mut ids = Vec::new();
    for i in 0..64u64 {
        let map = DmaMap { argsz: 32, flags: 3, offset: 0, address: i << 20, size: 0x1000 };
        let fds = [memory.fd()];
        let fds = if i % 3 == 0 { &fds[..] } else { &[] };
        ids.push(client.submit(Command::DmaMap, map.as_bytes(), fds).unwrap());
    }
    for id in ids {
        client.complete(id).unwrap();
    }
    for i in (0..64u64).step_by(3) {
        assert_eq!(dma(&mut client, DMA_READ, i << 20, 1), 0);
        let mut byte = [0];
        client.region_read(PLAIN, 0, &mut byte).unwrap();
        assert_eq!(byte, [0xab], "window {i}");
    }
}

#[test]
fn access_to_a_truncated_file_fails_and_the_server_lives() {
    let rig = Rig::new();
    let mut client = rig.client();
    let memory = GuestMemory::new(4 * MIB).unwrap();
    client.dma_map(0, 4 * MIB, Some((memory.fd(), 0))).unwrap();
    assert_eq!(dma(&mut client, DMA_WRITE, 3 * MIB, 0x1000), 0);
    memory.file().set_len(MIB).unwrap();
    assert_eq!(dma(&mut client, DMA_READ, 3 * MIB, 0x1000), EFAULT);
    assert_eq!(dma(&mut client, DMA_WRITE, 3 * MIB, 0x1000), EFAULT);
    assert_eq!(dma(&mut client, DMA_WRITE, MIB - 0x800, 0x1000), EFAULT);
    assert_eq!(dma(&mut client, DMA_READ, 0, 0x1000), 0);
    memory.file().set_len(0).unwrap();
    assert_eq!(dma(&mut client, DMA_READ, 0, 1), EFAULT);
    rig.assert_alive();
}

#[test]
fn access_behind_the_end_of_a_file_fails_with_efault() {
    let rig = Rig::new();
    let mut client = rig.client();
    let memory = GuestMemory::new(0x1000).unwrap();
    client.dma_map(0, MIB, Some((memory.fd(), 0))).unwrap();
    assert_eq!(dma(&mut client, DMA_READ, 0, 0x1000), 0);
    assert_eq!(dma(&mut client, DMA_READ, 0x1000, 1), EFAULT);
    assert_eq!(dma(&mut client, DMA_READ, MIB - 1, 1), EFAULT);
}

#[test]
fn a_read_only_descriptor_is_not_written() {
    let rig = Rig::new();
    let mut client = rig.client();
    let mut file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    std::io::Write::write_all(&mut file, &[7; 8192]).unwrap();
    let file = std::fs::File::open(file.path()).unwrap();
    // Readable and writeable was asked for, but cannot be had.
    let outcome = client.dma_map(0, 8192, Some((file.as_fd(), 0)));
    if outcome.is_ok() {
        assert_eq!(dma(&mut client, DMA_READ, 0, 4), 0);
        assert_ne!(dma(&mut client, DMA_WRITE, 0, 4), 0);
    }
    client.dma_unmap(0, 8192).unwrap();
    client.dma_map_with(0, 8192, dma_flag::READ, Some((file.as_fd(), 0))).unwrap();
    assert_eq!(dma(&mut client, DMA_READ, 0, 4), 0);
}

#[test]
fn file_that_is_no_memory_is_refused_and_the_client_goes_on() {
    let rig = Rig::new();
    let mut client = rig.client();
    // In a directory that is on no tmpfs.
    let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.set_len(8192).unwrap();
    assert_eq!(refused(client.dma_map(0, 8192, Some((file.as_fd(), 0)))), ENODEV);
    let memory = GuestMemory::new(8192).unwrap();
    client.dma_map(0, 8192, Some((memory.fd(), 0))).unwrap();
    assert_eq!(dma(&mut client, DMA_READ, 0, 4), 0);
}

#[test]
fn ten_thousand_mappings_are_reachable() {
    let rig = Rig::new();
    let mut client = rig.client();
    let memory = GuestMemory::new(16 * MIB).unwrap();
    for i in 0..10_000u64 {
        let offset = i % 4096 * 0x1000;
        client.dma_map(i << 16, 0x1000, Some((memory.fd(), offset))).unwrap();
    }
    memory.write(17 * 0x1000, &[99]).unwrap();
    assert_eq!(dma(&mut client, DMA_READ, (4096 + 17) << 16, 1), 0);
    let mut byte = [0];
    client.region_read(PLAIN, 0, &mut byte).unwrap();
    assert_eq!(byte, [99]);
    client.dma_unmap_all().unwrap();
    assert_eq!(dma(&mut client, DMA_READ, 17 << 16, 1), EFAULT);
}
