//! `vfiod serve`: devices on sockets until a signal says otherwise.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vfiod_config::{Config, ControlConfig, Models};
use vfiod_control::{Control, Metrics};
use vfiod_manager::{
    EventLog, InUsePolicy, Listable, Manager, PassedSockets, listable_directories,
};
use vfiod_mdev_sysfs::{MountedView, View};

use crate::cli::Serve;
use crate::confine::{self, Confined};
use crate::held::Held;
use crate::served::configuration;
use crate::signals::{Asked, Signals};
use crate::{logging, notify, output};

/// What is logged if nobody says it.
const DEFAULT_LOG: &str = "info";
/// How long clients have to close their devices once the daemon is asked to finish.
const GRACE: Duration = Duration::from_secs(2);
/// How often the end of the only connection is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Runs `vfiod serve`.
pub(crate) fn run(
    args: &Serve,
    models: &Models,
    logs: &logging::Wanted,
    program: &str,
) -> anyhow::Result<()> {
    // Before anything is opened that could have the number of a socket that was not passed.
    let mut held = if args.check { None } else { Held::begin()? };
    let passed = match &mut held {
        _ if args.check => Ok(PassedSockets::default()),
        Some(held) => Ok(held.passed()),
        None => PassedSockets::take(args.fd),
    };
    let (source, served_already) = configuration(args, models)?;
    let passed = passed?;
    let config = source.config().clone();
    logs.filter(config.log.as_deref(), DEFAULT_LOG)?;
    if args.check {
        // As it will be: devices' shares of descriptors depend on it.
        raise_descriptor_limit();
        let mut in_use = vfiod_manager::check(&config, models)?;
        in_use.extend(check_metrics(&config)?);
        in_use.extend(confine::check(&config.mdev)?);
        in_use.extend(served_already);
        let count =
            |count: usize, what| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let mut found = vec![count(config.devices.len(), "device")];
        if !config.containers.is_empty() {
            found.push(count(config.containers.len(), "container"));
        }
        if !config.parents.is_empty() {
            found.push(count(config.parents.len(), "parent"));
        }
        if !in_use.is_empty() {
            let in_use = in_use.join(", ");
            logging::print_error(&format!(
                "{program}: in use now, as if it were served already: {in_use}\n"
            ));
        }
        for Listable { directory, holds, right } in listable_directories(&config, models) {
            let directory = directory.display();
            logging::print_error(&format!(
                "{program}: warning: others may list {directory}, and so keep {holds} from being made and \
                 removed there: chmod {right}\n"
            ));
        }
        return output::print(&format!("the configuration is right: {}\n", found.join(", ")));
    }
    notify::connect();
    vfiod_control::load_accounts();
    let metrics = config.metrics.map(vfiod_control::listen_for_metrics).transpose()?;
    // Before the first thread: the sandbox is that of this thread and those that it starts.
    let mut confined = Confined::enter(args, &source, models, program)?;
    logs.start(config.log.as_deref(), config.log_format, DEFAULT_LOG)?;
    confined.log();
    for Listable { directory, holds, right } in listable_directories(&config, models) {
        let directory = directory.display();
        tracing::warn!(
            %directory,
            "others may list this directory of {holds}, and so keep them from being made and removed there: \
             chmod {right}"
        );
    }
    raise_descriptor_limit();
    // Before the first socket is there: whoever sees one may send a signal already.
    let signals = Signals::catch_with_reload(|asked| match &mut held {
        Some(held) => held.start(asked),
        None => Ok(()),
    });
    let signals = signals.context("cannot catch signals")?;
    let manager = Manager::prepare(source, models, Some(Arc::new(EventLog)), passed)?;
    let manager = Arc::new(manager);
    let started = management(&config, &manager, metrics, confined.view.take());
    let management = match started.and_then(|started| start(&manager, started)) {
        Ok(management) => management,
        Err(error) => {
            manager.stop(Duration::ZERO);
            return Err(error);
        }
    };
    if let Err(error) = confined.started() {
        drop(management);
        manager.stop(Duration::ZERO);
        return Err(error);
    }
    let count = manager.devices().len();
    if let Some(held) = &held {
        held.ready(&manager);
    }
    notify::ready(&format!("serving {count} devices"));
    tracing::info!(devices = count, "ready");
    wait(&signals, &manager, held.as_ref().map(Held::holder));
    if let Some(held) = &held {
        held.finish();
    }
    notify::stopping();
    drop(management);
    manager.stop(GRACE);
    tracing::info!("finished");
    Ok(())
}

