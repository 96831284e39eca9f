//! Notifies the service manager (`sd_notify(3)`): ready, reloading, stopping. Without one, nothing.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::OnceLock;
use std::time::Duration;

/// The service manager's socket, or why it cannot be reached; unset: there is no service manager.
static SOCKET: OnceLock<io::Result<UnixDatagram>> = OnceLock::new();

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

/// The daemon still works: to be sent at [`watchdog_interval`].
pub(crate) fn alive() {
    send_state("WATCHDOG=1");
}

/// How often the service manager wants to know that the daemon works, if it does: half the time after
/// which it would restart it. A daemon that has a holder speaks for it.
pub(crate) fn watchdog_interval(holder: Option<u32>) -> Option<Duration> {
    let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
    let pid = number("WATCHDOG_PID");
    let ours = [Some(std::process::id()), holder].map(|pid| pid.map(u64::from));
    let is_meant = pid.is_none_or(|pid| ours.contains(&Some(pid)));
    let time = number("WATCHDOG_USEC").filter(|time| is_meant && *time > 0)?;
    Some(Duration::from_micros(time / 2))
}

/// Connects to the service manager, if there is one, before the sandbox forbids that.
pub(crate) fn connect() {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET").filter(|a| !a.is_empty()) else {
        return;
    };
    let _ = SOCKET.set(connected(&address));
}

fn send_state(state: &str) {
    let Some(socket) = SOCKET.get() else { return };
    let sent = match socket {
        Ok(socket) => socket.send(state.as_bytes()).map(drop),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    };
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}

fn connected(address: &OsString) -> io::Result<UnixDatagram> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(std::path::Path::new(std::ffi::OsStr::from_bytes(path)))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    Ok(socket)
}
