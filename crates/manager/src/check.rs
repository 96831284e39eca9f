//! `serve --check`: everything that could keep a configuration from being served, without serving it.

use std::io;
use std::path::Path;

use anyhow::Context;
use rustix::fs::{Access, AtFlags, CWD};
use vfiod_config::{Config, SocketConfig, UsageError};
use vfiod_core::{Errno, Error};
use vfiod_server::Site;

use crate::plan;
use crate::{endpoints, sockets};

/// Tries what [`crate::Manager::prepare`] does with sockets and directories, and leaves nothing behind.
/// Models and options are checked by [`crate::find_mistakes`]. Returns which sockets are in use now: as
/// a rule the daemon runs whose configuration is checked.
///
/// # Errors
/// What would keep the configuration from being served by this user.
pub fn check(config: &Config) -> anyhow::Result<Vec<String>> {
    let mut in_use = Vec::new();
    let units = plan::units(config);
    let devices = units.iter().flat_map(|unit| {
        unit.sockets().into_iter().map(move |socket| (format!("device {}", unit.name()), socket))
    });
    let control = config.control.iter().map(|one| ("the control API".to_owned(), &one.socket));
    for (name, socket) in devices.chain(control) {
        let SocketConfig::Path(path, access) = socket else { continue };
        match sockets::prepare(path, *access, Site::Trial) {
            Ok(_) => {}
            Err(error) if errno(&error) == Some(Errno::ADDRINUSE) => {
                in_use.push(path.display().to_string());
            }
            Err(error) => return Err(error.context(name)),
        }
    }
    if let Some(directory) = &config.mdev.sockets {
        endpoints::check(directory, config.mdev.access, Site::Trial)?;
    }
    for (key, directory) in
        [("mdev.definitions", &config.mdev.definitions), ("mdev.sysfs", &config.mdev.sysfs)]
    {
        let Some(directory) = directory else { continue };
        check_directory(directory).with_context(|| key.to_owned())?;
    }
    Ok(in_use)
}

fn errno(error: &anyhow::Error) -> Option<Errno> {
    error.downcast_ref::<Error>().map(Error::errno)
}

/// Checks that this user can change a directory, or make it.
fn check_directory(directory: &Path) -> anyhow::Result<()> {
    let mut existing = directory;
    loop {
        match existing.metadata() {
            Ok(found) if !found.is_dir() => {
                let what = format!("{} is not a directory", existing.display());
                return Err(UsageError(what).into());
            }
            Ok(_) => {
                let wanted = Access::WRITE_OK | Access::EXEC_OK;
                return rustix::fs::accessat(CWD, existing, wanted, AtFlags::EACCESS)
                    .with_context(|| format!("cannot change {}", existing.display()));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                existing = existing.parent().unwrap_or(Path::new("/"));
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                let what = format!("{} is beneath a file", directory.display());
                return Err(UsageError(what).into());
            }
            Err(error) => return Err(error).context(format!("cannot use {}", existing.display())),
        }
    }
}
