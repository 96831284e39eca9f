//! Buses and slots: objects that functions share, and so the identities of their device sets.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use vfiod_core::{Errno, Error, Result, SetId, SetObject};
use vfiod_sync::{Mutex, lock};

use crate::address::Address;

/// What a reset from above a function reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetScope {
    /// Every slot can be reset by itself: its functions are a set.
    Slot,
    /// Only the bus as a whole: everything on it is a set.
    Bus,
}

/// What a bus is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusKind {
    /// Nothing, or a bridge that cannot reset it: there is no reset from above, so every function
    /// is a set of its own.
    Root,
    /// A bridge or a port.
    Bridged(ResetScope),
}

/// A PCI bus.
#[derive(Debug)]
pub struct Bus {
    segment: u16,
    number: u8,
    kind: BusKind,
    /// The place of the bridge that the bus is behind, if that is known.
    bridge: Option<Placement>,
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    slots: BTreeMap<u8, Weak<Slot>>,
    taken: BTreeMap<(u8, u8), String>,
}

/// A slot of a bus: up to eight functions.
#[derive(Debug)]
pub struct Slot {
    bus: Arc<Bus>,
    device: u8,
}

/// A function's place on a bus, free again when this is dropped.
#[derive(Debug)]
pub struct Placement {
    address: Address,
    set: Option<SetId>,
    bus: Arc<Bus>,
}

impl SetObject for Bus {
    fn set_name(&self) -> String {
        format!("bus {:04x}:{:02x}", self.segment, self.number)
    }
}

impl SetObject for Slot {
    fn set_name(&self) -> String {
        format!("slot {:04x}:{:02x}:{:02x}", self.bus.segment, self.bus.number, self.device)
    }
}

impl Bus {
    /// A bus with nothing on it.
    pub fn new(segment: u16, number: u8, kind: BusKind) -> Arc<Self> {
        Arc::new(Self { segment, number, kind, bridge: None, places: Mutex::default() })
    }

    /// A bus behind a bridge that has a place on another bus, and keeps it as long as this bus is
    /// there. Its segment is that of the bridge.
    pub fn behind(bridge: Placement, number: u8, kind: BusKind) -> Arc<Self> {
        let segment = bridge.address.segment;
        Arc::new(Self { segment, number, kind, bridge: Some(bridge), places: Mutex::default() })
    }

    /// The address of the bridge that the bus is behind, if that is known.
    pub fn bridge(&self) -> Option<Address> {
        self.bridge.as_ref().map(Placement::address)
    }

    /// Whether a function here is integrated into the root complex
    /// ([`Fitting::integrated`](crate::Fitting)): nothing is above the bus.
    pub fn is_root(&self) -> bool {
        self.kind == BusKind::Root && self.bridge.is_none()
    }

    /// What the bus is behind.
    pub fn kind(&self) -> BusKind {
        self.kind
    }

    /// Takes a place for a function. The placement's set is the slot, the bus or none, as the
    /// bus can be reset.
    ///
    /// # Errors
    /// `EINVAL`: no such place; `EEXIST`: it is taken; the message names the device there.
    pub fn place(self: &Arc<Self>, device: u8, function: u8, name: &str) -> Result<Placement> {
        let address = Address { segment: self.segment, bus: self.number, device, function };
        if device > 31 || function > 7 {
            return Err(Error::new(Errno::INVAL, format!("{name}: there is no place {address}")));
        }
        let mut places = lock(&self.places);
        if let Some(other) = places.taken.get(&(device, function)) {
            let what = format!("{name}: {address} is taken by {other}");
            return Err(Error::new(Errno::EXIST, what));
        }
        let set = match self.kind {
            BusKind::Root => None,
            BusKind::Bridged(ResetScope::Bus) => Some(SetId::of(self)),
            BusKind::Bridged(ResetScope::Slot) => {
                let known = places.slots.get(&device).and_then(Weak::upgrade);
                let slot = known.unwrap_or_else(|| {
                    let slot = Arc::new(Slot { bus: self.clone(), device });
                    places.slots.insert(device, Arc::downgrade(&slot));
                    slot
                });
                Some(SetId::of(&slot))
            }
        };
        places.taken.insert((device, function), name.to_owned());
        Ok(Placement { address, set, bus: self.clone() })
    }
}

