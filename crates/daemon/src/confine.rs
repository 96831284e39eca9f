//! Into the sandbox: the sysfs view is mounted before, and a helper started that unmounts it.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use vfiod_config::{MdevConfig, Models, UsageError};
use vfiod_core::{Errno, Error};
use vfiod_directories::{directory_of, in_directory, in_directory_to_disk, make_private_directory};
use vfiod_manager::Source;
use vfiod_mdev_sysfs::{MountPoint, MountedView};
use vfiod_sandbox::{Helper, Report};

use crate::cli::{HelperArgs, Serve};

/// What was done before the daemon starts its first thread.
pub(crate) struct Confined {
    /// The sysfs view, where one is configured.
    pub(crate) view: Option<MountedView>,
    sandbox: Result<Report, Off>,
    // Ended after the view, which asks it to unmount.
    _helper: Option<Arc<Helper>>,
}

/// Why there is no sandbox.
#[derive(Clone, Copy, Debug)]
enum Off {
    CommandLine,
    Configuration,
}

impl Confined {
    /// Mounts the view, and enters the sandbox unless that is turned off. Logs nothing, as the log has
    /// a thread.
    ///
    /// # Errors
    /// Those of the mount and of the sandbox.
    pub(crate) fn enter(
        args: &Serve,
        source: &Source,
        models: &Models,
        program: &str,
    ) -> anyhow::Result<Self> {
        let config = source.config();
        if let MdevConfig { sysfs: Some(root), definitions, .. } = &config.mdev {
            // Before any directory is made.
            look_for_view(root, definitions.as_deref()).map_err(mistake)?;
        }
        let off = match (args.no_sandbox, config.sandbox.enabled) {
            (true, _) => Some(Off::CommandLine),
            (false, false) => Some(Off::Configuration),
            (false, true) => None,
        };
        if let Some(off) = off {
            return Ok(Self { view: mount(&config.mdev)?, sandbox: Err(off), _helper: None });
        }
        let rules = vfiod_manager::sandbox_rules(config, models, args.config.as_deref())?;
        let mut view = mount(&config.mdev)?;
        let helper = view.as_mut().map(|view| helper(view, program)).transpose()?;
        // What they started would not be in the sandbox.
        vfiod_directories::settle();
        let report = rules.enter().context("the sandbox")?;
        Ok(Self { view, sandbox: Ok(report), _helper: helper })
    }

    /// Gives up what only the start needed.
    ///
    /// # Errors
    /// Errors of the kernel.
    pub(crate) fn started(&self) -> anyhow::Result<()> {
        if let Ok(report) = &self.sandbox {
            report.restrict_finally().context("the sandbox")?;
        }
        Ok(())
    }

    /// Logs what is in force, or why nothing is.
    pub(crate) fn log(&self) {
        match &self.sandbox {
            Ok(report) => report.log(),
            Err(Off::CommandLine) => {
                tracing::warn!("the sandbox is turned off by --no-sandbox");
            }
            Err(Off::Configuration) => {
                tracing::warn!("the sandbox is turned off by `enabled` under [sandbox]");
            }
        }
    }
}

/// Mounts the view. Nobody waits for ever for a directory that somebody holds up.
fn mount(config: &MdevConfig) -> anyhow::Result<Option<MountedView>> {
    let MdevConfig { sysfs: Some(root), definitions, .. } = config else { return Ok(None) };
    if let Some(definitions) = definitions {
        // What the view links to has to be there.
        let place = definitions.clone();
        let make = move || {
            make_private_directory(&place).map_err(|errno| Error::new(errno, "it cannot be made"))
        };
        in_directory(directory_of(definitions), make)
            .and_then(|made| made)
            .with_context(|| format!("cannot make the directory {}", definitions.display()))?;
    }
    let (directory, definitions) = (root.clone(), definitions.clone());
    let mount = move || MountedView::new(&directory, definitions.as_deref());
    in_directory_to_disk(root, mount).and_then(|mounted| mounted).map(Some).map_err(mistake)
}

fn look_for_view(root: &Path, definitions: Option<&Path>) -> vfiod_core::Result<()> {
    let (directory, definitions) = (root.to_owned(), definitions.map(Path::to_owned));
    in_directory(root, move || vfiod_mdev_sysfs::check(&directory, definitions.as_deref()))?
}

/// Checks that the view can be mounted. Returns where it is mounted already: as a rule the daemon runs whose
/// configuration is checked.
///
/// # Errors
/// As when it is mounted.
pub(crate) fn check(config: &MdevConfig) -> anyhow::Result<Option<String>> {
    let MdevConfig { sysfs: Some(root), definitions, .. } = config else { return Ok(None) };
    match look_for_view(root, definitions.as_deref()) {
        Err(error) if error.errno() == Errno::BUSY => Ok(Some(root.display().to_string())),
        checked => checked.map(|()| None).map_err(mistake),
    }
}

/// What is in the way of the view is a mistake of the configuration.
fn mistake(error: Error) -> anyhow::Error {
    match error.errno() {
        Errno::NOTDIR | Errno::NOTEMPTY | Errno::EXIST | Errno::LOOP => {
            UsageError(format!("mdev.sysfs: {error}")).into()
        }
        _ => anyhow::Error::new(error).context("mdev.sysfs"),
    }
}

/// Starts the helper, which unmounts the view when it is asked to, or when this process has ended.
fn helper(view: &mut MountedView, program: &str) -> anyhow::Result<Arc<Helper>> {
    let MountPoint { directory, device } = view.mount_point()?;
    let arguments = ["sandbox-helper".into(), directory.into_os_string(), OsString::from(device)];
    let helper = Helper::start(program, arguments).context("cannot start the sandbox's helper")?;
    let helper = Arc::new(helper);
    let asked = helper.clone();
    view.unmounted_by(move || asked.finish());
    Ok(helper)
}

/// Runs `sandbox-helper`.
pub(crate) fn serve_as_helper(args: &HelperArgs) -> anyhow::Result<()> {
    let HelperArgs { directory, device } = args;
    let mount = MountPoint { directory: directory.clone(), device: device.clone() };
    // The daemon may have left its working directory, and this process must not keep one mounted.
    std::env::set_current_dir(Path::new("/"))?;
    vfiod_sandbox::serve_as_helper(|| Ok(vfiod_mdev_sysfs::unmount(&mount)?))
}
