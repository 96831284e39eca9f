//! A daemon with one model, and the tools that record and replay sessions with it.

use std::process::ExitCode;

use checksumd::Checksum;
use vfiod_daemon::Daemon;

fn main() -> ExitCode {
    let daemon = Daemon::new().model::<Checksum>("checksum");
    daemon.tool(vfiod_tools::capture()).tool(vfiod_tools::replay()).run()
}
