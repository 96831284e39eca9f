//! `model`: random operations on a device model, as a guest performs them. `restore`: damaged states,
//! text and image, and what a guest does then. The first byte picks the model; 254: a state without clients, of the
//! model that the second byte picks; 255: what follows that byte is a file of `vfiod save`.

use serde_json::Value;
use vfiod_core::Device;
use vfiod_devices::bench::{Bench, BenchOptions};
use vfiod_devices::edu::{Edu, EduOptions};
use vfiod_devices::gpio::{Gpio, GpioOptions};
use vfiod_devices::serial::{Serial, SerialOptions};
use vfiod_devices::template::Template;
use vfiod_fsl_mc::{Container, ContainerDevice, Kind};
use vfiod_manager::SavedDevice;
use vfiod_pci::{Function, Model};
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
    match model {
        254 | 255 => {
            let Some((&of, bytes)) = bytes.split_first() else { return };
            if model == 254 {
                fuzz::restore_portable(|| any_model(of), bytes);
            } else {
                restore_file(any_model(of), bytes);
            }
        }
        _ => restore_beside_descriptors(model, bytes),
    }
}

fn restore_beside_descriptors(model: u8, bytes: &[u8]) {
    match model % 6 {
        0 => fuzz::restore(Template::power_on, bytes),
        1 => fuzz::restore(|| Gpio::new(GpioOptions::default()), bytes),
        2 => fuzz::restore(|| Serial::new(SerialOptions::default()), bytes),
        3 => fuzz::restore(|| Edu::new(EduOptions::default()), bytes),
        4 => fuzz::restore(|| Bench::new(BenchOptions::default()), bytes),
        _ => fuzz::restore_device(container, bytes),
    }
}

/// A file, whatever it is; one that is sound but for its checksum gets that.
fn restore_file(device: Box<dyn Device>, file: &[u8]) {
    let Ok(mut document) = serde_json::from_slice::<Value>(file) else { return };
    let checksum = SavedDevice::checksum_of(&document);
    if let Some(field) = document.get_mut("checksum") {
        *field = checksum.into();
    }
    let Ok(saved) = SavedDevice::read(document) else { return };
    let text = serde_json::to_value(&saved).expect("what was read can be written");
    assert_eq!(SavedDevice::read(text).expect("what was written can be read"), saved);
    fuzz::restore_for_the_next_user(device, &saved.state);
}

fn any_model(which: u8) -> Box<dyn Device> {
    fn function(model: impl Model + 'static) -> Box<dyn Device> {
        Box::new(Function::new(model).expect("the spec is sound"))
    }
    match which % 6 {
        0 => function(Template::power_on()),
        1 => function(Gpio::new(GpioOptions::default())),
        2 => function(Serial::new(SerialOptions::default())),
        3 => function(Edu::new(EduOptions::default())),
        4 => function(Bench::new(BenchOptions::default())),
        _ => container(),
    }
}

/// A container with an object.
fn container() -> Box<dyn Device> {
    let container = Container::new(2);
    container.plug(Kind::Dpbp, 1).expect("it can be plugged");
    Box::new(ContainerDevice::new(&container))
}
