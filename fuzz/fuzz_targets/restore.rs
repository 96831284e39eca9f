//! Restores damaged states, text and image: the first byte picks the model, the rest its state, the
//! damage, and what a guest does then.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vfiod_devices::edu::{Edu, EduOptions};
use vfiod_devices::gpio::{Gpio, GpioOptions};
use vfiod_devices::serial::{Serial, SerialOptions};
use vfiod_devices::template::Template;
use vfiod_testing::fuzz::restore;

fuzz_target!(|bytes: &[u8]| {
    let Some((&model, bytes)) = bytes.split_first() else { return };
    match model % 4 {
        0 => restore(Template::power_on, bytes),
        1 => restore(|| Gpio::new(GpioOptions::default()), bytes),
        2 => restore(|| Serial::new(SerialOptions::default()), bytes),
        _ => restore(|| Edu::new(EduOptions::default()), bytes),
    }
});
