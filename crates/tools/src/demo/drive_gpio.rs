//! Drives the gpio card by its registers (ACCES PCI-IDIO-16), and checks what it does.

use anyhow::ensure;
use vfiod_wire::payload::pci_irq;

use super::driven::{Driven, Outside, tell};

const BAR: u32 = 2;
const OUTPUTS_LOW: u64 = 0;
const INPUTS_LOW: u64 = 1;
const INTERRUPT: u64 = 2;
const OUTPUTS_HIGH: u64 = 4;
const STATUS: u64 = 6;

/// Sets outputs, reads inputs, gets an interrupt.
pub(super) fn drive(lines: &mut Driven, outside: &mut Outside) -> anyhow::Result<()> {
    lines.enable()?;
    lines.write(BAR, OUTPUTS_LOW, &[0xa5])?;
    lines.write(BAR, OUTPUTS_HIGH, &[0x3c])?;
    let read =
        u16::from(lines.read8(BAR, OUTPUTS_LOW)?) | u16::from(lines.read8(BAR, OUTPUTS_HIGH)?) << 8;
    let seen = outside.outputs()?;
    ensure!(read == 0x3ca5 && seen == 0x3ca5, "outputs read {read:#06x}, outside {seen:#06x}");
    tell("gpio-outputs", "set lines' outputs to 0x3ca5; read back and seen outside as that")?;

    let before = lines.read8(BAR, INPUTS_LOW)?;
    outside.set(3, true)?;
    let after = lines.read8(BAR, INPUTS_LOW)?;
    ensure!(after == before | 8, "inputs {before:#04x}, then {after:#04x}");
    tell(
        "gpio-inputs",
        format_args!(
            "input 3 was switched on outside: inputs read {before:#04x}, now {after:#04x}"
        ),
    )?;

    let interrupt = lines.interrupt(pci_irq::INTX)?;
    lines.read8(BAR, INTERRUPT)?; // reading it turns the interrupt on
    outside.set(5, true)?;
    interrupt.wait(lines, |lines| {
        let status = lines.read8(BAR, STATUS)?;
        ensure!(status & 0b101 == 0b101, "interrupt status is {status:#04x}");
        lines.write(BAR, INPUTS_LOW, &[0])
    })?;
    lines.write(BAR, INTERRUPT, &[0])?;
    lines.no_interrupt(&interrupt)?;
    tell("gpio-interrupt", "input 5 was switched on outside: INTx came, was acknowledged and ended")
}
