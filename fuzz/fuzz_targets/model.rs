//! Random operations on a model: the first byte picks the model, the rest what a guest does.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vfiod_devices::bench::{Bench, BenchOptions};
use vfiod_devices::edu::{Edu, EduOptions};
use vfiod_devices::gpio::{Gpio, GpioOptions};
use vfiod_devices::serial::{Serial, SerialOptions};
use vfiod_devices::template::Template;
use vfiod_testing::fuzz::operations;

fuzz_target!(|bytes: &[u8]| {
    let Some((&model, bytes)) = bytes.split_first() else { return };
    match model % 5 {
        0 => operations(Template::power_on(), bytes),
        1 => operations(Gpio::new(GpioOptions::default()), bytes),
        2 => operations(Serial::new(SerialOptions::default()), bytes),
        3 => operations(Edu::new(EduOptions::default()), bytes),
        _ => operations(Bench::new(BenchOptions::default()), bytes),
    }
});
