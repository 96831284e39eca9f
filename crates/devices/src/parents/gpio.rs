//! The card with 16 inputs and 16 outputs as a mediated device.

use std::sync::Arc;

use vfiod_config::ConfiguredParent;
use vfiod_core::Result;
use vfiod_mdev::{
    AttributeInfo, Attributes, Capacity, NewInstance, Parent, ParentSpec, TypeInfo, Uuid,
};

use super::{ParentOptions, function, number};
use crate::gpio::{Gpio, GpioOptions, Lines};

pub(crate) struct GpioParent;

fn mdev_type() -> TypeInfo {
    let attribute = |name: &str, values: &str, summary: &str, writable| AttributeInfo {
        name: name.to_owned(),
        values: values.to_owned(),
        summary: summary.to_owned(),
        writable,
    };
    TypeInfo {
        id: "gpio-16".to_owned(),
        name: "gpio".to_owned(),
        description: "ACCES PCI-IDIO-16: 16 outputs, 16 inputs".to_owned(),
        device_api: "vfio-pci".to_owned(),
        takes: 1,
        attributes: vec![
            attribute("inputs", "a number from 0 to 65535", "its inputs, a bit each", true),
            attribute(
                "outputs",
                "a number",
                "its outputs, a bit each, as the guest set them",
                false,
            ),
        ],
    }
}

impl ConfiguredParent for GpioParent {
    type Options = ParentOptions;

    const SUMMARY: &'static str = "ACCES PCI-IDIO-16; type gpio-16";

    fn configured(name: &str, options: ParentOptions) -> Result<(ParentSpec, Box<dyn Parent>)> {
        let (name, capacity) = (name.to_owned(), Capacity::PerType(options.instances));
        Ok((ParentSpec { name, types: vec![mdev_type()], capacity }, Box::new(Self)))
    }
}

impl Parent for GpioParent {
    fn check_attribute(&self, _type_id: &str, _name: &str, value: &str) -> Result<()> {
        inputs(value).map(drop)
    }

    fn create(&self, _type_id: &str, _uuid: Uuid) -> Result<NewInstance> {
        let gpio = Gpio::new(GpioOptions::default());
        let attributes: Arc<dyn Attributes> = Arc::new(Pins(gpio.lines()));
        Ok(NewInstance { device: function(gpio)?, attributes: Some(attributes) })
    }
}

/// The lines. Inputs can be set at any time: that is what inputs are for.
struct Pins(Arc<Lines>);

impl Attributes for Pins {
    fn get(&self, name: &str) -> Result<String> {
        let lines = self.0.snapshot();
        let value = if name == "inputs" { lines.inputs } else { lines.outputs };
        Ok(format!("{value:#06x}"))
    }

    fn set(&self, _name: &str, value: &str) -> Result<()> {
        self.0.set_inputs(u16::MAX, inputs(value)?);
        Ok(())
    }
}

fn inputs(value: &str) -> Result<u16> {
    Ok(number(value, u16::MAX.into())? as u16)
}
