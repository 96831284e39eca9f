//! What a configuration needs of the daemon's sandbox, and whether a change of it fits into the sandbox
//! that was entered at the start.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use vfiod_config::{Config, ModelInfo, Models, Needs, SocketAccess};
use vfiod_core::{Errno, Error, Result};
use vfiod_directories::{directory_of, in_directory, make_directory, make_private_directory};
use vfiod_sandbox::Rules;

use crate::paths::{self, NamedPath, Role};

/// The accounts by name, for `owner`, `group`, `users` and `groups` of a configuration.
const ACCOUNTS: [&str; 3] = ["/etc/passwd", "/etc/group", "/etc/nsswitch.conf"];
/// What the kernel says about limits and accounts.
const KERNEL: [&str; 2] = ["/proc/sys/vm/max_map_count", "/proc/sys/kernel/overflowuid"];
/// Directories that are too much to be read for the sake of one file in them.
const SHARED: [&str; 2] = ["/", "/etc"];

/// Something that is needed, and the key of the configuration that asks for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wanted {
    /// Files in a directory, or this one file.
    Path(String, PathBuf),
    /// A path that a model needs.
    ModelPath(String, String, PathBuf),
    /// A system call that a model needs.
    SystemCall(String, String, i64),
    /// The mode of a socket.
    Mode(String, u32),
    /// An owner or a group of a socket.
    Owner(String),
}

/// The sandbox's rules for a configuration. Directories that it names and that are missing are made, as
/// a directory that does not exist cannot be allowed.
///
/// `file` is where the configuration was read from.
///
/// # Errors
/// `ETIMEDOUT`: somebody holds up a directory in which one is to be made.
pub fn rules(config: &Config, models: &Models, file: Option<&Path>) -> Result<Rules> {
    let mut rules = Rules::new();
    for wanted in wanted(config, models) {
        match wanted {
            Wanted::Path(key, path) => {
                let (place, is_private) = (path.clone(), key == "mdev.definitions");
                let make = move || match is_private {
                    true => make_private_directory(&place),
                    false => make_directory(&place),
                };
                // Whoever uses it says what is wrong with it, but that it cannot even be looked at.
                let _ = in_directory(directory_of(&path), make)
                    .map_err(|error| cannot_be_made(&key, &path, error))?;
                rules.allow(path);
            }
            Wanted::ModelPath(_, _, path) => drop(rules.allow(path)),
            Wanted::SystemCall(_, _, number) => drop(rules.allow_system_call(number)),
            Wanted::Mode(_, mode) => drop(rules.allow_mode(mode)),
            Wanted::Owner(_) => drop(rules.allow_changing_owners()),
        }
    }
    for path in &config.sandbox.paths {
        rules.allow(path);
    }
    if config.control.as_ref().is_some_and(|control| !control.groups.is_empty()) {
        // A peer's groups may have to be asked of a service that knows the accounts.
        rules.allow_connecting();
    }
    let read = ACCOUNTS.iter().chain(&KERNEL).map(Path::new);
    for path in read.filter(|path| path.exists()) {
        rules.allow_reading(path);
    }
    if let Some(file) = file.and_then(|file| file.canonicalize().ok()) {
        // Its directory, as editors replace a file; but not one that has much else in it.
        let directory =
            file.parent().filter(|above| !SHARED.iter().any(|s| Path::new(s) == *above));
        rules.allow_reading(directory.unwrap_or(&file));
    }
    Ok(rules)
}

fn cannot_be_made(key: &str, path: &Path, error: Error) -> Error {
    let what = format!("{key}: cannot look for the directory {}", path.display());
    Error::new(error.errno(), what).because(error)
}

