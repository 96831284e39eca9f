//! What a function consists of, as its model describes it.

use vfiod_core::region::{Doorbell, SparseArea};
use vfiod_core::{Errno, Error, Result};

use crate::capability::Capability;

/// The interrupt pin (PCI 6.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// INTA.
    A = 1,
    /// INTB.
    B,
    /// INTC.
    C,
    /// INTD.
    D,
}

/// How a base address register decodes (PCI 6.2.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Memory below 4 GiB.
    Memory32 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Memory anywhere; takes the next register too.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// I/O ports.
    Io,
}

/// A base address register.
#[derive(Clone, Debug)]
pub struct Bar {
    pub(crate) kind: BarKind,
    pub(crate) size: u64,
    pub(crate) shared: Vec<SparseArea>,
    pub(crate) doorbells: Vec<Doorbell>,
}

impl Bar {
    /// A register of a kind for `size` bytes, a power of two: 16 and up for memory, 4 to 256 for
    /// I/O.
    pub fn new(kind: BarKind, size: u64) -> Self {
        Self { kind, size, shared: Vec::new(), doorbells: Vec::new() }
    }

    /// Memory below 4 GiB, not prefetchable.
    pub fn memory32(size: u64) -> Self {
        Self::new(BarKind::Memory32 { prefetchable: false }, size)
    }

    /// Memory anywhere, not prefetchable.
    pub fn memory64(size: u64) -> Self {
        Self::new(BarKind::Memory64 { prefetchable: false }, size)
    }

    /// I/O ports.
    pub fn io(size: u64) -> Self {
        Self::new(BarKind::Io, size)
    }

    /// Parts that are plain memory, which clients may map: see
    /// [`Region::shared`](vfiod_core::Region::shared). The model reaches them by
    /// [`Cx::shared_memory`](crate::Cx::shared_memory).
    #[must_use]
    pub fn shared(mut self, areas: Vec<SparseArea>) -> Self {
        self.shared = areas;
        self
    }

    /// A place whose write says "changed".
    #[must_use]
    pub fn doorbell(mut self, doorbell: Doorbell) -> Self {
        self.doorbells.push(doorbell);
        self
    }
}

/// Everything about a function that does not change.
#[derive(Clone, Debug)]
pub struct FunctionSpec {
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    pub(crate) subsystem: (u16, u16),
    pub(crate) class: u32,
    pub(crate) revision: u8,
    pub(crate) pin: Option<Pin>,
    pub(crate) bars: [Option<Bar>; 6],
    /// A BAR number that does not exist, which `check` reports.
    no_such_bar: Option<u8>,
    pub(crate) capabilities: Vec<Capability>,
}

impl FunctionSpec {
    /// A function with its ids and nothing else.
    pub fn new(vendor: u16, device: u16) -> Self {
        Self {
            vendor,
            device,
            subsystem: (0, 0),
            class: 0xff_00_00,
            revision: 0,
            pin: None,
            bars: Default::default(),
            no_such_bar: None,
            capabilities: Vec::new(),
        }
    }

    /// Base class, subclass and programming interface, `0xBBSSPP`.
    #[must_use]
    pub fn class(mut self, class: u32) -> Self {
        self.class = class;
        self
    }

    /// Revision id.
    #[must_use]
    pub fn revision(mut self, revision: u8) -> Self {
        self.revision = revision;
        self
    }

    /// Subsystem vendor and device ids.
    #[must_use]
    pub fn subsystem(mut self, vendor: u16, device: u16) -> Self {
        self.subsystem = (vendor, device);
        self
    }

    /// The interrupt pin; without one there is no INTx.
    #[must_use]
    pub fn pin(mut self, pin: Pin) -> Self {
        self.pin = Some(pin);
        self
    }

    /// A base address register, 0 to 5.
    #[must_use]
    pub fn bar(mut self, index: u8, bar: Bar) -> Self {
        match self.bars.get_mut(usize::from(index)) {
            Some(slot) => *slot = Some(bar),
            None => self.no_such_bar = Some(index),
        }
        self
    }

    /// A capability. They are laid out in the order given.
    #[must_use]
    pub fn capability(mut self, capability: Capability) -> Self {
        self.capabilities.push(capability);
        self
    }

    /// Whether there is an extended configuration space (PCIe 7.2).
    pub(crate) fn is_express(&self) -> bool {
        self.capabilities.iter().any(|cap| matches!(cap, Capability::Express))
    }

