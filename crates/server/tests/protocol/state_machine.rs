//! Any stream of messages, in pieces of any size, against a model of what must be answered: each
//! command once, in order, and nothing else; and the end where the stream loses its meaning.
//!
//! The seeds are fixed, so that a failure stays one. `VFIOD_TEST_STREAMS=N` tries more.

use std::os::fd::{AsFd, OwnedFd};

use rustix::net::Shutdown;
use vfiod_wire::{Command, Header, Kind, Version};
use zerocopy::IntoBytes;

use crate::hostility::every_message;
use crate::rig::*;

const FIRST_LIMIT: u32 = 4096 + 64;
const LIMIT: u32 = (1 << 20) + 4096;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// What must come back.
#[derive(Debug, Default, PartialEq, Eq)]
struct Expected {
    /// Id and command of each answer; whether it must be (or must not be) an error, if known.
    answers: Vec<(u16, u16, Option<bool>)>,
    /// Nothing after these counts.
    ended: bool,
    negotiated: bool,
}

impl Expected {
    fn message(&mut self, bytes: &[u8]) {
        let header = Header::parse(bytes).unwrap();
        let limit = if self.negotiated { LIMIT } else { FIRST_LIMIT };
        if self.ended || header.size < 16 || header.size > limit {
            self.ended = true;
            return;
        }
        let answer = |error| (header.id, header.command, error);
        let version = header.command == Command::Version as u16;
        match header.kind() {
            // Counts as nothing, whatever it answers.
            Kind::Reply(_) => {}
            Kind::Unknown => {
                self.answers.push(answer(Some(true)));
                self.ended = !self.negotiated;
            }
            Kind::Posted if self.negotiated => {}
            Kind::Posted => self.ended = true,
            Kind::Command if self.negotiated => {
                let known = Command::from_number(header.command).is_some();
                self.answers.push(answer((!known || version).then_some(true)));
            }
            Kind::Command => {
                let right = version && Version::decode(&bytes[16..]).is_ok_and(|v| v.major == 0);
                self.answers.push(answer(Some(!right)));
                self.negotiated = right;
                self.ended = !right;
            }
        }
    }
}

/// A message: well-formed, or with something wrong about it.
fn any_message(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[random.below(seeds.len())].clone();
    let id = random.next() as u16;
    bytes[..2].copy_from_slice(&id.to_ne_bytes());
    match random.below(12) {
        0 => bytes[8] |= 0x10,
        1 => bytes[2] = random.below(24) as u8,
        2 => bytes[8] = random.next() as u8,
        3 if bytes.len() > 16 => {
            // Not the region of an access: some of those stall or panic.
            let at = 16 + random.below(bytes.len() - 16);
            if at < 24 || bytes[2] as u16 != Command::RegionWrite as u16 {
                bytes[at] = random.next() as u8;
            }
        }
        4 => bytes.truncate(16 + random.below(bytes.len() - 15)),
        5 => bytes.resize(bytes.len() + random.below(5000), 0x33),
        _ => {}
    }
    let size = match random.below(60) {
        0 => random.below(16) as u32,
        1 => LIMIT + 1 + random.below(1 << 20) as u32,
        _ => bytes.len() as u32,
    };
    bytes[4..8].copy_from_slice(&size.to_ne_bytes());
    bytes
}

fn stream(rig: &Rig, seed: u64, seeds: &[Vec<u8>], event: &OwnedFd) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut expected = Expected::default();
    let mut bytes = Vec::new();
    if !random.one_in(6) {
        bytes = version_message();
        expected.message(&bytes);
    }
    for _ in 0..random.below(40) {
        let message = any_message(&mut random, seeds);
        expected.message(&message);
        bytes.extend(message);
    }
    // Cut off somewhere, in a message that then has no answer.
    if random.one_in(4) {
        let whole = version_message();
        bytes.extend(&whole[..random.below(whole.len())]);
    }

    let socket = rig.socket();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let most = if random.one_in(3) { 5 } else { 4000 };
                let (now, later) = rest.split_at(1 + random.below(most.min(rest.len())));
                let fds = [event.as_fd(); 2];
                let fds = if random.one_in(5) { &fds[..random.below(3)] } else { &[] };
                // Fails where the stream has ended.
                if socket.send(now, fds).is_err() {
                    return;
                }
                rest = later;
            }
            let _ = rustix::net::shutdown(&socket, Shutdown::Write);
        });
        for (number, (id, command, error)) in expected.answers.iter().enumerate() {
            let place = format!("seed {seed}, answer {number}");
            let reply = socket.receive_message().unwrap_or_else(|e| panic!("{place}: {e}"));
            assert_eq!((reply.header.id, reply.header.command), (*id, *command), "{place}");
            let Kind::Reply(outcome) = reply.header.kind() else { panic!("{place}: no reply") };
            assert!(error.is_none_or(|error| error == outcome.is_err()), "{place}: {outcome:?}");
            assert_ne!(outcome, Err(0), "{place}: an error without an errno");
        }
        let after = socket.receive_message();
        assert!(after.is_err(), "seed {seed}: {after:?} after the last answer");
        assert!(!matches!(after, Err(vfiod_client::Error::Timeout)), "seed {seed}: still open");
    });
}

#[test]
fn every_stream_is_answered_as_the_model_says() {
    let rig = Rig::new();
    let mut seeds = every_message();
    seeds.push(version_message());
    // An answer to nothing.
    seeds.push(Header::command(1, Command::DmaRead, 0, false).reply(0).as_bytes().to_vec());
    let event = event();
    let streams = std::env::var("VFIOD_TEST_STREAMS").ok().and_then(|n| n.parse().ok());
    for seed in 1..=streams.unwrap_or(600) {
        stream(&rig, seed, &seeds, &event);
    }
    rig.wait_idle();
    rig.assert_alive();
}
