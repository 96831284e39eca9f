//! `vfiod serve`: devices on sockets until a signal says otherwise.

pub(crate) mod build;
mod journal;
mod stack;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vfiod_core::{OpenPolicy, StatePolicy};

pub(crate) use self::journal::owner_name;
pub(crate) use self::stack::{Stack, access_of};
use crate::cli::Serve;
use crate::control::Control;
use crate::manager::Manager;
use crate::signals::Termination;
use crate::sysfs::View;
use crate::{logging, notify, output};
use vfiod_config::suggestion;
use vfiod_config::{
    self as config, Config, ControlConfig, DeviceConfig, LogFormat, MdevConfig, ModelInfo, Models,
    OptionSetting, SocketAccess, SocketConfig, TIME_HELP, UsageError,
};

/// How long clients have to let go of their devices once the daemon is told to finish.
const GRACE: Duration = Duration::from_secs(2);
/// How often the end of an only connection is looked for.
const GLANCE: Duration = Duration::from_millis(50);

/// Runs `vfiod serve`.
pub(crate) fn run(
    args: &Serve,
    log: Option<&str>,
    log_format: Option<LogFormat>,
) -> anyhow::Result<()> {
    let models = vfiod_devices::catalogue();
    let config = configuration(args, &models)?;
    if args.check {
        let count =
            |count: usize, what| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let mut found = vec![count(config.devices.len(), "device")];
        if !config.containers.is_empty() {
            found.push(count(config.containers.len(), "container"));
        }
        if !config.parents.is_empty() {
            found.push(count(config.parents.len(), "parent"));
        }
        return output::print(&format!("the configuration is right: {}\n", found.join(", ")));
    }
    let format = log_format.or(config.log_format).unwrap_or_default();
    logging::start(log, format, config.log.as_deref(), "info")?;
    raise_descriptor_limit();
    // Before the first socket is there: whoever sees one may send a signal already.
    let termination = Termination::catch().context("cannot catch signals")?;
    let manager = Arc::new(Manager::start(&config, &models, Some(Arc::new(journal::Journal)))?);
    let doors =
        control(&config, &manager).and_then(|control| Ok((control, view(&config, &manager)?)));
    let (control, view) = match doors {
        Ok(doors) => doors,
        Err(error) => {
            manager.stop(Duration::ZERO);
            return Err(error);
        }
    };
    let count = manager.daemon().devices;
    notify::ready(&format!("serving {count} devices"));
    tracing::info!(devices = count, "ready");
    wait(&termination, &manager);
    notify::stopping();
    drop(view);
    drop(control);
    manager.stop(GRACE);
    tracing::info!("finished");
    Ok(())
}

/// Serves the control API, where one is configured.
fn control(config: &Config, manager: &Arc<Manager>) -> anyhow::Result<Option<Control>> {
    let Some(control) = &config.control else { return Ok(None) };
    let Some(listener) = manager.stack().take_control() else { return Ok(None) };
    let ControlConfig { users, groups, .. } = control.clone();
    Control::start(manager.clone(), listener, users, groups).map(Some)
}

/// Mounts the view for mdevctl, where one is configured.
fn view(config: &Config, manager: &Arc<Manager>) -> anyhow::Result<Option<View>> {
    let MdevConfig { sysfs: Some(root), definitions, .. } = &config.mdev else { return Ok(None) };
    Ok(Some(View::mount(root, definitions.as_deref(), manager.clone())?))
}

/// A descriptor for each device and client may be more than the soft limit, which is low for
/// the sake of programs that use `select`.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open descriptors");
    }
}

fn wait(termination: &Termination, manager: &Manager) {
    let stack = manager.stack();
    loop {
        let pause = if stack.one_client_only() { GLANCE } else { Duration::from_secs(3600) };
        if let Some(signal) = termination.wait(pause) {
            tracing::info!(signal, "closing every device");
            return;
        }
        if stack.one_client_only() && stack.connections() == 0 {
            tracing::info!("the only client is gone");
            return;
        }
    }
}

