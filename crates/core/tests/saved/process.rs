//! A device that goes on in another process, which gets its state as text, and its descriptors.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};
use vfiod_core::dma::{DmaPeer, Space};
use vfiod_core::irq::{FdToken, IrqAction, IrqData};
use vfiod_core::{
    DeviceSpec, Errno, Error, FileId, FindDescriptors, Identity, KeepDescriptors, KeptSpace,
    Numbers, OpenPolicy, Registry, Result, Saved, SpaceToken,
};

use crate::rig::*;

/// In the environment of the other process, whose standard input is the socket.
const OTHER_PROCESS: &str = "VFIOD_TEST_HANDED_OVER";
const ROOM: usize = 64 << 10;

/// What is sent along with the descriptors.
#[derive(Serialize, Deserialize)]
struct HandOver {
    numbers: Numbers,
    device: Saved,
}

/// Descriptors that were kept, and are sent; a token is a place.
#[derive(Default)]
struct Descriptors(Vec<OwnedFd>);

impl KeepDescriptors for Descriptors {
    fn keep(&mut self, fd: BorrowedFd<'_>) -> Result<FdToken> {
        self.0.push(fd.try_clone_to_owned().unwrap());
        Ok(FdToken(self.0.len() as u64 - 1))
    }
    fn keep_space(&mut self, _space: &Space) -> KeptSpace {
        KeptSpace::New(SpaceToken(0))
    }
}

impl FindDescriptors for Descriptors {
    fn find(&mut self, token: FdToken) -> Result<OwnedFd> {
        let fd = self.0.get(token.0 as usize);
        let fd = fd.ok_or_else(|| Error::new(Errno::INVAL, "a descriptor that did not come"))?;
        Ok(fd.try_clone().unwrap())
    }
    fn peer(&mut self, _file: Option<FileId>) -> Result<Arc<dyn DmaPeer>> {
        Ok(Arc::new(Sevens))
    }
    fn space(&mut self, _token: SpaceToken) -> Option<Space> {
        None
    }
    fn add_space(&mut self, _token: SpaceToken, _space: &Space) {}
    fn is_file_of_another_device(&self, _file: FileId) -> bool {
        false
    }
}

fn send(socket: impl AsFd, bytes: &[u8], fds: &[OwnedFd]) {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    }
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
    assert_eq!(sent, Ok(bytes.len()));
}

/// A message; nothing at the end of the socket.
fn receive(socket: impl AsFd) -> (Vec<u8>, Vec<OwnedFd>) {
    let (mut bytes, mut fds) = (vec![0; ROOM], Vec::new());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(socket, parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    bytes.truncate(received.bytes);
    (bytes, fds)
}

/// Starts the other process.
fn start() -> (Child, OwnedFd) {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "process::other_process", "--nocapture"]);
    command.env(OTHER_PROCESS, "yes").stdin(Stdio::from(theirs)).stdout(Stdio::null());
    (command.spawn().unwrap(), ours)
}

/// What the other process does; no test by itself.
#[test]
fn other_process() {
    if std::env::var_os(OTHER_PROCESS).is_none() {
        return;
    }
    let socket = std::io::stdin();
    let (bytes, fds) = receive(&socket);
    let restored = (|| {
        let HandOver { numbers, device } = serde_json::from_slice(&bytes)
            .map_err(|error| Error::new(Errno::INVAL, error.to_string()))?;
        let registry = Registry::new();
        registry.continue_at(numbers)?;
        let Identity { id, name, .. } = Identity::of(&device)?;
        let spec =
            DeviceSpec { name, id: Some(id), open: OpenPolicy::Multi, ..DeviceSpec::default() };
        let device_of_here = Counter::default();
        let context = device_of_here.shared();
        let registration = registry.register(spec, Box::new(device_of_here))?;
        let files = registration.device().restore(&device, None, &mut Descriptors(fds))?;
        Ok::<_, Error>((registration, files, context))
    })();
    let (registration, files, shared) = match restored {
        Ok(restored) => restored,
        Err(error) => return send(&socket, format!("refused: {error}").as_bytes(), &[]),
    };
    send(&socket, b"restored", &[]);
    // The other one ends the device there, and then lets this one go on.
    assert_eq!(receive(&socket).0, b"go on");
    files[0].write(REGION, 0, &[1]).unwrap();
    let mut writes = [0];
    files[0].read(REGION, 0, &mut writes).unwrap();
    let mut bytes = [0; 5];
    guest(&files[0], 0x1_0000, &mut bytes).unwrap();
    let unmask = files[0].unmask_fds().remove(0);
    assert!(files[0].unmask_signalled(&unmask));
    shared.context().irqs().set_level(LINE, 1, true).unwrap();
    let (first, newer) = (files[0].id().0, files[0].device().open(files[0].owner().clone()));
    let newer = newer.unwrap().id().0;
    let id = registration.device().id().0;
    let said = serde_json::json!([writes[0], bytes, first, newer, id]);
    send(&socket, said.to_string().as_bytes(), &[]);
    assert_eq!(receive(&socket).0, b"", "the end");
}

