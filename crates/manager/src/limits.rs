//! How much devices may take, of the configuration and of what the process has.

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

/// Checks that each device of a configuration can have the shares that it demands.
///
/// # Errors
/// The first device that cannot, and what all of them demand.
pub(crate) fn check(config: &Config) -> Result<(), UsageError> {
    let ledger = Ledger::new(limits(config));
    let units = plan::units(config);
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
