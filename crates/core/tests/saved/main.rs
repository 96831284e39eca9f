//! Saving and restoring a registered device.

mod device;
mod image;
mod numbers;
mod portable;
mod process;
mod rig;
mod spaces;
mod stopped;