/// Checks that what `new` needs and `old` does not is allowed in the sandbox of this process.
///
/// # Errors
/// `EACCES`: it is not.
pub(crate) fn check(old: &Config, new: &Config, models: &Models) -> Result<()> {
    let before = wanted(old, models);
    for wanted in wanted(new, models).difference(&before) {
        let denied = |what: String| Err(Error::new(Errno::ACCESS, what));
        let needs = |key: &str, model: &str, what: String| {
            denied(format!(
                "{key}: model `{model}` needs {what}, which the daemon's sandbox does not allow; add \
                 \"{model}\" to `models` under [sandbox] and restart the daemon"
            ))
        };
        match wanted {
            Wanted::Path(key, path) => {
                let place = path.clone();
                let checked = in_directory(path, move || vfiod_sandbox::check(&place))?;
                if let Err(outside) = checked {
                    return denied(format!("{key}: {outside}"));
                }
            }
            Wanted::ModelPath(key, model, path) => {
                if vfiod_sandbox::check(path).is_err() {
                    return needs(key, model, path.display().to_string());
                }
            }
            Wanted::SystemCall(key, model, number) => {
                if !vfiod_sandbox::allows_system_call(*number) {
                    return needs(key, model, format!("system call {number}"));
                }
            }
            Wanted::Mode(key, mode) => {
                if !vfiod_sandbox::allows_mode(*mode) {
                    return denied(format!(
                        "{key}: the sandbox of a daemon that runs as root allows only the modes that \
                         sockets had when it started, and not {mode:04o}; restart it with this mode in \
                         its file, or run it as a user of its own"
                    ));
                }
            }
            Wanted::Owner(key) => {
                if !vfiod_sandbox::allows_changing_owners() {
                    return denied(format!(
                        "{key}: the daemon's sandbox allows changes of owner only if a socket had an \
                         owner or a group when it started; restart it with this socket in its file"
                    ));
                }
            }
        }
    }
    Ok(())
}

fn wanted(config: &Config, models: &Models) -> BTreeSet<Wanted> {
    let mut all = BTreeSet::new();
    for NamedPath { key, path, role } in paths::of(config, models) {
        match role {
            Role::Socket(access) => {
                all.extend(of_access(&key, access));
                all.insert(Wanted::Path(key, absolute_directory(&path)));
            }
            Role::Directory => drop(all.insert(Wanted::Path(key, path))),
            Role::Option(_) => {
                let looked_at = path.clone();
                let named = in_directory(directory_of(&path), move || named(&looked_at));
                let named = named.unwrap_or_else(|_| absolute_directory(&path));
                all.insert(Wanted::Path(key, named));
            }
            // Mounted before the sandbox is entered; allowed as it is.
            Role::View | Role::Present => {}
        }
    }
    all.extend(of_access("mdev.access", config.mdev.access));
    for device in &config.devices {
        let info = models.models().find(|info| info.name == device.model);
        let key = format!("device.{}", device.name);
        all.extend(info.into_iter().flat_map(|info| of_model(&key, info)));
    }
    for parent in &config.parents {
        let info = models.parents().find(|info| info.name == parent.model);
        let key = format!("parent.{}", parent.name);
        all.extend(info.into_iter().flat_map(|info| of_model(&key, info)));
    }
    for name in &config.sandbox.models {
        let infos = models.models().chain(models.parents()).filter(|info| info.name == *name);
        all.extend(infos.flat_map(|info| of_model("sandbox.models", info)));
    }
    all
}

/// What it takes to give a socket its mode, owner and group.
fn of_access(key: &str, access: SocketAccess) -> impl Iterator<Item = Wanted> {
    let SocketAccess { mode, uid, gid } = access;
    let owner = (uid.is_some() || gid.is_some()).then(|| Wanted::Owner(key.to_owned()));
    mode.map(|mode| Wanted::Mode(key.to_owned(), mode)).into_iter().chain(owner)
}

/// What a device or parent of a model needs, whatever its options.
fn of_model(key: &str, info: &ModelInfo) -> Vec<Wanted> {
    let Needs { system_calls, paths } = info.needs;
    let (key, model) = (key.to_owned(), info.name.clone());
    let calls =
        system_calls.iter().map(|number| Wanted::SystemCall(key.clone(), model.clone(), *number));
    let paths = paths.iter().map(|path| Wanted::ModelPath(key.clone(), model.clone(), path.into()));
    calls.chain(paths).collect()
}

fn absolute_directory(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.parent().map_or_else(|| absolute.clone(), Path::to_owned)
}

/// What is to be allowed for a path that an option names: a directory itself, a device node itself, as
/// there are others beside it, and of anything else the directory.
fn named(path: &Path) -> PathBuf {
    match fs::metadata(path) {
        Ok(there)
            if there.is_dir()
                || there.file_type().is_block_device()
                || there.file_type().is_char_device() =>
        {
            std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
        }
        _ => absolute_directory(path),
    }
}
