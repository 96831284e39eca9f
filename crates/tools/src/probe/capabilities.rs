//! The capabilities in the first 256 bytes, each in one line and details, as lspci shows them.

use serde::Serialize;
use serde_json::{Value, json};

use super::bytes::Bytes;
use super::names;

/// A capability, decoded as far as it is known.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Capability {
    /// Where it is in the configuration space.
    pub(super) offset: usize,
    /// Its number.
    pub(super) id: u16,
    /// Its version, for an extended one.
    pub(super) version: Option<u8>,
    /// What it is called.
    pub(super) name: &'static str,
    /// Its fields.
    pub(super) fields: Value,
    /// What stands behind the name in the first line.
    #[serde(skip)]
    pub(super) title: String,
    /// Further lines.
    #[serde(skip)]
    pub(super) details: Vec<String>,
}

/// `+` or `-` behind a flag's name.
pub(super) fn flag(name: &str, on: bool) -> String {
    format!("{name}{}", if on { '+' } else { '-' })
}

/// Names of flags with their bits, one after the other.
pub(super) fn flags(bits: u32, names: &[(&str, u32)]) -> String {
    let words: Vec<_> = names.iter().map(|(name, mask)| flag(name, bits & mask != 0)).collect();
    words.join(" ")
}

/// Decodes the capability at an offset.
pub(super) fn decode(space: Bytes<'_>, at: usize) -> Capability {
    let id = space.u8(at);
    let (title, details, fields) = match id {
        0x01 => power_management(space, at),
        0x05 => msi(space, at),
        0x09 => vendor(space, at),
        0x10 => express(space, at),
        0x11 => msix(space, at),
        _ => (String::new(), Vec::new(), Value::Null),
    };
    Capability {
        offset: at,
        id: id.into(),
        version: None,
        name: names::capability(id),
        fields,
        title,
        details,
    }
}

type Decoded = (String, Vec<String>, Value);

fn power_management(space: Bytes<'_>, at: usize) -> Decoded {
    let capabilities = u32::from(space.u16(at + 2));
    let control = u32::from(space.u16(at + 4));
    let version = capabilities & 7;
    let state = control & 3;
    let name = if state == 3 { "D3hot".to_owned() } else { format!("D{state}") };
    let details = vec![
        format!(
            "Flags: {} PME({})",
            flags(capabilities, &[("PMEClk", 8), ("DSI", 0x20), ("D1", 0x200), ("D2", 0x400)]),
            flags(
                capabilities,
                &[
                    ("D0", 0x800),
                    ("D1", 0x1000),
                    ("D2", 0x2000),
                    ("D3hot", 0x4000),
                    ("D3cold", 0x8000)
                ]
            )
            .replace(' ', ",")
        ),
        format!(
            "Status: {name} {}",
            flags(control, &[("NoSoftRst", 8), ("PME-Enable", 0x100), ("PME", 0x8000)])
        ),
    ];
    let fields = json!({
        "version": version, "state": name, "no_soft_reset": control & 8 != 0,
    });
    (format!("version {version}"), details, fields)
}

fn msi(space: Bytes<'_>, at: usize) -> Decoded {
    let control = u32::from(space.u16(at + 2));
    let (wide, maskable) = (control & 0x80 != 0, control & 0x100 != 0);
    let enabled = 1u32 << ((control >> 4) & 7);
    let capable = 1u32 << ((control >> 1) & 7);
    let (address, data_at) =
        if wide { (space.u64(at + 4), at + 12) } else { (space.u32(at + 4).into(), at + 8) };
    let data = space.u16(data_at);
    let width = if wide { 16 } else { 8 };
    let mut details = vec![format!("Address: {address:0width$x}  Data: {data:04x}")];
    let mut fields = json!({
        "enabled": control & 1 != 0, "vectors_enabled": enabled, "vectors": capable,
        "address_64": wide, "maskable": maskable, "address": address, "data": data,
    });
    if maskable {
        let (mask, pending) = (space.u32(data_at + 4), space.u32(data_at + 8));
        details.push(format!("Masking: {mask:08x}  Pending: {pending:08x}"));
        fields["mask"] = mask.into();
        fields["pending"] = pending.into();
    }
    let title = format!(
        "{} Count={enabled}/{capable} {} {}",
        flag("Enable", control & 1 != 0),
        flag("Maskable", maskable),
        flag("64bit", wide)
    );
    (title, details, fields)
}

