//! A table of the file under the reader's eyes: typed values out of it, mistakes noted with
//! their place, and at the end whatever key nobody asked for.

use std::cell::RefCell;
use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::nearest::suggestion;
use crate::problem::Problem;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

/// One table.
pub(super) struct Section<'a> {
    /// Dotted name from the file's top; empty for the top itself.
    pub(super) path: String,
    /// Where it stands: its header, or the braces.
    pub(super) span: Range<usize>,
    table: &'a DeTable<'a>,
    asked: RefCell<Vec<&'static str>>,
    problems: &'a RefCell<Vec<Problem>>,
}

impl<'a> Section<'a> {
    pub(super) fn top(
        table: &'a Spanned<DeTable<'a>>,
        problems: &'a RefCell<Vec<Problem>>,
    ) -> Self {
        Self {
            path: String::new(),
            span: 0..0,
            table: table.get_ref(),
            asked: RefCell::default(),
            problems,
        }
    }

    /// The dotted name of a key here.
    pub(super) fn key(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Notes a mistake at a key.
    pub(super) fn wrong(
        &self,
        key: &str,
        span: Range<usize>,
        what: impl Into<String>,
        help: impl Into<Option<String>>,
    ) {
        self.problems.borrow_mut().push(Problem {
            span,
            key: self.key(key),
            what: what.into(),
            help: help.into(),
        });
    }

    /// Notes that something is not there, at the table itself.
    pub(super) fn missing(&self, key: &'static str, help: impl Into<String>) {
        self.asked.borrow_mut().push(key);
        self.problems.borrow_mut().push(Problem {
            span: self.span.clone(),
            key: self.path.clone(),
            what: format!("`{key}` is missing"),
            help: Some(help.into()),
        });
    }

    /// Notes a mistake in the table as a whole.
    pub(super) fn here(&self, what: impl Into<String>, help: impl Into<Option<String>>) {
        self.problems.borrow_mut().push(Problem {
            span: self.span.clone(),
            key: self.path.clone(),
            what: what.into(),
            help: help.into(),
        });
    }

    fn get(&self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.asked.borrow_mut().push(key);
        self.table.get(key)
    }

    /// Where the value of a dotted key stands, or the innermost table that should have it.
    pub(super) fn span_of(&self, path: &str) -> Range<usize> {
        let (mut table, mut span, mut rest) = (self.table, self.span.clone(), path);
        // Names may have dots in them: the longest one that fits is meant.
        while let Some((key, value)) = table
            .iter()
            .filter(|(key, _)| {
                let behind = rest.strip_prefix(key.get_ref().as_ref());
                behind.is_some_and(|behind| behind.is_empty() || behind.starts_with('.'))
            })
            .max_by_key(|(key, _)| key.get_ref().len())
        {
            span = value.span();
            let Some(inner) = value.get_ref().as_table() else { break };
            table = inner;
            rest = rest[key.get_ref().len()..].trim_start_matches('.');
        }
        span
    }

    /// Whether there is such a key.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    fn unlike(&self, key: &str, value: &Spanned<DeValue<'_>>, right: &str) {
        self.wrong(
            key,
            value.span(),
            format!("this is {}, not {right}", described(value.get_ref())),
            None,
        );
    }

    /// A string.
    pub(super) fn string(&self, key: &'static str) -> Option<At<&'a str>> {
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::String(text) => Some(At { value: text.as_ref(), span: value.span() }),
            _ => {
                self.unlike(key, value, "a string");
                None
            }
        }
    }

