//! Random operations of a guest, chosen by pseudo-random numbers or by the bytes of a fuzzer.

use rustix::event::{EventfdFlags, eventfd};
use vfiod_core::irq::{IrqAction, IrqData, IrqFlags, IrqInfo};
use vfiod_core::{File, IrqIndex, RegionIndex, Result};
use vfiod_pci::irq_index;

use crate::driver::{CONFIG, Driver};

/// Most devices have their registers below this offset.
const BUSY: u64 = 0x100;
/// The kinds of interrupts of a function.
const KINDS: [IrqIndex; 3] = [irq_index::INTX, irq_index::MSI, irq_index::MSIX];
/// How many vectors of a kind are used: not all of 2048.
const VECTORS: u32 = 4;

/// Decides what is done next.
pub(crate) trait Choices {
    /// Any number.
    fn number(&mut self) -> u64;

    /// A number from 0 up to, but not including, `limit`.
    fn below(&mut self, limit: u64) -> u64;
}

/// Pseudo-random numbers (xorshift), the same in each run. The seed must not be 0.
#[derive(Clone, Debug)]
pub(crate) struct Numbers(pub(crate) u64);

impl Choices for Numbers {
    fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit
    }
}

/// The bytes of a fuzzer; zeros after the last one.
#[derive(Debug)]
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl Bytes<'_> {
    fn take(&mut self, count: usize) -> u64 {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

impl Choices for Bytes<'_> {
    fn number(&mut self) -> u64 {
        self.take(8)
    }

    /// Takes no more bytes than the limit has, so that one byte changed is one choice changed.
    fn below(&mut self, limit: u64) -> u64 {
        let bits = u64::BITS - (limit - 1).leading_zeros();
        self.take(bits.div_ceil(8) as usize) % limit
    }
}

/// The regions of a device, BARs and configuration space, with their sizes in bytes.
pub(crate) fn regions(device: &Driver) -> Vec<(RegionIndex, u64)> {
    let regions = (0..=CONFIG.0).map(|region| (RegionIndex(region), device.size(region)));
    regions.filter(|(_, size)| *size > 0).collect()
}

/// The interrupts of a device, by kind: how many vectors of each are used, at most [`VECTORS`].
pub(crate) fn interrupts(device: &Driver) -> Vec<(IrqIndex, IrqInfo)> {
    let kinds = KINDS.into_iter().filter_map(|kind| {
        let IrqInfo { flags, count } = device.file().irq(kind).ok()?;
        (count > 0).then_some((kind, IrqInfo { flags, count: count.min(VECTORS) }))
    });
    kinds.collect()
}

/// Where operations take place.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    regions: Vec<(RegionIndex, u64)>,
    interrupts: Vec<(IrqIndex, IrqInfo)>,
}

impl Places {
    pub(crate) fn of(device: &Driver) -> Self {
        Self { regions: regions(device), interrupts: interrupts(device) }
    }
}

/// What a guest and its client do.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Reset,
    /// Sets up an eventfd for an interrupt vector.
    Arm {
        kind: IrqIndex,
        vector: u32,
    },
    /// Removes it.
    Disarm {
        kind: IrqIndex,
        vector: u32,
    },
    /// Masks vector 0 of a kind that can be masked.
    Mask {
        kind: IrqIndex,
    },
    /// Unmasks it.
    Unmask {
        kind: IrqIndex,
    },
    Read {
        region: RegionIndex,
        offset: u64,
        len: usize,
    },
    Write {
        region: RegionIndex,
        offset: u64,
        data: Vec<u8>,
    },
}

