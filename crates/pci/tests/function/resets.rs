//! Resets, the power states, and what they hold back.

use vfiod_core::dma::Perm;
use vfiod_core::region::{Doorbell, SparseArea};
use vfiod_core::{Errno, RegionIndex};
use vfiod_pci::irq_index::{self, INTX};
use vfiod_pci::{Bar, Capability, FunctionSpec};

use super::rig::{CONFIG, EXPRESS, Guest, MSI, MSIX, POWER, TABLE, everything, taken};

const COMMAND: u64 = 0x04;
const BUS_MASTER: u16 = 1 << 2;
const DEVICE_CONTROL: u64 = EXPRESS + 8;
const INITIATE_FLR: u16 = 1 << 15;
const POWER_CONTROL: u64 = POWER + 4;
const D3_HOT: u16 = 3;

/// Changes everything that can be changed.
fn disturb(guest: &Guest) {
    guest.set_config16(COMMAND, 0xffff);
    guest.write(CONFIG, 0x10, &[0xff; 24]);
    guest.write(CONFIG, 0x3c, &[0xff]);
    guest.set_config16(DEVICE_CONTROL, 0x0070);
    guest.write(CONFIG, MSI + 2, &[0xff; 20]);
    guest.write(CONFIG, MSIX + 3, &[0xc0]);
}

fn resets(guest: &Guest) -> u32 {
    std::mem::take(&mut guest.seen().resets)
}

/// What must hold after any reset of a function that was disturbed.
fn must_be_as_new(guest: &Guest, power_on: &[u8]) {
    let now = guest.config();
    let differs = now.iter().zip(power_on).position(|(now, then)| now != then);
    assert_eq!(differs, None, "offset of a byte that was not reset");
    assert!(!guest.dma().bus_master());
}

#[test]
fn function_level_reset() {
    let guest = Guest::of_everything();
    let power_on = guest.config();
    resets(&guest);
    let whole = {
        let mut capability = [0; 12];
        capability[8..10].copy_from_slice(&INITIATE_FLR.to_le_bytes());
        capability
    };
    for (what, offset, data) in [
        ("16 bits", DEVICE_CONTROL, &INITIATE_FLR.to_le_bytes()[..]),
        ("the upper byte", DEVICE_CONTROL + 1, &[0x80]),
        ("32 bits", DEVICE_CONTROL, &[0, 0x80, 0, 0]),
        ("with other bits", DEVICE_CONTROL, &[0xff, 0xff]),
        ("unaligned", DEVICE_CONTROL - 1, &[0, 0, 0x80]),
        ("the capability", EXPRESS, &whole),
    ] {
        disturb(&guest);
        assert_eq!(resets(&guest), 0, "{what}: not yet");
        guest.write(CONFIG, offset, data);
        assert_eq!(resets(&guest), 1, "{what}");
        must_be_as_new(&guest, &power_on);
        assert_eq!(guest.config16(DEVICE_CONTROL) & INITIATE_FLR, 0, "{what}: reads as 0");
    }
    for data in [[0xff, 0x7f], [0, 0]] {
        guest.write(CONFIG, DEVICE_CONTROL, &data);
    }
    guest.write(CONFIG, DEVICE_CONTROL + 2, &[0x80, 0x80]);
    assert_eq!(resets(&guest), 0, "nothing else resets");
}

#[test]
fn without_express_there_is_no_such_bit() {
    let vendor = Capability::Vendor(vec![0; 60]);
    let guest = Guest::new(FunctionSpec::new(1, 2).capability(vendor));
    resets(&guest);
    for offset in 0..256 {
        guest.write(CONFIG, offset, &[0xff]);
    }
    assert_eq!(resets(&guest), 0);
}

#[test]
fn a_clients_reset() {
    let guest = Guest::of_everything();
    let power_on = guest.config();
    resets(&guest);
    disturb(&guest);
    guest.file.reset().unwrap();
    assert_eq!(resets(&guest), 1);
    must_be_as_new(&guest, &power_on);
}