    /// A string or an unsigned integer, as text; octal numbers keep their prefix.
    pub(super) fn word(&self, key: &'static str) -> Option<At<String>> {
        let value = self.get(key)?;
        let text = match value.get_ref() {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) if number.radix() == 8 => format!("0o{}", number.as_str()),
            DeValue::Integer(number) => number.as_str().to_owned(),
            _ => {
                self.unlike(key, value, "a string or a number");
                return None;
            }
        };
        Some(At { value: text, span: value.span() })
    }

    /// One of some words.
    pub(super) fn choice<T: Copy>(&self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let text = self.string(key)?;
        let found = words.iter().find(|(word, _)| *word == text.value);
        if found.is_none() {
            self.wrong(
                key,
                text.span,
                format!("`{}` is not one of its values", text.value),
                suggestion(text.value, "values", words.iter().map(|(word, _)| *word)),
            );
        }
        found.map(|(_, value)| *value)
    }

    /// An integer within bounds.
    pub(super) fn integer(
        &self,
        key: &'static str,
        bounds: RangeInclusive<u64>,
    ) -> Option<At<u64>> {
        let value = self.get(key)?;
        let DeValue::Integer(integer) = value.get_ref() else {
            self.unlike(key, value, "an integer");
            return None;
        };
        match u64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if bounds.contains(&number) => {
                Some(At { value: number, span: value.span() })
            }
            _ => {
                let right = format!("it goes from {} to {}", bounds.start(), bounds.end());
                self.wrong(key, value.span(), "this number is out of range", right);
                None
            }
        }
    }

    /// A value of any kind.
    pub(super) fn value(&self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.get(key)
    }

    /// A table inside this one.
    pub(super) fn section(&self, key: &'static str) -> Option<Section<'a>> {
        let value = self.get(key)?;
        let section = self.inner(key, value.span(), value);
        if section.is_none() {
            self.unlike(key, value, "a table");
        }
        section
    }

    /// The tables inside the table `key`, by name, in the order of the file.
    pub(super) fn named_sections(&self, key: &'static str) -> Vec<(At<&'a str>, Section<'a>)> {
        let Some(outer) = self.section(key) else { return Vec::new() };
        let mut entries: Vec<_> = outer.table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        let mut sections = Vec::with_capacity(entries.len());
        for (name, value) in entries {
            if name.get_ref().is_empty() {
                let help = format!("write a name: [{key}.NAME]");
                outer.wrong("", name.span(), "a name is empty", help);
            } else if let Err(error) = vfiod_core::check_device_name(name.get_ref()) {
                let help = "write letters, digits and other characters that can be seen".to_owned();
                outer.wrong("", name.span(), error.to_string(), help);
            }
            match outer.inner(name.get_ref(), name.span(), value) {
                Some(section) => sections
                    .push((At { value: name.get_ref().as_ref(), span: name.span() }, section)),
                None => outer.unlike(name.get_ref(), value, &format!("a table: [{key}.NAME]")),
            }
        }
        sections
    }

    fn inner(
        &self,
        key: &str,
        span: Range<usize>,
        value: &'a Spanned<DeValue<'a>>,
    ) -> Option<Section<'a>> {
        Some(Section {
            path: self.key(key),
            span,
            table: value.get_ref().as_table()?,
            asked: RefCell::default(),
            problems: self.problems,
        })
    }

    /// Every key with its value, in the order of the file; asks for all of them.
    pub(super) fn entries(&self) -> Vec<(&'a Spanned<DeString<'a>>, &'a Spanned<DeValue<'a>>)> {
        let mut entries: Vec<_> = self.table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        entries
    }

    /// Notes every key that nobody asked for.
    pub(super) fn finish(self) {
        let asked = self.asked.borrow();
        for (name, _) in self.entries() {
            let word = name.get_ref().as_ref();
            if !asked.contains(&word) {
                self.wrong(
                    word,
                    name.span(),
                    "there is no such key",
                    suggestion(word, "keys", asked.iter().copied()),
                );
            }
        }
    }
}

fn described(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the string \"{text}\""),
        DeValue::Integer(number) => format!("the number {}", number.as_str()),
        DeValue::Float(number) => format!("the number {}", number.as_str()),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date".into(),
        DeValue::Array(_) => "a list".into(),
        DeValue::Table(_) => "a table".into(),
    }
}
