//! `wire_decode`: the decoder. The first byte picks the command, the rest is its payload.

use vfiod_wire::{Command, Header, Request, decode_region_info};

pub(crate) fn decode(bytes: &[u8]) {
    let _ = Header::parse(bytes);
    let _ = decode_region_info(bytes);
    let Some((&number, payload)) = bytes.split_first() else { return };
    let Some(command) = Command::from_number(number.into()) else { return };
    if let Ok(Request::RegionWriteMulti(writes)) = Request::decode(command, payload) {
        assert_eq!(writes.iter().count(), writes.len());
    }
}
