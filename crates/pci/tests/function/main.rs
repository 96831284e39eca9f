//! A function as its client sees it: through a file of a registered device.

mod bars;
mod capabilities;
mod golden;
mod header;
mod msix;
mod pin_and_msi;
mod random_writes;
mod request;
mod resets;
mod rig;
mod specs;
