//! What `serve` serves: the devices of a file, or one that the command line names.

use vfiod_config::{
    Config, DeviceConfig, Document, LoadError, ModelInfo, Models, OptionSetting, Problem,
    SocketAccess, SocketConfig, SriovConfig, UsageError, suggestion,
};
use vfiod_core::{OpenPolicy, StatePolicy};
use vfiod_manager::{Examination, Source, examine, find_mistakes};

use crate::cli::Serve;
use crate::option_value::{no_option_twice, option_value};

/// The mistakes of a configuration; of one that is only checked, `in_use` gets what is in use now, as if it were
/// served already.
fn mistakes(
    args: &Serve,
    config: &Config,
    models: &Models,
    in_use: &mut Vec<String>,
) -> Vec<Problem> {
    let mistakes = find_mistakes(config, models);
    if !mistakes.is_empty() {
        return mistakes;
    }
    let Examination { mut problems, in_use: used, .. } = examine(config, models);
    if args.check {
        in_use.extend(used.into_iter().map(|problem| problem.what));
    } else {
        problems.extend(used);
    }
    problems
}

/// The configuration that is served, of a file, or of the command line alone; and where it is only checked, what
/// is in use now, as if it were served already.
///
/// # Errors
/// [`UsageError`], or the mistakes of the file.
pub(crate) fn configuration(
    args: &Serve,
    models: &Models,
) -> anyhow::Result<(Source, Vec<String>)> {
    let mut in_use = Vec::new();
    let mut overrides = Vec::new();
    if let Some(poll) = &args.poll {
        vfiod_config::time_argument("--poll", poll)?;
        overrides.push(("", "poll", poll.clone()));
    }
    if let Some(root) = &args.sysfs {
        let root = std::path::absolute(root)?;
        overrides.push(("mdev", "sysfs", root.display().to_string()));
    }
    match (&args.config, &args.device) {
        (Some(path), _) => {
            let document = Document::load(path, models, overrides)?;
            let mistakes = mistakes(args, document.config(), models, &mut in_use);
            if !mistakes.is_empty() {
                return Err(LoadError::Wrong(document.problems(mistakes)).into());
            }
            Ok((document.into(), in_use))
        }
        (None, Some(model)) => {
            let mut config = single(args, model, models, &mut in_use)?;
            config.poll = args.poll.as_deref().and_then(vfiod_config::time);
            let source = match text_of(&config, args.poll.as_deref()) {
                // Read again, so that devices can be added to it while it runs.
                Some(text) => match Document::of_text(&text, models) {
                    Ok(document) => document.into(),
                    Err(problems) => return Err(UsageError(problems.by_key()).into()),
                },
                None => config.into(),
            };
            Ok((source, in_use))
        }
        (None, None) => Err(UsageError("name a configuration file or a --device".into()).into()),
    }
}

/// The text of a configuration that the command line describes; `None`: no text can say it, as its
/// socket was passed to this process.
fn text_of(config: &Config, poll: Option<&str>) -> Option<String> {
    let device = config.devices.first()?;
    let SocketConfig::Path(path, access) = &device.socket else { return None };
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let mut text = poll.map_or_else(String::new, |poll| format!("poll = {}\n\n", quoted(poll)));
    text += &format!("[device.{}]\n", quoted(&device.name));
    text += &format!("model = {}\n", quoted(&device.model));
    let path = quoted(std::path::absolute(path).ok()?.to_str()?);
    match access.mode {
        Some(mode) => text += &format!("socket = {{ path = {path}, mode = \"{mode:04o}\" }}\n"),
        None => text += &format!("socket = {path}\n"),
    }
    if device.open == OpenPolicy::Multi {
        text += "open = \"multi\"\n";
    }
    if device.state == StatePolicy::Retain {
        text += "state = \"retain\"\n";
    }
    for set in &device.options {
        // Numbers, strings, booleans and lists are written alike in JSON and TOML.
        text += &format!("options.{} = {}\n", quoted(&set.name), set.value);
    }
    Some(text)
}

/// The configuration that the command line alone describes.
fn single(
    args: &Serve,
    model: &str,
    models: &Models,
    in_use: &mut Vec<String>,
) -> Result<Config, UsageError> {
    let names = models.models().map(|model| model.name.as_str());
    let known = models.models().find(|known| known.name == model).ok_or_else(|| {
        let suggestion = suggestion(model, "models", names);
        UsageError(format!("--device: there is no model `{model}`; {suggestion}"))
    })?;
    let options =
        args.options.iter().map(|text| option(text, known)).collect::<Result<Vec<_>, _>>()?;
    no_option_twice(options.iter().map(|option| option.name.as_str()))?;
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
    match mistakes(args, &config, models, in_use).first() {
        Some(problem) => {
            let key = problem.key.strip_prefix(&format!("device.{model}.")).unwrap_or_default();
            let place = match (key, key.strip_prefix("options.")) {
                (_, Some(option)) => format!("--option {option}"),
                ("socket", None) => "--socket-path".to_owned(),
                _ => format!("--device {model}"),
            };
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
