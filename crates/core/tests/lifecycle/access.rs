//! What a file may do with regions, features and doorbells.

use rustix::io::write;
use vfiod_core::region::{Doorbell, SparseArea};
use vfiod_core::{DeviceFlags, Errno, IrqIndex, Region, RegionFlags, RegionIndex};

use crate::rig::{Fault, REGISTERS, Rig, errno, open, spec};

#[test]
fn bounds_and_permissions_are_checked_before_the_device() {
    let rig = Rig::new();
    let mut probe = rig.probe("a");
    let read_only = Region { flags: RegionFlags::READ, ..Region::registers(8) };
    let write_only = Region { flags: RegionFlags::WRITE, ..Region::registers(8) };
    probe.description.regions.extend([Region::absent(), read_only, write_only]);
    let a = rig.add(spec("a"), probe);
    let file = open(&a).unwrap();
    rig.journal.take();
    let at = |region, offset| errno(file.read(RegionIndex(region), offset, &mut [0; 4]));
    assert_eq!(at(4, 0), Errno::INVAL, "no such region");
    assert_eq!(at(u32::MAX, 0), Errno::INVAL);
    assert_eq!(at(1, 0), Errno::INVAL, "absent");
    assert_eq!(at(0, 0xfd), Errno::INVAL, "over the end");
    assert_eq!(at(0, 0x100), Errno::INVAL);
    assert_eq!(at(0, u64::MAX - 1), Errno::INVAL, "over 2^64");
    assert_eq!(at(3, 0), Errno::ACCESS);
    assert_eq!(errno(file.write(RegionIndex(2), 0, &[0])), Errno::ACCESS);
    assert_eq!(errno(file.write(RegionIndex(2), 8, &[0])), Errno::INVAL, "bounds come first");
    assert!(rig.journal.take().is_empty());

    let mut data = [0; 4];
    file.read(REGISTERS, 0xfc, &mut data).unwrap();
    assert_eq!(data, [0xfc; 4]);
    file.write(REGISTERS, 0, &[1, 2]).unwrap();
    assert_eq!(rig.journal.take(), ["a.read 0xfc+4", "a.write 0x0 [1, 2]"]);
    file.read(REGISTERS, 0x100, &mut []).unwrap();
    file.write(REGISTERS, 0, &[]).unwrap();
    assert!(rig.journal.take().is_empty(), "nothing to do");
    rig.journal.fault("a.read", Fault::Fail(Errno::NXIO));
    assert_eq!(errno(file.read(REGISTERS, 0, &mut data)), Errno::NXIO, "what the device says");
    file.read(REGISTERS, 0, &mut data).unwrap();
}

#[test]
fn shared_areas_are_served_from_the_memory() {
    let rig = Rig::new();
    let mut probe = rig.probe("a");
    let area = |offset| SparseArea { offset, size: 0x1000 };
    let shared = vec![area(0x1000), area(0x3000)];
    let context = probe.context.clone();
    probe.description.regions.push(Region { shared, ..Region::registers(0x4000) });
    let a = rig.add(spec("a"), probe);
    let file = open(&a).unwrap();
    rig.journal.take();
    let region = RegionIndex(1);
    let memory = context.lock().unwrap().as_ref().unwrap().shared_memory(1).unwrap();
    file.write(region, 0x1000, &[1, 2, 3, 4]).unwrap();
    file.write(region, 0x1ffc, &[5, 6, 7, 8]).unwrap();
    let mut data = [0; 4];
    memory.read(0x1000, &mut data).unwrap();
    assert_eq!(data, [1, 2, 3, 4]);
    file.read(region, 0x1ffc, &mut data).unwrap();
    assert_eq!(data, [5, 6, 7, 8]);
    assert!(rig.journal.take().is_empty(), "the device was not bothered");
    assert!(file.shared(region, 0x1000, 0x1000, RegionFlags::READ).unwrap().is_some());

    // Not within one area: the device's business.
    for offset in [0, 0xffe, 0x1ffe, 0x2000, 0x2ffe] {
        file.read(region, offset, &mut data).unwrap();
        assert_eq!(rig.journal.take().len(), 1, "{offset:#x}");
        assert!(file.shared(region, offset, 4, RegionFlags::READ).unwrap().is_none());
    }
    assert_eq!(errno(file.shared(region, 0x4000, 1, RegionFlags::READ)), Errno::INVAL);
    assert_eq!(errno(file.read(region, 0x3ffe, &mut data)), Errno::INVAL);

    rig.journal.fault("a.read", Fault::Panic);
    assert_eq!(errno(file.read(REGISTERS, 0, &mut data)), Errno::IO);
    assert_eq!(errno(file.read(region, 0x1000, &mut data)), Errno::IO, "the memory as well");
    file.reset().unwrap();
    drop(a);
    assert_eq!(errno(file.read(region, 0x1000, &mut data)), Errno::NODEV);
}

