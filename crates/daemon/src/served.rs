//! What `serve` serves: the devices of a file, or one that the command line names.

use vfiod_config::{
    Config, DeviceConfig, ModelInfo, Models, OptionSetting, SocketAccess, SocketConfig,
    SriovConfig, UsageError, suggestion,
};
use vfiod_core::{OpenPolicy, StatePolicy};
use vfiod_manager::find_mistakes;

use crate::cli::Serve;

/// The configuration that is served: of a file, or of the command line alone.
///
/// # Errors
/// [`UsageError`], or the mistakes of the file.
pub(crate) fn configuration(args: &Serve, models: &Models) -> anyhow::Result<Config> {
    let mut config = match (&args.config, &args.device) {
        (Some(path), _) => {
            vfiod_config::load(path, models, |config| find_mistakes(config, models))?
        }
        (None, Some(model)) => single(args, model, models)?,
        (None, None) => {
            return Err(UsageError("name a configuration file or a --device".into()).into());
        }
    };
    if let Some(poll) = &args.poll {
        config.poll = Some(vfiod_config::time_argument("--poll", poll)?);
    }
    if let Some(root) = &args.sysfs {
        config.mdev.sysfs = Some(root.clone());
    }
    Ok(config)
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
        sriov: SriovConfig::None,
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
    match find_mistakes(&config, models).first() {
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
        Some(text) => Some(vfiod_config::mode(text).ok_or_else(|| {
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
