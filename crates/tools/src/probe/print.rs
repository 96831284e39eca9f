//! A report in lspci's manner.

use std::fmt::Write;

use super::capabilities::{flag, flags};
use super::report::{RegionReport, Report, SetReport};
use super::space::{Bar, BarKind, Function};

/// The whole report.
pub(super) fn text(report: &Report, hex: bool) -> String {
    let mut out = Lines(String::new());
    match &report.pci {
        Some(function) => header(&mut out, function),
        None => out.line(0, format!("{} device", report.device.kind)),
    }
    for region in &report.regions {
        // BARs are shown with the header, the configuration space speaks for itself.
        if report.pci.is_none() || region.index >= 6 && region.name != "config" {
            out.line(1, plain_region(region));
        }
    }
    shared_areas(&mut out, report);
    for irq in &report.irqs {
        let bits = [
            ("EventFd", irq.eventfd),
            ("Maskable", irq.maskable),
            ("AutoMasked", irq.automasked),
            ("NoResize", irq.noresize),
        ];
        let bits = bits.map(|(name, on)| flag(name, on)).join(" ");
        out.line(1, format!("IRQ {}: {}, vectors {}, {bits}", irq.index, irq.name, irq.vectors));
    }
    if let Some(function) = &report.pci {
        capabilities(&mut out, function);
    }
    if let Some(set) = &report.set {
        device_set(&mut out, set);
    }
    server(&mut out, report);
    for refusal in &report.refusals {
        out.line(1, format!("Refused: {refusal}"));
    }
    if hex {
        dump(&mut out, &report.config);
    }
    out.0
}

/// Lines with tabs in front.
struct Lines(String);

impl Lines {
    fn line(&mut self, depth: usize, text: impl AsRef<str>) {
        for _ in 0..depth {
            self.0.push('\t');
        }
        self.0.push_str(text.as_ref().trim_end());
        self.0.push('\n');
    }
}

fn header(out: &mut Lines, function: &Function) {
    let programming = function.class_code & 0xff;
    let mut first = format!(
        "{} [{:04x}]: Device {:04x}:{:04x}",
        function.class,
        function.class_code >> 8,
        function.vendor_id,
        function.device_id
    );
    if function.revision != 0 {
        let _ = write!(first, " (rev {:02x})", function.revision);
    }
    if programming != 0 {
        let _ = write!(first, " (prog-if {programming:02x})");
    }
    out.line(0, first);
    if (function.subsystem_vendor_id, function.subsystem_id) != (0, 0) {
        let (vendor, device) = (function.subsystem_vendor_id, function.subsystem_id);
        out.line(1, format!("Subsystem: Device {vendor:04x}:{device:04x}"));
    }
    let command: [(&str, u32); 11] = [
        ("I/O", 1),
        ("Mem", 1 << 1),
        ("BusMaster", 1 << 2),
        ("SpecCycle", 1 << 3),
        ("MemWINV", 1 << 4),
        ("VGASnoop", 1 << 5),
        ("ParErr", 1 << 6),
        ("Stepping", 1 << 7),
        ("SERR", 1 << 8),
        ("FastB2B", 1 << 9),
        ("DisINTx", 1 << 10),
    ];
    out.line(1, format!("Control: {}", flags(function.command.into(), &command)));
    out.line(1, format!("Status: {}", status(function.status)));
    if function.multifunction {
        out.line(1, "Header: one of several functions of its slot");
    }
    if let Some(pin) = function.interrupt_pin {
        out.line(1, format!("Interrupt: pin {pin} routed to IRQ {}", function.interrupt_line));
    }
    for bar in &function.bars {
        out.line(1, region(bar));
    }
}

fn status(status: u16) -> String {
    let bits = u32::from(status);
    let speed = match (status >> 9) & 3 {
        0 => "fast",
        1 => "medium",
        2 => "slow",
        _ => "??",
    };
    format!(
        "{} DEVSEL={speed} {}",
        flags(bits, &[("Cap", 1 << 4), ("66MHz", 1 << 5), ("FastB2B", 1 << 7), ("ParErr", 1 << 8)]),
        flags(
            bits,
            &[
                (">TAbort", 1 << 11),
                ("<TAbort", 1 << 12),
                ("<MAbort", 1 << 13),
                (">SERR", 1 << 14),
                ("<PERR", 1 << 15),
                ("INTx", 1 << 3),
            ]
        )
    )
}

