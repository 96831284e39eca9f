//! What a connection's user is charged for messages and replies that wait.

use vfiod_quota::{Charge, Exceeded, Payer, Resource};
use vfiod_sync::{Mutex, lock};

pub(crate) struct HeldMemory {
    payer: Payer,
    /// `None`: nothing waits.
    charge: Mutex<Option<Charge>>,
}

impl HeldMemory {
    pub(crate) fn new(payer: Payer) -> Self {
        Self { payer, charge: Mutex::default() }
    }

    /// Who is charged.
    pub(crate) fn payer(&self) -> &Payer {
        &self.payer
    }

    /// Charges for this many bytes in all.
    pub(crate) fn charge(&self, bytes: usize) -> Result<(), Exceeded> {
        let bytes = bytes as u64;
        let mut charge = lock(&self.charge);
        match &mut *charge {
            None if bytes == 0 => {}
            None => *charge = Some(self.payer.charge(Resource::Memory, bytes)?),
            Some(_) if bytes == 0 => *charge = None,
            Some(charge) => charge.resize(bytes)?,
        }
        Ok(())
    }
}
