//! Device sets across the socket: an extension of this project's, in the manner of the kernel's
//! `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO` and `VFIO_DEVICE_PCI_HOT_RESET`.
//!
//! A *device set* is all devices that can only be reset together, such as the functions of a PCI
//! slot. vfio-user has no command for it, so it is two features of DEVICE_FEATURE, far above
//! those of the kernel. A server that does not know them replies to a probe with `ENOTTY`, as it
//! does for any feature.
//!
//! | index | operation | data |
//! | --- | --- | --- |
//! | [`HOT_RESET_INFO`] 0x7f00 | GET | none; the reply has [`HotResetInfo`], then a [`HotResetMember`] for each member |
//! | [`HOT_RESET`] 0x7f01 | SET | [`HotReset`] |
//!
//! Each member is a structure of fixed size, then its name, then its location (both UTF-8, not
//! terminated), then zeros up to a multiple of 8 bytes. The members include the device that was
//! asked, whose flag says so. A location is that of the member's bus, such as `0000:01:02.1` for
//! a PCI function, or empty. Where the request's `argsz` is too small there is no data, and the
//! reply's `argsz` is what is needed.
//!
//! A hot reset resets every member, open or not. It is for who has all members open that are
//! open at all: connections of one process count as one owner's. Another owner that has ended does not
//! count: the reset waits until its file is released, two seconds at most. [`HOT_RESET_INFO`] shows the file
//! until then.
//!
//! | errno of a hot reset | when |
//! | --- | --- |
//! | `EINVAL` | another owner has a member open; unknown flags; the wrong size |
//! | `EBUSY` | a member was being opened or closed for too long, or did not quiesce; nothing was reset |
//! | anything else | a member could not be reset: it and those reset before it fail with `EIO` until one of their resets succeeds |

use zerocopy::{FromBytes, IntoBytes};

use crate::payload::{HotReset, HotResetInfo, HotResetMember};
use crate::{DecodeError, EINVAL};

/// The feature that lists the devices that are reset together. GET.
pub const HOT_RESET_INFO: u16 = 0x7f00;
/// The feature that resets a set. SET.
pub const HOT_RESET: u16 = 0x7f01;

/// Flags of [`HotResetInfo`].
pub mod info_flag {
    /// Nobody but the caller's owner has a member open: a hot reset would be allowed.
    pub const ALLOWED: u32 = 1 << 0;
}

/// Flags of [`HotResetMember`].
pub mod member_flag {
    /// Its device is open.
    pub const OPEN: u32 = 1 << 0;
    /// It is open, and by the caller's owner.
    pub const OWNED: u32 = 1 << 1;
    /// It is the device that was asked.
    pub const SELF: u32 = 1 << 2;
}

const ALIGN: usize = 8;

/// A member of a device set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetMember {
    /// The server's number for it, never used twice.
    pub device: u64,
    /// Its name.
    pub name: String,
    /// Where it is on its bus, if that says so.
    pub location: Option<String>,
    /// Its device is open.
    pub open: bool,
    /// It is open, and by the caller's owner.
    pub owned: bool,
    /// It is the device that was asked.
    pub itself: bool,
}

/// A device set as a client sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetInfo {
    /// A hot reset by the caller would be allowed.
    pub allowed: bool,
    /// All members.
    pub members: Vec<SetMember>,
}

fn text_len(text: &str) -> u16 {
    // Cut at a character, in the unlikely case.
    let mut len = text.len().min(u16::MAX.into());
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    len as u16
}

impl SetInfo {
    /// The data of the feature. Names and locations over 65,535 bytes are cut.
    pub fn encode(&self) -> Vec<u8> {
        let flags = if self.allowed { info_flag::ALLOWED } else { 0 };
        let mut data = HotResetInfo { count: self.members.len() as u32, flags }.as_bytes().to_vec();
        for member in &self.members {
            let location = member.location.as_deref().unwrap_or_default();
            let (name_len, location_len) = (text_len(&member.name), text_len(location));
            let texts = usize::from(name_len) + usize::from(location_len);
            let size = (HotResetMember::LEN + texts).next_multiple_of(ALIGN);
            let end = data.len() + size;
            let flag = |on, flag| if on { flag } else { 0 };
            let fixed = HotResetMember {
                size: size as u32,
                flags: flag(member.open, member_flag::OPEN)
                    | flag(member.owned, member_flag::OWNED)
                    | flag(member.itself, member_flag::SELF),
                device: member.device,
                name_len,
                location_len,
                padding: 0,
            };
            data.extend_from_slice(fixed.as_bytes());
            data.extend_from_slice(&member.name.as_bytes()[..name_len.into()]);
            data.extend_from_slice(&location.as_bytes()[..location_len.into()]);
            data.resize(end, 0);
        }
        data
    }

