//! `vfiod capture`: sits between a client and a server, and writes down what they say.
//!
//! So that nothing passes it by, it withholds memory descriptors, the MMAP flag, doorbells and the
//! second socket; then all DMA and all accesses are messages. Eventfds are relayed, so that signals
//! have a place in the order. DMA to memory whose descriptor it withheld is answered here. What a
//! device's back end gets from outside, such as a serial port's characters, is recorded by the server
//! (`vfiod_wire::input`), and collected between the client's messages.
//!
//! # What it does not capture
//! More than one connection; the input of a server that does not record it; that a back end takes no
//! more output; memory that may block, such as a file on a disk: a DMA_MAP of that is refused (`ENODEV`), also
//! where the server would take it.

pub(crate) mod arguments;
pub(crate) mod format;
mod inputs;
mod memory;
pub(crate) mod proxy;
pub(crate) mod withhold;

use std::fs::OpenOptions;
use std::io::BufWriter;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use vfiod_daemon::output;
use vfiod_server::{Listener, SocketAccess};

use self::arguments::Capture;
use self::format::Writer;
use self::proxy::{Closed, Proxy};

/// Runs `vfiod capture`.
pub(crate) fn run(args: &Capture) -> anyhow::Result<()> {
    let path = args.listen.clone().unwrap_or_else(|| with_suffix(&args.socket));
    let listener = Listener::bind(&path, SocketAccess::default())?;
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        // It contains guest data.
        .mode(0o600)
        .open(&args.file)
        .with_context(|| format!("cannot create {}", args.file.display()))?;
    let written = || format!("the capture {}", args.file.display());
    let writer = Writer::new(BufWriter::new(file)).with_context(written)?;
    let missing = if args.socket.exists() { "" } else { ", where nothing is yet" };
    output::print(&format!(
        "listening at {}; {} will contain guest data\n\
         waiting for a client; it will be connected to {}{missing}\n",
        path.display(),
        args.file.display(),
        args.socket.display()
    ))?;
    let client = accept(&listener).context("cannot accept a client")?;
    let server = UnixStream::connect(&args.socket)
        .with_context(|| format!("cannot connect to {}", args.socket.display()))?;
    // One client is captured; others shall see that there is nobody.
    drop(listener);
    match Proxy::new(client, server.into(), writer)?.run().with_context(written)? {
        Closed::ByClient => {}
        Closed::ByServer => tracing::warn!("the server closed the connection"),
    }
    output::print(&format!("captured in {}; it contains guest data\n", args.file.display()))
}

/// Waits for a client.
fn accept(listener: &Listener) -> rustix::io::Result<OwnedFd> {
    loop {
        match listener.accept() {
            Err(Errno::AGAIN) => {}
            Err(Errno::INTR | Errno::CONNABORTED) => continue,
            accepted => return accepted,
        }
        match poll(&mut [PollFd::new(listener, PollFlags::IN)], None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn with_suffix(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".capture");
    path.into()
}
