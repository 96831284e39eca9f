//! Every path that a configuration makes or takes, and for whom: what is in the way there, and which of
//! them are in each other's way.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use uuid::Uuid;
use vfiod_config::{
    Config, ModelInfo, Models, OptionSetting, PathKind, Problem, SocketAccess, SocketConfig, place,
};
use vfiod_core::{Error, Result};
use vfiod_directories::{directory_of, in_directory, is_listable_by_others, is_passable_by_others};

/// `f_type` of the kernel's own file systems, in which no file can be made: procfs and sysfs.
const KERNEL: [i64; 2] = [0x9fa0, 0x6265_6572];

/// What is to be at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A socket that the daemon makes, with this access.
    Socket(SocketAccess),
    /// What an option of a model is for.
    Option(PathKind),
    /// A directory in which the daemon makes files.
    Directory,
    /// The sysfs view, which hides what is beneath it.
    View,
    /// Anything that is there already.
    Present,
}

/// A path of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamedPath {
    /// The key that names it.
    pub(crate) key: String,
    pub(crate) path: PathBuf,
    pub(crate) role: Role,
}

/// What was found of a path.
#[derive(Debug)]
pub(crate) struct Found {
    /// Where it is, whichever path leads there.
    place: PathBuf,
    /// What is in the way there.
    pub(crate) obstacle: Option<Problem>,
}

impl Role {
    /// What it is in messages, if nothing else can be there or beneath it.
    fn alone(self) -> Option<&'static str> {
        match self {
            Self::Socket(_) | Self::Option(PathKind::Socket) => Some("a socket"),
            Self::Option(PathKind::Link) => Some("a link"),
            Self::View => Some("the sysfs view"),
            _ => None,
        }
    }

    fn is_directory(self) -> bool {
        matches!(self, Self::Directory | Self::Option(PathKind::Directory))
    }

    fn is_file(self) -> bool {
        self == Self::Option(PathKind::File)
    }
}

/// Every path of a configuration, in the order in which they are used.
pub(crate) fn of(config: &Config, models: &Models) -> Vec<NamedPath> {
    let mut all = Vec::new();
    let mut socket = |key: String, socket: &SocketConfig| {
        if let SocketConfig::Path(path, access) = socket {
            let (path, role) = (path.clone(), Role::Socket(*access));
            all.push(NamedPath { key: format!("{key}.socket"), path, role });
        }
    };
    for device in &config.devices {
        socket(format!("device.{}", device.name), &device.socket);
    }
    for container in &config.containers {
        let name = &container.name;
        socket(format!("container.{name}"), &container.socket);
        for object in &container.objects {
            socket(format!("container.{name}.object.{}", object.name), &object.socket);
        }
    }
    if let Some(control) = &config.control {
        socket("control".to_owned(), &control.socket);
    }
    for device in &config.devices {
        let info = models.models().find(|info| info.name == device.model);
        all.extend(options(&format!("device.{}", device.name), info, &device.options));
    }
    for parent in &config.parents {
        let info = models.parents().find(|info| info.name == parent.model);
        all.extend(options(&format!("parent.{}", parent.name), info, &parent.options));
    }
    let mdev = &config.mdev;
    for (key, path) in [("mdev.sockets", &mdev.sockets), ("mdev.definitions", &mdev.definitions)] {
        all.extend(path.iter().map(|path| named(key, path.clone(), Role::Directory)));
    }
    all.extend(mdev.sysfs.iter().map(|root| named("mdev.sysfs", root.join("sys"), Role::View)));
    let present = config.sandbox.paths.iter();
    all.extend(present.map(|path| named("sandbox.paths", path.clone(), Role::Present)));
    all
}

fn named(key: &str, path: PathBuf, role: Role) -> NamedPath {
    NamedPath { key: key.to_owned(), path, role }
}

/// The paths among the options of a device or a parent.
fn options(key: &str, info: Option<&ModelInfo>, given: &[OptionSetting]) -> Vec<NamedPath> {
    let paths = |set: &OptionSetting| {
        let option = info?.options.iter().find(|option| option.name == set.name)?;
        let (key, role) = (format!("{key}.options.{}", set.name), Role::Option(option.path?));
        // An option is a path, or a list of them.
        let texts = match &set.value {
            Value::Array(texts) => texts.as_slice(),
            text => std::slice::from_ref(text),
        };
        let named = |text: &str| NamedPath { key: key.clone(), path: PathBuf::from(text), role };
        Some(texts.iter().filter_map(Value::as_str).map(named).collect::<Vec<_>>())
    };
    given.iter().filter_map(paths).flatten().collect()
}

