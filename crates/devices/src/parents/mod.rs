//! Parents of mediated devices: what makes instances of the models while a daemon runs.
//!
//! One file each. [`parents`] lists them for people, [`build_parent`] makes one by name.

mod edu;
mod gpio;
mod serial;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use vfiod_core::{Device, Errno, Error, Result};
use vfiod_mdev::{Capacity, Parent, ParentSpec, TypeInfo};
use vfiod_pci::{Function, Model};

use crate::catalogue::{BuildError, ModelInfo, OptionInfo, Options, find, read};

/// Options that a parent of one kind of device has.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
struct Shelf {
    /// How many instances there can be.
    instances: u32,
}

impl Default for Shelf {
    fn default() -> Self {
        Self { instances: 16 }
    }
}

const SHELF: &[OptionInfo] = &[OptionInfo {
    name: "instances",
    values: "a number from 0 to 4294967295",
    default: "16",
    summary: "how many instances there can be",
}];

const PARENTS: &[ModelInfo] = &[
    ModelInfo { name: "edu", summary: "QEMU's educational device; type edu-1", options: SHELF },
    ModelInfo { name: "gpio", summary: "ACCES PCI-IDIO-16; type gpio-16", options: SHELF },
    ModelInfo {
        name: "serial",
        summary: "the kernel's mtty: serial cards; types mtty-1 and mtty-2",
        options: serial::OPTIONS,
    },
];

/// Every kind of parent.
pub fn parents() -> &'static [ModelInfo] {
    PARENTS
}

/// Makes a parent, called `name`.
///
/// # Errors
/// What is wrong with the kind or an option, and what would be right.
pub fn build_parent(
    kind: &str,
    name: &str,
    options: &Options,
) -> Result<(ParentSpec, Box<dyn Parent>), BuildError> {
    let info = find(kind, PARENTS)?;
    let (types, capacity, parent): (Vec<TypeInfo>, Capacity, Box<dyn Parent>) = match info.name {
        "edu" => {
            let Shelf { instances } = read(info, options)?;
            (vec![edu::kind()], Capacity::PerType(instances), Box::new(edu::EduParent))
        }
        "gpio" => {
            let Shelf { instances } = read(info, options)?;
            (vec![gpio::kind()], Capacity::PerType(instances), Box::new(gpio::GpioParent))
        }
        "serial" => {
            let options: serial::SerialParentOptions = read(info, options)?;
            let capacity = Capacity::Shared(options.ports);
            (serial::kinds(), capacity, Box::new(serial::SerialParent(options)))
        }
        // Listed, but not here: the test that makes every parent finds it.
        _ => return Err(Error::new(Errno::NOENT, "not made yet").into()),
    };
    Ok((ParentSpec { name: name.to_owned(), types, capacity }, parent))
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
