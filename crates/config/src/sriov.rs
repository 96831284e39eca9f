//! SR-IOV: physical functions, virtual functions and their token, as a file says them.

use toml::de::DeValue;
use vfiod_core::Token;
use vfiod_pci::VirtualFunctions;

use crate::nearest::suggestion;
use crate::reader::{Reader, Taken, Wanted};
use crate::section::{At, Section};
use crate::types::{Config, DeviceConfig, SriovConfig};
use crate::values;

/// More than a bus has places for.
const MOST: u64 = 256;

impl Reader<'_> {
    /// `physical_function` and the number that goes with it.
    pub(super) fn virtual_function(&self, device: &Section<'_>) -> Option<Wanted> {
        let physical = device.string("physical_function")?;
        let function = device.integer("function", 0..=MOST - 1);
        if function.is_none() && device.has("function") {
            return None;
        }
        let number = function.as_ref().map_or(0, |at| at.value as u16);
        let number_span = function.map_or(physical.span.clone(), |at| at.span);
        let physical = At { value: physical.value.to_owned(), span: physical.span };
        Some(Wanted { physical, number, number_span })
    }

    /// `virtual_functions`: a number, or a table.
    pub(super) fn physical_function(&self, device: &Section<'_>) -> SriovConfig {
        let Some(value) = device.value("virtual_functions") else { return SriovConfig::None };
        let functions = match value.get_ref() {
            DeValue::Table(_) => {
                let Some(table) = device.section("virtual_functions") else {
                    return SriovConfig::None;
                };
                let total = table.integer("total", 1..=MOST);
                if total.is_none() && !table.has("total") {
                    table.missing("total", "say how many there can be");
                }
                let offset = table.integer("offset", 1..=MOST - 1);
                let stride = table.integer("stride", 1..=MOST - 1);
                table.finish();
                let most = VirtualFunctions::new(total.map_or(1, |at| at.value as u16));
                VirtualFunctions {
                    offset: offset.map_or(most.offset, |at| at.value as u16),
                    stride: stride.map_or(most.stride, |at| at.value as u16),
                    ..most
                }
            }
            _ => match device.integer("virtual_functions", 1..=MOST) {
                Some(total) => VirtualFunctions::new(total.value as u16),
                None => return SriovConfig::None,
            },
        };
        if device.has("physical_function") {
            let what = "a virtual function has no virtual functions";
            let help = "leave either `virtual_functions` or `physical_function` out";
            device.wrong("virtual_functions", value.span(), what, help.to_owned());
            return SriovConfig::None;
        }
        if !device.has("slot") {
            let what = "where its virtual functions are follows from where it is, which is nowhere";
            device.wrong("virtual_functions", value.span(), what, "add `slot`".to_owned());
            return SriovConfig::None;
        }
        // How many there are shows when all have been read.
        SriovConfig::Physical(VirtualFunctions { count: 0, ..functions })
    }

    pub(super) fn token(&self, device: &Section<'_>) -> Option<Token> {
        let text = device.string("vf_token")?;
        if !device.has("physical_function") && !device.has("virtual_functions") {
            let what = "only SR-IOV functions have a use for a token";
            let help = "leave it out, or add `virtual_functions` or `physical_function`";
            device.wrong("vf_token", text.span.clone(), what, help.to_owned());
        }
        let token = values::uuid(text.value).map(Token);
        if token.is_none() {
            let what = format!("`{}` is no UUID", text.value);
            let help =
                "write one like \"bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3\"; uuidgen makes them";
            device.wrong("vf_token", text.span, what, help.to_owned());
        }
        token
    }

    /// Finds the physical function of each virtual one, once all devices are known.
    pub(super) fn virtual_functions(
        &self,
        top: &Section<'_>,
        config: &mut Config,
        virtuals: Vec<(usize, Wanted)>,
    ) {
        let mut numbers = Taken::default();
        for (index, Wanted { physical, number, number_span }) in virtuals {
            let key = |key: &str| format!("device.{}.{key}", config.devices[index].name);
            let wrong = |what: String, help: String| {
                top.wrong(&key("physical_function"), physical.span.clone(), what, help);
            };
            let candidates = || {
                let physical =
                    |device: &&DeviceConfig| matches!(device.sriov, SriovConfig::Physical(_));
                config.devices.iter().filter(physical).map(|device| device.name.as_str())
            };
            let found = config.devices.iter().position(|device| device.name == physical.value);
            let Some(found) = found else {
                let what = format!("there is no device `{}`", physical.value);
                wrong(what, suggestion(&physical.value, "physical functions", candidates()));
                continue;
            };
            let SriovConfig::Physical(mut functions) = config.devices[found].sriov else {
                let what = format!("device `{}` has no virtual functions", physical.value);
                wrong(what, format!("add `virtual_functions` to [device.{}]", physical.value));
                continue;
            };
            let model = config.devices[found].model.clone();
            if model != config.devices[index].model {
                let what = format!("`{}` is of another model, {model}", physical.value);
                wrong(what, "virtual functions have the model of their physical one".to_owned());
            }
            if number >= functions.total {
                let total = functions.total;
                let what = format!("`{}` has {total} virtual functions", physical.value);
                let help = format!("they go from 0 to {}", total - 1);
                top.wrong(&key("function"), number_span.clone(), what, help);
                continue;
            }
            let by = format!("device.{}", config.devices[index].name);
            if let Some(other) = numbers.take((found, number), &number_span, &by) {
                let what = format!(
                    "virtual function {number} of `{}` is {} already",
                    physical.value,
                    self.at(&other)
                );
                let help = "give each its own `function`".to_owned();
                top.wrong(&key("function"), number_span, what, help);
                continue;
            }
            let at = config.address(&config.devices[found]);
            if at.is_some_and(|at| functions.address(at, number).is_none()) {
                let what = format!(
                    "virtual function {number} of `{}` would be past the end of its bus",
                    physical.value
                );
                let help = "choose a smaller offset or stride: `virtual_functions = { total = …, \
                            offset = …, stride = … }`";
                top.wrong(&key("function"), number_span, what, help.to_owned());
                continue;
            }
            functions.count = functions.count.max(number + 1);
            config.devices[found].sriov = SriovConfig::Physical(functions);
            config.devices[index].sriov = SriovConfig::Virtual { physical: found, number };
        }
    }
}