fn region(bar: &Bar) -> String {
    let size = size(bar.size);
    let index = bar.index;
    let (kind, address, detail) = match bar.kind {
        BarKind::Io => ("I/O ports", format!("{:04x}", bar.address), String::new()),
        BarKind::Memory32 | BarKind::Memory64 => {
            let width = if bar.kind == BarKind::Memory64 { 64 } else { 32 };
            let digits = width as usize / 4;
            let prefetchable = if bar.prefetchable { "prefetchable" } else { "non-prefetchable" };
            (
                "Memory",
                format!("{:0digits$x}", bar.address),
                format!(" ({width}-bit, {prefetchable})"),
            )
        }
    };
    // An address of zero means that no guest has placed it yet.
    let address = if bar.address == 0 { "<unassigned>".to_owned() } else { address };
    format!("Region {index}: {kind} at {address}{detail} [size={size}]")
}

fn plain_region(region: &RegionReport) -> String {
    let access = [("Read", region.readable), ("Write", region.writable), ("Map", region.mappable)];
    let access = access.map(|(name, on)| flag(name, on)).join(" ");
    let kind = match region.kind {
        Some((kind, subtype)) => format!(", type {kind:#x} subtype {subtype:#x}"),
        None => String::new(),
    };
    format!("Region {}: {} [size={}] {access}{kind}", region.index, region.name, size(region.size))
}

fn shared_areas(out: &mut Lines, report: &Report) {
    for region in report.regions.iter().filter(|region| region.mappable) {
        if region.areas.is_empty() {
            out.line(1, format!("Mappable: region {}, all of it", region.index));
        }
        for area in &region.areas {
            out.line(
                1,
                format!(
                    "Mappable: region {}, {:#x}-{:#x} [size={}]",
                    region.index,
                    area.offset,
                    area.offset.saturating_add(area.size.saturating_sub(1)),
                    size(area.size)
                ),
            );
        }
    }
}

fn capabilities(out: &mut Lines, function: &Function) {
    for capability in &function.capabilities {
        let place = match capability.version {
            Some(version) => format!("[{:x} v{version}]", capability.offset),
            None => format!("[{:x}]", capability.offset),
        };
        let colon = if capability.title.contains(['+', '=']) { ":" } else { "" };
        let name = capability.name;
        let unknown = if name.starts_with("Unknown") {
            format!(" {:#04x}", capability.id)
        } else {
            String::new()
        };
        let title = &capability.title;
        out.line(1, format!("Capabilities: {place} {name}{unknown}{colon} {title}"));
        for detail in &capability.details {
            out.line(2, detail);
        }
    }
    for warning in &function.warnings {
        out.line(1, format!("Warning: {warning}"));
    }
}

/// A device that is reset by itself is not worth a line.
fn device_set(out: &mut Lines, set: &SetReport) {
    if set.members.len() < 2 {
        return;
    }
    let count = set.members.len();
    out.line(1, format!("Device set: {count} members, {}", flag("HotReset", set.reset_allowed)));
    for member in &set.members {
        let mut line = member.location.clone().unwrap_or_default();
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&member.name);
        line.push_str(match (member.itself, member.owned, member.open) {
            (true, _, _) => " (this)",
            (_, true, _) => " (open, own)",
            (_, _, true) => " (open)",
            _ => "",
        });
        out.line(2, line);
    }
}

fn server(out: &mut Lines, report: &Report) {
    let protocol = &report.protocol;
    let device = &report.device;
    out.line(
        1,
        format!(
            "Device: {} {}, {} regions, {} interrupt indices",
            device.kind,
            flag("Reset", device.resettable),
            device.num_regions,
            device.num_irqs
        ),
    );
    let capabilities = serde_json::to_string(&protocol.capabilities).unwrap_or_default();
    out.line(
        1,
        format!("Protocol: vfio-user {}.{} {capabilities}", protocol.major, protocol.minor),
    );
    out.line(1, format!("Socket: {}", report.socket));
}

fn dump(out: &mut Lines, config: &[u8]) {
    for (n, row) in config.chunks(16).enumerate() {
        out.line(0, format!("{:02x}: {}", n * 16, super::capabilities::hex(row)));
    }
}

/// A size as lspci writes it: `256`, `4K`, `1M`.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];
    for (unit, shift) in UNITS {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size(32), "32");
        assert_eq!(size(4096), "4K");
        assert_eq!(size(1 << 20), "1M");
        assert_eq!(size((1 << 20) + 1024), "1025K");
        assert_eq!(size(0), "0");
    }
}
