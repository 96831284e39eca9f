//! What is saved of a function: its configuration space, MSI-X table and interrupt conditions,
//! and inside that the [`Save`](crate::Save)d image of its model.

use serde::{Deserialize, Serialize};
use vfiod_core::{Format, Result, SaveState, Saved};

use crate::function::Function;
use crate::model::Model;
use crate::save::sealed::Sealed;
use crate::save::wrong_size;

const FUNCTION: Format = Format { kind: "pci function", version: 1 };

/// The state of a function, as text.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FunctionState {
    /// Configuration space, as far as there is something.
    #[serde(with = "hex::serde")]
    config: Vec<u8>,
    /// The MSI-X table, and a byte for each vector: whether its mask bit was written.
    #[serde(with = "hex::serde")]
    msix_table: Vec<u8>,
    #[serde(with = "hex::serde")]
    msix_written: Vec<u8>,
    /// Vectors whose condition is true.
    conditions: Vec<u32>,
    model: Option<Saved>,
}

impl<M: Model> SaveState for Function<M> {
    fn save(&self) -> Result<Saved> {
        let (table, written) = self.msix_state();
        let state = FunctionState {
            config: self.config_state().to_vec(),
            msix_table: table.to_vec(),
            msix_written: written.to_vec(),
            conditions: self.conditions(),
            model: <M::State as Sealed<M>>::save(self.model_ref())?,
        };
        Saved::new(FUNCTION, &state)
    }

    fn restore(&mut self, saved: &Saved) -> Result<()> {
        let state: FunctionState = saved.read(FUNCTION)?;
        let FunctionState { config, msix_table, msix_written, conditions, model } = state;
        self.check_state(&config, &msix_table, &msix_written, &conditions)?;
        let (subject, cx) = self.parts()?;
        <M::State as Sealed<M>>::restore(subject, cx, model.as_ref())?;
        self.restore_function(&config, &msix_table, &msix_written, conditions);
        Ok(())
    }

    fn disable(&mut self) {
        self.disable_reach();
    }

    fn image_len(&self) -> usize {
        let (table, written) = self.msix_state();
        self.config_state().len()
            + table.len()
            + written.len()
            + self.conditions_len()
            + <M::State as Sealed<M>>::LEN
    }

    fn save_image(&self, image: &mut [u8]) {
        let (table, written) = self.msix_state();
        let mut rest = image;
        for part in [self.config_state(), table, written] {
            let (into, after) = std::mem::take(&mut rest).split_at_mut(part.len());
            into.copy_from_slice(part);
            rest = after;
        }
        let (conditions, model) = rest.split_at_mut(self.conditions_len());
        self.save_conditions(conditions);
        <M::State as Sealed<M>>::save_image(self.model_ref(), model);
    }

    fn restore_image(&mut self, image: &[u8]) -> Result<()> {
        if image.len() != self.image_len() {
            return Err(wrong_size(FUNCTION.kind));
        }
        let (table, written) = self.msix_state();
        let (config, rest) = image.split_at(self.config_state().len());
        let (table, rest) = rest.split_at(table.len());
        let (written, rest) = rest.split_at(written.len());
        let (conditions, image) = rest.split_at(self.conditions_len());
        let bit = |vector: &u32| conditions[*vector as usize / 8] & 1 << (vector % 8) != 0;
        let conditions: Vec<u32> = (0..conditions.len() as u32 * 8).filter(bit).collect();
        self.check_state(config, table, written, &conditions)?;
        let (model, cx) = self.parts()?;
        <M::State as Sealed<M>>::restore_image(model, cx, image)?;
        self.restore_function(config, table, written, conditions);
        Ok(())
    }
}
