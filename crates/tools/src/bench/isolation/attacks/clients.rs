//! Attacks by the number of clients, and by how they come, wait and go.

use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::Duration;

use anyhow::ensure;
use vfiod_client::{Client, Options, Socket};
use vfiod_wire::Command;
use vfiod_wire::payload::{DmaMap, RegionAccess};
use zerocopy::IntoBytes;

use super::super::stage::{BOARD, MANY, ONE, SLOW_ONE};
use super::memory::{IOVA, Operation};
use super::{Lane, REGISTERS, Target, lane, memfd, message, negotiated, no_waiting, read, version};

/// Clients that send half of something.
const STALLED: usize = 100;
const SENDERS: usize = 200;
const NEWCOMERS: usize = 100;
/// Accesses that are under way when a client of a slow device hangs up.
const ACCESSES: usize = 32;
/// More of anything than a client may take.
const TOO_MANY: usize = 4096;

pub(super) fn stall(target: &Target) -> Vec<Lane> {
    let (socket, unanswered) = (target.clone(), target.clone());
    let mut stalled = Vec::new();
    let halves = lane(move || {
        // The oldest ones make room, so that some come and go as well.
        if stalled.len() >= 2 * STALLED {
            stalled.drain(..2);
        }
        while stalled.len() < 2 * STALLED {
            let negotiating = socket.connect(MANY)?;
            negotiating.send(&version()[..9], &[])?;
            let reading = negotiated(&socket, MANY)?;
            reading.send(&read(1, 0, 0, 4)[..20], &[])?;
            stalled.extend([negotiating, reading]);
        }
        sleep(Duration::from_millis(20));
        Ok(())
    });
    let dma = lane(move || {
        let mut client = unanswered.client(BOARD)?;
        client.dma_map(IOVA, 1 << 20, None)?;
        Operation::read(1 << 20, 64, 1000).submit(&mut client)?;
        // It asks for its memory, and waits.
        sleep(Duration::from_millis(500));
        Ok(())
    });
    vec![halves, dma]
}

pub(super) fn churn(target: &Target) -> Vec<Lane> {
    let speaking = |device: &'static str| {
        let target = target.clone();
        lane(move || target.client(device)?.device_info().map(drop).map_err(Into::into))
    };
    let silent = target.clone();
    let silent = lane(move || silent.connect(MANY).map(drop));
    vec![speaking(MANY), speaking(ONE), silent]
}

pub(super) fn slow_senders(target: &Target) -> Vec<Lane> {
    let target = target.clone();
    let mut senders: Vec<(Socket, usize)> = Vec::new();
    let whole = read(1, 0, 0, 4);
    vec![lane(move || {
        while senders.len() < SENDERS {
            let sender = negotiated(&target, MANY)?;
            no_waiting(&sender)?;
            // Not all at the same byte.
            let at = senders.len() % whole.len();
            sender.send(&whole[..at], &[])?;
            senders.push((sender, at));
        }
        let mut failed = false;
        for (sender, at) in &mut senders {
            failed |= sender.send(&whole[*at..=*at], &[]).is_err();
            *at = (*at + 1) % whole.len();
            if *at == 0 {
                // What has come by now; the replies are few.
                let _ = sender.receive(&mut [0; 4096], &mut Vec::new());
            }
        }
        ensure!(!failed, "a slow sender was not served");
        sleep(Duration::from_millis(5));
        Ok(())
    })]
}

pub(super) fn departing(target: &Target) -> Vec<Lane> {
    let target = target.clone();
    vec![lane(move || {
        let options = Options { timeout: Duration::from_secs(20), ..Options::default() };
        let mut first = Client::connect_with(target.socket(SLOW_ONE), options)?;
        let access = RegionAccess { offset: 0, region: REGISTERS, count: 8 };
        for _ in 0..ACCESSES {
            first.submit(Command::RegionRead, access.as_bytes(), &[])?;
        }
        drop(first);
        let newcomers: anyhow::Result<Vec<_>> = (0..NEWCOMERS)
            .map(|_| {
                let newcomer = Socket::connect(target.socket(SLOW_ONE), Duration::from_secs(20))?;
                newcomer.send(&version(), &[])?;
                Ok(newcomer)
            })
            .collect();
        // Each has its reply: it has the device, or does not get it.
        for newcomer in newcomers? {
            newcomer.receive_message()?;
        }
        Ok(())
    })]
}

pub(super) fn quotas(target: &Target) -> Vec<Lane> {
    let connections = {
        let (target, mut held) = (target.clone(), Vec::new());
        lane(move || {
            // Until it gets no further one; then again and again.
            while held.len() < TOO_MANY {
                match negotiated(&target, MANY) {
                    Ok(socket) => held.push(socket),
                    Err(_) => break,
                }
            }
            sleep(Duration::from_millis(10));
            Ok(())
        })
    };
    let mappings = {
        let (target, mut client, mut next) = (target.clone(), None, 0);
        lane(move || {
            let client = match &mut client {
                Some(client) => client,
                None => client.insert(target.client(BOARD)?),
            };
            while next < TOO_MANY as u64 {
                // Each of a file of its own, which nobody else has open.
                let file = memfd(4096)?;
                match client.dma_map(IOVA + next * 4096, 4096, Some((file.as_fd(), 0))) {
                    Ok(()) => next += 1,
                    Err(error) if error.remote_errno().is_some() => break,
                    Err(error) => return Err(error.into()),
                }
            }
            sleep(Duration::from_millis(10));
            Ok(())
        })
    };
    let descriptors = {
        let (target, mut held) = (target.clone(), Vec::new());
        lane(move || {
            let files: anyhow::Result<Vec<_>> = (0..64).map(|_| memfd(4096)).collect();
            let files = files?;
            let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            let map = DmaMap { argsz: 32, flags: 3, offset: 0, address: IOVA, size: 4096 };
            let map = message(1, Command::DmaMap, map.as_bytes(), false);
            while held.len() < SENDERS / 4 {
                // As many as it gets: other lanes take what there is as well.
                let Ok(socket) = negotiated(&target, BOARD) else { break };
                for byte in &map[..map.len() - 1] {
                    if socket.send(std::slice::from_ref(byte), &fds[..8]).is_err() {
                        break;
                    }
                }
                held.push(socket);
            }
            held.drain(..held.len().min(1));
            sleep(Duration::from_millis(10));
            Ok(())
        })
    };
    vec![connections, mappings, descriptors]
}