/// Lets everything appear together, once all that could fail has been done: first the names of all
/// sockets, then whoever has connected is served.
fn start(manager: &Manager, mut management: Management) -> anyhow::Result<Management> {
    manager.publish()?;
    if let Some(control) = &mut management.control {
        control.publish().context("the control API")?;
    }
    manager.serve()?;
    Ok(management)
}

/// The address of the metrics, if it is in use now.
fn check_metrics(config: &Config) -> anyhow::Result<Option<String>> {
    let Some(address) = config.metrics else { return Ok(None) };
    match vfiod_control::listen_for_metrics(address) {
        Ok(_) => Ok(None),
        Err(error)
            if error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::AddrInUse) =>
        {
            Ok(Some(address.to_string()))
        }
        Err(error) => Err(error),
    }
}

/// What operators and programs reach the daemon by. Ended in this order.
struct Management {
    _view: Option<View>,
    control: Option<Control>,
    _metrics: Option<Metrics>,
}

/// Starts what is configured of the control API, the view for mdevctl, and metrics.
fn management(
    config: &Config,
    manager: &Arc<Manager>,
    metrics: Option<TcpListener>,
    view: Option<MountedView>,
) -> anyhow::Result<Management> {
    let metrics = metrics.map(|listener| Metrics::start(manager.clone(), listener));
    Ok(Management {
        _metrics: metrics.transpose()?,
        control: control(config, manager)?,
        _view: view.map(|view| view.serve(manager.clone())).transpose()?,
    })
}

/// Serves the control API, where one is configured.
fn control(config: &Config, manager: &Arc<Manager>) -> anyhow::Result<Option<Control>> {
    let Some(control) = &config.control else { return Ok(None) };
    let Some(listener) = manager.stack().take_control() else { return Ok(None) };
    let ControlConfig { users, groups, .. } = control.clone();
    Control::start(manager.clone(), listener, users, groups).map(Some)
}

/// A descriptor for each device and client may be more than the soft limit, which is low for
/// the sake of programs that use `select`.
pub(crate) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open descriptors");
    }
}

/// Waits until the daemon is to finish, and reloads the configuration when it is asked to.
fn wait(signals: &Signals, manager: &Arc<Manager>, holder: Option<u32>) {
    let stack = manager.stack();
    let watchdog = notify::watchdog_interval(holder);
    let idle = watchdog.unwrap_or(Duration::from_secs(3600));
    loop {
        let pause = if stack.one_client_only() { POLL_INTERVAL.min(idle) } else { idle };
        match signals.wait(pause) {
            Some(Asked::Finish(signal)) => {
                tracing::info!(signal, "closing every device");
                return;
            }
            Some(Asked::Reload) => reload(manager),
            None => {}
        }
        if watchdog.is_some() {
            // What every client and every command needs: the registry and the table of devices.
            let _ = (manager.devices(), stack.connections());
            notify::alive();
        }
        if stack.one_client_only() && stack.connections() == 0 {
            tracing::info!("the only client is gone");
            return;
        }
    }
}

/// Reloads on a thread of its own: a path of the file may be in a directory that somebody holds up, and
/// the daemon is to finish all the same when it is asked to.
fn reload(manager: &Arc<Manager>) {
    notify::reloading();
    let reloading = manager.clone();
    let reload = move || {
        if let Err(error) = reloading.reload(InUsePolicy::Refuse) {
            tracing::error!(%error, "the configuration was not reloaded");
        }
        notify::ready(&format!("serving {} devices", reloading.devices().len()));
    };
    if let Err(error) = std::thread::Builder::new().name("reload".into()).spawn(reload) {
        tracing::error!(%error, "no thread can be started: the configuration was not reloaded");
        notify::ready(&format!("serving {} devices", manager.devices().len()));
    }
}
