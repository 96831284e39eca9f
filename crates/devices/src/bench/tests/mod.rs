//! Tests of the bench device.

mod measure;
mod queues;
mod rig;
