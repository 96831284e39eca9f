//! Directories that are made, and who may list them.

use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;

/// Whoever may pass through a directory of this mode may not list it.
const PASSABLE: Mode = Mode::RWXU.union(Mode::XGRP).union(Mode::XOTH);
/// What is in a directory of this mode only its owner can open.
const PRIVATE: Mode = Mode::RWXU;

/// The directory of a path.
pub fn directory_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// Makes a directory that is missing, and those above it. Others may pass through it, and not list it.
/// One that is there is left alone: nothing waits for a lock of a directory then.
///
/// # Errors
/// `ENOTDIR`: a file is in place of a directory; what `stat` or `mkdir` says.
pub fn make_directory(path: &Path) -> Result<(), Errno> {
    make(path, PASSABLE)
}

/// Makes a directory as [`make_directory`], in which others can open nothing.
///
/// # Errors
/// As [`make_directory`].
pub fn make_private_directory(path: &Path) -> Result<(), Errno> {
    make(path, PRIVATE)
}

fn make(path: &Path, mode: Mode) -> Result<(), Errno> {
    let is_there = || match rustix::fs::stat(path) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => Ok(true),
        Ok(_) => Err(Errno::NOTDIR),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    };
    if is_there()? {
        return Ok(());
    }
    let above = directory_of(path);
    if above != Path::new(".") {
        make(above, PASSABLE)?;
    }
    match rustix::fs::mkdirat(CWD, path, mode) {
        // Somebody else has made it, or it is a link to nothing.
        Err(Errno::EXIST) if is_there()? => Ok(()),
        Err(Errno::EXIST) => Err(Errno::NOTDIR),
        made => made,
    }
}

/// Whether others than root and the user of this process may list a directory, and so hold up what is made
/// and removed there. `false` where it cannot be looked at.
pub fn is_listable_by_others(directory: &Path) -> bool {
    may_others(directory, Mode::RGRP, Mode::ROTH)
}

/// Whether others than root and the user of this process may open what is in a directory. `false` where it
/// cannot be looked at.
pub fn is_passable_by_others(directory: &Path) -> bool {
    may_others(directory, Mode::XGRP, Mode::XOTH)
}

fn may_others(directory: &Path, of_group: Mode, of_others: Mode) -> bool {
    let Ok(stat) = rustix::fs::stat(directory) else { return false };
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mode = Mode::from_raw_mode(stat.st_mode);
    let is_trusted = |owner: u32, ours: u32| owner == 0 || owner == ours;
    mode.contains(of_others)
        || (mode.contains(of_group) && !is_trusted(stat.st_gid, group))
        || !is_trusted(stat.st_uid, user)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn directories_that_are_made_can_be_passed_and_not_listed_by_others() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        make_directory(&path).unwrap();
        for made in [&path, &directory.path().join("a")] {
            let mode = std::fs::metadata(made).unwrap().permissions().mode();
            assert_eq!(mode & 0o777 & !0o711, 0, "{mode:o}");
            assert!(!is_listable_by_others(made));
        }
        let private = directory.path().join("c/private");
        make_private_directory(&private).unwrap();
        assert!(!is_passable_by_others(&private) && is_passable_by_others(&path));
        assert!(is_passable_by_others(private.parent().unwrap()));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        make_directory(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "that of others is left alone");
        assert!(is_listable_by_others(&path));
        std::os::unix::fs::symlink("nothing", directory.path().join("link")).unwrap();
        assert_eq!(make_directory(&directory.path().join("link")), Err(Errno::NOTDIR));
    }
}
