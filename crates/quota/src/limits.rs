//! How much there is of each resource, and how much of it a device has for itself.

use rustix::process::getrlimit;

use crate::resource::{PerResource, Resource};

/// How much there is of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// In all, the devices' shares included: each device makes the common part smaller.
    Total(u64),
    /// Beyond the devices' shares.
    Common(u64),
}

/// How much of a resource a device has for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// So much, or the device is refused.
    Demanded(u64),
    /// So much while the shares of all devices are at most a quarter of the total; less for later ones.
    UpTo(u64),
}

/// The limit of one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// How much there is.
    pub size: Size,
    /// How much of it a device has for its clients.
    pub share: Share,
    /// What a device takes itself, beside its share.
    pub own: u64,
}

/// The limits of all resources.
pub type Limits = PerResource<Limit>;

/// Devices that are expected at least: those that are added later are to have a share, too.
const DEVICES: u64 = 16;

/// Mappings of clients' files, at most: what the handler of SIGBUS has room for.
const MAPPINGS: u64 = 32_768;
/// `vm.max_map_count` where it cannot be read.
const MAX_MAP_COUNT: u64 = 65_530;
/// Address space for mappings of clients' files: of 128 TiB.
const ADDRESS_SPACE: u64 = 96 << 40;
/// Page tables for those: enough for half a tebibyte that is in use.
const PAGE_TABLES: u64 = 1 << 30;
/// Memory that is kept for connections.
const MEMORY: u64 = 1 << 30;
/// Threads that serve, beyond the devices' shares.
const THREADS: u64 = 256;
/// Connections beyond the devices' shares.
const CONNECTIONS: u64 = 4096;

/// Descriptors of the process itself: log, control API, `epoll`, files of models.
const OWN_DESCRIPTORS: u64 = 64;

impl Limit {
    /// A limit of which a device takes nothing itself.
    pub fn new(size: Size, share: Share) -> Self {
        Self { size, share, own: 0 }
    }

    /// Of `total`, a device has `most` for itself, and less if there are many: `devices` are expected.
    fn divided(total: u64, most: u64, own: u64, devices: u64) -> Self {
        let share = (part(total) / devices.max(DEVICES)).clamp(1, most);
        Self { size: Size::Total(total), share: Share::UpTo(share), own }
    }

    /// How much there is beyond the shares of `shares` in all.
    pub(crate) fn common(&self, shares: u64) -> u64 {
        match self.size {
            Size::Total(total) => total.saturating_sub(shares),
            Size::Common(common) => common,
        }
    }
}

impl Limits {
    /// What this process has, for `devices` devices and some that are added later.
    pub fn of_process(devices: usize) -> Self {
        let devices = devices as u64;
        Self::new(|resource| {
            let divided = |total, most, own| Limit::divided(total, most, own, devices);
            match resource {
                Resource::Connections => Limit::new(Size::Common(CONNECTIONS), Share::UpTo(4)),
                // They are there only while they are needed.
                Resource::Threads => Limit::new(Size::Common(THREADS), Share::UpTo(2)),
                // Its listening socket, its memory, and what its model opens.
                Resource::Descriptors => divided(descriptors(), 512, 4),
                // Its memory.
                Resource::Mappings => divided(mappings(), 256, 1),
                Resource::AddressSpace => divided(ADDRESS_SPACE, 1 << 40, 0),
                Resource::PageTables => divided(PAGE_TABLES, 8 << 20, 0),
                Resource::Memory => divided(MEMORY, 8 << 20, 0),
            }
        })
    }

    /// Sets the limit of a resource.
    pub fn set(&mut self, resource: Resource, limit: Limit) {
        self[resource] = limit;
    }

    /// Sets how much there is of a resource beyond the devices' shares.
    pub fn set_common(&mut self, resource: Resource, common: u64) {
        self[resource].size = Size::Common(common);
    }

    /// Sets how much there is of a resource; a share that was not demanded is divided anew for `devices`
    /// devices.
    pub fn set_total(&mut self, resource: Resource, total: u64, devices: usize) {
        let limit = &mut self[resource];
        *limit = match limit.share {
            Share::UpTo(most) => Limit::divided(total, most, limit.own, devices as u64),
            demanded @ Share::Demanded(_) => {
                Limit { size: Size::Total(total), share: demanded, own: limit.own }
            }
        };
    }
}

/// How much of a total devices have for themselves at most, where that was not demanded. They may be as
/// many as the rest allows, and each must be of use: what is common is to be more than this.
pub(crate) fn part(total: u64) -> u64 {
    total / 4
}

/// The descriptors that the process may have open, without its own.
fn descriptors() -> u64 {
    let limit = getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
    limit.saturating_sub(OWN_DESCRIPTORS)
}

/// Half of the mappings that the process may have: its threads, its memory and its libraries have the
/// other half.
fn mappings() -> u64 {
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap_or_default();
    (text.trim().parse().unwrap_or(MAX_MAP_COUNT) / 2).min(MAPPINGS)
}