    /// Reads the data of the feature. Unknown flags, and what a later version may put behind the
    /// texts of a member, are skipped.
    ///
    /// # Errors
    /// `EINVAL`: it ends early, or its sizes do not fit each other, or a text is not UTF-8.
    pub fn decode(data: &[u8]) -> Result<Self, DecodeError> {
        const SHORT: DecodeError = DecodeError::new(EINVAL, "hot reset information cut short");
        const SIZES: DecodeError = DecodeError::new(EINVAL, "hot reset information of odd sizes");
        let (info, mut rest) = HotResetInfo::read_from_prefix(data).map_err(|_| SHORT)?;
        let mut members = Vec::new();
        for _ in 0..info.count {
            let (fixed, _) = HotResetMember::read_from_prefix(rest).map_err(|_| SHORT)?;
            let (entry, behind) = rest.split_at_checked(fixed.size as usize).ok_or(SHORT)?;
            let texts = entry.get(HotResetMember::LEN..).ok_or(SIZES)?;
            let (name, texts) = texts.split_at_checked(fixed.name_len.into()).ok_or(SIZES)?;
            let (location, _) = texts.split_at_checked(fixed.location_len.into()).ok_or(SIZES)?;
            let text = |bytes: &[u8]| {
                let text = std::str::from_utf8(bytes);
                let what = "hot reset information with a text that is not UTF-8";
                text.map(str::to_owned).map_err(|_| DecodeError::new(EINVAL, what))
            };
            let has = |flag| fixed.flags & flag != 0;
            members.push(SetMember {
                device: fixed.device,
                name: text(name)?,
                location: (!location.is_empty()).then(|| text(location)).transpose()?,
                open: has(member_flag::OPEN),
                owned: has(member_flag::OWNED),
                itself: has(member_flag::SELF),
            });
            rest = behind;
        }
        Ok(Self { allowed: info.flags & info_flag::ALLOWED != 0, members })
    }
}

/// Checks the data of a hot reset.
///
/// # Errors
/// `EINVAL`: the wrong size, or a flag that is not known; none is.
pub fn check_hot_reset(data: &[u8]) -> Result<(), DecodeError> {
    match HotReset::read_from_bytes(data) {
        Ok(HotReset { flags: 0, reserved: 0 }) => Ok(()),
        Ok(_) => Err(DecodeError::new(EINVAL, "hot reset with unknown flags")),
        Err(_) => Err(DecodeError::new(EINVAL, "hot reset whose data is not 8 bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> SetInfo {
        let member = |device, name: &str, location: Option<&str>| SetMember {
            device,
            name: name.to_owned(),
            location: location.map(str::to_owned),
            ..SetMember::default()
        };
        let members = vec![
            SetMember { open: true, owned: true, itself: true, ..member(1, "a", None) },
            SetMember { open: true, ..member(u64::MAX, "größer", Some("0000:01:02.1")) },
            member(3, "", Some("x")),
        ];
        SetInfo { allowed: true, members }
    }

    #[test]
    fn there_and_back() {
        for info in [example(), SetInfo::default()] {
            assert_eq!(SetInfo::decode(&info.encode()).unwrap(), info);
        }
    }

    /// The bytes that the documentation promises.
    #[test]
    fn on_the_wire() {
        let mut info = example();
        info.members.truncate(1);
        let mut expected = vec![1, 0, 0, 0, 1, 0, 0, 0];
        expected.extend([32, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([1, 0, 0, 0, 0, 0, 0, 0, b'a', 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(info.encode(), expected);
    }

    #[test]
    fn every_cut_is_noticed_and_no_byte_kills() {
        let whole = example().encode();
        for end in 0..whole.len() {
            // The zeros at the very end of the last member are part of it.
            assert_eq!(SetInfo::decode(&whole[..end]).unwrap_err().errno, EINVAL, "{end}");
        }
        for at in 0..whole.len() {
            for byte in [0, 1, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = byte;
                let _ = SetInfo::decode(&bytes);
            }
        }
    }

    #[test]
    fn a_later_version_may_say_more() {
        let mut data = HotResetInfo { count: 1, flags: 0xffff_fffe }.as_bytes().to_vec();
        let fixed = HotResetMember {
            size: 40,
            flags: 0xffff_fff8,
            device: 1,
            name_len: 1,
            location_len: 0,
            padding: 9,
        };
        data.extend_from_slice(fixed.as_bytes());
        data.extend_from_slice(b"amore to come...");
        let expected = SetMember { device: 1, name: "a".to_owned(), ..SetMember::default() };
        assert_eq!(SetInfo::decode(&data).unwrap().members, [expected]);
    }

    #[test]
    fn a_hot_reset_has_no_options() {
        assert!(check_hot_reset(&[0; 8]).is_ok());
        for wrong in
            [&[][..], &[0; 7], &[0; 9], &[1, 0, 0, 0, 0, 0, 0, 0], &[0, 0, 0, 0, 0, 0, 0, 1]]
        {
            assert_eq!(check_hot_reset(wrong).unwrap_err().errno, EINVAL);
        }
    }
}
