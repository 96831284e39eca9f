//! The driver and the controller of `vfiod-nvme`, over a socket.

mod commands;
mod content;
mod killed;
mod queues;
mod reports;
mod resets;
mod rig;
mod verify;