#[test]
fn levels_masks_and_pending_bits_go_and_eventfds_stay() {
    for what in ["by the client", "function-level"] {
        let reset = |guest: &Guest| match what {
            "by the client" => guest.file.reset().unwrap(),
            _ => guest.set_config16(DEVICE_CONTROL, INITIATE_FLR),
        };
        let guest = Guest::of_everything();
        let interrupts = guest.interrupts();
        let pin = guest.listen(INTX, 1);
        interrupts.set(0, true);
        interrupts.set(3, true);
        assert_eq!(taken(&pin), [1]);
        reset(&guest);
        assert_eq!(guest.config16(0x06) & 8, 0, "{what}: the level");
        guest.unmask(INTX);
        assert_eq!(taken(&pin), [0], "{what}: the level");
        guest.set_config16(COMMAND, 1 << 10);
        reset(&guest);
        interrupts.set(0, true);
        assert_eq!(taken(&pin), [1], "{what}: the command register's mask");

        let msi = guest.listen(irq_index::MSI, 4);
        guest.write(CONFIG, MSI + 0x10, &[0xf]);
        interrupts.trigger(2);
        assert_eq!(guest.config32(MSI + 0x14), 4);
        reset(&guest);
        assert_eq!(guest.config32(MSI + 0x14), 0, "{what}: pending");
        assert_eq!(taken(&msi), [0; 4], "{what}: what was pending is not sent");
        interrupts.trigger(2);
        assert_eq!(taken(&msi), [0, 0, 1, 0], "{what}: MSI's masks");
    }
}

#[test]
fn bus_mastering_follows_the_command_register() {
    let guest = Guest::of_everything();
    let dma = guest.dma();
    let errno = || dma.hold(0x1000, 4, Perm::READ).unwrap_err().errno();
    assert_eq!(errno(), Errno::PERM);
    guest.set_config16(COMMAND, BUS_MASTER);
    assert_eq!(errno(), Errno::FAULT, "allowed, but there is no memory");
    guest.write(CONFIG, COMMAND, &[0]);
    assert_eq!(errno(), Errno::PERM);
}

#[test]
fn a_function_in_d3hot_keeps_still() {
    let guest = Guest::of_everything();
    let interrupts = guest.interrupts();
    guest.set_config16(COMMAND, BUS_MASTER);
    guest.set_config16(POWER_CONTROL, D3_HOT);
    assert_eq!(guest.config16(POWER_CONTROL), 8 | D3_HOT);
    assert!(!guest.dma().bus_master(), "no DMA");
    guest.set_config16(COMMAND, BUS_MASTER);
    assert!(!guest.dma().bus_master(), "whatever the command register says");

    let msi = guest.listen(irq_index::MSI, 4);
    interrupts.trigger(0);
    assert_eq!(taken(&msi), [0; 4]);
    guest.silence(irq_index::MSI);
    let msix = guest.listen(irq_index::MSIX, 70);
    interrupts.trigger(1);
    assert_eq!(msix[1].take(), 0);
    guest.silence(irq_index::MSIX);
    let pin = guest.listen(INTX, 1);
    interrupts.set(0, true);
    assert_eq!(taken(&pin), [0]);

    resets(&guest);
    guest.set_config16(POWER_CONTROL, 0);
    assert_eq!(resets(&guest), 0, "No_Soft_Reset");
    assert!(guest.dma().bus_master());
    assert_eq!(taken(&pin), [1], "what was true meanwhile comes through");
    let msix = guest.listen(irq_index::MSIX, 70);
    interrupts.trigger(1);
    assert_eq!(msix[1].take(), 1);
}

