//! DMA_READ and DMA_WRITE.

use std::time::Duration;

use proptest::prelude::*;
use vfiod_protocol::wire::payload::DmaAccess;
use vfiod_protocol::wire::{Command, Header, Kind};
use vfiod_protocol::{
    Completed, DmaFailure, DmaReply, DmaRequests, End, Ended, Output, Time, Twin,
};
use zerocopy::{FromBytes, IntoBytes};

const TIMEOUT: Duration = Duration::from_secs(2);

struct Rig {
    dma: DmaRequests,
    output: Output<u32>,
    now: Time,
}

/// A message to the client.
#[derive(Clone, Debug)]
struct Asked {
    header: Header,
    access: DmaAccess,
    data: Vec<u8>,
}

impl Rig {
    fn new(limit: u64) -> Self {
        Self { dma: DmaRequests::new(limit), output: Output::default(), now: Time(0) }
    }

    fn asked(&mut self) -> Vec<Asked> {
        let mut asked = Vec::new();
        while let Some(chunk) = self.output.chunk() {
            let header = Header::parse(chunk.bytes).unwrap();
            assert_eq!(header.kind(), Kind::Command);
            let message = &chunk.bytes[16..header.size as usize];
            let (access, data) = DmaAccess::read_from_prefix(message).unwrap();
            asked.push(Asked { header, access, data: data.to_vec() });
            self.output.sent(header.size as usize);
        }
        asked
    }

    fn reply(&mut self, header: Header, payload: &[u8]) -> Completed {
        let reply = DmaReply { header, payload, position: 0 };
        self.dma.complete(&reply, &mut self.output).unwrap()
    }

    fn serve(&mut self, asked: &Asked, memory: &[u8]) -> Completed {
        let (from, count) = (asked.access.address as usize, asked.access.count as usize);
        let data = if asked.data.is_empty() { &memory[from..from + count] } else { &[] };
        let payload = [asked.access.as_bytes(), data].concat();
        self.reply(asked.header.reply(payload.len()), &payload)
    }
}

proptest! {
    /// Whatever the client's limit and the order of its replies, a read returns the memory; with
    /// a save and restore after each reply.
    #[test]
    fn read_returns_the_memory(
        limit in 1u64..300, len in 0usize..2000, order in any::<u64>(), rebuild in any::<bool>(),
    ) {
        let memory: Vec<u8> = (0..3000usize).map(|at| (at * 7 / 3) as u8).collect();
        let mut rig = Rig::new(limit);
        let id = rig.dma.read(100, len, rig.now, TIMEOUT, &mut rig.output).unwrap();
        let mut open = rig.asked();
        let mut order = order;
        let ended = loop {
            prop_assert!(!open.is_empty());
            prop_assert!(open.len() <= 8);
            if rebuild {
                let text = serde_json::to_string(&rig.dma).unwrap();
                rig.dma = serde_json::from_str(&text).unwrap();
            }
            order = order.wrapping_mul(6364136223846793005).wrapping_add(1);
            let asked = open.swap_remove((order >> 33) as usize % open.len());
            match rig.serve(&asked, &memory) {
                Completed::Ended(ended) => break ended,
                Completed::Part => open.extend(rig.asked()),
                Completed::Stray => prop_assert!(false, "a stray reply"),
            }
        };
        prop_assert_eq!(ended, Ended { id, outcome: Ok(memory[100..100 + len].to_vec()) });
        prop_assert!(rig.dma.is_idle());
    }
}

/// The kernel takes a reply of that size as a whole or not at all: QEMU drops the rest of one that was sent in
/// part.
#[test]
fn read_asks_for_no_more_in_a_message_than_the_kernel_sends_at_once() {
    let memory: Vec<u8> = (0..(1 << 20) + 5).map(|at| (at * 7 / 3) as u8).collect();
    for limit in [1 << 20, 40_000, 32 << 10, 5000] {
        let mut rig = Rig::new(limit);
        rig.dma.read(5, 1 << 20, rig.now, TIMEOUT, &mut rig.output).unwrap();
        let mut open = Vec::new();
        let ended = loop {
            open.extend(rig.asked());
            let asked = open.remove(0);
            let most = limit.min(32 << 10);
            let count = asked.access.count;
            assert!((1..=most).contains(&count), "too much in one message: {count}");
            if let Completed::Ended(ended) = rig.serve(&asked, &memory) {
                break ended;
            }
        };
        assert!(ended.outcome.unwrap() == memory[5..]);
    }
}