/// What `paths` say that cannot all be: two things at one path, or something beneath what is no directory.
/// `found` has what was found of each.
pub(crate) fn collisions(paths: &[NamedPath], found: &[Found]) -> Vec<Problem> {
    let paths = || paths.iter().zip(found).filter(|(named, _)| named.role != Role::Present);
    let mut taken: HashMap<&Path, Vec<&NamedPath>> = HashMap::new();
    for (named, Found { place, .. }) in paths() {
        taken.entry(place).or_default().push(named);
    }
    let mut problems = Vec::new();
    for (named, Found { place, .. }) in paths() {
        let before = taken[&**place].iter().take_while(|other| **other != named);
        let clashes = |other: &&&NamedPath| {
            let roles = [other.role, named.role];
            roles.iter().any(|role| role.alone().is_some())
                || roles.iter().any(|role| role.is_file())
                    && roles.iter().any(|role| role.is_directory())
        };
        if let Some(other) = before.into_iter().find(clashes) {
            let what = format!("{} is `{}` already", named.path.display(), other.key);
            problems.push(problem(named, what, "write a path of its own"));
            continue;
        }
        let above = place.ancestors().skip(1).filter_map(|above| taken.get(above)).flatten();
        let mut what = above.filter_map(|other| {
            let what = other.role.alone().or(other.role.is_file().then_some("a file"))?;
            let (path, key) = (named.path.display(), &other.key);
            Some(format!("{path} is beneath `{key}`, which is {what}"))
        });
        if let Some(what) = what.next() {
            problems.push(problem(named, what, "choose another directory"));
        } else if let Some(sockets) = kept_for_instances(place, &taken) {
            let what = format!(
                "{} is kept for an instance: `{}` is the directory of their sockets, UUID.sock",
                named.path.display(),
                sockets.key
            );
            problems.push(problem(named, what, "choose another name"));
        }
    }
    problems
}

/// The place of what is named, whichever path leads there. A directory may be reached by a link.
fn whole_place(named: &NamedPath) -> PathBuf {
    match named.role {
        Role::Directory | Role::Option(PathKind::Directory | PathKind::File | PathKind::Other) => {
            named.path.canonicalize().unwrap_or_else(|_| place(&named.path))
        }
        Role::View | Role::Present | Role::Socket(_) | Role::Option(_) => place(&named.path),
    }
}

/// The directory of instances' sockets, if `place` is that of one of them.
fn kept_for_instances<'t>(
    place: &Path,
    taken: &HashMap<&Path, Vec<&'t NamedPath>>,
) -> Option<&'t NamedPath> {
    let uuid = place.file_name()?.to_str()?.strip_suffix(".sock")?;
    Uuid::try_parse(uuid).ok()?;
    let above = taken.get(place.parent()?)?;
    above.iter().find(|other| other.key == "mdev.sockets").copied()
}

/// A directory that others than root and this user may list, by which they can hold up what is made and
/// removed there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listable {
    /// Where it is.
    pub directory: PathBuf,
    /// What the daemon has there.
    pub holds: &'static str,
    /// The mode that it should have.
    pub right: &'static str,
}

impl Listable {
    const PASSABLE: &str = "0711";
    const PRIVATE: &str = "0700";

    fn new(directory: &Path, holds: &'static str) -> Self {
        let right = if holds == "definitions" { Self::PRIVATE } else { Self::PASSABLE };
        Self { directory: directory.to_owned(), holds, right }
    }
}

