//! The models by name, with their options, for configuration files and people.

use serde::de::DeserializeOwned;
use vfiod_core::Device;
use vfiod_pci::{Fitting, Function, Model};

#[cfg(feature = "bench")]
use crate::bench;
use crate::{edu, gpio, serial, template};

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

/// Why a model could not be made. Says what is wrong and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No model of this name.
    #[error("there is no model `{name}`; {}", remedy("model", "models", nearest, known))]
    UnknownModel {
        /// The name.
        name: String,
        /// The model that was probably meant.
        nearest: Option<&'static str>,
        /// Those that there are.
        known: Vec<&'static str>,
    },
    /// An option that the model has not.
    #[error("`{model}` has no option `{option}`; {}", remedy("option", "options", nearest, known))]
    UnknownOption {
        /// The model.
        model: &'static str,
        /// The option.
        option: String,
        /// The option that was probably meant.
        nearest: Option<&'static str>,
        /// Those that there are.
        known: Vec<&'static str>,
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

/// What would be right instead.
fn remedy(one: &str, all: &str, nearest: &Option<&str>, known: &[&str]) -> String {
    match nearest {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None if known.is_empty() => format!("it has no {one} at all"),
        None => format!("{all}: {}", known.join(", ")),
    }
}

/// The word that `word` was probably meant to be: a letter or two apart.
fn nearest(word: &str, known: &[&'static str]) -> Option<&'static str> {
    known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(word, known), *known))
        .filter(|(distance, known)| *distance <= 1 + known.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
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
    ModelInfo {
        name: "serial",
        summary: "serial card with 16550A ports, the kernel's mtty; Linux: 8250_pci",
        options: &[
            OptionInfo { name: "ports", values: "1 or 2", default: "1", summary: "how many ports" },
            OptionInfo {
                name: "backend",
                values: serial::Backend::NAMES,
                default: "loopback",
                summary: "what the ports are connected to while a client is there",
            },
            OptionInfo {
                name: "link0",
                values: "a path",
                default: "none",
                summary: "symbolic link to the first port's pseudo-terminal",
            },
            OptionInfo {
                name: "link1",
                values: "a path",
                default: "none",
                summary: "symbolic link to the second port's pseudo-terminal",
            },
        ],
    },
    #[cfg(feature = "bench")]
    ModelInfo {
        name: "bench",
        summary: "memory and operations that run inside the server, to be measured",
        options: &[OptionInfo {
            name: "shared",
            values: "true or false",
            default: "true",
            summary: "whether BAR 0 is memory that clients may map, or the model's own",
        }],
    },
];

/// Every model.
pub fn models() -> &'static [ModelInfo] {
    MODELS
}

fn unknown(name: &str, list: &'static [ModelInfo]) -> BuildError {
    let known: Vec<_> = list.iter().map(|info| info.name).collect();
    let nearest = nearest(name, &known);
    BuildError::UnknownModel { name: name.to_owned(), nearest, known }
}

/// The model of a name.
pub(crate) fn find(
    name: &str,
    list: &'static [ModelInfo],
) -> Result<&'static ModelInfo, BuildError> {
    list.iter().find(|info| info.name == name).ok_or_else(|| unknown(name, list))
}

