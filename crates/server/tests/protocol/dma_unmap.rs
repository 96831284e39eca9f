//! DMA_UNMAP: exact, of a range, of everything.

use vfiod_client::GuestMemory;
use vfiod_wire::Command;
use vfiod_wire::payload::DmaUnmap;
use zerocopy::{FromBytes, IntoBytes};

use crate::rig::*;

#[test]
fn unmapped_memory_is_unreachable() {
    let rig = Rig::new();
    let mut client = rig.client();
    let memory = GuestMemory::new(1 << 20).unwrap();
    client.dma_map(0x1000, 0x1000, Some((memory.fd(), 0))).unwrap();
    client.dma_map(0x2000, 0x1000, Some((memory.fd(), 0))).unwrap();
    client.dma_unmap(0x1000, 0x1000).unwrap();
    assert_eq!(dma(&mut client, DMA_READ, 0x1000, 4), EFAULT);
    assert_eq!(dma(&mut client, DMA_READ, 0x2000, 4), 0);
    client.dma_map(0x1000, 0x1000, Some((memory.fd(), 0))).unwrap();
    assert_eq!(dma(&mut client, DMA_READ, 0x1000, 4), 0);
}

#[test]
fn unmap_reply_echoes_the_request() {
    let rig = Rig::new();
    let mut client = rig.client();
    client.dma_map(0x1000, 0x1000, None).unwrap();
    let unmap = DmaUnmap { argsz: 24, flags: 0, address: 0x1000, size: 0x1000 };
    let reply = client.call(Command::DmaUnmap, unmap.as_bytes(), &[]).unwrap();
    assert_eq!(DmaUnmap::read_from_bytes(&reply.payload).unwrap(), unmap);
}

#[test]
fn unmap_of_a_range_removes_every_mapping_inside() {
    // QEMU with a guest IOMMU unmaps powers of two that it never mapped, up to 2^64.
    let rig = Rig::new();
    let mut client = rig.client();
    let memory = GuestMemory::new(1 << 20).unwrap();
    for iova in [0x1000, 0x8000, 0x1_0000_0000, 0xfef0_0000, 0xffff_ffff_ffff_f000] {
        client.dma_map(iova, 0x1000, Some((memory.fd(), 0))).unwrap();
    }
    client.dma_unmap(0, 0x10000).unwrap();
    assert_eq!(dma(&mut client, DMA_READ, 0x1000, 4), EFAULT);
    assert_eq!(dma(&mut client, DMA_READ, 0xfef0_0000, 4), 0);
    client.dma_unmap(0xfef0_0000, 0xffff_ffff_0110_0000).unwrap();
    for iova in [0x1_0000_0000, 0xfef0_0000, 0xffff_ffff_ffff_f000] {
        assert_eq!(dma(&mut client, DMA_READ, iova, 4), EFAULT, "{iova:#x}");
    }
    // Where nothing is, nothing is to do.
    client.dma_unmap(0, 0x8000_0000_0000).unwrap();
}

#[test]
fn unmap_that_would_cut_a_mapping_is_refused() {
    let rig = Rig::new();
    let mut client = rig.client();
    let memory = GuestMemory::new(1 << 20).unwrap();
    client.dma_map(0x4000, 0x4000, Some((memory.fd(), 0))).unwrap();
    client.dma_map(0x2000, 0x1000, Some((memory.fd(), 0))).unwrap();
    for (iova, size) in [(0x4000, 0x1000), (0x7000, 0x1000), (0x5000, 0x1000), (0, 0x5000)] {
        assert_eq!(refused(client.dma_unmap(iova, size)), EINVAL, "{iova:#x} {size:#x}");
    }
    assert_eq!(dma(&mut client, DMA_READ, 0x4000, 0x1000), 0);
    assert_eq!(dma(&mut client, DMA_READ, 0x2000, 0x1000), 0, "nothing of a refused range goes");
}

#[test]
fn malformed_unmaps_are_refused() {
    let rig = Rig::new();
    let mut client = rig.client();
    assert_eq!(refused(client.dma_unmap(0, 0)), EINVAL);
    assert_eq!(refused(client.dma_unmap(0x1000, u64::MAX)), EINVAL);
    let unmap = DmaUnmap { argsz: 24, flags: 0, address: 0, size: 0x1000 };
    for bad in [
        DmaUnmap { argsz: 23, ..unmap },
        DmaUnmap { flags: 1, ..unmap },
        DmaUnmap { flags: 4, ..unmap },
        DmaUnmap { flags: 2, ..unmap },
    ] {
        assert_eq!(refused(client.call(Command::DmaUnmap, bad.as_bytes(), &[])), EINVAL, "{bad:?}");
    }
    let short = &unmap.as_bytes()[..23];
    assert_eq!(refused(client.call(Command::DmaUnmap, short, &[])), EINVAL);
}

#[test]
fn unmap_of_all_removes_every_mapping() {
    let rig = Rig::new();
    let mut client = rig.client();
    let memory = GuestMemory::new(1 << 20).unwrap();
    client.dma_unmap_all().unwrap();
    for i in 0..100u64 {
        let file = (i % 2 == 0).then(|| (memory.fd(), 0));
        client.dma_map(i << 20, 0x1000, file).unwrap();
    }
    client.dma_unmap_all().unwrap();
    assert_eq!(dma(&mut client, DMA_READ, 0, 4), EFAULT);
    client.dma_map(0, 0x1000, Some((memory.fd(), 0))).unwrap();
}
