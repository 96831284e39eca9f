//! Register maps: device code matches on an enum and never sees a misaligned, partial or
//! oversized access.

use std::ops::Range;

use vfiod_core::{ReadEffect, ReadTraits};

/// A bit of [`Widths`]: either half of 8 bytes.
const HALF: u8 = 16;

/// Access widths that a register takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Widths(u8);

impl Widths {
    /// 1 byte.
    pub const W1: Self = Self(1);
    /// 2 bytes.
    pub const W2: Self = Self(2);
    /// 4 bytes.
    pub const W4: Self = Self(4);
    /// 8 bytes.
    pub const W8: Self = Self(8);
    /// 4 or 8 bytes; the narrower access is the lower half.
    pub const W4_OR_8: Self = Self(4 | 8);

    /// 8 bytes, or 4 bytes of either half. Written through [`RegisterMap::merge`].
    pub const HALVES: Self = Self(8 | HALF);

    /// The widest of them, in bytes.
    const fn widest(self) -> u64 {
        let width = (self.0 & !HALF) as u64;
        1 << width.ilog2()
    }

    const fn takes(self, len: usize) -> bool {
        len <= 8 && len.is_power_of_two() && self.0 & len as u8 != 0
    }
}

/// A register: where it is, how it may be accessed, and what a read of it does.
#[derive(Clone, Copy, Debug)]
pub struct Register<R> {
    /// Offset in the BAR, bytes.
    pub offset: u64,
    /// Allowed widths.
    pub widths: Widths,
    /// The device's name for it.
    pub name: R,
    read: ReadTraits,
}

impl<R> Register<R> {
    /// A register whose value can be read without changing anything, and follows from what was
    /// done to the device.
    pub const fn new(offset: u64, widths: Widths, name: R) -> Self {
        let read = ReadTraits { effect: ReadEffect::None, volatile: 0 };
        Self { offset, widths, name, read }
    }

    /// A read of the register changes the device's state.
    pub const fn read_changes(mut self) -> Self {
        self.read.effect = ReadEffect::Changes;
        self
    }

    /// These bits of the value differ from run to run, even if everything is done to the device in
    /// the same order: a time, or whether work is done. A replay does not compare them.
    pub const fn volatile(mut self, bits: u64) -> Self {
        self.read.volatile = bits;
        self
    }
}

/// The registers of a BAR, in ascending order of their offsets.
#[derive(Clone, Copy, Debug)]
pub struct RegisterMap<R: 'static>(&'static [Register<R>]);

impl<R: Copy> RegisterMap<R> {
    /// A map. Fails to compile (in a `const`) or panics if the offsets do not ascend, or if a
    /// register lies in the upper half of one that takes [`Widths::HALVES`].
    pub const fn new(registers: &'static [Register<R>]) -> Self {
        let mut index = 1;
        while index < registers.len() {
            let before = &registers[index - 1];
            let least = if before.widths.0 & HALF != 0 { 8 } else { 1 };
            assert!(before.offset + least <= registers[index].offset, "registers out of order");
            index += 1;
        }
        Self(registers)
    }

    /// The offset of the first register that lies in a range of offsets, or partly, for
    /// [`crate::Model::find_register`].
    pub fn find_in(&self, range: Range<u64>) -> Option<u64> {
        let lies = |register: &&Register<R>| {
            register.offset < range.end && range.start < register.offset + register.widths.widest()
        };
        self.0.iter().find(lies).map(|register| register.offset)
    }

    /// The register that an access means, and from which bit of it on; `None` for a place
    /// without one or a width that it does not take.
    fn locate(&self, offset: u64, len: usize) -> Option<(&Register<R>, u32)> {
        let after = self.0.partition_point(|register| register.offset <= offset);
        let register = &self.0[after.checked_sub(1)?];
        let halves = register.widths.0 & HALF != 0 && len == 4;
        match offset - register.offset {
            0 if halves || register.widths.takes(len) => Some((register, 0)),
            4 if halves => Some((register, 32)),
            _ => None,
        }
    }

    /// The register that an access means; `None` for a place without one or a width that it
    /// does not take.
    pub fn find(&self, offset: u64, len: usize) -> Option<R> {
        Some(self.locate(offset, len)?.0.name)
    }

    /// What a read does. Where there is no register it changes nothing. [`crate::Model::read_traits`]
    /// forwards to this.
    pub fn read_traits(&self, offset: u64, len: usize) -> ReadTraits {
        match self.locate(offset, len) {
            Some((&Register { read, .. }, shift)) => {
                ReadTraits { volatile: read.volatile >> shift, ..read }
            }
            None => ReadTraits { effect: ReadEffect::None, volatile: 0 },
        }
    }

    /// Answers a read from the register's value; all ones where there is no register, as a bus
    /// would.
    pub fn read(&self, offset: u64, data: &mut [u8], value: impl FnOnce(R) -> u64) {
        match self.locate(offset, data.len()) {
            Some((register, shift)) => {
                let bytes = (value(register.name) >> shift).to_le_bytes();
                data.copy_from_slice(&bytes[..data.len()]);
            }
            None => data.fill(0xff),
        }
    }