/// The directories of a configuration's sockets, definitions, links and files that others than root and this
/// user may list.
pub fn listable_directories(config: &Config, models: &Models) -> BTreeSet<Listable> {
    let mut wanted = BTreeSet::new();
    for NamedPath { path, role, .. } in of(config, models) {
        let holds = match role {
            Role::Socket(_) | Role::Option(PathKind::Socket) => "sockets",
            Role::Option(PathKind::Link) => "links",
            Role::Option(PathKind::File) => "files",
            _ => continue,
        };
        let Ok(path) = std::path::absolute(path) else { continue };
        // Nothing is made beside a device node.
        let is_node = || path.starts_with("/dev") && holds == "files";
        if let Some(directory) = path.parent().filter(|_| !is_node()) {
            wanted.insert(Listable::new(directory, holds));
        }
    }
    let mdev = &config.mdev;
    wanted.extend(mdev.sockets.iter().map(|sockets| Listable::new(sockets, "sockets")));
    let wanted = wanted.into_iter().filter(|wanted| {
        let directory = wanted.directory.clone();
        // Where somebody holds it up, whoever uses it says so.
        in_directory(&wanted.directory, move || is_listable_by_others(&directory)).unwrap_or(false)
    });
    let definitions = mdev.definitions.iter().flat_map(|place| listable_definitions(place));
    wanted.chain(definitions).collect()
}

/// What is listable of a directory of definitions: itself, and those of parents in it.
fn listable_definitions(definitions: &Path) -> Vec<Listable> {
    let place = definitions.to_owned();
    let look = move || {
        let mut all = vec![place.clone()];
        if is_passable_by_others(&place)
            && let Ok(entries) = fs::read_dir(&place)
        {
            all.extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()));
        }
        all.retain(|directory| is_listable_by_others(directory));
        all
    };
    let listable = in_directory(definitions, look).unwrap_or_default();
    listable.iter().map(|directory| Listable::new(directory, "definitions")).collect()
}

impl Found {
    /// What is known of a path that was not looked at.
    fn unseen(named: &NamedPath) -> Self {
        let place = std::path::absolute(&named.path).unwrap_or_else(|_| named.path.clone());
        Self { place, obstacle: None }
    }

    /// Looks where a path leads, and what is in its way.
    fn of(named: &NamedPath, obstacles: bool) -> Self {
        let obstacle = if obstacles { obstacle(named) } else { None };
        let obstacle = obstacle.map(|(what, help)| problem(named, what, help));
        Self { place: whole_place(named), obstacle }
    }
}

/// Looks where paths lead, and what is in the way of those that are not known, by threads that may be lost: one
/// for each directory.
///
/// # Errors
/// `ETIMEDOUT`: somebody holds up the directory of a path that is not known.
pub(crate) fn look(
    paths: &[NamedPath],
    is_known: impl Fn(&NamedPath) -> bool,
) -> Result<Vec<Found>> {
    let mut directories: BTreeMap<&Path, Vec<(usize, NamedPath, bool)>> = BTreeMap::new();
    for (at, named) in paths.iter().enumerate() {
        let directory = directories.entry(directory_of(&named.path)).or_default();
        directory.push((at, named.clone(), is_known(named)));
    }
    let mut all = BTreeMap::new();
    for (directory, there) in directories {
        let new = there.iter().find(|(.., is_known)| !is_known).map(|(at, ..)| &paths[*at]);
        let places: Vec<_> = there.iter().map(|(at, ..)| *at).collect();
        let look = move || -> Vec<_> {
            there.iter().map(|(_, named, is_known)| Found::of(named, !is_known)).collect()
        };
        let found = match (in_directory(directory, look), new) {
            (Ok(found), _) => found,
            (Err(error), Some(named)) => {
                let what = format!("{}: cannot look at {}", named.key, named.path.display());
                return Err(Error::new(error.errno(), what).because(error));
            }
            // They are in use: whatever is new is compared with them as they are written.
            (Err(_), None) => places.iter().map(|at| Found::unseen(&paths[*at])).collect(),
        };
        all.extend(places.into_iter().zip(found));
    }
    Ok(all.into_values().collect())
}

fn problem(named: &NamedPath, what: String, help: &str) -> Problem {
    Problem { span: 0..0, key: named.key.clone(), what, help: Some(help.to_owned()) }
}

