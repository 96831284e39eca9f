//! The bits of the registers of BAR 0.

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
