//! Descriptors that the process was started with: `--fd N` and systemd's socket activation.
//!
//! A number is no proof that a descriptor was passed: what the program opened itself may have it. So
//! they are looked at before anything is opened, and one that is closed on `exec` was not passed, as it
//! would not have survived the start of this program.
//!
//! Making a descriptor from a bare number is `unsafe`. `pidfd_getfd` on this very process gives a
//! duplicate of whatever is there, or `EBADF`, without that. The original is closed: a socket listens,
//! and a connection lives, as long as any of its descriptors is open.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};

use anyhow::{Context, bail};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{PidfdFlags, PidfdGetfdFlags};
use vfiod_config::UsageError;

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

/// The sockets that were passed to this process.
#[derive(Debug, Default)]
pub struct PassedSockets {
    /// Those of the service manager, by name.
    activated: BTreeMap<String, Vec<Inherited>>,
    /// That of `--fd`.
    descriptor: Option<(RawFd, Inherited)>,
    /// Sockets were passed to another process, whose environment this one has.
    for_another: bool,
}

impl PassedSockets {
    /// Takes over the sockets of socket activation (`sd_listen_fds(3)`) and the descriptor of `--fd`. To
    /// be called before the program opens anything.
    ///
    /// # Errors
    /// [`UsageError`]: what was not passed, is no UNIX stream socket, or neither listens nor is
    /// connected; `LISTEN_FDS` is no number.
    pub fn take(descriptor: Option<RawFd>) -> anyhow::Result<Self> {
        let taken = || {
            let mut passed = Self::activated()?;
            if let Some(number) = descriptor {
                let socket = socket(number).context("--fd")?;
                close_original(number)?;
                passed.descriptor = Some((number, socket));
            }
            anyhow::Ok(passed)
        };
        taken().map_err(|error| UsageError(format!("{error:#}")).into())
    }

    /// The sockets of socket activation by name, to be handed on to another process.
    ///
    /// # Errors
    /// [`UsageError`]: one of them is a connection.
    pub fn into_listening(self) -> anyhow::Result<Vec<(String, OwnedFd)>> {
        let named = |(name, list): (String, Vec<Inherited>)| {
            list.into_iter().map(move |socket| (name.clone(), socket))
        };
        let listening = |(name, socket)| match socket {
            Inherited::Listening(fd) => Ok((name, fd)),
            Inherited::Connected(_) => {
                let what = format!(
                    "socket activation of `{name}`: a connection cannot be held; \
                                    use a .socket unit with Accept=no"
                );
                Err(UsageError(what).into())
            }
        };
        self.activated.into_iter().flat_map(named).map(listening).collect()
    }

    /// The sockets of socket activation that another process has handed on.
    pub fn of_listening(sockets: Vec<(String, OwnedFd)>) -> Self {
        let mut passed = Self::default();
        for (name, fd) in sockets {
            passed.activated.entry(name).or_default().push(Inherited::Listening(fd));
        }
        passed
    }

    fn activated() -> anyhow::Result<Self> {
        let variable = |name| std::env::var(name).ok();
        let mut passed = Self::default();
        let plan = plan(
            variable("LISTEN_PID").as_deref(),
            variable("LISTEN_FDS").as_deref(),
            variable("LISTEN_FDNAMES").as_deref(),
            std::process::id(),
        )?;
        passed.for_another = plan.is_none() && variable("LISTEN_FDS").is_some();
        for (number, name) in plan.unwrap_or_default() {
            let socket =
                socket(number).with_context(|| format!("socket activation of `{name}`"))?;
            close_original(number)?;
            passed.activated.entry(name).or_default().push(socket);
        }
        Ok(passed)
    }

    /// The descriptor of `--fd`, once.
    pub(crate) fn descriptor(&mut self, number: RawFd) -> anyhow::Result<Inherited> {
        match self.descriptor.take() {
            Some((taken, socket)) if taken == number => Ok(socket),
            _ => Err(UsageError(format!("--fd: descriptor {number} was not passed")).into()),
        }
    }

    /// A socket of this name, once.
    pub(crate) fn named(&mut self, name: &str) -> anyhow::Result<Inherited> {
        let list = self.activated.get_mut(name).filter(|list| !list.is_empty());
        if let Some(list) = list {
            return Ok(list.remove(0));
        }
        let names: Vec<_> = self.activated.keys().map(String::as_str).collect();
        let names = if names.is_empty() { "none".into() } else { names.join(", ") };
        let what = format!(
            "the service manager passed no socket named `{name}` (FileDescriptorName= in the \
             .socket unit); passed: {names}{}",
            self.hint()
        );
        Err(UsageError(what).into())
    }

