//! Specs that contradict themselves are refused, with words that say where.

use vfiod_core::Errno;
use vfiod_core::region::{Doorbell, SparseArea};
use vfiod_pci::{Bar, Capability, Cx, Function, FunctionSpec, Model, Stateless};

struct Blank(FunctionSpec);

impl Model for Blank {
    type State = Stateless;

    fn spec(&self) -> FunctionSpec {
        self.0.clone()
    }
    fn read(&mut self, _cx: &Cx<Self>, _bar: u8, _offset: u64, _data: &mut [u8]) {}
    fn write(&mut self, _cx: &Cx<Self>, _bar: u8, _offset: u64, _data: &[u8]) {}
    fn reset(&mut self, _cx: &Cx<Self>) {}
}

#[track_caller]
fn refused(spec: FunctionSpec, words: &str) {
    let Err(error) = Function::new(Blank(spec)) else { panic!("accepted, despite: {words}") };
    assert_eq!(error.errno(), Errno::INVAL, "{error}");
    assert!(error.to_string().contains(words), "`{error}` does not say `{words}`");
}

fn plain() -> FunctionSpec {
    FunctionSpec::new(1, 2).bar(0, Bar::memory32(0x1000))
}

#[test]
fn bars() {
    refused(plain().bar(6, Bar::io(16)), "BAR 6; there are 0 to 5");
    refused(plain().bar(1, Bar::memory32(0)), "BAR 1: 0 bytes");
    refused(plain().bar(1, Bar::memory32(8)), "BAR 1: 8 bytes");
    refused(plain().bar(1, Bar::memory32(48)), "BAR 1: 48 bytes");
    refused(plain().bar(1, Bar::memory32(1 << 32)), "BAR 1: 4294967296 bytes");
    refused(plain().bar(1, Bar::memory64(1 << 63)), "BAR 1:");
    refused(plain().bar(1, Bar::io(2)), "BAR 1: 2 bytes");
    refused(plain().bar(1, Bar::io(512)), "BAR 1: 512 bytes");
    let wide = || plain().bar(1, Bar::memory64(0x1000));
    refused(wide().bar(2, Bar::io(16)), "BAR 1: 64 bits wide");
    refused(plain().bar(5, Bar::memory64(0x1000)), "BAR 5: 64 bits wide");
    refused(plain().class(0x0100_0000), "class 0x1000000");
}

#[test]
fn message_signalled_interrupts() {
    for vectors in [0, 3, 33, 64, 255] {
        refused(plain().capability(Capability::Msi { vectors }), "MSI with");
    }
    let msix = |vectors, table, pba| Capability::Msix { vectors, table, pba };
    for vectors in [0, 2049] {
        refused(plain().capability(msix(vectors, (0, 0), (0, 0x800))), "MSI-X with");
    }
    for (table, pba, words) in [
        ((1, 0), (0, 0), "MSI-X table: 64 bytes at 0x0 do not fit BAR 1"),
        ((7, 0), (0, 0), "do not fit BAR 7"),
        ((0, 4), (0, 0x800), "MSI-X table"),
        ((0, 0xfc8), (0, 0), "MSI-X table"),
        ((0, 0), (0, 0x1000), "MSI-X pending bits: 8 bytes at 0x1000 do not fit BAR 0"),
        ((0, 0xffff_fff8), (0, 0), "MSI-X table"),
        ((0, 0), (0, 0x38), "overlap"),
        ((0, 0x10), (0, 0x10), "overlap"),
    ] {
        refused(plain().capability(msix(4, table, pba)), words);
    }
    Function::new(Blank(plain().capability(msix(4, (0, 8), (0, 0x48))))).unwrap();
}

#[test]
fn msix_in_memory_that_clients_map() {
    let areas = vec![SparseArea { offset: 0x1000, size: 0x1000 }];
    let bar = Bar::memory32(0x4000).shared(areas);
    let with = |table, pba| {
        FunctionSpec::new(1, 2).bar(2, bar.clone()).capability(Capability::Msix {
            vectors: 2,
            table: (2, table),
            pba: (2, pba),
        })
    };
    refused(with(0x1000, 0x2000), "MSI-X table: in a part of BAR 2 that is memory");
    refused(with(0x0ff8, 0x2000), "MSI-X table");
    refused(with(0x2000, 0x1ff8), "MSI-X pending bits");
    Function::new(Blank(with(0x0fe0, 0x2000))).unwrap();
}

#[test]
fn msix_that_hides_a_doorbell() {
    let with = |doorbell| {
        let bar = Bar::memory32(0x1000).doorbell(Doorbell::message(doorbell, 4));
        let msix = Capability::Msix { vectors: 2, table: (0, 0x100), pba: (0, 0x200) };
        FunctionSpec::new(1, 2).bar(0, bar).capability(msix)
    };
    refused(with(0x11c), "MSI-X table: hides a doorbell at 0x11c of BAR 0");
    refused(with(0x200), "MSI-X pending bits: hides a doorbell");
    Function::new(Blank(with(0x120))).unwrap();
}

#[test]
fn capabilities_that_there_can_be_one_of() {
    for (a, b, words) in [
        (Capability::Express, Capability::Express, "PCI Express capability twice"),
        (Capability::Msi { vectors: 1 }, Capability::Msi { vectors: 2 }, "MSI capability twice"),
        (
            Capability::PowerManagement,
            Capability::PowerManagementSoftReset,
            "power management capability twice",
        ),
    ] {
        refused(plain().capability(a).capability(b), words);
    }
    let vendor = Capability::Vendor(vec![1]);
    Function::new(Blank(plain().capability(vendor.clone()).capability(vendor))).unwrap();
}

#[test]
fn vendors_own() {
    let extended =
        |revision, len| Capability::VendorExtended { id: 1, revision, data: vec![0; len] };
    let express = || plain().capability(Capability::Express);
    refused(plain().capability(Capability::Vendor(vec![0; 253])), "253 bytes");
    refused(express().capability(extended(0, 4088)), "4088 bytes");
    refused(express().capability(extended(16, 0)), "revision 16");
    refused(plain().capability(extended(0, 4)), "needs the PCI Express one");
    refused(plain().capability(Capability::SerialNumber(1)), "needs the PCI Express one");
}
