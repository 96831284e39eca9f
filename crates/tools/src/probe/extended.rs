//! The capabilities of the extended configuration space, from offset 0x100.

use serde_json::{Value, json};

use super::bytes::Bytes;
use super::capabilities::{Capability, flags, hex};
use super::names;

/// Follows the chain.
pub(super) fn chain(space: Bytes<'_>, all: &mut Vec<Capability>, warnings: &mut Vec<String>) {
    let mut at = 0x100;
    let mut seen = Vec::new();
    loop {
        if at < 0x100 || at + 4 > space.0.len() {
            warnings.push(format!("the extended capability list points to {at:#x}, outside"));
            return;
        }
        if seen.contains(&at) {
            warnings.push(format!("the extended capability list comes back to {at:#x}"));
            return;
        }
        seen.push(at);
        let header = space.u32(at);
        if header == 0 || header == u32::MAX {
            // An empty list, or a server without an extended space that says it has one.
            return;
        }
        all.push(decode(space, at, header));
        at = (header >> 20) as usize & !3;
        if at == 0 {
            return;
        }
    }
}

fn decode(space: Bytes<'_>, at: usize, header: u32) -> Capability {
    let id = (header & 0xffff) as u16;
    let (title, details, fields) = match id {
        0x0003 => {
            let serial = space.u64(at + 4);
            let bytes: Vec<_> =
                serial.to_be_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            let text = bytes.join("-");
            (text.clone(), Vec::new(), json!({ "serial": text }))
        }
        0x000b => vendor(space, at),
        0x0010 => virtualization(space, at),
        _ => (String::new(), Vec::new(), Value::Null),
    };
    Capability {
        offset: at,
        id,
        version: Some(((header >> 16) & 0xf) as u8),
        name: names::extended(id),
        fields,
        title,
        details,
    }
}

fn vendor(space: Bytes<'_>, at: usize) -> (String, Vec<String>, Value) {
    let header = space.u32(at + 4);
    let (id, revision, len) = (header & 0xffff, (header >> 16) & 0xf, header >> 20);
    let end = (at + len as usize).min(space.0.len());
    let data = space.0.get(at + 8..end).unwrap_or_default();
    let shown = hex(&data[..data.len().min(64)]);
    let details = if data.is_empty() { Vec::new() } else { vec![format!("Data: {shown}")] };
    let fields = json!({ "id": id, "revision": revision, "length": len, "data": shown });
    (format!("ID={id:04x} Rev={revision} Len={len:03x}"), details, fields)
}

/// SR-IOV (PCIe 9.3.3).
fn virtualization(space: Bytes<'_>, at: usize) -> (String, Vec<String>, Value) {
    let control = space.u16(at + 0x08);
    let [initial, total, count] = [0x0c, 0x0e, 0x10].map(|offset| space.u16(at + offset));
    let [offset, stride, device] = [0x14, 0x16, 0x1a].map(|offset| space.u16(at + offset));
    let bits = [
        ("Enable", 1 << 0),
        ("Migration", 1 << 1),
        ("Interrupt", 1 << 2),
        ("MSE", 1 << 3),
        ("ARIHierarchy", 1 << 4),
    ];
    let details = vec![
        format!("IOVCtl: {}", flags(u32::from(control), &bits)),
        format!("Initial VFs: {initial}, Total VFs: {total}, Number of VFs: {count}"),
        format!("VF offset: {offset}, stride: {stride}, Device ID: {device:04x}"),
    ];
    let fields = json!({
        "enabled": control & 1 != 0,
        "initial": initial,
        "total": total,
        "count": count,
        "offset": offset,
        "stride": stride,
        "device_id": device,
    });
    (String::new(), details, fields)
}
