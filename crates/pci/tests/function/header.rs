//! The type 0 header.

use vfiod_pci::{Capability, FunctionSpec, Pin};

use super::rig::{CONFIG, Guest, everything};

#[test]
fn ids_and_class() {
    let guest = Guest::of_everything();
    assert_eq!(guest.config32(0x00), 0x1234_1af4, "device, vendor");
    assert_eq!(guest.config16(0x04), 0, "everything is off");
    assert_eq!(guest.config16(0x06), 0x0010, "there is a capabilities list");
    assert_eq!(guest.config32(0x08), 0x12_34_56_78, "class, revision");
    assert_eq!(guest.config32(0x0c), 0, "header type 0, one function");
    assert_eq!(guest.config32(0x2c), 0x9abc_5678, "subsystem");
    assert_eq!(guest.config32(0x34), 0x40, "first capability");
    assert_eq!(guest.config32(0x3c), 0x100, "pin A");
}

#[test]
fn a_function_without_anything() {
    let guest = Guest::new(FunctionSpec::new(1, 2));
    let config = guest.config();
    assert_eq!(config.len(), 256);
    assert_eq!(config[0x00..0x04], [1, 0, 2, 0]);
    assert_eq!(config[0x0b], 0xff, "no class");
    let rest = config.iter().enumerate().filter(|&(at, _)| at >= 4 && at != 0x0b);
    assert!(rest.clone().all(|(_, byte)| *byte == 0), "no list, no pin, no BAR");
}

#[test]
fn several_functions_use_the_pins_in_turn() {
    for (number, pin) in [(0, 1), (1, 2), (2, 3), (3, 4), (4, 1), (7, 4)] {
        let guest = Guest::multifunction(everything(Capability::PowerManagement), number);
        assert_eq!(guest.config8(0x0e), 0x80, "header type");
        assert_eq!(guest.config8(0x3d), pin, "function {number}");
        guest.file.reset().unwrap();
        assert_eq!((guest.config8(0x0e), guest.config8(0x3d)), (0x80, pin), "after a reset");
    }
    let guest = Guest::multifunction(FunctionSpec::new(1, 2), 1);
    assert_eq!(guest.config8(0x3d), 0, "no pin stays none");
    assert_eq!(Guest::new(FunctionSpec::new(1, 2).pin(Pin::C)).config8(0x3d), 3);
}

#[test]
fn there_is_no_expansion_rom() {
    let guest = Guest::of_everything();
    guest.set_config32(0x30, 0xffff_f800);
    assert_eq!(guest.config32(0x30), 0);
    assert_eq!(guest.file.region(vfiod_core::RegionIndex(6)).unwrap().size, 0);
    assert_eq!(guest.file.region(vfiod_core::RegionIndex(8)).unwrap().size, 0, "nor VGA");
}

#[test]
fn what_software_owns_is_kept() {
    let guest = Guest::of_everything();
    guest.write(CONFIG, 0x3c, &[11]);
    guest.write(CONFIG, 0x0c, &[16]);
    assert_eq!(guest.config8(0x3c), 11, "interrupt line");
    assert_eq!(guest.config8(0x0c), 16, "cache line size");
    guest.set_config16(0x04, 0xffff);
    assert_eq!(guest.config16(0x04), 0x0547, "command");
    guest.set_config16(0x06, 0xffff);
    assert_eq!(guest.config16(0x06), 0x0010, "no error to clear, nothing to set");
}

/// Clients read and write configuration space in any pieces.
#[test]
fn any_piece_of_it() {
    let guest = Guest::of_everything();
    let all = guest.config();
    assert_eq!(all.len(), 4096);
    for len in [1, 2, 3, 4, 5, 7, 8, 13, 64, 255, 1000] {
        for offset in (0..300).chain(4096 - 1010..4096) {
            if offset + len > 4096 {
                continue;
            }
            let mut piece = vec![0xee; len];
            guest.file.read(CONFIG, offset as u64, &mut piece).unwrap();
            assert_eq!(piece, all[offset..offset + len], "{len} bytes at {offset:#x}");
        }
    }
    // Five bytes from the end of a BAR over the next one: bits of each by its own mask.
    guest.write(CONFIG, 0x13, &[0xff; 5]);
    assert_eq!(guest.config32(0x10), 0xff00_0000);
    assert_eq!(guest.config32(0x14), 0xffff_ffc1, "I/O, 64 bytes");
}

#[test]
fn one_access_past_the_end_is_refused() {
    let guest = Guest::of_everything();
    for (offset, len) in [(4095, 2), (4096, 1), (0, 4097), (u64::MAX, 1)] {
        let mut data = vec![0; len];
        let error = guest.file.read(CONFIG, offset, &mut data).unwrap_err();
        assert_eq!(error.errno(), vfiod_core::Errno::INVAL, "{len} bytes at {offset:#x}");
        let error = guest.file.write(CONFIG, offset, &data).unwrap_err();
        assert_eq!(error.errno(), vfiod_core::Errno::INVAL, "{len} bytes at {offset:#x}");
    }
}
