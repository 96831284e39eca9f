//! ACCES PCI-IDIO-16: 16 outputs, 16 isolated inputs, an interrupt when an input changes.
//! Linux's `gpio-pci-idio-16` drives it; the register layout is that driver's and the card's
//! manual's.
//!
//! The world outside is a [`Lines`] in this process, or a socket for people and programs (option
//! `control`), see [`control`].

pub mod control;
mod lines;
mod registers;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vfiod_core::{ReadTraits, Result};
use vfiod_pci::{Bar, Cx, FunctionSpec, HasState, Model, Pin, Save};

use self::lines::LinesImage;
pub use self::lines::{Lines, Snapshot, Subscription};
use self::registers::{REGISTERS, Reg};

/// Options of the model.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GpioOptions {
    /// Inputs at the start, a bit each.
    #[schemars(extend("x-local" = true))]
    pub inputs: u16,
    /// UNIX socket to set inputs and watch outputs: set N 0|1, get, watch.
    #[schemars(extend("x-path" = "socket"))]
    pub control: Option<PathBuf>,
}

/// The card.
#[derive(Debug)]
pub struct Gpio {
    lines: Arc<Lines>,
    options: GpioOptions,
    control: Option<control::Control>,
}

impl Gpio {
    /// The card with its options.
    pub fn new(options: GpioOptions) -> Self {
        Self { lines: Arc::new(Lines::new(options.inputs)), options, control: None }
    }

    /// The lines, to be set and watched from outside.
    pub fn lines(&self) -> Arc<Lines> {
        self.lines.clone()
    }
}

impl Model for Gpio {
    type State = HasState;

    fn spec(&self) -> FunctionSpec {
        FunctionSpec::new(0x494f, 0x0dc8)
            .subsystem(0x494f, 0x0dc8)
            .class(0xff_00_00)
            .pin(Pin::A)
            .bar(2, Bar::io(8))
    }

    fn init(&mut self, cx: &Cx<Self>) -> Result<()> {
        self.lines.connect(cx.interrupts().clone(), cx.input_log().clone());
        cx.input_log().set_source(self.lines.clone());
        if let Some(path) = &self.options.control {
            self.control = Some(control::Control::start(path, self.lines.clone(), cx.runtime())?);
        }
        Ok(())
    }

    fn read(&mut self, _cx: &Cx<Self>, _bar: u8, offset: u64, data: &mut [u8]) {
        let lines = &self.lines;
        REGISTERS.read(offset, data, |register| match register {
            Reg::OutLow => u64::from(lines.read().outputs & 0xff),
            Reg::OutHigh => u64::from(lines.read().outputs >> 8),
            Reg::InLow => u64::from(lines.read().inputs & 0xff),
            Reg::InHigh => u64::from(lines.read().inputs >> 8),
            Reg::InterruptControl => {
                lines.enable_interrupt(true);
                0
            }
            Reg::FilterControl => {
                lines.set_filter(true);
                0
            }
            Reg::Status => lines.status().into(),
        });
    }

    fn read_traits(&self, _bar: u8, offset: u64, len: usize) -> ReadTraits {
        REGISTERS.read_traits(offset, len)
    }

    fn find_register(&self, _bar: u8, range: Range<u64>) -> Option<u64> {
        REGISTERS.find_in(range)
    }

    fn write(&mut self, _cx: &Cx<Self>, _bar: u8, offset: u64, data: &[u8]) {
        let Some((register, value)) = REGISTERS.write(offset, data) else { return };
        match register {
            Reg::OutLow => self.lines.set_outputs(0x00ff, value as u16),
            Reg::OutHigh => self.lines.set_outputs(0xff00, (value as u16) << 8),
            Reg::InLow => self.lines.acknowledge(),
            Reg::InterruptControl => self.lines.enable_interrupt(false),
            Reg::FilterControl => self.lines.set_filter(false),
            Reg::InHigh | Reg::Status => {} // unused
        }
    }

    /// The inputs belong to the outside world and stay.
    fn reset(&mut self, _cx: &Cx<Self>) {
        let Self { lines, options: _, control: _ } = self;
        lines.reset();
    }
}

impl Save for Gpio {
    const KIND: &'static str = "gpio";
    const VERSION: u32 = 1;
    type Image = LinesImage;

    fn save(&self) -> LinesImage {
        let Self { lines, options: _, control: _ } = self;
        lines.save()
    }

    fn restore(&mut self, _cx: &Cx<Self>, image: LinesImage) -> Result<()> {
        self.lines.restore(image)
    }
}

#[cfg(test)]
vfiod_testing::conformance!(Gpio::new(GpioOptions::default()));
