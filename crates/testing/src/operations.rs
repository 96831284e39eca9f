//! Random operations of a guest, chosen by pseudo-random numbers or by the bytes of a fuzzer.

use vfiod_core::{File, RegionIndex, Result};

use crate::driver::{CONFIG, Driver};

/// Most devices have their registers below this offset.
const BUSY: u64 = 0x100;

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
    let bars = device.bars().into_iter().map(|(bar, size)| (RegionIndex(bar), size));
    bars.chain([(CONFIG, device.size(CONFIG.0))]).collect()
}

/// What a guest does.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Reset,
    Read { region: RegionIndex, offset: u64, len: usize },
    Write { region: RegionIndex, offset: u64, data: Vec<u8> },
}

impl Operation {
    /// Any operation anywhere: 1 to 8 bytes, aligned or not.
    pub(crate) fn any(regions: &[(RegionIndex, u64)], choices: &mut impl Choices) -> Self {
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

    /// A write of a register's size, aligned, mostly where registers are. `None` if the choice
    /// fell on a place outside the region.
    pub(crate) fn register_write(
        regions: &[(RegionIndex, u64)],
        choices: &mut impl Choices,
    ) -> Option<Self> {
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

/// Writes registers at random, as many times.
pub(crate) fn write_registers(device: &Driver, choices: &mut impl Choices, times: usize) {
    let regions = regions(device);
    for _ in 0..times {
        if let Some(write) = Operation::register_write(&regions, choices) {
            write.must_succeed(device.file());
        }
    }
}
