//! What every parent must do, and what each one's attributes mean.

use std::time::Duration;

use vfiod_core::irq::{IrqAction, IrqData};
use vfiod_core::{Errno, RegionIndex, Registry};
use vfiod_mdev::{Bus, Create, Instance, NoEndpoint, ParentRegistration, Removal, Uuid};
use vfiod_pci::irq_index;

use super::*;
use crate::catalogue;

fn bus(kind: &str, options: &str) -> (Bus, ParentRegistration) {
    let bus = Bus::new(Registry::new());
    let options = serde_json::from_str(options).unwrap();
    let (spec, parent) = catalogue().build_parent(kind, "p", &options).unwrap();
    let registration = bus.register(spec, parent).unwrap();
    (bus, registration)
}

fn create(bus: &Bus, kind: &str, n: u128) -> Result<Instance> {
    bus.create(&Create::new("p", kind, Uuid::from_u128(n)), |_| Ok(Box::new(NoEndpoint)))
}

#[test]
fn every_parent_makes_every_type_it_lists_until_none_is_left() {
    for info in catalogue().parents() {
        let directory = tempfile::tempdir().unwrap();
        let options = match info.name.as_str() {
            "nvme" => serde_json::json!({
                "directory": directory.path(),
                "capacity": 65536,
                // Nothing of one is left for the other.
                "types": [{ "name": "a", "size": 16384, "on_remove": "delete" }],
            }),
            _ => serde_json::json!({}),
        };
        let (bus, registration) = bus(&info.name, &options.to_string());
        for mdev_type in bus.parent("p").unwrap().types {
            let id = &mdev_type.info.id;
            assert!(mdev_type.available > 0, "{id}");
            let all: Vec<_> =
                (1..=mdev_type.available.into()).map(|n| create(&bus, id, n).unwrap()).collect();
            assert_eq!(create(&bus, id, 1 << 64).unwrap_err().errno(), Errno::USERS, "{id}");
            for attribute in &mdev_type.info.attributes {
                let value = all[0].attribute(&attribute.name).unwrap();
                if attribute.writable {
                    // What it says of itself can be set, and a definition checks the same.
                    let check = |value: &str| bus.check_attribute("p", id, &attribute.name, value);
                    check(&value).unwrap();
                    assert_eq!(check("rubbish\0").unwrap_err().errno(), Errno::INVAL, "{id}");
                    all[0].set_attribute(&attribute.name, &value).unwrap();
                    let set = all[0].set_attribute(&attribute.name, "rubbish\0");
                    assert_eq!(set.unwrap_err().errno(), Errno::INVAL, "{}", attribute.name);
                    assert_eq!(all[0].attribute(&attribute.name).unwrap(), value);
                }
            }
            for instance in all {
                bus.remove(instance.uuid(), Removal::Refuse).unwrap();
            }
            assert_eq!(bus.available("p", id), Some(mdev_type.available));
        }
        registration.unregister(None);
    }
}

