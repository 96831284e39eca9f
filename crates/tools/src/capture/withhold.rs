//! Messages without what would let client and device meet behind the back of a capture: memory
//! descriptors, the MMAP flag, doorbells, and the second socket.

use vfiod_wire::payload::{RegionInfo, RegionIoFds, region_flag};
use vfiod_wire::{Command, HEADER_LEN, Header, Version};
use zerocopy::{FromBytes, IntoBytes};

fn message(header: &Header, payload: &[u8]) -> Vec<u8> {
    let header = Header { size: (HEADER_LEN + payload.len()) as u32, ..*header };
    [header.as_bytes(), payload].concat()
}

/// VERSION as the server gets it.
pub(crate) fn version(header: &Header, payload: &[u8]) -> Vec<u8> {
    match Version::decode(payload) {
        Ok(mut version) if version.capabilities.twin_socket.is_some() => {
            version.capabilities.twin_socket = None;
            message(header, &version.encode())
        }
        _ => message(header, payload),
    }
}

/// A reply as the client gets it. Its descriptors are dropped.
pub(crate) fn reply(header: &Header, payload: &[u8]) -> Vec<u8> {
    if let Some(Command::DeviceGetRegionInfo) = Command::from_number(header.command)
        && let Ok((info, _)) = RegionInfo::read_from_prefix(payload)
    {
        let flags = info.flags & !(region_flag::MMAP | region_flag::CAPS);
        let argsz = RegionInfo::LEN as u32;
        let info = RegionInfo { argsz, flags, cap_offset: 0, offset: 0, ..info };
        return message(header, info.as_bytes());
    }
    if let Some(Command::DeviceGetRegionIoFds) = Command::from_number(header.command)
        && let Ok((fds, _)) = RegionIoFds::read_from_prefix(payload)
    {
        let fds = RegionIoFds { argsz: RegionIoFds::LEN as u32, count: 0, ..fds };
        return message(header, fds.as_bytes());
    }
    message(header, payload)
}

#[cfg(test)]
mod tests {
    use vfiod_wire::payload::SparseArea;
    use vfiod_wire::{Capabilities, TwinSocket, encode_region_info};

    use super::*;

    #[test]
    fn region_has_no_memory_to_map() {
        let areas = [SparseArea { offset: 0, size: 4096 }];
        let flags = region_flag::READ | region_flag::MMAP;
        let (payload, _) = encode_region_info(1000, 3, flags, 8192, 0, &areas);
        let header = Header::command(1, Command::DeviceGetRegionInfo, 0, false);
        let withheld = reply(&header.reply(payload.len()), &payload);
        let info = RegionInfo::read_from_bytes(&withheld[HEADER_LEN..]).unwrap();
        let expected =
            RegionInfo { argsz: 32, flags: region_flag::READ, index: 3, size: 8192, ..info };
        assert_eq!((info, info.cap_offset), (expected, 0));
        assert_eq!(Header::parse(&withheld).unwrap().size as usize, withheld.len());
    }

    #[test]
    fn version_has_no_second_socket_and_all_else() {
        let capabilities = Capabilities {
            twin_socket: Some(TwinSocket { supported: true, fd_index: None }),
            max_msg_fds: Some(3),
            ..Capabilities::default()
        };
        let payload = Version { capabilities, ..Version::default() }.encode();
        let header = Header::command(1, Command::Version, payload.len(), false);
        let withheld = version(&header, &payload);
        let decoded = Version::decode(&withheld[HEADER_LEN..]).unwrap().capabilities;
        assert_eq!((decoded.twin_socket, decoded.max_msg_fds), (None, Some(3)));
        let plain = Version::default().encode();
        assert_eq!(&version(&header, &plain)[HEADER_LEN..], plain);
    }
}
