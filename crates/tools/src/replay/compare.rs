//! What differs between a captured reply and that of the device that is played to.

use vfiod_wire::payload::{Feature, RegionAccess, feature_flag};
use vfiod_wire::set::{HOT_RESET_INFO, SetInfo};
use vfiod_wire::{Command, HEADER_LEN, Header, Kind};
use zerocopy::FromBytes;

/// Describes the first difference; `None` if there is none. `volatile` says which bits of a region
/// differ from run to run: for region, offset and length in bytes, at most 8.
pub(super) fn difference(
    captured: &[u8],
    played: &[u8],
    volatile: impl Fn(u32, u64, usize) -> u64,
) -> Option<String> {
    if captured == played {
        return None;
    }
    let (Some(was), Some(is)) = (Header::parse(captured), Header::parse(played)) else {
        return Some("a reply without a header".to_owned());
    };
    let name = Command::from_number(was.command).map_or("message", Command::name);
    if (was.id, was.command) != (is.id, is.command) {
        let other = Command::from_number(is.command).map_or("message", Command::name);
        return Some(format!("{name} {} was answered, now {other} {}", was.id, is.id));
    }
    if was.kind() != is.kind() {
        return Some(format!("{name} {}: {} before, now {}", was.id, outcome(&was), outcome(&is)));
    }
    if let (Some(old), Some(new)) = (set_info(captured), set_info(played)) {
        return set_difference(&old, &new);
    }
    if was.size != is.size {
        return Some(format!("{name} {}: {} bytes before, now {}", was.id, was.size, is.size));
    }
    let (was, is) = (&captured[HEADER_LEN..], &played[HEADER_LEN..]);
    if Command::from_number(Header::parse(captured)?.command) == Some(Command::RegionRead)
        && let Ok((access, was)) = RegionAccess::read_from_prefix(was)
        && let Ok((same, is)) = RegionAccess::read_from_prefix(is)
        && access == same
    {
        return read_difference(&access, was, is, volatile);
    }
    let at = was.iter().zip(is).position(|(a, b)| a != b)?;
    Some(format!("{name}: byte {at} of the reply was {:#04x}, now {:#04x}", was[at], is[at]))
}

/// The reply to a request for the device's set.
fn set_info(message: &[u8]) -> Option<SetInfo> {
    let header = Header::parse(message)?;
    let (feature, data) = Feature::read_from_prefix(message.get(HEADER_LEN..)?).ok()?;
    let asked = u32::from(HOT_RESET_INFO) | feature_flag::GET;
    let is_reply = header.kind() == Kind::Reply(Ok(()))
        && header.command == Command::DeviceFeature as u16
        && feature.flags == asked;
    is_reply.then(|| SetInfo::decode(data).ok()).flatten()
}

/// Compares what concerns the device itself. The names and places of the server, and the other
/// members of the set with their users, are not in a capture.
fn set_difference(captured: &SetInfo, played: &SetInfo) -> Option<String> {
    let itself = |info: &SetInfo| {
        let member = info.members.iter().find(|member| member.itself)?;
        Some((member.open, member.owned))
    };
    let (was, is) = (itself(captured), itself(played));
    (was != is).then(|| format!("the device in its set: (open, owned) was {was:?}, now {is:?}"))
}

fn outcome(header: &Header) -> String {
    match header.kind() {
        Kind::Reply(Ok(())) => "success".to_owned(),
        Kind::Reply(Err(errno)) => format!("errno {errno}"),
        _ => "no reply".to_owned(),
    }
}

