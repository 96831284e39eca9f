//! A million devices; fewer where the test is not optimised, to be quick.

use std::sync::Arc;

use vfiod_core::{
    Context, Description, Device, DeviceFlags, DeviceSpec, Owner, RegionIndex, Registry,
    ResetCause, Result, SetId,
};

use crate::rig::Slot;

struct Nothing;

impl Device for Nothing {
    fn persistence(&mut self) -> vfiod_core::Persistence<'_> {
        vfiod_core::Persistence::Stateless
    }

    fn describe(&self) -> Description {
        Description { flags: DeviceFlags::empty(), regions: Vec::new(), irqs: Vec::new() }
    }
    fn init(&mut self, _ctx: &Context) -> Result<()> {
        Ok(())
    }
    fn open_device(&mut self) -> Result<()> {
        Ok(())
    }
    fn close_device(&mut self) {}
    fn read(&mut self, _region: RegionIndex, _offset: u64, _data: &mut [u8]) -> Result<()> {
        Ok(())
    }
    fn write(&mut self, _region: RegionIndex, _offset: u64, _data: &[u8]) -> Result<()> {
        Ok(())
    }
    fn reset(&mut self, _cause: ResetCause) -> Result<()> {
        Ok(())
    }
}

/// How many.
const MANY: usize = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };

#[test]
fn a_million_devices_are_registered_and_unregistered() {
    let registry = Registry::new();
    let slots: Vec<_> = (0..1000).map(|_| Arc::new(Slot("slot"))).collect();
    let registrations: Vec<_> = (0..MANY)
        .map(|n| {
            // Every third has a set of its own.
            let set = (n % 3 != 0).then(|| SetId::of(&slots[n % slots.len()]));
            let spec = DeviceSpec { name: n.to_string(), set, ..DeviceSpec::default() };
            registry.register(spec, Box::new(Nothing)).unwrap()
        })
        .collect();
    for n in (0..MANY).step_by(997) {
        let device = registry.find(&n.to_string()).unwrap();
        drop(device.open(Owner::in_process("me")).unwrap());
    }
    assert_eq!(registry.devices().len(), MANY);
    drop(registrations);
    assert!(registry.devices().is_empty());
    assert!(slots.iter().all(|slot| Arc::strong_count(slot) == 1));
}
