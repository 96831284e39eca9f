//! The two forms of a device's saved state, and damage to them.

use serde_json::Value;
use vfiod_core::{DescriptorTable, DeviceRef, Errno, Saved};

use crate::driver::Driver;
use crate::operations::Choices;

/// Where the state of the device is in that of the core.
pub(crate) const DEVICE: &str = "/state/device";
/// Where the state of the model is in that of the core.
pub(crate) const MODEL: &str = "/state/device/state/model";

/// Where the state of the interrupts is in that of the core.
pub(crate) const INTERRUPTS: &str = "/state/interrupts";

/// Both forms of a device's state.
pub(crate) struct Forms {
    pub(crate) text: Value,
    pub(crate) image: Vec<u8>,
    /// What the text refers to.
    pub(crate) descriptors: DescriptorTable,
}

impl Forms {
    /// Saves a device.
    pub(crate) fn of(device: &DeviceRef) -> Self {
        let mut descriptors = DescriptorTable::new();
        let saved = device.save(&mut descriptors).expect("it can be saved");
        let text = serde_json::to_value(&saved).expect("it can be written as JSON");
        let mut image = vec![0; device.image_len().expect("it can be saved")];
        device.save_image(&mut image).expect("it can be saved");
        Self { text, image, descriptors }
    }
}

/// Why a device cannot be saved; `None` if it can.
pub(crate) fn unsaved(device: &Driver) -> Option<String> {
    let error = device.file().device().save(&mut DescriptorTable::new()).err()?;
    assert_eq!(error.errno(), Errno::OPNOTSUPP, "{error}");
    Some(error.to_string())
}

/// Reads a text as a saved state: a serde error if it is none.
pub(crate) fn parse(text: &Value) -> serde_json::Result<Saved> {
    // Through a string, as a file would be.
    serde_json::from_str(&text.to_string())
}

/// Changes something in a text.
pub(crate) fn damage(text: &mut Value, choices: &mut impl Choices) {
    match text {
        Value::Object(fields) if !fields.is_empty() => {
            let at = choices.below(fields.len() as u64) as usize;
            if choices.below(16) == 0 {
                let name = fields.keys().nth(at).cloned();
                name.and_then(|name| fields.remove(&name));
            } else if let Some(field) = fields.values_mut().nth(at) {
                damage(field, choices);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            let at = choices.below(items.len() as u64) as usize;
            match choices.below(16) {
                0 => _ = items.remove(at),
                1 => items.push(items[at].clone()),
                _ => damage(&mut items[at], choices),
            }
        }
        Value::String(string) => {
            // Mostly another hexadecimal digit.
            let mut characters: Vec<char> = string.chars().collect();
            let digit = char::from(b"0123456789abcdefg"[choices.below(17) as usize]);
            match choices.below(characters.len() as u64 + 1) as usize {
                at if at < characters.len() => characters[at] = digit,
                _ => characters.push(digit),
            }
            *string = characters.into_iter().collect();
        }
        Value::Number(number) => {
            let old = number.as_u64().unwrap_or(0);
            *text = match choices.below(4) {
                0 => (old ^ 1 << choices.below(64)).into(),
                1 => old.wrapping_add(1).into(),
                2 => choices.number().into(),
                _ => (choices.below(512) as i64 - 256).into(),
            };
        }
        Value::Bool(value) => *value = !*value,
        Value::Null | Value::Object(_) | Value::Array(_) => *text = choices.below(256).into(),
    }
}
