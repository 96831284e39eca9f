//! Buses, bridges, slots and places: what a file says of them, and every rule between them.

use std::ops::Range;

use vfiod_pci::{Address, BusKind, ResetScope};

use crate::nearest::suggestion;
use crate::reader::{Names, Reader, Taken};
use crate::section::{At, Section};
use crate::types::{BridgeConfig, BusConfig, Config, SlotConfig};

impl Reader<'_> {
    /// The bus, and where its bridge is said to be.
    pub(super) fn bus<'a>(
        &self,
        name: &str,
        bus: Section<'a>,
        numbers: &mut Taken<(u16, u8)>,
    ) -> (BusConfig, Option<At<&'a str>>) {
        let segment = bus.integer("segment", 0..=0xffff).map_or(0, |at| at.value as u16);
        let given = bus.integer("number", 0..=0xff);
        let number = given.as_ref().map_or(0, |at| at.value as u8);
        let span = given.as_ref().map_or(bus.span.clone(), |at| at.span.clone());
        let readable = given.is_some() || !bus.has("number");
        if readable && let Some(other) = numbers.take((segment, number), &span, &bus.path) {
            bus.wrong(
                "number",
                span,
                format!("bus {segment:04x}:{number:02x} is {} already", self.at(&other)),
                "give each bus of a segment its own number".to_owned(),
            );
        }
        let kinds = [
            ("slot", BusKind::Bridged(ResetScope::Slot)),
            ("bus", BusKind::Bridged(ResetScope::Bus)),
            ("none", BusKind::Root),
        ];
        let kind = bus.choice("reset", &kinds).unwrap_or(BusKind::Bridged(ResetScope::Slot));
        let bridge = bus.string("bridge");
        bus.finish();
        (BusConfig { name: name.to_owned(), segment, number, kind, bridge: None }, bridge)
    }

    pub(super) fn slot(
        &self,
        slot: Section<'_>,
        buses: &Names<'_>,
        numbers: &mut Taken<(usize, u8)>,
    ) -> SlotConfig {
        let bus = match slot.string("bus") {
            Some(name) => self.index(&slot, "bus", "buses", &name, buses),
            None => {
                if !slot.has("bus") {
                    let names = buses.iter().map(|at| at.value);
                    slot.missing(
                        "bus",
                        format!("name its bus; {}", suggestion("", "buses", names)),
                    );
                }
                None
            }
        };
        let given = slot.integer("number", 0..=31);
        let number = given.as_ref().map_or(0, |at| at.value as u8);
        let span = given.as_ref().map_or(slot.span.clone(), |at| at.span.clone());
        let readable = given.is_some() || !slot.has("number");
        if let (true, Some(bus)) = (readable, bus)
            && let Some(other) = numbers.take((bus, number), &span, &slot.path)
        {
            let bus = buses[bus].value;
            slot.wrong(
                "number",
                span,
                format!("slot {number} of bus `{bus}` is {} already", self.at(&other)),
                "give each slot of a bus its own number, 0 to 31".to_owned(),
            );
        }
        slot.finish();
        SlotConfig { bus: bus.unwrap_or(0), number }
    }

    /// Finds the bridges of the buses, once all buses are known.
    pub(super) fn bridges(
        &self,
        top: &Section<'_>,
        config: &mut Config,
        buses: &Names<'_>,
        bridges: Vec<Option<At<&str>>>,
    ) {
        let key = |index: usize| format!("bus.{}.bridge", buses[index].value);
        for (index, given) in bridges.iter().enumerate() {
            let Some(given) = given else { continue };
            let place = given.value.rsplit_once('/').filter(|(_, place)| !place.contains(':'));
            let place = place.and_then(|(bus, place)| {
                let address: Address = format!("00:{place}").parse().ok()?;
                Some((bus, address))
            });
            let Some((bus, address)) = place else {
                let what = format!("`{}` is no place of a bridge", given.value);
                let help = "write BUS/DEVICE.FUNCTION, as in \"root/02.0\": the name of another bus, \
                            and where the bridge is on it (hexadecimal, up to 1f.7)";
                top.wrong(&key(index), given.span.clone(), what, help.to_owned());
                continue;
            };
            let Some(above) = buses.iter().position(|at| at.value == bus) else {
                let names = buses.iter().map(|at| at.value);
                let help = suggestion(bus, "buses", names);
                top.wrong(
                    &key(index),
                    given.span.clone(),
                    format!("there is no bus `{bus}`"),
                    help,
                );
                continue;
            };
            let (here, there) = (config.buses[index].segment, config.buses[above].segment);
            if here != there {
                let what = format!(
                    "the bridge is on segment {there:04x}, so the bus behind it cannot be on {here:04x}"
                );
                top.wrong(
                    &key(index),
                    given.span.clone(),
                    what,
                    format!("write segment = {there}"),
                );
            }
            let Address { device, function, .. } = address;
            config.buses[index].bridge = Some(BridgeConfig { bus: above, device, function });
        }
        for (index, given) in bridges.iter().enumerate() {
            let (Some(given), Some(path)) = (given, cycle(config, index)) else { continue };
            let names: Vec<_> = path.iter().map(|bus| buses[*bus].value).collect();
            let what = format!("this bus is behind itself: {}", names.join(" behind "));
            let help = "one of them has to hang off nothing: leave its `bridge` out";
            top.wrong(&key(index), given.span.clone(), what, help.to_owned());
        }
        // Who follows the bridges from here on shall come to an end.
        for index in 0..config.buses.len() {
            if cycle(config, index).is_some() {
                config.buses[index].bridge = None;
            }
        }
    }

    pub(super) fn place(
        &self,
        device: &Section<'_>,
        slots: &Names<'_>,
        places: &mut Taken<(usize, u8)>,
    ) -> Option<(usize, u8)> {
        if device.has("physical_function") {
            // Its place follows from that.
            if let Some(slot) = device.string("slot") {
                let what = "a virtual function is where its physical function puts it";
                device.wrong("slot", slot.span, what, "leave `slot` out".to_owned());
            }
            return None;
        }
        let slot = device.string("slot");
        let function = device.integer("function", 0..=7);
        let Some(slot) = slot else {
            if let Some(function) = function
                && !device.has("slot")
            {
                let what = "a function number needs a slot";
                let help = "add `slot`, or leave `function` out";
                device.wrong("function", function.span, what, help.to_owned());
            }
            return None;
        };
        let index = self.index(device, "slot", "slots", &slot, slots)?;
        if function.is_none() && device.has("function") {
            return None;
        }
        let number = function.as_ref().map_or(0, |at| at.value as u8);
        let span = function.map_or(slot.span, |at| at.span);
        if let Some(other) = places.take((index, number), &span, &device.path) {
            device.wrong(
                "function",
                span,
                format!(
                    "function {number} of slot `{}` is {} already",
                    slot.value,
                    self.at(&other)
                ),
                "give each device of a slot its own `function`, 0 to 7".to_owned(),
            );
        }
        Some((index, number))
    }

    /// A guest looks for functions 1 to 7 only where there is a function 0.
    pub(super) fn first_functions(
        &self,
        top: &Section<'_>,
        config: &Config,
        slots: &Names<'_>,
        places: &Taken<(usize, u8)>,
    ) {
        for (index, slot) in slots.iter().enumerate() {
            let mut used = config.devices.iter().filter_map(|device| device.place);
            if used.any(|place| place.0 == index) && !places.holds(&(index, 0)) {
                top.wrong(
                    &format!("slot.{}", slot.value),
                    slot.span.clone(),
                    "no device is function 0 of this slot, so a guest finds none of the others",
                    "make one of its devices `function = 0`".to_owned(),
                );
            }
        }
    }

    /// No two of devices, bridges and virtual functions in one place. Two devices of one slot have
    /// been dealt with.
    pub(super) fn occupied(&self, top: &Section<'_>, config: &Config) {
        let mut taken = Taken::default();
        for device in config.devices.iter().filter(|device| device.place.is_some()) {
            if let Some(address) = config.address(device) {
                let _ = taken.take(address, &device.span, &format!("device.{}", device.name));
            }
        }
        let mut check = |address: Address, key: &str, by: &str, span: Range<usize>, help: &str| {
            if let Some(other) = taken.take(address, &span, by) {
                let what = format!("{address} is {} already", self.at(&other));
                top.wrong(key, span, what, help.to_owned());
            }
        };
        for bus in &config.buses {
            let Some(BridgeConfig { bus: above, device, function }) = bus.bridge else { continue };
            let above = &config.buses[above];
            let (segment, number) = (above.segment, above.number);
            let address = Address { segment, bus: number, device, function };
            let (key, by) = (format!("bus.{}.bridge", bus.name), format!("bus.{}", bus.name));
            check(address, &key, &by, top.span_of(&key), "give the bridge a place of its own");
        }
        for device in config.devices.iter().filter(|device| device.place.is_none()) {
            let Some(address) = config.address(device) else { continue };
            let key = format!("device.{}", device.name);
            let help = "leave room for virtual functions: `virtual_functions = { total = …, \
                        offset = …, stride = … }` of the physical function says where they are";
            check(address, &key, &key, device.span.clone(), help);
        }
    }

    /// A reset reaches what is behind a bridge, too, and that is not of the same device set: so a
    /// bridge with devices behind it must be where no reset of devices reaches it.
    pub(super) fn reach(&self, top: &Section<'_>, config: &Config) {
        for (index, bus) in config.buses.iter().enumerate() {
            let Some(bridge) = bus.bridge else { continue };
            let behind = |device| {
                let mut at = config.bus(device);
                while let Some(bus) = at.filter(|bus| *bus != index) {
                    at = config.buses[bus].bridge.map(|bridge| bridge.bus);
                }
                at.is_some()
            };
            if !config.devices.iter().any(behind) {
                continue;
            }
            let above = &config.buses[bridge.bus];
            let beside = config.devices.iter().find(|device| {
                let Some((slot, _)) = device.place else { return false };
                let slot = &config.slots[slot];
                slot.bus == bridge.bus
                    && match above.kind {
                        BusKind::Root => false,
                        BusKind::Bridged(ResetScope::Bus) => true,
                        BusKind::Bridged(ResetScope::Slot) => slot.number == bridge.device,
                    }
            });
            let Some(beside) = beside else { continue };
            let key = format!("bus.{}.bridge", bus.name);
            let what = format!(
                "a reset of `device.{}` and its set would reach the devices behind this bridge, \
                 which are another set",
                beside.name
            );
            let help = match above.kind {
                BusKind::Bridged(ResetScope::Slot) => {
                    "give the bridge a slot of its own".to_owned()
                }
                _ => format!("put `reset = \"slot\"` or \"none\" into `bus.{}`", above.name),
            };
            top.wrong(&key, top.span_of(&key), what, help);
        }
    }
}

/// The way from a bus over its bridges back to itself, if there is one.
fn cycle(config: &Config, start: usize) -> Option<Vec<usize>> {
    let mut path = vec![start];
    let mut at = start;
    while let Some(bridge) = config.buses[at].bridge {
        at = bridge.bus;
        if at == start {
            path.push(at);
            return Some(path);
        }
        if path.contains(&at) {
            return None;
        }
        path.push(at);
    }
    None
}
