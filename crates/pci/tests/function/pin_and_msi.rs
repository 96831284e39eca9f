//! Interrupts by the pin and by MSI.

use vfiod_pci::irq_index::{self, INTX};
use vfiod_pci::{Capability, FunctionSpec};

use super::rig::{CONFIG, Guest, MSI, taken};

const COMMAND: u64 = 0x04;
const STATUS: u64 = 0x06;
const INTERRUPT_DISABLE: u16 = 1 << 10;
const INTERRUPT_STATUS: u16 = 1 << 3;
const MASK: u64 = MSI + 0x10;
const PENDING: u64 = MSI + 0x14;

#[test]
fn the_pin_is_a_level() {
    let guest = Guest::of_everything();
    let pin = guest.listen(INTX, 1);
    let status = || guest.config16(STATUS) & INTERRUPT_STATUS != 0;
    assert!(!status());
    guest.interrupts().set(0, true);
    assert!(status());
    assert_eq!(taken(&pin), [1]);
    guest.interrupts().set(0, true);
    assert_eq!(taken(&pin), [0], "masked by itself");
    guest.unmask(INTX);
    assert_eq!(taken(&pin), [1], "still asserted");
    guest.interrupts().set(0, false);
    assert!(!status());
    guest.unmask(INTX);
    assert_eq!(taken(&pin), [0]);
}

#[test]
fn the_status_bit_is_read_in_any_piece() {
    let guest = Guest::of_everything();
    guest.interrupts().set(0, true);
    assert_eq!(guest.config8(STATUS), 0x18);
    assert_eq!(guest.config32(COMMAND), 0x0018_0000);
    assert_eq!(guest.read(CONFIG, STATUS - 1), [0, 0x18, 0]);
    assert_eq!(guest.config8(STATUS + 1), 0);
    assert_eq!(guest.config()[STATUS as usize], 0x18);
    guest.write(CONFIG, STATUS, &[0xff; 2]);
    assert_eq!(guest.config8(STATUS), 0x18, "writes do not clear it");
}

#[test]
fn the_command_register_holds_the_pin_back() {
    let guest = Guest::of_everything();
    let pin = guest.listen(INTX, 1);
    guest.set_config16(COMMAND, INTERRUPT_DISABLE);
    guest.interrupts().set(0, true);
    assert_eq!(taken(&pin), [0]);
    assert_eq!(guest.config16(STATUS) & INTERRUPT_STATUS, INTERRUPT_STATUS, "tells all the same");
    guest.set_config16(COMMAND, 0);
    assert_eq!(taken(&pin), [1], "what is asserted comes through");
    guest.unmask(INTX);
    assert_eq!(taken(&pin), [1]);
    guest.write(CONFIG, COMMAND + 1, &[4]);
    guest.unmask(INTX);
    assert_eq!(taken(&pin), [0], "the client's unmask does not undo it");
}

#[test]
fn one_pin_for_the_conditions_of_all_vectors() {
    let guest = Guest::of_everything();
    let pin = guest.listen(INTX, 1);
    guest.interrupts().set(0, true);
    guest.interrupts().set(1, true);
    assert_eq!(taken(&pin), [1]);
    guest.interrupts().set(1, false);
    guest.unmask(INTX);
    assert_eq!(taken(&pin), [1], "that of vector 0 is still true");
    guest.interrupts().set(0, false);
    guest.unmask(INTX);
    assert_eq!(taken(&pin), [0]);
}

#[test]
fn messages_go_before_the_pin() {
    let guest = Guest::of_everything();
    let interrupts = guest.interrupts();
    let pin = guest.listen(INTX, 1);
    guest.silence(INTX);
    let msi = guest.listen(irq_index::MSI, 4);
    interrupts.set(2, true);
    interrupts.trigger(3);
    assert_eq!(taken(&msi), [0, 0, 1, 1]);
    let msix = guest.listen(irq_index::MSIX, 70);
    interrupts.trigger(2);
    assert_eq!((taken(&msi), msix[2].take()), (vec![0; 4], 1), "MSI-X goes before MSI");
    guest.silence(irq_index::MSIX);
    guest.silence(irq_index::MSI);
    drop(pin);
    let pin = guest.listen(INTX, 1);
    assert_eq!(taken(&pin), [1], "the condition told by message is still true");
    interrupts.trigger(0);
    guest.unmask(INTX);
    assert_eq!(taken(&pin), [1], "events have no level: just the condition");
}

#[test]
fn a_guest_may_grant_fewer_messages() {
    let guest = Guest::of_everything();
    let msi = guest.listen(irq_index::MSI, 2);
    for vector in 0..6 {
        guest.interrupts().trigger(vector);
    }
    assert_eq!(taken(&msi), [1, 5]);
    assert_eq!(guest.config32(PENDING), 0, "none waits for a vector that will never be");
}

#[test]
fn msi_masks_hold_back_and_tell() {
    let guest = Guest::of_everything();
    let interrupts = guest.interrupts();
    let msi = guest.listen(irq_index::MSI, 4);
    guest.write(CONFIG, MASK, &[0b0110]);
    (0..4).for_each(|vector| interrupts.trigger(vector));
    interrupts.trigger(1);
    assert_eq!(taken(&msi), [1, 0, 0, 1]);
    assert_eq!(guest.config32(PENDING), 0b0110);
    assert_eq!(guest.config8(PENDING), 0b0110);
    guest.set_config32(PENDING, 0);
    assert_eq!(guest.config32(PENDING), 0b0110, "read-only");
    guest.write(CONFIG, MASK, &[0b0100]);
    assert_eq!(taken(&msi), [0, 1, 0, 0], "one message for what came meanwhile");
    assert_eq!(guest.config32(PENDING), 0b0100);
    guest.set_config32(MASK, 0);
    assert_eq!(taken(&msi), [0, 0, 1, 0]);
    assert_eq!(guest.config32(PENDING), 0);
}

#[test]
fn a_function_without_interrupts() {
    let guest = Guest::new(FunctionSpec::new(1, 2));
    guest.interrupts().set(0, true);
    guest.interrupts().trigger(5);
    guest.set_config16(COMMAND, INTERRUPT_DISABLE);
    guest.set_config16(COMMAND, 0);
    assert_eq!(guest.config16(COMMAND), 0);
    let spec = FunctionSpec::new(1, 2).capability(Capability::Msi { vectors: 32 });
    let guest = Guest::new(spec);
    let msi = guest.listen(irq_index::MSI, 32);
    guest.set_config32(0x50, u32::MAX);
    guest.interrupts().trigger(31);
    assert_eq!(msi[31].take(), 0);
    assert_eq!(guest.config32(0x54), 1 << 31);
    guest.set_config32(0x50, 0);
    assert_eq!(msi[31].take(), 1);
}