#[test]
fn device_goes_on_in_another_process_with_its_descriptors() {
    let Used { rig, files, signal } = used();
    let unmask = event();
    files[0].set_irqs(LINE, 0, 1, IrqAction::Unmask, eventfds(&unmask)).unwrap();
    let memory = memory(b"first");
    files[0].dma_unmap(0x1_0000, 0x1000, std::time::Duration::ZERO).unwrap();
    let backing =
        vfiod_core::dma::Backing::File { fd: memory.try_clone().unwrap(), offset: 0x1000 };
    map(&files[0], 0x1_0000, backing);

    let mut kept = Descriptors::default();
    let device = rig.registration.device().clone();
    let stopped = device.save_and_stop(&mut kept).unwrap();
    let before = rig.registry().numbers();
    let state = HandOver { numbers: before, device: stopped.saved().clone() };
    let (mut other, socket) = start();
    send(&socket, &serde_json::to_vec(&state).unwrap(), &kept.0);
    assert_eq!(String::from_utf8(receive(&socket).0).unwrap(), "restored");
    stopped.hand_over();
    // While nobody serves the device the client's memory changes, and it unmasks.
    rustix::io::pwrite(&memory, b"later", 0x1000).unwrap();
    rustix::io::write(&unmask, &1_u64.to_ne_bytes()).unwrap();
    send(&socket, b"go on", &[]);
    let said: serde_json::Value = serde_json::from_slice(&receive(&socket).0).unwrap();
    let number = |at: usize| said[at].as_u64().unwrap();
    assert_eq!(said[0], 2, "the write before, and one more");
    assert_eq!(said[1], serde_json::json!(b"later"));
    assert_eq!(number(2), files[0].id().0);
    assert!(number(3) >= before.file, "no number is given out twice");
    assert_eq!(number(4), device.id().0);
    assert_eq!(signals(&signal), 1, "the line is up, and was unmasked");
    drop(socket);
    assert!(other.wait().unwrap().success());
    assert_eq!(files[0].read(REGION, 0, &mut [0]).unwrap_err().errno(), Errno::NODEV);
}

#[test]
fn device_goes_on_here_where_the_other_process_refuses_its_state() {
    let Used { rig, files, signal } = used();
    let mut kept = Descriptors::default();
    let stopped = rig.registration.device().save_and_stop(&mut kept).unwrap();
    let state = HandOver { numbers: rig.registry().numbers(), device: stopped.saved().clone() };
    let (mut other, socket) = start();
    // A descriptor is missing.
    send(&socket, &serde_json::to_vec(&state).unwrap(), &kept.0[1..]);
    let said = String::from_utf8(receive(&socket).0).unwrap();
    assert!(said.starts_with("refused: cannot restore counter: "), "{said}");
    drop(socket);
    assert!(other.wait().unwrap().success());
    drop(stopped);
    let mut byte = [0];
    files[0].read(REGION, 0, &mut byte).unwrap();
    files[0].set_irqs(LINE, 0, 1, IrqAction::Unmask, IrqData::None).unwrap();
    assert_eq!((byte, signals(&signal)), ([1], 1));
}
