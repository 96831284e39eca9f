//! What is where: the directories, links and files, each named by what it stands for.

use std::fmt;
use std::sync::Arc;

use fuser::FileType;
use uuid::Uuid;
use vfiod_core::DeviceId;
use vfiod_mdev::{Instance, TypeStatus};

use crate::mdev_bus::MdevBus;

type Name = Arc<str>;

/// A directory that is always there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Fixed {
    Root,
    Bus,
    BusMdev,
    BusDevices,
    Class,
    ClassMdevBus,
    /// The subsystem of the parents.
    ClassVfiod,
    Devices,
    Virtual,
    /// The parents.
    Vfiod,
    Kernel,
    IommuGroups,
}

/// The directories that are always there but for the root: where, what, name.
const FIXED: [(Fixed, Fixed, &str); 11] = [
    (Fixed::Root, Fixed::Bus, "bus"),
    (Fixed::Bus, Fixed::BusMdev, "mdev"),
    (Fixed::BusMdev, Fixed::BusDevices, "devices"),
    (Fixed::Root, Fixed::Class, "class"),
    (Fixed::Class, Fixed::ClassMdevBus, "mdev_bus"),
    (Fixed::Class, Fixed::ClassVfiod, "vfiod"),
    (Fixed::Root, Fixed::Devices, "devices"),
    (Fixed::Devices, Fixed::Virtual, "virtual"),
    (Fixed::Virtual, Fixed::Vfiod, "vfiod"),
    (Fixed::Root, Fixed::Kernel, "kernel"),
    (Fixed::Kernel, Fixed::IommuGroups, "iommu_groups"),
];

const TYPES: &str = "mdev_supported_types";

/// A parent's type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Type {
    pub(super) parent: Name,
    pub(super) id: Name,
}

/// A parent's instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Device {
    pub(super) parent: Name,
    pub(super) uuid: Uuid,
}

/// A file of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum TypeFile {
    Name,
    Description,
    DeviceApi,
    AvailableInstances,
    Create,
}

impl TypeFile {
    const ALL: [(Self, &str); 5] = [
        (Self::Name, "name"),
        (Self::Description, "description"),
        (Self::DeviceApi, "device_api"),
        (Self::AvailableInstances, "available_instances"),
        (Self::Create, "create"),
    ];

    /// As in the kernel, a type need not have a name or a description.
    fn is_there(self, status: &TypeStatus) -> bool {
        match self {
            Self::Name => !status.info.name.is_empty(),
            Self::Description => !status.info.description.is_empty(),
            Self::DeviceApi | Self::AvailableInstances | Self::Create => true,
        }
    }
}

/// Something that has a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Node {
    Fixed(Fixed),
    /// In `class/mdev_bus`.
    ParentLink(Name),
    /// In `class/vfiod`.
    ClassLink(Name),
    /// In `bus/mdev/devices`.
    BusLink(Uuid),
    Parent(Name),
    ParentSubsystem(Name),
    ParentUevent(Name),
    /// `mdev_supported_types`.
    Types(Name),
    Type(Type),
    TypeFile(Type, TypeFile),
    /// A type's `devices`.
    TypeDevices(Type),
    TypeLink(Type, Uuid),
    Device(Device),
    MdevType(Device),
    Subsystem(Device),
    IommuGroup(Device),
    Uevent(Device),
    Remove(Device),
    Attribute(Device, Name),
    /// In `kernel/iommu_groups`, by the device's number. It is no group of the kernel's: nothing assigns
    /// these instances, but libvirt lists none without one.
    Group(DeviceId),
    /// A group's `devices`.
    GroupDevices(DeviceId),
    GroupLink(DeviceId, Uuid),
}

