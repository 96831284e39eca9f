//! What saving a function as a flat image costs: `cargo bench -p vfiod-pci --bench image`. Prints
//! Markdown. Each figure is the least of several rounds, in nanoseconds, as nothing but other work
//! of the machine makes one longer.

use std::hint::black_box;
use std::time::Instant;

use vfiod_core::{Context, Device, Persistence};
use vfiod_pci::{Function, image, prelude::*};

image! {
    /// 128 bytes.
    #[derive(Default)]
    struct Small {
        words: [[u64; 4]; 4],
    }

    /// 4 KiB.
    #[derive(Default)]
    struct Large {
        words: [[[u64; 16]; 16]; 2],
    }
}

macro_rules! model {
    ($model:ident) => {
        impl Model for $model {
            type State = HasState;
            fn spec(&self) -> FunctionSpec {
                FunctionSpec::new(0x1234, 0x0001).class(0xff_00_00).bar(0, Bar::memory32(4096))
            }
            fn read(&mut self, _cx: &Cx<Self>, _bar: u8, _offset: u64, data: &mut [u8]) {
                data.fill(0xff);
            }
            fn write(&mut self, _cx: &Cx<Self>, _bar: u8, _offset: u64, _data: &[u8]) {}
            fn reset(&mut self, _cx: &Cx<Self>) {
                *self = Self::default();
            }
        }

        impl Save for $model {
            const KIND: &'static str = "block";
            const VERSION: u32 = 1;
            type Image = Self;
            fn save(&self) -> Self {
                self.clone()
            }
            fn restore(&mut self, _cx: &Cx<Self>, image: Self) -> Result<()> {
                *self = image;
                Ok(())
            }
        }
    };
}

model!(Small);
model!(Large);

const OPS: u32 = 100_000;

/// Prints how long one image takes.
fn measure<M: Model>(state: usize, model: M) {
    let mut function = Function::new(model).expect("the spec is sound");
    let irqs = function.describe().irqs;
    function.init(&Context::detached("bench", &irqs)).expect("it can be registered");
    let Persistence::Saved(saved) = function.persistence() else { unreachable!("it has a state") };
    let mut image = vec![0; saved.image_len()];
    let round = |_| {
        let start = Instant::now();
        for _ in 0..OPS {
            saved.save_image(black_box(&mut image));
        }
        start.elapsed().as_nanos() as f64 / f64::from(OPS)
    };
    let least = (0..20).map(round).fold(f64::INFINITY, f64::min);
    println!("| {state} | {} | {least:.0} |", image.len());
}

fn main() {
    println!("# A function as a flat image, ns\n");
    println!("| state of the model, bytes | image, bytes | |\n| --- | --- | --- |");
    measure(size_of::<Small>(), Small::default());
    measure(size_of::<Large>(), Large::default());
}
