//! A device for checks of sets alone: there is none.

use crate::set::{Set, SetDevice};

/// What sets do among themselves never asks a device.
pub(crate) enum NoDevice {}

impl SetDevice for NoDevice {
    fn set(&self) -> &Set<Self> {
        match *self {}
    }

    fn slot(&self) -> usize {
        match *self {}
    }

    fn needs_reset(&self) -> bool {
        match *self {}
    }
}