#[test]
fn write_carries_the_data() {
    let mut rig = Rig::new(10);
    let data: Vec<u8> = (0..25).collect();
    rig.dma.write(1000, data.clone(), rig.now, TIMEOUT, &mut rig.output).unwrap();
    let asked = rig.asked();
    assert_eq!(
        asked.iter().map(|asked| asked.access.address).collect::<Vec<_>>(),
        [1000, 1010, 1020]
    );
    assert_eq!(asked.iter().flat_map(|asked| asked.data.clone()).collect::<Vec<_>>(), data);
    assert_eq!(rig.serve(&asked[2], &[]), Completed::Part);
    assert_eq!(rig.serve(&asked[0], &[]), Completed::Part);
    let Completed::Ended(ended) = rig.serve(&asked[1], &[]) else { panic!() };
    assert_eq!(ended.outcome, Ok(Vec::new()));
}

#[test]
fn count_of_four_bytes_is_taken_in_a_reply_to_dma_write() {
    let mut rig = Rig::new(1 << 20);
    rig.dma.write(8, vec![1; 4], rig.now, TIMEOUT, &mut rig.output).unwrap();
    let asked = rig.asked().remove(0);
    let payload = [8u64.as_bytes(), 4u32.as_bytes()].concat();
    let completed = rig.reply(asked.header.reply(12), &payload);
    assert!(matches!(completed, Completed::Ended(Ended { outcome: Ok(_), .. })));
}

#[test]
fn wrong_replies_fail_the_transfer() {
    let access = DmaAccess { address: 64, count: 16 };
    let other = DmaAccess { address: 65, count: 16 };
    let cases: [(Vec<u8>, DmaFailure); 5] = [
        (Vec::new(), DmaFailure::WrongAccess),
        (vec![0; 15], DmaFailure::WrongAccess),
        (access.as_bytes().to_vec(), DmaFailure::WrongLength),
        ([access.as_bytes(), &[0; 17]].concat(), DmaFailure::WrongLength),
        ([other.as_bytes(), &[0; 16]].concat(), DmaFailure::WrongAccess),
    ];
    for (payload, failure) in cases {
        let mut rig = Rig::new(1 << 20);
        rig.dma.read(64, 16, rig.now, TIMEOUT, &mut rig.output).unwrap();
        let asked = rig.asked().remove(0);
        let Completed::Ended(ended) = rig.reply(asked.header.reply(payload.len()), &payload) else {
            panic!()
        };
        assert_eq!(ended.outcome, Err(failure));
    }
}

#[test]
fn refusal_has_the_clients_errno_and_later_replies_are_stray() {
    let mut rig = Rig::new(8);
    rig.dma.read(0, 16, rig.now, TIMEOUT, &mut rig.output).unwrap();
    let asked = rig.asked();
    let Completed::Ended(ended) = rig.reply(asked[1].header.error(14, 0), &[]) else { panic!() };
    assert_eq!(ended.outcome, Err(DmaFailure::Refused(14)));
    assert_eq!(rig.serve(&asked[0], &[0; 16]), Completed::Stray);
    assert!(rig.dma.is_idle());
}

#[test]
fn reply_to_another_command_is_stray() {
    let mut rig = Rig::new(8);
    rig.dma.read(0, 8, rig.now, TIMEOUT, &mut rig.output).unwrap();
    let asked = rig.asked().remove(0);
    let header = Header { command: Command::DmaWrite as u16, ..asked.header.reply(16) };
    assert_eq!(rig.reply(header, asked.access.as_bytes()), Completed::Stray);
    assert!(matches!(rig.serve(&asked, &[0; 8]), Completed::Ended(_)));
}

#[test]
fn deadline_covers_the_whole_transfer() {
    let mut rig = Rig::new(1);
    let id = rig.dma.read(0, 100, rig.now, TIMEOUT, &mut rig.output).unwrap();
    let deadline = rig.dma.next_deadline().unwrap();
    assert_eq!(deadline, rig.now.after(TIMEOUT));
    for _ in 0..10 {
        for asked in rig.asked() {
            assert_eq!(rig.serve(&asked, &[0; 100]), Completed::Part);
        }
    }
    assert_eq!(rig.dma.expire(Time(deadline.0 - 1), &mut rig.output), []);
    let ended = rig.dma.expire(deadline, &mut rig.output);
    assert_eq!(ended, [Ended { id, outcome: Err(DmaFailure::TimedOut) }]);
    assert_eq!(rig.dma.next_deadline(), None);
}

