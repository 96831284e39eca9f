//! Descriptions that contradict themselves are refused at registration.

use vfiod_core::region::{Doorbell, SparseArea};
use vfiod_core::{Errno, Region, RegionFlags};

use crate::rig::{Rig, errno, spec};

fn accepted(region: Region) -> bool {
    let rig = Rig::new();
    let mut probe = rig.probe("a");
    probe.description.regions = vec![Region::absent(), region];
    match rig.registry.register(spec("a"), Box::new(probe)) {
        Ok(_) => true,
        refused => {
            assert_eq!(errno(refused), Errno::INVAL);
            assert!(!rig.journal.take().contains(&"a.init".to_owned()), "refused before init");
            false
        }
    }
}

fn areas(areas: &[(u64, u64)]) -> bool {
    let shared = areas.iter().map(|&(offset, size)| SparseArea { offset, size }).collect();
    accepted(Region { shared, ..Region::registers(0x8000) })
}

#[test]
fn sparse_areas_must_be_of_pages_ascending_and_disjoint() {
    assert!(areas(&[]));
    assert!(areas(&[(0, 0x8000)]));
    assert!(areas(&[(0x1000, 0x1000), (0x2000, 0x1000), (0x7000, 0x1000)]));
    assert!(!areas(&[(0x800, 0x1000)]), "offset not of pages");
    assert!(!areas(&[(0, 0x800)]), "size not of pages");
    assert!(!areas(&[(0, 0)]), "empty");
    assert!(!areas(&[(0x2000, 0x1000), (0x1000, 0x1000)]), "descending");
    assert!(!areas(&[(0x1000, 0x2000), (0x2000, 0x1000)]), "overlapping");
    assert!(!areas(&[(0x7000, 0x2000)]), "over the region's end");
    assert!(!areas(&[(0x1000, 0xffff_ffff_ffff_f000)]), "over 2^64");
    assert!(accepted(Region::memory(0x1000)));
    assert!(accepted(Region::memory(1 << 40)));
    assert!(!accepted(Region::memory(1 << 41)), "over the room of a region in the file");
}

#[test]
fn doorbells_must_lie_in_a_writable_region() {
    let bell = |offset, size, datamatch| {
        let doorbells = vec![Doorbell { datamatch, ..Doorbell::message(offset, size) }];
        accepted(Region { doorbells, ..Region::registers(0x100) })
    };
    assert!(bell(0, 4, None));
    assert!(bell(0xfc, 0, None));
    assert!(bell(0xf8, 8, Some(u64::MAX)));
    assert!(bell(0xff, 1, Some(0xff)));
    assert!(!bell(0, 3, None), "no such size");
    assert!(!bell(0xfd, 4, None), "over the end");
    assert!(!bell(0xfd, 0, None), "any size is 4");
    assert!(!bell(u64::MAX, 1, None), "over 2^64");
    assert!(!bell(0, 1, Some(0x100)), "a value that cannot be written");
    assert!(!bell(0, 0, Some(1 << 32)));
    let doorbells = vec![Doorbell::message(0, 4)];
    let read_only = Region { flags: RegionFlags::READ, doorbells, ..Region::registers(0x100) };
    assert!(!accepted(read_only));
}

#[test]
fn eventfd_without_datamatch_is_refused_for_a_device_that_is_no_worker() {
    let bell = |bell| accepted(Region { doorbells: vec![bell], ..Region::registers(0x100) });
    assert!(bell(Doorbell::eventfd(0, 4).matching(7)));
    assert!(bell(Doorbell::message(0, 4)));
    assert!(!bell(Doorbell::eventfd(0, 4)));
}
