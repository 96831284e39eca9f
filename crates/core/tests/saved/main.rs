//! Saving and restoring a registered device.

mod device;
mod image;
mod numbers;
mod rig;
mod spaces;
mod stopped;
