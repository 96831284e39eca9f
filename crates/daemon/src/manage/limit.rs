//! `limit`: how much I/O an NVMe controller that runs carries out, by its operation `set-limits`.

use clap::Args;
use clap_complete::engine::ArgValueCandidates;
use serde_json::{Value, json};
use vfiod_control::request::Operation;

use super::asked::Daemon;
use super::namespace::size;
use super::{answer, call_operation, complete};

/// Which limits are set.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("limits").required(true).multiple(true)
    .args(["iops", "iops_burst", "bandwidth", "bandwidth_burst"])))]
pub(crate) struct Limits {
    /// The controller: a device, by its name, or the UUID of an instance.
    #[arg(add = ArgValueCandidates::new(complete::devices))]
    controller: String,
    /// I/O commands per second, of all queues together; 0: no limit.
    #[arg(long, value_name = "N")]
    iops: Option<u64>,
    /// I/O commands that are carried out at once after a pause; 0: those of a tenth of a second.
    #[arg(long, value_name = "N")]
    iops_burst: Option<u64>,
    /// Bytes per second that are read and written: a number, or with a unit such as `20M` (K, M, G, T: powers of
    /// 1024); 0: no limit.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    bandwidth: Option<u64>,
    /// Bytes that are read and written at once after a pause; 0: those of a tenth of a second.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    bandwidth_burst: Option<u64>,
    #[command(flatten)]
    daemon: Daemon,
}

/// Sets them, and prints those that hold then.
pub(super) fn run(what: Limits) -> anyhow::Result<()> {
    let Limits { controller, iops, iops_burst, bandwidth, bandwidth_burst, daemon } = what;
    let arguments = json!({
        "iops": iops,
        "iops_burst": iops_burst,
        "bandwidth": bandwidth,
        "bandwidth_burst": bandwidth_burst,
    });
    let operation = Operation([("set-limits".to_owned(), arguments)].into_iter().collect());
    let result: Value = call_operation(&controller, &operation, &daemon)?;
    answer(&daemon, &result, |result| {
        let line = |name: &str, of: &str| match (&result[name], &result[format!("{name}_burst")]) {
            (Value::Number(limit), burst) => {
                format!("{name}: {limit} {of} a second, {burst} at once\n")
            }
            _ => format!("{name}: no limit\n"),
        };
        line("iops", "commands") + &line("bandwidth", "bytes")
    })
}
