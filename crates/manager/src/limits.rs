//! How much devices may take, of the configuration and of what the process has.

use rustix::process::getrlimit;
use vfiod_config::{Config, UsageError};
use vfiod_quota::{Ledger, Limits, Resource, Share, Size};

use crate::plan;

/// The limits of what devices share: what the process has, or less where the configuration says so.
pub(crate) fn limits(config: &Config) -> Limits {
    let devices = plan::units(config).iter().map(|unit| unit.sockets().len()).sum();
    let mut limits = Limits::of_process(devices);
    let wanted = config.limits;
    if let Some(common) = wanted.common_connections {
        limits[Resource::Connections].size = Size::Common(common);
    }
    for resource in Resource::ALL {
        if let Some(total) = wanted.total[resource] {
            let Size::Total(most) = limits[resource].size else { continue };
            limits.set_total(resource, total.min(most), devices);
            if total > most {
                let name = resource.name();
                tracing::warn!("limits.{name} is {total}, but the process can have {most} at most");
            }
        }
        if let Some(reserved) = wanted.reserved[resource] {
            limits[resource].share = Share::Demanded(reserved);
        }
    }
    limits
}

/// Checks that each device of a configuration can have the shares that it demands, and that the process may
/// have the descriptors that it needs.
///
/// # Errors
/// The first device that cannot, and what all of them demand.
pub(crate) fn check(config: &Config) -> Result<(), UsageError> {
    let ledger = Ledger::new(limits(config));
    let units = plan::units(config);
    check_descriptors(units.iter().map(|unit| unit.sockets().len()).sum())?;
    let names = units.iter().flat_map(|unit| unit.sockets().into_iter().map(|_| unit.name()));
    let opened: Result<Vec<_>, _> = names.map(|name| ledger.open(name)).collect();
    match opened {
        Ok(_) => Ok(()),
        Err(short) => {
            let name = short.resource.name();
            Err(UsageError(format!(
                "{short}; raise limits.{name}, or lower limits.reserved_{name}"
            )))
        }
    }
}

/// Checks that the process may open what it needs itself, and a socket for each device.
fn check_descriptors(devices: usize) -> Result<(), UsageError> {
    let Size::Total(left) = Limits::of_process(devices)[Resource::Descriptors].size else {
        return Ok(());
    };
    if left >= devices.max(1) as u64 {
        return Ok(());
    }
    let most = getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
    Err(UsageError(format!(
        "this process may open {most} descriptors (RLIMIT_NOFILE): too few for itself and {devices} devices; \
         raise its hard limit: `ulimit -Hn`, or LimitNOFILE= of its unit"
    )))
}