fn configuration(args: &Serve, models: &Models) -> anyhow::Result<Config> {
    let mut config = match (&args.config, &args.device) {
        (Some(path), _) => config::load(path, models, |config| build::mistakes(config, models))?,
        (None, Some(model)) => single(args, model, models)?,
        (None, None) => {
            return Err(UsageError("name a configuration file or a --device".into()).into());
        }
    };
    if let Some(poll) = &args.poll {
        config.poll = Some(time("--poll", poll)?);
    }
    if let Some(root) = &args.sysfs {
        config.mdev.sysfs = Some(root.clone());
    }
    Ok(config)
}

/// A time on the command line.
pub(crate) fn time(option: &str, text: &str) -> Result<Duration, UsageError> {
    config::time(text)
        .ok_or_else(|| UsageError(format!("{option}: `{text}` is no time; {TIME_HELP}")))
}

/// The configuration that the command line alone describes.
fn single(args: &Serve, model: &str, models: &Models) -> Result<Config, UsageError> {
    let names = models.models().map(|model| model.name.as_str());
    let known = models.models().find(|known| known.name == model).ok_or_else(|| {
        let suggestion = suggestion(model, "models", names);
        UsageError(format!("--device: there is no model `{model}`; {suggestion}"))
    })?;
    let options = args.options.iter().map(|text| option(text, known)).collect::<Result<_, _>>()?;
    let device = DeviceConfig {
        name: model.to_owned(),
        model: model.to_owned(),
        place: None,
        sriov: vfiod_config::SriovConfig::None,
        token: None,
        open: match args.open.as_deref() {
            Some("multi") => OpenPolicy::Multi,
            _ => OpenPolicy::Single,
        },
        state: match args.state.as_deref() {
            Some("retain") => StatePolicy::Retain,
            _ => StatePolicy::Reset,
        },
        options,
        socket: socket(args)?,
        span: 0..0,
    };
    let config = Config { devices: vec![device], ..Config::default() };
    match build::mistakes(&config, models).first() {
        Some(problem) => {
            let key = problem.key.strip_prefix(&format!("device.{model}.options."));
            let place =
                key.map_or_else(|| format!("--device {model}"), |key| format!("--option {key}"));
            let help = problem.help.iter().map(|help| format!("; {help}")).collect::<String>();
            Err(UsageError(format!("{place}: {}{help}", problem.what)))
        }
        None => Ok(config),
    }
}

fn option(text: &str, model: &ModelInfo) -> Result<OptionSetting, UsageError> {
    let Some((name, value)) = text.split_once('=') else {
        return Err(UsageError(format!("--option: `{text}` has no value; write {text}=VALUE")));
    };
    if !model.options.iter().any(|option| option.name == name) {
        let names = model.options.iter().map(|option| option.name.as_str());
        return Err(UsageError(format!(
            "--option: model `{}` has no option `{name}`; {}",
            model.name,
            suggestion(name, "options", names)
        )));
    }
    let value = option_value(value);
    Ok(OptionSetting { name: name.to_owned(), value, span: 0..0 })
}

fn socket(args: &Serve) -> Result<SocketConfig, UsageError> {
    let mode = match &args.socket_mode {
        Some(text) => Some(config::mode(text).ok_or_else(|| {
            UsageError(format!("--socket-mode: `{text}` are no permission bits, e.g. 0660"))
        })?),
        None => None,
    };
    Ok(match (&args.socket_path, args.fd) {
        (Some(path), _) => {
            SocketConfig::Path(path.clone(), SocketAccess { mode, ..SocketAccess::default() })
        }
        (None, Some(fd)) => SocketConfig::Descriptor(fd),
        (None, None) => SocketConfig::Activated(None),
    })
}

/// The value of an option on the command line: a number, also hexadecimal, true or false or a
/// list as JSON has them; anything else is a string.
fn option_value(text: &str) -> serde_json::Value {
    if let Some(number) = text.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok())
    {
        return number.into();
    }
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}
