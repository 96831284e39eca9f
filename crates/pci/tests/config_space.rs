//! Configuration space as a guest sees it, through the core's own files.

use proptest::prelude::*;
use vfiod_core::{DeviceSpec, File, Owner, RegionIndex, Registration, Registry};
use vfiod_pci::{Bar, BarKind, Capability, Cx, Function, FunctionSpec, Model, Pin, Stateless};

const CONFIG: RegionIndex = RegionIndex(7);

/// Counts resets.
struct Subject {
    resets: std::sync::Arc<std::sync::atomic::AtomicU32>,
}

fn spec() -> FunctionSpec {
    FunctionSpec::new(0x1234, 0xabcd)
        .class(0x01_08_02)
        .revision(3)
        .subsystem(0x5678, 0x9abc)
        .pin(Pin::A)
        .bar(0, Bar::new(BarKind::Memory64 { prefetchable: true }, 1 << 14))
        .bar(2, Bar::io(32))
        .bar(3, Bar::memory32(4096))
        .capability(Capability::PowerManagement)
        .capability(Capability::Msi { vectors: 4 })
        .capability(Capability::Msix { vectors: 3, table: (3, 0), pba: (3, 0x800) })
        .capability(Capability::Express)
        .capability(Capability::Vendor(vec![1, 2, 3]))
        .capability(Capability::SerialNumber(0x1122_3344_5566_7788))
        .capability(Capability::VendorExtended { id: 7, revision: 1, data: vec![9; 8] })
}

impl Model for Subject {
    type State = Stateless;

    fn spec(&self) -> FunctionSpec {
        spec()
    }
    fn read(&mut self, _cx: &Cx<Self>, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0x77);
    }
    fn write(&mut self, _cx: &Cx<Self>, _bar: u8, _offset: u64, _data: &[u8]) {}
    fn reset(&mut self, _cx: &Cx<Self>) {
        self.resets.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    }
}

struct Guest {
    file: File,
    resets: std::sync::Arc<std::sync::atomic::AtomicU32>,
    _registration: Registration,
}

