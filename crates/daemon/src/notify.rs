//! Notifies the service manager (`sd_notify(3)`): ready, reloading, stopping. Without one, nothing.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Everything is being served.
pub(crate) fn ready(status: &str) {
    send_state(&format!("READY=1\nSTATUS={status}"));
}

/// The process reads its configuration again; [`ready`] ends that.
pub(crate) fn reloading() {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let microseconds = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
    send_state(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
}

/// The process is finishing.
pub(crate) fn stopping() {
    send_state("STOPPING=1");
}

fn send_state(state: &str) {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET").filter(|a| !a.is_empty()) else {
        return;
    };
    if let Err(error) = send(&address, state) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

fn send(address: &OsString, state: &str) -> io::Result<()> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(std::path::Path::new(std::ffi::OsStr::from_bytes(path)))?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}
