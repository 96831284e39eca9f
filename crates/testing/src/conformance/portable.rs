//! States without clients, as they are in files: the next user of a device finds what was saved, and what is
//! restored may come from anybody.

use serde_json::Value;
use vfiod_core::{Errno, Saved};
use vfiod_pci::Model;

use super::Subject;
use crate::driver::Driver;
use crate::operations::{Numbers, Operation, Places, write_registers};
use crate::saved::{DEVICE, Forms, INTERRUPTS, damage, parse, unsaved};

impl<M: Model, F: Fn() -> M> Subject<F> {
    /// Whoever opens a device to which a state was restored finds what the client of the one that was saved finds
    /// when it comes back: in the middle of random operations the device is saved, and goes on; another one, which
    /// does not retain its state, gets the state; then both are opened. The open after that is of a device after a
    /// reset.
    pub fn next_user_finds_what_was_saved(&self) {
        let mut device = Driver::retaining((self.make)());
        if unsaved(&device).is_some() {
            return;
        }
        let power_on = self.snapshot(&Driver::without_workers((self.make)()));
        let mut numbers = Numbers(0x1f83_d9ab_fb41_bd6b);
        for round in 0..8 {
            let places = Places::of(&device);
            for _ in 0..60 {
                Self::operation(&places, &mut numbers).must_succeed(device.file());
            }
            device.settle();
            let saved = match device.device().save_portable() {
                Ok(saved) => saved,
                // Of a large shared memory.
                Err(error) if error.errno() == Errno::FBIG => {
                    device.reset();
                    continue;
                }
                Err(error) => panic!("round {round}: {error}"),
            };
            let when = format!("round {round}");
            let again = device.device().save_portable().expect("it can be saved again");
            self.must_be_as(&again, &saved, &format!("{when}, saved again"));
            // Through text, as in a file.
            let text = serde_json::to_value(&saved).expect("it can be written as JSON");
            let saved = parse(&text).expect("what was saved can be read");
            let copy = Driver::next_of((self.make)(), &saved);
            let copy = copy.unwrap_or_else(|error| panic!("{when}: {error}"));
            device = device.reopen();
            device.settle();
            copy.settle();
            let (expected, found) = (Forms::of(device.device()), Forms::of(copy.device()));
            self.must_be_the_same(&found, &expected, &when);
            self.snapshot(&copy).must_be(&self.snapshot(&device), &when);
            let interrupts = |forms: &Forms| forms.text.pointer(INTERRUPTS).cloned();
            assert_eq!(interrupts(&found), interrupts(&expected), "{when}: vectors");
            let copy = copy.reopen();
            copy.settle();
            self.snapshot(&copy).must_be(&power_on, &format!("{when}, the user after the next"));
        }
    }

    /// A damaged state is refused with `EINVAL`, and the device is as it was; or it is accepted, and the device
    /// works.
    pub fn hostile_portable_state_is_refused(&self) {
        let device = self.open();
        if unsaved(&device).is_some() {
            return;
        }
        let mut numbers = Numbers(0x5be0_cd19_137e_2179);
        write_registers(&device, &mut numbers, 20);
        let Ok(saved) = device.device().save_portable() else { return };
        let text = serde_json::to_value(&saved).expect("it can be written as JSON");
        for _ in 0..60 {
            let mut text = text.clone();
            damage(&mut text, &mut numbers);
            let Ok(damaged) = parse(&text) else { continue };
            self.survives_portable(&damaged, &mut numbers);
        }
    }

    fn survives_portable(&self, damaged: &Saved, numbers: &mut Numbers) {
        let target = Driver::retaining((self.make)());
        write_registers(&target, &mut Numbers(0x9b05_688c_2b3e_6c1f), 5);
        // Once more, as an open and a close may change what the first ones did not.
        let target = target.reopen().close();
        let before = target.device().save_portable();
        if let Err(error) = target.device().restore_portable(damaged) {
            assert_eq!(error.errno(), Errno::INVAL, "{error}");
            if let Ok(before) = before {
                let after = target.device().save_portable().expect("it can be saved");
                self.must_be_as(&after, &before, &format!("a refused restore ({error})"));
            }
            return;
        }
        let target = target.open();
        target.settle();
        if target.device().status().failed {
            return;
        }
        let places = Places::of(&target);
        for _ in 0..20 {
            Operation::any(&places, numbers).must_succeed(target.file());
        }
        target.reset();
    }

    /// Fails unless two states without clients are the same, but for what the model measures.
    fn must_be_as(&self, found: &Saved, expected: &Saved, when: &str) {
        let [found, expected] = [found, expected].map(|saved| {
            let mut text = serde_json::to_value(saved).expect("it can be written as JSON");
            for measured in self.measured {
                let place = format!("{DEVICE}/state/model/state{measured}");
                if let Some(value) = text.pointer_mut(&place) {
                    *value = Value::Null;
                }
            }
            text
        });
        assert_eq!(found, expected, "{when}");
    }
}
