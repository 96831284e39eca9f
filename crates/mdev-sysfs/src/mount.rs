//! Mounting and unmounting the view, also after a daemon that was killed.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
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
    mount: Mount,
    files: Sysfs,
    thread: Option<JoinHandle<io::Result<()>>>,
}

/// The view, mounted and not served yet: whoever looks into it waits. Dropping it unmounts it.
pub struct MountedView {
    // Before the session, whose end would unmount it otherwise.
    mount: Mount,
    files: Sysfs,
    session: Session<Sysfs>,
    /// How many mounts of daemons that died were removed.
    dead: usize,
}

/// A mount that ends when this is dropped.
struct Mount {
    directory: PathBuf,
    unmount: Unmount,
    ended: bool,
}

/// Who unmounts.
enum Unmount {
    /// This process.
    Here(SessionUnmounter),
    /// Somebody else, who has done it when this returns.
    Elsewhere(Box<dyn Fn() -> io::Result<()> + Send + Sync>),
}

/// A mount by its place and its file system, so that no other mount is taken for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    /// Where it is.
    pub directory: PathBuf,
    /// The device number of its file system, as in `/proc/self/mountinfo`.
    pub device: String,
}

impl MountedView {
    /// Makes a directory the root of mdevctl (`MDEVCTL_ENV_ROOT`): the view of a bus is mounted
    /// on its `sys`, which has to be empty, and its `etc/mdevctl.d` is a link to the daemon's
    /// definitions. A mount that a daemon left behind when it died is removed first.
    ///
    /// Starts no thread and logs nothing.
    ///
    /// # Errors
    /// `EBUSY`: a file system in user space is mounted there; `ENOTEMPTY`, `ENOTDIR`: it is not an
    /// empty directory; `EPERM`, `ENOENT`, `ENODEV`: this user or this kernel cannot mount.
    pub fn new(directory: &Path, definitions: Option<&Path>) -> Result<Self> {
        let above = std::path::absolute(directory)
            .map_err(|error| failed(directory, "is no directory", error))?;
        let directory = above.join("sys");
        let dead = prepare(&directory)?;
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
        let files = Sysfs::new();
        let mut session = Session::new(files.clone(), &directory, &config)
            .map_err(|error| cannot_mount(&directory, is_root, error))?;
        let unmount = Unmount::Here(session.unmount_callable());
        Ok(Self { mount: Mount { directory, unmount, ended: false }, files, session, dead })
    }

    /// Where it is mounted, for [`unmount`].
    ///
    /// # Errors
    /// `/proc/self/mountinfo` cannot be read, or does not show it.
    pub fn mount_point(&self) -> Result<MountPoint> {
        let directory = &self.mount.directory;
        let device = device_at(directory)
            .and_then(|device| device.ok_or_else(|| io::ErrorKind::NotFound.into()))
            .map_err(|error| failed(directory, "is not seen among the mounts", error))?;
        Ok(MountPoint { directory: real(directory), device })
    }

    /// Lets `unmount` do what this process must not do itself. It returns when that is done.
    pub fn unmounted_by(&mut self, unmount: impl Fn() -> io::Result<()> + Send + Sync + 'static) {
        self.mount.unmount = Unmount::Elsewhere(Box::new(unmount));
    }

    /// Shows a bus there, on a thread of its own.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn serve(self, bus: Arc<dyn MdevBus>) -> Result<View> {
        let Self { mount, files, session, dead } = self;
        files.open(bus);
        let thread = thread::Builder::new().name("sysfs".into()).spawn(move || session.run());
        let thread = thread.map_err(|error| failed(&mount.directory, "cannot be served", error))?;
        let path = mount.directory.display();
        if dead > 0 {
            tracing::info!(%path, count = dead, "removed mounts of daemons that died");
        }
        tracing::info!(%path, "sysfs view mounted");
        Ok(View { mount, files, thread: Some(thread) })
    }
}

impl View {
    /// Mounts and serves it: [`MountedView::new`], then [`MountedView::serve`].
    ///
    /// # Errors
    /// Those of both.
    pub fn mount(
        directory: &Path,
        definitions: Option<&Path>,
        bus: Arc<dyn MdevBus>,
    ) -> Result<Self> {
        MountedView::new(directory, definitions)?.serve(bus)
    }

