//! Attacks by eventfds.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_setfl};
use vfiod_client::{Client, IrqAction, IrqData};

use super::super::stage::{BOARD, MANY};
use super::memory::Operation;
use super::{EDU, Lane, REGISTERS, Target, lane};

const INTX: u32 = 0;
const MSIX: u32 = 2;
/// Where edu takes interrupts to be raised and acknowledged.
const RAISE: u64 = 0x60;
const ACKNOWLEDGE: u64 = 0x64;

fn event(initial: u32, flags: EventfdFlags) -> anyhow::Result<OwnedFd> {
    Ok(eventfd(initial, flags | EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

/// Fills it and makes it block: who writes it, waits.
fn block(fd: impl AsFd) -> anyhow::Result<()> {
    fcntl_setfl(&fd, OFlags::NONBLOCK)?;
    let _ = rustix::io::read(&fd, &mut [0; 8]);
    let _ = rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes());
    fcntl_setfl(&fd, OFlags::empty())?;
    Ok(())
}

fn set(
    client: &mut Client,
    index: u32,
    action: IrqAction,
    fd: BorrowedFd<'_>,
) -> anyhow::Result<()> {
    Ok(client.set_irqs(index, 0, 1, action, IrqData::EventFds(&[fd]))?)
}

pub(super) fn blocked(target: &Target) -> Vec<Lane> {
    // By the device's task.
    let messages = {
        let target = target.clone();
        lane(move || {
            let (mut client, fd) = (target.client(BOARD)?, event(0, EventfdFlags::empty())?);
            set(&mut client, MSIX, IrqAction::Trigger, fd.as_fd())?;
            block(&fd)?;
            Operation::interrupt(64).run(&mut client)
        })
    };
    // In a register's write.
    let line = {
        let target = target.clone();
        lane(move || {
            let (mut client, fd) = (target.client(MANY)?, event(0, EventfdFlags::empty())?);
            set(&mut client, INTX, IrqAction::Trigger, fd.as_fd())?;
            block(&fd)?;
            client.region_write(EDU, RAISE, &[1, 0, 0, 0])?;
            client.region_write(EDU, ACKNOWLEDGE, &[1, 0, 0, 0])?;
            Ok(())
        })
    };
    // A doorbell is read by the server.
    let doorbells = {
        let target = target.clone();
        lane(move || {
            let mut client = target.client(BOARD)?;
            let (_, bells) = client.region_io_fds(REGISTERS)?;
            for bell in &bells {
                block(bell)?;
                let flags = fcntl_setfl(bell, OFlags::NONBLOCK);
                flags?;
                let _ = rustix::io::read(bell, &mut [0; 8]);
                fcntl_setfl(bell, OFlags::empty())?;
            }
            client.reset()?;
            Ok(())
        })
    };
    vec![messages, line, doorbells]
}

/// What a client has to hold for its loop to go on.
type Loop = (Client, Vec<OwnedFd>);

/// Each goes on by itself, once it is set up.
pub(super) fn loops(target: &Target) -> Vec<Lane> {
    let repeated = |make: fn(&Target) -> anyhow::Result<Loop>| {
        let (target, mut held) = (target.clone(), None);
        lane(move || {
            // The one before goes amid its loop.
            drop(held.replace(make(&target)?));
            sleep(Duration::from_millis(100));
            Ok(())
        })
    };
    vec![
        repeated(|target| {
            let (mut client, both) = (target.client(MANY)?, event(0, EventfdFlags::empty())?);
            set(&mut client, INTX, IrqAction::Trigger, both.as_fd())?;
            set(&mut client, INTX, IrqAction::Unmask, both.as_fd())?;
            client.region_write(EDU, RAISE, &[1, 0, 0, 0])?;
            Ok((client, vec![both]))
        }),
        repeated(|target| {
            let mut client = target.client(BOARD)?;
            let (_, mut bells) = client.region_io_fds(REGISTERS)?;
            for (vector, bell) in (0..).zip(&bells) {
                let fds = [bell.as_fd()];
                client.set_irqs(MSIX, vector, 1, IrqAction::Trigger, IrqData::EventFds(&fds))?;
                rustix::io::write(bell, &1u64.to_ne_bytes())?;
            }
            // And one whose rings do not end.
            bells.push(event(0, EventfdFlags::empty())?);
            Operation::interrupt(u64::from(u32::MAX)).submit(&mut client)?;
            Ok((client, bells))
        }),
        repeated(|target| {
            let mut client = target.client(MANY)?;
            let (line, counter) =
                (event(0, EventfdFlags::empty())?, event(u32::MAX, EventfdFlags::SEMAPHORE)?);
            set(&mut client, INTX, IrqAction::Trigger, line.as_fd())?;
            set(&mut client, INTX, IrqAction::Unmask, counter.as_fd())?;
            Ok((client, vec![line, counter]))
        }),
    ]
}
