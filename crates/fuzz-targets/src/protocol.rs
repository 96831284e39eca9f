//! `protocol`: the state machine without I/O: what a client sends, in any pieces, with everything saved and
//! restored now and then. The first byte says what happens, at each 0xfe the input is cut.

use vfiod_protocol::{Access, Connection, Descriptors, Event, Request, Time};

/// Answers a region access.
fn answer(access: Access<'_, u32>) {
    let filled = |data: &mut [u8]| {
        data.fill(7);
        Ok::<(), ()>(())
    };
    match access.data {
        Some(_) => drop(access.reply.done()),
        None => drop(access.reply.read(filled).map_err(drop).expect("the data was there")),
    }
}

/// Feeds the pieces, and returns what was sent.
fn play(bytes: &[u8], cut: bool, rebuild: bool, accesses: bool) -> Vec<u8> {
    let mut connection = Connection::<u32>::default();
    let mut sent = Vec::new();
    let pieces = bytes.split_inclusive(|byte| cut && *byte == 0xfe);
    for (number, piece) in pieces.enumerate() {
        let received = connection.receive(piece, Descriptors::default(), Time(number as u64));
        received.expect("there is memory");
        loop {
            if rebuild {
                let text = serde_json::to_vec(&connection).expect("a state can be saved");
                connection = serde_json::from_slice(&text).expect("a saved state can be read");
            }
            if accesses && let Some(access) = connection.next_access() {
                answer(access);
                continue;
            }
            match connection.next() {
                Ok(Some(Event::Call(call))) => match call.request {
                    Request::Version { .. } => drop(call.reply.negotiated(None)),
                    Request::RegionRead(access) => {
                        answer(Access { access, data: None, reply: call.reply });
                    }
                    Request::DeviceGetInfo => drop(call.reply.device_info(1, 2, 3)),
                    _ => drop(call.reply.done()),
                },
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
        while let Some(chunk) = connection.output().chunk() {
            let len = chunk.bytes.len();
            sent.extend_from_slice(chunk.bytes);
            connection.output().sent(len);
        }
    }
    sent
}

pub(crate) fn play_pieces(bytes: &[u8]) {
    let Some((how, bytes)) = bytes.split_first() else { return };
    // A damaged state is refused; it does not panic.
    if how & 4 != 0 {
        let _ = serde_json::from_slice::<Connection<u32>>(bytes);
        return;
    }
    let whole = play(bytes, false, false, false);
    assert_eq!(play(bytes, how & 1 != 0, how & 2 != 0, how & 8 != 0), whole);
}
