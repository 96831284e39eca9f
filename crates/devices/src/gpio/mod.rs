//! ACCES PCI-IDIO-16: 16 outputs, 16 isolated inputs, an interrupt when an input changes.
//! Linux's `gpio-pci-idio-16` drives it; the register layout is that driver's and the card's
//! manual's.

mod control;
mod lines;

use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use vfiod_core::Result;
use vfiod_pci::{Bar, FunctionSpec, Handle, Model, Pin, Register, RegisterMap, Widths};

pub use lines::{Lines, Snapshot};

/// Reads and writes of the same place often mean different things on this card.
#[derive(Clone, Copy, Debug)]
enum Reg {
    /// Outputs 0 to 7.
    OutLow,
    /// Read: inputs 0 to 7. Write: acknowledge the interrupt.
    InLow,
    /// Read: enable the interrupt. Write: disable it.
    IrqControl,
    /// Read: filter the inputs. Write: do not.
    FilterControl,
    /// Outputs 8 to 15.
    OutHigh,
    /// Inputs 8 to 15.
    InHigh,
    /// Bit 0: inputs 0 to 7 changed; bit 1: inputs 8 to 15; bit 2: the interrupt is asserted.
    IrqStatus,
}

const REGISTERS: RegisterMap<Reg> = RegisterMap::new(&[
    Register::new(0, Widths::W1, Reg::OutLow),
    Register::new(1, Widths::W1, Reg::InLow),
    Register::new(2, Widths::W1, Reg::IrqControl),
    Register::new(3, Widths::W1, Reg::FilterControl),
    Register::new(4, Widths::W1, Reg::OutHigh),
    Register::new(5, Widths::W1, Reg::InHigh),
    Register::new(6, Widths::W1, Reg::IrqStatus),
]);

/// Options of the model.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GpioOptions {
    /// Inputs at the start, a bit each.
    pub inputs: u16,
    /// A UNIX socket where people and programs set inputs and watch outputs.
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
    fn spec(&self) -> FunctionSpec {
        FunctionSpec::new(0x494f, 0x0dc8)
            .subsystem(0x494f, 0x0dc8)
            .class(0xff_00_00)
            .pin(Pin::A)
            .bar(2, Bar::io(8))
    }

    fn init(&mut self, handle: &Handle) -> Result<()> {
        self.lines.connect(handle.interrupts().clone());
        if let Some(path) = &self.options.control {
            self.control = Some(control::Control::start(path, self.lines.clone())?);
        }
        Ok(())
    }

    fn read(&mut self, _bar: u8, offset: u64, data: &mut [u8]) {
        REGISTERS.read(offset, data, |register| {
            let [out_low, out_high] = self.lines.snapshot().outputs.to_le_bytes();
            let [in_low, in_high] = self.lines.snapshot().inputs.to_le_bytes();
            match register {
                Reg::OutLow => out_low.into(),
                Reg::OutHigh => out_high.into(),
                Reg::InLow => in_low.into(),
                Reg::InHigh => in_high.into(),
                Reg::IrqControl => {
                    self.lines.enable_interrupt(true);
                    0
                }
                Reg::FilterControl => {
                    self.lines.set_filter(true);
                    0
                }
                Reg::IrqStatus => self.lines.interrupt_status().into(),
            }
        });
    }

    fn write(&mut self, _bar: u8, offset: u64, data: &[u8]) {
        let Some((register, value)) = REGISTERS.write(offset, data) else { return };
        match register {
            Reg::OutLow => self.lines.set_outputs(0x00ff, value as u16),
            Reg::OutHigh => self.lines.set_outputs(0xff00, (value as u16) << 8),
            Reg::InLow => self.lines.acknowledge(),
            Reg::IrqControl => self.lines.enable_interrupt(false),
            Reg::FilterControl => self.lines.set_filter(false),
            Reg::InHigh | Reg::IrqStatus => {} // unused
        }
    }

    /// The inputs belong to the outside world and stay.
    fn reset(&mut self) {
        let Self { lines, options: _, control: _ } = self;
        lines.reset();
    }
}

#[cfg(test)]
crate::conformance!(Gpio::new(GpioOptions::default()), side_effects = [(2, 2), (2, 3)]);
