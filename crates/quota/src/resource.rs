//! What the devices of a process share.

use std::fmt;
use std::ops::{Index, IndexMut};

use rustix::io::Errno;

/// Something that the devices of a process share, and that their clients can use up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    /// Connections, negotiated or not.
    Connections,
    /// Threads that serve connections and eventfds.
    Threads,
    /// Descriptors: sockets, eventfds, files for DMA.
    Descriptors,
    /// Files mapped into the process (`vm.max_map_count`).
    Mappings,
    /// Bytes of address space that mapped files take.
    AddressSpace,
    /// Bytes of the page tables that accesses to them take. Who may not have more has its tables given back
    /// and made anew: nothing is refused.
    PageTables,
    /// Bytes that are kept for connections: messages that wait, replies that a client does not take,
    /// data of DMA by message, DMA mappings, logs of written pages.
    Memory,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Connections,
        Self::Threads,
        Self::Descriptors,
        Self::Mappings,
        Self::AddressSpace,
        Self::PageTables,
        Self::Memory,
    ];

    /// Its name in a configuration and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Threads => "threads",
            Self::Descriptors => "descriptors",
            Self::Mappings => "mappings",
            Self::AddressSpace => "address_space",
            Self::PageTables => "page_tables",
            Self::Memory => "memory",
        }
    }

    /// What a client is told that asks for more than it may have.
    pub fn errno(self) -> Errno {
        match self {
            Self::Connections => Errno::DQUOT,
            Self::Threads => Errno::AGAIN,
            Self::Descriptors => Errno::MFILE,
            Self::Mappings => Errno::NOSPC,
            Self::AddressSpace | Self::PageTables | Self::Memory => Errno::NOMEM,
        }
    }

    /// The words for a number of it.
    fn words(self) -> &'static str {
        match self {
            Self::AddressSpace => "bytes of address space",
            Self::PageTables => "bytes of page tables",
            Self::Memory => "bytes of memory",
            other => other.name(),
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

/// Something for each resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerResource<T>([T; Resource::ALL.len()]);

impl<T> PerResource<T> {
    /// Calls `make` for each resource.
    pub fn new(make: impl FnMut(Resource) -> T) -> Self {
        Self(Resource::ALL.map(make))
    }
}

impl<T> Index<Resource> for PerResource<T> {
    type Output = T;

    fn index(&self, resource: Resource) -> &T {
        &self.0[resource as usize]
    }
}

impl<T> IndexMut<Resource> for PerResource<T> {
    fn index_mut(&mut self, resource: Resource) -> &mut T {
        &mut self.0[resource as usize]
    }
}
