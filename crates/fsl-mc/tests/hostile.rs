//! What the fuzz target `restore` does with containers, with pseudo-random bytes, the same in each
//! run.

use vfiod_core::Device;
use vfiod_fsl_mc::{Container, ContainerDevice, Kind, ObjectDevice};
use vfiod_testing::fuzz::{pseudo_random_inputs, restore_device};

fn any_bytes_are_played(make: impl Fn() -> Box<dyn Device>) {
    for bytes in pseudo_random_inputs(300) {
        restore_device(&make, &bytes);
    }
}

#[test]
fn container_survives() {
    any_bytes_are_played(|| {
        let container = Container::new(2);
        for (kind, id) in [(Kind::Dpbp, 1), (Kind::Dpcon, 2), (Kind::Dpmcp, 3)] {
            container.plug(kind, id).expect("it can be plugged");
        }
        Box::new(ContainerDevice::new(&container))
    });
}

#[test]
fn objects_survive() {
    for kind in [Kind::Dpbp, Kind::Dpmcp] {
        any_bytes_are_played(|| {
            let object = Container::new(2).plug(kind, 3).expect("it can be plugged");
            Box::new(ObjectDevice::new(object).expect("it is a device"))
        });
    }
}
