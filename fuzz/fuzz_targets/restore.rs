//! Restores damaged states, text and image: the first byte picks the model, the rest its state, the
//! damage, and what a guest does then.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vfiod_core::Device;
use vfiod_devices::bench::{Bench, BenchOptions};
use vfiod_devices::edu::{Edu, EduOptions};
use vfiod_devices::gpio::{Gpio, GpioOptions};
use vfiod_devices::serial::{Serial, SerialOptions};
use vfiod_devices::template::Template;
use vfiod_fsl_mc::{Container, ContainerDevice, Kind};
use vfiod_testing::fuzz::{restore, restore_device};

/// A container with an object.
fn container() -> Box<dyn Device> {
    let container = Container::new(2);
    container.plug(Kind::Dpbp, 1).expect("it can be plugged");
    Box::new(ContainerDevice::new(&container))
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&model, bytes)) = bytes.split_first() else { return };
    match model % 6 {
        0 => restore(Template::power_on, bytes),
        1 => restore(|| Gpio::new(GpioOptions::default()), bytes),
        2 => restore(|| Serial::new(SerialOptions::default()), bytes),
        3 => restore(|| Edu::new(EduOptions::default()), bytes),
        4 => restore(|| Bench::new(BenchOptions::default()), bytes),
        _ => restore_device(container, bytes),
    }
});
