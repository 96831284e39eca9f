//! From the objects of the manager and the core to what the API shows of them.

use std::time::SystemTime;

use vfiod_core::work::{TaskInfo, TaskState};
use vfiod_core::{
    Credentials, DeviceFlags, DeviceRef, Errno, Error, FileId, IrqIndex, OwnerIdentity,
    RegionFlags, Result,
};
use vfiod_manager::Manager;
use vfiod_quota::Resource;

use crate::places::Usage;
use crate::view::{
    Attribute, Connection, Control, Daemon, Damaged, Definition, Definitions, Device, DeviceState,
    DeviceSummary, Dma, File, Instance, InstanceSummary, Interrupt, Limit, Mapping, Member, Owner,
    Parent, Record, Region, Restarts, Set, Setting, Task, Type,
};

/// How many DMA mappings are shown one by one.
const MAPPINGS: usize = 64;

/// A moment for people (RFC 3339, UTC).
fn moment(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

impl From<&vfiod_core::Owner> for Owner {
    fn from(owner: &vfiod_core::Owner) -> Self {
        if let Some(Credentials { pid, uid, gid }) = owner.credentials() {
            return Self::Peer { pid, uid, gid };
        }
        match owner.identity() {
            OwnerIdentity::InProcess(purpose) => Self::Daemon { purpose: purpose.clone() },
            _ => Self::Daemon { purpose: owner.to_string() },
        }
    }
}

impl From<&vfiod_manager::Record> for Record {
    fn from(record: &vfiod_manager::Record) -> Self {
        Self {
            number: record.number,
            time: moment(record.time),
            event: record.kind,
            name: record.name.clone(),
            device: record.device.map(|id| id.0),
            set: record.set.clone(),
            file: record.file,
            owner: record.owner.as_ref().map(Into::into),
            count: record.count,
            cause: record.cause.map(|cause| cause.name().to_owned()),
        }
    }
}

/// The daemon itself.
pub(crate) fn daemon(manager: &Manager, places: Usage) -> Daemon {
    Daemon {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        since: moment(manager.since()),
        devices: manager.devices().len(),
        instances: manager.bus().instances().len(),
        threads: manager.server().threads(),
        control: Control {
            connections: places.used,
            max: places.max,
            operators_max: places.operators_max,
            user_max: places.user_max,
        },
        restarts: manager.restarts().map(restarts),
    }
}

fn restarts(restarts: &vfiod_manager::Restarts) -> Restarts {
    let vfiod_manager::Restarts { holder, signal, exit, link, unknown, last, blackout } = restarts;
    Restarts {
        holder: *holder,
        signal: *signal,
        exit: *exit,
        link: *link,
        unknown: *unknown,
        last: last.clone(),
        blackout_ms: blackout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// A device in a list.
pub(crate) fn summary(manager: &Manager, device: &DeviceRef) -> DeviceSummary {
    let (state, open) = state(device);
    let (name, set) = (device.name().to_owned(), device.set_name().to_owned());
    let vfiod_manager::About { model, socket } = manager.about(device);
    let origin = manager.origin(device);
    DeviceSummary { name, model, set, state, open, socket, origin }
}

/// A device with everything.
pub(crate) fn device(manager: &Manager, device: &DeviceRef) -> Device {
    let status = device.status();
    Device {
        summary: summary(manager, device),
        number: device.id().0,
        location: device.location().map(str::to_owned),
        failure: status.failure,
        restored: device.has_restored_state(),
        flags: flags(device),
        files: files(device),
        regions: regions(device),
        interrupts: interrupts(device),
        tasks: status.tasks.into_iter().map(task).collect(),
        dma: dma(device),
        connections: manager.connections(device).iter().map(connection).collect(),
        limits: Resource::ALL.map(|resource| limit(manager, device, resource)).into(),
        model_status: device.model_status(),
    }
}

fn limit(manager: &Manager, device: &DeviceRef, resource: Resource) -> Limit {
    // A device that is not served has nothing.
    let reserved = manager.usage(device, resource).unwrap_or_default();
    let common = manager.server().usage(resource);
    Limit {
        name: resource.name().to_owned(),
        reserved: reserved.limit,
        reserved_used: reserved.used,
        common: common.limit,
        common_used: common.used,
    }
}

fn task(task: TaskInfo) -> Task {
    let state = match task.state {
        TaskState::Running => "running",
        TaskState::Waiting => "waiting",
        TaskState::Cancelled => "cancelled",
    };
    Task {
        name: task.name,
        state: state.to_owned(),
        age_ms: u64::try_from(task.age.as_millis()).unwrap_or(u64::MAX),
        runs: task.polls,
        run_us: u64::try_from(task.run.as_micros()).unwrap_or(u64::MAX),
    }
}

/// A device set.
pub(crate) fn set(manager: &Manager, name: &str, members: &[DeviceRef]) -> Set {
    let member =
        |device: &DeviceRef| Member { device: summary(manager, device), files: files(device) };
    let members: Vec<_> = members.iter().map(member).collect();
    let open = members.iter().filter(|member| !member.files.is_empty()).count();
    Set { name: name.to_owned(), open, members }
}

/// A file.
///
/// # Errors
/// `ENOENT`: no file has this number, or it has been released.
pub(crate) fn file(manager: &Manager, number: u64) -> Result<File> {
    let files = files(&manager.find_file(FileId(number))?);
    let none = || Error::new(Errno::NOENT, format!("there is no file {number}"));
    files.into_iter().find(|file| file.number == number).ok_or_else(none)
}

/// Every parent, by name.
pub(crate) fn parents(manager: &Manager) -> Vec<Parent> {
    manager.bus().parents().into_iter().map(|parent| show_parent(manager, parent)).collect()
}

/// A parent.
///
/// # Errors
/// `ENOENT`: no parent has this name.
pub(crate) fn parent(manager: &Manager, name: &str) -> Result<Parent> {
    let none = || Error::new(Errno::NOENT, format!("there is no parent `{name}`"));
    Ok(show_parent(manager, manager.bus().parent(name).ok_or_else(none)?))
}

fn show_parent(manager: &Manager, parent: vfiod_mdev::ParentStatus) -> Parent {
    let vfiod_mdev::ParentStatus { name, leaving, types, instances } = parent;
    let model = manager.parent_model(&name).unwrap_or_default();
    let types = types.into_iter().map(|mdev_type| show_type(&name, mdev_type)).collect();
    Parent { name, model, leaving, types, instances }
}

/// An instance in a list.
pub(crate) fn instance_summary(
    manager: &Manager,
    instance: &vfiod_mdev::Instance,
) -> InstanceSummary {
    let (state, open) = state(instance.device());
    InstanceSummary {
        uuid: instance.uuid(),
        parent: instance.parent().to_owned(),
        type_id: instance.mdev_type().id.clone(),
        state,
        open,
        socket: manager.socket(instance.uuid()),
    }
}

/// An instance with everything. It may have been removed meanwhile.
pub(crate) fn instance(manager: &Manager, instance: &vfiod_mdev::Instance) -> Instance {
    let value = |attribute: &vfiod_mdev::AttributeInfo| {
        let value = instance.attribute(&attribute.name).unwrap_or_else(|error| error.to_string());
        (attribute.name.clone(), value)
    };
    let mut device = device(manager, instance.device());
    let vfiod_manager::About { model, socket } = manager.about_instance(instance);
    (device.summary.model, device.summary.socket) = (model, socket);
    Instance {
        summary: instance_summary(manager, instance),
        attributes: instance.mdev_type().attributes.iter().map(value).collect(),
        defined: manager.definition_of(instance).map(|definition| definition.start),
        device,
    }
}

/// Every definition, and the files that are none.
///
/// # Errors
/// `EOPNOTSUPP`: the daemon keeps no definitions; errors of the file system.
pub(crate) fn definitions(manager: &Manager) -> Result<Definitions> {
    let vfiod_manager::Listing { definitions, damaged } = manager.definitions()?;
    let damaged = damaged.into_iter().map(|damaged| Damaged {
        path: damaged.path.display().to_string(),
        why: damaged.why,
        set_aside_as: damaged.set_aside_as.map(|path| path.display().to_string()),
    });
    Ok(Definitions {
        definitions: definitions.into_iter().map(|one| definition(manager, one)).collect(),
        damaged: damaged.collect(),
    })
}

/// A definition.
pub(crate) fn definition(manager: &Manager, given: vfiod_manager::Definition) -> Definition {
    let running = manager.is_running(&given);
    let failure = manager.start_failure(&given).filter(|_| !running);
    let vfiod_manager::Definition { uuid, parent, mdev_type, start, attrs, other: _ } = given;
    let setting = |(name, value)| Setting { name, value };
    let attributes = attrs.into_iter().map(setting).collect();
    Definition { uuid, parent, type_id: mdev_type, start, running, failure, attributes }
}

/// A device's state and how many files it has.
fn state(device: &DeviceRef) -> (DeviceState, usize) {
    let status = device.status();
    let state = match &status {
        status if status.leaving => DeviceState::Leaving,
        status if status.failed && device.is_stuck() => DeviceState::Stuck,
        status if status.failed => DeviceState::Failed,
        status if status.files.is_empty() => DeviceState::Idle,
        _ => DeviceState::Open,
    };
    (state, status.files.len())
}

/// The files of a device: who has it open.
pub(crate) fn files(device: &DeviceRef) -> Vec<File> {
    let file = |file: vfiod_core::FileStatus| File {
        number: file.id.0,
        device: device.name().to_owned(),
        owner: (&file.owner).into(),
        since: moment(file.since),
    };
    device.status().files.into_iter().map(file).collect()
}

fn connection(info: &vfiod_server::ConnectionInfo) -> Connection {
    Connection {
        owner: (&info.owner).into(),
        messages: info.messages,
        bytes_received: info.bytes_received,
        bytes_sent: info.bytes_sent,
        errors: info.errors,
    }
}

fn flags(device: &DeviceRef) -> Vec<String> {
    let names = [
        (DeviceFlags::RESET, "reset"),
        (DeviceFlags::PCI, "pci"),
        (DeviceFlags::PLATFORM, "platform"),
        (DeviceFlags::FSL_MC, "fsl-mc"),
    ];
    let flags = device.description().flags;
    names
        .into_iter()
        .filter(|(flag, _)| flags.contains(*flag))
        .map(|(_, name)| name.to_owned())
        .collect()
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
        mappable: region.shared.iter().map(|area| area.size).sum(),
    };
    regions.map(region).collect()
}

fn interrupts(device: &DeviceRef) -> Vec<Interrupt> {
    const PCI: [&str; 5] = ["INTx", "MSI", "MSI-X", "ERR", "REQ"];
    let mut interrupts = Vec::new();
    for (index, info) in (0..).zip(&device.description().irqs).filter(|(_, info)| info.count > 0) {
        let name = is_pci(device)
            .then(|| PCI.get(index as usize).map(|name| (*name).to_owned()))
            .flatten();
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
    let vfiod_core::dma::Summary { mappings, bytes, first } = device.dma_summary(MAPPINGS);
    let first = first.iter().map(|mapping| Mapping {
        iova: format!("{:#x}-{:#x}", mapping.iova, mapping.last),
        access: access(mapping.perm.contains(Perm::READ), mapping.perm.contains(Perm::WRITE)),
        file: mapping.owner.map_or(0, |owner| owner.0),
        by: if mapping.is_mapped { "memory" } else { "messages" }.to_owned(),
    });
    Dma { mappings, bytes, first: first.collect() }
}

fn access(read: bool, write: bool) -> String {
    match (read, write) {
        (true, true) => "rw",
        (true, false) => "r",
        (false, true) => "w",
        (false, false) => "none",
    }
    .to_owned()
}

fn show_type(parent: &str, mdev_type: vfiod_mdev::TypeStatus) -> Type {
    let vfiod_mdev::TypeStatus { info, available } = mdev_type;
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
