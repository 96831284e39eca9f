//! Another process, whose connections belong to another owner: it connects, and hands the connection
//! over.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Says to a program of the fuzz targets that it is to be a stranger.
const VARIABLE: &str = "VFIOD_FUZZ_STRANGER";

/// The process. It ends with the other end of its standard input.
pub(crate) struct Stranger {
    socket: UnixStream,
    child: Child,
}

impl Stranger {
    /// Starts this program again, as a stranger.
    pub(crate) fn start() -> Self {
        let (socket, theirs) = UnixStream::pair().expect("a socket pair");
        let program = std::env::current_exe().expect("the program has a path");
        let child = Command::new(program)
            // If the program does not look at the variable, a fuzzer ends at once.
            .arg("-help=1")
            .env(VARIABLE, "1")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program can be started again");
        Self { socket, child }
    }

    /// A connection that the stranger has made. `None`: nobody listens there.
    pub(crate) fn connect(&self, path: &Path) -> Option<OwnedFd> {
        let line = [path.as_os_str().as_bytes(), b"\n"].concat();
        (&self.socket).write_all(&line).expect("the stranger lives");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let buffers = &mut [IoSliceMut::new(&mut byte)];
        // The fuzzer's timer interrupts it.
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(&self.socket, buffers, &mut control, RecvFlags::CMSG_CLOEXEC)
        });
        let received = received.expect("the stranger answers");
        assert_eq!(received.bytes, 1, "the stranger has ended: its program does not serve it");
        control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether this process was started to be a stranger; if so, it has been one until nobody needed it any
/// more.
pub(crate) fn serve_if_asked() -> bool {
    if std::env::var_os(VARIABLE).is_none() {
        return false;
    }
    let Ok(input) = std::io::stdin().as_fd().try_clone_to_owned() else { return true };
    let socket = UnixStream::from(input);
    for line in BufReader::new(&socket).split(b'\n').map_while(Result::ok) {
        let path = OsString::from(std::ffi::OsStr::from_bytes(&line));
        let connected = UnixStream::connect(path).ok();
        let fds: Vec<_> = connected.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let byte = [IoSlice::new(b"x")];
        if rustix::net::sendmsg(&socket, &byte, &mut control, SendFlags::NOSIGNAL).is_err() {
            break;
        }
    }
    true
}
