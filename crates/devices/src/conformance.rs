//! What every PCI device must do, whatever it is: apply it with one line in the model's tests.
//!
//! ```ignore
//! vfiod_devices::conformance!(MyDevice::default());
//! // Registers whose *read* does something are left alone where a test compares what it reads:
//! vfiod_devices::conformance!(MyDevice::default(), side_effects = [(bar, offset)]);
//! ```
//!
//! The checks run the device in a registry of its own, through the same [`File`] that a
//! connection holds.

use vfiod_core::{DeviceSpec, Errno, File, Owner, RegionIndex, Registration, Registry};
use vfiod_pci::{Function, Model};

const CONFIG: RegionIndex = RegionIndex(7);
/// How much of a BAR is looked at.
const WINDOW: u64 = 4096;

/// A model under test and what must be known of it.
pub struct Subject<F> {
    /// Makes the model.
    pub make: F,
    /// Registers (BAR, offset) whose read does something.
    pub side_effects: &'static [(u32, u64)],
}

/// Applies the suite to a model.
#[macro_export]
macro_rules! conformance {
    ($model:expr) => { $crate::conformance!($model, side_effects = []); };
    ($model:expr, side_effects = [$($place:expr),*]) => {
        mod conformance {
            #[allow(unused_imports)]
            use super::*;
            use $crate::conformance::Subject;

            $crate::conformance!(@tests $model, [$($place),*],
                header capabilities bar_sizes read_only_bits any_access outside
                reset_restores opens_again random_operations);
        }
    };
    (@tests $model:expr, $places:tt, $($name:ident)*) => {
        $($crate::conformance!(@test $model, $places, $name);)*
    };
    (@test $model:expr, $places:tt, $name:ident) => {
        #[test]
        fn $name() {
            Subject { make: || $model, side_effects: &$places }.$name();
        }
    };
}

/// Numbers that look random and are the same every time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

struct Opened {
    file: File,
    registration: Registration,
}

impl Opened {
    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.file.read(CONFIG, offset, &mut data).expect("configuration space can be read");
        data
    }

    fn read16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(offset))
    }

    fn read32(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(offset))
    }

    fn write32(&self, offset: u64, value: u32) {
        self.file.write(CONFIG, offset, &value.to_le_bytes()).expect("it can be written");
    }

    fn size(&self, region: u32) -> u64 {
        self.file.region(RegionIndex(region)).map_or(0, |region| region.size)
    }

    fn bars(&self) -> Vec<(u32, u64)> {
        (0..6).map(|bar| (bar, self.size(bar))).filter(|(_, size)| *size > 0).collect()
    }
}