fn msix(space: Bytes<'_>, at: usize) -> Decoded {
    let control = space.u16(at + 2);
    let count = (control & 0x7ff) + 1;
    let (enabled, masked) = (control & 0x8000 != 0, control & 0x4000 != 0);
    let (table, pending) = (space.u32(at + 4), space.u32(at + 8));
    let title = format!("{} Count={count} {}", flag("Enable", enabled), flag("Masked", masked));
    let details = vec![
        format!("Vector table: BAR={} offset={:08x}", table & 7, table & !7),
        format!("PBA: BAR={} offset={:08x}", pending & 7, pending & !7),
    ];
    let fields = json!({
        "enabled": enabled, "masked": masked, "vectors": count,
        "table": { "bar": table & 7, "offset": table & !7 },
        "pba": { "bar": pending & 7, "offset": pending & !7 },
    });
    (title, details, fields)
}

fn vendor(space: Bytes<'_>, at: usize) -> Decoded {
    let len = space.u8(at + 2);
    let end = (at + usize::from(len)).min(space.0.len().min(0x100));
    let data = space.0.get(at + 3..end).unwrap_or_default();
    let hex = hex(data);
    let details = if data.is_empty() { Vec::new() } else { vec![format!("Data: {hex}")] };
    (format!("Len={len:02x}"), details, json!({ "length": len, "data": hex }))
}

/// Bytes as lspci writes them.
pub(super) fn hex(data: &[u8]) -> String {
    let words: Vec<_> = data.iter().map(|byte| format!("{byte:02x}")).collect();
    words.join(" ")
}

fn express(space: Bytes<'_>, at: usize) -> Decoded {
    let capabilities = space.u16(at + 2);
    let version = capabilities & 0xf;
    let kind = match (capabilities >> 4) & 0xf {
        0x0 => "Endpoint",
        0x1 => "Legacy Endpoint",
        0x4 => "Root Port",
        0x5 => "Upstream Port",
        0x6 => "Downstream Port",
        0x7 => "PCI-Express to PCI/PCI-X Bridge",
        0x9 => "Root Complex Integrated Endpoint",
        0xa => "Root Complex Event Collector",
        _ => "Unknown type",
    };
    let message = (capabilities >> 9) & 0x1f;
    let device = space.u32(at + 4);
    let (control, status) = (u32::from(space.u16(at + 8)), u32::from(space.u16(at + 10)));
    let payload = |bits: u32| 128u32 << (bits & 7);
    let mut details = vec![
        format!("DevCap: MaxPayload {} bytes, PhantFunc {}", payload(device), (device >> 3) & 3),
        format!(
            "\t{}",
            flags(device, &[("ExtTag", 1 << 5), ("RBE", 1 << 15), ("FLReset", 1 << 28)])
        ),
        format!(
            "DevCtl: {}",
            flags(control, &[("CorrErr", 1), ("NonFatalErr", 2), ("FatalErr", 4), ("UnsupReq", 8)])
        ),
        format!(
            "\t{}",
            flags(
                control,
                &[
                    ("RlxdOrd", 1 << 4),
                    ("ExtTag", 1 << 8),
                    ("PhantFunc", 1 << 9),
                    ("AuxPwr", 1 << 10),
                    ("NoSnoop", 1 << 11)
                ]
            )
        ),
        format!(
            "\tMaxPayload {} bytes, MaxReadReq {} bytes",
            payload(control >> 5),
            payload(control >> 12)
        ),
        format!(
            "DevSta: {}",
            flags(
                status,
                &[
                    ("CorrErr", 1),
                    ("NonFatalErr", 2),
                    ("FatalErr", 4),
                    ("UnsupReq", 8),
                    ("AuxPwr", 16),
                    ("TransPend", 32)
                ]
            )
        ),
    ];
    // Integrated endpoints have no link.
    if !matches!((capabilities >> 4) & 0xf, 0x9 | 0xa) {
        let (link, now) = (space.u32(at + 12), space.u16(at + 18));
        details.push(format!(
            "LnkCap: Port #{}, Speed {}, Width x{}",
            link >> 24,
            speed(link & 0xf),
            (link >> 4) & 0x3f
        ));
        details.push(format!(
            "LnkSta: Speed {}, Width x{}",
            speed(u32::from(now) & 0xf),
            (now >> 4) & 0x3f
        ));
    }
    let fields = json!({
        "version": version, "type": kind, "interrupt_message": message,
        "max_payload": payload(device), "function_level_reset": device & (1 << 28) != 0,
        "device_control": control, "device_status": status,
    });
    (format!("(v{version}) {kind}, IntMsgNum {message}"), details, fields)
}

fn speed(code: u32) -> &'static str {
    match code {
        1 => "2.5GT/s",
        2 => "5GT/s",
        3 => "8GT/s",
        4 => "16GT/s",
        5 => "32GT/s",
        6 => "64GT/s",
        _ => "unknown",
    }
}
