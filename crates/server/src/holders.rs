//! Who has other members of a device's set open, and bars its reset: one who has hung up is waited for.

use std::sync::{Arc, Weak};

use vfiod_core::File;

use crate::clients::{Client, Clients, Departure};
use crate::served_devices::ServedDevices;

/// The members of a set that other owners have open, at a moment: for each, its clients, and how many of
/// them had departed by then.
pub(crate) struct Holders(Vec<Vec<(Arc<Clients>, u64)>>);

impl Holders {
    /// Those that bar a reset of the set by `file`.
    pub(crate) fn of(file: &File, served: &ServedDevices<Clients>) -> Self {
        // Without members the reset fails as well.
        let members = file.set_members().unwrap_or_default().into_iter();
        let count = |clients: Arc<Clients>| {
            let departures = clients.departures();
            (clients, departures)
        };
        let clients = |device| served.clients_of(device).into_iter().map(count).collect();
        let barring = members.filter(|member| !member.allowed);
        Self(barring.map(|member| clients(member.device.id())).collect())
    }

    /// After the reset was refused: whether it is worth another attempt, because each of them has hung up.
    /// Connection `number` is woken when a file is released.
    pub(crate) fn await_departure(&self, number: u64, newcomer: &Weak<dyn Client>) -> Departure {
        let of_member = |of: &Vec<(Arc<Clients>, u64)>| {
            let look = |(clients, departures): &(Arc<Clients>, u64)| {
                clients.await_departure(number, newcomer, *departures)
            };
            // On whichever of its sockets.
            of.iter().map(look).max().unwrap_or(Departure::None)
        };
        self.0.iter().map(of_member).min().unwrap_or(Departure::None)
    }

    /// Whether a file of them was released since.
    pub(crate) fn have_changed(&self) -> bool {
        self.0.iter().flatten().any(|(clients, departures)| clients.departures() != *departures)
    }
}
