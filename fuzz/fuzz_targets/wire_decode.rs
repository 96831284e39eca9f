//! The decoder: the first byte picks the command, the rest is its payload.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vfiod_wire::{Command, Header, Request, decode_region_info};

fuzz_target!(|bytes: &[u8]| {
    let _ = Header::parse(bytes);
    let _ = decode_region_info(bytes);
    let Some((&number, payload)) = bytes.split_first() else { return };
    let Some(command) = Command::from_number(number.into()) else { return };
    if let Ok(Request::RegionWriteMulti(writes)) = Request::decode(command, payload) {
        assert_eq!(writes.iter().count(), writes.len());
    }
});
