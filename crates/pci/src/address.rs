//! Where a function is: segment, bus, device, function.

use std::fmt;
use std::str::FromStr;

/// A function's place, `0000:01:02.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Segment (domain).
    pub segment: u16,
    /// Bus number.
    pub bus: u8,
    /// Device number on the bus, 0 to 31.
    pub device: u8,
    /// Function number in the slot, 0 to 7.
    pub function: u8,
}

/// A text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no PCI address; one looks like `0000:01:02.0` (segment:bus:device.function, \
     hexadecimal, device up to 1f, function up to 7; the segment may be left out)"
)]
pub struct AddressError(String);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { segment, bus, device, function } = self;
        write!(f, "{segment:04x}:{bus:02x}:{device:02x}.{function:x}")
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        parse(text).ok_or_else(|| AddressError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Address> {
    let (place, function) = text.rsplit_once('.')?;
    let (rest, device) = place.rsplit_once(':')?;
    let (segment, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
    let hex = |text: &str, digits, most| {
        let number = (!text.is_empty() && text.len() <= digits)
            .then(|| text.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(text))
            .flatten()
            .and_then(|text| u16::from_str_radix(text, 16).ok())?;
        (number <= most).then_some(number)
    };
    Some(Address {
        segment: hex(segment, 4, u16::MAX)?,
        bus: hex(bus, 2, 0xff)? as u8,
        device: hex(device, 2, 31)? as u8,
        function: hex(function, 1, 7)? as u8,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for text in ["0000:01:02.0", "ffff:ff:1f.7"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        assert_eq!("3:4.5".parse::<Address>().unwrap().to_string(), "0000:03:04.5");
    }

    #[test]
    fn rubbish_is_refused() {
        for text in
            ["", "1", "1:2", "01:20.0", "01:02.8", "1:2:3:4.0", "0:-1:0.0", "g:0.0", "0:+1.0"]
        {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
