//! Register tables: what a table declares is what a driver reads and writes, and what is saved.

use std::ops::Range;

use vfiod_core::{Context, Device, Errno, Persistence, ReadEffect, RegionIndex, ResetCause};
use vfiod_pci::Function;
use vfiod_pci::prelude::*;

const STEPS: u32 = 4;

registers! {
    #[derive(Debug)]
    struct Subject, enum Write {
        /// A doc comment of a computed row is allowed.
        0x00 _: u32 = |_| 0x7a11;
        0x04 step: u8 = 1 => Step, in 1..=STEPS as u8;
        0x05 flags: u8 => Flags, bits 0x0f, volatile 0x03;
        0x06 half: u16 => Half;
        0x08 wide: u64 = 0x1122_3344_5566_7788 => Wide, width HALVES;
        0x10 sum: u32;
        0x14 _: u32 = |subject| subject.sum + subject.hidden[0] => Sum;
        0x18 _: u32 => Start;
        /// A doc comment of a field is one of the image.
        state hidden: [u32; 2];
        kept limit: u32;
    }
}

impl RegisterModel for Subject {
    type State = HasState;
    const KIND: &'static str = "subject";
    const VERSION: u32 = 3;
    const BAR: u8 = 1;

    fn spec(&self) -> FunctionSpec {
        let spec = FunctionSpec::new(0x1234, 0x0001).bar(0, Bar::memory32(4096));
        spec.bar(1, Bar::memory32(4096))
    }

    fn write(&mut self, _cx: &Cx<Self>, write: Write) {
        match write {
            Write::Step(step) => self.step = step,
            Write::Flags(flags) => self.flags = flags & 0x0f,
            Write::Half(half) => self.half = half,
            Write::Wide(wide) => self.wide = wide,
            Write::Sum(sum) => self.sum = sum,
            Write::Start(value) => self.hidden[0] = value.min(self.limit),
        }
    }
}

fn read(subject: &Subject, offset: u64, len: usize) -> u64 {
    let mut data = [0; 8];
    subject.read_register(offset, &mut data[..len]);
    u64::from_le_bytes(data)
}

#[test]
fn reads_are_fields_closures_or_all_ones() {
    let mut subject = Subject::power_on(9);
    (subject.sum, subject.hidden) = (5, [2, 0]);
    let rows = [
        (0x00, 4, 0x7a11),
        (0x04, 1, 1),
        (0x06, 2, 0),
        (0x08, 8, 0x1122_3344_5566_7788),
        (0x0c, 4, 0x1122_3344),
        (0x10, 4, 5),
        (0x14, 4, 7),
        (0x18, 4, u64::from(u32::MAX)), // write-only
        (0x04, 4, u64::from(u32::MAX)), // a width that the register does not take
        (0x1c, 4, u64::from(u32::MAX)), // no register
    ];
    for (offset, len, value) in rows {
        assert_eq!(read(&subject, offset, len), value, "{len} bytes at {offset:#x}");
    }
}

#[test]
fn writes_have_the_type_of_their_register() {
    let subject = Subject::power_on(9);
    let write = |offset, data: &[u8]| subject.decode_write(offset, data);
    assert_eq!(write(0x04, &[3]), Some(Write::Step(3)));
    assert_eq!(write(0x06, &[1, 2]), Some(Write::Half(0x0201)));
    assert_eq!(write(0x08, &[7, 0, 0, 0]), Some(Write::Wide(0x1122_3344_0000_0007)));
    assert_eq!(write(0x0c, &[7, 0, 0, 0]), Some(Write::Wide(0x0000_0007_5566_7788)));
    assert_eq!(write(0x14, &[1, 0, 0, 0]), Some(Write::Sum(1)));
    assert_eq!(write(0x18, &[1, 0, 0, 0]), Some(Write::Start(1)));
    assert_eq!(write(0x00, &[0; 4]), None, "read-only");
    assert_eq!(write(0x10, &[0; 4]), None, "read-only");
    assert_eq!(write(0x05, &[0; 2]), None, "another width");
    assert_eq!(write(0x1c, &[0; 4]), None, "no register");
}

#[test]
fn reads_are_pure_and_volatile_bits_are_declared() {
    let traits = Subject::register_traits(0x05, 1);
    assert_eq!(traits, ReadTraits { effect: ReadEffect::None, volatile: 3 });
    assert_eq!(Subject::register_traits(0x04, 1).volatile, 0);
}

#[test]
fn reset_restores_power_on_and_keeps_what_is_kept() {
    let mut subject = Subject::power_on(9);
    (subject.step, subject.wide, subject.hidden) = (3, 0, [1, 2]);
    subject.reset_registers();
    let Subject { step, flags, half, wide, sum, hidden, limit } = subject;
    assert_eq!((step, flags, half, wide, sum), (1, 0, 0, 0x1122_3344_5566_7788, 0));
    assert_eq!((hidden, limit), ([0, 0], 9));
}

