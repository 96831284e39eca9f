//! DEVICE_GET_INFO, DEVICE_GET_REGION_INFO, DEVICE_GET_IRQ_INFO.

use vfiod_wire::payload::{DeviceInfo, IrqInfo, RegionInfo, SparseArea, region_flag};
use vfiod_wire::{Command, decode_region_info};
use zerocopy::IntoBytes;

use crate::rig::*;

#[test]
fn device_info_has_flags_and_counts() {
    let rig = Rig::new();
    let info = rig.client().device_info().unwrap();
    assert_eq!(info, DeviceInfo { argsz: 16, flags: 1, num_regions: REGIONS, num_irqs: IRQS });
}

#[test]
fn device_info_of_a_wrong_size_is_refused() {
    let rig = Rig::new();
    let mut client = rig.client();
    for len in [0, 1, 15, 17, 64] {
        let payload = [16, 0, 0, 0].iter().copied().chain([0; 60]).take(len).collect::<Vec<u8>>();
        assert_eq!(refused(client.call(Command::DeviceGetInfo, &payload, &[])), EINVAL, "{len}");
    }
    let small = DeviceInfo { argsz: 15, ..DeviceInfo::default() };
    assert_eq!(refused(client.call(Command::DeviceGetInfo, small.as_bytes(), &[])), EINVAL);
    client.device_info().unwrap();
}

#[test]
fn region_info_has_size_and_access_rights() {
    let rig = Rig::new();
    let mut client = rig.client();
    let mut info = |index| client.region_info(index).unwrap().reply.info;
    let plain = info(PLAIN);
    assert_eq!((plain.index, plain.size, plain.argsz), (PLAIN, PLAIN_SIZE, 32));
    assert_eq!(plain.flags, region_flag::READ | region_flag::WRITE);
    assert_eq!(info(READ_ONLY).flags, region_flag::READ);
    let absent = info(ABSENT);
    assert_eq!((absent.size, absent.flags), (0, 0));
}

#[test]
fn a_sparse_region_brings_its_areas_and_one_descriptor() {
    let rig = Rig::new();
    let mut client = rig.client();
    let region = client.region_info(SPARSE).unwrap();
    assert_eq!(region.reply.areas, [SparseArea { offset: 0, size: SPARSE_AREA }]);
    let flags = region.reply.info.flags;
    assert_eq!(
        flags & (region_flag::MMAP | region_flag::CAPS),
        region_flag::MMAP | region_flag::CAPS
    );
    let file = std::fs::File::from(region.fd.unwrap());
    let offset = region.reply.info.offset;
    // No more than can be mapped, of this region and of the other one.
    assert_eq!(file.metadata().unwrap().len(), offset + SPARSE_AREA + LARGE_SIZE);

    // It is the memory that messages reach.
    std::os::unix::fs::FileExt::write_all_at(&file, b"through the file", offset + 0x100).unwrap();
    let mut data = [0; 16];
    client.region_read(SPARSE, 0x100, &mut data).unwrap();
    assert_eq!(&data, b"through the file");
    client.region_write(SPARSE, 0x200, b"through a message").unwrap();
    let mut data = [0; 17];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut data, offset + 0x200).unwrap();
    assert_eq!(&data, b"through a message");
    // Behind the area it is the device.
    let mut data = [0; 4];
    client.region_read(SPARSE, SPARSE_AREA, &mut data).unwrap();
    assert_eq!(data, [0x5a; 4]);
    // And no client can cut it short under the server.
    assert!(file.set_len(0).is_err());
}

#[test]
fn too_small_an_argsz_gets_the_size_and_no_descriptor() {
    let rig = Rig::new();
    let mut client = rig.client();
    let request = RegionInfo { argsz: 32, index: SPARSE, ..RegionInfo::default() };
    let reply = client.call(Command::DeviceGetRegionInfo, request.as_bytes(), &[]).unwrap();
    assert_eq!(reply.payload.len(), 32);
    assert!(reply.fds.is_empty());
    let decoded = decode_region_info(&reply.payload).unwrap();
    assert_eq!(decoded.info.argsz, 32 + 16 + 16);
    assert_ne!(decoded.info.flags & region_flag::CAPS, 0);
    // QEMU refuses CAPS with an offset of 0, which the kernel answers here.
    assert_eq!(decoded.info.cap_offset, 32);
}

#[test]
fn wholly_mappable_region_has_one_sparse_area_and_no_descriptor_in_a_short_reply() {
    let rig = Rig::new();
    let mut client = rig.client();
    let request = RegionInfo { argsz: 32, index: MEMORY, ..RegionInfo::default() };
    let reply = client.call(Command::DeviceGetRegionInfo, request.as_bytes(), &[]).unwrap();
    assert_eq!((reply.payload.len(), reply.fds.len()), (32, 0));
    let region = client.region_info(MEMORY).unwrap();
    assert_eq!(region.reply.areas, [SparseArea { offset: 0, size: LARGE_SIZE }]);
    assert!(region.fd.is_some());
}

#[test]
fn malformed_region_info_is_refused() {
    let rig = Rig::new();
    let mut client = rig.client();
    for index in [REGIONS, 100, u32::MAX] {
        assert_eq!(refused(client.region_info(index)), EINVAL);
    }
    let small = RegionInfo { argsz: 31, ..RegionInfo::default() };
    assert_eq!(refused(client.call(Command::DeviceGetRegionInfo, small.as_bytes(), &[])), EINVAL);
    let short = &small.as_bytes()[..31];
    assert_eq!(refused(client.call(Command::DeviceGetRegionInfo, short, &[])), EINVAL);
}

#[test]
fn irq_info_has_count_and_flags() {
    let rig = Rig::new();
    let mut client = rig.client();
    let line = client.irq_info(LINE).unwrap();
    assert_eq!(line, IrqInfo { argsz: 16, flags: 7, index: LINE, count: 1 });
    assert_eq!(client.irq_info(VECTORS).unwrap().count, VECTOR_COUNT);
    assert_eq!(client.irq_info(NO_IRQ).unwrap().count, 0);
    for index in [IRQS, u32::MAX] {
        assert_eq!(refused(client.irq_info(index)), EINVAL);
    }
    let small = IrqInfo { argsz: 15, ..IrqInfo::default() };
    assert_eq!(refused(client.call(Command::DeviceGetIrqInfo, small.as_bytes(), &[])), EINVAL);
    let long = [small.as_bytes(), &[0]].concat();
    assert_eq!(refused(client.call(Command::DeviceGetIrqInfo, &long, &[])), EINVAL);
}

#[test]
fn unknown_commands_are_refused() {
    let rig = Rig::new();
    let client = rig.client();
    for number in [0u16, 14, 19, 1000, u16::MAX] {
        let header = vfiod_wire::Header { id: 7, command: number, size: 16, flags: 0, error: 0 };
        client.socket().send(header.as_bytes(), &[]).unwrap();
        let reply = client.socket().receive_message().unwrap();
        assert_eq!((reply_errno(&reply), reply.header.command), (ENOSYS, number));
    }
}
