//! Tests of the bench device.

mod measure;
