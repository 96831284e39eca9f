//! A daemon with one model.

use std::process::ExitCode;

use checksumd::Checksum;
use vfiod_daemon::Daemon;

fn main() -> ExitCode {
    Daemon::new().model::<Checksum>("checksum").run()
}
