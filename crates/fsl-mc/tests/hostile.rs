//! What the fuzz target `restore` does with containers, with pseudo-random bytes, the same in each
//! run.

use vfiod_core::Device;
use vfiod_fsl_mc::{Container, ContainerDevice, Kind, ObjectDevice};
use vfiod_testing::fuzz::restore_device;

fn any_bytes_are_played(make: impl Fn() -> Box<dyn Device>) {
    let mut state = 0x2b7e_1516_28ae_d2a6u64;
    let mut number = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..300 {
        let bytes: Vec<u8> = (0..number() % 300).map(|_| number() as u8).collect();
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
