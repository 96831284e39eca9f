//! `capture`: replays a captured session that was made up. The first byte picks the model. Behind a VERSION that
//! opens the device, each record is its kind, the number of descriptors, its length, and its bytes; a
//! message gets a header that fits its length.

use vfiod_wire::{Command, Header, Version};
use zerocopy::IntoBytes;

const MODELS: [&str; 5] = ["template", "gpio", "edu", "serial", "bench"];

fn append(capture: &mut Vec<u8>, kind: u8, descriptors: u8, bytes: &[u8]) {
    capture.extend([kind, descriptors, 0, 0]);
    capture.extend((bytes.len() as u32).to_ne_bytes());
    capture.extend([0; 8]);
    capture.extend(bytes);
}

/// Flags of a reply and the number of its command come from the first bytes.
fn message(id: u16, bytes: &[u8]) -> Vec<u8> {
    let [flags, command, payload @ ..] = bytes else { return bytes.to_vec() };
    let mut header = Header::command(id, Command::Version, payload.len(), false);
    header.command = u16::from(*command);
    header.flags = u32::from(*flags);
    [header.as_bytes(), payload].concat()
}

pub(crate) fn replay(bytes: &[u8]) {
    let Some((&model, mut rest)) = bytes.split_first() else { return };
    let mut capture = b"vfiod capture 1: contains guest data\n".to_vec();
    let version = Version::default().encode();
    let header = Header::command(0, Command::Version, version.len(), false);
    append(&mut capture, 1, 0, &[header.as_bytes(), &version].concat());
    let mut id = 0;
    while let [kind, descriptors, len, behind @ ..] = rest {
        let (record, others) = behind.split_at(usize::from(*len).min(behind.len()));
        id += 1;
        match kind % 8 {
            // As it is, also what no record can be.
            kind @ (0 | 3..) => append(&mut capture, kind, *descriptors, record),
            kind => append(&mut capture, kind, *descriptors % 4, &message(id, record)),
        }
        rest = others;
    }
    vfiod_tools::replay_hostile(MODELS[usize::from(model) % MODELS.len()], &capture);
}
