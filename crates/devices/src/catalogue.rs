//! The models and parents by name.

use vfiod_config::{ConfiguredModel, Models, Needs, NoOptions};
use vfiod_core::Result;
use vfiod_nvme::{Disks, Nvme};

#[cfg(feature = "bench")]
use crate::bench::{Bench, BenchOptions};
use crate::edu::{Edu, EduOptions};
use crate::gpio::{Gpio, GpioOptions};
use crate::parents::{EduParent, GpioParent, SerialParent};
use crate::serial::{Serial, SerialOptions};
use crate::template::Template;

/// Every model of this crate, and every parent of mediated devices.
#[must_use]
pub fn catalogue() -> Models {
    let models = Models::new()
        .model::<Template>("template")
        .model::<Gpio>("gpio")
        .model::<Edu>("edu")
        .model::<Serial>("serial")
        .operated::<Nvme>("nvme")
        .parent::<EduParent>("edu")
        .parent::<GpioParent>("gpio")
        .parent::<SerialParent>("serial")
        .parent::<Disks>("nvme");
    #[cfg(feature = "bench")]
    let models = models.model::<Bench>("bench");
    models
}

/// What opening a pseudo-terminal takes.
pub(crate) const TERMINALS: Needs = Needs { paths: &["/dev/ptmx", "/dev/pts"], ..Needs::NONE };

impl ConfiguredModel for Template {
    type Options = NoOptions;

    const SUMMARY: &'static str =
        "a word to scribble on and an interrupt; the model to copy for your own device";

    fn configured(NoOptions {}: NoOptions) -> Result<Self> {
        Ok(Self::power_on())
    }
}

impl ConfiguredModel for Gpio {
    type Options = GpioOptions;

    const SUMMARY: &'static str =
        "ACCES PCI-IDIO-16, 16 outputs and 16 inputs; Linux: gpio-pci-idio-16";

    fn configured(options: GpioOptions) -> Result<Self> {
        Ok(Self::new(options))
    }
}

impl ConfiguredModel for Edu {
    type Options = EduOptions;

    const SUMMARY: &'static str =
        "QEMU's educational device: factorial, DMA both ways, INTx and MSI";

    fn configured(options: EduOptions) -> Result<Self> {
        Ok(Self::new(options))
    }
}

impl ConfiguredModel for Serial {
    type Options = SerialOptions;

    const SUMMARY: &'static str =
        "serial card with 16550A ports, the kernel's mtty; Linux: 8250_pci";
    const NEEDS: Needs = TERMINALS;

    fn configured(options: SerialOptions) -> Result<Self> {
        Ok(Self::new(options))
    }
}

#[cfg(feature = "bench")]
impl ConfiguredModel for Bench {
    type Options = BenchOptions;

    const SUMMARY: &'static str =
        "memory and operations that run inside the server, to be measured";
    const NEEDS: Needs = Needs { system_calls: vfiod_io::SYSTEM_CALLS, ..Needs::NONE };

    fn configured(options: BenchOptions) -> Result<Self> {
        Ok(Self::new(options))
    }
}

#[cfg(test)]
mod tests {
    use vfiod_config::Options;
    use vfiod_pci::Fitting;

    use super::*;

    fn options(text: &str) -> Options {
        serde_json::from_str(text).unwrap()
    }

    fn error(name: &str, text: &str) -> String {
        match catalogue().build(name, &options(text), Fitting::default()) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("{name} {text} was accepted"),
        }
    }

    #[test]
    fn every_model_can_be_made() {
        for model in catalogue().models() {
            for multifunction in [None, Some(0), Some(7)] {
                let fitting = Fitting { multifunction, ..Fitting::default() };
                catalogue().build(&model.name, &Options::new(), fitting).unwrap();
            }
        }
    }

    #[test]
    fn a_wrong_name_gets_the_right_one() {
        assert_eq!(error("edo", "{}"), "there is no model `edo`; did you mean `edu`?");
        let none = error("floppy", "{}");
        assert!(
            none.starts_with("there is no model `floppy`; models: template, gpio, edu"),
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