impl Placement {
    /// Where it is.
    pub fn address(&self) -> Address {
        self.address
    }

    /// The same place for an SR-IOV virtual function: it is reset by itself (PCIe 9.2.2.2), so
    /// its set is its own whatever the bus.
    #[must_use]
    pub fn virtual_function(mut self) -> Self {
        self.set = None;
        self
    }

    /// The set that a function here belongs to; `None`: one of its own.
    pub fn set(&self) -> Option<SetId> {
        self.set.clone()
    }
}

impl Drop for Placement {
    fn drop(&mut self) {
        let mut places = lock(&self.bus.places);
        places.taken.remove(&(self.address.device, self.address.function));
        places.slots.retain(|_, slot| slot.strong_count() > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(placement: &Placement) -> Option<String> {
        placement.set().map(|set| set.name())
    }

    #[test]
    fn the_set_follows_what_can_be_reset() {
        let bus = Bus::new(0, 1, BusKind::Bridged(ResetScope::Slot));
        let (a, b) = (bus.place(2, 0, "a").unwrap(), bus.place(2, 1, "b").unwrap());
        let c = bus.place(3, 0, "c").unwrap();
        assert_eq!(name(&a).as_deref(), Some("slot 0000:01:02"));
        assert_eq!(name(&b), name(&a));
        assert_eq!(name(&c).as_deref(), Some("slot 0000:01:03"));

        let bus = Bus::new(0, 4, BusKind::Bridged(ResetScope::Bus));
        assert_eq!(name(&bus.place(1, 0, "a").unwrap()).as_deref(), Some("bus 0000:04"));

        let bus = Bus::new(0, 0, BusKind::Root);
        assert_eq!(name(&bus.place(1, 0, "a").unwrap()), None);

        let bus = Bus::new(0, 1, BusKind::Bridged(ResetScope::Slot));
        let function = bus.place(2, 0, "a").unwrap().virtual_function();
        assert_eq!(name(&function), None);
        assert_eq!(bus.place(2, 0, "b").unwrap_err().errno(), Errno::EXIST);
    }

    #[test]
    fn a_slot_lives_as_long_as_its_set() {
        let bus = Bus::new(0, 1, BusKind::Bridged(ResetScope::Slot));
        let first = bus.place(2, 0, "a").unwrap();
        let held = first.set();
        drop(first);
        // Whoever holds the set keeps the slot: a function that comes now joins it.
        assert_eq!(bus.place(2, 0, "b").unwrap().set(), held);
        assert!(held.is_some());
    }

    #[test]
    fn a_bridge_keeps_its_place() {
        let root = Bus::new(3, 0, BusKind::Root);
        let port = root.place(1, 0, "port").unwrap();
        let below = Bus::behind(port, 1, BusKind::Bridged(ResetScope::Slot));
        assert!(root.is_root() && !below.is_root());
        assert!(!Bus::new(0, 0, BusKind::Bridged(ResetScope::Bus)).is_root());
        assert_eq!(below.bridge().unwrap().to_string(), "0003:00:01.0");
        assert_eq!(root.place(1, 0, "a").unwrap_err().errno(), Errno::EXIST);
        let function = below.place(0, 0, "a").unwrap();
        assert_eq!(name(&function).as_deref(), Some("slot 0003:01:00"));
        drop(below);
        // The bridge keeps its place while a function is on the bus.
        assert_eq!(root.place(1, 0, "a").unwrap_err().errno(), Errno::EXIST);
        drop(function);
        root.place(1, 0, "a").unwrap();
    }

    #[test]
    fn a_place_is_taken_once_and_freed() {
        let bus = Bus::new(0, 1, BusKind::Root);
        let a = bus.place(2, 0, "a").unwrap();
        let error = bus.place(2, 0, "b").unwrap_err();
        assert_eq!(error.errno(), Errno::EXIST);
        assert!(error.to_string().contains("0000:01:02.0 is taken by a"), "{error}");
        drop(a);
        bus.place(2, 0, "b").unwrap();
        assert_eq!(bus.place(32, 0, "c").unwrap_err().errno(), Errno::INVAL);
        assert_eq!(bus.place(0, 8, "c").unwrap_err().errno(), Errno::INVAL);
    }
}