/// Makes a device that fits in with what is around it.
///
/// # Errors
/// What is wrong with the name or an option, and what would be right.
pub fn build(
    name: &str,
    options: &Options,
    fitting: Fitting,
) -> Result<Box<dyn Device>, BuildError> {
    let info = find(name, MODELS)?;
    match info.name {
        "template" => {
            read::<NoOptions>(info, options)?;
            function(template::Template::default(), fitting)
        }
        "gpio" => function(gpio::Gpio::new(read(info, options)?), fitting),
        "edu" => function(edu::Edu::new(read(info, options)?), fitting),
        "serial" => function(serial::Serial::new(read(info, options)?), fitting),
        #[cfg(feature = "bench")]
        "bench" => function(bench::Bench::new(read(info, options)?)?, fitting),
        // Listed, but not here: the test that makes every model finds it.
        _ => Err(unknown(name, MODELS)),
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct NoOptions {}

fn function<M: Model + 'static>(model: M, fitting: Fitting) -> Result<Box<dyn Device>, BuildError> {
    Ok(Box::new(Function::fitted(model, fitting)?))
}

/// Reads the options one by one first, so that an error names the one it is about.
pub(crate) fn read<T: DeserializeOwned>(
    info: &ModelInfo,
    options: &Options,
) -> Result<T, BuildError> {
    for (key, value) in options {
        let Some(option) = info.options.iter().find(|option| option.name == key) else {
            let known: Vec<_> = info.options.iter().map(|option| option.name).collect();
            return Err(BuildError::UnknownOption {
                model: info.name,
                option: key.clone(),
                nearest: nearest(key, &known),
                known,
            });
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
        option: options.keys().cloned().collect::<Vec<_>>().join(", "),
        problem: error.to_string(),
        expected: "as listed",
    })
}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;

    fn options(text: &str) -> Options {
        serde_json::from_str(text).unwrap()
    }

    fn error(name: &str, text: &str) -> String {
        match build(name, &options(text), Fitting::default()) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{name} {text} was accepted"),
        }
    }

    #[test]
    fn every_model_can_be_made() {
        for model in models() {
            for multifunction in [None, Some(0), Some(7)] {
                let fitting = Fitting { multifunction, ..Fitting::default() };
                build(model.name, &Options::new(), fitting).unwrap();
            }
        }
    }

    /// What people are told of a model's options is what the model has.
    #[test]
    fn options_and_defaults_are_as_listed() {
        fn check<T: Default + Serialize + DeserializeOwned>(name: &str) {
            let info = models().iter().find(|info| info.name == name).unwrap();
            let defaults = serde_json::to_value(T::default()).unwrap();
            let defaults = defaults.as_object().unwrap();
            let mut listed: Vec<_> = info.options.iter().map(|option| option.name).collect();
            listed.sort_unstable();
            let mut known: Vec<_> = defaults.keys().map(String::as_str).collect();
            known.sort_unstable();
            assert_eq!(listed, known, "{name}");
            for option in info.options {
                let default = match option.default {
                    "none" => serde_json::Value::Null,
                    text => match text.strip_prefix("0x") {
                        Some(digits) => u64::from_str_radix(digits, 16).unwrap().into(),
                        None => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
                    },
                };
                assert_eq!(defaults[option.name], default, "{name}.{}", option.name);
            }
        }
        check::<gpio::GpioOptions>("gpio");
        check::<edu::EduOptions>("edu");
        check::<serial::SerialOptions>("serial");
        #[cfg(feature = "bench")]
        check::<bench::BenchOptions>("bench");
    }

    #[test]
    fn a_wrong_name_gets_the_right_one() {
        assert_eq!(error("edo", "{}"), "there is no model `edo`; did you mean `edu`?");
        let none = error("nvme", "{}");
        assert!(
            none.starts_with("there is no model `nvme`; models: template, gpio, edu"),
            "{none}"
        );
        assert_eq!(
            error("edu", r#"{"dma-mask": 1}"#),
            "`edu` has no option `dma-mask`; did you mean `dma_mask`?"
        );
        assert_eq!(
            error("gpio", r#"{"colour": 1}"#),
            "`gpio` has no option `colour`; options: inputs, control"
        );
        assert_eq!(
            error("template", r#"{"x": 1}"#),
            "`template` has no option `x`; it has no option at all"
        );
    }

    #[test]
    fn a_wrong_value_is_named_with_what_would_be_right() {
        for (name, text, option, expected) in [
            ("gpio", r#"{"inputs": 65536}"#, "inputs", "a number from 0 to 65535"),
            ("gpio", r#"{"inputs": -1}"#, "inputs", "a number from 0 to 65535"),
            ("gpio", r#"{"inputs": 1, "control": 5}"#, "control", "a path"),
            ("serial", r#"{"ports": 3}"#, "ports", "1 or 2"),
            ("serial", r#"{"backend": "tty"}"#, "backend", "loopback, pty or none"),
            ("edu", r#"{"dma_mask": "all"}"#, "dma_mask", "a number from 0 to 2^64 - 1"),
        ] {
            let error = error(name, text);
            assert!(error.starts_with(&format!("option `{option}` of `{name}`: ")), "{error}");
            assert!(error.ends_with(&format!("; must be {expected}")), "{error}");
        }
    }
}