impl<M: Model + 'static, F: Fn() -> M> Subject<F> {
    fn open(&self) -> Opened {
        let function = Function::new((self.make)()).expect("the spec is sound");
        let spec = DeviceSpec { name: "subject".to_owned(), ..DeviceSpec::default() };
        let registration =
            Registry::new().register(spec, Box::new(function)).expect("it can be registered");
        let file = registration
            .device()
            .open(Owner::InProcess("conformance".to_owned()))
            .expect("it can be opened");
        Opened { file, registration }
    }

    /// Everything that can be read without doing something by it.
    fn snapshot(&self, opened: &Opened) -> Vec<u8> {
        let mut all = vec![0; opened.size(CONFIG.0) as usize];
        opened.file.read(CONFIG, 0, &mut all).expect("the whole space can be read at once");
        for (bar, size) in opened.bars() {
            let shared = opened.file.region(RegionIndex(bar)).is_ok_and(|r| r.shared.is_some());
            if shared {
                continue; // memory is the guest's; a reset need not clear it
            }
            for width in [1, 4, 8] {
                for offset in (0..size.min(WINDOW)).step_by(width) {
                    if offset + width as u64 > size || self.side_effects.contains(&(bar, offset)) {
                        continue;
                    }
                    let mut data = vec![0; width];
                    opened
                        .file
                        .read(RegionIndex(bar), offset, &mut data)
                        .expect("a BAR can be read");
                    all.extend(data);
                }
            }
        }
        all
    }

    fn scribble(&self, opened: &Opened, numbers: &mut Numbers, times: usize) {
        let mut regions = opened.bars();
        regions.push((CONFIG.0, opened.size(CONFIG.0)));
        for _ in 0..times {
            let (region, size) = regions[numbers.below(regions.len() as u64) as usize];
            let len = 1u64 << numbers.below(4);
            let offset = numbers.below(size.min(0x100)) & !(len - 1);
            let data = numbers.next().to_le_bytes();
            if offset + len <= size {
                let data = &data[..len as usize];
                opened.file.write(RegionIndex(region), offset, data).expect("any write is taken");
            }
        }
    }

    /// A type 0 header with ids.
    pub fn header(&self) {
        let opened = self.open();
        assert!(![0, 0xffff].contains(&opened.read16(0)), "vendor id");
        assert_eq!(opened.read::<1>(0x0e)[0] & 0x7f, 0, "header type 0");
        assert_eq!(opened.read32(0x30), 0, "no expansion ROM");
        assert!([256, 4096].contains(&opened.size(CONFIG.0)));
    }

    /// The chains of capabilities end, stay inside and name known ids once.
    pub fn capabilities(&self) {
        let opened = self.open();
        let has_list = opened.read16(0x06) & 0x10 != 0;
        let mut next = u64::from(opened.read::<1>(0x34)[0]);
        assert_eq!(has_list, next != 0, "status bit and pointer agree");
        let mut seen = Vec::new();
        while next != 0 {
            assert!((0x40..=0xfc).contains(&next) && next % 4 == 0, "capability at {next:#x}");
            assert!(!seen.contains(&next), "a loop at {next:#x}");
            seen.push(next);
            next = u64::from(opened.read::<1>(next + 1)[0]);
        }
        if opened.size(CONFIG.0) == 4096 && opened.read32(0x100) != 0 {
            let mut next = 0x100;
            while next != 0 {
                assert!((0x100..=0xffc).contains(&next) && next % 4 == 0);
                assert!(!seen.contains(&next), "a loop at {next:#x}");
                seen.push(next);
                next = u64::from(opened.read32(next) >> 20);
            }
        }
    }

    /// Writing all ones to a BAR tells its size, which is the region's.
    pub fn bar_sizes(&self) {
        let opened = self.open();
        let mut bar = 0;
        while bar < 6 {
            let at = 0x10 + 4 * u64::from(bar);
            let kind = opened.read32(at);
            let wide = kind & 1 == 0 && kind & 6 == 4;
            opened.write32(at, u32::MAX);
            let low = opened.read32(at) & if kind & 1 == 1 { !3 } else { !15 };
            let mut mask = u64::from(low) | 0xffff_ffff_0000_0000;
            if wide {
                opened.write32(at + 4, u32::MAX);
                mask = u64::from(low) | u64::from(opened.read32(at + 4)) << 32;
            }
            let size = if low == 0 && !wide { 0 } else { (!mask).wrapping_add(1) };
            assert_eq!(size, opened.size(bar), "BAR {bar}");
            bar += if wide { 2 } else { 1 };
        }
    }

    /// Ids and capabilities' headers cannot be changed.
    pub fn read_only_bits(&self) {
        let opened = self.open();
        let fixed = |opened: &Opened| (opened.read32(0), opened.read32(8), opened.read32(0x2c));
        let before = fixed(&opened);
        for offset in (0..opened.size(CONFIG.0)).step_by(4) {
            opened.write32(offset, u32::MAX);
            opened.write32(offset, 0);
        }
        assert_eq!(fixed(&opened), before);
    }

    /// Every size and alignment is answered, and none breaks the device.
    pub fn any_access(&self) {
        let opened = self.open();
        for (bar, size) in opened.bars().into_iter().chain([(CONFIG.0, opened.size(CONFIG.0))]) {
            for len in [1, 2, 3, 4, 5, 8, 16, 64] {
                for offset in (0..64).chain(size.saturating_sub(80)..size) {
                    if offset + len > size {
                        continue;
                    }
                    let mut data = vec![0; len as usize];
                    opened.file.read(RegionIndex(bar), offset, &mut data).expect("a read");
                    opened.file.write(RegionIndex(bar), offset, &data).expect("a write");
                }
            }
        }
    }

    /// What is not there is refused with `EINVAL`.
    pub fn outside(&self) {
        let opened = self.open();
        let mut data = [0; 4];
        let mut refused = |region, offset| {
            let error = opened.file.read(RegionIndex(region), offset, &mut data).unwrap_err();
            assert_eq!(error.errno(), Errno::INVAL, "region {region} at {offset:#x}");
            let error = opened.file.write(RegionIndex(region), offset, &data).unwrap_err();
            assert_eq!(error.errno(), Errno::INVAL, "region {region} at {offset:#x}");
        };
        for (region, size) in opened.bars().into_iter().chain([(CONFIG.0, opened.size(CONFIG.0))]) {
            for offset in [size - 3, size, size + 4, u64::MAX - 3, u64::MAX] {
                refused(region, offset);
            }
        }
        refused(6, 0);
        refused(8, 0);
        refused(9, 0);
        refused(u32::MAX, 0);
    }

    /// A reset brings back everything that can be read.
    pub fn reset_restores(&self) {
        let opened = self.open();
        let power_on = self.snapshot(&opened);
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        for round in 0..20 {
            self.scribble(&opened, &mut numbers, 200);
            opened.file.reset().expect("it can be reset");
            let now = self.snapshot(&opened);
            let differs = now.iter().zip(&power_on).position(|(now, before)| now != before);
            assert_eq!(differs, None, "round {round}: a byte of the snapshot");
        }
    }

    /// The next user finds the device as the first one did.
    pub fn opens_again(&self) {
        let opened = self.open();
        let power_on = self.snapshot(&opened);
        let mut numbers = Numbers(0x2545_f491_4f6c_dd1d);
        self.scribble(&opened, &mut numbers, 500);
        let Opened { file, registration } = opened;
        drop(file);
        let again = registration.device().open(Owner::InProcess("again".to_owned()));
        let again = Opened { file: again.expect("it opens again"), registration };
        assert!(self.snapshot(&again) == power_on, "the state of the last user is still there");
    }

    /// Nothing that a guest does makes the device fail.
    pub fn random_operations(&self) {
        let opened = self.open();
        let mut numbers = Numbers(0xdead_beef_cafe_f00d);
        let mut regions = opened.bars();
        regions.push((CONFIG.0, opened.size(CONFIG.0)));
        for _ in 0..20_000 {
            let (region, size) = regions[numbers.below(regions.len() as u64) as usize];
            let region = RegionIndex(region);
            // Mostly where registers are, now and then anywhere.
            let reach = if numbers.below(4) == 0 { size } else { size.min(0x100) };
            let offset = numbers.below(reach);
            let len = numbers.below(9).max(1).min(size - offset) as usize;
            let mut data = numbers.next().to_le_bytes().repeat(2);
            data.truncate(len);
            let outcome = match numbers.below(64) {
                0 => opened.file.reset(),
                1..32 => opened.file.read(region, offset, &mut data),
                _ => opened.file.write(region, offset, &data),
            };
            outcome.expect("the device goes on working");
        }
    }
}
