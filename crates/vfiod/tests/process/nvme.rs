//! A driver for an NVMe disk of the daemon.

use std::path::Path;

use vfiod_nvme_driver::{Controller, Options};

use super::{PATIENCE, until};

/// Connects when the daemon has let the client before go.
pub(crate) fn connect(socket: &Path) -> Controller {
    let mut options = Options::default();
    options.timeout = PATIENCE;
    let mut controller = None;
    until("the disk", || {
        controller = Controller::connect(socket, &options).ok();
        controller.is_some()
    });
    controller.unwrap()
}
