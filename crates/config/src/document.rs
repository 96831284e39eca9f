//! A configuration with its text, which can be changed while a daemon runs.
//!
//! Every change is a change of the text, which is then read again: whatever a file may not say, a
//! change may not do, with the same words.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;
use toml_edit::{DocumentMut, InlineTable, Item, Table, TableLike};

use crate::load_error::LoadError;
use crate::models::Models;
use crate::options::Options;
use crate::problem::{Problem, Problems};
use crate::read;
use crate::regular_file::open_regular;
use crate::types::Config;

/// The largest configuration file in bytes.
const LARGEST: u64 = 1 << 20;

/// Added tables stand after everything that the file has.
const LAST: isize = 1 << 40;

/// A configuration with the text that makes it.
#[derive(Clone, Debug)]
pub struct Document {
    /// The file that it was read from; `None`: the command line named a device.
    path: Option<PathBuf>,
    toml: DocumentMut,
    config: Config,
    /// Values that the command line sets in place of the file: section, key, value.
    overrides: Vec<(&'static str, &'static str, String)>,
    /// Devices that were added while the daemon ran.
    added: BTreeSet<String>,
    /// Devices of the file whose options an operation has changed, and what the file says of them.
    operated: BTreeMap<String, Options>,
}

impl Document {
    /// Reads a configuration file. `overrides` are values that the command line sets in place of
    /// the file: section (empty for the top), key, value.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(
        path: &Path,
        models: &Models,
        overrides: Vec<(&'static str, &'static str, String)>,
    ) -> Result<Self, LoadError> {
        let unreadable = |error| LoadError::Unreadable(path.to_owned(), error);
        let mut text = Vec::new();
        let file = open_regular(path).map_err(unreadable)?;
        file.take(LARGEST + 1).read_to_end(&mut text).map_err(unreadable)?;
        if text.len() as u64 > LARGEST {
            return Err(LoadError::TooLarge(path.to_owned(), LARGEST));
        }
        let text = String::from_utf8(text).map_err(|_| LoadError::NotText(path.to_owned()))?;
        let file = path.display().to_string();
        // First as the file is, so that every place is that of the file.
        read::read(&text, models).map_err(|problems| Problems::new(&file, &text, problems))?;
        let document = Self::parse(&file, &text, models, overrides)?;
        Ok(Self { path: Some(path.to_owned()), ..document })
    }

    /// Reads the text of a configuration that is in no file.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn of_text(text: &str, models: &Models) -> Result<Self, Problems> {
        Self::parse("command line", text, models, Vec::new())
    }

    fn parse(
        file: &str,
        text: &str,
        models: &Models,
        overrides: Vec<(&'static str, &'static str, String)>,
    ) -> Result<Self, Problems> {
        let mut toml: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| {
            let span = error.span().unwrap_or(0..0);
            Problems::new(file, text, vec![Problem::plain(span, error.message())])
        })?;
        for (section, key, value) in &overrides {
            let value = toml_edit::value(value.as_str());
            match *section {
                "" => toml[key] = value,
                section => toml[section][key] = value,
            }
        }
        let text = toml.to_string();
        let config = read::read_running(&text, models)
            .map_err(|problems| Problems::new(file, &text, problems))?;
        Ok(Self {
            path: None,
            toml,
            config,
            overrides,
            added: BTreeSet::new(),
            operated: BTreeMap::new(),
        })
    }

    /// What it says.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The file that it was read from; `None`: the command line named a device.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Its text: a file that makes it again.
    pub fn text(&self) -> String {
        self.toml.to_string()
    }

    /// Whether a device was added while the daemon ran.
    pub fn is_added(&self, device: &str) -> bool {
        self.added.contains(device)
    }

    /// Finds the mistakes of `problems` in its text, for messages. One whose span is empty stands where its
    /// key does.
    pub fn problems(&self, mut problems: Vec<Problem>) -> Problems {
        let text = self.text();
        for problem in problems.iter_mut().filter(|problem| problem.span.is_empty()) {
            problem.span = read::span_of(&text, &problem.key);
        }
        Problems::new(&self.file(), &self.text(), problems)
    }

    fn file(&self) -> String {
        self.path.as_ref().map_or("command line".to_owned(), |path| path.display().to_string())
    }

    /// Where a dotted key stands in the text; the beginning if it is not there.
    pub fn span_of(&self, key: &str) -> Range<usize> {
        read::span_of(&self.text(), key)
    }

    /// Reads the file again. Devices that were added while the daemon ran stay, and so do options that an
    /// operation has changed, unless the file says something else of that device than it did.
    ///
    /// # Errors
    /// [`LoadError`]; a device of the file has the name of one that was added.
    pub fn reloaded(&self, path: &Path, models: &Models) -> Result<Self, LoadError> {
        let mut new = Self::load(path, models, self.overrides.clone())?;
        let clash = |name: &&String| new.toml.get("device").is_some_and(|d| d.get(name).is_some());
        let problems = self.added.iter().filter(clash).map(|name| {
            let key = format!("device.{name}");
            Problem {
                span: new.span_of(&key),
                what: "a device of this name was added while the daemon ran".to_owned(),
                help: Some(format!("remove it first (`del {name}`), or choose another name")),
                key,
            }
        });
        let problems: Vec<_> = problems.collect();
        if !problems.is_empty() {
            return Err(new.problems(problems).into());
        }
        for name in &self.added {
            let device = self.toml["device"][name].clone();
            new.insert(name, device);
        }
        for (name, of_file) in &self.operated {
            if self.added.contains(name) || new.options_of(name).as_ref() != Some(of_file) {
                continue;
            }
            let now = self.toml["device"][name].get("options").cloned();
            if let Some(device) = new.device_mut(name) {
                device.remove("options");
                now.map(|now| device.insert("options", now));
            }
            new.operated.insert(name.clone(), of_file.clone());
        }
        new.read_again(models)?;
        Ok(new)
    }

    /// Changes the options of a device by what differs between those of what runs and those of what is to
    /// run.
    ///
    /// # Errors
    /// Every mistake that the device has then.
    pub fn with_options(
        &self,
        name: &str,
        before: &Options,
        after: &Options,
        models: &Models,
    ) -> Result<Self, Problems> {
        let mut new = self.clone();
        let of_file = self.options_of(name).unwrap_or_default();
        let Some(device) = new.device_mut(name) else { return Ok(new) };
        let empty = || Item::Value(InlineTable::new().into());
        let options = device.entry("options").or_insert_with(empty);
        let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let differs = |key: &&String| before.get(*key) != after.get(*key);
        if let Some(options) = options.as_table_like_mut() {
            for key in keys.into_iter().filter(differs) {
                match after.get(key).and_then(value_of) {
                    Some(value) => drop(options.insert(key, Item::Value(value))),
                    None => drop(options.remove(key)),
                }
            }
        }
        new.operated.entry(name.to_owned()).or_insert(of_file);
        new.read_again(models)?;
        Ok(new)
    }

    fn device_mut(&mut self, name: &str) -> Option<&mut dyn TableLike> {
        self.toml.get_mut("device")?.as_table_like_mut()?.get_mut(name)?.as_table_like_mut()
    }

    fn options_of(&self, name: &str) -> Option<Options> {
        let device = self.config.devices.iter().find(|device| device.name == name)?;
        Some(device.options.iter().map(|set| (set.name.clone(), set.value.clone())).collect())
    }

    /// Adds a device: the keys of its section, as JSON.
    ///
    /// # Errors
    /// Every mistake that the section has, alone or with what is there.
    pub fn with_device(
        &self,
        name: &str,
        section: &Options,
        models: &Models,
    ) -> Result<Self, Problems> {
        let mut new = self.clone();
        if new.toml.get("device").is_some_and(|devices| devices.get(name).is_some()) {
            let key = format!("device.{name}");
            let what = "there is a device of this name already";
            let help = Some("choose another name".to_owned());
            let problem = Problem { span: self.span_of(&key), key, what: what.to_owned(), help };
            return Err(self.problems(vec![problem]));
        }
        let mut table = Table::new();
        for (key, value) in section {
            if let Some(value) = value_of(value) {
                table.insert(key, Item::Value(value));
            }
        }
        new.insert(name, Item::Table(table));
        new.read_again(models)?;
        Ok(new)
    }

    /// Leaves a device out.
    ///
    /// # Errors
    /// Every mistake that the rest has without it.
    pub fn without_device(&self, name: &str, models: &Models) -> Result<Self, Problems> {
        let mut new = self.clone();
        if let Some(devices) = new.toml.get_mut("device").and_then(Item::as_table_like_mut) {
            devices.remove(name);
        }
        new.added.remove(name);
        new.operated.remove(name);
        new.read_again(models)?;
        Ok(new)
    }

    fn insert(&mut self, name: &str, mut device: Item) {
        if let Item::Table(table) = &mut device {
            table.set_position(Some(LAST));
            table.decor_mut().set_prefix("\n# Added while the daemon ran.\n");
        }
        let devices = self.toml.entry("device").or_insert_with(|| {
            let mut devices = Table::new();
            devices.set_implicit(true);
            Item::Table(devices)
        });
        if let Some(devices) = devices.as_table_like_mut() {
            devices.insert(name, device);
        }
        self.added.insert(name.to_owned());
    }

    fn read_again(&mut self, models: &Models) -> Result<(), Problems> {
        let text = self.text();
        let problems = |problems| Problems::new(&self.file(), &text, problems);
        self.config = read::read_running(&text, models).map_err(problems)?;
        Ok(())
    }
}

/// A JSON value as TOML; `null` is nothing.
fn value_of(value: &Value) -> Option<toml_edit::Value> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(value) => (*value).into(),
        Value::Number(number) => match number.as_i64() {
            Some(number) => number.into(),
            // Larger than TOML's integers: not an option that a file could have.
            None => number.as_f64()?.into(),
        },
        Value::String(text) => text.as_str().into(),
        Value::Array(list) => list.iter().filter_map(value_of).collect::<toml_edit::Array>().into(),
        Value::Object(fields) => {
            let mut table = InlineTable::new();
            for (key, value) in fields {
                if let Some(value) = value_of(value) {
                    table.insert(key, value);
                }
            }
            table.into()
        }
    })
}
