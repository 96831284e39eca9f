//! `serve --check`: everything that could keep a configuration from being served, without serving it.

use std::io;
use std::path::Path;

use anyhow::Context;
use rustix::fs::{Access, AtFlags, CWD};
use vfiod_config::{Config, Models, PathKind, SocketAccess};
use vfiod_core::{Errno, Error};
use vfiod_directories::in_directory;
use vfiod_server::Site;

use crate::paths::{self, NamedPath, Role};
use crate::{endpoints, limits, sockets};

/// Tries what [`crate::Manager::prepare`] does with sockets and directories, and leaves nothing behind.
/// Models and options are checked by [`crate::find_mistakes`]. Returns which sockets are in use now: as
/// a rule the daemon runs whose configuration is checked.
///
/// # Errors
/// What would keep the configuration from being served by this user.
pub fn check(config: &Config, models: &Models) -> anyhow::Result<Vec<String>> {
    limits::check(config)?;
    let mut in_use = Vec::new();
    for NamedPath { key, path, role } in paths::of(config, models) {
        let access = match role {
            Role::Socket(access) => access,
            Role::Option(PathKind::Socket) => SocketAccess::default(),
            _ => continue,
        };
        match sockets::prepare(&path, access, Site::Trial) {
            Ok(_) => {}
            Err(error) if errno(&error) == Some(Errno::ADDRINUSE) => {
                in_use.push(path.display().to_string());
            }
            Err(error) => return Err(error.context(key)),
        }
    }
    if let Some(directory) = &config.mdev.sockets {
        endpoints::check(directory, config.mdev.access, Site::Trial)?;
    }
    if let Some(directory) = &config.mdev.definitions {
        let place = directory.clone();
        in_directory(directory, move || check_directory(&place))
            .map_err(anyhow::Error::new)
            .and_then(|checked| checked)
            .context("mdev.definitions")?;
    }
    Ok(in_use)
}

fn errno(error: &anyhow::Error) -> Option<Errno> {
    error.downcast_ref::<Error>().map(Error::errno)
}

/// Checks that this user can change a directory, or make it.
fn check_directory(directory: &Path) -> anyhow::Result<()> {
    let is_missing =
        |path: &&Path| path.metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    let Some(existing) = directory.ancestors().find(|path| !is_missing(path)) else {
        return Ok(());
    };
    let wanted = Access::WRITE_OK | Access::EXEC_OK;
    rustix::fs::accessat(CWD, existing, wanted, AtFlags::EACCESS)
        .with_context(|| format!("cannot change {}", existing.display()))
}