#[test]
fn the_number_of_instances_is_an_option() {
    let (bus, _registration) = bus("edu", r#"{"instances": 1}"#);
    create(&bus, "edu-1", 1).unwrap();
    assert_eq!(create(&bus, "edu-1", 2).unwrap_err().errno(), Errno::USERS);
}

#[test]
fn inputs_of_a_gpio_are_an_attribute() {
    let (bus, _registration) = bus("gpio", "{}");
    let gpio = create(&bus, "gpio-16", 1).unwrap();
    assert_eq!(gpio.attribute("inputs").unwrap(), "0x0000");
    for (text, reads) in [("5", "0x0005"), ("0xff00", "0xff00"), (" 1\n", "0x0001")] {
        gpio.set_attribute("inputs", text).unwrap();
        assert_eq!(gpio.attribute("inputs").unwrap(), reads);
    }
    let owner = vfiod_core::Owner::in_process("test");
    let file = gpio.device().open(owner).unwrap();
    let bar = vfiod_core::RegionIndex(2);
    let mut input = [0];
    file.read(bar, 1, &mut input).unwrap();
    assert_eq!(input, [1]);
    file.write(bar, 0, &[0xa5]).unwrap();
    assert_eq!(gpio.attribute("outputs").unwrap(), "0x00a5");
    for wrong in ["65536", "-1", "0x", "red", ""] {
        let set = gpio.set_attribute("inputs", wrong);
        assert_eq!(set.unwrap_err().errno(), Errno::INVAL, "{wrong}");
    }
    assert_eq!(gpio.set_attribute("outputs", "1").unwrap_err().errno(), Errno::ACCESS);
}

fn open(instance: &Instance) -> vfiod_core::File {
    instance.device().open(vfiod_core::Owner::in_process("test")).unwrap()
}

/// The kernel's numbers: 24 ports, whichever type takes them.
#[test]
fn serial_cards_share_their_ports() {
    let (bus, _registration) = bus("serial", "{}");
    let left = || (bus.available("p", "mtty-1").unwrap(), bus.available("p", "mtty-2").unwrap());
    assert_eq!(left(), (24, 12));
    create(&bus, "mtty-1", 1).unwrap();
    assert_eq!(left(), (23, 11));
    for n in 2..13 {
        create(&bus, "mtty-2", n).unwrap();
    }
    assert_eq!(left(), (1, 0));
    assert_eq!(create(&bus, "mtty-2", 13).unwrap_err().errno(), Errno::USERS);
    create(&bus, "mtty-1", 13).unwrap();
    assert_eq!(create(&bus, "mtty-1", 14).unwrap_err().errno(), Errno::USERS);
    bus.remove(Uuid::from_u128(2), Removal::Refuse).unwrap();
    assert_eq!(left(), (2, 1));
}

#[test]
fn the_backend_of_a_serial_card_changes_while_nobody_uses_it() {
    let directory = tempfile::tempdir().unwrap();
    let links = serde_json::json!({ "links": directory.path() });
    let (bus, _registration) = bus("serial", &links.to_string());
    let serial = create(&bus, "mtty-2", 1).unwrap();
    assert_eq!(serial.attribute("backend").unwrap(), "loopback");
    serial.set_attribute("backend", "pty\n").unwrap();
    assert_eq!(serial.attribute("pty0").unwrap(), "", "not before it is in use");

    let file = open(&serial);
    for (attribute, link) in [("pty0", ".0"), ("pty1", ".1")] {
        let path = serial.attribute(attribute).unwrap();
        assert!(path.starts_with("/dev/pts/"), "{path}");
        let link = directory.path().join(format!("{}{link}", serial.uuid()));
        assert_eq!(std::fs::read_link(link).unwrap(), std::path::Path::new(&path));
    }
    let busy = serial.set_attribute("backend", "none").unwrap_err();
    assert_eq!(busy.errno(), Errno::BUSY);
    assert_eq!(serial.attribute("backend").unwrap(), "pty");
    let written = serial.set_attribute("pty0", "/dev/pts/0").unwrap_err();
    assert_eq!(written.errno(), Errno::ACCESS);
    drop(file);

    assert_eq!(serial.attribute("pty0").unwrap(), "");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "links are gone");
    serial.set_attribute("backend", "none").unwrap();
    let wrong = serial.set_attribute("backend", "modem").unwrap_err();
    assert_eq!(wrong.errno(), Errno::INVAL);
    assert!(wrong.to_string().contains("loopback, pty or none"), "{wrong}");
    let single = create(&bus, "mtty-1", 2).unwrap();
    assert_eq!(single.attribute("pty1").unwrap_err().errno(), Errno::NOENT);
}

/// A user who listens to the REQ interrupt lets go when it comes, long before the deadline; until
/// then everything works.
#[test]
fn a_user_that_listens_is_asked_to_let_go() {
    let (bus, _registration) = bus("serial", r#"{"backend": "pty"}"#);
    let serial = create(&bus, "mtty-1", 1).unwrap();
    let file = open(&serial);
    let wanted_back = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let fds = IrqData::EventFds(vec![Some(wanted_back.try_clone().unwrap())]);
    file.set_irqs(irq_index::REQ, 0, 1, IrqAction::Trigger, fds).unwrap();
    let remover = std::thread::spawn({
        let bus = bus.clone();
        move || bus.remove(Uuid::from_u128(1), Removal::Deadline(Duration::MAX))
    });
    rustix::io::read(&wanted_back, &mut [0; 8]).unwrap();
    let mut status = [0];
    file.read(RegionIndex(0), 5, &mut status).expect("it works until then");
    assert_eq!(status, [0x60]);
    assert_ne!(serial.attribute("pty0").unwrap(), "");
    drop(file);
    remover.join().unwrap().unwrap();
    assert_eq!(bus.available("p", "mtty-1"), Some(24));
}

/// More than the kernel has pseudo-terminals (4,096 by default): an idle card costs none.
#[test]
fn ten_thousand_idle_serial_cards() {
    let (bus, _registration) = bus("serial", r#"{"ports": 20000, "backend": "pty"}"#);
    let all: Vec<_> = (1..=10_000).map(|n| create(&bus, "mtty-2", n).unwrap()).collect();
    let file = open(&all[9_999]);
    assert_ne!(all[9_999].attribute("pty1").unwrap(), "");
    assert_eq!(all[0].attribute("pty1").unwrap(), "");
    drop(file);
    assert_eq!(bus.available("p", "mtty-1"), Some(0));
}

#[test]
fn wrong_parents_get_what_would_be_right() {
    let error = |kind: &str, options: &str| match catalogue().build_parent(
        kind,
        "p",
        &serde_json::from_str(options).unwrap(),
    ) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{kind} {options} was accepted"),
    };
    assert_eq!(error("edo", "{}"), "there is no model `edo`; did you mean `edu`?");
    assert_eq!(
        error("edu", r#"{"instance": 1}"#),
        "`edu` has no option `instance`; did you mean `instances`?"
    );
    assert!(error("gpio", r#"{"instances": -1}"#).contains("a number from 0 to 4294967295"));
}
