//! Mounting and unmounting the view, also after a daemon that was killed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use rustix::mount::UnmountFlags;
use vfiod_core::{Errno, Error, Result};

use crate::failed::failed;
use crate::filesystem::Sysfs;
use crate::mdev_bus::MdevBus;
use crate::root;

/// How many mounts of daemons that died are removed from one place.
const DEAD: usize = 16;
/// How long to wait for the end of the last request.
const LAST: Duration = Duration::from_secs(1);

/// The mounted view. Dropping it unmounts it; accesses to files that are still open then fail.
pub struct View {
    directory: PathBuf,
    files: Sysfs,
    unmounter: SessionUnmounter,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl View {
    /// Makes a directory the root of mdevctl (`MDEVCTL_ENV_ROOT`): the view of a bus is mounted
    /// on its `sys`, which has to be empty, and its `etc/mdevctl.d` is a link to the daemon's
    /// definitions. A mount that a daemon left behind when it died is removed first.
    ///
    /// # Errors
    /// `EBUSY`: a file system in user space is mounted there; `ENOTEMPTY`, `ENOTDIR`: it is not an
    /// empty directory; `EPERM`, `ENOENT`, `ENODEV`: this user or this kernel cannot mount.
    pub fn mount(
        directory: &Path,
        definitions: Option<&Path>,
        bus: Arc<dyn MdevBus>,
    ) -> Result<Self> {
        let above = std::path::absolute(directory)
            .map_err(|error| failed(directory, "is no directory", error))?;
        let directory = above.join("sys");
        prepare(&directory)?;
        root::prepare(&above, definitions)?;
        let is_root = rustix::process::geteuid().is_root();
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("vfiod".into()),
            MountOption::Subtype("vfiod".into()),
            MountOption::DefaultPermissions,
            MountOption::NoDev,
            MountOption::NoSuid,
            MountOption::NoExec,
        ];
        // Everybody, as sysfs does; only root may allow that.
        config.acl = if is_root { SessionACL::All } else { SessionACL::Owner };
        let files = Sysfs::new(bus);
        let mut session = Session::new(files.clone(), &directory, &config)
            .map_err(|error| cannot_mount(&directory, is_root, error))?;
        let unmounter = session.unmount_callable();
        let thread = thread::Builder::new().name("sysfs".into()).spawn(move || session.run());
        let thread = thread.map_err(|error| failed(&directory, "cannot be served", error))?;
        tracing::info!(path = %directory.display(), "sysfs view mounted");
        Ok(Self { directory, files, unmounter, thread: Some(thread) })
    }

    /// The file system.
    #[cfg(test)]
    pub(super) fn files(&self) -> &Sysfs {
        &self.files
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.files.close();
        if let Err(error) = self.unmounter.unmount() {
            // A process has a file open there, or its working directory.
            tracing::debug!(path = %self.directory.display(), %error, "in use: detached");
            if let Err(error) = detach(&self.directory) {
                tracing::warn!(%error, "the sysfs view stays mounted");
                return;
            }
        }
        let Some(thread) = self.thread.take() else { return };
        let end = Instant::now() + LAST;
        while !thread.is_finished() {
            if Instant::now() > end {
                // The thread ends with the last use of the mount, or with the process.
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
        match thread.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the sysfs view ended"),
            Err(_) => tracing::error!("the sysfs view failed"),
        }
    }
}

/// Makes an empty directory, unless there is one.
fn prepare(directory: &Path) -> Result<()> {
    for _ in 0..DEAD {
        // Reading asks the process that serves a mount; the kernel may serve other requests itself.
        let entries = match fs::read_dir(directory) {
            Err(error) if is_dead(&error) => {
                detach(directory)?;
                let path = directory.display();
                tracing::info!(%path, "took away the mount of a daemon that died");
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(directory)
                    .map_err(|error| failed(directory, "cannot be made", error))?;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                let path = directory.display();
                let what = format!("{path} is no directory; the sysfs view needs an empty one");
                return Err(Error::new(Errno::NOTDIR, what));
            }
            entries => entries.map_err(|error| failed(directory, "cannot be read", error))?,
        };
        return empty(directory, entries);
    }
    let what = format!("{}: too many dead mounts, one on the other", directory.display());
    Err(Error::new(Errno::BUSY, what))
}

fn empty(directory: &Path, mut entries: fs::ReadDir) -> Result<()> {
    if entries.next().is_none() {
        return Ok(());
    }
    let fuse = rustix::fs::statfs(directory).is_ok_and(|status| status.f_type == FUSE);
    let path = directory.display();
    Err(if fuse {
        Error::new(
            Errno::BUSY,
            format!("{path}: a file system is mounted there already, perhaps by another vfiod"),
        )
    } else {
        Error::new(
            Errno::NOTEMPTY,
            format!("{path} is not empty; the sysfs view needs an empty directory"),
        )
    })
}

/// The type of file systems in user space, in `statfs`.
const FUSE: rustix::fs::FsWord = 0x6573_5546;

/// Whether the process that served this mount has ended.
fn is_dead(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOTCONN | Errno::CONNABORTED))
}

/// Unmounts, now or with the end of its last use.
fn detach(directory: &Path) -> Result<()> {
    match rustix::mount::unmount(directory, UnmountFlags::DETACH) {
        Ok(()) => return Ok(()),
        Err(Errno::PERM) => {}
        Err(errno) => return Err(failed(directory, "cannot be unmounted", errno.into())),
    }
    let status = Command::new("fusermount3").args(["-u", "-z", "-q", "--"]).arg(directory).status();
    let failed = |what: String| {
        let path = directory.display();
        Err(Error::new(Errno::PERM, format!("{path} cannot be unmounted: {what}")))
    };
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => failed(format!("fusermount3 ended with {status}")),
        Err(error) => failed(format!("fusermount3 (package fuse3): {error}")),
    }
}

fn cannot_mount(directory: &Path, is_root: bool, error: io::Error) -> Error {
    if !Path::new("/dev/fuse").exists() {
        let what =
            "there is no /dev/fuse for the sysfs view: the kernel's module fuse is not loaded";
        return Error::new(Errno::NODEV, what);
    }
    if !is_root {
        let what = format!(
            "cannot mount the sysfs view on {}: a user who is not root needs fusermount3 (package \
             fuse3), access to /dev/fuse, and a directory of his own",
            directory.display()
        );
        return Error::new(Errno::PERM, what).because(error);
    }
    failed(directory, "cannot have the sysfs view mounted", error)
}
