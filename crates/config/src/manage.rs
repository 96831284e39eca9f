//! From the file's text: parents, mediated devices, the control API.

use std::net::SocketAddr;
use std::path::PathBuf;

use toml::de::DeValue;
use vfiod_quota::{overflow_gid, overflow_uid};

use crate::nearest::suggestion;
use crate::reader::{Reader, Taken};
use crate::section::{At, Section};
use crate::types::{ControlConfig, MdevConfig, ParentConfig, SandboxConfig};
use crate::values;

/// Longest directory of sockets in bytes: `/UUID.sock` has 42, `sun_path` 107 and its NUL.
const MAX_SOCKET_DIRECTORY: usize = 107 - 42;

impl Reader<'_> {
    pub(super) fn parent(&self, name: At<&str>, parent: Section<'_>) -> Option<ParentConfig> {
        let model = self.model_of(&parent, self.models.parents());
        let options = parent.section("options");
        let options = options.map_or_else(Vec::new, |section| self.options(section, model));
        let span = parent.span.clone();
        parent.finish();
        Some(ParentConfig {
            name: name.value.to_owned(),
            model: model?.name.clone(),
            options,
            span,
        })
    }

    pub(super) fn mdev(&self, mdev: Section<'_>) -> MdevConfig {
        let sockets = self.directory(&mdev, "sockets");
        if let Some(path) = &sockets
            && path.as_os_str().len() > MAX_SOCKET_DIRECTORY
            && let Some(value) = mdev.value("sockets")
        {
            let what = "this path is too long for a directory of sockets";
            let help = format!("a path of at most {MAX_SOCKET_DIRECTORY} bytes");
            mdev.wrong("sockets", value.span(), what, help);
        }
        let access = mdev.section("access").map(|section| {
            let access = self.access(&section);
            section.finish();
            access
        });
        let definitions = self.directory(&mdev, "definitions");
        let sysfs = self.directory(&mdev, "sysfs");
        mdev.finish();
        MdevConfig { sockets, access: access.unwrap_or_default(), definitions, sysfs }
    }

    /// The address of the metrics: an IP address and a port.
    pub(super) fn metrics(&self, metrics: Section<'_>) -> Option<SocketAddr> {
        let text = metrics.string("listen");
        if text.is_none() && !metrics.has("listen") {
            metrics.missing("listen", "write an address: listen = \"127.0.0.1:9477\"");
        }
        let address = text.and_then(|text| {
            let address = text.value.parse().ok();
            if address.is_none() {
                let what = format!("`{}` is no address", text.value);
                let help =
                    "write an IP address and a port, e.g. \"127.0.0.1:9477\" or \"[::1]:9477\"";
                metrics.wrong("listen", text.span, what, help.to_owned());
            }
            address
        });
        metrics.finish();
        address
    }

    pub(super) fn sandbox(&self, sandbox: Section<'_>) -> SandboxConfig {
        let enabled = sandbox.value("enabled").is_none_or(|value| match value.get_ref() {
            DeValue::Boolean(enabled) => *enabled,
            _ => {
                let what = "this is neither true nor false";
                let help = "write enabled = false to run without the sandbox".to_owned();
                sandbox.wrong("enabled", value.span(), what, help);
                true
            }
        });
        let paths = words(&sandbox, "paths", "a list of absolute paths", |path| {
            if path.starts_with('/') {
                Ok(PathBuf::from(path))
            } else {
                Err((
                    format!("`{path}` is not an absolute path"),
                    "write it from `/` on".to_owned(),
                ))
            }
        });
        let names = self.models.models().chain(self.models.parents());
        let names: Vec<&str> = names.map(|model| model.name.as_str()).collect();
        let models = words(&sandbox, "models", "a list of models", |name| {
            if names.contains(&name) {
                Ok(name.to_owned())
            } else {
                let help = suggestion(name, "models", names.iter().copied());
                Err((format!("there is no model `{name}`"), help))
            }
        });
        sandbox.finish();
        SandboxConfig { enabled, paths, models }
    }

    fn directory(&self, section: &Section<'_>, key: &'static str) -> Option<PathBuf> {
        let path = section.string(key)?;
        if !path.value.starts_with('/') {
            let what = format!("`{}` is not an absolute path", path.value);
            section.wrong(key, path.span, what, "write it from `/` on".to_owned());
            return None;
        }
        Some(PathBuf::from(path.value))
    }

    pub(super) fn control(
        &self,
        control: Section<'_>,
        sockets: &mut Taken<String>,
    ) -> Option<ControlConfig> {
        let socket = self.socket(&control, sockets);
        let users =
            accounts(&control, "users", "user", "/etc/passwd", values::user, overflow_uid());
        let groups =
            accounts(&control, "groups", "group", "/etc/group", values::group, overflow_gid());
        control.finish();
        Some(ControlConfig { socket: socket?, users, groups })
    }
}

/// A list of strings, each of which `read` turns into something or says what is wrong and right.
fn words<T>(
    section: &Section<'_>,
    key: &'static str,
    expected: &str,
    read: impl Fn(&str) -> Result<T, (String, String)>,
) -> Vec<T> {
    let Some(value) = section.value(key) else { return Vec::new() };
    let DeValue::Array(list) = value.get_ref() else {
        section.wrong(key, value.span(), "this is not a list", format!("write {expected}"));
        return Vec::new();
    };
    let mut words = Vec::with_capacity(list.len());
    for entry in list.iter() {
        let result = match entry.get_ref() {
            DeValue::String(word) => read(word),
            _ => Err(("this is not a string".to_owned(), format!("write {expected}"))),
        };
        match result {
            Ok(word) => words.push(word),
            Err((what, help)) => section.wrong(key, entry.span(), what, help),
        }
    }
    words
}

/// A list of users or groups, by name or number. `nobody` is the number that the kernel names where it
/// cannot name one.
fn accounts(
    section: &Section<'_>,
    key: &'static str,
    kind: &str,
    database: &str,
    find: impl Fn(&str) -> Option<u32>,
    nobody: u32,
) -> Vec<u32> {
    let Some(value) = section.value(key) else { return Vec::new() };
    let help = format!("a list of names in {database} and of numbers");
    let DeValue::Array(list) = value.get_ref() else {
        section.wrong(key, value.span(), format!("these are no {kind}s"), help);
        return Vec::new();
    };
    let mut numbers = Vec::with_capacity(list.len());
    for entry in list.iter() {
        let word = match entry.get_ref() {
            DeValue::String(name) => name.to_string(),
            DeValue::Integer(number) => number.as_str().to_owned(),
            _ => String::new(),
        };
        match find(&word) {
            Some(number) if number == nobody => {
                let what = format!(
                    "`{word}` is nobody ({nobody}): the kernel names it for every {kind} that has no \
                     number here, and all of them would be let in"
                );
                section.wrong(key, entry.span(), what, format!("name a {kind} of its own"));
            }
            Some(number) => numbers.push(number),
            None => {
                let what = format!("there is no {kind} `{word}`");
                section.wrong(key, entry.span(), what, help.clone());
            }
        }
    }
    numbers
}