    /// The only socket, once.
    pub(crate) fn only(&mut self) -> anyhow::Result<Inherited> {
        let mut all: Vec<_> = std::mem::take(&mut self.activated).into_values().flatten().collect();
        let what = match (all.pop(), all.len()) {
            (Some(socket), 0) => return Ok(socket),
            (Some(_), more) => format!("{} sockets were passed for one device", more + 1),
            (None, _) => format!(
                "no socket: give --socket-path or --fd, or let a service manager pass one \
                 (LISTEN_FDS){}",
                self.hint()
            ),
        };
        Err(UsageError(what).into())
    }

    fn hint(&self) -> String {
        if !self.for_another {
            return String::new();
        }
        let own = std::process::id();
        format!("; LISTEN_FDS is set, but LISTEN_PID does not name this process, {own}")
    }

    /// Logs the sockets that no device has.
    pub(crate) fn warn_about_the_rest(&self) {
        for (name, list) in self.activated.iter().filter(|(_, list)| !list.is_empty()) {
            tracing::warn!(name, count = list.len(), "sockets passed for no device");
        }
    }
}

/// The stream socket with this number.
///
/// # Errors
/// Nothing open there, or opened by this program; not a UNIX stream socket.
fn socket(number: RawFd) -> anyhow::Result<Inherited> {
    check_passed(number)?;
    let fd = duplicate(number)?;
    let kind = rustix::net::sockopt::socket_type(&fd)
        .with_context(|| format!("descriptor {number} is not a socket"))?;
    let domain = rustix::net::sockopt::socket_domain(&fd)?;
    if kind != rustix::net::SocketType::STREAM || domain != rustix::net::AddressFamily::UNIX {
        bail!("descriptor {number} is not a UNIX stream socket");
    }
    if rustix::net::sockopt::socket_acceptconn(&fd)? {
        return Ok(Inherited::Listening(fd));
    }
    match rustix::net::getpeername(&fd) {
        Err(Errno::NOTCONN) => bail!(
            "descriptor {number} is a socket that neither listens nor is connected; call listen() \
             before passing it"
        ),
        _ => Ok(Inherited::Connected(fd)),
    }
}

/// Checks that a descriptor has survived the start of this program.
fn check_passed(number: RawFd) -> anyhow::Result<()> {
    let info = match std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")) {
        Ok(info) => info,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // Without /proc there is only the look before anything was opened.
            if !std::path::Path::new("/proc/self/fdinfo").exists() {
                return Ok(());
            }
            bail!("descriptor {number} is not open");
        }
        Err(error) => return Err(error).context(format!("cannot look at descriptor {number}")),
    };
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok());
    if flags.is_none_or(|flags| flags & OFlags::CLOEXEC.bits() != 0) {
        bail!("descriptor {number} was not passed to this program, which opened it itself");
    }
    Ok(())
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

/// Closes the number under which a socket was passed. A standard stream becomes `/dev/null`: what is opened
/// later must not have its number.
fn close_original(number: RawFd) -> anyhow::Result<()> {
    let null = || File::options().read(true).write(true).open("/dev/null");
    let closed = match number {
        0 => nix::unistd::dup2_stdin(null()?),
        1 => nix::unistd::dup2_stdout(null()?),
        2 => nix::unistd::dup2_stderr(null()?),
        _ => nix::unistd::close(number),
    };
    closed.with_context(|| format!("cannot close descriptor {number}"))
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
    use std::os::fd::{AsFd, AsRawFd};
    use std::os::unix::net::{UnixListener, UnixStream};

    use rustix::io::FdFlags;
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

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
        let fails = |number| format!("{:#}", socket(number).unwrap_err());
        let error = fails(listener.as_raw_fd());
        assert!(error.contains("was not passed to this program"), "{error}");
        pass(&listener);
        assert!(matches!(socket(listener.as_raw_fd()).unwrap(), Inherited::Listening(_)));
        let (stream, _peer) = UnixStream::pair().unwrap();
        pass(&stream);
        assert!(matches!(socket(stream.as_raw_fd()).unwrap(), Inherited::Connected(_)));
        let bound = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        let address = SocketAddrUnix::new(directory.path().join("b")).unwrap();
        rustix::net::bind(&bound, &address).unwrap();
        let error = fails(bound.as_raw_fd());
        assert!(error.contains("neither listens nor is connected"), "{error}");
        let file = tempfile::tempfile().unwrap();
        pass(&file);
        let error = fails(file.as_raw_fd());
        assert!(error.contains("is not a socket"), "{error}");
        let error = fails(1_000_000);
        assert!(error.contains("descriptor 1000000 is not open"), "{error}");
    }

    /// Makes a descriptor one that survives `exec`.
    fn pass(fd: impl AsFd) {
        rustix::io::fcntl_setfd(fd, FdFlags::empty()).unwrap();
    }
}