impl Operation {
    /// Any operation anywhere: 1 to 8 bytes, aligned or not.
    pub(crate) fn any(places: &Places, choices: &mut impl Choices) -> Self {
        if !places.interrupts.is_empty() && choices.below(16) == 0 {
            return Self::interrupt(&places.interrupts, choices);
        }
        let regions = &places.regions;
        if regions.is_empty() {
            return Self::Reset;
        }
        let (region, size) = regions[choices.below(regions.len() as u64) as usize];
        let reach = if choices.below(4) == 0 { size } else { size.min(BUSY) };
        let offset = choices.below(reach);
        let len = (1 + choices.below(8)).min(size - offset) as usize;
        let value = choices.number().to_le_bytes();
        match choices.below(64) {
            0 => Self::Reset,
            1..32 => Self::Read { region, offset, len },
            _ => Self::Write { region, offset, data: value[..len].to_vec() },
        }
    }

    /// A client arms, disarms, masks or unmasks an interrupt.
    fn interrupt(interrupts: &[(IrqIndex, IrqInfo)], choices: &mut impl Choices) -> Self {
        let (kind, info) = interrupts[choices.below(interrupts.len() as u64) as usize];
        let vector = choices.below(info.count.into()) as u32;
        match choices.below(4) {
            0 if info.flags.contains(IrqFlags::MASKABLE) => Self::Mask { kind },
            1 if info.flags.contains(IrqFlags::MASKABLE) => Self::Unmask { kind },
            0 => Self::Disarm { kind, vector },
            _ => Self::Arm { kind, vector },
        }
    }

    /// A write of a register's size, aligned, mostly where registers are. `None` if the choice
    /// fell on a place outside the region.
    pub(crate) fn register_write(places: &Places, choices: &mut impl Choices) -> Option<Self> {
        let regions = &places.regions;
        if regions.is_empty() {
            return None;
        }
        let (region, size) = regions[choices.below(regions.len() as u64) as usize];
        let len = 1u64 << choices.below(4);
        let offset = choices.below(size.min(BUSY)) & !(len - 1);
        // Small numbers mean something more often.
        let value = if choices.below(2) == 0 { choices.number() } else { choices.below(8) };
        let data = value.to_le_bytes()[..len as usize].to_vec();
        (offset + len <= size).then_some(Self::Write { region, offset, data })
    }

    /// Performs the operation. Returns what was read.
    pub(crate) fn perform(&self, file: &File) -> Result<Vec<u8>> {
        match *self {
            Self::Reset => file.reset().map(|()| Vec::new()),
            Self::Arm { kind, vector } => {
                let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
                let fds = IrqData::EventFds(vec![Some(eventfd(0, flags).expect("an eventfd"))]);
                file.set_irqs(kind, vector, 1, IrqAction::Trigger, fds).map(|()| Vec::new())
            }
            Self::Disarm { kind, vector } => {
                let none = IrqData::EventFds(vec![None]);
                file.set_irqs(kind, vector, 1, IrqAction::Trigger, none).map(|()| Vec::new())
            }
            Self::Mask { kind } => mask(file, kind, IrqAction::Mask),
            Self::Unmask { kind } => mask(file, kind, IrqAction::Unmask),
            Self::Read { region, offset, len } => {
                let mut data = vec![0; len];
                file.read(region, offset, &mut data).map(|()| data)
            }
            Self::Write { region, offset, ref data } => {
                file.write(region, offset, data).map(|()| Vec::new())
            }
        }
    }

    /// Performs the operation, which must succeed. Returns what was read.
    pub(crate) fn must_succeed(&self, file: &File) -> Vec<u8> {
        self.perform(file).unwrap_or_else(|error| panic!("{self:x?}: {error}"))
    }
}

fn mask(file: &File, kind: IrqIndex, action: IrqAction) -> Result<Vec<u8>> {
    file.set_irqs(kind, 0, 1, action, IrqData::None).map(|()| Vec::new())
}

/// Writes registers at random, as many times.
pub(crate) fn write_registers(device: &Driver, choices: &mut impl Choices, times: usize) {
    let places = Places::of(device);
    for _ in 0..times {
        if let Some(write) = Operation::register_write(&places, choices) {
            write.must_succeed(device.file());
        }
    }
}
