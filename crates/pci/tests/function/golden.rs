//! The saved state of a function: the file `tests/golden/pci-function-VERSION.json` of each version can
//! be restored. With `VFIOD_GOLDEN=write` in the environment the file of the current version is
//! written if it is missing.

use std::path::Path;

use serde_json::Value;
use vfiod_core::{Context, Device, Errno, Persistence, RegionIndex, Saved};
use vfiod_pci::Function;
use vfiod_pci::prelude::*;

use crate::rig::{CONFIG, EXPRESS, MSI, MSIX, TABLE, everything};

/// The version that is written now.
const CURRENT: u32 = 1;

registers! {
    /// A function with one of everything; a write to WORD sets the condition of that vector.
    struct Full, enum Write {
        0x0 word: u32 => Word;
    }
}

impl RegisterModel for Full {
    type State = HasState;
    const KIND: &'static str = "full";
    const VERSION: u32 = 1;

    fn spec(&self) -> FunctionSpec {
        everything(Capability::PowerManagement)
    }

    fn write(&mut self, cx: &Cx<Self>, Write::Word(word): Write) {
        self.word = word;
        cx.interrupts().set(word, true);
    }
}

fn full() -> Function<Full> {
    let mut function = Function::new(Full::power_on()).unwrap();
    let irqs = function.describe().irqs;
    function.init(&Context::detached("full", &irqs)).unwrap();
    function
}

fn save(function: &mut Function<Full>) -> Value {
    let Persistence::Saved(state) = function.persistence() else { panic!("it has a state") };
    serde_json::to_value(state.save().unwrap()).unwrap()
}

fn restore(function: &mut Function<Full>, text: &Value) -> Result<()> {
    let saved: Saved = serde_json::from_value(text.clone()).unwrap();
    let Persistence::Saved(state) = function.persistence() else { panic!("it has a state") };
    state.restore(&saved)
}

/// A function of which everything that is saved was changed.
fn used() -> Function<Full> {
    let mut function = full();
    let mut write = |region, offset, data: &[u8]| function.write(region, offset, data).unwrap();
    write(CONFIG, 0x04, &[0x07, 0x04]); // bus mastering, INTx disabled
    write(CONFIG, 0x10, &0xfe00_0000_u32.to_le_bytes());
    write(CONFIG, EXPRESS + 8, &[0x10, 0x28]);
    write(CONFIG, MSI + 2, &[0x21, 0]); // four messages, enabled
    write(CONFIG, MSI + 16, &[0x04]); // message 2 masked
    write(CONFIG, MSIX + 2, &[0x45, 0xc0]); // enabled, all masked
    let table = RegionIndex(4);
    write(table, TABLE, &0xfee0_1000_u64.to_le_bytes());
    write(table, TABLE + 8, &[0x41, 0, 0, 0, 1, 0, 0, 0]);
    write(table, TABLE + 16 + 12, &[0; 4]); // entry 1 unmasked
    write(RegionIndex(0), 0, &3_u32.to_le_bytes());
    function
}

#[test]
fn golden_files_can_be_restored() {
    let text = save(&mut used());
    assert_eq!(text["version"], CURRENT);
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for version in 1..=CURRENT {
        let path = directory.join(format!("pci-function-{version}.json"));
        let write = std::env::var("VFIOD_GOLDEN").is_ok_and(|value| value == "write");
        if write && version == CURRENT && !path.exists() {
            std::fs::create_dir_all(&directory).unwrap();
            let pretty = serde_json::to_string_pretty(&text).unwrap();
            std::fs::write(&path, pretty + "\n").unwrap();
        }
        let golden = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let golden: Value = serde_json::from_str(&golden).unwrap();
        let mut fresh = full();
        restore(&mut fresh, &golden).unwrap();
        if version == CURRENT {
            assert_eq!(save(&mut fresh), golden);
            assert_eq!(golden, text, "what is written now");
        }
    }
}

#[test]
fn state_of_another_function_is_refused_and_changes_nothing() {
    let text = save(&mut used());
    let rows = [
        ("config", "00".into(), "1 bytes of configuration space"),
        ("msix_table", "00".into(), "an MSI-X table of another size"),
        ("conditions", serde_json::json!([2048]), "condition of vector 2048"),
        ("model", Value::Null, "no state of the full"),
    ];
    for (field, value, message) in rows {
        let mut text = text.clone();
        text["state"][field] = value;
        let mut fresh = full();
        let before = save(&mut fresh);
        let error = restore(&mut fresh, &text).unwrap_err();
        assert_eq!(error.errno(), Errno::INVAL);
        assert!(error.message().contains(message), "{field}: {error}");
        assert_eq!(save(&mut fresh), before, "{field}");
    }
}
