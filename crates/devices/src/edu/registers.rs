//! The registers of BAR 0.

use vfiod_pci::{Register, RegisterMap, Widths};

/// What IDENTIFICATION reads as: version 1.0, and "edu" as far as hexadecimal digits go.
pub(super) const ID: u32 = 0x0100_00ed;

/// STATUS: a factorial is being computed (read-only).
pub(super) const STATUS_COMPUTING: u32 = 0x01;
/// STATUS: interrupt when it is done.
pub(super) const STATUS_INTERRUPT: u32 = 0x80;

/// INTERRUPT STATUS: a factorial is done.
pub(super) const CAUSE_FACTORIAL: u32 = 0x001;
/// INTERRUPT STATUS: a transfer is done.
pub(super) const CAUSE_DMA: u32 = 0x100;

/// DMA COMMAND: start; reads as 1 until the transfer is done.
pub(super) const DMA_RUN: u64 = 1;
/// DMA COMMAND: from the buffer to RAM, else the other way.
pub(super) const DMA_TO_RAM: u64 = 2;
/// DMA COMMAND: interrupt when it is done.
pub(super) const DMA_INTERRUPT: u64 = 4;

/// DMA COMMAND: the bits that are kept.
pub(super) const COMMAND_MASK: u64 = !DMA_RUN;

/// Where the buffer is in the device's own address space.
pub(super) const BUFFER: u64 = 0x40000;
/// Its length in bytes.
pub(super) const BUFFER_LEN: usize = 4096;

#[derive(Clone, Copy, Debug)]
pub(super) enum Reg {
    /// Read-only.
    Id,
    /// Reads as the complement of what was written.
    Liveness,
    /// A number; its factorial when it has been computed.
    Factorial,
    Status,
    /// Read-only: the causes that were raised and not acknowledged.
    InterruptStatus,
    /// Write-only: causes to raise.
    InterruptRaise,
    /// Write-only: causes to acknowledge.
    InterruptAcknowledge,
    DmaSource,
    DmaDestination,
    DmaCount,
    DmaCommand,
}

/// 4 bytes wide below 0x80, 4 or 8 from there on. Whether work is done by the time of a read
/// differs from run to run.
pub(super) const REGISTERS: RegisterMap<Reg> = RegisterMap::new(&[
    Register::new(0x00, Widths::W4, Reg::Id),
    Register::new(0x04, Widths::W4, Reg::Liveness),
    Register::new(0x08, Widths::W4, Reg::Factorial).volatile(u32::MAX as u64),
    Register::new(0x20, Widths::W4, Reg::Status).volatile(STATUS_COMPUTING as u64),
    Register::new(0x24, Widths::W4, Reg::InterruptStatus)
        .volatile((CAUSE_FACTORIAL | CAUSE_DMA) as u64),
    Register::new(0x60, Widths::W4, Reg::InterruptRaise),
    Register::new(0x64, Widths::W4, Reg::InterruptAcknowledge),
    Register::new(0x80, Widths::W4_OR_8, Reg::DmaSource),
    Register::new(0x88, Widths::W4_OR_8, Reg::DmaDestination),
    Register::new(0x90, Widths::W4_OR_8, Reg::DmaCount),
    Register::new(0x98, Widths::W4_OR_8, Reg::DmaCommand).volatile(DMA_RUN),
]);
