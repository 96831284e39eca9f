//! Names of PCI classes and of capabilities (PCI Code and ID Assignment Specification).

/// What a class code (base, subclass) is called.
pub(super) fn class(base: u8, sub: u8) -> &'static str {
    match (base, sub) {
        (0x00, 0x00) => "Non-VGA unclassified device",
        (0x00, 0x01) => "VGA compatible unclassified device",
        (0x01, 0x00) => "SCSI storage controller",
        (0x01, 0x01) => "IDE interface",
        (0x01, 0x04) => "RAID bus controller",
        (0x01, 0x06) => "SATA controller",
        (0x01, 0x07) => "Serial Attached SCSI controller",
        (0x01, 0x08) => "Non-Volatile memory controller",
        (0x01, _) => "Mass storage controller",
        (0x02, 0x00) => "Ethernet controller",
        (0x02, _) => "Network controller",
        (0x03, 0x00) => "VGA compatible controller",
        (0x03, 0x02) => "3D controller",
        (0x03, _) => "Display controller",
        (0x04, _) => "Multimedia controller",
        (0x05, 0x00) => "RAM memory",
        (0x05, _) => "Memory controller",
        (0x06, 0x00) => "Host bridge",
        (0x06, 0x01) => "ISA bridge",
        (0x06, 0x04) => "PCI bridge",
        (0x06, _) => "Bridge",
        (0x07, 0x00) => "Serial controller",
        (0x07, 0x01) => "Parallel controller",
        (0x07, _) => "Communication controller",
        (0x08, 0x00) => "PIC",
        (0x08, 0x05) => "SD Host controller",
        (0x08, _) => "System peripheral",
        (0x09, _) => "Input device controller",
        (0x0c, 0x03) => "USB controller",
        (0x0c, 0x05) => "SMBus",
        (0x0c, _) => "Serial bus controller",
        (0x0d, _) => "Wireless controller",
        (0x10, _) => "Encryption controller",
        (0x11, _) => "Signal processing controller",
        (0x12, _) => "Processing accelerators",
        (0x13, _) => "Non-Essential Instrumentation",
        (0xff, _) => "Unassigned class",
        _ => "Unknown class",
    }
}

/// What a capability is called.
pub(super) fn capability(id: u8) -> &'static str {
    match id {
        0x01 => "Power Management",
        0x02 => "AGP",
        0x03 => "Vital Product Data",
        0x04 => "Slot ID",
        0x05 => "MSI",
        0x06 => "CompactPCI hot-swap",
        0x07 => "PCI-X",
        0x09 => "Vendor Specific Information",
        0x0a => "Debug port",
        0x0d => "Subsystem",
        0x10 => "Express",
        0x11 => "MSI-X",
        0x12 => "SATA HBA",
        0x13 => "Advanced Features",
        0x14 => "Enhanced Allocation",
        _ => "Unknown capability",
    }
}

/// What an extended capability is called.
pub(super) fn extended(id: u16) -> &'static str {
    match id {
        0x0001 => "Advanced Error Reporting",
        0x0002 => "Virtual Channel",
        0x0003 => "Device Serial Number",
        0x0004 => "Power Budgeting",
        0x000b => "Vendor Specific Information",
        0x000d => "Access Control Services",
        0x000e => "Alternative Routing-ID Interpretation",
        0x000f => "Address Translation Service",
        0x0010 => "Single Root I/O Virtualization",
        0x0013 => "Page Request Interface",
        0x0015 => "Physical Resizable BAR",
        0x0017 => "TPH",
        0x0018 => "Latency Tolerance Reporting",
        0x0019 => "Secondary PCI Express",
        0x001b => "Process Address Space ID",
        0x001e => "L1 PM Substates",
        0x001f => "Precision Time Measurement",
        0x0023 => "Designated Vendor-Specific",
        _ => "Unknown extended capability",
    }
}

/// What a region of a PCI device is called (`VFIO_PCI_*_REGION_INDEX`).
pub(super) fn region(index: u32) -> Option<&'static str> {
    const NAMES: [&str; 9] =
        ["BAR0", "BAR1", "BAR2", "BAR3", "BAR4", "BAR5", "ROM", "config", "VGA"];
    NAMES.get(index as usize).copied()
}

/// What an interrupt index of a PCI device is called (`VFIO_PCI_*_IRQ_INDEX`).
pub(super) fn irq(index: u32) -> Option<&'static str> {
    const NAMES: [&str; 5] = ["INTx", "MSI", "MSI-X", "ERR", "REQ"];
    NAMES.get(index as usize).copied()
}
