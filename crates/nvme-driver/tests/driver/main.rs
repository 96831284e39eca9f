//! The driver and the controller of `vfiod-nvme`, over a socket.

mod commands;
mod queues;
mod resets;
mod rig;
