//! From the file's text to a [`Config`]: every key, every rule between keys.

use std::cell::RefCell;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use vfiod_core::dma::AcceptedFiles;
use vfiod_core::{OpenPolicy, StatePolicy};
use vfiod_quota::Resource;

use crate::log::{LogFormat, check_filter};
use crate::models::{ModelInfo, Models};
use crate::nearest::suggestion;
use crate::problem::{Problem, line_of};
use crate::reader::{Everything, Names, Reader, Taken, Wanted};
use crate::section::{At, Section};
use crate::types::{
    Config, DEVICE_CONNECTIONS, DeviceConfig, LimitsConfig, OptionSetting, SocketAccess,
    SocketConfig,
};
use crate::values::{self, TIME_HELP};

/// The version of the format; `docs/compatibility.md` says when it changes.
const VERSION: &str = "1";
/// Longest path of a UNIX socket in bytes (`sun_path` less its NUL).
const MAX_SOCKET_PATH: usize = 107;

/// Reads a file, which must have something to serve in it, or an API by which devices are added.
pub(super) fn read(text: &str, models: &Models) -> Result<Config, Vec<Problem>> {
    read_with(text, models, |top| {
        if !["device", "container", "parent", "control"].iter().any(|key| top.has(key)) {
            top.missing(
                "device",
                "name at least one device: [device.NAME], or a parent: [parent.NAME], or where devices \
                 can be added: [control]",
            );
        }
    })
}

/// Reads the configuration of a running daemon, whose last device may have been removed.
pub(super) fn read_running(text: &str, models: &Models) -> Result<Config, Vec<Problem>> {
    read_with(text, models, |_| {})
}

/// Where a dotted key stands; the beginning if it is not there.
pub(super) fn span_of(text: &str, key: &str) -> Range<usize> {
    let (document, _) = DeTable::parse_recoverable(text);
    Section::top(&document, &RefCell::default()).span_of(key)
}

fn read_with(
    text: &str,
    models: &Models,
    check: impl FnOnce(&Section<'_>),
) -> Result<Config, Vec<Problem>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(errors.iter().map(syntax).collect());
    }
    let problems = RefCell::default();
    let config = Reader::new(text, models).file(Section::top(&document, &problems), check);
    let problems = problems.into_inner();
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

fn syntax(error: &toml::de::Error) -> Problem {
    Problem {
        span: error.span().unwrap_or(0..0),
        key: String::new(),
        what: error.message().to_owned(),
        help: None,
    }
}

