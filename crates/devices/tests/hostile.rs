//! What the fuzz targets `model` and `restore` do, with pseudo-random bytes, the same in each run.

use vfiod_devices::edu::{Edu, EduOptions};
use vfiod_devices::gpio::{Gpio, GpioOptions};
use vfiod_devices::serial::{Serial, SerialOptions};
use vfiod_devices::template::Template;
use vfiod_pci::Model;
use vfiod_testing::fuzz;

fn any_bytes_are_played<M: Model>(make: impl Fn() -> M) {
    for bytes in fuzz::pseudo_random_inputs(300) {
        fuzz::operations(make(), &bytes);
        fuzz::restore(&make, &bytes);
    }
}

#[test]
fn template_survives() {
    any_bytes_are_played(Template::power_on);
}

#[test]
fn gpio_survives() {
    any_bytes_are_played(|| Gpio::new(GpioOptions::default()));
}

#[test]
fn serial_survives() {
    any_bytes_are_played(|| Serial::new(SerialOptions::default()));
}

#[cfg(feature = "bench")]
#[test]
fn bench_survives() {
    use vfiod_devices::bench::{Bench, BenchOptions};

    for shared in [true, false] {
        any_bytes_are_played(|| Bench::new(BenchOptions { shared, ..BenchOptions::default() }));
    }
}

#[test]
fn edu_survives() {
    any_bytes_are_played(|| Edu::new(EduOptions::default()));
}
