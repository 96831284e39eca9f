//! Drives the edu device by its registers (QEMU documentation, `docs/specs/edu`), and checks
//! what it does.

use std::os::fd::AsFd;

use anyhow::ensure;
use vfiod_client::GuestMemory;
use vfiod_wire::payload::{pci_irq, pci_region};

use super::driven::{Driven, tell};

const BAR: u32 = 0;
const ID: u64 = 0x00;
const LIVENESS: u64 = 0x04;
const FACTORIAL: u64 = 0x08;
const STATUS: u64 = 0x20;
const IRQ_STATUS: u64 = 0x24;
const IRQ_RAISE: u64 = 0x60;
const IRQ_ACKNOWLEDGE: u64 = 0x64;
const DMA_SOURCE: u64 = 0x80;
const DMA_DESTINATION: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;

const COMPUTING: u32 = 1;
const RUN: u32 = 1;
const TO_MEMORY: u32 = 2;
/// Where the device's own buffer is in its address space.
const BUFFER: u32 = 0x40000;
/// Where the client's memory is for the device.
const MAPPING: u64 = 0x10_0000;
const COUNT: usize = 4096;

fn set(teacher: &mut Driven, register: u64, value: u32) -> anyhow::Result<()> {
    teacher.write(BAR, register, &value.to_le_bytes())
}

/// Identification, liveness, a factorial.
pub(super) fn identify(teacher: &mut Driven) -> anyhow::Result<()> {
    teacher.enable()?;
    let id = teacher.read32(BAR, ID)?;
    ensure!(id & 0xffff == 0x00ed, "identification {id:#010x}");
    tell(
        "edu-identification",
        format_args!("attached to teacher: identification {id:#010x}, version {}.0", id >> 24),
    )?;
    set(teacher, LIVENESS, 0x1234_5678)?;
    let answer = teacher.read32(BAR, LIVENESS)?;
    ensure!(answer == !0x1234_5678, "liveness answered {answer:#010x}");
    tell("edu-liveness", format_args!("liveness: wrote 0x12345678, read its inverse {answer:#x}"))?;
    set(teacher, FACTORIAL, 10)?;
    teacher.wait("the factorial", |t| Ok(t.read32(BAR, STATUS)? & COMPUTING == 0))?;
    let product = teacher.read32(BAR, FACTORIAL)?;
    ensure!(product == 3_628_800, "10! came out as {product}");
    tell("edu-factorial", format_args!("factorial: 10! = {product}"))
}

/// A transfer in each direction.
pub(super) fn dma(teacher: &mut Driven, memory: &GuestMemory) -> anyhow::Result<()> {
    teacher.client.dma_map(MAPPING, memory.size(), Some((memory.fd().as_fd(), 0)))?;
    let sent: Vec<u8> = (0..COUNT).map(|n| (n * 7 + n / 256) as u8).collect();
    memory.write(0, &sent)?;
    transfer(teacher, MAPPING as u32, BUFFER, RUN)?;
    tell(
        "dma-to-device",
        format_args!("DMA: teacher fetched {COUNT} bytes from the client's memory at {MAPPING:#x}"),
    )?;
    let target = memory.size() / 2;
    transfer(teacher, BUFFER, MAPPING as u32 + target as u32, RUN | TO_MEMORY)?;
    let mut received = vec![0; COUNT];
    memory.read(target, &mut received)?;
    ensure!(received == sent, "DMA brought back other bytes than it took");
    teacher.client.dma_unmap(MAPPING, memory.size())?;
    tell(
        "dma-to-memory",
        format_args!(
            "DMA: and stored them at {:#x}; they are the same. Mapping removed",
            MAPPING + target
        ),
    )
}

fn transfer(
    teacher: &mut Driven,
    source: u32,
    destination: u32,
    command: u32,
) -> anyhow::Result<()> {
    set(teacher, DMA_SOURCE, source)?;
    set(teacher, DMA_DESTINATION, destination)?;
    set(teacher, DMA_COUNT, COUNT as u32)?;
    set(teacher, DMA_COMMAND, command)?;
    teacher.wait("the transfer", |t| Ok(t.read32(BAR, DMA_COMMAND)? & RUN == 0))
}

/// An interrupt by the pin, one by message.
pub(super) fn interrupts(teacher: &mut Driven) -> anyhow::Result<()> {
    let pin = teacher.interrupt(pci_irq::INTX)?;
    set(teacher, IRQ_RAISE, 0x40)?;
    pin.wait(teacher, acknowledge)?;
    teacher.no_interrupt(&pin)?;
    tell("intx", "interrupt: raised cause 0x40; INTx came, was acknowledged and ended")?;

    let message = teacher.interrupt(pci_irq::MSI)?;
    let control = msi_control(teacher)?;
    let mut bits = [0; 2];
    teacher.client.region_read(pci_region::CONFIG, control, &mut bits)?;
    bits[0] |= 1;
    teacher.write(pci_region::CONFIG, control, &bits)?;
    set(teacher, IRQ_RAISE, 0x40)?;
    message.wait(teacher, acknowledge)?;
    teacher.no_interrupt(&message)?;
    tell("msi", "interrupt: the same by message; MSI came, was acknowledged and ended")
}

fn acknowledge(teacher: &mut Driven) -> anyhow::Result<()> {
    let cause = teacher.read32(BAR, IRQ_STATUS)?;
    ensure!(cause == 0x40, "the interrupt's cause is {cause:#x}");
    set(teacher, IRQ_ACKNOWLEDGE, cause)
}

/// The offset of MSI's control word in configuration space.
fn msi_control(teacher: &mut Driven) -> anyhow::Result<u64> {
    let mut at = teacher.read8(pci_region::CONFIG, 0x34)?;
    for _ in 0..48 {
        ensure!(at >= 0x40, "teacher has no MSI");
        if teacher.read8(pci_region::CONFIG, at.into())? == 5 {
            return Ok(u64::from(at) + 2);
        }
        at = teacher.read8(pci_region::CONFIG, u64::from(at) + 1)? & !3;
    }
    anyhow::bail!("teacher's capability list has no end")
}
