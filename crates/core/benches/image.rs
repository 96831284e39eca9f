//! What the core's flat image of a device costs: `cargo bench -p vfiod-core --bench image`. Prints
//! Markdown. Each figure is the least of several rounds, in nanoseconds, as nothing but other work of
//! the machine makes one longer.

use std::hint::black_box;
use std::time::Instant;

use vfiod_core::{
    Context, Description, Device, DeviceFlags, DeviceSpec, IrqFlags, IrqInfo, Persistence, Region,
    RegionIndex, Registry, ResetCause, Result,
};

const OPS: u32 = 100_000;

/// A device with interrupts, by the number of vectors of each index.
struct Vectors(Vec<u32>);

impl Device for Vectors {
    fn describe(&self) -> Description {
        let index = |count: &u32| IrqInfo { flags: IrqFlags::EVENTFD, count: *count };
        let irqs = self.0.iter().map(index).collect();
        Description { flags: DeviceFlags::RESET, regions: vec![Region::registers(4)], irqs }
    }

    fn init(&mut self, _: &Context) -> Result<()> {
        Ok(())
    }

    fn persistence(&mut self) -> Persistence<'_> {
        Persistence::Stateless
    }

    fn open_device(&mut self) -> Result<()> {
        Ok(())
    }

    fn close_device(&mut self) {}

    fn read(&mut self, _: RegionIndex, _: u64, _: &mut [u8]) -> Result<()> {
        Ok(())
    }

    fn write(&mut self, _: RegionIndex, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn reset(&mut self, _: ResetCause) -> Result<()> {
        Ok(())
    }
}

/// Prints how long one image takes.
fn measure(vectors: Vec<u32>) {
    let spec = DeviceSpec { name: "vectors".to_owned(), ..DeviceSpec::default() };
    let all: u32 = vectors.iter().sum();
    let registration =
        Registry::new().register(spec, Box::new(Vectors(vectors))).expect("it can be registered");
    let device = registration.device();
    let mut image = vec![0; device.core_image_len()];
    let round = |_| {
        let start = Instant::now();
        for _ in 0..OPS {
            device.save_core_image(black_box(&mut image)).expect("the size is right");
        }
        start.elapsed().as_nanos() as f64 / f64::from(OPS)
    };
    let least = (0..20).map(round).fold(f64::INFINITY, f64::min);
    println!("| {all} | {} | {least:.0} |", image.len());
}

fn main() {
    println!("# The core's part of a device as a flat image, ns\n");
    println!("| vectors | image, bytes | |\n| ---: | ---: | ---: |");
    // As of a PCI function with INTx, MSI and 64 vectors of MSI-X.
    measure(vec![1, 32, 64]);
    measure(vec![1, 32, 2048]);
    measure(vec![8128]);
}
