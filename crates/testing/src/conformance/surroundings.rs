//! Surroundings: memory, interrupts and masks come and go during random operations.

use vfiod_core::dma::Perm;
use vfiod_core::irq::{IrqAction, IrqData};
use vfiod_pci::{Model, irq_index};

use super::Subject;
use crate::driver::Driver;
use crate::operations::{Choices, Numbers, Operation, Places, interrupts, write_registers};

const INTERRUPT_DISABLE: u16 = 1 << 10;
fn still_works(device: &Driver) {
    device.reset();
    let vendor = device.config16(0);
    assert!(![0, 0xffff].contains(&vendor), "vendor id {vendor:#x}");
}

impl<M: Model, F: Fn() -> M> Subject<F> {
    /// No operation of a guest makes the device fail.
    pub fn random_operations(&self) {
        let device = self.open();
        let places = Places::of(&device);
        let mut numbers = Numbers(0xdead_beef_cafe_f00d);
        for _ in 0..20_000 {
            Operation::any(&places, &mut numbers).must_succeed(device.file());
        }
        still_works(&device);
    }

    /// A device whose DMA reaches no memory goes on working.
    pub fn dma_without_memory(&self) {
        let device = self.open();
        let mut numbers = Numbers(0x1357_9bdf_0246_8ace);
        for _ in 0..50 {
            device.enable();
            write_registers(&device, &mut numbers, 100);
        }
        still_works(&device);
    }

    /// Mappings come and go, are read-only, are truncated: the device goes on working, and never
    /// keeps a client from unmapping.
    pub fn memory_comes_and_goes(&self) {
        const LEN: u64 = 0x10_0000;
        let device = self.open();
        let places = Places::of(&device);
        let mut numbers = Numbers(0x0f1e_2d3c_4b5a_6978);
        for _ in 0..50 {
            device.enable();
            // Small addresses are what random registers hold most often.
            let perm = match numbers.below(3) {
                0 => Perm::READ,
                1 => Perm::WRITE,
                _ => Perm::READ | Perm::WRITE,
            };
            let memory = device.map(0, LEN, perm);
            write_registers(&device, &mut numbers, 100);
            if numbers.below(4) == 0 {
                memory.truncate();
            }
            for _ in 0..20 {
                Operation::any(&places, &mut numbers).must_succeed(device.file());
            }
            let unmapped = device.unmap(0, LEN);
            assert_eq!(unmapped.expect("no access lasts for ever"), LEN);
        }
        still_works(&device);
    }

    /// Interrupts of every kind are set up, masked, disabled and torn down during random
    /// operations.
    pub fn interrupts_masked(&self) {
        let device = self.open();
        let power_on = self.snapshot(&device);
        let mut numbers = Numbers(0x5851_f42d_4c95_7f2d);
        let kinds = interrupts(&device);
        let has_pin = kinds.iter().any(|(kind, _)| *kind == irq_index::INTX);
        for (round, &(kind, info)) in kinds.iter().cycle().take(30).enumerate() {
            let _eventfds: Vec<_> =
                (0..info.count).map(|vector| device.interrupt(kind, vector)).collect();
            write_registers(&device, &mut numbers, 50);
            device.set_config16(4, 0x7 | INTERRUPT_DISABLE);
            if has_pin {
                device.mask_pin(true);
            }
            write_registers(&device, &mut numbers, 50);
            if has_pin {
                device.mask_pin(false);
            }
            device.enable();
            write_registers(&device, &mut numbers, 50);
            let off = device.file().set_irqs(kind, 0, 0, IrqAction::Trigger, IrqData::None);
            off.expect("interrupts can be disabled");
            write_registers(&device, &mut numbers, 50);
            device.reset();
            self.snapshot(&device).must_be(&power_on, &format!("round {round}"));
        }
    }
}
