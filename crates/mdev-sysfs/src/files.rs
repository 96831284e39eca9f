//! Reads and writes of the view's files.

use uuid::Uuid;
use vfiod_core::{Errno, Error, Result};

use crate::mdev_bus::MdevBus;
use crate::tree::{Device, Node, TypeFile};

/// The longest text that the kernel hands to an attribute at once.
pub(super) const PAGE: usize = 4096;

/// The text of a file.
///
/// # Errors
/// `ENODEV`: its device or parent was removed; `EACCES`: it is write-only; errors of the attribute.
pub(super) fn show(bus: &dyn MdevBus, node: &Node) -> Result<String> {
    let mut text = match node {
        Node::TypeFile(mdev_type, file) => {
            let status = mdev_type.status(bus).ok_or_else(removed)?;
            match file {
                TypeFile::Name => status.info.name,
                TypeFile::Description => status.info.description,
                TypeFile::DeviceApi => status.info.device_api,
                TypeFile::AvailableInstances => status.available.to_string(),
                TypeFile::Create => return Err(wrong_way()),
            }
        }
        Node::Attribute(device, name) => {
            device.instance(bus).ok_or_else(removed)?.attribute(name)?
        }
        // As of a device without a driver and a number.
        Node::ParentUevent(parent) => {
            return bus.types(parent).map(|_| String::new()).ok_or_else(removed);
        }
        Node::Uevent(device) => {
            return device.instance(bus).map(|_| String::new()).ok_or_else(removed);
        }
        _ => return Err(wrong_way()),
    };
    text.push('\n');
    Ok(text)
}

/// Carries out a write to a file.
///
/// # Errors
/// `EINVAL`: the text is no UUID, number or UTF-8; `ENODEV`: its device or parent was removed;
/// `EACCES`: it is read-only; errors of the bus.
pub(super) fn store(bus: &dyn MdevBus, node: &Node, data: &[u8]) -> Result<()> {
    if data.len() > PAGE {
        return Err(Error::new(Errno::INVAL, format!("more than {PAGE} bytes in one write")));
    }
    match node {
        Node::TypeFile(mdev_type, TypeFile::Create) => {
            bus.create(&mdev_type.parent, &mdev_type.id, uuid(data)?)
        }
        Node::Remove(device) => {
            // A C string.
            let end = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
            if number(line(&data[..end])?)? == 0 {
                return Ok(());
            }
            let Device { uuid, .. } = device;
            device.instance(bus).ok_or_else(removed)?;
            bus.remove(*uuid).map_err(|error| match error.errno() {
                // Another thread has removed it meanwhile.
                Errno::NOENT => removed(),
                _ => error,
            })
        }
        Node::Attribute(device, name) => {
            device.instance(bus).ok_or_else(removed)?;
            bus.set_attribute(device.uuid, name, line(data)?)
        }
        _ => Err(wrong_way()),
    }
}

/// A text without the newline that `echo` adds.
fn line(data: &[u8]) -> Result<&str> {
    let text = std::str::from_utf8(data)
        .map_err(|error| Error::new(Errno::INVAL, "that is no text").because(error))?;
    Ok(text.strip_suffix('\n').unwrap_or(text))
}

/// A UUID in its usual form, in either case, as the kernel's `create_store` reads it: one byte may
/// follow, whatever it is.
fn uuid(data: &[u8]) -> Result<Uuid> {
    const LEN: usize = uuid::fmt::Hyphenated::LENGTH;
    let usual = if data.len() <= LEN + 1 { data.get(..LEN) } else { None };
    usual.and_then(|usual| Uuid::try_parse_ascii(usual).ok()).ok_or_else(|| {
        let what = format!(
            "`{}` is no UUID, which looks like 83b8f4f2-509f-382f-3c1e-e6bfe0fa1001",
            String::from_utf8_lossy(data).escape_debug()
        );
        Error::new(Errno::INVAL, what)
    })
}

/// A number as the kernel reads it: decimal, octal with a leading 0, hexadecimal with 0x.
fn number(text: &str) -> Result<u64> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    let (digits, radix) = match digits.strip_prefix('0') {
        Some(rest) if rest.starts_with(['x', 'X']) => (&rest[1..], 16),
        Some(rest) if !rest.is_empty() => (rest, 8),
        _ => (digits, 10),
    };
    let good = digits.starts_with(|c: char| c.is_ascii_hexdigit());
    u64::from_str_radix(digits, radix).ok().filter(|_| good).ok_or_else(|| {
        let what = format!("`{}` is no number; 1 removes the device", text.escape_debug());
        Error::new(Errno::INVAL, what)
    })
}

fn removed() -> Error {
    Error::new(Errno::NODEV, "the device or parent of this file was removed")
}

fn wrong_way() -> Error {
    Error::new(Errno::ACCESS, "this file does not do that")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (text, value) in [("1", 1), ("0", 0), ("+7", 7), ("0x1F", 31), ("010", 8), ("00", 0)] {
            assert_eq!(number(text).unwrap(), value, "{text}");
        }
        for text in
            ["", "-1", "x", "1 ", " 1", "0x", "0x+1", "++1", "08", "1\n", "99999999999999999999"]
        {
            assert_eq!(number(text).unwrap_err().errno(), Errno::INVAL, "{text:?}");
        }
    }

    #[test]
    fn uuids() {
        let usual = "83B8F4F2-509f-382f-3c1e-e6bfe0fa1001";
        for more in [&b""[..], b"\n", b"x", b" ", b"\0", b"\xff"] {
            let text = [usual.as_bytes(), more].concat();
            assert_eq!(uuid(&text).unwrap().to_string(), usual.to_lowercase(), "{more:?}");
        }
        let simple = usual.replace('-', "");
        let braced = format!("{{{usual}}}");
        let two = format!("{usual}\n\n");
        let cases =
            ["", "1", &usual[1..], &simple, &braced, &two, " 3b8f4f2-509f-382f-3c1e-e6bfe0fa1001"];
        for text in cases {
            assert_eq!(uuid(text.as_bytes()).unwrap_err().errno(), Errno::INVAL, "{text:?}");
        }
    }
}
