//! `model`: random operations on a device model, as a guest performs them. `restore`: damaged states,
//! text and image, and what a guest does then. The first byte picks the model.

use vfiod_core::Device;
use vfiod_devices::bench::{Bench, BenchOptions};
use vfiod_devices::edu::{Edu, EduOptions};
use vfiod_devices::gpio::{Gpio, GpioOptions};
use vfiod_devices::serial::{Serial, SerialOptions};
use vfiod_devices::template::Template;
use vfiod_fsl_mc::{Container, ContainerDevice, Kind};
use vfiod_testing::fuzz;

pub(crate) fn operate(bytes: &[u8]) {
    let Some((&model, bytes)) = bytes.split_first() else { return };
    match model % 5 {
        0 => fuzz::operations(Template::power_on(), bytes),
        1 => fuzz::operations(Gpio::new(GpioOptions::default()), bytes),
        2 => fuzz::operations(Serial::new(SerialOptions::default()), bytes),
        3 => fuzz::operations(Edu::new(EduOptions::default()), bytes),
        _ => fuzz::operations(Bench::new(BenchOptions::default()), bytes),
    }
}

pub(crate) fn restore(bytes: &[u8]) {
    let Some((&model, bytes)) = bytes.split_first() else { return };
    match model % 6 {
        0 => fuzz::restore(Template::power_on, bytes),
        1 => fuzz::restore(|| Gpio::new(GpioOptions::default()), bytes),
        2 => fuzz::restore(|| Serial::new(SerialOptions::default()), bytes),
        3 => fuzz::restore(|| Edu::new(EduOptions::default()), bytes),
        4 => fuzz::restore(|| Bench::new(BenchOptions::default()), bytes),
        _ => fuzz::restore_device(container, bytes),
    }
}

/// A container with an object.
fn container() -> Box<dyn Device> {
    let container = Container::new(2);
    container.plug(Kind::Dpbp, 1).expect("it can be plugged");
    Box::new(ContainerDevice::new(&container))
}
