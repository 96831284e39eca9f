//! Locks that a panic elsewhere does not make unusable.

pub(crate) use vfiod_sync::lock;