impl Guest {
    fn new() -> Self {
        let resets = std::sync::Arc::<std::sync::atomic::AtomicU32>::default();
        let function = Function::new(Subject { resets: resets.clone() }).unwrap();
        let spec = DeviceSpec { name: "subject".to_owned(), ..DeviceSpec::default() };
        let registration = Registry::new().register(spec, Box::new(function)).unwrap();
        let file = registration.device().open(Owner::in_process("guest")).unwrap();
        Self { file, resets, _registration: registration }
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.file.read(CONFIG, offset, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u64, value: u32) {
        self.file.write(CONFIG, offset, &value.to_le_bytes()).unwrap();
    }

    fn all(&self) -> Vec<u8> {
        let mut data = vec![0; 4096];
        self.file.read(CONFIG, 0, &mut data).unwrap();
        data
    }

    /// Walks the chain as Linux does.
    fn capability(&self, id: u8) -> u64 {
        let mut at = u64::from(self.read(0x34) as u8);
        while at != 0 {
            let header = self.read(at);
            if header as u8 == id {
                return at;
            }
            at = u64::from((header >> 8) as u8);
        }
        panic!("no capability {id:#x}");
    }

    fn extended(&self, id: u16) -> u64 {
        let mut at = 0x100;
        while at != 0 {
            let header = self.read(at);
            if header as u16 == id {
                return at;
            }
            at = u64::from(header >> 20);
        }
        panic!("no extended capability {id:#x}");
    }
}

#[test]
fn the_header_says_who_it_is() {
    let guest = Guest::new();
    assert_eq!(guest.read(0x00), 0xabcd_1234);
    assert_eq!(guest.read(0x08), 0x0108_0203);
    assert_eq!(guest.read(0x2c), 0x9abc_5678);
    assert_eq!(guest.read(0x3c) >> 8 & 0xff, 1, "INTA");
    assert_eq!(guest.read(0x30), 0, "no ROM");
    assert_ne!(guest.read(0x04) >> 16 & 0x10, 0, "capabilities list");
}

#[test]
fn bars_tell_their_sizes_and_kinds() {
    let guest = Guest::new();
    for offset in (0x10..0x28).step_by(4) {
        guest.write(offset, u32::MAX);
    }
    let sized: Vec<_> = (0x10..0x28).step_by(4).map(|offset| guest.read(offset)).collect();
    assert_eq!(sized, [0xffff_c00c, 0xffff_ffff, 0xffff_ffe1, 0xffff_f000, 0, 0]);
    guest.write(0x1c, 0xfea0_1234);
    assert_eq!(guest.read(0x1c), 0xfea0_1000);
}

#[test]
fn every_capability_is_found_and_right() {
    let guest = Guest::new();
    let pm = guest.capability(0x01);
    assert_eq!(guest.read(pm) >> 16 & 7, 3, "version 3");
    let msi = guest.capability(0x05);
    assert_eq!(guest.read(msi) >> 16, 0x0180 | 2 << 1, "64-bit, maskable, 4 vectors");
    let msix = guest.capability(0x11);
    assert_eq!(guest.read(msix) >> 16, 2, "3 vectors");
    assert_eq!((guest.read(msix + 4), guest.read(msix + 8)), (3, 0x803));
    let express = guest.capability(0x10);
    assert_eq!(guest.read(express) >> 16, 2, "version 2, endpoint");
    assert_ne!(guest.read(express + 4) & 1 << 28, 0, "function-level reset");
    let vendor = guest.capability(0x09);
    assert_eq!(guest.read(vendor) >> 16, 6 | 1 << 8, "length, first byte");
    let serial = guest.extended(3);
    assert_eq!((guest.read(serial + 4), guest.read(serial + 8)), (0x5566_7788, 0x1122_3344));
    let vsec = guest.extended(0xb);
    assert_eq!(guest.read(vsec + 4), 7 | 1 << 16 | 16 << 20);
}

#[test]
fn a_function_level_reset_is_a_write_to_device_control() {
    let guest = Guest::new();
    let express = guest.capability(0x10);
    let before = guest.all();
    guest.write(0x04, 7);
    guest.write(0x10, 0xffff_0000);
    let resets = guest.resets.load(std::sync::atomic::Ordering::SeqCst);
    guest.file.write(CONFIG, express + 8, &0x8000u16.to_le_bytes()).unwrap();
    assert_eq!(guest.resets.load(std::sync::atomic::Ordering::SeqCst), resets + 1);
    assert!(guest.all() == before, "as after power-on");
    // The other bits of the register are no reset.
    guest.file.write(CONFIG, express + 8, &0x7fffu16.to_le_bytes()).unwrap();
    assert_eq!(guest.resets.load(std::sync::atomic::Ordering::SeqCst), resets + 1);
}

#[test]
fn the_msix_table_is_kept_and_the_pending_bits_cannot_be_written() {
    let guest = Guest::new();
    let bar = RegionIndex(3);
    let mut entry = [0; 16];
    guest.file.read(bar, 16, &mut entry).unwrap();
    assert_eq!(entry[12], 1, "masked at power-on");
    guest.file.write(bar, 16, &[0xaa; 16]).unwrap();
    guest.file.read(bar, 16, &mut entry).unwrap();
    assert_eq!(entry[..12], [0xaa; 12]);
    assert_eq!(entry[12..], [0, 0, 0, 0], "only the mask bit is there");
    guest.file.write(bar, 0x800, &[0xff; 8]).unwrap();
    let mut pending = [0; 8];
    guest.file.read(bar, 0x800, &mut pending).unwrap();
    assert_eq!(pending, [0; 8]);
    // Behind them it is the model.
    guest.file.read(bar, 0x400, &mut pending).unwrap();
    assert_eq!(pending, [0x77; 8]);
}

#[test]
fn specs_that_contradict_themselves_are_refused() {
    let refused = |spec: FunctionSpec| {
        struct Only(FunctionSpec);
        impl Model for Only {
            type State = Stateless;

            fn spec(&self) -> FunctionSpec {
                self.0.clone()
            }
            fn read(&mut self, _cx: &Cx<Self>, _bar: u8, _offset: u64, _data: &mut [u8]) {}
            fn write(&mut self, _cx: &Cx<Self>, _bar: u8, _offset: u64, _data: &[u8]) {}
            fn reset(&mut self, _cx: &Cx<Self>) {}
        }
        Function::new(Only(spec)).err().map(|error| error.to_string())
    };
    let base = || FunctionSpec::new(1, 1);
    for (spec, says) in [
        (base().class(0x100_0000), "class"),
        (base().bar(6, Bar::memory32(16)), "BAR 6"),
        (base().bar(0, Bar::memory32(24)), "power of two"),
        (base().bar(0, Bar::io(512)), "BAR 0"),
        (base().bar(5, Bar::memory64(16)), "BAR 5"),
        (base().bar(0, Bar::memory64(16)).bar(1, Bar::io(4)), "BAR 0"),
        (base().capability(Capability::Msi { vectors: 3 }), "MSI with 3"),
        (base().capability(Capability::Msix { vectors: 1, table: (0, 0), pba: (0, 64) }), "MSI-X"),
        (base().capability(Capability::SerialNumber(1)), "PCI Express"),
        (base().capability(Capability::Express).capability(Capability::Express), "twice"),
        (base().capability(Capability::Vendor(vec![0; 200])), "do not fit"),
    ] {
        let error = refused(spec);
        assert!(error.as_ref().is_some_and(|error| error.contains(says)), "{says}: {error:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_write_changes_what_cannot_be_written(
        writes in proptest::collection::vec((0u64..0x140, proptest::collection::vec(any::<u8>(), 1..9)), 1..60)
    ) {
        let guest = Guest::new();
        let before = guest.all();
        for (offset, data) in writes {
            guest.file.write(CONFIG, offset, &data).unwrap();
        }
        let after = guest.all();
        for range in [0..4, 8..12, 0x0e..0x10, 0x18..0x19, 0x20..0x3c, 0x3d..0x42, 0x100..0x120] {
            if range.start == 0x18 {
                prop_assert_eq!(after[0x18] & 3, before[0x18] & 3, "kind of BAR 2");
            } else {
                prop_assert_eq!(&after[range.clone()], &before[range.clone()], "{:#x?}", range);
            }
        }
    }
}
