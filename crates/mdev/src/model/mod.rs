//! Model checks of parents and instances: every interleaving that shuttle finds must keep the
//! invariants. Each deliberate fault of `ci/faults.toml` must break one.
//!
//! | invariant | watched by |
//! | --- | --- |
//! | a UUID names one instance at a time, also its device | [`witness`] |
//! | never more instances than the parent has units, and all units come back | [`witness`], [`scenarios`] |
//! | no instance outlives its parent; none is made for one that leaves | [`witness`] |
//! | users are asked when the endpoint listens no more; it is dropped once, after the device | [`witness`] |
//! | an open after removal began fails; one that is refused leaves a device that works | [`scenarios`] |
//! | `open_device` and `close_device` alternate | [`witness`] |
//! | no deadlock | the checker |
//!
//! `ci/model-checks.sh` runs them.

mod scenarios;
mod witness;
