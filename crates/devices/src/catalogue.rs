//! The models by name, with their options, for configuration files and people.

use serde::de::DeserializeOwned;
use vfiod_core::Device;
use vfiod_pci::{Function, Model};

use crate::{edu, gpio, template};

/// Options of a model, by name.
pub type Options = serde_json::Map<String, serde_json::Value>;

/// A model, described for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// Its name.
    pub name: &'static str,
    /// What it is, in a line.
    pub summary: &'static str,
    /// Its options.
    pub options: &'static [OptionInfo],
}

/// An option of a model, described for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionInfo {
    /// Its name.
    pub name: &'static str,
    /// What may be written.
    pub values: &'static str,
    /// What it is if nothing is written.
    pub default: &'static str,
    /// What it does.
    pub summary: &'static str,
}

/// Why a model could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No model of this name.
    #[error("there is no model `{0}`")]
    UnknownModel(String),
    /// An option that the model has not.
    #[error("`{model}` has no option `{option}`")]
    UnknownOption {
        /// The model.
        model: &'static str,
        /// The option.
        option: String,
    },
    /// An option's value is of the wrong type or out of range.
    #[error("option `{option}` of `{model}`: {problem}; must be {expected}")]
    BadValue {
        /// The model.
        model: &'static str,
        /// The option.
        option: String,
        /// What is wrong.
        problem: String,
        /// What would be right.
        expected: &'static str,
    },
    /// The device could not be made.
    #[error("cannot make the device")]
    Device(#[from] vfiod_core::Error),
}

const MODELS: &[ModelInfo] = &[
    ModelInfo {
        name: "template",
        summary: "a word to scribble on and an interrupt; the model to copy for your own device",
        options: &[],
    },
    ModelInfo {
        name: "gpio",
        summary: "ACCES PCI-IDIO-16, 16 outputs and 16 inputs; Linux: gpio-pci-idio-16",
        options: &[
            OptionInfo {
                name: "inputs",
                values: "a number from 0 to 65535",
                default: "0",
                summary: "inputs at the start, a bit each",
            },
            OptionInfo {
                name: "control",
                values: "a path",
                default: "none",
                summary: "UNIX socket to set inputs and watch outputs: set N 0|1, get, watch",
            },
        ],
    },
    ModelInfo {
        name: "edu",
        summary: "QEMU's educational device: factorial, DMA both ways, INTx and MSI",
        options: &[OptionInfo {
            name: "dma_mask",
            values: "a number from 0 to 2^64 - 1",
            default: "0xfffffff",
            summary: "address bits of the DMA engine",
        }],
    },
    #[cfg(feature = "bench")]
    ModelInfo {
        name: "bench",
        summary: "memory and operations that run inside the server, to be measured",
        options: &[OptionInfo {
            name: "shared",
            values: "true or false",
            default: "false",
            summary: "whether BAR 0 is memory that clients may map",
        }],
    },
];

/// Every model.
pub fn models() -> &'static [ModelInfo] {
    MODELS
}

/// Makes a device. `number`: its function number, where it is one of several in its slot.
///
/// # Errors
/// What is wrong with the name or an option, and what would be right.
pub fn build(
    name: &str,
    options: &Options,
    number: Option<u8>,
) -> Result<Box<dyn Device>, BuildError> {
    let Some(info) = MODELS.iter().find(|info| info.name == name) else {
        return Err(BuildError::UnknownModel(name.to_owned()));
    };
    match info.name {
        "template" => {
            read::<NoOptions>(info, options)?;
            function(template::Template::default(), number)
        }
        "gpio" => function(gpio::Gpio::new(read(info, options)?), number),
        "edu" => function(edu::Edu::new(read(info, options)?), number),
        #[cfg(feature = "bench")]
        "bench" => function(crate::bench::Bench::new(read(info, options)?)?, number),
        other => Err(BuildError::UnknownModel(other.to_owned())),
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct NoOptions {}

fn function<M: Model + 'static>(
    model: M,
    number: Option<u8>,
) -> Result<Box<dyn Device>, BuildError> {
    let function = Function::new(model)?;
    Ok(Box::new(match number {
        Some(number) => function.multifunction(number),
        None => function,
    }))
}

/// Reads the options one by one first, so that an error names the one it is about.
fn read<T: DeserializeOwned>(info: &ModelInfo, options: &Options) -> Result<T, BuildError> {
    for (key, value) in options {
        let Some(option) = info.options.iter().find(|option| option.name == key) else {
            return Err(BuildError::UnknownOption { model: info.name, option: key.clone() });
        };
        let mut alone = Options::new();
        alone.insert(key.clone(), value.clone());
        if let Err(error) = serde_json::from_value::<T>(alone.into()) {
            return Err(BuildError::BadValue {
                model: info.name,
                option: key.clone(),
                problem: error.to_string(),
                expected: option.values,
            });
        }
    }
    serde_json::from_value(options.clone().into()).map_err(|error| BuildError::BadValue {
        model: info.name,
        option: String::new(),
        problem: error.to_string(),
        expected: "as listed",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Options {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn every_model_can_be_made() {
        for model in models() {
            build(model.name, &Options::new(), None).unwrap();
        }
    }

    #[test]
    fn a_wrong_option_is_named() {
        let error = |name, text| match build(name, &options(text), None) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{name} {text} was accepted"),
        };
        assert_eq!(error("ed", "{}"), "there is no model `ed`");
        assert_eq!(error("edu", r#"{"dma": 1}"#), "`edu` has no option `dma`");
        assert_eq!(error("template", r#"{"x": 1}"#), "`template` has no option `x`");
        let text = error("gpio", r#"{"inputs": 65536}"#);
        assert!(text.contains("option `inputs` of `gpio`"), "{text}");
        assert!(text.ends_with("must be a number from 0 to 65535"), "{text}");
    }
}