/// Its path, for the log.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let above = self.above();
        if above != Self::Fixed(Fixed::Root) && *self != above {
            write!(f, "{above}/")?;
        }
        match self {
            Self::Fixed(fixed) => {
                let name = FIXED.iter().find(|(_, there, _)| there == fixed);
                f.write_str(name.map_or("", |(.., name)| name))
            }
            Self::ParentLink(parent) | Self::ClassLink(parent) | Self::Parent(parent) => {
                f.write_str(parent)
            }
            Self::BusLink(uuid) | Self::TypeLink(_, uuid) | Self::GroupLink(_, uuid) => {
                write!(f, "{uuid}")
            }
            Self::Types(_) => f.write_str(TYPES),
            Self::Type(mdev_type) => f.write_str(&mdev_type.id),
            Self::TypeFile(_, file) => {
                let name = TypeFile::ALL.iter().find(|(there, _)| there == file);
                f.write_str(name.map_or("", |(_, name)| name))
            }
            Self::TypeDevices(_) | Self::GroupDevices(_) => f.write_str("devices"),
            Self::Device(device) => write!(f, "{}", device.uuid),
            Self::MdevType(_) => f.write_str("mdev_type"),
            Self::Subsystem(_) | Self::ParentSubsystem(_) => f.write_str("subsystem"),
            Self::IommuGroup(_) => f.write_str("iommu_group"),
            Self::Uevent(_) | Self::ParentUevent(_) => f.write_str("uevent"),
            Self::Group(number) => write!(f, "{}", number.0),
            Self::Remove(_) => f.write_str("remove"),
            Self::Attribute(_, name) => f.write_str(name),
        }
    }
}

/// What something is at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Directory,
    Link(String),
    File { readable: bool, writable: bool },
}

const READ: Look = Look::File { readable: true, writable: false };
const WRITE: Look = Look::File { readable: false, writable: true };

impl Node {
    /// What it is at the moment; `None`: it is not there.
    pub(super) fn look(&self, bus: &dyn MdevBus) -> Option<Look> {
        match self {
            Self::Fixed(_) => Some(Look::Directory),
            Self::ParentLink(parent) | Self::ClassLink(parent) => {
                bus.types(parent)?;
                Some(Look::Link(format!("../../devices/virtual/vfiod/{parent}")))
            }
            Self::BusLink(uuid) => {
                let instance = bus.instance(*uuid)?;
                let parent = instance.parent();
                Some(Look::Link(format!("../../../devices/virtual/vfiod/{parent}/{uuid}")))
            }
            Self::Parent(parent) | Self::Types(parent) => {
                bus.types(parent).map(|_| Look::Directory)
            }
            Self::ParentSubsystem(parent) => {
                bus.types(parent)?;
                Some(Look::Link("../../../../class/vfiod".into()))
            }
            Self::ParentUevent(parent) => bus.types(parent).map(|_| READ),
            Self::Type(mdev_type) | Self::TypeDevices(mdev_type) => {
                mdev_type.status(bus).map(|_| Look::Directory)
            }
            Self::TypeFile(mdev_type, file) => {
                mdev_type.status(bus).filter(|status| file.is_there(status))?;
                Some(if *file == TypeFile::Create { WRITE } else { READ })
            }
            Self::TypeLink(mdev_type, uuid) => {
                let instance = bus.instance(*uuid)?;
                (*instance.parent() == *mdev_type.parent
                    && *instance.mdev_type().id == *mdev_type.id)
                    .then(|| Look::Link(format!("../../../{uuid}")))
            }
            Self::Device(device) => device.instance(bus).map(|_| Look::Directory),
            Self::MdevType(device) => {
                let instance = device.instance(bus)?;
                Some(Look::Link(format!("../mdev_supported_types/{}", instance.mdev_type().id)))
            }
            Self::Subsystem(device) => {
                device.instance(bus)?;
                Some(Look::Link("../../../../../bus/mdev".into()))
            }
            Self::IommuGroup(device) => {
                let number = device.instance(bus)?.device().id().0;
                Some(Look::Link(format!("../../../../../kernel/iommu_groups/{number}")))
            }
            Self::Uevent(device) => device.instance(bus).map(|_| READ),
            Self::Group(number) | Self::GroupDevices(number) => {
                numbered(bus, *number).map(|_| Look::Directory)
            }
            Self::GroupLink(number, uuid) => {
                let instance = numbered(bus, *number).filter(|one| one.uuid() == *uuid)?;
                let parent = instance.parent();
                Some(Look::Link(format!("../../../../devices/virtual/vfiod/{parent}/{uuid}")))
            }
            Self::Remove(device) => device.instance(bus).map(|_| WRITE),
            Self::Attribute(device, name) => {
                let instance = device.instance(bus)?;
                let writable = instance.mdev_type().attribute(name).ok()?.writable;
                Some(Look::File { readable: true, writable })
            }
        }
    }

