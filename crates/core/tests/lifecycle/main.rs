//! The lifecycle table of the design, row by row, and every way in which a step can fail.
#![cfg(not(any(shuttle, loom)))]

mod access;
mod hot_reset;
mod hot_reset_quiet;
mod many;
mod open;
mod panics;
mod regions;
mod register;
mod release;
mod rig;
mod shared_memory;
mod step;
mod unregister;