#[test]
fn unresponsive_client_has_little_time_until_it_answers_again() {
    let mut rig = Rig::new(64);
    rig.dma.read(0, 1, rig.now, TIMEOUT, &mut rig.output).unwrap();
    rig.asked();
    rig.now = rig.now.after(TIMEOUT);
    assert_eq!(rig.dma.expire(rig.now, &mut rig.output).len(), 1);
    rig.dma.read(0, 1, rig.now, TIMEOUT, &mut rig.output).unwrap();
    assert_eq!(rig.dma.next_deadline(), Some(rig.now.after(Duration::from_millis(100))));
    let asked = rig.asked().remove(0);
    assert!(matches!(rig.serve(&asked, &[0]), Completed::Ended(_)));
    rig.dma.read(0, 1, rig.now, TIMEOUT, &mut rig.output).unwrap();
    assert_eq!(rig.dma.next_deadline(), Some(rig.now.after(TIMEOUT)));
}

#[test]
fn number_of_transfers_and_messages_is_bounded() {
    let mut rig = Rig::new(1);
    for _ in 0..1024 {
        rig.dma.read(0, 8, rig.now, TIMEOUT, &mut rig.output).unwrap();
    }
    let more = rig.dma.read(0, 8, rig.now, TIMEOUT, &mut rig.output);
    assert_eq!(more, Err(DmaFailure::TooMany));
    let mut open = rig.asked();
    assert_eq!(open.len(), 1024);
    let mut ended = 0;
    while let Some(asked) = open.pop() {
        if let Completed::Ended(_) = rig.serve(&asked, &[0; 8]) {
            ended += 1;
        }
        open.extend(rig.asked());
    }
    assert_eq!(ended, 1024);
}

#[test]
fn end_of_the_connection_ends_every_transfer() {
    let mut rig = Rig::new(1);
    for _ in 0..3 {
        rig.dma.read(0, 8, rig.now, TIMEOUT, &mut rig.output).unwrap();
    }
    let ended = rig.dma.close();
    assert_eq!(ended.len(), 3);
    assert!(ended.iter().all(|ended| ended.outcome == Err(DmaFailure::Closed)));
    assert!(rig.dma.is_idle());
}

#[test]
fn cancelled_transfer_does_not_end() {
    let mut rig = Rig::new(64);
    let id = rig.dma.read(0, 8, rig.now, TIMEOUT, &mut rig.output).unwrap();
    let asked = rig.asked().remove(0);
    rig.dma.cancel(id, &mut rig.output);
    assert!(rig.dma.is_idle());
    assert_eq!(rig.serve(&asked, &[0; 8]), Completed::Stray);
}

#[test]
fn damaged_state_is_refused() {
    let mut rig = Rig::new(8);
    rig.dma.read(0, 16, rig.now, TIMEOUT, &mut rig.output).unwrap();
    let good = serde_json::to_value(&rig.dma).unwrap();
    assert!(serde_json::from_value::<DmaRequests>(good.clone()).is_ok());
    let damage: [fn(&mut serde_json::Value); 6] = [
        |state| state["chunk"] = 0.into(),
        |state| state["messages"]["0"]["at"] = 9.into(),
        |state| state["messages"]["0"]["transfer"] = 1.into(),
        |state| state["transfers"]["0"]["sent"] = 17.into(),
        |state| state["transfers"]["0"]["done"] = 1.into(),
        |state| state["next_transfer"] = 0.into(),
    ];
    for damage in damage {
        let mut bad = good.clone();
        damage(&mut bad);
        assert!(serde_json::from_value::<DmaRequests>(bad.clone()).is_err(), "{bad}");
    }
}

#[test]
fn second_socket_takes_replies_in_any_pieces_and_nothing_else() {
    let mut twin = Twin::<u32>::default();
    let mut rig = Rig::new(64);
    rig.dma.read(0, 8, rig.now, TIMEOUT, twin.output()).unwrap();
    let chunk = twin.output().chunk().unwrap().bytes.to_vec();
    let header = Header::parse(&chunk).unwrap();
    twin.output().sent(chunk.len());
    let reply = [header.reply(24).as_bytes(), &chunk[16..32], &[3; 8]].concat();
    for (at, byte) in reply.iter().enumerate() {
        twin.room(1, 16).unwrap()[0] = *byte;
        twin.received(1, Time(0));
        let text = serde_json::to_string(&twin).unwrap();
        twin = serde_json::from_str(&text).unwrap();
        let mut output = Output::<u32>::default();
        let completed =
            twin.next_reply().unwrap().map(|reply| rig.dma.complete(&reply, &mut output));
        assert_eq!(completed.is_some(), at + 1 == reply.len());
        if let Some(completed) = completed {
            let Ok(Completed::Ended(ended)) = completed else { panic!() };
            assert_eq!(ended.outcome, Ok(vec![3; 8]));
        }
    }
    let command = Header::command(0, Command::DeviceReset, 0, false);
    twin.room(16, 16).unwrap()[..16].copy_from_slice(command.as_bytes());
    twin.received(16, Time(0));
    assert_eq!(twin.next_reply().unwrap_err(), End::NotAReply);
}
