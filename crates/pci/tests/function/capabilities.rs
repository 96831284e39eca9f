//! Capabilities, walked as Linux does.

use vfiod_core::{Errno, RegionIndex};
use vfiod_pci::{Bar, Capability, Cx, Function, FunctionSpec, Model, Stateless};

use super::rig::{CONFIG, EXPRESS, Guest, MSI, MSIX, POWER, VENDOR, everything};

/// `__pci_find_next_cap_ttl`: (offset, id) in the order of the chain.
fn walk(guest: &Guest) -> Vec<(u64, u8)> {
    let mut found = Vec::new();
    if guest.config16(0x06) & 0x10 == 0 {
        return found;
    }
    let mut next = u64::from(guest.config8(0x34));
    for _ in 0..48 {
        if next < 0x40 {
            break;
        }
        next &= !3;
        let entry = guest.config16(next);
        found.push((next, entry as u8));
        next = u64::from(entry >> 8);
    }
    assert_eq!(next, 0, "the chain ends");
    found
}

/// `pci_find_next_ext_capability`: (offset, id, version).
fn walk_extended(guest: &Guest) -> Vec<(u64, u16, u8)> {
    let mut found = Vec::new();
    let mut next = 0x100;
    for _ in 0..(4096 - 256) / 8 {
        let header = guest.config32(next);
        if header == 0 {
            break;
        }
        found.push((next, header as u16, (header >> 16 & 15) as u8));
        next = u64::from(header >> 20);
        if next < 0x100 {
            break;
        }
    }
    found
}

fn alone(capability: Capability) -> Guest {
    Guest::new(FunctionSpec::new(1, 2).bar(0, Bar::memory32(0x1000)).capability(capability))
}

#[test]
fn the_chain() {
    let guest = Guest::of_everything();
    assert_eq!(
        walk(&guest),
        [(POWER, 0x01), (EXPRESS, 0x10), (MSI, 0x05), (MSIX, 0x11), (VENDOR, 0x09)]
    );
    assert_eq!(walk_extended(&guest), [(0x100, 0x0003, 1), (0x10c, 0x000b, 1)]);
    assert_eq!(walk(&Guest::new(FunctionSpec::new(1, 2))), []);
    assert_eq!(walk_extended(&alone(Capability::Express)), []);
}

#[test]
fn power_management() {
    let guest = alone(Capability::PowerManagement);
    assert_eq!(guest.config32(0x40), 0x0003_0001);
    assert_eq!(guest.config32(0x44), 0x0000_0008, "D0, no soft reset");
    let guest = alone(Capability::PowerManagementSoftReset);
    assert_eq!(guest.config32(0x44), 0, "D0, soft reset");
}

#[test]
fn express_endpoint() {
    let guest = Guest::of_everything();
    assert_eq!(guest.config16(EXPRESS + 2), 0x0002, "version 2, endpoint");
    let device = guest.config32(EXPRESS + 4);
    assert_eq!(device >> 28 & 1, 1, "function-level reset");
    assert_eq!(device >> 15 & 1, 1, "role-based error reporting is required");
    assert_eq!(device & 7, 1, "256-byte payloads");
    assert_eq!(guest.config16(EXPRESS + 8), 0x2810, "512-byte reads, no snoop, relaxed");
    assert_eq!(guest.config32(EXPRESS + 0x0c) & 0x3ff, 0x11, "2.5 GT/s, one lane");
    assert_eq!(guest.config16(EXPRESS + 0x12), 0x11, "which is what the link runs at");
    assert_eq!(guest.config32(EXPRESS + 0x2c), 2);
    guest.set_config16(EXPRESS + 8, 0x7fff);
    assert_eq!(guest.config16(EXPRESS + 8), 0x79ff, "no phantom functions, no auxiliary power");
}

#[test]
fn integrated_endpoint_has_no_link() {
    let guest = Guest::integrated(everything(Capability::PowerManagement));
    let link = || -> Vec<u8> {
        let all = guest.config();
        let express = &all[EXPRESS as usize..][..0x3c];
        express[0x0c..0x14].iter().chain(&express[0x2c..0x34]).copied().collect()
    };
    for _ in 0..2 {
        assert_eq!(guest.config16(EXPRESS + 2), 0x0092, "version 2, integrated");
        assert_eq!(guest.config32(EXPRESS + 4) >> 28 & 1, 1, "function-level reset");
        assert_eq!(link(), [0; 16]);
        guest.write(CONFIG, EXPRESS + 0x0c, &[0xff; 8]);
        guest.write(CONFIG, EXPRESS + 0x2c, &[0xff; 8]);
        assert_eq!(link(), [0; 16]);
        guest.file.reset().unwrap();
    }
    let plain = Guest::integrated(FunctionSpec::new(1, 2));
    assert_eq!(walk(&plain), [], "without PCI Express there is nothing to change");
}