    /// The file system.
    #[cfg(test)]
    pub(super) fn files(&self) -> &Sysfs {
        &self.files
    }
}

impl Mount {
    /// Unmounts, once.
    fn end(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        match &mut self.unmount {
            Unmount::Here(unmounter) => match unmounter.unmount() {
                Ok(()) => Ok(()),
                Err(error) => {
                    // A process has a file open there, or its working directory.
                    tracing::debug!(path = %self.directory.display(), %error, "in use: detached");
                    detach(&self.directory)
                }
            },
            Unmount::Elsewhere(unmount) => {
                unmount().map_err(|error| failed(&self.directory, "cannot be unmounted", error))
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(%error, "the sysfs view stays mounted");
        }
    }
}

/// Unmounts what [`MountedView::mount_point`] named, unless that has happened already.
///
/// # Errors
/// `EPERM`: this user may not; errors of the kernel.
pub fn unmount(mount: &MountPoint) -> Result<()> {
    let there = device_at(&mount.directory).map_err(|error| {
        failed(&mount.directory, "cannot be looked for among the mounts", error)
    })?;
    if there.as_ref() == Some(&mount.device) { detach(&mount.directory) } else { Ok(()) }
}

/// The device number of the file system that is mounted on a directory, the topmost one.
fn device_at(directory: &Path) -> io::Result<Option<String>> {
    let mounts = fs::read("/proc/self/mountinfo")?;
    let escaped = escaped(&real(directory));
    let mounts = mounts.split(|byte| *byte == b'\n').rev();
    Ok(mounts.map(|line| line.split(|byte| *byte == b' ')).find_map(|mut fields| {
        // The number of the mount, that of its parent, the device, the root in it, the place.
        let device = fields.nth(2)?;
        (fields.nth(1)? == escaped).then(|| String::from_utf8_lossy(device).into_owned())
    }))
}

/// The path without symbolic links. Asks nothing of a file system that is mounted there.
fn real(directory: &Path) -> PathBuf {
    let above = directory.parent().and_then(|above| above.canonicalize().ok());
    match (above, directory.file_name()) {
        (Some(above), Some(name)) => above.join(name),
        _ => directory.to_owned(),
    }
}

/// A path as `/proc/self/mountinfo` has it: white space and backslashes as octal numbers.
fn escaped(path: &Path) -> Vec<u8> {
    let escape = |byte: &u8| match byte {
        b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
        byte => vec![*byte],
    };
    path.as_os_str().as_bytes().iter().flat_map(escape).collect()
}

impl Drop for View {
    fn drop(&mut self) {
        self.files.close();
        if let Err(error) = self.mount.end() {
            tracing::warn!(%error, "the sysfs view stays mounted");
            return;
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

/// Checks that [`MountedView::new`] finds nothing in its way, and changes nothing.
///
/// # Errors
/// As [`MountedView::new`], as far as the directory is concerned.
pub fn check(directory: &Path, definitions: Option<&Path>) -> Result<()> {
    let sys = directory.join("sys");
    match fs::read_dir(&sys) {
        Ok(entries) => empty(&sys, entries)?,
        // It will be made, or a dead mount removed.
        Err(error) if error.kind() == io::ErrorKind::NotFound || is_dead(&error) => {}
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(no_directory(&sys));
        }
        Err(error) => return Err(failed(&sys, "cannot be read", error)),
    }
    root::check(directory, definitions)
}

fn no_directory(directory: &Path) -> Error {
    let path = directory.display();
    let what = format!("{path} is no directory; the sysfs view needs an empty one");
    Error::new(Errno::NOTDIR, what)
}

/// Makes an empty directory, unless there is one. Returns how many mounts of daemons that died it has
/// removed.
fn prepare(directory: &Path) -> Result<usize> {
    let mut dead = 0;
    while dead < DEAD {
        // Reading asks the process that serves a mount; the kernel may serve other requests itself.
        let entries = match fs::read_dir(directory) {
            Err(error) if is_dead(&error) => {
                detach(directory)?;
                dead += 1;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(directory)
                    .map_err(|error| failed(directory, "cannot be made", error))?;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(no_directory(directory));
            }
            entries => entries.map_err(|error| failed(directory, "cannot be read", error))?,
        };
        return empty(directory, entries).map(|()| dead);
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
