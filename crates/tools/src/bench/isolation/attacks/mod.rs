//! What each attack does, in lanes: threads of the attacker that repeat something.

mod clients;
mod interrupts;
mod memory;
mod messages;
mod streams;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use vfiod_client::{Client, Options, RawMessage, Socket};
use vfiod_wire::payload::RegionAccess;
use vfiod_wire::{Command, Header, Version};
use zerocopy::IntoBytes;

use super::attack::Attack;
use super::stage;

/// One round. Only its first success is waited for.
pub(super) type Lane = Box<dyn FnMut() -> anyhow::Result<()> + Send>;

/// How long a hostile client waits for a reply that it does want.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The configuration space of a PCI function.
const CONFIG: u32 = 7;
/// The registers of edu.
const EDU: u32 = 0;
/// The memory of the bench device, and its registers.
const MEMORY: u32 = 0;
const REGISTERS: u32 = 2;

/// The attacked daemon, to a lane.
#[derive(Clone, Debug)]
struct Target(PathBuf);

impl Target {
    /// The socket of one of its devices.
    fn socket(&self, device: &str) -> PathBuf {
        stage::socket(&self.0, device)
    }

    /// A connection that has said nothing.
    fn connect(&self, device: &str) -> anyhow::Result<Socket> {
        Ok(Socket::connect(self.socket(device), TIMEOUT)?)
    }

    /// A client that has negotiated and has enabled memory and bus mastering.
    fn client(&self, device: &str) -> anyhow::Result<Client> {
        let options = Options { timeout: TIMEOUT, ..Options::default() };
        let mut client = Client::connect_with(self.socket(device), options)?;
        client.region_write(CONFIG, 4, &[6])?;
        Ok(client)
    }
}

/// The lanes of an attack on the daemon whose sockets are in `directory`.
pub(super) fn lanes(attack: Attack, directory: &Path) -> anyhow::Result<Vec<Lane>> {
    let target = Target(directory.to_owned());
    let lanes = match attack {
        Attack::None => vec![lane(|| {
            std::thread::sleep(Duration::from_millis(10));
            Ok(())
        })],
        Attack::Stall => clients::stall(&target),
        Attack::Flood => messages::flood(&target),
        Attack::UnreadReplies => messages::unread_replies(&target),
        Attack::UnreadDescriptors => messages::unread_descriptors(&target),
        Attack::BlockedEventfd => interrupts::blocked(&target),
        Attack::BlockedMemory => memory::blocked(&target)?,
        Attack::EventfdLoop => interrupts::loops(&target),
        Attack::ConnectChurn => clients::churn(&target),
        Attack::SlowSenders => clients::slow_senders(&target),
        Attack::SlowDevice => messages::slow_device(&target),
        Attack::Truncation => memory::truncation(&target)?,
        Attack::Departing => clients::departing(&target),
        Attack::Quotas => clients::quotas(&target),
        Attack::OutOfBand => streams::out_of_band(&target),
        Attack::Shutdown => streams::shutdown(&target),
        Attack::MiddleDescriptors => streams::middle_descriptors(&target),
        Attack::ByteDescriptors => streams::byte_descriptors(&target),
        Attack::OwnEnd => streams::own_end(&target),
        Attack::CloseAmidWork => memory::close_amid_work(&target),
    };
    Ok(lanes)
}

fn lane(round: impl FnMut() -> anyhow::Result<()> + Send + 'static) -> Lane {
    Box::new(round)
}

/// A whole message.
fn message(id: u16, command: Command, payload: &[u8], posted: bool) -> Vec<u8> {
    let header = Header::command(id, command, payload.len(), posted);
    [header.as_bytes(), payload].concat()
}

fn version() -> Vec<u8> {
    message(0, Command::Version, &Version::default().encode(), false)
}

/// A read of a region.
fn read(id: u16, region: u32, offset: u64, count: u32) -> Vec<u8> {
    let access = RegionAccess { offset, region, count };
    message(id, Command::RegionRead, access.as_bytes(), false)
}

/// A connection that has negotiated.
fn negotiated(target: &Target, device: &str) -> anyhow::Result<Socket> {
    let socket = target.connect(device)?;
    socket.send(&version(), &[])?;
    let RawMessage { header, .. } = socket.receive_message()?;
    anyhow::ensure!(header.kind() == vfiod_wire::Kind::Reply(Ok(())), "refused: {header:?}");
    Ok(socket)
}

/// Makes a socket's sends and receives return at once.
fn no_waiting(socket: &Socket) -> anyhow::Result<()> {
    rustix::io::ioctl_fionbio(socket, true).context("cannot set a socket's mode")
}

/// A file of memory.
fn memfd(size: u64) -> anyhow::Result<std::os::fd::OwnedFd> {
    let fd = rustix::fs::memfd_create("vfiod-attack", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&fd, size)?;
    Ok(fd)
}
