//! Where clients come from: sockets by path, by descriptor, or from the service manager.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use vfiod_config::{Config, SocketConfig, UsageError};
use vfiod_core::{Errno, Error};
use vfiod_server::{Listener, Site};

use crate::inherited::{Inherited, PassedSockets};
use crate::plan::Unit;

/// Where a device's clients come from.
pub(crate) enum Source {
    /// Connections are accepted from it.
    Listener(Listener),
    /// One connection, already made.
    Connected(OwnedFd),
}

/// A socket's access as the server knows it.
pub(crate) fn access_of(access: vfiod_config::SocketAccess) -> vfiod_server::SocketAccess {
    let vfiod_config::SocketAccess { mode, uid, gid } = access;
    vfiod_server::SocketAccess { mode, uid, gid }
}

/// Makes a socket that has no name yet.
///
/// # Errors
/// Errors of the kernel; a path that cannot be one is a [`UsageError`].
pub(crate) fn prepare(
    path: &Path,
    access: vfiod_config::SocketAccess,
    site: Site,
) -> anyhow::Result<Listener> {
    Listener::prepare(path, access_of(access), site).map_err(mistake)
}

/// An error that a mistake in the configuration causes, whatever else is there, is a [`UsageError`].
pub(crate) fn mistake(error: Error) -> anyhow::Error {
    match error.errno() {
        Errno::NOTDIR
        | Errno::ISDIR
        | Errno::NAMETOOLONG
        | Errno::EXIST
        | Errno::LOOP
        | Errno::NOENT
        | Errno::OPNOTSUPP
        | Errno::ROFS => UsageError(format!("{error}")).into(),
        _ => error.into(),
    }
}

/// Sockets that were opened before anything was changed. Those with a path have no name yet.
#[derive(Default)]
pub(crate) struct Opened {
    by_path: HashMap<PathBuf, Listener>,
    pub(crate) passed: PassedSockets,
}

impl Opened {
    /// Opens the sockets of `units`, also where those of `taken` still listen.
    ///
    /// # Errors
    /// Errors of the kernel, with the unit's name.
    pub(crate) fn of_units(units: &[&Unit], taken: &[&Unit]) -> anyhow::Result<Self> {
        let taken: Vec<&Path> = taken.iter().flat_map(|unit| paths(unit)).collect();
        let mut opened = Self::default();
        for unit in units {
            let site = |path: &Path| match taken.contains(&path) {
                true => Site::OwnUntilPublished,
                false => Site::Free,
            };
            opened.open(unit.sockets().into_iter(), site).with_context(|| what(unit))?;
        }
        Ok(opened)
    }

    /// Opens the sockets of a configuration. What a daemon that was killed left where they are is removed.
    ///
    /// # Errors
    /// Errors of the kernel, with the name of whose socket it is.
    pub(crate) fn of_config(
        config: &Config,
        units: &[Unit],
        passed: PassedSockets,
    ) -> anyhow::Result<Self> {
        let mut opened = Self { passed, ..Self::default() };
        for unit in units {
            opened.open(unit.sockets().into_iter(), |_| Site::Free).with_context(|| what(unit))?;
        }
        let control = config.control.iter().map(|control| &control.socket);
        opened.open(control, |_| Site::Free).context("the control API")?;
        let directories: BTreeSet<&Path> =
            opened.by_path.keys().filter_map(|path| path.parent()).collect();
        for directory in directories {
            vfiod_sockets::remove_leftovers(directory);
        }
        Ok(opened)
    }

    fn open<'a>(
        &mut self,
        sockets: impl Iterator<Item = &'a SocketConfig>,
        site: impl Fn(&Path) -> Site,
    ) -> anyhow::Result<()> {
        for socket in sockets {
            if let SocketConfig::Path(path, access) = socket {
                let listener = prepare(path, *access, site(path))?;
                self.by_path.insert(path.clone(), listener);
            }
        }
        Ok(())
    }

    /// A socket, once.
    ///
    /// # Errors
    /// Errors of the kernel; no such socket was passed; [`UsageError`].
    pub(crate) fn take(&mut self, socket: &SocketConfig) -> anyhow::Result<Source> {
        let inherited = match socket {
            SocketConfig::Path(path, access) => {
                return Ok(Source::Listener(match self.by_path.remove(path) {
                    Some(listener) => listener,
                    None => prepare(path, *access, Site::Free)?,
                }));
            }
            SocketConfig::Descriptor(number) => self.passed.descriptor(*number)?,
            SocketConfig::Activated(Some(name)) => self.passed.named(name)?,
            SocketConfig::Activated(None) => self.passed.only()?,
        };
        Ok(match inherited {
            Inherited::Listening(fd) => Source::Listener(Listener::from_fd(fd)?),
            Inherited::Connected(fd) => Source::Connected(fd),
        })
    }

    /// The socket of the control API, once.
    ///
    /// # Errors
    /// As [`Opened::take`]; it is one connection.
    pub(crate) fn take_control(&mut self, config: &Config) -> anyhow::Result<Option<Listener>> {
        let Some(control) = &config.control else { return Ok(None) };
        let listener = match self.take(&control.socket) {
            Ok(Source::Listener(listener)) => Ok(listener),
            Ok(Source::Connected(_)) => {
                Err(anyhow!(UsageError("its socket is not listening".into())))
            }
            Err(error) => Err(error),
        };
        listener.context("the control API").map(Some)
    }
}

fn paths(unit: &Unit) -> Vec<&Path> {
    unit.sockets()
        .into_iter()
        .filter_map(|socket| match socket {
            SocketConfig::Path(path, _) => Some(path.as_path()),
            _ => None,
        })
        .collect()
}

fn what(unit: &Unit) -> String {
    match unit {
        Unit::Device(_) => format!("device {}", unit.name()),
        Unit::Container(_) => format!("container {}", unit.name()),
    }
}