    /// The register and value of a write; `None` where there is no register, so that the write
    /// is ignored as a bus would. A half of a register that takes [`Widths::HALVES`] is no
    /// value of it: it is ignored here, and for [`RegisterMap::merge`].
    pub fn write(&self, offset: u64, data: &[u8]) -> Option<(R, u64)> {
        let (register, _) = self.locate(offset, data.len())?;
        register.widths.takes(data.len()).then(|| (register.name, from_le(data)))
    }

    /// The same with the register's value after the write: `current` has the bits that a
    /// write of a part leaves alone. Parts narrower than a half count as the whole, as in
    /// [`RegisterMap::write`].
    pub fn merge(
        &self,
        offset: u64,
        data: &[u8],
        current: impl FnOnce(R) -> u64,
    ) -> Option<(R, u64)> {
        let (register, shift) = self.locate(offset, data.len())?;
        if register.widths.takes(data.len()) {
            return Some((register.name, from_le(data)));
        }
        let kept = current(register.name) & !(u64::from(u32::MAX) << shift);
        Some((register.name, kept | from_le(data) << shift))
    }
}

/// A value of up to 8 bytes.
fn from_le(data: &[u8]) -> u64 {
    data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum R {
        Id,
        Wide,
    }

    const MAP: RegisterMap<R> = RegisterMap::new(&[
        Register::new(0, Widths::W4, R::Id),
        Register::new(8, Widths::W4_OR_8, R::Wide),
    ]);

    #[test]
    fn only_whole_registers_are_seen() {
        assert_eq!(MAP.find(0, 4), Some(R::Id));
        assert_eq!(MAP.find(8, 8), Some(R::Wide));
        assert_eq!(MAP.find(8, 4), Some(R::Wide));
        for (offset, len) in
            [(0, 1), (0, 2), (0, 8), (1, 4), (4, 4), (12, 4), (8, 16), (8, 3), (8, 0)]
        {
            assert_eq!(MAP.find(offset, len), None, "{len} bytes at {offset}");
        }
        let mut data = [0; 4];
        MAP.read(0, &mut data, |_| 0x1_1234_5678);
        assert_eq!(data, [0x78, 0x56, 0x34, 0x12]);
        MAP.read(4, &mut data, |_| 0);
        assert_eq!(data, [0xff; 4]);
        assert_eq!(MAP.write(8, &[1, 0, 0, 1]), Some((R::Wide, 0x0100_0001)));
        assert_eq!(MAP.write(3, &[1]), None);
    }

    #[test]
    fn halves_of_a_register() {
        const HALVES: RegisterMap<R> = RegisterMap::new(&[
            Register::new(0, Widths::W4, R::Id),
            Register::new(8, Widths::HALVES, R::Wide),
        ]);
        let value = 0x1122_3344_5566_7788;
        let read = |offset, len: usize| {
            let mut data = vec![0; len];
            HALVES.read(offset, &mut data, |_| value);
            data
        };
        assert_eq!(read(8, 8), value.to_le_bytes());
        assert_eq!(read(8, 4), value.to_le_bytes()[..4]);
        assert_eq!(read(12, 4), value.to_le_bytes()[4..]);
        let merge = |offset, data: &[u8]| HALVES.merge(offset, data, |_| value);
        assert_eq!(merge(8, &[1, 0, 0, 0]), Some((R::Wide, 0x1122_3344_0000_0001)));
        assert_eq!(merge(12, &[1, 0, 0, 0x80]), Some((R::Wide, 0x8000_0001_5566_7788)));
        assert_eq!(merge(8, &[9; 8]), Some((R::Wide, 0x0909_0909_0909_0909)));
        assert_eq!(merge(0, &[1, 0, 0, 0]), Some((R::Id, 1)));
        for (offset, len) in
            [(8, 1), (8, 2), (9, 4), (10, 4), (12, 8), (13, 4), (12, 2), (16, 4), (4, 4)]
        {
            assert_eq!(merge(offset, &vec![0; len]), None, "{len} bytes at {offset}");
            assert_eq!(read(offset, len), vec![0xff; len], "{len} bytes at {offset}");
        }
        // A half is no value of the register.
        assert_eq!(HALVES.write(8, &[0; 4]), None);
        assert_eq!(HALVES.write(8, &[9; 8]), Some((R::Wide, 0x0909_0909_0909_0909)));
    }

    #[test]
    fn read_traits_follow_the_register_and_its_half() {
        const TRAITS: RegisterMap<R> = RegisterMap::new(&[
            Register::new(0, Widths::W4, R::Id).read_changes(),
            Register::new(8, Widths::HALVES, R::Wide).volatile(0xff << 32 | 1),
        ]);
        let (none, changes) = (ReadEffect::None, ReadEffect::Changes);
        let rows = [
            (0, 4, changes, 0),
            (0, 2, none, 0), // no register takes this width
            (4, 4, none, 0),
            (8, 8, none, 0xff << 32 | 1),
            (8, 4, none, 0xff << 32 | 1), // only the bits of the value that was read count
            (12, 4, none, 0xff),
        ];
        for (offset, len, effect, volatile) in rows {
            let traits = TRAITS.read_traits(offset, len);
            assert_eq!(traits, ReadTraits { effect, volatile }, "{len} bytes at {offset}");
        }
    }

    #[test]
    #[should_panic(expected = "out of order")]
    fn a_register_in_the_half_of_another() {
        RegisterMap::new(
            vec![Register::new(8, Widths::HALVES, R::Wide), Register::new(12, Widths::W4, R::Id)]
                .leak(),
        );
    }
}