#[test]
fn image_has_every_field_and_restore_refuses_what_the_table_does_not_allow() {
    let mut subject = Subject::power_on(9);
    (subject.step, subject.flags, subject.hidden) = (2, 5, [1, 2]);
    let image = subject.save_registers();
    let text = serde_json::to_value(image).unwrap();
    let expected = serde_json::json!({
        "step": 2, "flags": 5, "half": 0, "wide": 0x1122_3344_5566_7788_u64, "sum": 0,
        "hidden": [1, 2]
    });
    assert_eq!(text, expected);

    let mut other = Subject::power_on(4);
    other.restore_registers(image).unwrap();
    assert_eq!((other.step, other.flags, other.hidden, other.limit), (2, 5, [1, 2], 4));

    for (field, value, message) in [
        ("step", 0, "step is 0, which is not in 1..=4"),
        ("step", 5, "step is 5, which is not in 1..=4"),
        ("flags", 0x15, "flags is 0x15, with bits outside 0xf"),
    ] {
        let mut text = text.clone();
        text[field] = value.into();
        text["sum"] = 77.into();
        let error = other.restore_registers(serde_json::from_value(text).unwrap()).unwrap_err();
        assert_eq!((error.errno(), error.message()), (Errno::INVAL, message));
        assert_eq!((other.step, other.flags, other.sum), (2, 5, 0), "nothing was changed");
    }
}

#[test]
fn function_serves_the_table_in_its_bar_and_saves_it() {
    let mut function = Function::new(Subject::power_on(9)).unwrap();
    let irqs = function.describe().irqs;
    function.init(&Context::detached("subject", &irqs)).unwrap();
    let (other, own) = (RegionIndex(0), RegionIndex(1));
    function.write(own, 0x18, &[200, 0, 0, 0]).unwrap();
    function.write(other, 0x04, &[3]).unwrap();
    let mut data = [0; 4];
    function.read(own, 0x14, &mut data).unwrap();
    assert_eq!(data, [9, 0, 0, 0], "the limit, which is kept");
    function.read(other, 0x14, &mut data).unwrap();
    assert_eq!(data, [0xff; 4], "the other BAR has no registers");
    assert_eq!(function.read_traits(other, 0x05, 1).volatile, 0);

    let Persistence::Saved(state) = function.persistence() else { panic!("it has a state") };
    let saved = serde_json::to_value(state.save().unwrap()).unwrap();
    assert_eq!(saved["state"]["model"]["kind"], "subject");
    assert_eq!(saved["state"]["model"]["version"], 3);
    assert_eq!(saved["state"]["model"]["state"]["hidden"][0], 9);
    let mut image = vec![0; state.image_len()];
    state.save_image(&mut image);

    function.reset(ResetCause::Client).unwrap();
    assert_eq!(function.model().hidden, [0, 0]);
    let Persistence::Saved(state) = function.persistence() else { panic!("it has a state") };
    state.restore_image(&image).unwrap();
    assert_eq!(function.model().hidden, [9, 0]);
}

/// A register where the function serves MSI-X would be one that no guest can reach.
#[test]
fn registers_hidden_by_msix_are_refused() {
    struct Hidden(u32, u32);

    impl Model for Hidden {
        type State = Stateless;

        fn spec(&self) -> FunctionSpec {
            let &Self(table, pba) = self;
            let msix = Capability::Msix { vectors: 2, table: (1, table), pba: (1, pba) };
            FunctionSpec::new(0x1234, 0x0001).bar(1, Bar::memory32(4096)).capability(msix)
        }

        fn find_register(&self, bar: u8, range: Range<u64>) -> Option<u64> {
            assert_eq!(bar, 1);
            <Subject as Registers>::find_register(range)
        }

        fn read(&mut self, _cx: &Cx<Self>, _bar: u8, _offset: u64, _data: &mut [u8]) {}
        fn write(&mut self, _cx: &Cx<Self>, _bar: u8, _offset: u64, _data: &[u8]) {}
        fn reset(&mut self, _cx: &Cx<Self>) {}
    }

    // The last register is 4 bytes at 0x18.
    Function::new(Hidden(0x20, 0x40)).unwrap();
    for (table, pba, words) in [
        (0x18, 0x40, "BAR 1: the register at 0x18 is hidden by the MSI-X table"),
        (0x00, 0x40, "the register at 0x0 is hidden by the MSI-X table"),
        (0x40, 0x08, "the register at 0x8 is hidden by the MSI-X pending bits"),
    ] {
        let error = Function::new(Hidden(table, pba)).map(drop).unwrap_err();
        assert_eq!(error.errno(), Errno::INVAL);
        assert!(error.to_string().contains(words), "{error}");
    }
}
