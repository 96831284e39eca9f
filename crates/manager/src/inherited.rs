//! Descriptors that the process was started with: `--fd N` and systemd's socket activation.
//!
//! A number on the command line is no proof that a descriptor is there or ours, and making one
//! from a bare number is `unsafe`. `pidfd_getfd` on this very process gives a duplicate of
//! whatever is there, or `EBADF`, without that.

use std::os::fd::{OwnedFd, RawFd};

use anyhow::{Context, bail};
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags};

/// Number of the first descriptor that a service manager passes.
const FIRST: RawFd = 3;

/// What an inherited socket is good for.
#[derive(Debug)]
pub(crate) enum Inherited {
    /// Connections are to be accepted from it.
    Listening(OwnedFd),
    /// It is one connection, already made.
    Connected(OwnedFd),
}

/// The stream socket with this number.
///
/// # Errors
/// Nothing open there; not a UNIX stream socket.
pub(crate) fn socket(number: RawFd) -> anyhow::Result<Inherited> {
    let fd = duplicate(number)?;
    let kind = rustix::net::sockopt::socket_type(&fd)
        .with_context(|| format!("descriptor {number} is not a socket"))?;
    let domain = rustix::net::sockopt::socket_domain(&fd)?;
    if kind != rustix::net::SocketType::STREAM || domain != rustix::net::AddressFamily::UNIX {
        bail!("descriptor {number} is not a UNIX stream socket");
    }
    Ok(if rustix::net::sockopt::socket_acceptconn(&fd)? {
        Inherited::Listening(fd)
    } else {
        Inherited::Connected(fd)
    })
}

fn duplicate(number: RawFd) -> anyhow::Result<OwnedFd> {
    let own = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
        .context("cannot open this process (pidfd_open)")?;
    match rustix::process::pidfd_getfd(&own, number, PidfdGetfdFlags::empty()) {
        Ok(fd) => Ok(fd),
        Err(Errno::BADF) => bail!("descriptor {number} is not open"),
        Err(error) => Err(anyhow::Error::new(error)
            .context(format!("cannot take descriptor {number} over (pidfd_getfd)"))),
    }
}

/// The sockets of socket activation (`sd_listen_fds(3)`) with their names; empty without it.
///
/// # Errors
/// `LISTEN_FDS` is no number; a descriptor that is not a UNIX stream socket.
pub(crate) fn activated() -> anyhow::Result<Vec<(String, Inherited)>> {
    let variable = |name| std::env::var(name).ok();
    let Some(plan) = plan(
        variable("LISTEN_PID").as_deref(),
        variable("LISTEN_FDS").as_deref(),
        variable("LISTEN_FDNAMES").as_deref(),
        std::process::id(),
    )?
    else {
        return Ok(Vec::new());
    };
    plan.into_iter()
        .map(|(number, name)| {
            let socket =
                socket(number).with_context(|| format!("socket activation of `{name}`"))?;
            Ok((name, socket))
        })
        .collect()
}

/// Which descriptors are meant for this process; `None` if none are.
fn plan(
    pid: Option<&str>,
    fds: Option<&str>,
    names: Option<&str>,
    own: u32,
) -> anyhow::Result<Option<Vec<(RawFd, String)>>> {
    let (Some(pid), Some(fds)) = (pid, fds) else { return Ok(None) };
    if pid.parse() != Ok(own) {
        // They were meant for another process, and the environment was inherited.
        return Ok(None);
    }
    let count: RawFd = fds
        .parse()
        .ok()
        .filter(|n| (0..=4096).contains(n))
        .with_context(|| format!("LISTEN_FDS is `{fds}`, not a number of descriptors"))?;
    let mut names = names.unwrap_or_default().split(':');
    Ok(Some(
        (FIRST..FIRST + count)
            .map(|fd| {
                let name = names.next().filter(|n| !n.is_empty()).unwrap_or("unknown");
                (fd, name.to_owned())
            })
            .collect(),
    ))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn activation_is_for_the_named_process_only() {
        assert_eq!(plan(None, None, None, 7).unwrap(), None);
        assert_eq!(plan(Some("8"), Some("1"), None, 7).unwrap(), None);
        assert_eq!(
            plan(Some("7"), Some("2"), Some("gpio0"), 7).unwrap(),
            Some(vec![(3, "gpio0".into()), (4, "unknown".into())])
        );
        assert!(plan(Some("7"), Some("many"), None, 7).is_err());
        assert!(plan(Some("7"), Some("-1"), None, 7).is_err());
    }

    #[test]
    fn sockets_are_told_from_other_descriptors() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        assert!(matches!(socket(listener.as_raw_fd()).unwrap(), Inherited::Listening(_)));
        let (stream, _peer) = UnixStream::pair().unwrap();
        assert!(matches!(socket(stream.as_raw_fd()).unwrap(), Inherited::Connected(_)));
        let file = tempfile::tempfile().unwrap();
        let error = format!("{:#}", socket(file.as_raw_fd()).unwrap_err());
        assert!(error.contains("is not a socket"), "{error}");
        let error = format!("{:#}", socket(1_000_000).unwrap_err());
        assert!(error.contains("descriptor 1000000 is not open"), "{error}");
    }
}
