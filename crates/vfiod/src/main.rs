//! `vfiod`: the daemon with this project's device models and tools.

use std::process::ExitCode;

use vfiod_daemon::Daemon;

fn main() -> ExitCode {
    let daemon = Daemon::new()
        .name("vfiod")
        .version(env!("CARGO_PKG_VERSION"))
        .models(vfiod_devices::catalogue());
    vfiod_tools::all().into_iter().fold(daemon, Daemon::tool).run()
}