    /// Its kind, which never changes.
    pub(super) fn kind(&self) -> FileType {
        match self {
            Self::Fixed(_)
            | Self::Parent(_)
            | Self::Types(_)
            | Self::Type(_)
            | Self::TypeDevices(_)
            | Self::Device(_)
            | Self::Group(_)
            | Self::GroupDevices(_) => FileType::Directory,
            Self::ParentLink(_)
            | Self::ClassLink(_)
            | Self::BusLink(_)
            | Self::ParentSubsystem(_)
            | Self::TypeLink(..)
            | Self::MdevType(_)
            | Self::Subsystem(_)
            | Self::IommuGroup(_)
            | Self::GroupLink(..) => FileType::Symlink,
            Self::TypeFile(..)
            | Self::ParentUevent(_)
            | Self::Uevent(_)
            | Self::Remove(_)
            | Self::Attribute(..) => FileType::RegularFile,
        }
    }

    /// What this directory would have under a name, which may not be there.
    pub(super) fn child(&self, name: &str) -> Option<Self> {
        match self {
            Self::Fixed(Fixed::ClassMdevBus) => Some(Self::ParentLink(name.into())),
            Self::Fixed(Fixed::ClassVfiod) => Some(Self::ClassLink(name.into())),
            Self::Fixed(Fixed::IommuGroups) => Some(Self::Group(number(name)?)),
            Self::Fixed(Fixed::BusDevices) => Some(Self::BusLink(spelt(name)?)),
            Self::Fixed(Fixed::Vfiod) => Some(Self::Parent(name.into())),
            Self::Fixed(fixed) => FIXED
                .iter()
                .find(|(within, _, called)| within == fixed && *called == name)
                .map(|(_, there, _)| Self::Fixed(*there)),
            Self::Parent(parent) => Some(match name {
                TYPES => Self::Types(parent.clone()),
                "subsystem" => Self::ParentSubsystem(parent.clone()),
                "uevent" => Self::ParentUevent(parent.clone()),
                _ => Self::Device(Device { parent: parent.clone(), uuid: spelt(name)? }),
            }),
            Self::Group(number) if name == "devices" => Some(Self::GroupDevices(*number)),
            Self::GroupDevices(number) => Some(Self::GroupLink(*number, spelt(name)?)),
            Self::Types(parent) => {
                Some(Self::Type(Type { parent: parent.clone(), id: name.into() }))
            }
            Self::Type(mdev_type) if name == "devices" => {
                Some(Self::TypeDevices(mdev_type.clone()))
            }
            Self::Type(mdev_type) => TypeFile::ALL
                .iter()
                .find(|(_, called)| *called == name)
                .map(|(file, _)| Self::TypeFile(mdev_type.clone(), *file)),
            Self::TypeDevices(mdev_type) => Some(Self::TypeLink(mdev_type.clone(), spelt(name)?)),
            Self::Device(device) => Some(match name {
                "mdev_type" => Self::MdevType(device.clone()),
                "subsystem" => Self::Subsystem(device.clone()),
                "iommu_group" => Self::IommuGroup(device.clone()),
                "uevent" => Self::Uevent(device.clone()),
                "remove" => Self::Remove(device.clone()),
                _ => Self::Attribute(device.clone(), name.into()),
            }),
            _ => None,
        }
    }