#[test]
fn msi() {
    for (vectors, capable) in [(1, 0), (2, 1), (4, 2), (8, 3), (16, 4), (32, 5)] {
        let guest = alone(Capability::Msi { vectors });
        assert_eq!(guest.config16(0x42), 0x0180 | capable << 1, "64 bits, masks, {vectors}");
        for offset in (0x42..0x58).step_by(2) {
            guest.set_config16(offset, 0xffff);
        }
        assert_eq!(guest.config16(0x42), 0x01f1 | capable << 1);
        assert_eq!(guest.config32(0x44), 0xffff_fffc, "address");
        assert_eq!(guest.config32(0x48), 0xffff_ffff);
        assert_eq!(guest.config32(0x4c), 0x0000_ffff, "data");
        assert_eq!(guest.config32(0x50), (1u64.wrapping_shl(vectors.into()) - 1) as u32, "mask");
        assert_eq!(guest.config32(0x54), 0, "pending bits are read-only");
    }
}

#[test]
fn msix() {
    let guest = Guest::of_everything();
    assert_eq!(guest.config16(MSIX + 2), 69, "vectors, less one");
    assert_eq!(guest.config32(MSIX + 4), 0x1004, "table");
    assert_eq!(guest.config32(MSIX + 8), 0x2004, "pending bits");
    guest.write(CONFIG, MSIX, &[0xff; 12]);
    assert_eq!(guest.config16(MSIX + 2), 0xc000 | 69);
    assert_eq!(guest.config32(MSIX + 4), 0x1004);
    assert_eq!(guest.config32(MSIX + 8), 0x2004);
}

#[test]
fn vendor_and_serial_number() {
    let guest = Guest::of_everything();
    assert_eq!(guest.read(CONFIG, VENDOR), [0x09, 0, 6, 0xaa, 0xbb, 0xcc]);
    assert_eq!(guest.read(CONFIG, 0x104), 0x0011_2233_4455_6677_u64.to_le_bytes());
    assert_eq!(guest.config32(0x110), 0x00b3_4242, "11 bytes, revision 3");
    assert_eq!(guest.read(CONFIG, 0x114), [1, 2, 3]);
    assert!(guest.config()[0x118..].iter().all(|byte| *byte == 0));
}

#[test]
fn the_most_that_fits() {
    struct Full(Vec<Capability>);
    impl Model for Full {
        type State = Stateless;

        fn spec(&self) -> FunctionSpec {
            self.0.iter().cloned().fold(FunctionSpec::new(1, 2), FunctionSpec::capability)
        }
        fn read(&mut self, _cx: &Cx<Self>, _bar: u8, _offset: u64, _data: &mut [u8]) {}
        fn write(&mut self, _cx: &Cx<Self>, _bar: u8, _offset: u64, _data: &[u8]) {}
        fn reset(&mut self, _cx: &Cx<Self>) {}
    }
    let errno = |capabilities: &[Capability]| {
        Function::new(Full(capabilities.to_vec())).err().map(|error| error.errno())
    };
    let vendor = |len| Capability::Vendor(vec![0; len]);
    let extended = |len| Capability::VendorExtended { id: 1, revision: 0, data: vec![0; len] };
    let serial = Capability::SerialNumber(0);
    // 192 bytes behind the header, of which the PCI Express capability takes 60.
    assert_eq!(errno(&[vendor(189)]), None);
    assert_eq!(errno(&[vendor(190)]), Some(Errno::NOSPC));
    assert_eq!(errno(&[Capability::Express, vendor(129)]), None);
    assert_eq!(errno(&[Capability::Express, vendor(130)]), Some(Errno::NOSPC));
    // 3,840 bytes of extended space, of which a serial number takes 12.
    let express = Capability::Express;
    assert_eq!(errno(&[express.clone(), extended(3832)]), None);
    assert_eq!(errno(&[express.clone(), extended(3833)]), Some(Errno::NOSPC));
    assert_eq!(errno(&[express.clone(), extended(3820), serial.clone()]), None);
    assert_eq!(errno(&[express, extended(3821), serial]), Some(Errno::NOSPC));
}

#[test]
fn regions_by_the_numbers_of_vfio() {
    let guest = Guest::of_everything();
    let sizes: Vec<_> =
        (0..9).map(|index| guest.file.region(RegionIndex(index)).unwrap().size).collect();
    assert_eq!(sizes, [0x1000, 0x40, 1 << 33, 0, 0x4000, 0, 0, 4096, 0]);
    let irqs: Vec<_> =
        (0..5).map(|index| guest.file.irq(vfiod_core::IrqIndex(index)).unwrap().count).collect();
    assert_eq!(irqs, [1, 4, 70, 1, 1]);
    assert_eq!(guest.file.irq(vfiod_core::IrqIndex(5)).unwrap_err().errno(), Errno::INVAL);
}