    pub(crate) fn msi_vectors(&self) -> u32 {
        let vectors = |cap: &Capability| match cap {
            Capability::Msi { vectors } => Some(u32::from(*vectors)),
            _ => None,
        };
        self.capabilities.iter().find_map(vectors).unwrap_or(0)
    }

    /// That the parts fit together.
    pub(crate) fn check(&self) -> Result<()> {
        let bad = |what: String| Err(Error::new(Errno::INVAL, what));
        if self.class > 0xff_ff_ff {
            return bad(format!("class {:#x}; must have 24 bits at most", self.class));
        }
        if let Some(index) = self.no_such_bar {
            return bad(format!("BAR {index}; there are 0 to 5"));
        }
        for (index, bar) in self.bars.iter().enumerate() {
            let Some(bar) = bar else { continue };
            let (least, most) = match bar.kind {
                BarKind::Io => (4, 256),
                BarKind::Memory32 { .. } => (16, 1 << 31),
                BarKind::Memory64 { .. } => (16, 1 << 62),
            };
            if !bar.size.is_power_of_two() || bar.size < least || bar.size > most {
                return bad(format!(
                    "BAR {index}: {} bytes; must be a power of two from {least} to {most}",
                    bar.size
                ));
            }
            if matches!(bar.kind, BarKind::Memory64 { .. })
                && self.bars.get(index + 1).is_none_or(Option::is_some)
            {
                return bad(format!("BAR {index}: 64 bits wide, but the next one is not free"));
            }
        }
        for (index, cap) in self.capabilities.iter().enumerate() {
            if let Some(name) = cap.unique()
                && self.capabilities[..index].iter().any(|other| other.unique() == Some(name))
            {
                return bad(format!("{name} capability twice; there can be one"));
            }
            cap.check()?;
            match cap {
                Capability::Msix { vectors, table, pba } => {
                    self.check_msix(*vectors, *table, *pba)?;
                }
                cap if cap.is_extended() && !self.is_express() => {
                    return bad("an extended capability needs the PCI Express one".to_owned());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Checks that MSI-X table and pending bits are within BARs, outside memory that clients map,
    /// and apart from each other.
    fn check_msix(&self, vectors: u16, table: (u8, u32), pba: (u8, u32)) -> Result<()> {
        let bad = |what: String| Err(Error::new(Errno::INVAL, what));
        let table_len = u64::from(vectors) * 16;
        let pba_len = u64::from(vectors).div_ceil(64) * 8;
        for (what, (bar, offset), len) in
            [("table", table, table_len), ("pending bits", pba, pba_len)]
        {
            let size = self.bars.get(usize::from(bar)).and_then(Option::as_ref);
            let size = size.map_or(0, |bar| bar.size);
            if offset % 8 != 0 || u64::from(offset) + len > size {
                return bad(format!(
                    "MSI-X {what}: {len} bytes at {offset:#x} do not fit BAR {bar}"
                ));
            }
            if self.shares(bar, u64::from(offset), len) {
                return bad(format!("MSI-X {what}: in a part of BAR {bar} that is memory"));
            }
            if let Some(doorbell) = self.doorbell_in(bar, u64::from(offset), len) {
                return bad(format!(
                    "MSI-X {what}: hides a doorbell at {doorbell:#x} of BAR {bar}"
                ));
            }
        }
        let end = |offset: u32, len: u64| u64::from(offset) + len;
        if table.0 == pba.0
            && u64::from(table.1) < end(pba.1, pba_len)
            && u64::from(pba.1) < end(table.1, table_len)
        {
            return bad("MSI-X table and pending bits overlap".to_owned());
        }
        Ok(())
    }

    /// The offset of a doorbell that lies in `len` bytes of a BAR.
    fn doorbell_in(&self, bar: u8, offset: u64, len: u64) -> Option<u64> {
        let bar = self.bars.get(usize::from(bar)).and_then(Option::as_ref)?;
        let mut offsets = bar.doorbells.iter().map(|doorbell| doorbell.offset);
        offsets.find(|at| (offset..offset + len).contains(at))
    }

    /// Whether some of `len` bytes of a BAR are memory that clients map.
    pub(crate) fn shares(&self, bar: u8, offset: u64, len: u64) -> bool {
        let bar = self.bars.get(usize::from(bar)).and_then(Option::as_ref);
        bar.is_some_and(|bar| {
            let overlaps = |area: &SparseArea| {
                area.offset < offset + len && offset < area.offset.saturating_add(area.size)
            };
            bar.shared.iter().any(overlaps)
        })
    }
}