#[test]
fn reset_of_a_device_without_one_fails_with_einval() {
    let rig = Rig::new();
    let mut probe = rig.probe("a");
    probe.description.flags.remove(DeviceFlags::RESET);
    let a = rig.add(spec("a"), probe);
    let file = open(&a).unwrap();
    rig.journal.take();
    assert_eq!(errno(file.reset()), Errno::INVAL);
    assert!(rig.journal.take().is_empty());
    let b = rig.single("b");
    let file = open(&b).unwrap();
    rig.journal.take();
    file.reset().unwrap();
    assert_eq!(rig.journal.take(), ["b.reset Client"]);
}

#[test]
fn features_are_handed_to_the_device() {
    let rig = Rig::new();
    let a = rig.single("a");
    let file = open(&a).unwrap();
    assert_eq!(file.feature_probe(1).unwrap(), (true, false));
    assert_eq!(file.feature_probe(2).unwrap(), (false, false));
    assert_eq!(file.feature_get(1, &[9]).unwrap(), [7]);
    assert_eq!(errno(file.feature_set(1, &[])), Errno::NOTTY);
    assert_eq!(file.irq(IrqIndex(4)).unwrap().count, 1);
    assert_eq!(errno(file.irq(IrqIndex(5))), Errno::INVAL);
}

#[test]
fn doorbell_of_a_device_without_tasks_is_a_write() {
    let rig = Rig::new();
    let mut probe = rig.probe("a");
    probe.description.regions[0].doorbells = vec![
        Doorbell::message(0x30, 4),
        Doorbell::eventfd(0x10, 2).matching(0x1234),
        Doorbell::eventfd(0x20, 0).matching(5),
    ];
    let a = rig.add(spec("a"), probe);
    let file = open(&a).unwrap();
    rig.journal.take();
    assert!(!file.ring(REGISTERS, 0).unwrap(), "no eventfds yet");
    let fds = file.doorbells(REGISTERS).unwrap();
    let again = file.doorbells(REGISTERS).unwrap();
    assert_eq!((fds.len(), again.len()), (2, 2), "the first is rung by message only");
    assert!(!file.ring(REGISTERS, 0).unwrap());
    write(&fds[0], &1u64.to_ne_bytes()).unwrap();
    assert!(file.ring(REGISTERS, 0).unwrap());
    assert!(!file.ring(REGISTERS, 0).unwrap(), "rung once");
    write(&again[1], &5u64.to_ne_bytes()).unwrap();
    assert!(file.ring(REGISTERS, 1).unwrap(), "duplicates are the same eventfd");
    assert_eq!(rig.journal.take(), ["a.write 0x10 [34, 12]", "a.write 0x20 [5, 0, 0, 0]"]);
    assert_eq!(errno(file.ring(REGISTERS, 2)), Errno::INVAL);
    assert_eq!(errno(file.ring(RegionIndex(9), 0)), Errno::INVAL);
    assert_eq!(errno(file.doorbells(RegionIndex(9))), Errno::INVAL);
}
