//! Parents of mediated devices: what makes instances of the models while a daemon runs.
//!
//! One file each; [`crate::catalogue`] has them by name.

mod edu;
mod gpio;
mod serial;
#[cfg(test)]
mod tests;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vfiod_core::{Device, Errno, Error, Result};
use vfiod_pci::{Function, Model};

pub(crate) use self::edu::EduParent;
pub(crate) use self::gpio::GpioParent;
pub(crate) use self::serial::SerialParent;

/// Options of a parent that offers one type.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ParentOptions {
    /// How many instances there can be.
    instances: u32,
}

impl Default for ParentOptions {
    fn default() -> Self {
        Self { instances: 16 }
    }
}

/// A model as a device that stands alone in its slot.
fn function<M: Model + 'static>(model: M) -> Result<Box<dyn Device>> {
    Ok(Box::new(Function::new(model)?))
}

/// A number as people write it: decimal, or hexadecimal with 0x.
fn number(text: &str, largest: u64) -> Result<u64> {
    let text = text.trim();
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    number.filter(|number| *number <= largest).ok_or_else(|| {
        let what = format!("`{}` is no number from 0 to {largest:#x}", text.escape_debug());
        Error::new(Errno::INVAL, what)
    })
}
