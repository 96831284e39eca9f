//! Attacks by what goes over the socket beside whole messages.

use std::os::fd::AsFd;

use anyhow::ensure;
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send};
use vfiod_wire::Command;
use vfiod_wire::payload::DmaMap;
use zerocopy::IntoBytes;

use super::super::stage::{MANY, ONE};
use super::memory::IOVA;
use super::{EDU, Lane, Target, lane, memfd, message, negotiated, read};

fn map() -> Vec<u8> {
    let map = DmaMap { argsz: 32, flags: 3, offset: 0, address: IOVA, size: 4096 };
    message(1, Command::DmaMap, map.as_bytes(), false)
}

pub(super) fn out_of_band(target: &Target) -> Vec<Lane> {
    let target = target.clone();
    vec![lane(move || {
        let socket = negotiated(&target, MANY)?;
        let whole = read(1, EDU, 0, 4);
        for at in 0..whole.len() {
            socket.send(&whole[..at], &[])?;
            match send(&socket, &whole[at..=at], SendFlags::OOB | SendFlags::NOSIGNAL) {
                // A kernel without them: plain bytes, then.
                Err(Errno::OPNOTSUPP) => socket.send(&whole[at..=at], &[])?,
                sent => ensure!(sent? == 1, "an out-of-band byte was not sent"),
            }
            socket.send(&whole[at + 1..], &[])?;
            socket.receive_message()?;
        }
        let _ = send(&socket, b"!", SendFlags::OOB | SendFlags::NOSIGNAL);
        Ok(())
    })]
}

pub(super) fn shutdown(target: &Target) -> Vec<Lane> {
    let one = target.clone();
    let many = target.clone();
    let mut held = Vec::new();
    vec![
        // Nothing comes any more, in the middle of a message or not.
        lane(move || {
            for len in [0, 9, 32] {
                let socket = negotiated(&one, MANY)?;
                socket.send(&read(1, EDU, 0, 4)[..len], &[])?;
                rustix::net::shutdown(&socket, Shutdown::Write)?;
                while socket.receive_message().is_ok() {}
            }
            Ok(())
        }),
        // Nothing is read any more.
        lane(move || {
            let socket = negotiated(&many, MANY)?;
            rustix::net::shutdown(&socket, Shutdown::Read)?;
            for id in 0..100 {
                socket.send(&read(id, EDU, 0, 4), &[])?;
            }
            held.push(socket);
            if held.len() > 32 {
                held.remove(0);
            }
            Ok(())
        }),
    ]
}

pub(super) fn middle_descriptors(target: &Target) -> Vec<Lane> {
    let target = target.clone();
    vec![lane(move || {
        let files = [memfd(4096)?, memfd(4096)?, memfd(4096)?];
        let fds = files.each_ref().map(AsFd::as_fd);
        let whole = map();
        for cut in [1, 15, 16, 17, whole.len() - 1] {
            let socket = negotiated(&target, MANY)?;
            socket.send(&whole[..cut], &[])?;
            socket.send(&whole[cut..], &fds[..1])?;
            socket.receive_message()?;
            // In one that asks for none.
            let whole = read(2, EDU, 0, 4);
            socket.send(&whole[..10], &[])?;
            socket.send(&whole[10..20], &fds)?;
            socket.send(&whole[20..], &[])?;
            socket.receive_message()?;
        }
        Ok(())
    })]
}

pub(super) fn byte_descriptors(target: &Target) -> Vec<Lane> {
    let with = |count: usize| {
        let target = target.clone();
        lane(move || {
            let files: anyhow::Result<Vec<_>> = (0..count).map(|_| memfd(4096)).collect();
            let files = files?;
            let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            let socket = negotiated(&target, MANY)?;
            // Who sends too many may be disconnected.
            let taken = map().iter().all(|byte| socket.send(&[*byte], &fds).is_ok());
            if taken {
                let _ = socket.receive_message();
            }
            Ok(())
        })
    };
    vec![with(1), with(16)]
}

pub(super) fn own_end(target: &Target) -> Vec<Lane> {
    let with = |device: &'static str| {
        let target = target.clone();
        lane(move || {
            let socket = negotiated(&target, device)?;
            let (own, whole) = (socket.as_fd().try_clone_to_owned()?, map());
            socket.send(&whole[..20], &[own.as_fd()])?;
            Ok(())
        })
    };
    // Where one client has the device, the next one has it once the last is gone.
    vec![with(MANY), with(ONE)]
}
