//! Model checks of the lifecycle: every interleaving that a checker can find must keep the
//! invariants. Each deliberate fault of `ci/faults.toml` must break one.
//!
//! | invariant | watched by |
//! | --- | --- |
//! | one live set per id, gone with its last member | [`scenarios`], loom |
//! | `open_device` and `close_device` alternate, and never overlap within a set | [`witness`] |
//! | an open after unregister began fails; opens are barred only of what is unused | [`scenarios`] |
//! | every successful open has exactly one release; no access follows it | [`witness`], loom |
//! | the set is reset only while no member is open | [`witness`] |
//! | no access comes amid a hot reset | [`witness`] |
//! | no hot reset under another owner, or of an open member if the administrator forbade it | [`witness`] |
//! | after a hot reset everybody goes on; after a failed one, as they were or in the error state | [`scenarios_hot_reset`] |
//! | stores into pages and doorbells from before the end of a hot reset have no effect | [`scenarios_hot_reset`], [`witness`] |
//! | no signal after an eventfd was taken away; one signal for each unmask | [`scenarios_irq`] |
//! | a device that is idle does no work, and none begins; a step does not begin after a cancel | [`scenarios_work`] |
//! | nothing of a device works while it is opened, reset, closed or saved, whatever else happens to its set | [`scenarios_stop`] |
//! | a thread that waits runs a task that does any of that, too: nobody waits for itself | [`scenarios_stop`] |
//! | an address space of a device is left to no other user than its own | [`scenarios_space`] |
//! | no ring of a doorbell is lost while work is stopped and resumed | [`scenarios_work`] |
//! | an open that waits is before any further reset or save of the set | [`scenarios_set`] |
//! | no deadlock | the checker |
//!
//! `ci/model-checks.sh` runs them.

#[cfg(loom)]
mod exhaustive;
#[cfg(any(loom, shuttle))]
mod no_device;
#[cfg(shuttle)]
mod scenarios;
#[cfg(shuttle)]
mod scenarios_hot_reset;
#[cfg(shuttle)]
mod scenarios_irq;
#[cfg(shuttle)]
mod scenarios_set;
#[cfg(shuttle)]
mod scenarios_space;
#[cfg(shuttle)]
mod scenarios_stop;
#[cfg(shuttle)]
mod scenarios_work;
#[cfg(shuttle)]
mod witness;
