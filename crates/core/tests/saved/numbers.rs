//! Numbers of devices, files, sets and events, in a process that is restored.

use std::sync::{Arc, Mutex};

use vfiod_core::event::Event;
use vfiod_core::{
    DescriptorTable, Device, DeviceId, DeviceSpec, Errno, Identity, Numbers, Owner, Registration,
    Registry, Result, SetId, SetKey, SetNumber, SetObject,
};

use crate::rig::*;

struct Slot;

impl SetObject for Slot {
    fn set_name(&self) -> String {
        "slot".to_owned()
    }
}

fn register(registry: &Registry, spec: DeviceSpec) -> Result<Registration> {
    registry.register(spec, Box::<Counter>::default() as Box<dyn Device>)
}

fn named(name: &str) -> DeviceSpec {
    DeviceSpec { name: name.to_owned(), ..DeviceSpec::default() }
}

#[test]
fn device_and_set_are_registered_again_as_they_were() {
    let registry = Registry::new();
    let slot = Arc::new(Slot);
    let _first = register(&registry, named("first")).unwrap();
    let set = Some(SetId::of(&slot));
    let pair = ["a", "b"]
        .map(|name| register(&registry, DeviceSpec { set: set.clone(), ..named(name) }).unwrap());
    let identities = pair.each_ref().map(|registration| {
        let saved = registration.device().save(&mut DescriptorTable::new()).unwrap();
        Identity::of(&saved).unwrap()
    });
    assert_eq!(identities[0].set, SetKey::Shared(SetNumber(0)));
    assert_eq!(identities[0].set, identities[1].set);

    let (again, slot) = (Registry::new(), Arc::new(Slot));
    again.continue_at(registry.numbers()).unwrap();
    let pair = identities.each_ref().map(|Identity { id, name, set }| {
        let SetKey::Shared(number) = *set else { panic!("it is shared") };
        let set = Some(SetId::restored(&slot, number));
        register(&again, DeviceSpec { id: Some(*id), set, ..named(name) }).unwrap()
    });
    for (registration, identity) in pair.iter().zip(&identities) {
        let device = registration.device();
        assert_eq!((device.id(), device.set_key()), (identity.id, identity.set));
        assert_eq!(again.get(identity.id).unwrap().name(), identity.name);
    }
    let new = register(&again, named("new")).unwrap();
    assert_eq!(new.device().id(), DeviceId(3), "no number is given out twice");
    assert_eq!(new.device().set_key(), SetKey::Own(DeviceId(3)));
    let other = Some(SetId::of(&Arc::new(Slot)));
    let other = register(&again, DeviceSpec { set: other, ..named("other") }).unwrap();
    assert_eq!(other.device().set_key(), SetKey::Shared(SetNumber(1)));
}

#[test]
fn number_that_is_taken_or_out_of_range_is_refused() {
    let registry = Registry::new();
    let with = |id: u64, name: &str| DeviceSpec { id: Some(DeviceId(id)), ..named(name) };
    let first = register(&registry, with(7, "first")).unwrap();
    let error = register(&registry, with(7, "second")).unwrap_err();
    assert_eq!(error.errno(), Errno::EXIST, "{error}");
    let error = register(&registry, with(1 << 63, "third")).unwrap_err();
    assert_eq!(error.errno(), Errno::INVAL, "{error}");
    assert!(registry.find("second").is_none());
    assert_eq!(register(&registry, named("next")).unwrap().device().id(), DeviceId(8));
    first.unregister(None);
    register(&registry, with(7, "second")).unwrap().unregister(None);
}

#[test]
fn events_are_numbered_across_a_restored_process() {
    let seen = Arc::<Mutex<Vec<u64>>>::default();
    let observer = |seen: &Arc<Mutex<Vec<u64>>>| {
        let seen = seen.clone();
        Arc::new(move |event: &Event<'_>| {
            if let Event::Registered(subject) | Event::DeviceOpened(subject) = event {
                seen.lock().unwrap().push(subject.number);
            }
        })
    };
    let registry = Registry::with_observer(observer(&seen));
    let registration = register(&registry, named("first")).unwrap();
    drop(registration.device().open(Owner::in_process("test")).unwrap());
    let before = registry.numbers();
    let numbers = std::mem::take(&mut *seen.lock().unwrap());
    assert!(numbers.is_sorted_by(|a, b| a < b) && numbers.iter().all(|n| *n < before.event));

    let again = Registry::with_observer(observer(&seen));
    again.continue_at(Numbers::from_bytes(&before.to_bytes()).unwrap()).unwrap();
    let _registration = register(&again, named("first")).unwrap();
    assert!(seen.lock().unwrap().iter().all(|number| *number >= before.event));
}

#[test]
fn hostile_numbers_are_refused() {
    let numbers = Numbers { device: 1, file: 2, set: 3, event: 4 };
    let bytes = numbers.to_bytes();
    assert_eq!(Numbers::from_bytes(&bytes).unwrap(), numbers);
    for damaged in [&bytes[..31], &[&bytes[..], &[0]].concat(), &[0xff; 32]] {
        assert_eq!(Numbers::from_bytes(damaged).unwrap_err().errno(), Errno::INVAL);
    }
    let registry = Registry::new();
    registry.continue_at(Numbers { event: u64::MAX, ..numbers }).unwrap_err();
    assert_eq!(registry.numbers(), Numbers::default(), "nothing has changed");
}
