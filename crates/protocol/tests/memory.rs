//! What is too large for the memory that there is, is refused, and the stream goes on behind it.

#[path = "../../buffer/tests/scarce/mod.rs"]
mod scarce;

use std::time::Duration;

use vfiod_protocol::limits::MAX_DATA;
use vfiod_protocol::{
    Connection, Descriptors, DmaFailure, DmaRequests, Event, Output, Request, Time, Twin,
};
use vfiod_wire::payload::{DmaAccess, RegionAccess};
use vfiod_wire::{Command, HEADER_LEN, Header, Kind};
use zerocopy::IntoBytes;

const ENOMEM: u32 = 12;
/// What everybody may have: `vfiod_buffer::SMALL`.
const SMALL: usize = 64 << 10;
const NOW: Time = Time(0);
const TIMEOUT: Duration = Duration::from_secs(1);

fn command(id: u16, command: Command, payload: &[u8]) -> Vec<u8> {
    let header = Header::command(id, command, payload.len(), false);
    [header.as_bytes(), payload].concat()
}

fn write(id: u16, data: &[u8]) -> Vec<u8> {
    let access = RegionAccess { offset: 0, region: 0, count: data.len() as u32 };
    command(id, Command::RegionWrite, &[access.as_bytes(), data].concat())
}

/// Gives a connection what it has room for, and keeps the rest.
fn feed(connection: &mut Connection<u32>, bytes: &mut &[u8], fds: Vec<u32>) {
    let room = connection.room(SMALL, SMALL).unwrap();
    let len = room.len().min(bytes.len());
    room[..len].copy_from_slice(&bytes[..len]);
    *bytes = &bytes[len..];
    connection.received(len, Descriptors { fds, truncated: false }, NOW);
}

/// The headers of the replies.
fn replies(connection: &mut Connection<u32>) -> Vec<Header> {
    let output = connection.output();
    let mut headers = Vec::new();
    while let Some(chunk) = output.chunk() {
        let header = Header::parse(chunk.bytes).unwrap();
        headers.push(header);
        output.sent(header.size as usize);
    }
    headers
}

/// Does something with what is left of memory.
fn scarcely<R>(what: impl FnOnce() -> R) -> R {
    scarce::spare_this_thread(false);
    let done = what();
    scarce::spare_this_thread(true);
    done
}

#[test]
fn what_is_too_large_is_refused_and_the_stream_goes_on() {
    scarce::spare_this_thread(true);
    let scarcity = scarce::begin(SMALL);
    let mut connection = Connection::<u32>::default();
    let version = command(0, Command::Version, b"\0\0\0\0{}\0");
    connection.receive(&version, Descriptors::default(), NOW).unwrap();
    let Ok(Some(Event::Call(call))) = connection.next() else { panic!("no VERSION") };
    call.reply.negotiated(None);
    replies(&mut connection);
    let large = write(1, &vec![1; MAX_DATA]);
    let reply = Header::command(2, Command::DmaRead, 0, false).reply(MAX_DATA);
    let reply = [reply.as_bytes(), &vec![1; MAX_DATA]].concat();
    let access = RegionAccess { offset: 0, region: 0, count: MAX_DATA as u32 };
    let read = command(4, Command::RegionRead, access.as_bytes());
    let stream = [large, reply, write(3, &[1, 2]), read].concat();

    let mut seen = Vec::new();
    let mut left = &stream[..];
    while !left.is_empty() {
        // Saved in the middle of it, too.
        let text = serde_json::to_string(&connection).unwrap();
        connection = serde_json::from_str(&text).unwrap();
        scarcely(|| feed(&mut connection, &mut left, vec![7]));
        while let Some(event) = scarcely(|| connection.next()).unwrap() {
            match event {
                Event::Refused(refusal) => seen.push((refusal.command, refusal.errno)),
                Event::DmaReply(reply) => {
                    let Kind::Reply(Err(errno)) = reply.header.kind() else { panic!("{reply:?}") };
                    seen.push((Some(Command::DmaRead), errno));
                }
                Event::Call(call) => {
                    assert!(matches!(call.request, Request::RegionWrite(_, [1, 2])));
                    seen.push((call.reply.command(), 0));
                    scarcely(|| call.reply.done());
                }
            }
        }
    }
    let [write, read] = [Command::RegionWrite, Command::RegionRead].map(Some);
    let dma = Some(Command::DmaRead);
    assert_eq!(seen, [(write, ENOMEM), (dma, ENOMEM), (write, 0), (read, ENOMEM)]);
    let refused = Kind::Reply(Err(ENOMEM));
    let kinds = replies(&mut connection).into_iter().map(|header| (header.id, header.kind()));
    let wanted = [(1, refused), (3, Kind::Reply(Ok(()))), (4, refused)];
    assert_eq!(kinds.collect::<Vec<_>>(), wanted);

    // Nothing is sent of a transfer that there is no memory for.
    let mut dma = DmaRequests::new(MAX_DATA as u64);
    let mut output = Output::<u32>::default();
    let data = vec![0; MAX_DATA];
    scarcely(|| {
        let read = dma.read(0, MAX_DATA, NOW, TIMEOUT, &mut output);
        assert_eq!(read, Err(DmaFailure::NoMemory));
        let written = dma.write(0, data, NOW, TIMEOUT, &mut output);
        assert_eq!(written, Err(DmaFailure::NoMemory));
        assert!(output.is_empty() && dma.is_idle());
        dma.read(0, 16, NOW, TIMEOUT, &mut output).unwrap();
        assert_eq!(output.len(), HEADER_LEN + DmaAccess::LEN);
    });

    // The second socket ends before its buffer is too large.
    let mut twin = Twin::<u32>::default();
    let reply = Header::command(0, Command::DmaRead, 0, false).reply(MAX_DATA);
    let mut received = 0;
    while let Ok(room) = scarcely(|| twin.room(SMALL, SMALL)) {
        if received == 0 {
            room[..HEADER_LEN].copy_from_slice(reply.as_bytes());
        }
        let len = room.len();
        twin.received(len, NOW);
        received += len;
    }
    assert_eq!(received, SMALL);
    drop(scarcity);
}
