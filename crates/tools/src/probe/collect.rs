//! The conversation with the server.

use std::path::Path;
use std::time::Duration;

use vfiod_client::{Client, Error, Options, Region, Result};
use vfiod_wire::payload::{IrqInfo, pci_region, region_flag};
use vfiod_wire::set::{SetInfo, SetMember};

use super::names;
use super::report::{
    Area, DeviceReport, IrqReport, Protocol, RegionReport, Report, SetMemberReport, SetReport,
};
use super::space;

/// More regions or interrupt indices than any device has.
const MANY: u32 = 256;
/// The largest configuration space there is.
const CONFIG_MAX: u64 = 4096;

const DEVICE_RESET: u32 = 1 << 0;
const DEVICE_PCI: u32 = 1 << 1;

/// How long a server has to close the connection at the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Asks for everything.
pub(super) fn collect(socket: &Path, timeout: Duration) -> anyhow::Result<Report> {
    let options = Options { timeout, ..Options::default() }.vfiod_features();
    let mut client = Client::connect_with(socket, options)?;
    let report = ask(&mut client, socket);
    client.close(CLOSE_TIMEOUT.min(timeout));
    report
}

fn ask(client: &mut Client, socket: &Path) -> anyhow::Result<Report> {
    let server = client.server().clone();
    let info = client.device_info()?;
    let mut refusals = Vec::new();
    let is_pci = info.flags & DEVICE_PCI != 0;

    let mut regions = Vec::new();
    for index in 0..info.num_regions.min(MANY) {
        match refused(client.region_info(index), &mut refusals)? {
            Some(region) if region.reply.info.size != 0 => {
                regions.push(region_report(index, &region, is_pci));
            }
            _ => {}
        }
    }
    let mut irqs = Vec::new();
    for index in 0..info.num_irqs.min(MANY) {
        match refused(client.irq_info(index), &mut refusals)? {
            Some(irq) if irq.count != 0 => irqs.push(irq_report(index, &irq, is_pci)),
            _ => {}
        }
    }
    let size_of =
        |index| regions.iter().find(|region| region.index == index).map_or(0, |region| region.size);
    let mut config = vec![0; size_of(pci_region::CONFIG).min(CONFIG_MAX) as usize];
    if is_pci && !config.is_empty() {
        // As a driver reads it: there are servers that only know registers of up to four bytes.
        let mut at = 0;
        while at < config.len() {
            let end = config.len().min(at + 4);
            let read = client.region_read(pci_region::CONFIG, at as u64, &mut config[at..end]);
            if refused(read, &mut refusals)?.is_none() {
                config.truncate(at);
            }
            at = end;
        }
    } else {
        config.clear();
    }
    let sizes: Vec<_> = (0..6).map(size_of).collect();
    // Other servers need not survive a feature that they do not know.
    let ours = server.capabilities.vfiod_features == Some(true);
    let set = if ours { refused(client.hot_reset_info(), &mut refusals)? } else { None };
    let set = set.map(set_report);
    Ok(Report {
        socket: socket.display().to_string(),
        protocol: Protocol {
            major: server.major,
            minor: server.minor,
            capabilities: server.capabilities,
        },
        device: DeviceReport {
            flags: info.flags,
            kind: kind(info.flags),
            resettable: info.flags & DEVICE_RESET != 0,
            num_regions: info.num_regions,
            num_irqs: info.num_irqs,
        },
        pci: (!config.is_empty()).then(|| space::decode(&config, &sizes)),
        set,
        regions,
        irqs,
        config,
        refusals,
    })
}

/// What the server refuses is noted; what ends the conversation is an error.
fn refused<T>(result: Result<T>, refusals: &mut Vec<String>) -> anyhow::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error @ Error::Remote { .. }) => {
            refusals.push(error.to_string());
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn kind(flags: u32) -> &'static str {
    match flags {
        flags if flags & DEVICE_PCI != 0 => "PCI",
        flags if flags & (1 << 2) != 0 => "platform",
        flags if flags & (1 << 3) != 0 => "AMBA",
        flags if flags & (1 << 4) != 0 => "CCW",
        flags if flags & (1 << 5) != 0 => "AP",
        flags if flags & (1 << 6) != 0 => "fsl-mc",
        _ => "unknown",
    }
}

fn region_report(index: u32, region: &Region, is_pci: bool) -> RegionReport {
    let info = &region.reply.info;
    let name = if is_pci { names::region(index) } else { None };
    RegionReport {
        index,
        name: name.map_or_else(|| format!("region {index}"), str::to_owned),
        size: info.size,
        readable: info.flags & region_flag::READ != 0,
        writable: info.flags & region_flag::WRITE != 0,
        mappable: info.flags & region_flag::MMAP != 0,
        areas: region
            .reply
            .areas
            .iter()
            .map(|area| Area { offset: area.offset, size: area.size })
            .collect(),
        kind: region.reply.kind,
    }
}

fn set_report(set: SetInfo) -> SetReport {
    let member = |member: SetMember| SetMemberReport {
        device: member.device,
        name: member.name,
        location: member.location,
        open: member.open,
        owned: member.owned,
        itself: member.itself,
    };
    SetReport { reset_allowed: set.allowed, members: set.members.into_iter().map(member).collect() }
}

fn irq_report(index: u32, irq: &IrqInfo, is_pci: bool) -> IrqReport {
    let name = if is_pci { names::irq(index) } else { None };
    IrqReport {
        index,
        name: name.map_or_else(|| format!("index {index}"), str::to_owned),
        vectors: irq.count,
        eventfd: irq.flags & 1 != 0,
        maskable: irq.flags & 2 != 0,
        automasked: irq.flags & 4 != 0,
        noresize: irq.flags & 8 != 0,
    }
}
