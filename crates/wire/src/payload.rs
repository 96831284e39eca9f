//! Fixed-size payloads, as they stand on the wire behind the header.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! payloads {
    ($($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
            #[repr(C)]
            pub struct $name { $($(#[$fdoc])* pub $field: $type,)* }

            impl $name {
                /// Size in bytes.
                pub const LEN: usize = size_of::<Self>();
            }
        )*
    };
}

payloads! {
    /// DMA_MAP.
    DmaMap {
        /// Size of this structure (32).
        argsz: u32,
        /// Bit 0 readable, bit 1 writeable.
        flags: u32,
        /// Offset in the descriptor's file, bytes.
        offset: u64,
        /// First IO virtual address.
        address: u64,
        /// Size in bytes.
        size: u64,
    }
    /// DMA_UNMAP and its reply.
    DmaUnmap {
        /// Maximum size of the reply payload.
        argsz: u32,
        /// Bit 0: with a [`DmaBitmap`] (`VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP`). Bit 1: everything (VFIO uAPI `VFIO_DMA_UNMAP_FLAG_ALL`).
        flags: u32,
        /// First IO virtual address.
        address: u64,
        /// Size in bytes.
        size: u64,
    }
    /// Behind [`DmaUnmap`] with [`dma_flag::UNMAP_DIRTY`], also in the reply, where the bitmap follows.
    DmaBitmap {
        /// Bytes for each bit: a power of two.
        page_size: u64,
        /// Size of the bitmap, bytes.
        size: u64,
    }
    /// DEVICE_GET_INFO and its reply.
    DeviceInfo {
        /// Maximum size of the reply payload; in the reply, its full size.
        argsz: u32,
        /// `VFIO_DEVICE_FLAGS_*`.
        flags: u32,
        /// Number of region indices.
        num_regions: u32,
        /// Number of interrupt indices.
        num_irqs: u32,
    }
    /// DEVICE_GET_REGION_INFO and the fixed part of its reply.
    RegionInfo {
        /// Maximum size of the reply payload; in the reply, its full size.
        argsz: u32,
        /// `VFIO_REGION_INFO_FLAG_*`.
        flags: u32,
        /// The region.
        index: u32,
        /// Where the capabilities start, from the beginning of this structure.
        cap_offset: u32,
        /// Size of the region in bytes.
        size: u64,
        /// Offset for `mmap` in the descriptor passed along.
        offset: u64,
    }
    /// Header of a region capability.
    CapHeader {
        /// Kind of capability.
        id: u16,
        /// Version of its layout.
        version: u16,
        /// Offset of the next one from the region info's beginning; 0 for the last.
        next: u32,
    }
    /// One mappable area of a sparse region.
    SparseArea {
        /// Offset in the region, bytes.
        offset: u64,
        /// Size in bytes.
        size: u64,
    }
    /// DEVICE_GET_REGION_IO_FDS and the fixed part of its reply.
    RegionIoFds {
        /// Maximum size of the reply payload; in the reply, its full size.
        argsz: u32,
        /// Zero.
        flags: u32,
        /// The region.
        index: u32,
        /// Number of sub-regions.
        count: u32,
    }
    /// One sub-region with a descriptor (ioeventfd).
    IoFd {
        /// Offset in the region, bytes.
        offset: u64,
        /// Size of the access in bytes; 0 for any.
        size: u64,
        /// Which of the descriptors passed along.
        fd_index: u32,
        /// 0: ioeventfd.
        kind: u32,
        /// `KVM_IOEVENTFD_FLAG_*`; bit 0: `datamatch` counts.
        flags: u32,
        /// Zero.
        padding: u32,
        /// The value that rings.
        datamatch: u64,
    }
    /// DEVICE_GET_IRQ_INFO and its reply.
    IrqInfo {
        /// Maximum size of the reply payload; in the reply, its full size.
        argsz: u32,
        /// `VFIO_IRQ_INFO_*`.
        flags: u32,
        /// The interrupt index.
        index: u32,
        /// Number of vectors.
        count: u32,
    }
    /// The fixed part of DEVICE_SET_IRQS.
    IrqSet {
        /// Size of the payload, data included.
        argsz: u32,
        /// One `VFIO_IRQ_SET_DATA_*` and one `VFIO_IRQ_SET_ACTION_*`.
        flags: u32,
        /// The interrupt index.
        index: u32,
        /// First vector.
        start: u32,
        /// Number of vectors.
        count: u32,
    }
    /// The fixed part of REGION_READ, REGION_WRITE and their replies.
    RegionAccess {
        /// Offset in the region, bytes.
        offset: u64,
        /// The region.
        region: u32,
        /// Number of bytes.
        count: u32,
    }
    /// The fixed part of DMA_READ, DMA_WRITE and their replies.
    DmaAccess {
        /// IO virtual address.
        address: u64,
        /// Number of bytes.
        count: u64,
    }
    /// One write of REGION_WRITE_MULTI.
    MultiWrite {
        /// Offset in the region, bytes.
        offset: u64,
        /// The region.
        region: u32,
        /// Number of bytes, at most 8.
        count: u32,
        /// The bytes, from the first.
        data: [u8; 8],
    }
    /// The fixed part of DEVICE_FEATURE and its reply.
    Feature {
        /// Maximum size of the reply payload.
        argsz: u32,
        /// Bits 0-15 the index, then GET, SET, PROBE.
        flags: u32,
    }
    /// What the hot-reset information begins with (see [`crate::set`]).
    HotResetInfo {
        /// Number of members that follow.
        count: u32,
        /// [`crate::set::info_flag`].
        flags: u32,
    }
    /// The fixed part of a member of a device set.
    HotResetMember {
        /// Size of the member with its texts and padding, bytes.
        size: u32,
        /// [`crate::set::member_flag`].
        flags: u32,
        /// The server's number for the device.
        device: u64,
        /// Length of its name, bytes.
        name_len: u16,
        /// Length of its location, bytes.
        location_len: u16,
        /// Zero.
        padding: u32,
    }
    /// The data of a hot reset.
    HotReset {
        /// Zero.
        flags: u32,
        /// Zero.
        reserved: u32,
    }
    /// A file, by which its owner finds its address space ([`crate::space`]).
    SpaceOf {
        /// The server's number of the device.
        device: u64,
        /// The server's number of the file, which is a connection.
        file: u64,
    }
    /// The fixed part of [`DMA_LOGGING_START`](crate::dirty::DMA_LOGGING_START).
    DmaLoggingControl {
        /// Bytes for each bit of later reports: a hint.
        page_size: u64,
        /// Number of [`DmaLoggingRange`]s that follow; none for every address.
        num_ranges: u32,
        /// Zero.
        reserved: u32,
    }
    /// Addresses that are logged.
    DmaLoggingRange {
        /// First IO virtual address.
        iova: u64,
        /// Size in bytes.
        length: u64,
    }
    /// The fixed part of [`DMA_LOGGING_REPORT`](crate::dirty::DMA_LOGGING_REPORT), and of its reply.
    DmaLoggingReport {
        /// First IO virtual address.
        iova: u64,
        /// Size in bytes.
        length: u64,
        /// Bytes for each bit.
        page_size: u64,
    }
    /// MIG_DATA_READ, MIG_DATA_WRITE and the fixed part of their replies.
    MigData {
        /// Maximum size of the reply payload, or of the structure with its data.
        argsz: u32,
        /// Number of bytes.
        size: u32,
    }
    /// The fixed part of VERSION.
    VersionNumbers {
        /// Incompatible changes.
        major: u16,
        /// Compatible changes.
        minor: u16,
    }
}

/// `VFIO_REGION_INFO_FLAG_*`.
pub mod region_flag {
    /// Readable.
    pub const READ: u32 = 1 << 0;
    /// Writeable.
    pub const WRITE: u32 = 1 << 1;
    /// A descriptor for `mmap` comes along.
    pub const MMAP: u32 = 1 << 2;
    /// There are capabilities.
    pub const CAPS: u32 = 1 << 3;
}

/// `VFIO_REGION_INFO_CAP_*`.
pub mod region_cap {
    /// Only parts can be mapped.
    pub const SPARSE_MMAP: u16 = 1;
    /// A device-specific region.
    pub const TYPE: u16 = 2;
}

/// Flags of [`DmaMap`].
pub mod dma_flag {
    /// The server may read.
    pub const READ: u32 = 1 << 0;
    /// The server may write.
    pub const WRITE: u32 = 1 << 1;
    /// Flag of [`super::DmaUnmap`]: report the pages that were written
    /// (VFIO uAPI `VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP`).
    pub const UNMAP_DIRTY: u32 = 1 << 0;
    /// Flag of [`super::DmaUnmap`]: every mapping.
    pub const UNMAP_ALL: u32 = 1 << 1;
}

/// Flags of [`IrqSet`].
pub mod irq_flag {
    /// No data.
    pub const DATA_NONE: u32 = 1 << 0;
    /// A byte for each vector.
    pub const DATA_BOOL: u32 = 1 << 1;
    /// Descriptors came along.
    pub const DATA_EVENTFD: u32 = 1 << 2;
    /// Mask.
    pub const ACTION_MASK: u32 = 1 << 3;
    /// Unmask.
    pub const ACTION_UNMASK: u32 = 1 << 4;
    /// Trigger.
    pub const ACTION_TRIGGER: u32 = 1 << 5;
}

/// Flags of [`Feature`].
pub mod feature_flag {
    /// The index.
    pub const INDEX_MASK: u32 = 0xffff;
    /// Get the data.
    pub const GET: u32 = 1 << 16;
    /// Set the data.
    pub const SET: u32 = 1 << 17;
    /// Ask whether it would work.
    pub const PROBE: u32 = 1 << 18;
}

/// Region indices of a PCI device (`VFIO_PCI_*_REGION_INDEX`).
pub mod pci_region {
    /// Base address register 0; 1 to 5 follow.
    pub const BAR0: u32 = 0;
    /// Expansion ROM.
    pub const ROM: u32 = 6;
    /// Configuration space.
    pub const CONFIG: u32 = 7;
    /// Legacy VGA.
    pub const VGA: u32 = 8;
    /// How many there are.
    pub const COUNT: u32 = 9;
}

/// Interrupt indices of a PCI device (`VFIO_PCI_*_IRQ_INDEX`).
pub mod pci_irq {
    /// INTx.
    pub const INTX: u32 = 0;
    /// Message signalled.
    pub const MSI: u32 = 1;
    /// Message signalled, extended.
    pub const MSIX: u32 = 2;
    /// Unrecoverable error.
    pub const ERR: u32 = 3;
    /// The server asks for the device back.
    pub const REQ: u32 = 4;
    /// How many there are.
    pub const COUNT: u32 = 5;
}
