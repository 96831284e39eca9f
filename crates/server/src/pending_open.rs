//! Opening the device for a VERSION, which may have to wait for another client.

use std::sync::{Arc, Weak};

use rustix::io::Errno;
use vfiod_core::{Error, File, Owner, Token};
use vfiod_wire::Capabilities;

use crate::clients::{Client, Clients, Departure, Opening};
use crate::message_log::Message;
use crate::patience::Patience;

/// A VERSION that has no reply yet.
pub(crate) struct PendingOpen {
    /// Its first position.
    pub(crate) request: u64,
    pub(crate) proposed: Box<Capabilities>,
    token: Option<Token>,
    pub(crate) patience: Patience,
    /// What is to be logged of it.
    pub(crate) message: Message,
}

/// What became of a VERSION.
pub(crate) enum Attempt {
    /// Nobody else opens the device before the connection is known to have it.
    Opened(File, Opening),
    /// The connection is woken when there is a chance.
    Parked,
    Failed(Error),
}

impl PendingOpen {
    /// A VERSION whose first position is `request`.
    pub(crate) fn new(
        request: u64,
        proposed: Box<Capabilities>,
        token: Option<Token>,
        message: Message,
    ) -> Self {
        Self { request, proposed, token, patience: Patience::new(), message }
    }

    /// Checks that a client takes DMA messages of a sensible size.
    fn check_proposal(&self, least: u64) -> Result<(), Error> {
        let limit = self.proposed.data_limit();
        if limit >= least {
            return Ok(());
        }
        let what = format!("max_data_xfer_size is {limit}; it must be at least {least}");
        Err(Error::new(Errno::INVAL, what))
    }

    /// Opens the device. While another client opens it, and where a client that has hung up has it
    /// open, the connection is parked, without a thread: whoever starts again at once after a crash
    /// finds the device free.
    pub(crate) fn attempt(
        &self,
        clients: &Arc<Clients>,
        owner: &Owner,
        number: u64,
        itself: &Weak<dyn Client>,
    ) -> Attempt {
        if let Err(error) = self.check_proposal(clients.min_transfer) {
            return Attempt::Failed(error);
        }
        loop {
            let in_time = !self.patience.is_over();
            let Some(opening) = clients.begin_open(number, itself, in_time) else {
                return match in_time {
                    true => Attempt::Parked,
                    false => Attempt::Failed(Error::new(
                        Errno::BUSY,
                        "another client has been opening the device for two seconds",
                    )),
                };
            };
            match clients.device.open_with(owner.clone(), self.token) {
                Ok(file) => return Attempt::Opened(file, opening),
                Err(error) if matches!(error.errno(), Errno::INVAL | Errno::BUSY) && in_time => {
                    match opening.await_departure(number, itself) {
                        Departure::None => return Attempt::Failed(error),
                        Departure::UnderWay => return Attempt::Parked,
                        Departure::Over => {}
                    }
                }
                Err(error) => return Attempt::Failed(error),
            }
        }
    }
}