impl Reader<'_> {
    fn file(&self, top: Section<'_>, check: impl FnOnce(&Section<'_>)) -> Config {
        let mut config = Config::default();
        if let Some(log) = top.section("log") {
            (config.log, config.log_format) = self.log(log);
        }
        self.version(&top);
        config.poll = top.string("poll").and_then(|text| self.time(&top, "poll", text));
        config.threads = top.integer("threads", 2..=4096).map(|at| at.value as usize);
        if let Some(limits) = top.section("limits") {
            config.limits = self.limits(&limits);
            limits.finish();
        }
        let files = [("memory", AcceptedFiles::Memory), ("any", AcceptedFiles::Any)];
        config.dma_files = top.choice("dma_files", &files).unwrap_or_default();

        let mut bus_names = Names::new();
        let mut numbers = Taken::default();
        let mut bridges = Vec::new();
        for (name, section) in top.named_sections("bus") {
            let (bus, bridge) = self.bus(name.value, section, &mut numbers);
            bus_names.push(name);
            config.buses.push(bus);
            bridges.push(bridge);
        }
        self.bridges(&top, &mut config, &bus_names, bridges);
        let mut slot_names = Names::new();
        let mut numbers = Taken::default();
        for (name, section) in top.named_sections("slot") {
            slot_names.push(name);
            config.slots.push(self.slot(section, &bus_names, &mut numbers));
        }
        let (mut places, mut sockets) = (Taken::default(), Taken::default());
        let mut virtuals = Vec::new();
        let mut device_names = Names::new();
        for (name, section) in top.named_sections("device") {
            device_names.push(name.clone());
            let device = self.device(name, section, &slot_names, &mut places, &mut sockets);
            let Some((device, wanted)) = device else { continue };
            virtuals.extend(wanted.map(|wanted| (config.devices.len(), wanted)));
            config.devices.push(device);
        }
        self.first_functions(&top, &config, &slot_names, &places);
        self.virtual_functions(&top, &mut config, virtuals);
        self.occupied(&top, &config);
        self.reach(&top, &config);
        let mut numbers = Taken::default();
        let containers = top.named_sections("container");
        let mut all = Everything {
            names: &mut device_names,
            containers: &containers.iter().map(|(name, _)| name.clone()).collect(),
            numbers: &mut numbers,
            sockets: &mut sockets,
        };
        for (name, section) in containers {
            config.containers.extend(self.container(name, section, &mut all));
        }
        for (name, section) in top.named_sections("parent") {
            config.parents.extend(self.parent(name, section));
        }
        config.control = top.section("control").and_then(|c| self.control(c, &mut sockets));
        config.metrics = top.section("metrics").and_then(|section| self.metrics(section));
        if let Some(section) = top.section("mdev") {
            config.mdev = self.mdev(section);
        }
        if let Some(section) = top.section("sandbox") {
            config.sandbox = self.sandbox(section);
        }
        check(&top);
        top.finish();
        config
    }

    /// The version of the format; the file need not name it.
    fn version(&self, top: &Section<'_>) {
        let Some(value) = top.value("version") else { return };
        if !matches!(value.get_ref(), DeValue::Integer(number) if number.as_str() == VERSION) {
            let what = "this is no version of the format that this program knows";
            let help = format!("write version = {VERSION}, or use a newer program");
            top.wrong("version", value.span(), what, help);
        }
    }

    fn limits(&self, limits: &Section<'_>) -> LimitsConfig {
        let number = |key, most| limits.integer(key, 1..=most).map(|at| at.value);
        let mut read = LimitsConfig {
            device_connections: number("device_connections", 65536).map(|most| most as usize),
            common_connections: limits
                .integer("common_connections", 0..=1 << 20)
                .map(|at| at.value),
            polled_devices: limits.integer("polled_devices", 0..=1024).map(|at| at.value as usize),
            ..LimitsConfig::default()
        };
        let reserved = &mut read.reserved;
        reserved[Resource::Connections] = number("reserved_connections", 65536);
        reserved[Resource::Threads] = number("reserved_threads", 64);
        reserved[Resource::Memory] = number("reserved_memory", 1 << 40);
        reserved[Resource::Descriptors] = number("reserved_descriptors", 1 << 20);
        reserved[Resource::Mappings] = number("reserved_mappings", 32768);
        reserved[Resource::AddressSpace] = number("reserved_address_space", 1 << 46);
        reserved[Resource::PageTables] = number("reserved_page_tables", 1 << 40);
        let total = &mut read.total;
        total[Resource::Memory] = number("memory", 1 << 40);
        total[Resource::Descriptors] = number("descriptors", 1 << 30);
        total[Resource::Mappings] = number("mappings", 32768);
        total[Resource::AddressSpace] = number("address_space", 96 << 40);
        total[Resource::PageTables] = number("page_tables", 1 << 40);
        self.reserved(limits, &read);
        read
    }

    /// Checks that a device can have what is reserved for it.
    fn reserved(&self, limits: &Section<'_>, read: &LimitsConfig) {
        let connections = read.device_connections.unwrap_or(DEVICE_CONNECTIONS) as u64;
        let mut pairs = vec![("reserved_connections", Resource::Connections, Some(connections))];
        pairs.extend([
            ("reserved_memory", Resource::Memory, read.total[Resource::Memory]),
            ("reserved_descriptors", Resource::Descriptors, read.total[Resource::Descriptors]),
            ("reserved_mappings", Resource::Mappings, read.total[Resource::Mappings]),
            ("reserved_address_space", Resource::AddressSpace, read.total[Resource::AddressSpace]),
            ("reserved_page_tables", Resource::PageTables, read.total[Resource::PageTables]),
        ]);
        for (key, resource, most) in pairs {
            let (Some(reserved), Some(most)) = (read.reserved[resource], most) else { continue };
            if reserved > most {
                let whole = match resource {
                    Resource::Connections => "device_connections".to_owned(),
                    _ => key.trim_start_matches("reserved_").to_owned(),
                };
                let what = format!("{reserved} for each device, but `{whole}` is {most}");
                let help = format!("write at most {most}, or a larger `{whole}`");
                limits.wrong(key, limits.span_of(key), what, help);
            }
        }
    }

    fn log(&self, log: Section<'_>) -> (Option<String>, Option<LogFormat>) {
        let level = log.string("level").map(|level| {
            if let Err(why) = check_filter(level.value) {
                let right = "write error, warn, info, debug or trace, or levels by module: \
                             \"info,vfiod_server=debug\"";
                log.wrong("level", level.span, why, right.to_owned());
            }
            level.value.to_owned()
        });
        let format = log.choice("format", &LogFormat::NAMES);
        log.finish();
        (level, format)
    }

    fn time(&self, section: &Section<'_>, key: &str, text: At<&str>) -> Option<Duration> {
        let time = values::time(text.value);
        if time.is_none() {
            let what = format!("`{}` is not a time", text.value);
            section.wrong(key, text.span, what, TIME_HELP.to_owned());
        }
        time
    }

    fn device(
        &self,
        name: At<&str>,
        device: Section<'_>,
        slots: &Names<'_>,
        places: &mut Taken<(usize, u8)>,
        sockets: &mut Taken<String>,
    ) -> Option<(DeviceConfig, Option<Wanted>)> {
        let model = self.model(&device);
        let place = self.place(&device, slots, places);
        let wanted = self.virtual_function(&device);
        let sriov = self.physical_function(&device);
        let token = self.token(&device);
        let open = device
            .choice("open", &[("single", OpenPolicy::Single), ("multi", OpenPolicy::Multi)])
            .unwrap_or_default();
        let state = device
            .choice("state", &[("reset", StatePolicy::Reset), ("retain", StatePolicy::Retain)])
            .unwrap_or_default();
        let options = device.section("options");
        let options = options.map_or_else(Vec::new, |section| self.options(section, model));
        let socket = self.socket(&device, sockets);
        let span = device.span.clone();
        device.finish();
        let device = DeviceConfig {
            name: name.value.to_owned(),
            model: model?.name.clone(),
            place,
            sriov,
            token,
            open,
            state,
            options,
            socket: socket?,
            span,
        };
        Some((device, wanted))
    }

    fn model(&self, device: &Section<'_>) -> Option<&ModelInfo> {
        self.model_of(device, self.models.models())
    }

    /// The model that a section names, out of those that it could.
    pub(super) fn model_of<'m>(
        &self,
        device: &Section<'_>,
        models: impl Iterator<Item = &'m ModelInfo> + Clone,
    ) -> Option<&'m ModelInfo> {
        let names = models.clone().map(|model| model.name.as_str());
        let Some(name) = device.string("model") else {
            if !device.has("model") {
                device.missing("model", format!("name one; {}", suggestion("", "models", names)));
            }
            return None;
        };
        let model = models.clone().find(|model| model.name == name.value);
        if model.is_none() {
            device.wrong(
                "model",
                name.span,
                format!("there is no model `{}`", name.value),
                suggestion(name.value, "models", names),
            );
        }
        model
    }

    pub(super) fn options(
        &self,
        section: Section<'_>,
        model: Option<&ModelInfo>,
    ) -> Vec<OptionSetting> {
        let Some(model) = model else { return Vec::new() };
        let mut options = Vec::new();
        for (name, value) in section.entries() {
            let word = name.get_ref().as_ref();
            if !model.options.iter().any(|option| option.name == word) {
                let what = format!("model `{}` has no such option", model.name);
                let names = model.options.iter().map(|option| option.name.as_str());
                section.wrong(word, name.span(), what, suggestion(word, "options", names));
            }
            match option_value(value) {
                Some(setting) => {
                    let span = value.span();
                    options.push(OptionSetting { name: word.to_owned(), value: setting, span });
                }
                None => section.wrong(
                    word,
                    value.span(),
                    "an option cannot be this",
                    "write a string, a number, true or false, or a list of these or of tables"
                        .to_owned(),
                ),
            }
        }
        options
    }

    pub(super) fn socket(
        &self,
        device: &Section<'_>,
        sockets: &mut Taken<String>,
    ) -> Option<SocketConfig> {
        let Some(value) = device.value("socket") else {
            let help = "give a path, or { path = \"…\", mode = \"0660\" }, or \
                        { activated = \"NAME\" } for one that systemd passes";
            device.missing("socket", help);
            return None;
        };
        let (socket, span) = match value.get_ref() {
            DeValue::String(path) => {
                let path = At { value: path.as_ref(), span: value.span() };
                let span = path.span.clone();
                (self.path(device, "socket", path)?, span)
            }
            DeValue::Table(_) => self.socket_table(device.section("socket")?)?,
            _ => {
                let what = "this is not a socket";
                let help = "write a path or a table with `path`";
                device.wrong("socket", value.span(), what, help.to_owned());
                return None;
            }
        };
        let key = match &socket {
            SocketConfig::Path(path, _) => format!("path {}", self.place_of(path).display()),
            other => format!("{other:?}"),
        };
        if let Some(other) = sockets.take(key, &span, &device.path) {
            device.wrong(
                "socket",
                span,
                format!("this socket is {} already", self.at(&other)),
                "give each device a socket of its own".to_owned(),
            );
        }
        Some(socket)
    }

    fn socket_table(&self, table: Section<'_>) -> Option<(SocketConfig, Range<usize>)> {
        let path = table.string("path");
        let activated = table.string("activated");
        let access = self.access(&table);
        let socket = match (path, activated) {
            (Some(path), None) => {
                let span = path.span.clone();
                self.path(&table, "path", path).map(|socket| match socket {
                    SocketConfig::Path(path, _) => (SocketConfig::Path(path, access), span),
                    activated => (activated, span),
                })
            }
            (None, Some(name)) => {
                if access != SocketAccess::default() {
                    let what = "mode, owner and group of an activated socket are the service \
                                manager's business";
                    let help = "set them in the .socket unit";
                    table.wrong("activated", name.span.clone(), what, help.to_owned());
                }
                Some((SocketConfig::Activated(Some(name.value.to_owned())), name.span))
            }
            (Some(_), Some(name)) => {
                let what = "a socket has either a path or is passed by the service manager";
                table.wrong("activated", name.span, what, "leave one of them out".to_owned());
                None
            }
            (None, None) => {
                if !table.has("path") && !table.has("activated") {
                    table.missing("path", "say where to listen: path = \"/run/vfiod/NAME.sock\"");
                }
                None
            }
        };
        table.finish();
        socket
    }

    /// Mode, owner and group of a socket.
    pub(super) fn access(&self, table: &Section<'_>) -> SocketAccess {
        let mut access = SocketAccess::default();
        if let Some(text) = table.word("mode") {
            access.mode = values::mode(&text.value);
            if access.mode.is_none() {
                let what = format!("`{}` are no permission bits", text.value);
                let help = "write them in octal, as a string: \"0660\"";
                table.wrong("mode", text.span, what, help.to_owned());
            }
        }
        access.uid = self.account(table, "owner", "user", "/etc/passwd", values::user);
        access.gid = self.account(table, "group", "group", "/etc/group", values::group);
        access
    }

    fn path(&self, section: &Section<'_>, key: &str, path: At<&str>) -> Option<SocketConfig> {
        let length = path.value.len();
        if length == 0 || length > MAX_SOCKET_PATH || path.value.contains('\0') {
            let what = match length {
                0 => "the path is empty".to_owned(),
                _ => format!("this is no path of a socket ({length} bytes)"),
            };
            let help = format!("a socket's path has 1 to {MAX_SOCKET_PATH} bytes, none of them 0");
            section.wrong(key, path.span, what, help);
            return None;
        }
        Some(SocketConfig::Path(PathBuf::from(path.value), SocketAccess::default()))
    }

    pub(super) fn account(
        &self,
        table: &Section<'_>,
        key: &'static str,
        kind: &str,
        database: &str,
        find: impl Fn(&str) -> Option<u32>,
    ) -> Option<u32> {
        let name = table.word(key)?;
        let number = find(&name.value);
        if number.is_none() {
            let help = format!("write a name in {database}, or a number");
            table.wrong(key, name.span, format!("there is no {kind} `{}`", name.value), help);
        }
        number
    }

    /// The index of the thing that a key names.
    pub(super) fn index(
        &self,
        section: &Section<'_>,
        key: &str,
        kind: &str,
        name: &At<&str>,
        known: &Names<'_>,
    ) -> Option<usize> {
        let index = known.iter().position(|at| at.value == name.value);
        if index.is_none() {
            let what = format!("there is no {key} `{}`", name.value);
            let names = known.iter().map(|at| at.value);
            section.wrong(key, name.span.clone(), what, suggestion(name.value, kind, names));
        }
        index
    }

    pub(super) fn at(&self, (span, path): &(Range<usize>, String)) -> String {
        format!("`{path}` (line {})", self.line(span.start))
    }

    /// The line of a place in the file.
    pub(super) fn line(&self, at: usize) -> usize {
        line_of(self.text, at)
    }
}

fn option_value(value: &Spanned<DeValue<'_>>) -> Option<serde_json::Value> {
    Some(match value.get_ref() {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).ok()?.into()
        }
        DeValue::Boolean(value) => (*value).into(),
        DeValue::Array(list) => list.iter().map(list_element).collect::<Option<Vec<_>>>()?.into(),
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => return None,
    })
}

/// What a list can have: what an option can be, or a table of that.
fn list_element(value: &Spanned<DeValue<'_>>) -> Option<serde_json::Value> {
    let DeValue::Table(table) = value.get_ref() else { return option_value(value) };
    let entry = |(name, value): (&Spanned<_>, _)| {
        Some((AsRef::<str>::as_ref(name.get_ref()).to_owned(), option_value(value)?))
    };
    let entries: Option<serde_json::Map<_, _>> = table.iter().map(entry).collect();
    Some(entries?.into())
}