/// PCIe 5.3.1.4.1: in D3hot only configuration requests are answered.
#[test]
fn bars_do_not_answer_in_d3hot() {
    let page = SparseArea { offset: 0x1000, size: 0x1000 };
    let bell = Doorbell::eventfd(8, 4);
    let spec = everything(Capability::PowerManagement)
        .bar(5, Bar::memory32(0x2000).shared(vec![page]).doorbell(bell));
    let guest = Guest::new(spec);
    let (registers, memory, table) = (RegionIndex(0), RegionIndex(5), RegionIndex(4));
    guest.write(memory, 0x1000, &[1; 8]);
    guest.write(table, TABLE, &[7; 4]);
    let rung = guest.file.doorbells(memory).unwrap();
    let seen = |guest: &Guest| {
        let seen = guest.seen();
        (seen.reads.len(), seen.writes.len())
    };
    let before = seen(&guest);

    guest.set_config16(POWER_CONTROL, D3_HOT);
    for (region, offset) in
        [(registers, 0), (memory, 0), (memory, 8), (memory, 0x1000), (table, TABLE)]
    {
        guest.write(region, offset, &[9; 4]);
        assert_eq!(guest.read(region, offset), [0xff; 4], "{region}, {offset:#x}");
    }
    rustix::io::write(&rung[0], &1u64.to_ne_bytes()).unwrap();
    assert!(guest.file.ring(memory, 0).unwrap(), "drained");
    assert_eq!(seen(&guest), before, "the model is not asked");
    assert_eq!(guest.config16(0), 0x1af4, "configuration space answers");

    guest.set_config16(POWER_CONTROL, 0);
    assert!(!guest.file.ring(memory, 0).unwrap(), "a ring in D3hot is forgotten");
    assert_eq!(guest.read(memory, 0x1000), [1; 4]);
    assert_eq!(guest.read(table, TABLE), [7; 4]);
    assert_eq!(guest.read(registers, 0), [0x5a; 4]);

    guest.set_config16(POWER_CONTROL, D3_HOT);
    guest.file.reset().unwrap();
    assert_eq!(guest.read(memory, 0x1000), [0; 4], "a reset brings the function back to D0");
}

#[test]
fn masks_of_the_guest_outlast_d3hot() {
    let guest = Guest::of_everything();
    let msi = guest.listen(irq_index::MSI, 4);
    guest.write(CONFIG, MSI + 0x10, &[0b0001]);
    guest.set_config16(POWER_CONTROL, D3_HOT);
    (0..2).for_each(|vector| guest.interrupts().trigger(vector));
    guest.set_config16(POWER_CONTROL, 0);
    assert_eq!(taken(&msi), [0, 1, 0, 0]);
    assert_eq!(guest.config32(MSI + 0x14), 1);
}

#[test]
fn back_from_d3hot_by_a_soft_reset() {
    let guest = Guest::new(everything(Capability::PowerManagementSoftReset));
    let power_on = guest.config();
    disturb(&guest);
    resets(&guest);
    guest.set_config16(POWER_CONTROL, D3_HOT);
    guest.set_config16(POWER_CONTROL, D3_HOT);
    assert_eq!(resets(&guest), 0, "not on the way there");
    guest.set_config16(POWER_CONTROL, 0);
    assert_eq!(resets(&guest), 1);
    must_be_as_new(&guest, &power_on);
    guest.set_config16(POWER_CONTROL, 0);
    assert_eq!(resets(&guest), 0, "not from D0 to D0");
}

#[test]
fn states_that_there_are_not_are_not_taken() {
    for power in [Capability::PowerManagement, Capability::PowerManagementSoftReset] {
        let guest = Guest::new(everything(power));
        resets(&guest);
        for state in [0, D3_HOT] {
            guest.set_config16(POWER_CONTROL, state);
            for absent in [1, 2] {
                guest.set_config16(POWER_CONTROL, absent);
                assert_eq!(guest.config16(POWER_CONTROL) & 3, state, "D{absent} from D{state}");
            }
        }
        assert_eq!(resets(&guest), 0);
    }
}

/// The policy of the guest's device is to retain its state.
#[test]
fn last_close_turns_off_bus_mastering_and_messages_and_keeps_the_rest() {
    let guest = Guest::of_everything();
    guest.set_config16(COMMAND, BUS_MASTER | 0x2);
    guest.write(CONFIG, 0x3c, &[0x5a]);
    guest.write(CONFIG, MSI + 2, &[1]);
    guest.write(CONFIG, MSIX + 3, &[0x80]);
    assert!(guest.dma().bus_master());
    let (before, attachment) = (guest.config(), guest.dma());
    let guest = guest.reopened(|| assert!(!attachment.bus_master(), "off while it is closed"));
    let now = guest.config();
    let differs: Vec<_> = (0..now.len()).filter(|&at| now[at] != before[at]).collect();
    assert_eq!(differs, [COMMAND as usize, MSI as usize + 2, MSIX as usize + 3]);
    assert_eq!(guest.config16(COMMAND), 0x2);
    assert_eq!(guest.config8(MSI + 2) & 1, 0);
    assert_eq!(guest.config8(MSIX + 3) & 0x80, 0);
    assert!(!guest.dma().bus_master());
}
