//! From the core's objects to what is shown of them.

use vfiod_core::{Credentials, OwnerIdentity};
use vfiod_core::{DeviceFlags, DeviceRef, IrqIndex, RegionFlags};

use super::view::{Attribute, DeviceSummary, Type};
use super::view::{Connection, Device, DeviceState, Dma, File, Interrupt, Owner, Region, Window};

/// How many DMA windows are shown one by one.
const WINDOWS: usize = 64;

impl From<&vfiod_core::Owner> for Owner {
    fn from(owner: &vfiod_core::Owner) -> Self {
        match (owner.identity(), owner.credentials()) {
            (_, Some(Credentials { pid, uid, gid })) => Self::Peer { pid, uid, gid },
            (OwnerIdentity::InProcess(purpose), None) => Self::Daemon { purpose: purpose.clone() },
            (_, None) => Self::Daemon { purpose: owner.to_string() },
        }
    }
}

/// A device's state and how many files it has.
pub(super) fn state(device: &DeviceRef) -> (DeviceState, usize) {
    let status = device.status();
    let state = match &status {
        status if status.leaving => DeviceState::Leaving,
        status if status.failed => DeviceState::Failed,
        status if status.files.is_empty() => DeviceState::Idle,
        _ => DeviceState::Open,
    };
    (state, status.files.len())
}

pub(super) fn summary(device: &DeviceRef, model: String, socket: Option<String>) -> DeviceSummary {
    let (state, open) = state(device);
    let (name, set) = (device.name().to_owned(), device.set_name().to_owned());
    DeviceSummary { name, model, set, state, open, socket }
}

pub(super) fn files(device: &DeviceRef) -> Vec<File> {
    let file = |file: vfiod_core::FileStatus| File {
        number: file.id.0,
        device: device.name().to_owned(),
        owner: (&file.owner).into(),
        since: super::moment(file.since),
    };
    device.status().files.into_iter().map(file).collect()
}

pub(super) fn device(
    device: &DeviceRef,
    summary: DeviceSummary,
    connections: Vec<Connection>,
) -> Device {
    Device {
        summary,
        number: device.id().0,
        location: device.location().map(str::to_owned),
        flags: flags(device),
        files: files(device),
        regions: regions(device),
        interrupts: interrupts(device),
        dma: dma(device),
        connections,
    }
}

pub(super) fn connection(info: &vfiod_server::ConnectionInfo) -> Connection {
    Connection {
        owner: (&info.owner).into(),
        messages: info.messages,
        bytes_received: info.bytes_received,
        bytes_sent: info.bytes_sent,
        errors: info.errors,
    }
}

fn flags(device: &DeviceRef) -> Vec<&'static str> {
    let names = [
        (DeviceFlags::RESET, "reset"),
        (DeviceFlags::PCI, "pci"),
        (DeviceFlags::PLATFORM, "platform"),
        (DeviceFlags::FSL_MC, "fsl-mc"),
    ];
    let flags = device.description().flags;
    names.into_iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, name)| name).collect()
}

fn is_pci(device: &DeviceRef) -> bool {
    device.description().flags.contains(DeviceFlags::PCI)
}

fn regions(device: &DeviceRef) -> Vec<Region> {
    let regions = (0..).zip(&device.description().regions).filter(|(_, region)| region.size > 0);
    let region = |(index, region): (u32, &vfiod_core::Region)| Region {
        index,
        name: is_pci(device).then(|| match index {
            0..=5 => format!("BAR {index}"),
            6 => "ROM".to_owned(),
            7 => "configuration".to_owned(),
            8 => "VGA".to_owned(),
            _ => "device's own".to_owned(),
        }),
        size: region.size,
        access: access(
            region.flags.contains(RegionFlags::READ),
            region.flags.contains(RegionFlags::WRITE),
        ),
        mappable: region.shared.iter().flat_map(|shared| &shared.areas).map(|area| area.size).sum(),
    };
    regions.map(region).collect()
}

fn interrupts(device: &DeviceRef) -> Vec<Interrupt> {
    const PCI: [&str; 5] = ["INTx", "MSI", "MSI-X", "ERR", "REQ"];
    let mut interrupts = Vec::new();
    for (index, info) in (0..).zip(&device.description().irqs).filter(|(_, info)| info.count > 0) {
        let name = is_pci(device).then(|| PCI.get(index as usize).copied()).flatten();
        let counters =
            (0..info.count).filter_map(|vector| device.irq_counters(IrqIndex(index), vector).ok());
        let (mut signalled, mut held, mut lost) = (0, 0, 0);
        for vector in counters {
            signalled += vector.signalled;
            held += vector.held;
            lost += vector.lost;
        }
        let (vectors, enabled) = (info.count, device.irq_enabled(IrqIndex(index)));
        interrupts.push(Interrupt { index, name, vectors, enabled, signalled, held, lost });
    }
    interrupts
}

fn dma(device: &DeviceRef) -> Dma {
    use vfiod_core::dma::Perm;
    let windows = device.dma_mappings();
    let bytes = windows.iter().map(|w| (w.last - w.iova).saturating_add(1));
    let first = windows.iter().take(WINDOWS).map(|window| Window {
        iova: format!("{:#x}-{:#x}", window.iova, window.last),
        access: access(window.perm.contains(Perm::READ), window.perm.contains(Perm::WRITE)),
        file: window.owner.map_or(0, |owner| owner.0),
        by: if window.is_mapped() { "memory" } else { "messages" },
    });
    Dma {
        windows: windows.len(),
        bytes: bytes.fold(0, u64::saturating_add),
        first: first.collect(),
    }
}

fn access(read: bool, write: bool) -> &'static str {
    match (read, write) {
        (true, true) => "rw",
        (true, false) => "r",
        (false, true) => "w",
        (false, false) => "none",
    }
}

pub(super) fn kind(parent: &str, kind: vfiod_mdev::TypeStatus) -> Type {
    let vfiod_mdev::TypeStatus { info, available } = kind;
    let attribute = |attribute: vfiod_mdev::AttributeInfo| Attribute {
        name: attribute.name,
        values: attribute.values,
        summary: attribute.summary,
        writable: attribute.writable,
    };
    Type {
        parent: parent.to_owned(),
        id: info.id,
        name: info.name,
        description: info.description,
        device_api: info.device_api,
        available,
        attributes: info.attributes.into_iter().map(attribute).collect(),
    }
}
