//! What mdevctl expects below `MDEVCTL_ENV_ROOT` besides `sys`.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use vfiod_core::{Errno, Error, Result};

use crate::failed::failed;

/// Where mdevctl has definitions.
const DEFINITIONS: &str = "etc/mdevctl.d";
/// Where it looks for scripts; it refuses to work if these are not there.
const SCRIPTS: [&str; 2] =
    ["usr/lib/mdevctl/scripts.d/callouts", "usr/lib/mdevctl/scripts.d/notifiers"];

/// Makes what is not there, and lets mdevctl's definitions be those of the daemon, if it has any.
///
/// # Errors
/// `ENOTEMPTY`: there are other definitions; or errors of the file system.
pub(super) fn prepare(root: &Path, definitions: Option<&Path>) -> Result<()> {
    for scripts in SCRIPTS {
        make(&root.join(scripts))?;
    }
    let place = root.join(DEFINITIONS);
    let Some(definitions) = definitions else { return make(&place) };
    let definitions = definitions
        .canonicalize()
        .map_err(|error| failed(definitions, "cannot be found", error))?;
    match place.canonicalize() {
        Ok(there) if there == definitions => return Ok(()),
        _ => {}
    }
    match fs::symlink_metadata(&place) {
        // Of the last time, when the daemon had its definitions elsewhere.
        Ok(there) if there.is_symlink() => {
            fs::remove_file(&place).map_err(|error| failed(&place, "cannot be removed", error))?;
        }
        Ok(_) => fs::remove_dir(&place).map_err(|_| in_the_way(&place, &definitions))?,
        Err(_) => make(place.parent().unwrap_or(root))?,
    }
    symlink(&definitions, &place).map_err(|error| failed(&place, "cannot be made", error))
}

/// Checks that no other definitions are where the link to the daemon's is to be.
///
/// # Errors
/// `ENOTEMPTY`: there are.
pub(super) fn check(root: &Path, definitions: Option<&Path>) -> Result<()> {
    let (place, Some(definitions)) = (root.join(DEFINITIONS), definitions) else { return Ok(()) };
    let Ok(there) = fs::symlink_metadata(&place) else { return Ok(()) };
    let same = place.canonicalize().ok().zip(definitions.canonicalize().ok());
    let is_empty = || fs::read_dir(&place).is_ok_and(|mut entries| entries.next().is_none());
    if there.is_symlink() || same.is_some_and(|(there, ours)| there == ours) || is_empty() {
        return Ok(());
    }
    Err(in_the_way(&place, definitions))
}

fn in_the_way(place: &Path, definitions: &Path) -> Error {
    let what = format!(
        "{} is in the way: mdevctl is to use the definitions in {}; move it",
        place.display(),
        definitions.display()
    );
    Error::new(Errno::NOTEMPTY, what)
}

fn make(path: &Path) -> Result<()> {
    match fs::create_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        result => result.map_err(|error| failed(path, "cannot be made", error)),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn definitions_are_those_of_the_daemon() {
        let root = TempDir::new().unwrap();
        let place = root.path().join(DEFINITIONS);
        prepare(root.path(), None).unwrap();
        assert!(place.is_dir() && !place.is_symlink());
        assert!(SCRIPTS.iter().all(|scripts| root.path().join(scripts).is_dir()));

        // An empty directory makes place; a link is changed; the same place is left alone.
        let stores = [TempDir::new().unwrap(), TempDir::new().unwrap()];
        for store in [&stores[0], &stores[1], &stores[1]] {
            prepare(root.path(), Some(store.path())).unwrap();
            assert_eq!(place.canonicalize().unwrap(), store.path().canonicalize().unwrap());
        }
        prepare(root.path(), None).unwrap();
        assert!(place.is_symlink(), "whoever has no definitions leaves those that are there");
        drop(stores);

        let store = TempDir::new().unwrap();
        prepare(root.path(), Some(store.path())).unwrap();
        assert!(place.is_dir(), "a link to what is gone is changed");
        prepare(root.path(), Some(&place)).unwrap();

        let root = TempDir::new().unwrap();
        let place = root.path().join(DEFINITIONS);
        fs::create_dir_all(place.join("parent")).unwrap();
        let error = prepare(root.path(), Some(store.path())).unwrap_err();
        assert_eq!(error.errno(), Errno::NOTEMPTY, "{error}");
        assert!(error.to_string().contains("mdevctl.d is in the way"), "{error}");
        prepare(root.path(), Some(&place)).unwrap();
        assert!(!place.is_symlink(), "the daemon's own may be there");
    }
}
