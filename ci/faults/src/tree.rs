//! A copy of the tree, in which faults are put. It stays in the target directory, so that the
//! next run builds only what has changed.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::list::{Checker, Fault};

/// A copy of a tree.
pub(crate) struct Copy {
    /// Where the copy is.
    pub(crate) root: PathBuf,
    /// Where the output of a run goes.
    pub(crate) log: PathBuf,
    /// The target directory of the tree that was copied.
    target: PathBuf,
}

impl Copy {
    /// Copies what git knows of a tree, and new files that it does not ignore.
    pub(crate) fn of(tree: &Path) -> Result<Self> {
        let target = match std::env::var_os("CARGO_TARGET_DIR") {
            Some(target) => std::path::absolute(target)?,
            None => tree.join("target"),
        };
        let (root, log) = (target.join("faults/tree"), target.join("faults/log"));
        let copy = Self { root, log, target };
        let wanted = files(tree)?;
        for file in &wanted {
            copy_changed(&tree.join(file), &copy.root.join(file))
                .with_context(|| format!("cannot copy {file}"))?;
        }
        remove_others(&copy.root, &copy.root, &wanted)?;
        Ok(copy)
    }

    /// Where builds for a checker go. Not to the directories of `ci/model-checks.sh`: cargo takes the
    /// crates of the copy for those of the tree, and would run there what has a fault.
    pub(crate) fn target(&self, checker: Checker) -> PathBuf {
        self.target.join("faults").join(checker.name())
    }

    /// Runs `check` with a fault in the copy, and takes the fault out again.
    pub(crate) fn with<R>(&self, fault: &Fault, check: impl FnOnce() -> Result<R>) -> Result<R> {
        let mut restore = Restore(Vec::new());
        for edit in &fault.edits {
            let path = self.root.join(&edit.file);
            let text = fs::read_to_string(&path)?;
            let faulty = edit.apply(&text)?;
            restore.0.push((path.clone(), text));
            fs::write(&path, faulty)?;
        }
        check()
    }
}

/// Files to write back, last one first, when this is dropped.
struct Restore(Vec<(PathBuf, String)>);

impl Drop for Restore {
    fn drop(&mut self) {
        for (path, text) in self.0.drain(..).rev() {
            if let Err(error) = fs::write(&path, text) {
                eprintln!("cannot restore {}: {error}", path.display());
            }
        }
    }
}

fn files(tree: &Path) -> Result<BTreeSet<String>> {
    let list = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(tree)
        .output()
        .context("cannot run git")?;
    ensure!(list.status.success(), "git ls-files: {}", String::from_utf8_lossy(&list.stderr));
    let list = String::from_utf8(list.stdout).context("a file's name is not UTF-8")?;
    let names = list.split('\0').filter(|name| !name.is_empty());
    // A deleted file is still in git's index.
    Ok(names.filter(|name| tree.join(name).is_file()).map(str::to_owned).collect())
}

/// Copies a file unless the copy is the same, whose time must not change then: cargo would build
/// it again.
fn copy_changed(from: &Path, to: &Path) -> Result<()> {
    let text = fs::read(from)?;
    match fs::read(to) {
        Ok(there) if there == text => return Ok(()),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(to.parent().context("has a parent")?)?;
        }
        Err(error) => return Err(error.into()),
    }
    // As a new file with the time of now, not of the original, which may be older than a build.
    fs::write(to, text)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    Ok(())
}

/// Removes what an earlier copy had.
fn remove_others(root: &Path, directory: &Path, wanted: &BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            remove_others(root, &path, wanted)?;
            continue;
        }
        let name = path.strip_prefix(root)?.to_str().context("a file's name is not UTF-8")?;
        if !wanted.contains(name) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}
