//! Where clients come from: sockets by path, by descriptor, or from the service manager.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use anyhow::bail;
use vfiod_config::{SocketConfig, UsageError};
use vfiod_server::Listener;

use crate::inherited::{self, Inherited};

/// Where a device's clients come from.
pub(crate) enum Source {
    /// Connections are accepted from it.
    Listener(Listener),
    /// One connection, already made.
    Connected(OwnedFd),
}

/// Opens a socket, or takes it over.
///
/// # Errors
/// Errors of the kernel; no such socket was passed; [`UsageError`].
pub(crate) fn source(socket: &SocketConfig, activated: &mut Activated) -> anyhow::Result<Source> {
    let inherited = match socket {
        SocketConfig::Path(path, access) => {
            return Ok(Source::Listener(Listener::bind(path, access_of(*access))?));
        }
        SocketConfig::Descriptor(number) => {
            inherited::socket(*number).map_err(|error| UsageError(format!("--fd: {error:#}")))?
        }
        SocketConfig::Activated(Some(name)) => activated.named(name)?,
        SocketConfig::Activated(None) => activated.only()?,
    };
    Ok(match inherited {
        Inherited::Listening(fd) => Source::Listener(Listener::from_fd(fd)?),
        Inherited::Connected(fd) => Source::Connected(fd),
    })
}

/// A socket's access as the server knows it.
pub(crate) fn access_of(access: vfiod_config::SocketAccess) -> vfiod_server::SocketAccess {
    let vfiod_config::SocketAccess { mode, uid, gid } = access;
    vfiod_server::SocketAccess { mode, uid, gid }
}

/// The sockets that the service manager passed, by name.
pub(crate) struct Activated(BTreeMap<String, Vec<Inherited>>);

impl Activated {
    /// Takes over what the service manager passed, once in a process.
    pub(crate) fn take() -> anyhow::Result<Self> {
        let mut sockets: BTreeMap<String, Vec<Inherited>> = BTreeMap::new();
        for (name, socket) in inherited::activated()? {
            sockets.entry(name).or_default().push(socket);
        }
        Ok(Self(sockets))
    }

    fn named(&mut self, name: &str) -> anyhow::Result<Inherited> {
        let list = self.0.get_mut(name).filter(|list| !list.is_empty());
        if let Some(list) = list {
            return Ok(list.remove(0));
        }
        let names: Vec<_> = self.0.keys().map(String::as_str).collect();
        bail!(
            "the service manager passed no socket named `{name}` (FileDescriptorName= in the \
             .socket unit); passed: {}",
            if names.is_empty() { "none".into() } else { names.join(", ") }
        )
    }

    fn only(&mut self) -> anyhow::Result<Inherited> {
        let mut all: Vec<_> = std::mem::take(&mut self.0).into_values().flatten().collect();
        match (all.pop(), all.len()) {
            (Some(socket), 0) => Ok(socket),
            (Some(_), more) => bail!("{} sockets were passed for one device", more + 1),
            (None, _) => Err(UsageError(
                "no socket: give --socket-path or --fd, or let a service manager pass one \
                 (LISTEN_FDS)"
                    .into(),
            )
            .into()),
        }
    }

    /// Logs the sockets that no device has.
    pub(crate) fn warn_about_the_rest(&self) {
        for (name, list) in self.0.iter().filter(|(_, list)| !list.is_empty()) {
            tracing::warn!(name, count = list.len(), "sockets passed for no device");
        }
    }
}