fn read_difference(
    access: &RegionAccess,
    was: &[u8],
    is: &[u8],
    volatile: impl Fn(u32, u64, usize) -> u64,
) -> Option<String> {
    // An access of a register's size is compared as one, a longer one by pieces of 4 bytes.
    let piece = if was.len() <= 8 { was.len().max(1) } else { 4 };
    let mut offset = access.offset;
    for (was, is) in was.chunks(piece).zip(is.chunks(piece)) {
        let value = |bytes: &[u8]| {
            let mut value = [0; 8];
            value[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(value)
        };
        let (old, new) = (value(was), value(is));
        if old != new && (old ^ new) & !volatile(access.region, offset, was.len()) != 0 {
            return Some(format!(
                "region {}, offset {offset:#x}: {old:#x} was read, now {new:#x}",
                access.region
            ));
        }
        offset += piece as u64;
    }
    None
}

#[cfg(test)]
mod tests {
    use vfiod_wire::set::SetMember;
    use zerocopy::IntoBytes;

    use super::*;

    fn read(offset: u64, data: &[u8]) -> Vec<u8> {
        let access = RegionAccess { offset, region: 2, count: data.len() as u32 };
        let header = Header::command(4, Command::RegionRead, 0, false).reply(16 + data.len());
        [header.as_bytes(), access.as_bytes(), data].concat()
    }

    #[test]
    fn volatile_bits_do_not_count() {
        let mask = |region, offset, len| {
            assert_eq!((region, len), (2, 4));
            if offset == 0x10 { 0xff } else { 0 }
        };
        let same = difference(&read(0x10, &[1, 2, 3, 4]), &read(0x10, &[9, 2, 3, 4]), mask);
        assert_eq!(same, None);
        let other = difference(&read(0x10, &[1, 2, 3, 4]), &read(0x10, &[1, 9, 3, 4]), mask);
        let text = "region 2, offset 0x10: 0x4030201 was read, now 0x4030901";
        assert_eq!(other.as_deref(), Some(text));
        let long: Vec<u8> = (0..12).collect();
        let mut changed = long.clone();
        changed[5] = 99;
        let other = difference(&read(0xc, &long), &read(0xc, &changed), mask).unwrap();
        assert!(other.contains("offset 0x10") || other.contains("0x10:"), "{other}");
    }

    fn set_reply(info: &SetInfo) -> Vec<u8> {
        let data = info.encode();
        let flags = u32::from(HOT_RESET_INFO) | feature_flag::GET;
        let feature = Feature { argsz: (Feature::LEN + data.len()) as u32, flags };
        let header = Header::command(4, Command::DeviceFeature, 0, false);
        let header = header.reply(Feature::LEN + data.len());
        [header.as_bytes(), feature.as_bytes(), &data].concat()
    }

    #[test]
    fn names_and_other_members_of_a_set_do_not_count() {
        let none = |_, _, _| 0;
        let member = |name: &str, owned| SetMember {
            name: name.to_owned(),
            itself: true,
            open: true,
            owned,
            ..SetMember::default()
        };
        let other = SetMember { itself: false, device: 7, ..member("other", false) };
        let captured = SetInfo { allowed: false, members: vec![member("edu", true), other] };
        let played = SetInfo { allowed: true, members: vec![member("replay", true)] };
        let same = difference(&set_reply(&captured), &set_reply(&played), none);
        assert_eq!(same, None);
        let played = SetInfo { allowed: true, members: vec![member("replay", false)] };
        let text = difference(&set_reply(&captured), &set_reply(&played), none).unwrap();
        assert!(text.contains("was Some((true, true)), now Some((true, false))"), "{text}");
    }

    #[test]
    fn outcome_and_order_count() {
        let none = |_, _, _| 0;
        let header = Header::command(4, Command::DeviceReset, 0, false);
        let good = header.reply(0).as_bytes().to_vec();
        let bad = header.error(22, 0).as_bytes().to_vec();
        let text = difference(&good, &bad, none).unwrap();
        assert_eq!(text, "DEVICE_RESET 4: success before, now errno 22");
        let other = Header::command(5, Command::DeviceReset, 0, false).reply(0);
        let text = difference(&good, other.as_bytes(), none).unwrap();
        assert_eq!(text, "DEVICE_RESET 4 was answered, now DEVICE_RESET 5");
        assert_eq!(difference(&good, &good, none), None);
    }
}
