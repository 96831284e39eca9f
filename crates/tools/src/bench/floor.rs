//! The floor: the same bytes over a bare socket, with nobody behind it who thinks about them.
//!
//! A process of its own answers each request of a known length with a reply of a known length.
//! The first message of a connection begins with these lengths: their number, then pairs, which
//! go round and round.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::fs::MemfdFlags;

use super::arguments::BenchFloor;
use super::raw::Raw;

/// Lengths of requests and their replies in bytes.
pub(super) type Exchange = (usize, usize);

/// Added to the length of a request that passes a descriptor.
pub(super) const WITH_FD: usize = 1 << 30;

/// The longest request or reply, for a sanity check.
const MAX: usize = 64 << 20;

/// Runs the process that answers.
pub(crate) fn run(args: &BenchFloor) -> anyhow::Result<()> {
    let listener = UnixListener::bind(&args.socket)
        .with_context(|| format!("cannot listen at {}", args.socket.display()))?;
    loop {
        let (stream, _) = listener.accept()?;
        // A client that ends is done, however it ends.
        let _ = answer(Raw::new(stream.into(), args.spin)?);
    }
}

fn answer(mut raw: Raw) -> anyhow::Result<()> {
    let mut first = raw.receive_some(1 << 16)?.to_vec();
    let plan = decode(&first)?;
    if let Some(missing) = (plan[0].0 & !WITH_FD).checked_sub(first.len()) {
        first.extend_from_slice(raw.receive(missing)?);
    }
    let longest = plan.iter().map(|(_, reply)| *reply).max().unwrap_or(0);
    let reply = vec![0x5a; longest];
    raw.send(&reply[..plan[0].1])?;
    for (request, answer) in plan.iter().cycle().skip(1) {
        if request & WITH_FD != 0 {
            raw.receive_with_fds(request & !WITH_FD)?;
        } else {
            raw.receive(*request)?;
        }
        raw.send(&reply[..*answer])?;
    }
    Ok(())
}

fn encode(plan: &[Exchange]) -> Vec<u8> {
    let pairs = plan.iter().flat_map(|(request, reply)| [*request as u32, *reply as u32]);
    std::iter::once(plan.len() as u32).chain(pairs).flat_map(u32::to_le_bytes).collect()
}

fn decode(bytes: &[u8]) -> anyhow::Result<Vec<Exchange>> {
    let word = |at: usize| {
        let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(|bytes| u32::from_le_bytes(bytes) as usize).context("a short first message")
    };
    let count = word(0)?;
    ensure!((1..=16).contains(&count), "{count} lengths");
    let plan: anyhow::Result<Vec<_>> =
        (0..count).map(|n| Ok((word(4 + 8 * n)?, word(8 + 8 * n)?))).collect();
    let plan = plan?;
    ensure!(
        plan.iter().all(|(a, b)| (1..=MAX).contains(&(a & !WITH_FD)) && *b <= MAX),
        "lengths {plan:?}"
    );
    Ok(plan)
}

/// The client's side of the floor.
pub(super) struct Floor {
    raw: Raw,
    plan: Vec<Exchange>,
    bytes: Vec<u8>,
    /// What is passed by requests that pass a descriptor.
    fd: Option<OwnedFd>,
}

impl Floor {
    /// Connects and makes one round of the plan.
    pub(super) fn connect(socket: &Path, plan: &[Exchange], spin: bool) -> anyhow::Result<Self> {
        let mut bytes = encode(plan);
        ensure!(bytes.len() <= plan[0].0 & !WITH_FD, "the first request is too short for the plan");
        let longest = plan.iter().map(|(request, _)| request & !WITH_FD).max().unwrap_or(0);
        bytes.resize(longest, 0xa5);
        let fd = if plan.iter().any(|(request, _)| request & WITH_FD != 0) {
            Some(rustix::fs::memfd_create("vfiod-bench", MemfdFlags::CLOEXEC)?)
        } else {
            None
        };
        let mut floor = Self { raw: Raw::connect(socket, spin)?, plan: plan.to_vec(), bytes, fd };
        floor.cycle()?;
        Ok(floor)
    }

    /// One round of the plan.
    pub(super) fn cycle(&mut self) -> anyhow::Result<()> {
        for (request, reply) in &self.plan {
            let bytes = &self.bytes[..request & !WITH_FD];
            match &self.fd {
                Some(fd) if request & WITH_FD != 0 => self.raw.send_with(bytes, fd.as_fd())?,
                _ => self.raw.send(bytes)?,
            }
            self.raw.receive(*reply)?;
        }
        Ok(())
    }
}

/// Waits until a server listens at a socket.
pub(super) fn wait_for(socket: &Path) -> anyhow::Result<()> {
    let mut last = None;
    for _ in 0..2000 {
        match Raw::connect(socket, false) {
            Ok(_) => return Ok(()),
            Err(error) => last = Some(error),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("nobody listens")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_survive_the_wire_and_nonsense_does_not() {
        let plan = vec![(48 + WITH_FD, 16), (40, 40)];
        assert_eq!(decode(&encode(&plan)).unwrap(), plan);
        for wrong in [&[][..], &[0; 4], &[17, 0, 0, 0], &[1, 0, 0, 0, 1], &[0xff; 64]] {
            assert!(decode(wrong).is_err(), "{wrong:?}");
        }
    }
}
