#![doc = include_str!("../README.md")]

mod current;
mod debt;
mod ledger;
mod limits;
mod lines;
#[cfg(all(test, shuttle))]
mod model;
mod resource;
#[cfg(all(test, not(any(loom, shuttle))))]
mod tests;
mod user;

pub use current::CurrentPayer;
pub use debt::{Debt, SlowCalls};
pub use ledger::{Account, Charge, Exceeded, Ledger, Opened, Payer, Shortfall, Usage};
pub use limits::{Limit, Limits, Share, Size};
pub use lines::Lines;
pub use resource::{PerResource, Resource};
pub use user::{User, overflow_gid, overflow_uid};