/// What is in the way of one path, and a remedy.
fn obstacle(named: &NamedPath) -> Option<(String, &'static str)> {
    const ANOTHER: &str = "choose another path, or remove what is there";
    let path = &named.path;
    let itself = fs::symlink_metadata(path);
    let wrong = |right: &str| {
        let what = itself.as_ref().map_or("nothing", |there| called(there.file_type()));
        Some((format!("{} is {what}, and not {right}", path.display()), ANOTHER))
    };
    let target = || match fs::metadata(path) {
        Ok(there) => Ok(there.file_type()),
        Err(error) => Err(error.kind()),
    };
    match named.role {
        Role::Socket(_) | Role::Option(PathKind::Socket) => match &itself {
            Ok(there) if !there.file_type().is_socket() => wrong("a socket"),
            _ => above(path),
        },
        Role::Option(PathKind::Link) => match &itself {
            Ok(there) if !there.is_symlink() => wrong("a link"),
            _ => above(path),
        },
        Role::Directory | Role::Option(PathKind::Directory) => match target() {
            Ok(there) if !there.is_dir() => wrong("a directory"),
            Ok(_) => None,
            // A link to nothing.
            Err(io::ErrorKind::NotFound) if itself.is_ok() => wrong("a directory"),
            Err(_) => above(path),
        },
        Role::Option(PathKind::File) => match target() {
            Ok(there) if !there.is_file() && !there.is_block_device() => {
                wrong("a file or a block device")
            }
            Err(io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => missing(path),
            _ => None,
        },
        Role::Present => match target() {
            Err(io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => missing(path),
            _ => None,
        },
        // What is in the directory is found where it is mounted.
        Role::View => above(path),
        Role::Option(PathKind::Other) => None,
    }
}

fn missing(path: &Path) -> Option<(String, &'static str)> {
    Some((format!("{} is not there", path.display()), "make it first, or correct the path"))
}

/// What keeps a path from being made where it is: the nearest directory that is there is none.
fn above(path: &Path) -> Option<(String, &'static str)> {
    const ANOTHER: &str = "choose another directory";
    let absolute = std::path::absolute(path).ok()?;
    for directory in absolute.ancestors().skip(1) {
        let at = directory.display();
        match fs::metadata(directory) {
            Ok(there) if there.is_dir() => {
                let kernel = rustix::fs::statfs(directory)
                    .is_ok_and(|status| KERNEL.contains(&status.f_type));
                let what =
                    format!("{} is in {at}, where the kernel makes all files", path.display());
                return kernel.then_some((what, ANOTHER));
            }
            Ok(there) => {
                let what = called(there.file_type());
                let what = format!("{} is beneath {at}, which is {what}", path.display());
                return Some((what, ANOTHER));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && directory.is_symlink() => {
                let what = format!("{} is beneath {at}, a link to nothing", path.display());
                return Some((what, ANOTHER));
            }
            Err(error) if is_loop(&error) => {
                let what =
                    format!("{} is beneath {at}, where links lead in a circle", path.display());
                return Some((what, ANOTHER));
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            // Whoever uses it says why it cannot.
            Err(_) => return None,
        }
    }
    None
}

fn is_loop(error: &io::Error) -> bool {
    rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::LOOP)
}

/// What a kind of file is called.
fn called(kind: fs::FileType) -> &'static str {
    match kind {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_file() => "a file",
        kind if kind.is_symlink() => "a link",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_fifo() => "a fifo",
        _ => "a device",
    }
}

#[cfg(test)]
mod tests {
    use vfiod_config::{Needs, OptionInfo};

    use super::*;

    #[test]
    fn each_path_of_a_list_is_one() {
        let option = |name: &str, path| OptionInfo {
            name: name.to_owned(),
            values: String::new(),
            default: String::new(),
            summary: String::new(),
            path,
            is_local: false,
        };
        let options = vec![option("files", Some(PathKind::File)), option("names", None)];
        let (name, summary) = ("disk".to_owned(), String::new());
        let operations = Vec::new();
        let info = ModelInfo { name, summary, options, operations, needs: Needs::NONE };
        let set = |name: &str, value| OptionSetting { name: name.to_owned(), value, span: 0..0 };
        let given = [
            set("files", serde_json::json!(["/a", 7, "/b"])),
            set("names", serde_json::json!(["/c"])),
        ];
        let found = super::options("device.x", Some(&info), &given);
        let file = |path: &str| NamedPath {
            key: "device.x.options.files".to_owned(),
            path: path.into(),
            role: Role::Option(PathKind::File),
        };
        assert_eq!(found, [file("/a"), file("/b")]);
        let one = [set("files", serde_json::json!("/a"))];
        assert_eq!(super::options("device.x", Some(&info), &one), [file("/a")]);
    }
}
