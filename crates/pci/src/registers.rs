//! Register maps: device code matches on an enum and never sees a misaligned, partial or
//! oversized access.

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

    const fn takes(self, len: usize) -> bool {
        len < 16 && len.is_power_of_two() && self.0 & len as u8 != 0
    }
}

/// A register: where it is and how it may be accessed.
#[derive(Clone, Copy, Debug)]
pub struct Register<R> {
    /// Offset in the BAR, bytes.
    pub offset: u64,
    /// Allowed widths.
    pub widths: Widths,
    /// The device's name for it.
    pub name: R,
}

impl<R> Register<R> {
    /// A register.
    pub const fn new(offset: u64, widths: Widths, name: R) -> Self {
        Self { offset, widths, name }
    }
}

/// The registers of a BAR, in ascending order of their offsets.
#[derive(Clone, Copy, Debug)]
pub struct RegisterMap<R: 'static>(&'static [Register<R>]);

impl<R: Copy> RegisterMap<R> {
    /// A map. Fails to compile (in a `const`) or panics if the offsets do not ascend.
    pub const fn new(registers: &'static [Register<R>]) -> Self {
        let mut index = 1;
        while index < registers.len() {
            assert!(
                registers[index - 1].offset < registers[index].offset,
                "registers out of order"
            );
            index += 1;
        }
        Self(registers)
    }

    /// The register that an access means; `None` for a place without one or a width that it
    /// does not take.
    pub fn find(&self, offset: u64, len: usize) -> Option<R> {
        let index = self.0.binary_search_by_key(&offset, |register| register.offset).ok()?;
        let register = &self.0[index];
        register.widths.takes(len).then_some(register.name)
    }

    /// Answers a read from the register's value; all ones where there is no register, as a bus
    /// would.
    pub fn read(&self, offset: u64, data: &mut [u8], value: impl FnOnce(R) -> u64) {
        match self.find(offset, data.len()) {
            Some(register) => data.copy_from_slice(&value(register).to_le_bytes()[..data.len()]),
            None => data.fill(0xff),
        }
    }

    /// The register and value of a write; `None` where there is no register, so that the write
    /// is ignored as a bus would.
    pub fn write(&self, offset: u64, data: &[u8]) -> Option<(R, u64)> {
        let register = self.find(offset, data.len())?;
        let mut value = [0; 8];
        value[..data.len()].copy_from_slice(data);
        Some((register, u64::from_le_bytes(value)))
    }
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
}
