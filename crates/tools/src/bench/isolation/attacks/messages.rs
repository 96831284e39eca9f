//! Attacks by messages, all of them well-formed.

use std::collections::VecDeque;
use std::sync::{Arc, Barrier};
use std::thread::sleep;
use std::time::Duration;

use vfiod_client::{Client, Socket};
use vfiod_wire::Command;
use vfiod_wire::payload::{RegionAccess, RegionInfo, RegionIoFds};
use zerocopy::IntoBytes;

use super::super::stage::{BOARD, MANY, SLOW, SLOW_ONE};
use super::{EDU, Lane, MEMORY, REGISTERS, Target, lane, message, negotiated, no_waiting, read};

const BATCH: u16 = 256;
const GREEDY: usize = 32;
/// Clients of each lane that ask for descriptors.
const ASKING: usize = 8;
const USERS: usize = 12;

pub(super) fn flood(target: &Target) -> Vec<Lane> {
    let posting = || {
        let (target, mut socket) = (target.clone(), None);
        let access = RegionAccess { offset: 4, region: EDU, count: 4 };
        let payload = [access.as_bytes(), &[0x5a; 4]].concat();
        let mut flood = message(0, Command::RegionWrite, &payload, true).repeat(BATCH.into());
        flood.extend(read(0, EDU, 0, 4));
        lane(move || exchange(&target, &mut socket, &flood, 1))
    };
    let reading = || {
        let (target, mut socket) = (target.clone(), None);
        let flood: Vec<_> = (0..BATCH).flat_map(|id| read(id, EDU, 0, 4)).collect();
        lane(move || exchange(&target, &mut socket, &flood, BATCH.into()))
    };
    vec![posting(), posting(), reading(), reading()]
}

/// Sends messages and takes the replies.
fn exchange(
    target: &Target,
    socket: &mut Option<Socket>,
    messages: &[u8],
    replies: usize,
) -> anyhow::Result<()> {
    let socket = match socket {
        Some(socket) => socket,
        None => socket.insert(negotiated(target, MANY)?),
    };
    socket.send(messages, &[])?;
    for _ in 0..replies {
        socket.receive_message()?;
    }
    Ok(())
}

pub(super) fn unread_replies(target: &Target) -> Vec<Lane> {
    let target = target.clone();
    let mut greedy: Vec<Socket> = Vec::new();
    let request = read(1, MEMORY, 0, 1 << 20);
    vec![lane(move || {
        if greedy.len() >= GREEDY {
            greedy.remove(0);
        }
        while greedy.len() < GREEDY {
            let socket = negotiated(&target, BOARD)?;
            no_waiting(&socket)?;
            greedy.push(socket);
        }
        for socket in &greedy {
            // As much as the server takes.
            for _ in 0..BATCH {
                if socket.send(&request, &[]).is_err() {
                    break;
                }
            }
        }
        sleep(Duration::from_millis(2));
        Ok(())
    })]
}

pub(super) fn unread_descriptors(target: &Target) -> Vec<Lane> {
    let info = RegionInfo { argsz: 4096, index: MEMORY, ..RegionInfo::default() };
    let info = message(1, Command::DeviceGetRegionInfo, info.as_bytes(), false);
    let doorbells = RegionIoFds { argsz: 1 << 16, index: REGISTERS, ..RegionIoFds::default() };
    let doorbells = message(2, Command::DeviceGetRegionIoFds, doorbells.as_bytes(), false);
    let asking = |requests: Vec<u8>| {
        let (target, mut asked) = (target.clone(), VecDeque::new());
        lane(move || {
            // Those that go leave unread what they have got.
            if asked.len() >= ASKING {
                asked.pop_front();
            }
            while asked.len() < ASKING {
                // As many as it gets: what it has not read is its user's.
                let Ok(socket) = negotiated(&target, BOARD) else { break };
                no_waiting(&socket)?;
                asked.push_back(socket);
            }
            for socket in &asked {
                // As much as the server takes.
                let _ = socket.send(&requests, &[]);
            }
            sleep(Duration::from_millis(2));
            Ok(())
        })
    };
    vec![asking(info.repeat(BATCH.into())), asking(doorbells.repeat(BATCH.into()))]
}

pub(super) fn slow_device(target: &Target) -> Vec<Lane> {
    // All have the device before one uses it: it has no time for newcomers then.
    let connected = Arc::new(Barrier::new(USERS + 1));
    let using = |round: fn(&mut Client) -> anyhow::Result<()>| {
        let (target, connected, mut client) = (target.clone(), connected.clone(), None);
        lane(move || {
            if let Some(client) = &mut client {
                return round(client);
            }
            client = Some(target.client(SLOW)?);
            connected.wait();
            Ok(())
        })
    };
    let reading = |_| using(|client| Ok(client.region_read(REGISTERS, 0, &mut [0; 8])?));
    let resetting = using(|client| Ok(client.reset()?));
    let opening = target.clone();
    // Its reset, at each first open, takes as long.
    let opening = lane(move || opening.client(SLOW_ONE).map(drop));
    (0..USERS).map(reading).chain([resetting, opening]).collect()
}