    /// What this directory has, by name.
    pub(super) fn children(&self, bus: &dyn MdevBus) -> Vec<(String, Self)> {
        let names: Vec<String> = match self {
            Self::Fixed(Fixed::ClassMdevBus | Fixed::ClassVfiod | Fixed::Vfiod) => bus.parents(),
            Self::Fixed(Fixed::BusDevices) => names(bus, |_| true),
            Self::Fixed(Fixed::IommuGroups) => {
                let instances = bus.instances().into_iter();
                instances.map(|instance| instance.device().id().0.to_string()).collect()
            }
            Self::Fixed(fixed) => {
                let within = FIXED.iter().filter(|(within, ..)| within == fixed);
                within.map(|(.., name)| (*name).to_owned()).collect()
            }
            Self::Parent(parent) => {
                let mut names = names(bus, |instance| *instance.parent() == **parent);
                names.extend([TYPES, "subsystem", "uevent"].map(str::to_owned));
                names
            }
            Self::Group(_) => vec!["devices".to_owned()],
            Self::GroupDevices(number) => {
                numbered(bus, *number).iter().map(|one| one.uuid().to_string()).collect()
            }
            Self::Types(parent) => {
                let types = bus.types(parent).unwrap_or_default();
                types.into_iter().map(|status| status.info.id).collect()
            }
            Self::Type(mdev_type) => {
                let status = mdev_type.status(bus);
                let files = TypeFile::ALL
                    .iter()
                    .filter(|(file, _)| status.as_ref().is_some_and(|status| file.is_there(status)))
                    .map(|(_, name)| (*name).to_owned());
                files.chain(["devices".to_owned()]).collect()
            }
            Self::TypeDevices(mdev_type) => names(bus, |instance| {
                *instance.parent() == *mdev_type.parent && *instance.mdev_type().id == *mdev_type.id
            }),
            Self::Device(device) => {
                let mut names: Vec<String> =
                    ["mdev_type", "subsystem", "iommu_group", "uevent", "remove"]
                        .map(str::to_owned)
                        .into();
                if let Some(instance) = device.instance(bus) {
                    let attributes = instance.mdev_type().attributes.iter();
                    let attributes = attributes.map(|attribute| attribute.name.clone());
                    // Those that cannot be the name of a file are reached by other ways.
                    let good = |name: &String| {
                        !matches!(&**name, "" | "." | "..") && !name.contains(['/', '\0'])
                    };
                    let known = names.clone();
                    names.extend(attributes.filter(good).filter(|name| !known.contains(name)));
                }
                names
            }
            _ => Vec::new(),
        };
        names
            .into_iter()
            .filter_map(|name| {
                let child = self.child(&name)?;
                Some((name, child))
            })
            .collect()
    }

    /// The directory that has it.
    pub(super) fn above(&self) -> Self {
        match self {
            Self::Fixed(fixed) => {
                let above = FIXED.iter().find(|(_, there, _)| there == fixed);
                Self::Fixed(above.map_or(Fixed::Root, |(within, ..)| *within))
            }
            Self::ParentLink(_) => Self::Fixed(Fixed::ClassMdevBus),
            Self::ClassLink(_) => Self::Fixed(Fixed::ClassVfiod),
            Self::Group(_) => Self::Fixed(Fixed::IommuGroups),
            Self::GroupDevices(number) => Self::Group(*number),
            Self::GroupLink(number, _) => Self::GroupDevices(*number),
            Self::BusLink(_) => Self::Fixed(Fixed::BusDevices),
            Self::Parent(_) => Self::Fixed(Fixed::Vfiod),
            Self::Types(parent) | Self::ParentSubsystem(parent) | Self::ParentUevent(parent) => {
                Self::Parent(parent.clone())
            }
            Self::Type(mdev_type) => Self::Types(mdev_type.parent.clone()),
            Self::TypeFile(mdev_type, _) | Self::TypeDevices(mdev_type) => {
                Self::Type(mdev_type.clone())
            }
            Self::TypeLink(mdev_type, _) => Self::TypeDevices(mdev_type.clone()),
            Self::Device(device) => Self::Parent(device.parent.clone()),
            Self::MdevType(device)
            | Self::Subsystem(device)
            | Self::IommuGroup(device)
            | Self::Uevent(device)
            | Self::Remove(device)
            | Self::Attribute(device, _) => Self::Device(device.clone()),
        }
    }
}

impl Type {
    /// The type, if it is there.
    pub(super) fn status(&self, bus: &dyn MdevBus) -> Option<TypeStatus> {
        bus.types(&self.parent)?.into_iter().find(|status| *status.info.id == *self.id)
    }
}

impl Device {
    /// The instance, if it is there.
    pub(super) fn instance(&self, bus: &dyn MdevBus) -> Option<Instance> {
        bus.instance(self.uuid).filter(|instance| *instance.parent() == *self.parent)
    }
}

fn names(bus: &dyn MdevBus, which: impl Fn(&Instance) -> bool) -> Vec<String> {
    let instances = bus.instances().into_iter().filter(which);
    instances.map(|instance| instance.uuid().to_string()).collect()
}

/// The instance whose device has a number.
fn numbered(bus: &dyn MdevBus, number: DeviceId) -> Option<Instance> {
    bus.instances().into_iter().find(|instance| instance.device().id() == number)
}

/// The number that a file's name spells as the kernel does.
fn number(name: &str) -> Option<DeviceId> {
    let number = name.parse().ok()?;
    (name == format!("{number}")).then_some(DeviceId(number))
}

/// The UUID that a file's name spells as the kernel does.
fn spelt(name: &str) -> Option<Uuid> {
    let uuid = Uuid::try_parse(name).ok()?;
    (uuid.to_string() == name).then_some(uuid)
}
