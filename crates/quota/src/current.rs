//! Who pays at this moment for what is kept at a device.

use std::sync::Arc;

use vfiod_sync::{Mutex, lock};

use crate::ledger::{Charge, Exceeded, Payer};
use crate::resource::Resource;

/// Who pays at this moment, if anybody does: whoever has a device open. A clone is the same.
#[derive(Clone, Debug, Default)]
pub struct CurrentPayer(Arc<Mutex<Option<Payer>>>);

impl CurrentPayer {
    /// Sets who pays from now on. What was charged before stays charged to whom it was.
    pub fn set(&self, payer: Option<Payer>) {
        let before = std::mem::replace(&mut *lock(&self.0), payer);
        drop(before);
    }

    /// Takes `amount` of a resource; `None`: nobody pays.
    ///
    /// # Errors
    /// The user may not have as much.
    pub fn charge(&self, resource: Resource, amount: u64) -> Result<Option<Charge>, Exceeded> {
        // Without the lock: a charge may wait for those of others.
        let payer = lock(&self.0).clone();
        payer.map(|payer| payer.charge(resource, amount)).transpose()
    }
}
